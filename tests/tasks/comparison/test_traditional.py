"""Traditional methods: what they learn, what they may not see, and that a seed decides everything."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from stratascope.errors import DoesNotApply
from stratascope.tasks.comparison.spec import METHODS
from stratascope.tasks.comparison.traditional import gain, learn, rows_of


@pytest.fixture(scope="module")
def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    inputs, targets = load_digits(return_X_y=True)
    inputs = inputs.astype(np.float32)
    return inputs[:200], targets[:200], inputs[900:1100], targets[900:1100]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_the_digits_and_repeats_itself(method, digits):
    inputs, targets, asked, right = digits
    found = learn(method, (inputs, targets), asked, components=20, common_scale=True, folds=0, seed=3)
    assert (found.predicted == right).mean() > 0.7
    assert found.dimensions == 20
    again = learn(method, (inputs, targets), asked, components=20, common_scale=True, folds=0, seed=3)
    assert (again.predicted == found.predicted).all()


def test_the_scale_comes_from_the_training_samples_alone(digits):
    inputs, targets, asked, _ = digits
    found = learn("logistic_regression", (inputs, targets), asked, folds=0)
    scaler = StandardScaler().fit(inputs)
    reference = LogisticRegression(max_iter=200, tol=1e-3).fit(scaler.transform(inputs), targets)
    assert (found.predicted == reference.predict(scaler.transform(asked))).all()
    # What else is asked changes no answer.
    part = learn("logistic_regression", (inputs, targets), asked[:50], folds=0)
    assert (part.predicted == found.predicted[:50]).all()


def test_cross_validation_chooses_constants_within_the_training_samples(digits):
    inputs, targets, asked, right = digits
    found = learn("k_nearest_neighbors", (inputs, targets), asked, common_scale=True, folds=3)
    assert found.constants["n_neighbors"] in (1, 3, 5, 11)
    assert (found.predicted == right).mean() > 0.7
    few = np.r_[targets[:-1], 77]
    assert "only 1 training samples" in learn("k_nearest_neighbors", (inputs, few), asked, folds=3).note


def test_one_class_cannot_be_learned(digits):
    inputs, _, asked, _ = digits
    with pytest.raises(DoesNotApply, match="fewer than two classes"):
        learn("rbf_svm", (inputs, np.zeros(len(inputs), int)), asked)


def test_rows_are_taken_across_slices():
    values = np.arange(10_000).reshape(-1, 1)
    rows = np.array([0, 4_095, 4_096, 8_191, 9_999])
    assert rows_of(values, rows)[:, 0].tolist() == rows.tolist()


def test_the_gain_is_the_mean_over_runs_by_sample():
    with_features = np.array([[True, True, False], [True, False, False]])
    assert gain(with_features, np.array([False, True, False])).tolist() == [1.0, -0.5, 0.0]
