"""How sure a similarity is: bootstrap over the samples, and what shuffled samples would give."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.tasks.representation.gram_products import Kernel
from stratascope.tasks.representation.resampling import (
    bootstrap_counts,
    percentile_interval,
    permutations,
    subsample_interval,
    subsamples,
)
from stratascope.tasks.representation.similarity_sides import Side

Interval = tuple[float, float]
Compare = Callable[[Side, Side], float]

SHARES = 0.5, 0.75
"""Of the samples, in each round without replacement: the first that a measure can be had of."""


@lru_cache(maxsize=4)
def drawn(samples: int, rounds: int, seed: int) -> np.ndarray:
    """`bootstrap_counts`, remembered: all pairs of an analysis are drawn alike."""
    return bootstrap_counts(samples, rounds, seed)


class WeightedKernel:
    """A kernel matrix and what each bootstrap round makes of it alone."""

    def __init__(self, kernel: Kernel, weights: np.ndarray, debiased: bool) -> None:
        """`weights` are int64 (round, sample), as from `bootstrap_counts`."""
        self.debiased = debiased
        self.weights = weights.T.astype(np.float32)
        self.matrix = kernel.whole()
        if not debiased:
            np.fill_diagonal(self.matrix, kernel.diagonal.astype(np.float32))
        self.weighted = (self.matrix @ self.weights).astype(np.float64)
        """float64 (sample, round): the rows' weighted sums."""
        self.own = self.hsic(self)

    def hsic(self, other: WeightedKernel) -> np.ndarray:
        """float64 (round,): the independence criterion of the resampled samples with that of `other`.

        The debiased one is a U-statistic over different samples (Song et al. 2012): a sample that was drawn twice
        is no pair with itself, which would bring the bias back.
        """
        weights = self.weights
        product = self.matrix * other.matrix
        if not self.debiased:
            n = len(weights)
            share = weights.astype(np.float64) / n
            pairs = (weights * (product @ weights)).sum(0, dtype=np.float64) / n**2
            first, second = self.weighted / n, other.weighted / n
            triples = (share * first * second).sum(0)
            wholes = (share * first).sum(0) * (share * second).sum(0)
            found: np.ndarray = pairs - 2 * triples + wholes
            return found
        once = weights.astype(np.float64)
        with_weights, with_squares = np.split(product @ np.concatenate([weights, weights**2], axis=1), 2, axis=1)
        pairs = (once * with_weights).sum(0)
        triples = self.weighted * other.weighted - with_squares
        total = (once * self.weighted).sum(0) * (once * other.weighted).sum(0)
        fours = total - 4 * (once**2 * triples).sum(0) - 2 * (once**2 * with_squares).sum(0)
        p1, p2, p3, p4 = ((once**power).sum(0) for power in (1, 2, 3, 4))
        two, three = p1**2 - p2, p1**3 - 3 * p1 * p2 + 2 * p3
        four = p1**4 - 6 * p1**2 * p2 + 3 * p2**2 + 8 * p1 * p3 - 6 * p4
        # Of very few samples a round can hold too few that differ.
        with np.errstate(divide="ignore", invalid="ignore"):
            statistic: np.ndarray = pairs / two - 2 * (once * triples).sum(0) / three + fours / four
        return np.where(four > 0, statistic, np.nan)

    def cka(self, other: WeightedKernel) -> np.ndarray:
        """float64 (round,): NaN where one side's own criterion is not above 0."""
        both = (self.own > 0) & (other.own > 0)
        found: np.ndarray = self.hsic(other) / np.sqrt(np.where(both, self.own * other.own, np.nan))
        return found


def cka_interval(kernels: tuple[Kernel, Kernel], debiased: bool, rounds: int, seed: int) -> Interval:
    """The 95 % bootstrap interval of CKA."""
    if rounds < 2:
        return float("nan"), float("nan")
    weights = drawn(kernels[0].n, rounds, seed)
    first, second = (WeightedKernel(kernel, weights, debiased) for kernel in kernels)
    return percentile_interval(first.cka(second))


def procrustes_rounds(first: Side, second: Side, weights: np.ndarray) -> np.ndarray:
    """float64 (round,): the cosine |X'Y|_* / (|X| |Y|) of resampled samples, for int64 `weights` (round, sample).

    The nuclear norm is taken to first order in the weights (its derivative is the product of the singular vectors:
    Watson 1992), the norms and means exactly. What is neglected makes the cosine smaller, never larger.
    """
    x, y = _aligned(first.scores.astype(np.float32), second.scores.astype(np.float32))
    n, once = first.n, weights.astype(np.float64)
    nuclear = once @ (x * y).sum(1) - ((once @ x) * (once @ y)).sum(1) / n
    sizes = [once @ (side.scores**2).sum(1) - ((once @ side.scores) ** 2).sum(1) / n for side in (first, second)]
    # Of very few samples a round can hold one sample only, which is no shape.
    whole = np.sqrt(np.maximum(sizes[0], 0) * np.maximum(sizes[1], 0))
    found: np.ndarray = np.divide(nuclear, whole, out=np.full(len(whole), np.nan), where=whole > 1e-12 * first.size * second.size)  # fmt: skip
    return np.clip(found, 0.0, 1.0)


def _aligned(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sides (sample, component), as float64, along the singular vectors of first' second; directions of rounding are left out."""
    from scipy.linalg import eigh

    if first.shape[1] < second.shape[1]:
        y, x = _aligned(second, first)
        return x, y
    cross = (first.T @ second).astype(np.float64)
    squares, right = eigh(cross.T @ cross)
    kept = squares > 1e-12 * squares[-1]
    right = right[:, kept]
    left = cross @ right / np.sqrt(squares[kept])
    x, y = first @ left.astype(first.dtype), second @ right.astype(second.dtype)
    return x.astype(np.float64), y.astype(np.float64)


def permuted_procrustes(first: Side, second: Side, rounds: int, seed: int) -> np.ndarray:
    """Procrustes distances (round,) with the samples of the second side shuffled.

    From the squares of the singular values, to about 1e-5: shuffled samples are never near, where that would count.
    """
    from scipy.linalg import eigvalsh

    small, large = sorted((first, second), key=lambda side: side.scores.shape[1])
    x, y = (side.scores.astype(np.float32) for side in (small, large))
    cosines = []
    for order in permutations(first.n, rounds, seed):
        # Which of the two is shuffled makes no difference, but the inverse order shuffles the other one alike.
        order = np.argsort(order) if large is first else order
        cross = (x.T @ y[order]).astype(np.float64)
        squares = eigvalsh(cross @ cross.T)
        cosines.append(np.sqrt(np.maximum(squares, 0)).sum() / (first.size * second.size))
    return np.sqrt(np.maximum(0.0, 2.0 - 2.0 * np.asarray(cosines)))


def subsampled(compare: Compare, first: Side, second: Side, value: float, rounds: int, seed: int) -> Interval:
    """The interval of any measure from its values on halves of the samples, each half decomposed anew.

    Where a half is refused, as one is that has no more samples than both sides have components, from three quarters:
    the rule by which their spread is brought to the size of the whole holds for any share (Shao and Wu 1989).
    """

    def on(rows: np.ndarray) -> float:
        try:
            return compare(first.subset(rows), second.subset(rows))
        except DoesNotApply:
            return float("nan")

    for share in SHARES:
        drawings = subsamples(first.n, rounds, seed, share)
        values = [on(next(drawings))] if rounds else []
        if np.isfinite(values).all() or share == SHARES[-1]:
            break
    return subsample_interval(value, np.asarray([*values, *map(on, drawings)]), share)


def reordered(side: Side, order: np.ndarray) -> Side:
    """The same features with the samples in another order: what breaks its tie to the other side."""
    from dataclasses import replace

    found = side.found
    place = np.empty(side.n, np.int64)
    place[order] = np.arange(side.n)
    moved = replace(
        found,
        scores=found.scores[order],
        squared_norm=found.squared_norm[order],
        neighbour=place[found.neighbour[order]].astype(np.int32),
    )
    values = side._values
    return Side(moved, None if values is None else lambda: values()[order])


def permuted(compare: Compare, first: Side, second: Side, rounds: int, seed: int) -> np.ndarray:
    """float64 (round,): the measure's values with the samples of the second side shuffled."""
    return np.asarray(
        [compare(first, reordered(second, order)) for order in permutations(first.n, rounds, seed)], np.float64
    )


def permuted_cka(
    sides: tuple[Side, Side], kernels: tuple[Kernel, Kernel], debiased: bool, rounds: int, seed: int
) -> np.ndarray:
    """The same of CKA, for which neither the sides' own parts nor their components have to be found again."""
    shuffled = _Shuffled(sides, kernels, debiased)
    straight = np.arange(sides[0].n)
    roots = np.sqrt(shuffled.hsic(0, 0, straight) * shuffled.hsic(1, 1, straight))
    found = [shuffled.hsic(0, 1, order) for order in permutations(sides[0].n, rounds, seed)]
    return np.asarray(found) / roots


class _Shuffled:
    """The independence criterion of two kernels, the second one's samples in any order."""

    def __init__(self, sides: tuple[Side, Side], kernels: tuple[Kernel, Kernel], debiased: bool) -> None:
        self.debiased = debiased
        self.n = sides[0].n
        self.diagonals = [kernel.diagonal for kernel in kernels]
        self.sums = [kernel.row_sums for kernel in kernels]
        self.linear = kernels[0].kind == "linear"
        self.matrices = [kernel.scores if self.linear else kernel.whole() for kernel in kernels]

    def hsic(self, first: int, second: int, order: np.ndarray) -> float:
        n = self.n
        one, other = self.matrices[first], self.matrices[second]
        diagonal = float(self.diagonals[first] @ self.diagonals[second][order])
        if self.linear:
            inside = (one**2).sum(1, dtype=np.float64) @ (other**2).sum(1, dtype=np.float64)[order]
            off = float(np.square(one.T @ other[order]).sum(dtype=np.float64) - inside)
        else:
            off = float(np.einsum("ij,ij->", one, other[np.ix_(order, order)], dtype=np.float64))
        rows = self.sums[first], self.sums[second][order]
        if self.debiased:
            both = rows[0].sum() * rows[1].sum() / ((n - 1) * (n - 2))
            return float(off + both - 2.0 / (n - 2) * (rows[0] @ rows[1])) / (n * (n - 3))
        rows = rows[0] + self.diagonals[first], rows[1] + self.diagonals[second][order]
        centred = rows[0].sum() * rows[1].sum() / n**2 - 2.0 / n * (rows[0] @ rows[1])
        return float(off + diagonal + centred) / (n - 1) ** 2
