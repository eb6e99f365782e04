"""Measures of channels against cases whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from stratascope.tasks.vision.channel_measures import (
    class_counts,
    class_means,
    class_selectivity,
    correlation,
    effective_number,
    jaccard,
    preferred_class,
    rank_agreement,
    redundant_channels,
    strongest_by_mass,
    top_examples,
)


def test_the_fewest_channels_that_hold_a_share_of_the_mass_count():
    peaks = np.array([[6.0, 3.0, 1.0, -5.0], [0.0, -1.0, 0.0, -2.0], [2.0, 2.0, 2.0, 2.0]])
    half = strongest_by_mass(peaks, 0.5)
    assert half[0].tolist() == [True, False, False, False]
    assert not half[1].any()
    assert half[2].tolist() == [True, True, False, False]
    assert strongest_by_mass(peaks, 0.9)[0].tolist() == [True, True, False, False]
    assert strongest_by_mass(peaks, 1.0)[0].tolist() == [True, True, True, False]


def test_counts_and_means_are_those_of_each_class():
    values = np.array([[1.0, 4.0], [3.0, 0.0], [5.0, 5.0]])
    classes = np.array([0, 0, 2])
    means = class_means(values, classes, 3)
    np.testing.assert_allclose(means[[0, 2]], [[2, 2], [5, 5]])
    assert np.isnan(means[1]).all()
    assert class_counts(values > 3, classes, 3).tolist() == [[0, 1], [0, 0], [1, 1]]


def test_selectivity_is_one_for_a_single_class_and_zero_for_none():
    means = np.array([[1.0, 2.0, 0.0, 3.0], [0.0, 2.0, 0.0, 1.0], [0.0, 2.0, 0.0, 1.0]])
    found = class_selectivity(means)
    np.testing.assert_allclose(found[[0, 1, 3]], [1, 0, 0.5])
    assert np.isnan(found[2])
    assert preferred_class(means).tolist() == [0, 0, -1, 0]
    with pytest.raises(ValueError, match="two classes"):
        class_selectivity(means[:1])


def test_redundancy_of_copies_and_of_independent_channels():
    generator = np.random.default_rng(0)
    one = generator.normal(size=4000)
    independent = generator.normal(size=(4000, 6))
    assert effective_number(correlation(independent)) == pytest.approx(6, rel=0.01)
    copies = np.stack(
        [one, -3 * one + 7, one + 0.01 * independent[:, 0], independent[:, 1], np.full(4000, 2.0)], 1
    )
    found = correlation(copies.astype(np.float32))
    assert redundant_channels(found.copy()).tolist() == [True, True, True, False, False]
    assert np.isnan(found[4]).all()
    # Three that say the same beside one of its own: (3 + 1)² / (9 + 1).
    assert effective_number(found) == pytest.approx(1.6, rel=0.01)
    np.testing.assert_allclose(found[:4, :4], np.corrcoef(copies[:, :4].T), atol=1e-6)


def test_the_strongest_examples_and_their_overlap():
    peaks = np.array([[1.0, 5.0], [3.0, 5.0], [2.0, 0.0]])
    assert top_examples(peaks, 2).tolist() == [[1, 2], [0, 1]]
    assert jaccard(["a", "b", "c"], ["b", "c", "d"]) == 0.5
    assert np.isnan(jaccard([], []))
    assert rank_agreement(np.array([1.0, 2, 3, np.nan]), np.array([10.0, 20, 30, 1])) == pytest.approx(1)
    assert np.isnan(rank_agreement(np.array([1.0, 2, np.nan]), np.array([1.0, 2, 3])))
