"""Reading weights without running anything that a file carries."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratascope.errors import CheckpointError, DeferredCheckpointError, UnsafeCheckpointError
from stratascope.storage.checkpoint_files import CheckpointFile, RunSource
from stratascope.storage.factories import import_folder
from stratascope.storage.file_memory import file_state
from stratascope.storage.remote_checkpoints import local_checkpoint
from stratascope.tasks.intake.state_dicts import find_state_dict, inner_step

if TYPE_CHECKING:
    from torch import Tensor, nn

ALLOWANCE = 64 << 20
"""Bytes that a file may claim beyond what it has, before it is taken for a bomb."""
_DAMAGED = ("unsupported operand", "invalid load key", "ran out of input", "truncated", "string is too long")


@dataclass(frozen=True)
class NetworkTraits:
    """What a capture must know of a network that did not come from the model factory."""

    kind: str = "module"
    """`module`, `torchscript` or `exported`."""
    hookable: bool = True
    """Whether layers inside it can be captured; otherwise only its outputs and weights are at hand."""
    fixed_batch_size: int | None = None
    """The only batch size that it takes; None where any will do."""
    note: str = ""
    """One sentence for the reader of the report; "" where there is nothing to say."""


@dataclass
class LoadedWeights:
    """Tensors by name, as the file has them, and the step that a key inside tells.

    `network` is there where the file is a program, or a whole module, and needs no model factory.
    """

    tensors: dict[str, Tensor]
    inner_step: int | None = None
    network: nn.Module | None = None
    traits: NetworkTraits = field(default_factory=NetworkTraits)


def first_line(error: BaseException) -> str:
    """The first line of what `error` says, without its full stop; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def load_weights(file: CheckpointFile, source: RunSource, folder: Path | None = None) -> LoadedWeights:
    """The weights in `file`; a pickled module is looked up with `folder` on the import path.

    Raises CheckpointError where it is missing, damaged or of an unknown layout, UnsafeCheckpointError where reading it
    would run code or fill the memory, DeferredCheckpointError where it changes while it is read.
    """
    with local_checkpoint(file) as copy:
        return _loaded(copy, source, folder)


def _loaded(file: CheckpointFile, source: RunSource, folder: Path | None) -> LoadedWeights:
    try:
        before = _state(file)
        loaded = _load(file, source, folder)
    except DeferredCheckpointError:
        raise
    except CheckpointError:
        if _state(file) != before:
            raise _deferred(file) from None
        raise
    except OSError as error:
        place = Path(error.filename).name if isinstance(error.filename, str) else file.path.name
        raise CheckpointError(f"{file.path.name}: {place} cannot be read: {error.strerror or error}.") from None
    if _state(file) != before:
        raise _deferred(file)
    return loaded


def _state(file: CheckpointFile) -> list[list[Any]]:
    for part in file.files:
        if not part.exists():
            raise CheckpointError(f"{file.path.name}: {part.name} is missing{', a link to nothing' * part.is_symlink()}.")  # fmt: skip
        if not part.is_file() and file.kind != "distributed":
            what = "a folder" if part.is_dir() else "no ordinary file"
            raise CheckpointError(f"{file.path.name}: {part.name} is {what}; expected a file.")
        if part.is_file() and part.stat().st_size == 0 and part.name != "__0_0.distcp":
            raise CheckpointError(f"{file.path.name}: {part.name} is empty.")
    return file_state(file.path)


def _deferred(file: CheckpointFile) -> DeferredCheckpointError:
    return DeferredCheckpointError(f"{file.path.name} changed while it was read: it is left for the next audit.")


def _load(file: CheckpointFile, source: RunSource, folder: Path | None) -> LoadedWeights:
    if file.kind == "safetensors":
        return _safetensors(file.files[0])
    if file.kind == "safetensors_sharded":
        return _sharded(file)
    if file.kind == "distributed":
        from stratascope.tasks.intake.distributed import load_distributed

        return load_distributed(file.path, source.state_dict.key)
    return _torch(file.files[0], source, folder)


def _safetensors(path: Path) -> LoadedWeights:
    from safetensors import SafetensorError
    from safetensors.torch import load

    # Read, not mapped: a mapped file that its writer cuts short would end the process.
    data = path.read_bytes()
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    except (SafetensorError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        raise CheckpointError(f"{path.name} is no whole safetensors file: {first_line(error)}.") from None
    return LoadedWeights(tensors, inner_step(header.get("__metadata__")))


def _sharded(file: CheckpointFile) -> LoadedWeights:
    index, *shards = file.files
    try:
        places = json.loads(index.read_bytes())["weight_map"]
        names = {str(name): str(shard) for name, shard in places.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index.name} is no index of shards: {type(error).__name__} {error}.") from None
    outside = next((shard for shard in names.values() if Path(shard).name != shard), None)
    if outside is not None:
        raise UnsafeCheckpointError(f"{index.name} names the shard {outside!r}; expected a file beside it.")
    tensors: dict[str, Tensor] = {}
    step = None
    for shard in shards:
        loaded = _safetensors(shard)
        twice = sorted(loaded.tensors.keys() & tensors.keys())
        if twice:
            raise CheckpointError(f"{index.name}: {twice[0]!r} lies in {shard.name} and in a shard before it.")
        tensors.update(loaded.tensors)
        step = step if step is not None else loaded.inner_step
    missing = sorted(names.keys() - tensors.keys())
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"{index.name} promises {missing[0]!r}{more}, but no shard has it.")
    return LoadedWeights(tensors, step)


def _torch(path: Path, source: RunSource, folder: Path | None) -> LoadedWeights:
    import torch

    from stratascope.tasks.intake.programs import archive_kind, load_program

    _refuse_bombs(path)
    kind = archive_kind(path)
    if kind != "weights":
        if not source.allow_pickle:
            raise UnsafeCheckpointError(
                f"{path.name} is a program ({kind}), not weights alone. Save a state dict or safetensors; only if you "
                "trust its origin, set `allow_pickle: true` for this run."
            )
        module, traits = load_program(path, kind)
        return LoadedWeights(dict(module.state_dict()), None, module, traits)
    content: Any
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        if not source.allow_pickle:
            raise _refusal(path, error) from None
        content = _unpickled(path, folder)
    if isinstance(content, torch.nn.Module):
        return LoadedWeights(_screened(content.state_dict(), path), None, content)
    tensors = find_state_dict(content, path.name, source.state_dict.key)
    return LoadedWeights(_screened(tensors, path), inner_step(content))


def _refusal(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).split("WeightsUnpickler error:")[-1].strip().split("Please use")[0]
    reason = reason.splitlines()[0].strip().rstrip(".") if reason else type(error).__name__
    if not isinstance(error, pickle.UnpicklingError) or any(sign in reason.lower() for sign in _DAMAGED):
        return CheckpointError(f"{path.name} is no whole file of torch.save: {reason}.")
    return UnsafeCheckpointError(
        f"{path.name} holds more than weights, and reading it could run code ({reason}). Save a plain "
        "state dict or safetensors; only if you trust its origin, set `allow_pickle: true` for this run."
    )


def _unpickled(path: Path, folder: Path | None) -> Any:
    """What `path` holds, code included: only for files whose origin the user vouches for."""
    import torch

    try:
        with import_folder(folder):
            return torch.load(path, map_location="cpu", weights_only=False)
    except (Exception, SystemExit) as error:
        raise CheckpointError(
            f"{path.name} cannot be unpickled: {type(error).__name__}: {first_line(error)}."
        ) from None


def _refuse_bombs(path: Path) -> None:
    """torch.save never compresses: an archive that unpacks to far more than it has was made to fill the memory."""
    try:
        if not zipfile.is_zipfile(path):
            return
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(item.file_size for item in archive.infolist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path.name} is no whole archive: {first_line(error)}.") from None
    if unpacked > 4 * path.stat().st_size + ALLOWANCE:
        raise UnsafeCheckpointError(
            f"{path.name} has {path.stat().st_size:,} bytes and would unpack to {unpacked:,}: refused as a bomb."
        )


def _screened(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """`tensors`, none of which needs more memory than the file gave it. Raises CheckpointError."""
    import torch

    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            kind = "quantized" if tensor.is_quantized else f"of layout {tensor.layout} on {tensor.device}"
            raise CheckpointError(f"{path.name}: {name!r} is {kind}; expected a dense tensor in memory.")
        size = tensor.numel() * tensor.element_size()
        held = tensor.untyped_storage().nbytes()
        if size > max(held, ALLOWANCE):
            raise UnsafeCheckpointError(
                f"{path.name}: {name!r} claims the shape {tuple(tensor.shape)}, {size:,} bytes, and has {held:,}."
            )
    return dict(tensors)
