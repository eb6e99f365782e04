"""The probes' classifier against scikit-learn's own cross-validation, known confusions, invariances and noise."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit, cross_val_predict

from stratascope.errors import DoesNotApply
from stratascope.tasks.representation.class_separation import confusion
from stratascope.tasks.representation.probe_classifiers import (
    LogisticPath,
    cross_validated,
    held_out_answers,
    prepared,
)
from stratascope.tasks.representation.probe_folds import stratified_folds
from tests.tasks.representation.blobs import blobs

PATH = (1e-3, 1e-2, 1e-1)


def overlapping(count: int = 120, width: int = 8, seed: int = 0):
    """Features that part three classes in part, the classes, and folds."""
    generator = np.random.default_rng(seed)
    places = np.arange(count) % 3
    values = np.eye(3, width)[places] * 1.5 + generator.normal(size=(count, width))
    return values, places, stratified_folds(places, np.arange(count), 4).fold


def test_classes_that_a_plane_parts_are_all_right():
    values, places = blobs(3, 24, 10)
    fold = stratified_folds(places, np.arange(72), 4).fold
    found = cross_validated(prepared(values), places, fold, PATH)
    np.testing.assert_array_equal(found.predicted, places)
    assert found.overfit == 0
    assert (np.diff(found.weight_norm, axis=1) > 0).all()
    assert (np.diff(found.held_out_loss, axis=1) < 0).all()


def test_samples_that_lie_among_another_class_are_taken_for_it():
    values, places = blobs(3, 24, 10)
    labels = places.copy()
    labels[:5] = 1  # five that look like class 0
    labels[24:27] = 2  # three that look like class 1
    fold = stratified_folds(labels, np.arange(72), 4).fold
    found = cross_validated(prepared(values), labels, fold, PATH)
    expected = np.array([[19, 0, 0], [5, 21, 0], [0, 3, 24]])
    np.testing.assert_array_equal(confusion(labels, found.predicted, 3), expected)


def test_answers_are_those_of_scikit_learn_in_the_same_folds():
    values, places, fold = overlapping()
    features = prepared(values)
    for strength in PATH:
        expected = cross_val_predict(LogisticRegression(C=strength), features, places, cv=PredefinedSplit(fold))
        np.testing.assert_array_equal(held_out_answers(features, places, fold, strength), expected)


@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_are_those_of_scikit_learn(classes):
    values, places, _ = overlapping()
    places = places % classes
    (fitted,) = LogisticPath(classes, (0.1,), 1e-8).fits(values, places)
    expected = LogisticRegression(C=0.1, tol=1e-8).fit(values, places).predict_proba(values)
    np.testing.assert_allclose(fitted.probabilities(values), expected, atol=1e-6)


def test_the_penalty_is_chosen_by_the_other_folds_alone_as_a_search_in_them_would():
    values, places, fold = overlapping(seed=3)
    features = prepared(values)
    found = cross_validated(features, places, fold, PATH)
    for held_out in range(4):
        inside = fold != held_out
        search = GridSearchCV(
            LogisticRegression(), {"C": PATH}, scoring="neg_log_loss", cv=PredefinedSplit(fold[inside])
        ).fit(features[inside], places[inside])
        assert PATH[found.chosen[held_out]] == search.best_params_["C"]
        np.testing.assert_array_equal(found.predicted[~inside], search.predict(features[~inside]))
        own = search.best_estimator_.predict(features[inside]) == places[inside]
        assert found.train_score[held_out, found.chosen[held_out]] == pytest.approx(own.mean())


def test_labels_of_the_held_out_fold_do_not_touch_what_is_said_of_it():
    values, places, fold = overlapping(seed=1)
    features = prepared(values)
    one = cross_validated(features, places, fold, PATH)
    changed = places.copy()
    changed[fold == 2] = (changed[fold == 2] + 1) % 3
    other = cross_validated(features, changed, fold, PATH)
    assert one.chosen[2] == other.chosen[2]
    np.testing.assert_array_equal(one.predicted[fold == 2], other.predicted[fold == 2])
    assert one.held_out_score[2].max() > other.held_out_score[2].max()


def test_rotation_shift_scale_and_idle_features_change_nothing():
    values, places, fold = overlapping(seed=2)
    one = cross_validated(prepared(values), places, fold, PATH)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    moved = np.pad(300 * values @ turn + 5, ((0, 0), (0, 3)), constant_values=7.0)
    other = cross_validated(prepared(moved), places, fold, PATH)
    np.testing.assert_array_equal(one.predicted, other.predicted)
    np.testing.assert_allclose(one.weight_norm, other.weight_norm, rtol=1e-3)
    np.testing.assert_allclose(one.held_out_loss, other.held_out_loss, rtol=1e-3)


def test_more_features_than_samples_are_answered_from_their_components():
    values, places, fold = overlapping(60, 200)
    features = prepared(values)
    assert features.shape == (60, 59)
    centred = values - values.mean(0)
    whole = centred / np.sqrt(centred.var(0).mean())
    for strength in PATH:
        expected = cross_val_predict(LogisticRegression(C=strength), whole, places, cv=PredefinedSplit(fold))
        np.testing.assert_array_equal(held_out_answers(features, places, fold, strength), expected)


def test_noise_gives_chance():
    generator = np.random.default_rng(0)
    places = np.arange(200) % 4
    fold = stratified_folds(places, np.arange(200), 4).fold
    found = cross_validated(prepared(generator.normal(size=(200, 30))), places, fold, PATH)
    assert abs((found.predicted == places).mean() - 0.25) < 3 * np.sqrt(0.25 * 0.75 / 200)
    assert found.train_score[:, -1].min() > 0.4  # it learns by heart what does not hold


def test_a_training_set_of_one_class_is_refused():
    values, places, _ = overlapping(20)
    with pytest.raises(DoesNotApply, match="one class"):
        held_out_answers(values, (places > 0).astype(int), (places > 0).astype(int), 1.0)
