"""Spoiling and augmenting training data, with seeds for all of it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stratascope.tasks.training.config import AugmentationSpec, CorruptionSpec


def corrupt_labels(targets: np.ndarray, share: float, classes: int, seed: int) -> np.ndarray:
    """A copy of `targets` (sample,) in which each is replaced, with probability `share`, by a random class.

    Zhang et al. 2017, section 2.1. The draw of a sample depends on its place and the seed alone.
    """
    generator = np.random.default_rng([seed, 1])
    replaced = generator.random(len(targets)) < share
    return np.where(replaced, generator.integers(0, classes, len(targets)), targets)


def corrupt_inputs(inputs: np.ndarray, kind: str, seed: int) -> np.ndarray:
    """A copy of images (sample, channel, y, x): `shuffled` by one permutation of the pixels, `random` by one for
    each image, or `gaussian` noise with the mean and spread of the data instead."""
    if kind == "none":
        return inputs
    generator = np.random.default_rng([seed, 2])
    flat = inputs.reshape(len(inputs), inputs.shape[1], -1)
    if kind == "gaussian":
        noise = generator.normal(inputs.mean(), inputs.std(), inputs.shape)
        return noise.astype(inputs.dtype)
    if kind == "shuffled":
        return flat[:, :, generator.permutation(flat.shape[2])].reshape(inputs.shape)
    orders = generator.permuted(np.tile(np.arange(flat.shape[2]), (len(inputs), 1)), axis=1)
    return np.take_along_axis(flat, orders[:, None, :], axis=2).reshape(inputs.shape)


def corrupted(
    inputs: np.ndarray, targets: np.ndarray, spec: CorruptionSpec, classes: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets as `spec` spoils them."""
    if spec.labels:
        targets = corrupt_labels(targets, spec.labels, classes, seed)
    return corrupt_inputs(inputs, spec.pixels, seed), targets


def augment(images: Tensor, spec: AugmentationSpec, generator: torch.Generator) -> Tensor:
    """Random crops and horizontal flips of a batch (sample, channel, y, x), drawn from `generator`."""
    count, _, height, width = images.shape
    if spec.crop:
        padded = torch.nn.functional.pad(images, (spec.crop,) * 4)
        top, left = torch.randint(0, 2 * spec.crop + 1, (2, count), generator=generator)
        rows = (top[:, None] + torch.arange(height))[:, None, :, None]
        columns = (left[:, None] + torch.arange(width))[:, None, None, :]
        samples = torch.arange(count)[:, None, None, None]
        channels = torch.arange(images.shape[1])[None, :, None, None]
        images = padded[samples, channels, rows, columns]
    if spec.flip:
        flipped = torch.rand(count, generator=generator) < 0.5
        images = torch.where(flipped[:, None, None, None], images.flip(3), images)
    return images
