"""The 1,797 handwritten digits that scikit-learn carries: the default that needs no download."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from stratascope.errors import ProbeError


def source_file() -> Path:
    """The file inside the installed scikit-learn, found without importing it."""
    specification = importlib.util.find_spec("sklearn")
    if specification is None or specification.origin is None:
        raise ProbeError("data set 'digits' comes with scikit-learn, which is not installed.")
    return Path(specification.origin).parent / "datasets" / "data" / "digits.csv.gz"


def load(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (sample, 1, 8, 8) with values 0 to 16, and targets int64 (sample,).

    Splits: `test` is every fifth sample of each class in the file's order, `train` the others, `all` both.
    """
    with gzip.open(source_file(), "rt") as stream:
        table = np.loadtxt(stream, delimiter=",", dtype=np.int64)
    images, targets = table[:, :-1].astype(np.uint8).reshape(-1, 1, 8, 8), table[:, -1]
    if split == "all":
        return images, targets
    rank = np.empty(len(targets), dtype=np.int64)
    for digit in range(10):
        members = np.flatnonzero(targets == digit)
        rank[members] = np.arange(len(members))
    chosen = (rank % 5 == 0) == (split == "test")
    return images[chosen], targets[chosen]
