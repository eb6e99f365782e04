"""Augmentation: crops are shifts, flips are mirror images, cut-out squares have their size."""

import numpy as np
import torch

from stratascope.tasks.training.augmentation import augment
from stratascope.tasks.training.config import AugmentationSpec

IMAGES = torch.arange(1.0, 1 + 300 * 2 * 7 * 9).reshape(300, 2, 7, 9)


def changed(seed=0, **spec):
    return augment(IMAGES, AugmentationSpec(**spec), np.random.default_rng(seed))


def test_a_crop_is_one_of_all_shifts_with_zeros_coming_in():
    cropped = changed(crop=2)
    shifts = {}
    for row in range(5):
        for column in range(5):
            shifted = torch.zeros_like(IMAGES)
            for y in range(7):
                for x in range(9):
                    if 0 <= y + row - 2 < 7 and 0 <= x + column - 2 < 9:
                        shifted[:, :, y, x] = IMAGES[:, :, y + row - 2, x + column - 2]
            shifts[row, column] = (shifted == cropped).flatten(1).all(1)
    assert torch.equal(torch.stack(list(shifts.values())).sum(0), torch.ones(300, dtype=torch.int64))
    assert all(bool(found.any()) for found in shifts.values())


def test_about_half_of_the_images_are_flipped_and_the_others_left():
    flipped = changed(flip=True)
    mirrored = (flipped == IMAGES.flip(3)).flatten(1).all(1)
    assert torch.equal(flipped[~mirrored], IMAGES[~mirrored])
    assert abs(float(mirrored.float().mean()) - 0.5) < 4 * 0.5 / 300**0.5


def test_a_cut_out_is_a_square_of_zeros_that_is_cut_off_at_the_border():
    cut = changed(cutout=3)
    gone = cut == 0
    assert torch.equal(gone[:, 0], gone[:, 1])
    assert torch.equal(cut[~gone], IMAGES[~gone])
    heights, widths = gone[:, 0].any(2).sum(1), gone[:, 0].any(1).sum(1)
    assert torch.equal(gone[:, 0].sum((1, 2)), heights * widths)
    assert set(heights.tolist()) == set(widths.tolist()) == {2, 3}


def test_the_draw_follows_from_the_generator_alone():
    spec = {"crop": 1, "flip": True, "cutout": 2}
    assert torch.equal(changed(1, **spec), changed(1, **spec))
    assert not torch.equal(changed(1, **spec), changed(2, **spec))
    assert changed(1, **spec).shape == IMAGES.shape
