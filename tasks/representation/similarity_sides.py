"""One layer at one step, made ready for comparison: what costs time is found once and serves every pair."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Literal

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.tasks.representation.decomposition import Decomposition, decompose

Dissimilarity = Literal["correlation", "euclidean"]

_LEAST_DISTANCE = 1e-6
"""Samples that are nearer to each other, as a share of their root mean square distance from the centre, are equal."""
_LEAST_VARIANCE = 1e-10
"""Directions with a smaller share of the largest variance are rounding errors, and span nothing."""


class Side:
    """What a measure of similarity is given of each of the two layers."""

    def __init__(
        self, found: Decomposition | Callable[[], Decomposition], values: Callable[[], np.ndarray] | None = None
    ) -> None:
        self._found = found
        self._values = values
        self._sorted: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}

    @classmethod
    def of(cls, values: np.ndarray, neighbours: int = 20, lost_gram: float = 0.0) -> Side:
        """Features (sample, feature), finite and not constant, with all their components."""
        return cls(decompose(values, lost_gram, neighbours), lambda: values)

    @cached_property
    def found(self) -> Decomposition:
        """What is kept of the layer."""
        return self._found() if callable(self._found) else self._found

    @property
    def n(self) -> int:
        """Samples."""
        return len(self.found.scores)

    @property
    def d(self) -> int:
        """Features."""
        return self.found.features

    @cached_property
    def scores(self) -> np.ndarray:
        """float64 (sample, component), centred."""
        scores = self.found.scores.astype(np.float64)
        centred: np.ndarray = scores - scores.mean(0)
        return centred

    @cached_property
    def size(self) -> float:
        """Frobenius norm of the kept scores."""
        return float(np.linalg.norm(self.scores))

    @cached_property
    def gram_norm(self) -> float:
        """Frobenius norm of the centred Gram matrix of all features."""
        return float(np.linalg.norm(self.found.variance)) * (self.n - 1)

    @cached_property
    def lost_gram(self) -> float:
        """What the components that were not kept have of that norm, between 0 and 1."""
        variance = self.found.variance
        return float(np.linalg.norm(variance[self.found.scores.shape[1] :]) / np.linalg.norm(variance))

    @cached_property
    def lost_variance(self) -> float:
        """What they have of the whole variance, between 0 and 1."""
        variance = self.found.variance
        return float(variance[self.found.scores.shape[1] :].sum() / variance.sum())

    @cached_property
    def _spread(self) -> np.ndarray:
        return np.sqrt((self.scores**2).sum(0))

    @cached_property
    def rank(self) -> int:
        """Kept components that are more than rounding."""
        spread = self._spread
        return int((spread**2 > _LEAST_VARIANCE * (spread**2).max()).sum())

    @cached_property
    def basis(self) -> np.ndarray:
        """float64 (sample, component): orthonormal columns, which span what the kept features span; largest first."""
        basis: np.ndarray = self.scores[:, : self.rank] / self._spread[: self.rank]
        return basis

    @cached_property
    def spread(self) -> np.ndarray:
        """float64 (component,): the norm of each column of the scores that `basis` normalises."""
        return self._spread[: self.rank]

    def leading(self, share: float) -> int:
        """How many components it takes for `share` of the variance. Raises DoesNotApply where fewer are kept."""
        shares = np.cumsum(self.found.variance) / self.found.variance.sum()
        count = int(np.searchsorted(shares, share * (1 - 1e-12))) + 1
        if count > self.found.scores.shape[1]:
            raise DoesNotApply(
                f"only {1 - self.lost_variance:.2%} of the variance is kept of a layer, and {share:.0%} are asked "
                "for: set a smaller `lost_gram` in the options of `decomposition`"
            )
        return min(count, self.rank)

    @cached_property
    def squared(self) -> np.ndarray:
        """float64 (sample,): squared norms of the scores, and what the components that were not kept add to them.

        Summed from the scores themselves, so that the distance of equal samples is 0.
        """
        own: np.ndarray = (self.scores**2).sum(1)
        return own if self.lost_gram == 0 else np.maximum(own, self.found.squared_norm)

    @cached_property
    def distances(self) -> np.ndarray:
        """float32 (pair,): Euclidean distances of all pairs of samples, row by row as in `scipy.spatial.distance`."""
        found = np.empty(self.n * (self.n - 1) // 2, np.float32)
        start, least = 0, _LEAST_DISTANCE**2 * self.squared.mean()
        for row in range(0, self.n, 64):
            products = self.scores[row : row + 64] @ self.scores[row:].T
            block = self.squared[row : row + 64, None] + self.squared[None, row:] - 2 * products
            for number, line in enumerate(np.sqrt(np.where(block > least, block, 0))):
                found[start : start + len(line) - number - 1] = line[number + 1 :]
                start += len(line) - number - 1
        return found

    @cached_property
    def correlation_distances(self) -> np.ndarray:
        """float32 (pair,): 1 less the correlation over the features of two samples' patterns. Raises DoesNotApply."""
        if self._values is None:
            raise DoesNotApply("a correlation of patterns needs the features themselves, and they are not at hand")
        patterns = self._values().astype(np.float64)
        patterns = patterns - patterns.mean(1, keepdims=True)
        sizes = np.linalg.norm(patterns, axis=1)
        flat = int((sizes == 0).sum())
        if flat:
            raise DoesNotApply(f"the patterns of {flat} samples are constant: they correlate with nothing")
        patterns /= sizes[:, None]
        above = np.triu_indices(self.n, 1)
        return (1.0 - patterns @ patterns.T)[above].astype(np.float32)

    def dissimilarities(self, kind: Dissimilarity) -> np.ndarray:
        """float32 (pair,): `correlation_distances` or `distances`."""
        return self.correlation_distances if kind == "correlation" else self.distances

    def ranks(self, kind: Dissimilarity) -> np.ndarray:
        """float64 (pair,): the ranks of those, equal ones by their mean rank."""
        from scipy.stats import rankdata

        found: np.ndarray = rankdata(self.dissimilarities(kind))
        return found

    def sorted_pairs(self, kind: Dissimilarity) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """int32 (pair,): the pairs by ascending dissimilarity, and the first and the second sample of each."""
        if kind not in self._sorted:
            order = np.argsort(self.dissimilarities(kind), kind="stable").astype(np.int32)
            first, second = (side.astype(np.int32) for side in np.triu_indices(self.n, 1))
            self._sorted[kind] = order, first[order], second[order]
        return self._sorted[kind]

    def subset(self, rows: np.ndarray) -> Side:
        """The same of some samples only, centred and decomposed anew where that is asked for."""
        return _Subset(self, rows)


class _Subset(Side):
    """Some samples of a side: their distances are among those of all; their neighbours are not looked for."""

    def __init__(self, whole: Side, rows: np.ndarray) -> None:
        values = whole._values
        super().__init__(
            lambda: decompose(whole.scores[rows], 0.0, 0),
            None if values is None else lambda: values()[rows],
        )
        self._whole, self._rows = whole, rows

    @property
    def n(self) -> int:
        return len(self._rows)

    @cached_property
    def distances(self) -> np.ndarray:
        return self._among(self._whole.distances)

    @cached_property
    def correlation_distances(self) -> np.ndarray:
        return self._among(self._whole.correlation_distances)

    def ranks(self, kind: Dissimilarity) -> np.ndarray:
        """As of any side; those that are sorted once among all need not be sorted again."""
        order, first, second = self._whole.sorted_pairs(kind)
        inside = np.zeros(self._whole.n, bool)
        inside[self._rows] = True
        kept = order[inside[first] & inside[second]]
        ranked = np.empty(len(order))
        ranked[kept] = mean_ranks(self._whole.dissimilarities(kind)[kept])
        return self._among(ranked)

    def _among(self, distances: np.ndarray) -> np.ndarray:
        first, second = np.triu_indices(len(self._rows), 1)
        low, high = self._rows[first], self._rows[second]
        found: np.ndarray = distances[low * (2 * self._whole.n - low - 1) // 2 + high - low - 1]
        return found


def mean_ranks(ascending: np.ndarray) -> np.ndarray:
    """float64 (value,): ranks from 1 of values that ascend already, equal ones by their mean rank."""
    starts = np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1]))
    ends = np.append(starts[1:], len(ascending))
    return np.repeat((starts + ends + 1) / 2, ends - starts)
