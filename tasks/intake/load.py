"""Reading weights without running anything that a file carries."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stratascope.errors import CheckpointError, UnsafeCheckpointError
from stratascope.storage.checkpoint_files import CheckpointFile, RunSource

_NESTED = ("state_dict", "model", "model_state_dict", "module", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
_STEP_KEYS = ("global_step", "step", "epoch")
_LARGEST_RATIO = 1000


@dataclass
class LoadedWeights:
    """Tensors by name, as the file has them, and the step that a key inside tells."""

    tensors: dict[str, Tensor]
    inner_step: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def load_weights(file: CheckpointFile, source: RunSource) -> LoadedWeights:
    """The weights in `file`.

    Raises CheckpointError where it is missing, damaged or of an unknown layout, UnsafeCheckpointError where
    reading it would run code.
    """
    for part in file.files:
        if not part.exists():
            raise CheckpointError(f"{file.path.name}: {part.name} is missing.")
        if part.is_file() and part.stat().st_size == 0:
            raise CheckpointError(f"{file.path.name}: {part.name} is empty.")
    if file.kind == "safetensors":
        return _safetensors(file.path)
    if file.kind == "safetensors_sharded":
        return _sharded(file)
    if file.kind == "distributed":
        return _distributed(file.path)
    return _torch(file.path, source)


def _safetensors(path: Path) -> LoadedWeights:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as content:
            tensors = {name: content.get_tensor(name) for name in content.keys()}  # noqa: SIM118
            metadata = content.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path.name} is no whole safetensors file: {error}.") from None
    return LoadedWeights(tensors, _inner_step(metadata))


def _sharded(file: CheckpointFile) -> LoadedWeights:
    index, *shards = file.files
    try:
        names = set(json.loads(index.read_bytes())["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index.name} is no index of shards: {error!r}.") from None
    tensors: dict[str, Tensor] = {}
    step = None
    for shard in shards:
        loaded = _safetensors(shard)
        tensors.update(loaded.tensors)
        step = step if step is not None else loaded.inner_step
    missing = sorted(names - tensors.keys())
    if missing:
        raise CheckpointError(
            f"{index.name} promises {missing[0]!r} and {len(missing) - 1} more, no shard has them."
        )
    return LoadedWeights(tensors, step)


def _torch(path: Path, source: RunSource) -> LoadedWeights:
    _refuse_bombs(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not source.allow_pickle:
            reason = str(error).strip().splitlines()[0]
            raise UnsafeCheckpointError(
                f"{path.name} holds more than weights, and reading it could run code ({reason}). Save a plain "
                "state dict or safetensors; only if you trust its origin, set `allow_pickle: true` for this run."
            ) from None
        content = torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:
        raise CheckpointError(f"{path.name} cannot be read: {str(error).splitlines()[0]}.") from None
    return _unnest(content, path, source.state_dict.key)


def _refuse_bombs(path: Path) -> None:
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(item.file_size for item in archive.infolist())
    if unpacked > _LARGEST_RATIO * max(path.stat().st_size, 1 << 16):
        raise UnsafeCheckpointError(f"{path.name} would unpack to {unpacked:,} bytes: refused as a bomb.")


def _unnest(content: Any, path: Path, key: str | None) -> LoadedWeights:
    if isinstance(content, torch.nn.Module):
        content = content.state_dict()
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} holds a {type(content).__name__}, not a state dict.")
    step = _inner_step(content)
    if key is not None:
        if key not in content:
            raise CheckpointError(f"{path.name} has no {key!r}; it has {', '.join(map(str, list(content)[:8]))}.")
        inner = content[key]
    else:
        nested = [name for name in _NESTED if isinstance(content.get(name), dict)]
        inner = content[nested[0]] if nested else content
    tensors = {str(name): value for name, value in inner.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path.name} holds no tensors; name their place with `state_dict: {{key: …}}`.")
    return LoadedWeights(tensors, step)


def _inner_step(content: dict[Any, Any]) -> int | None:
    for key in _STEP_KEYS:
        value = content.get(key)
        if isinstance(value, str) and value.isdigit():
            return int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None


class _MetadataOnly(pickle.Unpickler):
    """Builds nothing but the plain descriptions that torch.distributed.checkpoint writes."""

    _torch_names = frozenset(
        {
            "Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata",
            "TensorProperties", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING", "_StorageInfo",
        }
    )  # fmt: skip
    _plain = frozenset(
        {
            ("torch", "Size"), ("torch", "float32"), ("torch", "float16"), ("torch", "bfloat16"),
            ("torch", "float64"), ("torch", "int64"), ("torch", "int32"), ("torch", "uint8"), ("torch", "bool"),
            ("torch.serialization", "_get_layout"), ("pathlib", "PosixPath"), ("pathlib", "Path"),
            ("collections", "OrderedDict"),
        }
    )  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        ours = module.startswith("torch.distributed.checkpoint") and name in self._torch_names
        if ours or (module, name) in self._plain:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _distributed(path: Path) -> LoadedWeights:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    try:
        metadata = _MetadataOnly(io.BytesIO((path / ".metadata").read_bytes())).load()
    except pickle.UnpicklingError as error:
        raise UnsafeCheckpointError(f"{path.name}/.metadata is no description of tensors: {error}.") from None
    except Exception as error:
        raise CheckpointError(f"{path.name}/.metadata cannot be read: {error!r}.") from None
    wanted = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }

    class Reader(FileSystemReader):
        def read_metadata(self, *arguments: Any, **options: Any) -> Any:
            return metadata

    try:
        load(wanted, storage_reader=Reader(path), no_dist=True)
    except Exception as error:
        raise CheckpointError(f"{path.name} cannot be read: {str(error).splitlines()[0]}.") from None
    step = next(
        (int(value) for name, value in wanted.items() if name.split(".")[-1] in _STEP_KEYS and value.numel() == 1),
        None,
    )
    tensors = {name: value for name, value in wanted.items() if name.split(".")[-1] not in _STEP_KEYS}
    nested = [prefix for prefix in _NESTED if all(name.startswith(f"{prefix}.") for name in tensors)]
    if nested:
        tensors = {name[len(nested[0]) + 1 :]: value for name, value in tensors.items()}
    return LoadedWeights(tensors, step)


def fit_names(tensors: dict[str, Tensor], wanted: set[str], strip_prefix: str | None) -> dict[str, Tensor]:
    """`tensors` under the network's names: wrappers' prefixes go where that makes more names fit."""
    if strip_prefix is not None:
        return {name.removeprefix(strip_prefix): value for name, value in tensors.items()}
    best = tensors
    while True:
        offers = [
            {name.removeprefix(prefix): value for name, value in best.items()}
            for prefix in _PREFIXES
            if best and all(name.startswith(prefix) for name in best)
        ]
        offers = [offer for offer in offers if len(offer.keys() & wanted) > len(best.keys() & wanted)] or [
            offer for offer in offers if not best.keys() & wanted
        ]
        if not offers:
            return best
        best = offers[0]
