"""When a head took up what it does: the checkpoint from which its score stays past half of its way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Formation:
    """One head's way from its first to its final score."""

    place: int
    """The number of the first checkpoint from which on the score stays past half way; 0 where there is no `gain`."""
    start: float
    end: float

    @property
    def gain(self) -> float:
        return self.end - self.start


def formation_of(values: np.ndarray) -> Formation:
    """When the curve `values` (step,), finite, passed the middle of its first value and its final level for good.

    The final level is the median of the last tenth of the values, of at least one. A curve that jumps up, falls below the
    middle and comes back has formed when it came back.
    """
    values = np.asarray(values, np.float64)
    start, end = float(values[0]), float(np.median(values[-max(1, len(values) // 10) :]))
    below = np.flatnonzero(values < (start + end) / 2)
    # The median may lie above the very last value, which then is the last one below the middle.
    place = min(int(below[-1]) + 1, len(values) - 1) if end > start and len(below) else 0
    return Formation(place, start, end)


def shortened_matrix(weights: np.ndarray, most: int) -> np.ndarray:
    """Weights (…, query, key) of at most `most` queries and keys: blocks of neighbours, summed over keys and averaged over queries.

    So rows still sum to what they did, on average.
    """
    queries, keys = weights.shape[-2:]
    if queries > most:
        edges = block_edges(queries, most)
        sizes = np.diff([*edges, queries])
        weights = np.add.reduceat(weights, edges, axis=-2) / sizes[:, None]
    if keys > most:
        weights = np.add.reduceat(weights, block_edges(keys, most), axis=-1)
    return weights


def block_edges(count: int, most: int) -> np.ndarray:
    """int64 (block,): where each of the fewest equal blocks of `count` neighbours begins, so that there are at most `most`."""
    return np.arange(0, count, -(-count // most))
