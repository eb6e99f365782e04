"""Principal components by four solvers; one of them takes samples block by block and joins what workers found apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from stratascope.tasks.representation.maps import principal_components

Solver = Literal["exact", "randomized", "incremental", "gram"]

BLOCK = 8192
"""Samples of one block where a whole array is given: with 512 features 32 MB in float64."""


@dataclass
class CentredGram:
    """Count, mean and centred Gram matrix of samples seen so far; two of them can be merged.

    The mean is known before a block is multiplied, so no large squares are subtracted from each other: what a mean far
    from zero costs a sum of raw squares (about the square of mean over spread in relative error) is not lost here.
    Chan, Golub and LeVeque 1983, equations 2.1.
    """

    features: int
    count: int = 0
    mean: np.ndarray = field(init=False)
    """float64 (feature,)."""
    gram: np.ndarray = field(init=False)
    """float64 (feature, other_feature): the sum of outer products of what is left after the mean is taken away."""

    def __post_init__(self) -> None:
        self.mean = np.zeros(self.features)
        self.gram = np.zeros((self.features, self.features))

    def add(self, block: np.ndarray) -> None:
        """Take in `block` (sample, feature), of any real dtype."""
        if not len(block):
            return
        values = block.astype(np.float64)
        mean = values.mean(0)
        values -= mean
        self._join(len(block), mean, values.T @ values)

    def merge(self, other: CentredGram) -> None:
        """Take in what `other` has seen. Raises ValueError where it has other features."""
        if other.features != self.features:
            raise ValueError(f"{other.features} features cannot join {self.features}.")
        if other.count:
            self._join(other.count, other.mean, other.gram)

    def _join(self, count: int, mean: np.ndarray, gram: np.ndarray) -> None:
        total = self.count + count
        apart = mean - self.mean
        self.gram += gram
        self.gram += np.outer(apart, apart * (self.count * count / total))
        self.mean = self.mean + apart * (count / total)
        self.count = total

    def components(self, count: int) -> PrincipalAxes:
        """The leading `count` axes. Raises ValueError where fewer than two samples were seen."""
        from scipy.linalg import eigh

        if self.count < 2:
            raise ValueError(f"principal components need two samples, there are {self.count}.")
        wanted = min(count, self.features)
        last = self.features - 1
        sizes, vectors = eigh(self.gram, subset_by_index=(last - wanted + 1, last))
        sizes, vectors = np.clip(sizes[::-1], 0, None), vectors[:, ::-1]
        signs = np.sign(vectors[np.abs(vectors).argmax(0), range(wanted)])
        trace = float(np.trace(self.gram))
        shares = sizes / trace if trace > 0 else np.zeros(wanted)
        return PrincipalAxes(self.mean.copy(), vectors * signs, sizes / (self.count - 1), shares)


@dataclass(frozen=True)
class PrincipalAxes:
    """Directions of largest variance; the entry of largest size of each axis is positive."""

    mean: np.ndarray
    """(feature,)."""
    axes: np.ndarray
    """(feature, component), orthonormal columns."""
    variance: np.ndarray
    """(component,), with count - 1 in the denominator."""
    shares: np.ndarray
    """(component,): the share of the whole variance."""

    def scores(self, values: np.ndarray) -> np.ndarray:
        """float64 (sample, component) of `values` (sample, feature)."""
        return (values.astype(np.float64) - self.mean) @ self.axes


def components_of_blocks(blocks: Iterable[np.ndarray], count: int) -> PrincipalAxes:
    """The leading `count` principal axes of all samples in `blocks` (sample, feature), each of which is seen once.

    Memory: one block in float64, the Gram matrix and one product of its size, whatever the number of samples.
    Equal to the decomposition of all samples at once up to rounding: 1e-9 of the largest variance. Raises ValueError
    where there is no block, or where they differ in features.
    """
    gram: CentredGram | None = None
    for block in blocks:
        if gram is None:
            gram = CentredGram(block.shape[1])
        if block.shape[1] != gram.features:
            raise ValueError(f"a block has {block.shape[1]} features, those before had {gram.features}.")
        gram.add(block)
    if gram is None:
        raise ValueError("there is no block of samples.")
    return gram.components(count)


def principal_scores(
    values: np.ndarray, count: int, solver: Solver = "exact", seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (sample, count) and shares of the variance (count,) of `values` (sample, feature), by `solver`.

    `exact` decomposes the smaller Gram matrix; `gram` accumulates the features' one block by block and equals it to
    1e-6 of the first score's spread where components are apart; `randomized` (Halko, Martinsson and Tropp 2011) and
    `incremental` (Ross et al. 2008) are scikit-learn's and approximate. Where the data has fewer dimensions, zeros
    follow. Each component's sign is such that its score of largest size is positive.
    """
    if solver == "exact":
        return principal_components(values, count)
    wanted = min(count, *values.shape)
    if solver == "gram":
        axes = components_of_blocks(_blocks(values), wanted)
        scores, shares = axes.scores(values), axes.shares
    elif solver == "randomized":
        from sklearn.decomposition import PCA

        model = PCA(wanted, svd_solver="randomized", random_state=seed)
        scores = model.fit_transform(values.astype(np.float64))
        shares = model.explained_variance_ratio_
    else:
        from sklearn.decomposition import IncrementalPCA

        # The last block may be short, and each must hold as many samples as there are components.
        size = max(wanted, min(len(values), 1024))
        model = IncrementalPCA(wanted)
        edges = list(range(0, len(values) - size + 1, size))
        for place, start in enumerate(edges):
            end = len(values) if place == len(edges) - 1 else start + size
            model.partial_fit(values[start:end].astype(np.float64))
        scores, shares = model.transform(values.astype(np.float64)), model.explained_variance_ratio_
    signs = np.sign(scores[np.abs(scores).argmax(0), range(wanted)])
    scores = np.pad(scores * np.where(signs == 0, 1, signs), ((0, 0), (0, count - wanted)))
    return scores, np.pad(shares, (0, count - wanted))


def _blocks(values: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(values), BLOCK):
        yield values[start : start + BLOCK]
