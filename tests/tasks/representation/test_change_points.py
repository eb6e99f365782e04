"""Changes of level: the best of all divisions, none in noise, and reasons where nothing can be told."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stratascope.tasks.checks.changes import pettitt
from stratascope.tasks.representation.change_points import (
    changes,
    greatest_shift,
    noise_of,
    segments,
    shift_p_value,
    unsuited,
)

OPTIONS = {"strength": 3.0, "level": 0.05, "rounds": 199, "seed": 0}


def cost(values: np.ndarray, cuts, penalty: float) -> float:
    edges = [0, *cuts, len(values)]
    inside = sum(((values[a:b] - values[a:b].mean()) ** 2).sum() for a, b in itertools.pairwise(edges))
    return inside + penalty * len(cuts)


def best_of_all(values: np.ndarray, penalty: float, least: int) -> float:
    """The lowest cost of all divisions, each tried."""
    costs = []
    for number in range(len(values) // least):
        for cuts in itertools.combinations(range(least, len(values) - least + 1), number):
            if all(b - a >= least for a, b in itertools.pairwise([0, *cuts, len(values)])):
                costs.append(cost(values, cuts, penalty))
    return min(costs)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=4, max_size=12), st.floats(0.01, 8), st.integers(1, 3))
def test_no_division_costs_less(numbers, penalty: float, least: int):
    values = np.array(numbers)
    found = segments(values, penalty, least)
    edges = [0, *found, len(values)]
    assert all(b - a >= least for a, b in itertools.pairwise(edges))
    assert cost(values, found, penalty) == pytest.approx(best_of_all(values, penalty, least), abs=1e-8)


@pytest.mark.parametrize("place", [4, 9, 16])
def test_one_new_level_is_found_where_it_begins(place: int):
    values = np.random.default_rng(place).normal(0, 0.05, 20)
    values[place:] += 1
    (found,) = changes(values, **OPTIONS)
    assert found.place == place
    assert found.size == pytest.approx(1, abs=0.1)
    assert found.p_value <= 0.05
    if place == 9:  # nearer to an end the rank test of the checks leans towards the middle
        assert pettitt(values[None])[1][0] + 1 == place


def test_two_new_levels_are_found_each():
    values = np.repeat([0.0, 1.0, 0.4], 12) + np.random.default_rng(0).normal(0, 0.03, 36)
    assert [item.place for item in changes(values, **OPTIONS)] == [12, 24]


@pytest.mark.parametrize("count", [10, 30, 100])
def test_noise_has_no_levels(count: int):
    generator = np.random.default_rng(count)
    raised = [bool(changes(generator.normal(size=count), **OPTIONS)) for _ in range(150)]
    assert np.mean(raised) <= 0.08


def test_one_wild_value_is_no_level():
    values = np.random.default_rng(0).normal(0, 0.1, 20)
    values[8] = 5
    assert changes(values, **OPTIONS) == []


def test_shift_and_scale_of_the_curve_change_nothing():
    values = np.random.default_rng(4).normal(size=30)
    values[11:] += 4
    first, second = changes(values, **OPTIONS), changes(-7 * values + 3, **OPTIONS)
    assert [item.place for item in first] == [item.place for item in second] == [11]
    assert first[0].p_value == second[0].p_value
    assert second[0].size == pytest.approx(-7 * first[0].size)


def test_the_statistic_is_the_standardised_difference_of_means():
    values = np.random.default_rng(5).normal(size=15)
    places = range(2, 14)
    sizes = [abs(values[k:].mean() - values[:k].mean()) * np.sqrt(k * (15 - k) / 15) for k in places]
    assert greatest_shift(values[None])[0] == pytest.approx(max(sizes))


def test_p_values_of_noise_are_even():
    generator = np.random.default_rng(6)
    found = np.array([shift_p_value(generator.normal(size=12), 99, 0) for _ in range(400)])
    assert np.mean(found <= 0.1) == pytest.approx(0.1, abs=0.05)
    assert np.mean(found <= 0.5) == pytest.approx(0.5, abs=0.08)


def test_noise_is_neither_jump_nor_slope():
    generator = np.random.default_rng(7)
    values = generator.normal(0, 0.3, 2000) + np.linspace(0, 20, 2000)
    values[1000:] += 100
    assert noise_of(values) == pytest.approx(0.3, rel=0.1)
    assert noise_of(np.repeat([0.0, 2.0], 5)) == pytest.approx(2e-3)


def test_reasons_are_named():
    assert "needs at least 8 checkpoints, there are 7" in unsuited(np.arange(7.0))
    assert "1 of the curve's 9 values are not finite" in unsuited(np.append(np.arange(8.0), np.nan))
    assert "constant" in unsuited(np.full(9, 0.3) + np.arange(9) * 1e-16)
    assert unsuited(np.arange(8.0)) == ""
