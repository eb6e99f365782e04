"""Intervals hold what they promise, and chance has its share."""

from __future__ import annotations

import numpy as np

from stratascope.tasks.representation.resampling import (
    bootstrap_counts,
    percentile_interval,
    permutation_p,
    permutations,
    stratified_counts,
    subsample_interval,
    subsamples,
)


def test_every_round_draws_as_many_samples_as_there_are():
    counts = bootstrap_counts(50, 20, seed=1)
    assert counts.shape == (20, 50)
    assert (counts.sum(1) == 50).all()
    classes = np.repeat([0, 1, 2], [30, 15, 5])
    within = stratified_counts(classes, 20, seed=1)
    for value, size in ((0, 30), (1, 15), (2, 5)):
        assert (within[:, classes == value].sum(1) == size).all()
    np.testing.assert_array_equal(counts, bootstrap_counts(50, 20, seed=1))
    assert (counts != bootstrap_counts(50, 20, seed=2)).any()


def test_both_kinds_of_interval_are_as_wide_as_the_theory_of_a_mean_says():
    values = np.random.default_rng(0).normal(size=400)
    wanted = 2 * 1.96 * values.std() / 20
    means = bootstrap_counts(400, 2000, 0) @ values / 400
    low, high = percentile_interval(means)
    assert abs((high - low) / wanted - 1) < 0.1
    assert low < values.mean() < high
    for share in (0.3, 0.5, 0.8):
        halves = np.array([values[rows].mean() for rows in subsamples(400, 2000, 0, share)])
        low, high = subsample_interval(float(values.mean()), halves, share)
        assert abs((high - low) / wanted - 1) < 0.1, share


def test_too_few_finite_rounds_give_no_interval():
    assert np.isnan(percentile_interval(np.array([1.0, np.nan]))).all()
    assert np.isnan(subsample_interval(np.nan, np.arange(9.0))).all()


def test_the_share_of_chance_is_never_nothing_and_is_even_under_it():
    assert permutation_p(9.0, np.zeros(99)) == 0.01
    generator = np.random.default_rng(5)
    found = [permutation_p(generator.normal(), generator.normal(size=99)) for _ in range(400)]
    assert abs(np.mean(np.array(found) <= 0.1) - 0.1) < 0.05


def test_orders_are_seeded_and_whole():
    first, second = permutations(30, 2, 7)
    assert sorted(first) == list(range(30))
    assert first.tolist() != second.tolist()
    assert first.tolist() == next(permutations(30, 1, 7)).tolist()
