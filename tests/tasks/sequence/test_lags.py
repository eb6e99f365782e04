"""Profiles over the lag: closed forms, and places of steps counted from the last one read."""

from __future__ import annotations

import numpy as np
import pytest

from stratascope.tasks.sequence.lags import (
    crossing_below,
    decay_rate,
    lag_mean,
    length_holding,
    marked_lags,
    places_back,
)


def test_an_exponential_profile_gives_back_its_rate_whatever_is_missing():
    profile = 3.0 * np.exp(-0.25 * np.arange(60))
    assert decay_rate(profile) == pytest.approx(0.25, rel=1e-9)
    profile[[4, 17]] = np.nan
    profile[50:] = 0.0
    assert decay_rate(profile) == pytest.approx(0.25, rel=1e-9)
    assert decay_rate(0.9 ** np.arange(30)) == pytest.approx(0.1053605, abs=1e-7)
    assert np.isnan(decay_rate(np.array([1.0, 0.5])))


def test_the_length_that_holds_a_share_of_a_flat_profile_is_that_share_of_it():
    assert length_holding(np.ones(50), 0.5) == pytest.approx(25)
    assert length_holding(np.full(50, 1e-30, np.float32), 0.9) == pytest.approx(45)
    assert length_holding(np.eye(1, 20)[0], 0.5) == pytest.approx(0.5)
    assert length_holding(np.eye(1, 20, 19)[0], 0.5) == pytest.approx(19.5)


def test_the_length_that_holds_half_of_a_geometric_profile_has_a_closed_form():
    ratio = 0.95
    profile = ratio ** np.arange(2000)
    # 1 - ratio^n = 1/2; within a step the mass is taken as even.
    assert length_holding(profile, 0.5) == pytest.approx(np.log(0.5) / np.log(ratio), abs=0.02)


@pytest.mark.parametrize("bad", [np.zeros(5), np.array([1.0, np.inf]), np.array([1.0, -1.0]), np.full(4, np.nan)])
def test_without_mass_there_is_no_length(bad):
    assert np.isnan(length_holding(bad, 0.5))


def test_a_profile_crosses_half_of_its_height_between_two_lags():
    assert crossing_below(np.array([1.0, 0.8, 0.4, 0.1]), 0.5) == pytest.approx(1.75)
    # What rises first is followed from its highest point on.
    assert crossing_below(np.array([0.1, 1.0, 0.6, 0.4]), 0.5) == pytest.approx(2.5)
    assert np.isnan(crossing_below(np.array([1.0, 0.9]), 0.5))


def test_places_count_back_from_the_step_that_is_read_last():
    real = np.array([[True, True, True, False], [True, False, False, False], [False, True, True, True]])
    assert places_back(real).tolist() == [[2, 1, 0], [0, -1, -1], [3, 2, 1]]
    assert places_back(real, backwards=True).tolist() == [[0, 1, 2], [0, -1, -1], [1, 2, 3]]


def test_unknown_values_do_not_count_in_a_mean():
    values = np.array([[1.0, np.nan, np.nan], [3.0, 4.0, np.nan]])
    np.testing.assert_equal(lag_mean(values), [2.0, 4.0, np.nan])


def test_few_lags_are_marked_and_the_last_is_one_of_them():
    assert marked_lags(100) == [0, 1, 2, 5, 10, 20, 50, 99]
    assert marked_lags(1) == [0]
    assert marked_lags(3) == [0, 1, 2]
    assert marked_lags(0) == []
