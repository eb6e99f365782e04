"""How surely a unit follows a feature: against brute force, against chance, against what both owe to their place."""

from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from stratascope.tasks.sequence.cell_association import (
    AssociationSums,
    area_under_curve,
    holm,
    normal_bound,
    pairing_p_values,
    rank_correlation,
)


def sums_of(states, features, real=None, with_z=True):
    found = AssociationSums.empty(states.shape[2], features.shape[2], states.shape[1], with_z)
    real = np.ones(states.shape[:2], bool) if real is None else real
    found.add(torch.from_numpy(states), torch.from_numpy(features), torch.from_numpy(real))
    return found


def walks(samples, time, units, seed):
    """Random walks: what stands side by side in one sample is alike, as states are."""
    return np.cumsum(np.random.default_rng(seed).normal(size=(samples, time, units)), axis=1)


def test_z_is_that_of_all_orders_of_the_samples():
    states, features = walks(6, 5, 2, 0), walks(6, 5, 3, 1)
    features[:, :2, 1] = np.nan
    found = sums_of(states, features).permutation_z()
    filled = np.nan_to_num(features)
    for unit in range(2):
        for feature in range(3):
            products = states[..., unit] @ filled[..., feature].T
            every = np.array([products[np.arange(6), list(order)].sum() for order in permutations(range(6))])
            wanted = (np.trace(products) - every.mean()) / every.std()
            assert found[unit, feature] == pytest.approx(wanted, rel=1e-4)


def test_correlation_is_pearsons_over_what_is_known():
    states, features = walks(7, 6, 2, 0), walks(7, 6, 2, 1)
    features[2:4, 1:, 1] = np.nan
    real = np.ones((7, 6), bool)
    real[5, 3:] = False
    found = sums_of(states, features, real).correlations()
    known = np.isfinite(features[..., 1]) & real
    assert found[0, 1] == pytest.approx(
        np.corrcoef(states[..., 0][known], features[..., 1][known])[0, 1], rel=1e-10
    )


def test_what_stands_at_padding_changes_nothing():
    states, features = walks(7, 6, 2, 0), walks(7, 6, 2, 1)
    real = np.arange(6) < np.array([6, 3, 4, 6, 2, 5, 6])[:, None]
    one = sums_of(states, features, real)
    other = sums_of(np.where(real[..., None], states, 1e6), np.where(real[..., None], features, -1e6), real)
    np.testing.assert_array_equal(one.correlations(), other.correlations())
    np.testing.assert_array_equal(one.permutation_z(), other.permutation_z())


def test_sums_add_up_over_batches():
    states, features = walks(9, 6, 2, 0), walks(9, 6, 2, 1)
    whole = sums_of(states, features)
    parts = sums_of(states[:4], features[:4])
    parts.add(torch.from_numpy(states[4:]), torch.from_numpy(features[4:]), torch.ones(5, 6, dtype=torch.bool))
    np.testing.assert_allclose(parts.permutation_z(), whole.permutation_z(), rtol=1e-4)
    np.testing.assert_allclose(parts.correlations(), whole.correlations(), rtol=1e-10)


def test_what_both_owe_to_the_place_in_the_sample_is_no_finding():
    time = np.arange(20)[None, :, None]
    states, features = walks(200, 20, 1, 0) + 3 * time, walks(200, 20, 1, 1) + 3 * time
    sums = sums_of(states, features)
    assert sums.correlations()[0, 0] > 0.9
    assert abs(sums.permutation_z()[0, 0]) < 3


def test_states_that_wander_pass_no_more_often_than_chance_allows():
    states, features = walks(50, 40, 40, 0), walks(50, 40, 40, 1)
    p_values = pairing_p_values(states, features, 999, 0)
    assert 0.2 < p_values.mean() < 0.8
    assert (p_values < 0.05).sum() <= 6
    # Positions as if they were independent would have found something nearly everywhere.
    correlations = np.diag(sums_of(states, features).correlations())
    assert (np.abs(correlations) > 1.96 / np.sqrt(2000)).mean() > 0.5


def test_a_unit_that_follows_is_found_whatever_its_sign():
    features = walks(40, 20, 2, 1)
    states = np.stack([features[..., 0], -features[..., 1]], -1) + walks(40, 20, 2, 2)
    assert (pairing_p_values(states, features, 9999, 0) == 1e-4).all()


def test_one_text_for_all_samples_cannot_be_exchanged():
    features = np.repeat(walks(1, 20, 1, 0), 30, axis=0)
    assert pairing_p_values(walks(30, 20, 1, 1), features, 99, 0).tolist() == [1.0]
    assert np.isnan(sums_of(walks(30, 20, 1, 1), features).permutation_z()).all()


def test_holm_corrects_step_by_step():
    np.testing.assert_allclose(holm(np.array([0.01, np.nan, 0.04, 0.03])), [0.03, np.nan, 0.06, 0.06])


def test_the_bound_grows_with_the_number_of_tests():
    assert normal_bound(1, 0.05) == pytest.approx(1.959964, abs=1e-5)
    assert normal_bound(1000, 0.05) == pytest.approx(normal_bound(1, 0.00005))


def test_area_and_rank_correlation_are_the_known_ones():
    generator = np.random.default_rng(0)
    values, inside = generator.integers(0, 9, 60).astype(float), generator.random(60) < 0.4
    assert area_under_curve(values, inside) == pytest.approx(roc_auc_score(inside, values))
    assert np.isnan(area_under_curve(values, np.zeros(60, bool)))
    assert rank_correlation(values, np.exp(values)) == pytest.approx(1)
    assert np.isnan(rank_correlation(values, np.ones(60)))
