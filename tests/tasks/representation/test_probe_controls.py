"""Controls: labels of look-alikes can be learned but say nothing of the class; random features keep the inputs' geometry."""

from __future__ import annotations

import numpy as np
import pytest

from stratascope.errors import DoesNotApply
from stratascope.storage.probes import Probe
from stratascope.tasks.representation.probe_controls import control_labels, inputs_in_order, random_features
from tests.tasks.representation.blobs import blobs


def test_look_alikes_share_a_label_and_the_shares_are_those_of_the_classes():
    values, groups = blobs(40, 6, 5, 30.0)
    places = np.random.default_rng(0).choice(2, size=len(values), p=(0.75, 0.25))
    labels = control_labels(values, places, 40, 0)
    assert all(len(set(labels[groups == group])) == 1 for group in range(40))
    assert 0.05 < labels.mean() < 0.45
    assert (control_labels(values, places, 40, 0) == labels).all()
    assert (control_labels(values, places, 40, 1) != labels).any()


def test_random_features_are_positive_as_wide_as_asked_and_keep_near_samples_near():
    values = np.random.default_rng(0).normal(size=(50, 30))
    values[1] = values[0] + 1e-3
    found = random_features(values, 400, 0)
    assert found.shape == (50, 400)
    assert found.min() == 0
    assert (found > 0).mean() == pytest.approx(0.5, abs=0.05)
    # He's variance: a ReLU halves what two over the width doubles.
    assert (found**2).mean() == pytest.approx(1.0, rel=0.15)
    distances = np.linalg.norm(found[:1] - found[1:], axis=1)
    assert distances[0] < 0.05 * distances[1:].min()


def test_inputs_come_in_the_order_that_was_asked_for_and_bad_ones_are_named():
    values = np.arange(20.0).reshape(10, 2).astype(np.float32)
    rows = np.array([7, 0, 3])

    def shown(inputs, **more) -> Probe:
        return Probe("test", "test", inputs, None, np.arange(10), (), "digest", **more)

    np.testing.assert_array_equal(inputs_in_order(shown(values), rows), values[rows])
    with pytest.raises(DoesNotApply, match="constant"):
        inputs_in_order(shown(np.ones((10, 2), np.float32)), rows)
    broken = values.copy()
    broken[3, 0] = np.inf
    with pytest.raises(DoesNotApply, match="not finite"):
        inputs_in_order(shown(broken), rows)
    with pytest.raises(DoesNotApply, match="token ids"):
        inputs_in_order(shown(values.astype(int), kind="text"), rows)
