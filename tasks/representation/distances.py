"""Distances between samples and each sample's nearest others: found once, then read for many subsets and labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

_BLOCK = 512
_CANCELLED = 1e-7
"""Below this share of the samples' own squared norms a squared distance is computed again, from differences."""


def centred_values(values: np.ndarray) -> np.ndarray:
    """`values` (sample, feature) as float64 about their mean, so that little is lost in differences of products."""
    exact = np.asarray(values, np.float64)
    return exact - exact.mean(0)


def squared_distance_blocks(centred: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """(rows, squared Euclidean distances (row, sample)) of `centred` (sample, feature), float64, in blocks of rows.

    From inner products, except where two samples are so near that rounding would tell: there from their differences,
    so that equal samples have distance 0 exactly, and near ones a distance right to about seven digits.
    """
    squared = np.einsum("ij,ij->i", centred, centred)
    for start in range(0, len(centred), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(centred)))
        norms = squared[rows, None] + squared[None]
        found = norms - 2.0 * (centred[rows] @ centred.T)
        here, there = np.nonzero(found <= _CANCELLED * norms)
        for first in range(0, len(here), 4 * _BLOCK):
            one, other = here[first : first + 4 * _BLOCK], there[first : first + 4 * _BLOCK]
            found[one, other] = ((centred[start + one] - centred[other]) ** 2).sum(1)
        yield rows, found


def distance_matrix(centred: np.ndarray) -> np.ndarray:
    """Euclidean distances (sample, sample), float64, of `centred` (sample, feature)."""
    found = np.empty((len(centred), len(centred)))
    for rows, squared in squared_distance_blocks(centred):
        np.sqrt(squared, out=found[rows])
    return found


@dataclass(frozen=True)
class Neighbours:
    """Each sample's nearest others, nearest first; the smaller row number comes first where distances are equal."""

    order: np.ndarray
    """int64 (sample, rank): row numbers."""
    distance: np.ndarray
    """float64 (sample, rank): Euclidean."""

    @classmethod
    def of(cls, centred: np.ndarray, count: int) -> Neighbours:
        """The `count` nearest by Euclidean distance among `centred` (sample, feature); memory grows with n, not n²."""
        order = np.empty((len(centred), count), np.int64)
        distance = np.empty((len(centred), count))
        for rows, squared in squared_distance_blocks(centred):
            order[rows], found = _nearest(squared, rows.start, count)
            distance[rows] = np.sqrt(found)
        return cls(order, distance)

    @classmethod
    def among(cls, distances: np.ndarray, count: int) -> Neighbours:
        """The same from a matrix of `distances` (sample, sample), which is left as it is."""
        parts = [
            _nearest(distances[start : start + _BLOCK].copy(), start, count)
            for start in range(0, len(distances), _BLOCK)
        ]
        return cls(*(np.concatenate(items) for items in zip(*parts, strict=True)))

    def within(self, rows: np.ndarray, count: int) -> Neighbours:
        """The `count` nearest that are among `rows` (subset,), of each of these; `order` still names rows of the whole.

        Raises ValueError where so many are not known, which `reserve` makes all but impossible.
        """
        present = np.zeros(len(self.order), bool)
        present[rows] = True
        order = self.order[rows]
        inside = present[order]
        chosen = inside & (inside.cumsum(1) <= count)
        if (chosen.sum(1) < count).any():
            raise ValueError(f"fewer than {count} neighbours of a sample are known in a subset of {len(rows)}")
        shape = (len(rows), count)
        return Neighbours(order[chosen].reshape(shape), self.distance[rows][chosen].reshape(shape))


def reserve(count: int, samples: int) -> int:
    """So many neighbours must be known for the `count` nearest in a random half of `samples` to be among them."""
    return min(samples - 1, 8 * count + 48)


def _nearest(distances: np.ndarray, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(order, distances) of the `count` smallest of each row; `distances` are of rows `start` and following."""
    rows = np.arange(len(distances))
    distances[rows, start + rows] = np.inf
    near = np.argpartition(distances, count - 1, axis=1)[:, :count]
    near.sort(1)
    places = np.take_along_axis(distances, near, 1).argsort(1, kind="stable")
    near = np.take_along_axis(near, places, 1)
    return near, np.take_along_axis(distances, near, 1)


def different_rows(values: np.ndarray) -> np.ndarray:
    """Ascending row numbers of `values` (sample, feature): the first of each set of equal rows."""
    plain = np.ascontiguousarray(values + 0.0)  # no negative zero: it equals zero, its bytes do not
    seen: dict[bytes, int] = {}
    for number, row in enumerate(plain):
        seen.setdefault(row.tobytes(), number)
    return np.fromiter(seen.values(), np.int64)
