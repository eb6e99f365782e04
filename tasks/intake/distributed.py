"""Folders that torch.distributed.checkpoint wrote: their description is a pickle, and is read by a strict reader."""

from __future__ import annotations

import io
import math
import pickle
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratascope.errors import CheckpointError, UnsafeCheckpointError
from stratascope.tasks.intake.load import ALLOWANCE, LoadedWeights, first_line
from stratascope.tasks.intake.state_dicts import STEP_KEYS, inner_step

if TYPE_CHECKING:
    from torch import Tensor

_DESCRIPTIONS = frozenset(
    {
        "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata", "TensorProperties",
        "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING", "_StorageInfo",
    }
)  # fmt: skip
_HOMES = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
_PLAIN = frozenset(
    {
        ("torch", "Size"), ("torch.serialization", "_get_layout"), ("pathlib", "PosixPath"), ("pathlib", "Path"),
        ("pathlib", "PurePosixPath"), ("collections", "OrderedDict"),
    }
)  # fmt: skip
_NOT_WEIGHTS = ("optim", "lr_sched", "sched", "scaler", "rng", "callbacks", "loops")


class _DescriptionOnly(pickle.Unpickler):
    """Builds nothing but the plain descriptions that torch.distributed.checkpoint writes."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        is_type = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_type or (module in _HOMES and name in _DESCRIPTIONS) or (module, name) in _PLAIN:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def load_distributed(path: Path, key: str | None) -> LoadedWeights:
    """The weights in the folder `path`, below `key` where that is given; optimizer states stay where they are.

    Raises CheckpointError where it is damaged, UnsafeCheckpointError where its description asks for code, for files
    outside the folder, or for more memory than the folder has bytes.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load

    metadata = _description(path)
    wanted, loose = _wanted(metadata, path, key)

    class Reader(FileSystemReader):
        def read_metadata(self, *arguments: Any, **options: Any) -> Any:
            return metadata

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says that it runs in one process, as is meant
            load(wanted, storage_reader=Reader(path), no_dist=True)
    except (Exception, CheckpointException) as error:
        failures = list(getattr(error, "failures", {}).values())
        cause = failures[0][0] if failures else error
        raise CheckpointError(
            f"{path.name} cannot be read: {type(cause).__name__}: {first_line(cause)}."
        ) from None
    facts = {name.rpartition(".")[2]: wanted.pop(name) for name in loose if name in wanted}
    facts |= _small_objects(metadata, path)
    if not wanted:
        raise CheckpointError(f"{path.name} describes no tensors{f' below {key!r}' if key else ''}.")
    cut = len(key) + 1 if key else 0
    return LoadedWeights({name[cut:]: value for name, value in wanted.items()}, inner_step(facts))


def _description(path: Path) -> Any:
    try:
        metadata = _DescriptionOnly(io.BytesIO((path / ".metadata").read_bytes())).load()
        places = [str(info.relative_path) for info in (metadata.storage_data or {}).values()]
        entries = dict(metadata.state_dict_metadata)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        if "it asks for" in str(error):
            raise UnsafeCheckpointError(
                f"{path.name}/.metadata is more than a description of tensors, and reading it could run code: {error}."
            ) from None
        raise CheckpointError(f"{path.name}/.metadata cannot be read: {first_line(error)}.") from None
    except Exception as error:
        raise CheckpointError(
            f"{path.name}/.metadata cannot be read: {type(error).__name__}: {first_line(error)}."
        ) from None
    if not entries:
        raise CheckpointError(f"{path.name}/.metadata describes nothing.")
    outside = next((place for place in places if Path(place).name != place), None)
    if outside is not None:
        raise UnsafeCheckpointError(f"{path.name}/.metadata names the file {outside!r}; expected one beside it.")
    missing = next((place for place in places if not (path / place).is_file()), None)
    if missing is not None:
        raise CheckpointError(f"{path.name}: {missing} is missing.")
    return metadata


def _wanted(metadata: Any, path: Path, key: str | None) -> tuple[dict[str, Any], list[str]]:
    """Empty tensors to be filled, by name, and the names of those that are steps."""
    import torch
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    described = {
        str(name): entry
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
        and not str(name).lower().startswith(_NOT_WEIGHTS)
        and (key is None or str(name).startswith(f"{key}.") or name in STEP_KEYS)
    }
    try:
        size = sum(math.prod(entry.size) * entry.properties.dtype.itemsize for entry in described.values())
    except (TypeError, AttributeError) as error:
        raise CheckpointError(f"{path.name}/.metadata is damaged: {first_line(error)}.") from None
    held = sum(item.stat().st_size for item in path.iterdir() if item.is_file())
    if size > 4 * held + ALLOWANCE or size < 0:
        raise UnsafeCheckpointError(f"{path.name} has {held:,} bytes and claims tensors of {size:,}.")
    wanted: dict[str, Tensor] = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in described.items()
    }
    loose = [name for name, value in wanted.items() if name in STEP_KEYS and value.numel() == 1]
    return wanted, loose


def _small_objects(metadata: Any, path: Path) -> dict[str, Any]:
    """The steps that lie in the folder as pickled numbers, read by torch's weights-only reader."""
    import torch

    found = {}
    for index, info in (metadata.storage_data or {}).items():
        if index.fqn in STEP_KEYS and 0 < info.length < 1 << 16:
            with open(path / info.relative_path, "rb") as stream:
                stream.seek(info.offset)
                content = io.BytesIO(stream.read(info.length))
            try:
                found[index.fqn] = torch.load(content, weights_only=True)
            except Exception:  # no plain number: the name of the folder tells the step
                continue
    return found
