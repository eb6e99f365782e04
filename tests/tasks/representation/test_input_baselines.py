"""Layers against methods on raw inputs: exact tests, corrections, and which layer wins first."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from stratascope.tasks.representation.input_baselines import baseline_answers, first_beyond, margins_over
from stratascope.tasks.representation.probe_classifiers import prepared
from stratascope.tasks.representation.probe_folds import stratified_folds
from tests.tasks.representation.blobs import blobs


def right(count: int, of: int = 100) -> np.ndarray:
    return np.arange(of) < count


def test_the_margin_is_paired_and_its_p_value_is_the_exact_binomial():
    base = right(60)
    layer = base.copy()
    layer[60:75] = True  # fifteen only the layer has right
    layer[:4] = False  # four only the method
    margin = margins_over(base, {"a": layer})["a"]
    assert margin.difference.value == pytest.approx(0.11)
    assert margin.difference.low < 0.11 < margin.difference.high
    assert margin.test.p == pytest.approx(stats.binomtest(15, 19, 0.5).pvalue)
    assert margin.corrected == margin.test.p


def test_p_values_are_corrected_for_the_layers_that_can_be_tested():
    layers = {"same": right(60), "worse": right(40), "better": right(70), "best": right(80)}
    found = margins_over(right(60), layers)
    assert np.isnan(found["same"].corrected)
    assert found["same"].test.reason
    raw = {
        name: stats.binomtest(0, abs(own.sum() - 60), 0.5).pvalue for name, own in layers.items() if name != "same"
    }
    assert found["best"].corrected == pytest.approx(3 * min(raw["best"], raw["worse"]))
    assert found["better"].corrected == pytest.approx(max(raw["better"], 2 * raw["worse"]))


def test_the_first_layer_that_wins_is_better_and_beyond_chance():
    layers = {"worse": right(30), "a little better": right(63), "better": right(75), "best": right(90)}
    assert first_beyond(margins_over(right(60), layers), 0.05) == "better"
    assert first_beyond(margins_over(right(60), layers), 1e-5) == "best"
    assert first_beyond(margins_over(right(95), layers), 0.05) is None


def test_methods_answer_in_the_same_folds():
    values, places = blobs(3, 20, 6, 1.0)
    fold = stratified_folds(places, np.arange(60), 3).fold
    found = {
        method: baseline_answers(method, values, places, fold, (0.1,), False, 0)
        for method in ("logistic_regression", "random_forest")
    }
    split = PredefinedSplit(fold)
    expected = cross_val_predict(LogisticRegression(C=0.1), prepared(values), places, cv=split)
    np.testing.assert_array_equal(found["logistic_regression"], expected)
    forest = make_pipeline(StandardScaler(), RandomForestClassifier(100, random_state=0))
    expected = cross_val_predict(forest, values.astype(np.float32), places, cv=split)
    np.testing.assert_array_equal(found["random_forest"], expected)
