"""Numbers of kernels against closed forms."""

from __future__ import annotations

import numpy as np
import pytest

from stratascope.tasks.vision.filter_statistics import (
    chance_of_duplicates,
    cosines_between,
    dead_filters,
    duplicate_filters,
    filter_norms,
    high_frequency_shares,
    white_share,
)


def test_norms_dead_and_doubled_filters():
    generator = np.random.default_rng(0)
    filters = generator.normal(size=(5, 3, 3, 3)).astype(np.float32)
    filters[1] = 2 * filters[0]
    filters[2] = -filters[0]
    filters[3] *= 1e-4
    np.testing.assert_allclose(filter_norms(filters)[0], np.sqrt((filters[0].astype(float) ** 2).sum()))
    np.testing.assert_array_equal(duplicate_filters(filters), [True, True, False, False, False])
    np.testing.assert_array_equal(dead_filters(filters), [False, False, False, True, False])
    assert not duplicate_filters(np.zeros((3, 1, 3, 3))).any()
    assert dead_filters(np.zeros((3, 1, 3, 3))).all()


@pytest.mark.parametrize("size", [2, 3, 9])
def test_chance_of_doubles_is_what_random_directions_give(size):
    generator = np.random.default_rng(1)
    found = [duplicate_filters(generator.normal(size=(40, 1, 1, size))).mean() for _ in range(200)]
    assert np.mean(found) == pytest.approx(
        chance_of_duplicates(40, size), abs=4 * np.std(found) / np.sqrt(200) + 1e-3
    )


def test_roughness_of_a_constant_a_checkerboard_and_noise():
    flat, board = np.ones((1, 2, 7, 7)), (np.indices((7, 7)).sum(0) % 2 * 2.0 - 1)[None, None]
    assert high_frequency_shares(flat)[0] < 0.1
    assert high_frequency_shares(board)[0] > 0.9
    noise = np.random.default_rng(0).normal(size=(3000, 1, 3, 5))
    assert np.mean(high_frequency_shares(noise)) == pytest.approx(white_share((3, 5)), abs=0.02)
    np.testing.assert_allclose(high_frequency_shares(noise[:9]), high_frequency_shares(-3 * noise[:9, :, ::-1]))
    assert np.isnan(high_frequency_shares(np.zeros((1, 1, 3, 3)))[0])


def test_the_share_adds_up_by_parseval():
    """A single pixel has an even spectrum: its share is the share of frequencies."""
    one = np.zeros((1, 1, 3, 3))
    one[0, 0, 1, 2] = 5
    assert high_frequency_shares(one)[0] == pytest.approx(white_share((3, 3)))
    assert white_share() == pytest.approx(1 - np.pi / 16, abs=0.02)


def test_cosines_are_blind_to_scale_and_see_turns():
    before = np.random.default_rng(0).normal(size=(3, 2, 3, 3))
    after = before * np.array([2.0, -1.0, 0.0])[:, None, None, None]
    np.testing.assert_allclose(cosines_between(before, after)[:2], [1, -1])
    assert np.isnan(cosines_between(before, after)[2])
