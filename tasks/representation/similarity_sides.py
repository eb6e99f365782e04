"""One layer at one step, made ready for comparison: what costs time is found once and serves every pair."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Literal

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.tasks.representation.decomposition import Decomposition, decompose
from stratascope.tasks.representation.symmetric_matrices import Eigenpairs, full_rank_factor

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
        self._crossed: tuple[Side, np.ndarray] | None = None

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

    @property
    def dimension(self) -> int:
        """The same as `rank`, by whatever way is quicker."""
        return self.rank

    @cached_property
    def basis(self) -> np.ndarray:
        """float64 (sample, component): orthonormal columns, which span what the kept features span; largest first."""
        basis: np.ndarray = self.scores[:, : self.rank] / self._spread[: self.rank]
        return basis

    @cached_property
    def spread(self) -> np.ndarray:
        """float64 (component,): the norm of each column of the scores that `basis` normalises."""
        return self._spread[: self.rank]

    @cached_property
    def own_products(self) -> np.ndarray:
        """float64 (component, component): inner products of the components of the scores."""
        return self.scores.T @ self.scores

    def products(self, other: Side) -> np.ndarray:
        """The same with the components of another side's scores; those with the last other are remembered."""
        if other is self:
            return self.own_products
        if self._crossed is None or self._crossed[0] is not other:
            self._crossed = other, self.scores.T @ other.scores
        return self._crossed[1]

    def cosines(self, other: Side, kept: tuple[int, int] | None = None, turned: bool = False) -> np.ndarray:
        """float64 (component, component): inner products of both bases, of the `kept` first components where given.

        With `turned`, any orthonormal columns that span the same may stand for the other's basis, whatever is quicker.
        """
        mine, theirs = kept or (self.rank, other.rank)
        found: np.ndarray = self.basis[:, :mine].T @ other.basis[:, :theirs]
        return found

    def leading(self, share: float) -> int:
        """How many components it takes for `share` of the variance. Raises DoesNotApply where fewer are kept."""
        count = components_of(self.found.variance, share)
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
        return (_LongSubset if len(rows) > self.scores.shape[1] else _Subset)(self, rows)


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


class _LongSubset(_Subset):
    """More samples than components: what spans the samples follows from products of components, without their scores."""

    @cached_property
    def _left_out(self) -> np.ndarray | None:
        """The rows that are not in it, where those are fewer."""
        if 2 * len(self._rows) <= self._whole.n:
            return None
        return np.setdiff1d(np.arange(self._whole.n), self._rows, assume_unique=True)

    @cached_property
    def own_products(self) -> np.ndarray:
        return self._products_within(self)

    def products(self, other: Side) -> np.ndarray:
        if other is self or not isinstance(other, _LongSubset):
            return super().products(other)
        return self._products_within(other)

    def _products_within(self, other: _LongSubset) -> np.ndarray:
        """From those of all samples less those of the samples left out, where these are fewer."""
        left_out = self._left_out
        rows = self._rows if left_out is None else left_out
        mine, theirs = self._whole.scores[rows], other._whole.scores[rows]
        # A matrix times its own transpose, and no copy of it, is found in half the time.
        found = mine.T @ (mine if other is self else theirs)
        if left_out is not None:
            # The scores of all samples sum to 0: those of the rest have the same sum with the other sign.
            found = self._whole.products(other._whole) - found
        found -= np.outer(mine.sum(0), theirs.sum(0)) / self.n
        return found

    @cached_property
    def _factor(self) -> tuple[np.ndarray, np.ndarray] | None:
        return full_rank_factor(self.own_products, _LEAST_VARIANCE)

    @cached_property
    def _axes(self) -> Eigenpairs:
        """Principal components: squared norms, and directions (component of the whole, component)."""
        return Eigenpairs(self.own_products)

    @cached_property
    def _spread(self) -> np.ndarray:
        found: np.ndarray = np.sqrt(np.maximum(self._axes.values, 0.0))
        return found

    @property
    def dimension(self) -> int:
        return self.rank if self._factor is None else len(self.own_products)

    def leading(self, share: float) -> int:
        return min(components_of(self._spread**2, share), self.rank)

    def cosines(self, other: Side, kept: tuple[int, int] | None = None, turned: bool = False) -> np.ndarray:
        from scipy.linalg import solve_triangular

        if not isinstance(other, _LongSubset):
            return super().cosines(other, kept, turned)
        mine = kept[0] if kept else self.rank
        half = self._axes.vectors(mine).T @ self.products(other) / self._spread[:mine, None]
        if turned and kept is None and other._factor is not None:
            sizes, factor = other._factor
            found: np.ndarray = solve_triangular(factor, (half / sizes).T, lower=True, check_finite=False).T
            return found
        theirs = kept[1] if kept else other.rank
        return half @ (other._axes.vectors(theirs) / other._spread[:theirs])


def components_of(variance: np.ndarray, share: float) -> int:
    """How many components, of falling `variance` (component,), it takes for `share` of the whole."""
    shares = np.cumsum(variance) / variance.sum()
    return int(np.searchsorted(shares, share * (1 - 1e-12))) + 1


def mean_ranks(ascending: np.ndarray) -> np.ndarray:
    """float64 (value,): ranks from 1 of values that ascend already, equal ones by their mean rank."""
    starts = np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1]))
    ends = np.append(starts[1:], len(ascending))
    return np.repeat((starts + ends + 1) / 2, ends - starts)
