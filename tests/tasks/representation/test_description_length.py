"""The online code: no shorter than what the labels carry, a code at all, and finite where a class comes as a surprise."""

from __future__ import annotations

import numpy as np
import pytest

from stratascope.tasks.representation.description_length import block_ends, online_code
from stratascope.tasks.representation.probe_classifiers import prepared
from tests.tasks.representation.blobs import blobs


def shuffled_blobs(distance: float):
    values, places = blobs(4, 60, 12, distance)
    order = np.random.default_rng(0).permutation(240)
    return prepared(values[order]), places[order]


def test_random_labels_cost_what_the_uniform_code_asks_and_parted_classes_a_fraction():
    features, places = shuffled_blobs(8.0)
    noise = np.random.default_rng(1).integers(0, 4, 240)
    learned, random = online_code(features, places, 1.0), online_code(features, noise, 1e-4)
    assert learned.uniform_length == random.uniform_length == 2.0
    assert learned.length < 0.25
    assert random.length == pytest.approx(2.0, abs=0.05)


def test_the_nearer_the_classes_the_longer_the_code():
    lengths = [online_code(*shuffled_blobs(distance), 1.0).length for distance in (0.3, 1.0, 3.0)]
    assert lengths[0] > lengths[1] > lengths[2]


def test_one_block_is_the_uniform_code_and_choices_cost_their_bits():
    features, places = shuffled_blobs(8.0)
    plain = online_code(features, places, 1.0, fractions=(1.0,))
    assert plain.length == 2.0
    told = online_code(features, places, 1.0, 8, (1.0,))
    assert told.length == pytest.approx(2.0 + 3 / 240)


def test_it_is_a_code_the_probabilities_of_what_could_come_next_add_up_to_one():
    features, places = shuffled_blobs(1.0)
    chances = []
    for label in range(4):
        changed = np.append(places[:40], label)
        chances.append(2.0 ** -online_code(features[:41], changed, 0.1, fractions=(40 / 41, 1.0)).bits[-1])
    assert sum(chances) == pytest.approx(1.0)


def test_a_class_that_comes_late_costs_a_known_and_finite_price():
    features, places = shuffled_blobs(8.0)
    order = np.argsort(places == 3, kind="stable")  # class 3 at the very end
    found = online_code(features[order], places[order], 1.0, fractions=(0.5, 1.0))
    assert found.bits[-1] == pytest.approx(np.log2(4 * 121))
    assert np.isfinite(found.bits).all()


def test_blocks_end_with_the_samples_and_grow():
    assert block_ends(2000, (0.016, 0.5, 1.0)) == [32, 1000, 2000]
    assert block_ends(10, (0.001, 0.01, 0.5)) == [1, 5, 10]
