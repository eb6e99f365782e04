"""Folds: stratified, dealt by the samples' order, with copies on one side and rare classes left out."""

from __future__ import annotations

import numpy as np
import pytest

from stratascope.storage.probes import Probe
from stratascope.tasks.representation.features import chosen_rows
from stratascope.tasks.representation.probe_folds import copies_of, plain_folds, stratified_folds


def probe(inputs, targets, identities) -> Probe:
    return Probe("test", "test", inputs, targets, identities, (), "digest")


def test_every_fold_has_its_share_of_each_class():
    classes = np.random.default_rng(0).choice(4, size=203, p=(0.5, 0.3, 0.15, 0.05))
    found = stratified_folds(classes, np.arange(203), 5)
    assert found.copies == found.left_out == 0
    assert len(found.kept) == 203
    for value in range(4):
        sizes = np.bincount(found.fold[classes == value], minlength=5)
        assert np.ptp(sizes) <= 1, value
    assert np.ptp(np.bincount(found.fold)) <= 4


@pytest.mark.parametrize("with_copies", [False, True])
def test_folds_follow_the_ids_and_not_the_places(with_copies):
    generator = np.random.default_rng(1)
    targets = generator.integers(0, 3, 60)
    inputs = generator.normal(size=(60, 4))
    if with_copies:
        inputs[40:] = inputs[:20]
    identities = np.array([f"s{number}" for number in range(60)])
    order = generator.permutation(60)
    found = []
    for chosen in (np.arange(60), order):
        shown = probe(inputs[chosen], targets[chosen], identities[chosen])
        rows = chosen_rows(shown, 50, 0)
        folds = stratified_folds(shown.targets[rows], copies_of(shown, rows), 4)
        found.append(dict(zip(shown.sample_id[rows][folds.kept].tolist(), folds.fold.tolist(), strict=True)))
    assert found[0] == found[1]
    assert len(found[0]) == 50


def test_copies_are_counted_and_never_on_both_sides():
    inputs = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    inputs[20:] = inputs[:10]
    shown = probe(inputs, np.tile([0, 1], 15), np.arange(30))
    copies = copies_of(shown, np.arange(30))
    assert copies.tolist() == [*range(20), *range(10)]
    for folds in (stratified_folds(shown.targets, copies, 3), plain_folds(copies, 3)):
        assert folds.copies == 10
        assert "copies kept in one fold=10" in folds.about
        np.testing.assert_array_equal(folds.fold[20:], folds.fold[:10])
        assert np.ptp(np.bincount(folds.fold)) <= 2


def test_copies_in_mappings_are_seen_in_all_their_parts():
    one, other = np.array([[1, 2], [1, 2], [1, 2]]), np.array([[0.5], [0.5], [0.7]])
    shown = probe({"ids": one, "more": {"x": other}}, np.arange(3), np.arange(3))
    assert copies_of(shown, np.array([2, 1, 0])).tolist() == [0, 1, 1]


def test_a_class_with_too_few_different_samples_is_left_out():
    classes = np.array([0] * 10 + [1] * 10 + [2] * 4 + [3] * 9)
    copies = np.arange(33)
    copies[24:] = 24  # nine samples of class 3, all alike
    found = stratified_folds(classes, copies, 5)
    assert found.left_out == 2
    assert set(classes[found.kept]) == {0, 1}
    assert "left_out=2" in found.about
