"""Made-up samples that several tests map and judge."""

from __future__ import annotations

import numpy as np


def blobs(classes: int = 4, each: int = 30, width: int = 20, distance: float = 8.0, seed: int = 0):
    """Features (sample, feature) around as many centres as there are classes, and each sample's class."""
    generator = np.random.default_rng(seed)
    targets = np.repeat(np.arange(classes), each)
    return generator.normal(size=(classes, width))[targets] * distance + generator.normal(
        size=(len(targets), width)
    ), targets
