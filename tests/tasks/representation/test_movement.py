"""Movement of a layer: against the published formulas, what it is blind to, and intervals that cover the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes

from stratascope.tasks.representation.movement import (
    Centred,
    Weights,
    cka_distance,
    dependence,
    distances,
    doublings,
    procrustes_distance,
    ranks,
)

BOTH = ("cka", "procrustes")


def moved(first: np.ndarray, second: np.ndarray, rounds: int = 50):
    return distances(Centred(first), Centred(second), BOTH, Weights.of(len(first), rounds, 0))


def rotation(size: int, generator) -> np.ndarray:
    return np.linalg.qr(generator.normal(size=(size, size)))[0]


def published_hsic(first: np.ndarray, second: np.ndarray) -> float:
    """Song et al. (2012), from the Gram matrices as they stand there."""
    n = len(first)
    k, m = first @ first.T, second @ second.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    one = np.ones(n)
    whole = np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (whole - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))


@pytest.fixture
def pair():
    generator = np.random.default_rng(0)
    first = generator.normal(size=(40, 6)) + 3
    return first, first @ generator.normal(size=(6, 9)) + generator.normal(size=(40, 9))


def test_dependence_is_the_published_estimator_and_its_shares_are_exact(pair):
    first, second = Centred(pair[0]), Centred(pair[1])
    found = dependence(first, second, first.values.T @ second.values)
    assert found.value == pytest.approx(published_hsic(*pair), rel=1e-10)
    without = [published_hsic(np.delete(pair[0], i, 0), np.delete(pair[1], i, 0)) for i in range(40)]
    np.testing.assert_allclose(found.share, (40 * found.value - 36 * np.array(without)) / 4, rtol=1e-7)
    assert found.share.mean() == pytest.approx(found.value)


def test_distances_are_the_published_ones(pair):
    found = moved(*pair)
    own = [published_hsic(item, item) for item in pair]
    assert found["cka"].value == pytest.approx(1 - published_hsic(*pair) / np.sqrt(own[0] * own[1]), rel=1e-9)
    scaled = [item - item.mean(0) for item in pair]
    scaled = [item / np.linalg.norm(item) for item in scaled]
    wide = np.pad(scaled[0], ((0, 0), (0, 3)))
    turn, _ = orthogonal_procrustes(wide, scaled[1])
    assert found["procrustes"].value == pytest.approx(np.linalg.norm(wide @ turn - scaled[1]), rel=1e-9)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(-50, 50))
def test_turned_scaled_and_shifted_features_have_not_moved(seed: int, scale: float, shift: float):
    generator = np.random.default_rng(seed)
    first = generator.normal(size=(30, 5))
    second = scale * (first @ rotation(5, generator)) + shift
    found = moved(first, second)
    assert found["cka"].value == pytest.approx(0, abs=1e-9)
    assert found["procrustes"].value == pytest.approx(0, abs=1e-5)
    assert np.abs(found["cka"].rounds).max() < 1e-9
    assert found["cka"].halves.max() < 1e-9


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_the_way_there_is_as_long_as_the_way_back_whatever_the_order_of_samples(seed: int):
    generator = np.random.default_rng(seed)
    first, second = generator.normal(size=(25, 4)), generator.normal(size=(25, 7))
    order = generator.permutation(25)
    there, back, shuffled = moved(first, second), moved(second, first), moved(first[order], second[order])
    for name in BOTH:
        assert there[name].value == pytest.approx(back[name].value, abs=1e-9)
        assert there[name].value == pytest.approx(shuffled[name].value, abs=1e-9)


def test_unrelated_features_are_as_far_apart_as_can_be_even_where_they_outnumber_the_samples():
    generator = np.random.default_rng(1)
    found = moved(generator.normal(size=(100, 400)), generator.normal(size=(100, 400)))
    assert found["cka"].value == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("measure", [cka_distance, procrustes_distance])
def test_intervals_cover_the_distance_of_the_whole_population(measure):
    generator = np.random.default_rng(2)
    whole = generator.normal(size=(20_000, 8)) * np.geomspace(3, 0.5, 8)
    later = whole + generator.normal(size=whole.shape) * 0.8

    def found(rows: np.ndarray, rounds: int):
        first, second = Centred(whole[rows]), Centred(later[rows])
        weights = Weights.of(len(rows), rounds, 0)
        return measure(first, second, first.values.T @ second.values, weights)

    truth = found(np.arange(len(whole)), 2).value
    inside, floors, errors = [], [], []
    for _ in range(120):
        item = found(generator.choice(len(whole), 300, replace=False), 100)
        low, high = np.quantile(item.rounds, [0.025, 0.975])
        inside.append(low <= truth <= high)
        floors.append(np.quantile(item.halves, 0.95))
        errors.append(abs(item.value - truth))
    assert 0.86 <= np.mean(inside) <= 1.0
    # The noise floor is what sampling alone moves the distance by in 95 of 100 cases.
    assert np.mean(np.array(errors) <= np.mean(floors)) == pytest.approx(0.95, abs=0.08)


def test_the_linear_bootstrap_spreads_as_one_that_draws_anew_where_bias_is_small():
    generator = np.random.default_rng(3)
    first = generator.normal(size=(400, 3))
    second = first + generator.normal(size=(400, 3))
    centred = Centred(first), Centred(second)
    found = distances(*centred, ("procrustes",), Weights.of(400, 300, 0))["procrustes"]
    drawn = []
    for _ in range(300):
        rows = generator.integers(0, 400, 400)
        drawn.append(moved(first[rows], second[rows], 2)["procrustes"].value)
    assert found.rounds.std() == pytest.approx(np.std(drawn), rel=0.2)


def test_doublings_and_ranks():
    assert doublings(0, 1) == 1
    assert doublings(99, 399) == 2
    np.testing.assert_array_equal(ranks(np.array([0.1, 0.5, 0.5, 0.2])), [4, 1, 2, 3])
    np.testing.assert_array_equal(ranks(np.array([[1, 5], [2, 4]])), [[2, 1], [1, 2]])
