"""Coalitions and what is read from them, without any network."""

from __future__ import annotations

import numpy as np
import pytest

from stratascope.tasks.vision.coalitions import (
    lime_weights,
    linear_surrogate,
    shapley_coalitions,
    shapley_values,
)


def test_few_pieces_give_every_coalition_with_the_weight_of_the_kernel():
    present, weights = shapley_coalitions(4, 14, np.random.default_rng(0))
    assert len(np.unique(present, axis=0)) == 14
    # (M − 1) / (C(M, k) k (M − k)) with M = 4.
    wanted = {1: 3 / (4 * 1 * 3), 2: 3 / (6 * 2 * 2), 3: 3 / (4 * 3 * 1)}
    np.testing.assert_allclose(weights, [wanted[size] for size in present.sum(1)])


def test_many_pieces_give_whole_sizes_first_and_then_pairs():
    present, weights = shapley_coalitions(12, 200, np.random.default_rng(0))
    sizes = present.sum(1)
    assert 100 < len(present) <= 200
    assert (sizes == 1).sum() == (sizes == 11).sum() == 12
    assert sizes.min() > 0
    assert sizes.max() < 12
    kept = {tuple(row) for row in present}
    assert all(tuple(~row) in kept for row in present)
    # Each size has its share of the kernel's weight, drawn or not: 1 and 11 together 2 · 11 / (1 · 11).
    assert weights[(sizes == 1) | (sizes == 11)].sum() == pytest.approx(2)
    every = 2 * sum(11 / (size * (12 - size)) for size in range(1, 6)) + 11 / 36
    assert weights.sum() == pytest.approx(every)


def test_a_sum_of_pieces_is_found_from_any_coalitions():
    wanted = np.random.default_rng(1).normal(size=12)
    present, weights = shapley_coalitions(12, 40, np.random.default_rng(2))
    found = shapley_values(present, 3 + present @ wanted, weights, 3, 3 + wanted.sum())
    np.testing.assert_allclose(found, wanted, atol=1e-10)


def test_a_product_is_shared_evenly():
    present, weights = shapley_coalitions(3, 6, np.random.default_rng(0))
    worth = present[:, 0] * present[:, 1] * 6.0 + present[:, 2]
    np.testing.assert_allclose(shapley_values(present, worth, weights, 0, 7), [3, 3, 1], atol=1e-10)


def test_one_piece_has_the_whole_change():
    present, weights = shapley_coalitions(1, 10, np.random.default_rng(0))
    assert shapley_values(present, np.zeros(0), weights, 2, 5).tolist() == [3]


def test_a_picture_without_change_has_weight_one_and_an_empty_one_the_least():
    present = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
    np.testing.assert_allclose(lime_weights(present, 0.5), [1, np.exp(-1), np.exp(-4)])


@pytest.mark.parametrize("surrogate", ["ridge", "lasso"])
def test_the_surrogates_r2_says_how_much_a_line_tells(surrogate):
    generator = np.random.default_rng(0)
    present = generator.random((400, 5)) < 0.5
    weights = generator.uniform(0.1, 1, 400)
    slopes, share = linear_surrogate(present, present @ np.arange(5.0) + 2, weights, surrogate, 1e-6)
    np.testing.assert_allclose(slopes, np.arange(5), atol=1e-3)
    assert share == pytest.approx(1, abs=1e-6)
    parity = (present.sum(1) % 2).astype(float)
    assert linear_surrogate(present, parity, weights, surrogate, 1e-6)[1] < 0.1
    assert linear_surrogate(present, np.ones(400), weights, surrogate, 1e-6)[1] == 1
