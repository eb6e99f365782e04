"""How far apart classes lie: silhouettes, ratios of spread, votes of neighbours. Plain functions on arrays."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stratascope.tasks.representation.distances import Neighbours

NEGLIGIBLE = 1e-13
"""A squared distance below this share of the squared norms is rounding: features are float32."""


@dataclass(frozen=True)
class Grouping:
    """Which samples belong to which class."""

    values: np.ndarray
    """int64 (class,): the classes that occur, ascending."""
    index: np.ndarray
    """int64 (sample,): each sample's place among them."""

    @classmethod
    def of(cls, classes: np.ndarray) -> Grouping:
        values, index = np.unique(classes, return_inverse=True)
        return cls(values, index.astype(np.int64))

    @cached_property
    def sizes(self) -> np.ndarray:
        """int64 (class,)"""
        return np.bincount(self.index, minlength=len(self.values))

    def membership(self, weights: np.ndarray | None = None, index: np.ndarray | None = None) -> Any:
        """Sparse (class, sample): each sample's weight in its class's row; products with it are sums by class."""
        from scipy.sparse import csr_array

        places = self.index if index is None else index
        count = len(places)
        given = np.ones(count) if weights is None else np.asarray(weights, np.float64)
        return csr_array((given, (places, np.arange(count))), shape=(len(self.values), count))


def with_company(classes: np.ndarray) -> np.ndarray:
    """bool (sample,): which samples have another of their class."""
    _, places, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    found: np.ndarray = sizes[places] >= 2
    return found


def silhouettes(
    distances: np.ndarray, grouping: Grouping, rows: np.ndarray | None = None, index: np.ndarray | None = None
) -> np.ndarray:
    """The silhouette (sample,) of each sample. Rousseeuw 1987.

    (b - a) / max(a, b) with a the mean distance to the others of the own class and b the least mean distance to
    another class, from `distances` (sample, sample). With `rows` the samples are these only, the others are no part of
    any mean; `index` (sample,) stands in for the classes (labels permuted). NaN for a sample that is alone in its
    class, 0 where a and b are both 0.
    """
    places = grouping.index if index is None else index
    weights = np.ones(len(places))
    if rows is not None:
        weights = np.zeros(len(places))
        weights[rows] = 1.0
    chosen = np.arange(len(places)) if rows is None else rows
    sums = (grouping.membership(weights, places) @ distances)[:, chosen]
    sizes = np.bincount(places, weights, minlength=len(grouping.values))
    own = places[chosen]
    here = np.arange(len(chosen))
    with np.errstate(divide="ignore", invalid="ignore"):
        within = sums[own, here] / (sizes[own] - 1)
        means = sums / sizes[:, None]
        means[sizes == 0] = np.inf
        means[own, here] = np.inf
        nearest = means.min(0)
        found = (nearest - within) / np.maximum(within, nearest)
    found[(within == 0) & (nearest == 0)] = 0.0
    return np.where(sizes[own] < 2, np.nan, found)


@dataclass(frozen=True)
class ClassMoments:
    """Weights, means and distances from the means: what every measure of class means and spreads is computed from."""

    weight: np.ndarray
    """float64 (sample,)"""
    index: np.ndarray
    """int64 (sample,): the place of each sample's class."""
    total: np.ndarray
    """float64 (class,): the sum of the weights."""
    means: np.ndarray
    """float64 (class, feature)"""
    overlap: np.ndarray
    """float64 (sample, class): inner products of samples and class means."""
    squared_distance: np.ndarray
    """float64 (sample, class): from each sample to each class mean."""

    @classmethod
    def of(
        cls,
        centred: np.ndarray,
        squared: np.ndarray,
        grouping: Grouping,
        weight: np.ndarray | None = None,
        index: np.ndarray | None = None,
    ) -> ClassMoments:
        """Of `centred` (sample, feature) with squared norms `squared` (sample,); `weight` counts each sample so often.

        Every class must have weight. `index` (sample,) stands in for the classes.
        """
        counted = np.ones(len(centred)) if weight is None else np.asarray(weight, np.float64)
        places = grouping.index if index is None else index
        total = np.bincount(places, counted, minlength=len(grouping.values))
        means = (grouping.membership(counted, places) @ centred) / total[:, None]
        overlap = centred @ means.T
        sizes = squared[:, None] + np.einsum("ij,ij->i", means, means)[None]
        away = sizes - 2.0 * overlap
        away[away <= NEGLIGIBLE * sizes] = 0.0
        return cls(counted, places, total, means, overlap, away)

    @cached_property
    def own_squared_distance(self) -> np.ndarray:
        """float64 (sample,): from each sample to the mean of its class."""
        return self.squared_distance[np.arange(len(self.index)), self.index]

    def mean_by_class(self, values: np.ndarray) -> np.ndarray:
        """Weighted means (class,) of `values` (sample,)."""
        return np.bincount(self.index, self.weight * values, minlength=len(self.total)) / self.total


def fisher_ratio(moments: ClassMoments) -> float:
    """tr(S_B) / tr(S_W): squared distances of class means from the mean of all, by squared distances within classes.

    Both summed over samples, without correction for degrees of freedom: Fisher 1936 in the trace form (Fukunaga 1990,
    section 10.2, J4). NaN where classes have no spread at all.
    """
    share = moments.total / moments.total.sum()
    between = share @ ((moments.means - share @ moments.means) ** 2).sum(1)
    within = share @ moments.mean_by_class(moments.own_squared_distance)
    return float(between / within) if within > 0 else float("nan")


def davies_bouldin(moments: ClassMoments) -> float:
    """Mean over classes of the worst (s_i + s_j) / d_ij. Davies and Bouldin 1979, with p = 2 and q = 1.

    s is the mean Euclidean distance of a class's samples from their mean, d the distance of two means. NaN where two
    means coincide.
    """
    spread = moments.mean_by_class(np.sqrt(moments.own_squared_distance))
    apart = mean_distances(moments.means)
    np.fill_diagonal(apart, np.inf)
    if apart.min() == 0:
        return float("nan")
    return float(((spread[:, None] + spread[None]) / apart).max(1).mean())


def mean_distances(means: np.ndarray) -> np.ndarray:
    """Euclidean distances (class, class) of class `means` (class, feature)."""
    from scipy.spatial.distance import cdist

    found: np.ndarray = cdist(means, means)
    return found


def votes(neighbours: Neighbours, index: np.ndarray, classes: int) -> np.ndarray:
    """The place (sample,) of the class that most of each sample's neighbours have; the smaller one in a tie.

    `index` (sample of the whole,) are the places of the classes.
    """
    found = index[neighbours.order]
    counts = np.bincount(
        (np.arange(len(found))[:, None] * classes + found).ravel(), minlength=len(found) * classes
    )
    return counts.reshape(len(found), classes).argmax(1)


def confusion(true: np.ndarray, given: np.ndarray, classes: int) -> np.ndarray:
    """int64 (class, given class): how many samples of each class (their places `true`) were taken for which."""
    return np.bincount(true * classes + given, minlength=classes**2).reshape(classes, classes)
