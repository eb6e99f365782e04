"""Every parser of bytes from outside, with honest examples to start from: whatever the bytes, only our own errors leave it."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save

from stratascope.errors import StratascopeError
from stratascope.flows.config import load_config
from stratascope.storage import zarr_format
from stratascope.storage.archive import create_array, read_array
from stratascope.storage.checkpoint_files import RunSource, find_checkpoints
from stratascope.storage.datasets.cifar import read_batch
from stratascope.storage.datasets.files import load_npz
from stratascope.storage.datasets.idx import read_idx
from stratascope.storage.digests import sealed
from stratascope.storage.manifests import Manifest, manifest_bytes, read_manifest
from stratascope.storage.units import Unit
from stratascope.tasks.intake.load import load_weights

MODEL = {"factory": "stratascope.tasks.models:mlp", "args": {"inputs": 4, "widths": [3]}}
CONFIG = {
    "store": "store",
    "probes": {"test": {"dataset": "digits", "limit": 10}},
    "runs": [
        {"name": "run", "checkpoints": "runs/*", "step": r"step-(\d+)", "select": {"every": 1}, "model": MODEL}
    ],
    "layers": ["fc*"],
    "capture": {"keep": ["pooled"]},
    "analyses": {"outputs": {}},
    "checks": [{"suite": "soundness"}, {"name": "dead", "metric": "dead_fraction", "max": 0.5}],
    "cluster": {"workers": 2},
}
TENSORS = {"fc1.weight": torch.arange(12.0).reshape(3, 4), "fc1.bias": torch.ones(3), "step": torch.tensor(7)}


@dataclass(frozen=True)
class Parser:
    """What is fed: the honest examples, and the function that reads a file's bytes in a folder of its own."""

    examples: tuple[bytes, ...]
    read: Callable[[bytes, Path], object]


def feed(parser: Parser, data: bytes) -> bool:
    """Whether `data` was accepted. Anything but an error of our own goes through to the caller."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            parser.read(data, Path(folder))
        except StratascopeError as error:
            if not str(error).strip():
                raise AssertionError("an error without a word") from error
            return False
    return True


def _written(data: bytes, folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def _weights(name: str) -> Callable[[bytes, Path], object]:
    def read(data: bytes, folder: Path) -> object:
        path = _written(data, folder, name)
        source = RunSource.model_validate({"name": "run", "checkpoints": str(path), "model": MODEL})
        (file,) = find_checkpoints(source, folder)
        return load_weights(file, source, folder)

    return read


def _distributed(data: bytes, folder: Path) -> object:
    inside = folder / "step-1"
    inside.mkdir()
    (inside / ".metadata").write_bytes(data)
    (inside / "__0_0.distcp").write_bytes(_distributed_examples()[1])
    source = RunSource.model_validate({"name": "run", "checkpoints": str(folder / "step-*"), "model": MODEL})
    (file,) = find_checkpoints(source, folder)
    return load_weights(file, source, folder)


@cache
def _distributed_examples() -> tuple[bytes, bytes]:
    from torch.distributed.checkpoint import FileSystemWriter
    from torch.distributed.checkpoint import save as save_distributed

    with tempfile.TemporaryDirectory() as folder:
        save_distributed(dict(TENSORS), storage_writer=FileSystemWriter(folder), no_dist=True)
        return (Path(folder) / ".metadata").read_bytes(), (Path(folder) / "__0_0.distcp").read_bytes()


def _torch_example(new: bool) -> bytes:
    stream = io.BytesIO()
    torch.save({"state_dict": TENSORS, "epoch": 3}, stream, _use_new_zipfile_serialization=new)
    return stream.getvalue()


def _npz_example() -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, inputs=np.ones((4, 3), np.float32), targets=np.arange(4))
    return stream.getvalue()


def _zip_example() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", b"cposix\nsystem\n(S'true'\ntR.")
        archive.writestr("archive/version", b"3")
    return stream.getvalue()


def _array(data: bytes, folder: Path) -> object:
    size = int.from_bytes(data[:2], "little") % (len(data) + 1)
    place = folder / "array"
    place.mkdir()
    (place / "zarr.json").write_bytes(data[2 : 2 + size])
    (place / "c.0.0").write_bytes(data[2 + size :])
    return read_array(place)


def _array_example() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "array"
        writer = create_array(place, dims=("sample", "feature"), shape=(3, 2), dtype="float32")
        writer.append(np.ones((3, 2), np.float32))
        writer.close()
        metadata = (place / "zarr.json").read_bytes()
        assert zarr_format.parse(place) is not None
        return len(metadata).to_bytes(2, "little") + metadata + (place / "c.0.0").read_bytes()


def _overridden(data: bytes, folder: Path) -> object:
    path = _written(yaml.safe_dump(CONFIG).encode(), folder, "audit.yaml")
    return load_config(path, [data.decode("utf-8", "replace")])


def _list_of_files(name: str) -> Callable[[bytes, Path], object]:
    def read(data: bytes, folder: Path) -> object:
        path = _written(data, folder, name)
        return find_checkpoints(
            RunSource.model_validate({"name": "run", "checkpoints": str(path), "model": MODEL}), folder
        )

    return read


PARSERS = {
    "configuration": Parser(
        (yaml.safe_dump(CONFIG).encode(), json.dumps(CONFIG).encode(), b"store: ${HOME}\nruns: &a [*a]\n"),
        lambda data, folder: load_config(_written(data, folder, "audit.yaml")),
    ),
    "override": Parser((b"runs.0.select={last: 1}", b"cluster.workers=3", b"store.x.y=1"), _overridden),
    "safetensors": Parser((save(TENSORS),), _weights("step-1.safetensors")),
    "torch.save": Parser((_torch_example(True), _zip_example()), _weights("step-1.pt")),
    "torch.save before 1.6": Parser(
        (_torch_example(False), b"cposix\nsystem\n(S'true'\ntR."), _weights("step-1.pth")
    ),
    "distributed checkpoint": Parser((_distributed_examples()[0],), _distributed),
    "list of checkpoints, CSV": Parser((b"path,step\na.pt,1\nb.pt,2\n",), _list_of_files("list.csv")),
    "list of checkpoints, JSON": Parser((b'[{"path": "a.pt", "step": 1}]',), _list_of_files("list.json")),
    "npz": Parser((_npz_example(),), lambda data, folder: load_npz(_written(data, folder, "data.npz"))),
    "IDX": Parser(
        (b"\0\0\x08\x03" + (2).to_bytes(4, "big") + (2).to_bytes(4, "big") * 2 + bytes(8),),
        lambda data, folder: read_idx(_written(data, folder, "images-idx3-ubyte")),
    ),
    "CIFAR-10 batch": Parser(
        (bytes(3073),), lambda data, folder: read_batch(_written(data, folder, "data_batch_1.bin"))
    ),
    "array of the archive": Parser((_array_example(),), _array),
    "manifest": Parser(
        (manifest_bytes(Manifest(Unit("series", "run", -1, "outputs"), "0" * 64, {}, {})), sealed({})),
        lambda data, folder: read_manifest(_written(data, folder, "outputs.json")),
    ),
}
