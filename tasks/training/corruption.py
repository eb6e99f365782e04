"""Spoiling data on purpose: random labels, shuffled, random and normal pixels (Zhang et al. 2017, section 2).

What happens to a sample follows from the seed and the sample's id alone. So it is the same in every epoch, in every
batch order and in every subset, and a sample whose label is random at a share of 0.2 has the same random label at 0.5.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from stratascope.errors import ConfigurationError
from stratascope.tasks.training.seeds import sample_stream, stream

Pixels = Literal["none", "shuffled", "random", "gaussian"]
_LABELS, _TRAIN_PIXELS, _TEST_PIXELS = 0, 1, 2


def corrupt_labels(
    targets: np.ndarray, sample_id: np.ndarray, share: float, classes: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels (sample,) of which each is drawn again, with probability `share`, from all `classes`; and where (bool).

    A drawn label may be the right one: the wrong share is about share · (1 − 1 / classes).
    Raises ConfigurationError for targets that are not one class for each sample.
    """
    if not share:
        return targets, np.zeros(len(targets), bool)
    if targets.ndim != 1 or targets.dtype.kind not in "iu":
        raise ConfigurationError(
            f"`corruption: {{labels: …}}` needs one class for each sample; the targets are {targets.dtype} of shape "
            f"{targets.shape}."
        )
    spoilt, drawn = targets.copy(), np.zeros(len(targets), bool)
    for row, identity in enumerate(sample_id.tolist()):
        generator = sample_stream(seed, "corruption", _LABELS, identity)
        drawn[row] = generator.random() < share
        if drawn[row]:
            spoilt[row] = generator.integers(classes)
    return spoilt, drawn


def corrupt_images(
    images: np.ndarray, sample_id: np.ndarray, kind: Pixels, seed: int, spread: tuple[float, float], testing: bool
) -> np.ndarray:
    """A copy of images (sample, channel, y, x) with their pixels spoilt as `kind` says.

    `shuffled` moves the pixels of all images, training and test, by one permutation, `random` by one for each image
    (all channels alike), and `gaussian` puts normal noise of `spread` (mean, standard deviation) in their place.
    Raises ConfigurationError for inputs that are no images.
    """
    if kind == "none":
        return images
    if images.ndim != 4:
        raise ConfigurationError(
            f"`corruption: {{pixels: {kind}}}` needs images (sample, channel, y, x); the inputs have the shape "
            f"{images.shape}."
        )
    flat = images.reshape(*images.shape[:2], -1)
    if kind == "shuffled":
        return flat[:, :, stream(seed, "corruption").permutation(flat.shape[2])].reshape(images.shape)
    spoilt = np.empty_like(flat)
    for row, identity in enumerate(sample_id.tolist()):
        generator = sample_stream(seed, "corruption", _TEST_PIXELS if testing else _TRAIN_PIXELS, identity)
        if kind == "random":
            spoilt[row] = flat[row][:, generator.permutation(flat.shape[2])]
        else:
            spoilt[row] = generator.normal(*spread, flat.shape[1:])
    return spoilt.reshape(images.shape)
