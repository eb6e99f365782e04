"""Ridge probes against scikit-learn's, and targets with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, PredefinedSplit, cross_val_predict

from stratascope.tasks.representation.probe_classifiers import prepared
from stratascope.tasks.representation.probe_folds import plain_folds
from stratascope.tasks.representation.probe_regressors import cross_validated_ridge, explained, permuted_r2

PATH = (1e-3, 1e-1, 1.0)
folds = plain_folds(np.arange(100), 4).fold


def data(noise: float, width: int = 6, seed: int = 0):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(100, width))
    return prepared(values), values @ generator.normal(size=width) + 3 + noise * generator.normal(size=100)


def test_a_linear_map_of_the_features_is_explained_whole():
    features, targets = data(0.0)
    found = cross_validated_ridge(features, targets, folds, (1.0, 1e4))
    assert explained(targets, found.predicted) == pytest.approx(1.0, abs=1e-6)
    assert set(found.chosen) == {1}
    assert found.overfit == pytest.approx(0.0, abs=1e-6)


def test_answers_and_choice_are_those_of_scikit_learn_in_the_same_folds():
    features, targets = data(1.0, 30)
    found = cross_validated_ridge(features, targets, folds, PATH)
    penalties = {"alpha": [1 / strength for strength in PATH]}
    for held_out in range(4):
        inside = folds != held_out
        search = GridSearchCV(
            Ridge(), penalties, scoring="neg_mean_squared_error", cv=PredefinedSplit(folds[inside])
        ).fit(features[inside], targets[inside])
        assert 1 / PATH[found.chosen[held_out]] == search.best_params_["alpha"]
        np.testing.assert_allclose(found.predicted[~inside], search.predict(features[~inside]))
    for number, strength in enumerate(PATH):
        expected = cross_val_predict(Ridge(1 / strength), features, targets, cv=PredefinedSplit(folds))
        scores = [r2_score(targets[folds == k], expected[folds == k]) for k in range(4)]
        np.testing.assert_allclose(found.held_out_score[:, number], scores)
    assert (np.diff(found.weight_norm, axis=1) > 0).all()


def test_shuffled_targets_are_not_explained():
    features, targets = data(0.1)
    orders = [np.random.default_rng(seed).permutation(100) for seed in range(6)]
    null = permuted_r2(features, [np.arange(100), *orders], targets, folds, 1.0)
    assert null[0] > 0.95  # the order that changes nothing
    assert null[1:].max() < 0.2
    expected = cross_val_predict(Ridge(1.0), features, targets[orders[0]], cv=PredefinedSplit(folds))
    assert null[1] == pytest.approx(r2_score(targets[orders[0]], expected))


def test_the_scale_of_the_targets_changes_nothing_but_the_loss():
    features, targets = data(1.0)
    one, other = (cross_validated_ridge(features, scale * targets - scale, folds, PATH) for scale in (1.0, 1e4))
    np.testing.assert_array_equal(one.chosen, other.chosen)
    np.testing.assert_allclose(one.held_out_score, other.held_out_score)
    np.testing.assert_allclose(one.weight_norm, other.weight_norm)
