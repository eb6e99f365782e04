"""Which samples and layers are looked at: by ids and names, never by places."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stratascope.errors import DoesNotApply
from stratascope.storage.probes import Probe
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.models import mlp
from stratascope.tasks.representation.features import (
    FeatureOptions,
    chosen_rows,
    degenerate,
    each_layer,
    layer_names,
    read_features,
    without_enough_classes,
)


def probe_of(identities, targets, inputs=None) -> Probe:
    inputs = np.zeros((len(identities), 2), np.float32) if inputs is None else inputs
    return Probe("test", "test", inputs, targets, np.asarray(identities), (), "digest")


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.integers(0, 80), st.integers(0, 2**31), st.integers(0, 5))
def test_the_chosen_samples_do_not_depend_on_their_places(count, most, order_seed, seed):
    identities = np.array([f"image-{number}" for number in range(count)])
    targets = np.arange(count) % 4
    order = np.random.default_rng(order_seed).permutation(count)
    here = identities[chosen_rows(probe_of(identities, targets), most, seed)]
    there = identities[order][chosen_rows(probe_of(identities[order], targets[order]), most, seed)]
    assert here.tolist() == there.tolist()
    assert len(set(here)) == min(most, count)


def test_classes_keep_their_shares_and_another_seed_chooses_others():
    targets = np.repeat([0, 1, 2], [600, 300, 100])
    probe = probe_of(np.arange(1000), targets)
    rows = chosen_rows(probe, 50, 0)
    assert Counter(targets[rows].tolist()) == {0: 30, 1: 15, 2: 5}
    assert set(rows) != set(chosen_rows(probe, 50, 1))


def test_amounts_are_chosen_without_regard_to_them():
    rows = chosen_rows(probe_of(np.arange(100), np.linspace(0, 1, 100)), 10, 0)
    assert len(set(rows.tolist())) == 10


@pytest.fixture
def little(little_audit):
    """One checkpoint of a perceptron, its probe in an order of its own."""
    generator = np.random.default_rng(3)
    audit = little_audit(args={"inputs": 6, "widths": [5, 4], "outputs": 3})
    inputs = generator.normal(size=(40, 6)).astype(np.float32)
    audit.probe("test", inputs=inputs, targets=np.arange(40) % 3, sample_id=np.array([f"s{n}" for n in range(40)]))
    order = generator.permutation(40)
    audit.probe(
        "turned", inputs=inputs[order], targets=(np.arange(40) % 3)[order], sample_id=np.array([f"s{n}" for n in order])
    )  # fmt: skip
    torch.manual_seed(0)
    audit.checkpoint(0, mlp(inputs=6, widths=[5, 4], outputs=3))
    audit.capture("decomposition")
    return CheckpointContext(audit.store, audit.subject, 0), inputs


def test_a_turned_probe_gives_the_same_features_in_the_same_order(little):
    context, inputs = little
    options = FeatureOptions(layers=("@input", "*"), max_samples=17)
    found = {name: [] for name in ("test", "turned")}
    for item in each_layer(context, options, "silhouette"):
        found[item.probe].append(item)
    assert found["test"][0].layer == "@input"
    assert len(found["test"]) == len(found["turned"]) > 3
    for here, there in zip(found["test"], found["turned"], strict=True):
        assert here.sample_id.tolist() == there.sample_id.tolist()
        np.testing.assert_allclose(here.values, there.values, atol=1e-6)
        np.testing.assert_array_equal(here.targets, there.targets)
    numbers = [int(name[1:]) for name in found["test"][0].sample_id]
    np.testing.assert_array_equal(found["test"][0].values, inputs[numbers])


def test_patterns_choose_layers_in_the_order_of_execution_and_name_what_is_missing(little):
    context, _ = little
    every = layer_names(context, "test", ("*",))
    assert "@output" not in every
    assert "@input" not in every
    linear = layer_names(context, "test", ("type:Linear", "@input"))
    assert linear[0] == "@input"
    assert linear[1:] == [name for name in every if name in linear]
    with pytest.raises(DoesNotApply, match="nothing_like_this"):
        layer_names(context, "test", ("nothing_like_this",))


def test_a_layer_that_is_not_stored_so_is_told(little):
    context, _ = little
    rows = np.arange(5)
    with pytest.raises(DoesNotApply, match="'cls' activations are not stored"):
        read_features(
            context, FeatureOptions(reduction="cls"), "test", layer_names(context, "test", ("*",))[0], rows
        )


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.full((9, 2), 3.0), "constant"),
        (np.array([[1.0, np.nan]] * 9), "9 of 9 samples are not finite"),
        (np.zeros((2, 2)), "at least 3 samples"),
        (np.zeros((9, 0)), "no features"),
        (np.arange(18.0).reshape(9, 2), ""),
    ],
)
def test_features_that_say_nothing_are_named(values, reason):
    found = degenerate(values)
    assert reason in found
    assert bool(found) == bool(reason)


@pytest.mark.parametrize(
    ("classes", "reason"),
    [
        (None, "no classes"),
        (np.zeros(9, int), "one class only"),
        (np.array([0, 0, 1]), "class 1 has 1"),
        (np.array([0, 0, 1, 1]), ""),
    ],
)
def test_classes_that_cannot_be_set_apart_are_named(classes, reason):
    found = without_enough_classes(classes)
    assert reason in found
    assert bool(found) == bool(reason)
