"""Which samples are held out together: folds that depend on the samples' ids and classes, copies kept on one side."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stratascope.storage.datasets.dataset import leaves_of
from stratascope.storage.probes import Probe

_BLOCK = 1024


@dataclass(frozen=True)
class Folds:
    """The samples that a probe learns from and is tested on, and in which fold each is held out."""

    kept: np.ndarray
    """int64 (kept sample,): their places among the samples asked about, ascending."""
    fold: np.ndarray
    """int64 (kept sample,): from 0 to `count` - 1."""
    count: int
    copies: int
    """So many kept samples are exact copies of another one: they lie in its fold."""
    left_out: int = 0
    """Classes that are left out, since they have fewer different samples than there are folds."""

    @property
    def about(self) -> str:
        """What `convention` says of them."""
        parts = [f"folds={self.count}", f"copies kept in one fold={self.copies}" if self.copies else ""]
        if self.left_out:
            parts.append(f"left_out={self.left_out} rare classes")
        return ";".join(filter(None, parts))


def copies_of(probe: Probe, rows: np.ndarray) -> np.ndarray:
    """int64 (row,): a number for each of `rows` of the probe, alike where all raw inputs are equal to the byte.

    Read in slices; numbered by first occurrence, so their order follows that of `rows`.
    """
    import xxhash

    digests = [b""] * len(probe)
    wanted = np.zeros(len(probe), bool)
    wanted[rows] = True
    leaves = leaves_of(probe.inputs)
    for start in range(0, len(probe), _BLOCK):
        if not wanted[start : start + _BLOCK].any():
            continue
        block = {name: np.ascontiguousarray(values[start : start + _BLOCK]) for name, values in leaves.items()}
        for place in np.flatnonzero(wanted[start : start + _BLOCK]):
            found = xxhash.xxh3_128()
            for name in sorted(block):
                found.update(block[name][place].tobytes())
            digests[start + place] = found.digest()
    numbers: dict[bytes, int] = {}
    return np.array([numbers.setdefault(digests[row], len(numbers)) for row in rows], np.int64)


def stratified_folds(classes: np.ndarray, copies: np.ndarray, count: int) -> Folds:
    """Deal samples with `classes` (sample,) to `count` folds in the order in which they stand; `copies` stay together.

    Each set of copies (equal numbers in `copies`, (sample,)) goes to the fold that has the fewest samples of its first
    sample's class, then the fewest at all, then the lowest number. A class with fewer different samples than folds is
    left out, so that every training set has every class. The order of the samples should come from their ids.
    """
    values, sets = np.unique(classes), np.unique(np.stack([classes, copies]), axis=1)
    different = np.array([(sets[0] == value).sum() for value in values])
    kept = np.flatnonzero(np.isin(classes, values[different >= count]))
    fold = _dealt(classes[kept], copies[kept], count)
    repeated = len(kept) - len(np.unique(copies[kept]))
    return Folds(kept, fold, count, repeated, int((different < count).sum()))


def plain_folds(copies: np.ndarray, count: int) -> Folds:
    """The same where targets are amounts and no classes."""
    fold = _dealt(np.zeros(len(copies), np.int64), copies, count)
    return Folds(np.arange(len(copies)), fold, count, len(copies) - len(np.unique(copies)))


def _dealt(classes: np.ndarray, copies: np.ndarray, count: int) -> np.ndarray:
    _, first, inverse, sizes = np.unique(copies, return_index=True, return_inverse=True, return_counts=True)
    strata = np.unique(classes, return_inverse=True)[1]
    own = np.zeros((int(strata.max(initial=0)) + 1, count), np.int64)
    fold_of = np.empty(len(first), np.int64)
    for number in np.argsort(first, kind="stable"):
        stratum = strata[first[number]]
        place = np.lexsort((np.arange(count), own.sum(0), own[stratum]))[0]
        fold_of[number] = place
        own[stratum, place] += sizes[number]
    return fold_of[inverse]
