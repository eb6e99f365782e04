"""Zero is drawn as zero, one scale means one thing, and what is not finite is seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stratascope.tasks.vision.map_drawing import (
    NO_NUMBER,
    ColourScale,
    moving_picture_grid,
    overlaid,
    picture_grid,
    resized,
    scale_bound,
    signed_colours,
    size_colours,
)


def test_p20_p21_a_map_of_zeros_is_drawn_as_zero():
    zeros = np.zeros((4, 5))
    assert scale_bound(zeros) == 0
    assert len(np.unique(signed_colours(zeros, 0.0).reshape(-1, 3), axis=0)) == 1
    assert len(np.unique(size_colours(zeros, 0.0).reshape(-1, 3), axis=0)) == 1
    picture = np.arange(20, dtype=np.uint8).reshape(4, 5)
    np.testing.assert_array_equal(overlaid(picture, zeros, 0.0), np.repeat(picture[..., None], 3, 2))


def test_signs_have_opposite_colours_and_one_scale():
    values = np.array([[-2.0, 0.0, 2.0]])
    low, middle, high = signed_colours(values, 2.0)[0].astype(int)
    assert low[2] > low[0]
    assert high[0] > high[2]
    assert middle.min() > 240
    np.testing.assert_array_equal(signed_colours(values / 2, 2.0)[0, 1], middle)
    assert signed_colours(values / 2, 2.0)[0, 2].astype(int)[2] > high[2]


def test_what_is_not_finite_is_marked():
    values = np.array([[np.nan, 1.0], [np.inf, -1.0]])
    np.testing.assert_array_equal(signed_colours(values, 1.0)[:, 0], np.stack([NO_NUMBER] * 2))
    assert scale_bound(values) == 1.0


@pytest.mark.parametrize("shape", [(7, 11), (3, 4), (16, 8)])
def test_p27_resizing_keeps_height_and_width_apart(shape):
    values = np.random.default_rng(0).normal(size=(3, 4))
    expected = torch.nn.functional.interpolate(torch.from_numpy(values)[None, None], shape, mode="bilinear", align_corners=False)  # fmt: skip
    np.testing.assert_allclose(resized(values, shape), expected[0, 0].numpy(), atol=1e-12)


def test_a_grid_holds_every_picture_and_name():
    pictures = [[np.full((6, 8), 10 * row + column, np.uint8) for column in range(3)] for row in range(2)]
    pictures[1][2] = None
    svg = picture_grid(pictures, ["first", "second"], ["a", "b", "c"], scale=ColourScale("gradient", 2.5, True))
    assert svg.count("<image") == 6
    for word in ("first", "second", ">a<", ">b<", ">c<", "gradient", "2.5"):
        assert word in svg
    frames = moving_picture_grid([0, 5], [pictures, [[None if item is None else 255 - item for item in line] for line in pictures]], ["first", "second"], ["a", "b", "c"])  # fmt: skip
    assert [step for step, _ in frames] == [0, 5]
    assert frames[0][1] != frames[1][1]
    assert frames[0][1].count("<image") == 5
