"""Eigenvectors and singular values of matrices of a few hundred rows, by the quickest way through LAPACK."""

from __future__ import annotations

import numpy as np

_SMALL = 32
"""Below so many rows the calls cost more than the arithmetic."""


class Eigenpairs:
    """Eigenvalues and eigenvectors of a symmetric float64 matrix, largest first.

    The three steps of LAPACK's `syevd`, called one by one: as a whole it takes a quarter longer at 512 rows, and turns
    back all vectors, also those that are not wanted.
    """

    def __init__(self, matrix: np.ndarray) -> None:
        from scipy.linalg import eigh, eigh_tridiagonal
        from scipy.linalg.lapack import dsytrd

        self._reflections: tuple[np.ndarray, np.ndarray] | None = None
        size = len(matrix)
        if size < _SMALL:
            values, vectors = eigh(matrix, check_finite=False)
        else:
            # Of a symmetric matrix the transpose is itself in the order of columns, which LAPACK wants.
            reflected, diagonal, beside, factors, failed = dsytrd(matrix.T, lower=1, lwork=64 * size)
            assert failed == 0
            self._reflections = np.asfortranarray(reflected[1:, :-1]), factors
            values, vectors = eigh_tridiagonal(diagonal, beside, check_finite=False)
        self.values: np.ndarray = values[::-1]
        """float64 (number,)."""
        self._inner: np.ndarray = vectors[:, ::-1]

    def vectors(self, count: int) -> np.ndarray:
        """float64 (row, number): those of the `count` largest eigenvalues."""
        from scipy.linalg.lapack import dormqr

        inner = self._inner[:, :count]
        if self._reflections is None:
            return inner
        found = np.empty(inner.shape, order="F")
        # The first row is no part of any reflection.
        found[0] = inner[0]
        rest = np.array(inner[1:], order="F")
        found[1:], _, failed = dormqr("L", "N", *self._reflections, rest, 64 * len(inner), overwrite_c=1)
        assert failed == 0
        return found


def singular_values(matrix: np.ndarray) -> np.ndarray:
    """float64 (number,), largest first, as the roots of the eigenvalues of the smaller Gram matrix.

    In less than half the time of a decomposition of the matrix itself. The absolute error of a singular value s, as a
    share of the largest, is about 1e-16 / s: values below 1e-8 are rounding.
    """
    from scipy.linalg import eigvalsh

    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    found: np.ndarray = np.sqrt(np.maximum(eigvalsh(gram, overwrite_a=True, check_finite=False)[::-1], 0.0))
    return found


def left_singular(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Left singular vectors (row, number) and `singular_values` (number,), as many as the smaller side of `matrix` has."""
    count = min(matrix.shape)
    found = Eigenpairs(matrix @ matrix.T)
    return found.vectors(count), np.sqrt(np.maximum(found.values[:count], 0.0))


def full_rank_factor(gram: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray] | None:
    """`sizes` (row,) and a lower triangular L (row, row) with `gram` = sizes L L' sizes, or None.

    None unless every eigenvalue is certainly above `least` times the largest: one is at least the smallest squared size
    times the smallest eigenvalue of L L', of which LAPACK's estimate of the condition number gives a bound.
    """
    from scipy.linalg.lapack import dpocon, dpotrf

    sizes = np.sqrt(gram.diagonal())
    if not sizes.min() > 0:
        return None
    scaled = gram / sizes[:, None] / sizes[None]
    factor, failed = dpotrf(scaled.T, lower=1, clean=1)
    if failed:
        return None
    norm = np.abs(scaled).sum(0).max()
    reciprocal, _ = dpocon(factor, norm, uplo="L")
    # The estimate of the condition number is seldom off by more than 3 (Higham 1992).
    certain = sizes.min() ** 2 * reciprocal > 10.0 * least * sizes.max() ** 2
    return (sizes, factor) if certain else None
