"""IDX files, the format of MNIST and Fashion-MNIST."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np

from stratascope.errors import ProbeError

_PREFIX = {"train": "train", "test": "t10k"}


def source_files(folder: Path, split: str, name: str) -> list[Path]:
    """Image and label file of `split`, compressed or not.

    Raises ProbeError where a file is missing.
    """
    if split not in _PREFIX:
        raise ProbeError(f"data set {name!r} has no split {split!r}; it has train and test.")
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
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise ProbeError(f"{path} cannot be read ({error}); fetch it again.") from None
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise ProbeError(f"{path} is no IDX file of bytes.")
    rank = data[3]
    shape = tuple(int(length) for length in np.frombuffer(data, ">i4", rank, 4))
    if len(data) != 4 + 4 * rank + math.prod(shape):
        raise ProbeError(f"{path} has {len(data)} bytes, its header promises an array of {shape}.")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * rank).reshape(shape)


def load(folder: Path, split: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (sample, 1, y, x) and targets int64 (sample,)."""
    images, targets = (read_idx(path) for path in source_files(folder, split, name))
    if len(images) != len(targets):
        raise ProbeError(f"data set {name!r}: {len(images)} images but {len(targets)} labels.")
    return images[:, None], targets.astype(np.int64)
