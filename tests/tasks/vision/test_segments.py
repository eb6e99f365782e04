"""Superpixels follow the picture, cover it, and need no chance."""

from __future__ import annotations

import numpy as np
import pytest

from stratascope.tasks.vision.segments import superpixels


def test_a_picture_of_one_colour_is_cut_into_a_grid():
    found = superpixels(np.full((3, 8, 12), 0.4, np.float32), 6)
    wanted = np.arange(8)[:, None] // 4 * 3 + np.arange(12) // 4
    assert (found == wanted).all()


def test_pieces_follow_an_edge():
    """The border of two colours lies beside the grid's: hardly any piece has pixels on both sides."""
    picture = np.zeros((1, 24, 24), np.float32)
    picture[:, :, 14:] = 5
    found = superpixels(picture, 16)
    both = [len(np.unique(picture[0][found == number])) for number in range(found.max() + 1)]
    assert np.mean(np.array(both) == 1) > 0.8
    grid = np.arange(24)[:, None] // 6 * 4 + np.arange(24) // 6
    assert sum(len(np.unique(picture[0][grid == number])) == 2 for number in range(16)) == 4


@pytest.mark.parametrize(
    ("channels", "height", "width", "count"), [(1, 5, 40, 12), (4, 31, 7, 20), (2, 3, 3, 100), (3, 6, 6, 1)]
)
def test_every_place_has_a_piece_and_numbers_have_no_gaps(channels, height, width, count):
    picture = np.random.default_rng(0).normal(size=(channels, height, width)).astype(np.float32)
    found = superpixels(picture, count)
    assert found.shape == (height, width)
    assert (np.unique(found) == np.arange(found.max() + 1)).all()
    assert found.max() + 1 <= height * width
    assert (found == superpixels(picture.copy(), count)).all()
