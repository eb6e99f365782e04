"""Eigenvectors, singular values and ranks against NumPy's own decompositions."""

from __future__ import annotations

import numpy as np
import pytest

from stratascope.tasks.representation.symmetric_matrices import (
    Eigenpairs,
    full_rank_factor,
    left_singular,
    singular_values,
)


def falling(rows: int, columns: int, decay: float = 1.0) -> np.ndarray:
    return np.random.default_rng(rows).normal(size=(rows, columns)) * np.arange(1, columns + 1) ** -decay


@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 100])
def test_eigenpairs_make_the_matrix_again_and_equal_those_of_numpy(size: int):
    values = falling(3 * size, size)
    gram = values.T @ values
    found = Eigenpairs(gram)
    vectors = found.vectors(size)
    np.testing.assert_allclose(found.values, np.linalg.eigvalsh(gram)[::-1], atol=1e-12 * found.values[0])
    np.testing.assert_allclose(vectors * found.values @ vectors.T, gram, atol=1e-12 * found.values[0])
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(size), atol=1e-12)
    np.testing.assert_allclose(found.vectors(size // 2), vectors[:, : size // 2], atol=1e-14)


@pytest.mark.parametrize("shape", [(40, 40), (50, 35), (35, 50), (4, 3), (1, 5)])
def test_singular_values_equal_those_of_numpy(shape: tuple[int, int]):
    matrix = falling(*shape)
    left, expected, _ = np.linalg.svd(matrix, full_matrices=False)
    np.testing.assert_allclose(singular_values(matrix), expected, atol=1e-12)
    vectors, values = left_singular(matrix)
    np.testing.assert_allclose(values, expected, atol=1e-12)
    np.testing.assert_allclose(np.abs((vectors * left).sum(0)), 1, atol=1e-9)


def test_a_factor_is_had_of_full_rank_only_whatever_the_scale_of_the_rows():
    values = falling(90, 40, 2.0)
    gram = values.T @ values
    found = full_rank_factor(gram, 1e-10)
    assert found is not None
    sizes, factor = found
    np.testing.assert_allclose(sizes[:, None] * (factor @ factor.T) * sizes, gram, rtol=1e-10, atol=1e-18)
    assert (np.triu(factor, 1) == 0).all()
    nearly = gram.copy()
    nearly[:, -1] = nearly[-1] = gram[0] * (1 + 1e-12)
    nearly[-1, -1] = gram[0, 0]
    for broken in (nearly, gram * np.append(np.ones(39), 0) * np.append(np.ones(39), 0)[:, None]):
        assert full_rank_factor(broken, 1e-10) is None
    assert full_rank_factor(np.diag([1.0, 1e-12]), 1e-10) is None
    assert full_rank_factor(np.diag([1.0, 1e-6]), 1e-10) is not None
