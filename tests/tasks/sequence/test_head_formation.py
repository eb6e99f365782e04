"""When a score has passed half way for good; long matrices in blocks."""

import numpy as np
import pytest

from stratascope.tasks.sequence.head_formation import formation_of, shortened_matrix


def test_a_jump_is_found_at_the_first_checkpoint_behind_it():
    found = formation_of(np.array([0.1, 0.1, 0.12, 0.9, 0.92, 0.95]))
    assert found.place == 3
    assert (found.start, found.end) == (0.1, 0.95)


def test_a_head_that_falls_back_has_formed_when_it_came_back():
    assert formation_of(np.array([0.0, 0.8, 0.1, 0.7, 0.8])).place == 3


def test_the_final_level_is_the_median_of_the_last_tenth():
    curve = np.concatenate([np.zeros(15), np.full(14, 0.8), [0.2]])
    found = formation_of(curve)
    assert found.end == pytest.approx(0.8)
    # The last value lies below the middle: nothing stays beyond it, so the last checkpoint is named.
    assert found.place == 29


@pytest.mark.parametrize("shift", [0.0, 0.3])
@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_shift_and_scale_change_no_place(shift, factor):
    curve = np.array([0.05, 0.1, 0.3, 0.55, 0.5, 0.9])
    assert formation_of(curve * factor + shift).place == formation_of(curve).place == 3


def test_a_score_that_falls_has_no_gain():
    found = formation_of(np.array([0.9, 0.5, 0.2]))
    assert found.gain < 0
    assert found.place == 0


def test_blocks_keep_what_rows_sum_to():
    generator = np.random.default_rng(0)
    weights = generator.dirichlet(np.ones(50), size=(3, 40))
    found = shortened_matrix(weights, 16)
    assert found.shape == (3, 14, 13)
    np.testing.assert_allclose(found.sum(-1), 1)
    np.testing.assert_allclose(found[0, 1, 2], weights[0, 3:6, 8:12].sum(-1).mean())
    np.testing.assert_array_equal(shortened_matrix(weights, 64), weights)
