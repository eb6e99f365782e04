"""Matrices of kernel alignment: each number depends on its pair alone, and their error is bounded."""

from __future__ import annotations

import numpy as np
import pytest

from stratascope.tasks.representation.decomposition import decompose
from stratascope.tasks.representation.gram_products import (
    Kernel,
    cka_error_bound,
    cka_matrix,
    hsic_matrix,
    off_diagonal_products,
    paired_products,
)
from stratascope.tasks.representation.similarity_sides import Side


def sides(count: int, n: int = 150, decay: float = 1.0, lost_gram: float = 0.0) -> list[Side]:
    """Layers of different widths that share part of what they hold."""
    generator = np.random.default_rng(0)
    shared = generator.normal(size=(n, 12))
    found = []
    for number in range(count):
        width = 20 + 7 * (number % 5)
        values = shared @ generator.normal(size=(12, width)) + generator.normal(size=(n, width))
        found.append(Side.of(values * np.arange(1, width + 1) ** -decay, lost_gram=lost_gram))
    return found


@pytest.mark.parametrize("kind", ["linear", "rbf"])
def test_products_of_kernel_matrices_leave_the_diagonal_out(kind):
    kernels = [Kernel(side, kind) for side in sides(5, n=330)]
    found = off_diagonal_products(kernels)
    whole = np.stack([kernel.whole().astype(np.float64).ravel() for kernel in kernels])
    np.testing.assert_allclose(found, whole @ whole.T, rtol=2e-6, atol=1e-3)
    for kernel in kernels:
        np.testing.assert_allclose(kernel.row_sums, kernel.whole().sum(1, dtype=np.float64), atol=2e-4)


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize("kind", ["linear", "rbf"])
def test_a_pair_has_the_same_number_to_the_bit_whatever_else_is_compared(kind, debiased):
    every = sides(40)
    kernels = [Kernel(side, kind) for side in every]
    together = cka_matrix(kernels, debiased)
    np.testing.assert_array_equal(together, together.T)
    assert (np.diag(together) == 1).all()
    order = np.random.default_rng(1).permutation(40)
    np.testing.assert_array_equal(
        cka_matrix([kernels[place] for place in order], debiased), together[np.ix_(order, order)]
    )
    for one, other in ((0, 1), (3, 38), (33, 37), (39, 5)):
        assert cka_matrix([kernels[one], kernels[other]], debiased)[0, 1] == together[one, other]


def test_only_what_is_wanted_is_computed_and_the_rest_is_unknown():
    kernels = [Kernel(side, "linear") for side in sides(70, n=40)]
    wanted = np.zeros((70, 70), bool)
    wanted[69, :] = True
    found, whole = hsic_matrix(kernels, True, wanted), hsic_matrix(kernels, True)
    np.testing.assert_array_equal(found[69], whole[69])
    np.testing.assert_array_equal(found[:, 69], whole[69])
    assert np.isnan(found[0, 40])
    assert np.isfinite(np.diag(found)).all()


def test_paired_products_equal_plain_ones():
    rows = np.random.default_rng(0).normal(size=(45, 33))
    np.testing.assert_allclose(paired_products(rows), rows @ rows.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize(("decay", "lost_gram"), [(1.5, 1e-3), (1.0, 1e-2), (0.7, 5e-2)])
def test_what_is_not_kept_moves_no_number_beyond_the_stated_bound(debiased, decay, lost_gram):
    whole, cut = sides(6, decay=decay), sides(6, decay=decay, lost_gram=lost_gram)
    assert any(side.lost_gram > 0 for side in cut)
    exact, found = (cka_matrix([Kernel(side, "linear") for side in every], debiased) for every in (whole, cut))
    for one in range(6):
        for other in range(6):
            bound = cka_error_bound(cut[one], cut[other], debiased)
            assert abs(found[one, other] - exact[one, other]) <= bound + 1e-6
            assert bound < 10 * lost_gram
    assert cka_error_bound(whole[0], whole[1], debiased) == 0


def test_at_the_default_of_decomposition_the_bound_is_below_one_in_a_thousand():
    values = np.random.default_rng(0).normal(size=(500, 256)) * np.arange(1, 257) ** -1.0
    side = Side(decompose(values, 1e-4, 10))
    assert side.found.scores.shape[1] < 256
    assert 0 < cka_error_bound(side, side) < 1e-3


def test_size_does_not_matter_from_the_smallest_to_the_largest_floats():
    values = np.random.default_rng(0).normal(size=(60, 9))
    other = Kernel(Side.of(values + np.random.default_rng(1).normal(size=(60, 9))), "linear")
    expected = cka_matrix([Kernel(Side.of(values), "linear"), other])[0, 1]
    for size in (1e-12, 1e12):
        found = cka_matrix([Kernel(Side.of(values * size), "linear"), other])[0, 1]
        assert found == pytest.approx(expected, abs=1e-6)
