"""Inner products of many kernel matrices at once: what a matrix of CKA values between all layers is made of.

A Gram matrix costs n² r, and the product of two of them n², while the same number from features costs n r² for every
pair. So the Gram matrices of all items are made piece by piece, and each piece of all items is multiplied with itself.
The multiplications have one fixed shape, filled up with zeros: a pair's number depends on the pair alone, to the bit,
and not on what else is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.tasks.representation.similarity_sides import Side

_BLOCK = 32
"""Items on each side of one multiplication."""
_ROWS, _COLUMNS = 64, 256
"""A piece of each Gram matrix."""
_LENGTH = 4096
"""So many products are added in float32, the sums of those in float64."""


class Kernel:
    """A kernel matrix of one side, made piece by piece; scaled so that its numbers are about 1."""

    def __init__(self, side: Side, kind: Literal["linear", "rbf"]) -> None:
        self.n = side.n
        self.kind = kind
        self._scale = self.n / side.gram_norm
        self._scores = side.found.scores
        squared = side.squared if kind == "rbf" else side.found.squared_norm
        self._squared = (squared * self._scale).astype(np.float32)
        self._width = 1.0
        if kind == "rbf":
            self._width = float(np.median(side.distances)) ** 2 * self._scale
            if self._width == 0:
                raise DoesNotApply("more than half of the pairs of samples look alike: the kernel has no width")

    def piece(self, rows: slice, columns: slice) -> np.ndarray:
        """float32 (row, column) of the kernel matrix."""
        products: np.ndarray = (self._scores[rows] * np.float32(self._scale)) @ self._scores[columns].T
        if self.kind == "linear":
            return products
        products *= 2
        products -= self._squared[rows, None]
        products -= self._squared[None, columns]
        np.minimum(products, 0, out=products)
        products *= np.float32(0.5 / self._width)
        return np.exp(products, out=products)

    def whole(self) -> np.ndarray:
        """float32 (sample, sample), with zeros on the diagonal."""
        matrix = self.piece(slice(0, self.n), slice(0, self.n))
        np.fill_diagonal(matrix, 0)
        return matrix

    @property
    def scores(self) -> np.ndarray:
        """float32 (sample, component), so scaled that the linear kernel is its product with itself."""
        return self._scores * np.float32(np.sqrt(self._scale))

    @cached_property
    def diagonal(self) -> np.ndarray:
        """float64 (sample,)."""
        return self._squared.astype(np.float64) if self.kind == "linear" else np.ones(self.n)

    @cached_property
    def row_sums(self) -> np.ndarray:
        """float64 (sample,): each row's sum without the diagonal; of centred features it is the diagonal's opposite."""
        if self.kind == "linear":
            return -self.diagonal
        sums = np.zeros(self.n)
        for row in range(0, self.n, _ROWS):
            rows = slice(row, row + _ROWS)
            sums[rows] = self.piece(rows, slice(0, self.n)).sum(1, dtype=np.float64)
        return sums - 1.0


def off_diagonal_products(kernels: Sequence[Kernel], wanted: np.ndarray | None = None) -> np.ndarray:
    """float64 (item, item): the sum of K_ij L_ij over all i ≠ j, for every pair of kernel matrices.

    Pairs outside of `wanted` (item, item) may be NaN. Memory beyond the kernels' scores: 128 KiB an item.
    """
    count, n = len(kernels), kernels[0].n
    blocks = -(-count // _BLOCK)
    pairs = _wanted_blocks(count, blocks, wanted)
    totals = np.zeros((blocks, blocks, _BLOCK, _BLOCK))
    for row in range(0, n, _ROWS):
        rows = slice(row, min(row + _ROWS, n))
        spans = [rows, *(slice(start, min(start + _COLUMNS, n)) for start in range(row + _ROWS, n, _COLUMNS))]
        for columns in spans:
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            pieces = np.zeros((blocks * _BLOCK, *shape), np.float32)
            for number, kernel in enumerate(kernels):
                pieces[number] = kernel.piece(rows, columns)
            if columns is rows:
                pieces[:, range(shape[0]), range(shape[0])] = 0
            _add_products(pieces.reshape(blocks, _BLOCK, -1), pairs, totals, 1.0 if columns is rows else 2.0)
    for first, second in pairs:
        totals[second, first] = totals[first, second].T
    known = np.full((blocks, blocks), np.nan)
    for first, second in pairs:
        known[first, second] = known[second, first] = 0.0
    totals += known[:, :, None, None]
    found: np.ndarray = totals.transpose(0, 2, 1, 3).reshape(blocks * _BLOCK, -1)[:count, :count]
    return found


def _wanted_blocks(count: int, blocks: int, wanted: np.ndarray | None) -> list[tuple[int, int]]:
    every = [(first, second) for first in range(blocks) for second in range(first, blocks)]
    if wanted is None:
        return every
    padded = np.zeros((blocks * _BLOCK, blocks * _BLOCK), bool)
    padded[:count, :count] = wanted | wanted.T | np.eye(count, dtype=bool)
    any_of: np.ndarray = padded.reshape(blocks, _BLOCK, blocks, _BLOCK).max(axis=(1, 3))
    return [place for place in every if any_of[place]]


def _add_products(pieces: np.ndarray, pairs: Sequence[tuple[int, int]], totals: np.ndarray, weight: float) -> None:
    for start in range(0, pieces.shape[2], _LENGTH):
        here = pieces[:, :, start : start + _LENGTH]
        # A copy: numpy multiplies a matrix with its own transpose by another routine, with other rounding.
        turned = np.ascontiguousarray(here.transpose(0, 2, 1))
        for first, second in pairs:
            totals[first, second] += weight * (here[first] @ turned[second]).astype(np.float64)


def paired_products(rows: np.ndarray) -> np.ndarray:
    """float64 (item, item): the scalar products of all `rows` (item, number), each the same whatever the others are."""
    count = len(rows)
    blocks = -(-count // _BLOCK)
    padded = np.zeros((blocks * _BLOCK, rows.shape[1]))
    padded[:count] = rows
    turned = np.ascontiguousarray(padded.T)
    found = np.empty((blocks * _BLOCK, blocks * _BLOCK))
    for first in range(0, len(padded), _BLOCK):
        for second in range(first, len(padded), _BLOCK):
            block = padded[first : first + _BLOCK] @ np.ascontiguousarray(turned[:, second : second + _BLOCK])
            found[first : first + _BLOCK, second : second + _BLOCK] = block
            found[second : second + _BLOCK, first : first + _BLOCK] = block.T
    return found[:count, :count]


def hsic_matrix(kernels: Sequence[Kernel], debiased: bool, wanted: np.ndarray | None = None) -> np.ndarray:
    """float64 (item, item): the Hilbert–Schmidt independence criterion of all pairs.

    Debiased after Song et al. 2012, which leaves the diagonal out and needs four samples; else after Gretton et
    al. 2005, eq. 9.
    """
    n = kernels[0].n
    if debiased and n < 4:
        raise DoesNotApply(f"debiased CKA needs at least 4 samples, there are {n}")
    off = off_diagonal_products(kernels, wanted)
    sums = np.stack([kernel.row_sums for kernel in kernels])
    if debiased:
        totals = sums.sum(1)
        both = totals[:, None] * totals[None, :] / ((n - 1) * (n - 2))
        return (off + both - 2.0 / (n - 2) * paired_products(sums)) / (n * (n - 3))
    diagonals = np.stack([kernel.diagonal for kernel in kernels])
    whole = off + paired_products(diagonals)
    if kernels[0].kind == "rbf":
        sums = sums + diagonals
        totals = sums.sum(1)
        whole = whole - 2.0 / n * paired_products(sums) + totals[:, None] * totals[None, :] / n**2
    return whole / (n - 1) ** 2


def cka_matrix(kernels: Sequence[Kernel], debiased: bool = True, wanted: np.ndarray | None = None) -> np.ndarray:
    """float64 (item, item): centred kernel alignment of all pairs. Kornblith et al. 2019, eq. 4.

    NaN in the lines of an item whose own debiased criterion is not above 0: then its samples are no more alike than
    noise would be.
    """
    hsic = hsic_matrix(kernels, debiased, wanted)
    own = np.diag(hsic).copy()
    own[own <= 0] = np.nan
    roots = np.sqrt(own)
    found: np.ndarray = hsic / (roots[:, None] * roots[None, :])
    np.fill_diagonal(found, np.where(np.isnan(own), np.nan, 1.0))
    return found


def cka_error_bound(first: Side, second: Side, debiased: bool = True) -> float:
    """How far linear CKA of two sides can be off, at most, because not all components are kept.

    With e, f the shares of the Gram matrices' norms that are lost, |<K, L> - <K', L'>| ≤ (e + f + e f) |K| |L|
    (Cauchy and Schwarz), and the debiased norms in the denominator are smaller than |K| |L|.
    """
    n = first.n
    if first.lost_gram == second.lost_gram == 0:
        return 0.0
    wide = [_amplification(side, debiased, n) for side in (first, second)]
    above = (first.lost_gram + second.lost_gram + first.lost_gram * second.lost_gram) * wide[0] * wide[1]
    below = 1.0
    for side, factor in zip((first, second), wide, strict=True):
        below *= max(0.0, 1.0 - (2 * side.lost_gram + side.lost_gram**2) * factor**2)
    return float((above + 1.0 - np.sqrt(below)) / np.sqrt(below)) if below > 0 else float("inf")


def _amplification(side: Side, debiased: bool, n: int) -> float:
    if not debiased:
        return 1.0
    squared = side.found.squared_norm
    own = side.gram_norm**2 - (squared**2).sum() * n / (n - 2) + squared.sum() ** 2 / ((n - 1) * (n - 2))
    return side.gram_norm / np.sqrt(own) if own > 0 else float("inf")
