"""CIFAR-10: the binary batches, compressed or not, and the Python batches without unpickling code."""

from __future__ import annotations

import gzip
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from stratascope.errors import ProbeError

CLASS_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
)  # fmt: skip
_RECORD = 1 + 3 * 32 * 32
_FOLDERS = ("cifar10", "cifar-10-batches-bin", "cifar-10-batches-py")


def source_files(folder: Path, split: str) -> list[Path]:
    """The batches of `split` that are there: `train` takes every whole one, `test` may be its first part."""
    if split not in ("train", "test"):
        raise ProbeError(f"data set 'cifar10' has no split {split!r}; it has train and test.")
    stems = (
        [f"data_batch_{number}" for number in range(1, 6)]
        if split == "train"
        else ["test_batch", "test_batch_first1000"]
    )
    found = []
    for stem in stems:
        names = (f"{stem}.bin.gz", f"{stem}.bin", stem)
        existing = [path for place in _FOLDERS for name in names if (path := folder / place / name).exists()]
        found += existing[:1]
    if not found:
        raise ProbeError(
            f"data set 'cifar10': no {stems[0]} in {folder / _FOLDERS[0]}. `stratascope data get cifar10` "
            "fetches it, or set STRATASCOPE_DATA to the folder that has it."
        )
    return found if split == "train" else found[:1]


def load(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (sample, 3, 32, 32) and targets int64 (sample,)."""
    batches = [read_batch(path) for path in source_files(folder, split)]
    return np.concatenate([images for images, _ in batches]), np.concatenate([target for _, target in batches])


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """One batch in either layout. Raises ProbeError where it is damaged or would run code."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise ProbeError(f"{path} cannot be read ({error}); fetch it again.") from None
    if ".bin" not in path.suffixes:
        return _python_batch(path, data)
    if len(data) % _RECORD:
        raise ProbeError(f"{path} has {len(data)} bytes, no multiple of a record's {_RECORD}: it is cut short.")
    records = np.frombuffer(data, np.uint8).reshape(-1, _RECORD)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


class _ArraysOnly(pickle.Unpickler):
    """Lets nothing be built but NumPy arrays."""

    _allowed = frozenset({"_reconstruct", "ndarray", "dtype"})

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in self._allowed:
            if name == "_reconstruct":
                from numpy._core.multiarray import _reconstruct

                return _reconstruct
            return getattr(np, name)
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _python_batch(path: Path, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    try:
        content = _ArraysOnly(io.BytesIO(data), encoding="bytes").load()
        images = np.asarray(content[b"data"], np.uint8).reshape(-1, 3, 32, 32)
        return images, np.asarray(content[b"labels"], np.int64)
    except Exception as error:
        raise ProbeError(f"{path} is no batch of CIFAR-10 that can be read safely: {error}.") from None
