"""Random changes of training images."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stratascope.tasks.training.config import AugmentationSpec


def augment(images: Tensor, spec: AugmentationSpec, generator: np.random.Generator) -> Tensor:
    """Random crops, horizontal flips and cut-out squares of a batch (sample, channel, y, x); the shape stays."""
    count, _, height, width = images.shape
    if spec.crop:
        images = _cropped(images, spec.crop, generator)
    if spec.flip:
        flipped = torch.from_numpy(generator.random(count) < 0.5)
        images = torch.where(flipped[:, None, None, None], images.flip(3), images)
    if spec.cutout:
        rows = _inside(generator.integers(0, height, count), height, spec.cutout)
        columns = _inside(generator.integers(0, width, count), width, spec.cutout)
        images = images.masked_fill((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)
    return images


def _cropped(images: Tensor, margin: int, generator: np.random.Generator) -> Tensor:
    """Each image moved by up to `margin` pixels in both directions; zeros come in at the border."""
    count, channels, height, width = images.shape
    padded = torch.nn.functional.pad(images, (margin,) * 4)
    top, left = torch.from_numpy(generator.integers(0, 2 * margin + 1, (2, count)))
    rows = (top[:, None] + torch.arange(height))[:, None, :, None]
    columns = (left[:, None] + torch.arange(width))[:, None, None, :]
    return padded[torch.arange(count)[:, None, None, None], torch.arange(channels)[:, None, None], rows, columns]


def _inside(centers: np.ndarray, length: int, side: int) -> Tensor:
    """Which of `length` places lie in the stretch of `side` places around each centre: bool (sample, place)."""
    start = torch.from_numpy(centers)[:, None] - side // 2
    places = torch.arange(length)
    return (places >= start) & (places < start + side)
