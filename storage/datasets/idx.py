"""IDX files, the format of MNIST and Fashion-MNIST."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from stratascope.errors import ProbeError
from stratascope.storage.datasets.compressed import read_bounded

_PREFIX = {"train": "train", "test": "t10k"}
_LARGEST = 1 << 28
"""No file of this family holds more; MNIST's training images are 47 MB."""


def source_files(folder: Path, split: str, name: str) -> list[Path]:
    """Image and label file of `split`, compressed or not.

    Raises ProbeError where a file is missing.
    """
    found = []
    for kind in ("images-idx3", "labels-idx1"):
        stem = f"{_PREFIX[split]}-{kind}-ubyte"
        candidates = [folder / f"{stem}.gz", folder / stem]
        existing = [path for path in candidates if path.exists()]
        if not existing:
            raise ProbeError(
                f"data set {name!r}: {candidates[0]} is missing. `stratascope data get {name}` fetches it, or "
                "set STRATASCOPE_DATA to the folder that has it."
            )
        found.append(existing[0])
    return found


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in the IDX file `path`. Raises ProbeError where it is not one, or is cut short."""
    data = read_bounded(path, _LARGEST)
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or len(data) < 4 + 4 * data[3]:
        raise ProbeError(f"{path} is no IDX file of bytes.")
    start = 4 + 4 * data[3]
    shape = tuple(int(length) for length in np.frombuffer(data[4:start], ">u4"))
    if 0 in shape or len(data) != start + math.prod(shape):
        raise ProbeError(f"{path} has {len(data)} bytes, its header promises an array of {shape}.")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def load(folder: Path, split: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (sample, 1, y, x) and targets int64 (sample,)."""
    images, targets = (read_idx(path) for path in source_files(folder, split, name))
    if images.ndim != 3 or targets.ndim != 1 or len(images) != len(targets):
        raise ProbeError(
            f"data set {name!r}: images of shape {images.shape} do not go with labels of {targets.shape}."
        )
    return images[:, None], targets.astype(np.int64)
