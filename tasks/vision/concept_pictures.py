"""Concepts that need no data: patterns drawn from a seed, in the size of the probe's pictures, laid over its samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import numpy as np

from stratascope.tasks.vision.chosen_samples import sample_generator

Synthetic = Literal[
    "horizontal_stripes", "vertical_stripes", "diagonal_stripes", "dots", "checks", "plain", "noise"
]
SYNTHETIC: tuple[Synthetic, ...] = get_args(Synthetic)


def pattern(name: Synthetic, number: int, shape: tuple[int, int, int], seed: int) -> np.ndarray:
    """float32 (channel, y, x) from 0 to 1: the `number`th picture of a concept; its period, phase and colour are drawn.

    Periods lie between an eighth and a third of the shorter side, at least 2 pixels. Depends on the arguments alone.
    """
    generator = sample_generator(f"{name} {number}", seed, "concept")
    channels, height, width = shape
    if name == "noise":
        return generator.random(shape, np.float32)
    if name == "plain":
        return np.broadcast_to(generator.random((channels, 1, 1), np.float32), shape).copy()
    y, x = np.meshgrid(np.arange(height, dtype=np.float64), np.arange(width, dtype=np.float64), indexing="ij")
    period = max(2.0, min(height, width) * generator.uniform(1 / 8, 1 / 3))
    phases = generator.uniform(0, period, 2)
    grey = _SHAPES[name](y + phases[0], x + phases[1], period, float(generator.integers(0, 2) * 2 - 1))
    return np.broadcast_to(grey.astype(np.float32), shape).copy()


def _wave(place: np.ndarray, period: float) -> np.ndarray:
    """1 in the first half of each period, 0 in the second."""
    return (place % period < period / 2).astype(np.float64)


def _dots(y: np.ndarray, x: np.ndarray, period: float, _: float) -> np.ndarray:
    return (((y % period - period / 2) ** 2 + (x % period - period / 2) ** 2) < (0.3 * period) ** 2).astype(float)


_SHAPES: dict[str, Callable[[np.ndarray, np.ndarray, float, float], np.ndarray]] = {
    "horizontal_stripes": lambda y, x, period, sign: _wave(y, period),
    "vertical_stripes": lambda y, x, period, sign: _wave(x, period),
    "diagonal_stripes": lambda y, x, period, sign: _wave((y + sign * x) / np.sqrt(2), period),
    "dots": _dots,
    "checks": lambda y, x, period, sign: np.abs(_wave(y, period) - _wave(x, period)),
}


def laid_over(pictures: np.ndarray, name: Synthetic, strength: float, seed: int) -> np.ndarray:
    """float32 (sample, channel, y, x): each of `pictures` with a pattern of its own mixed in, as dark and bright as they are.

    `strength` 0 leaves the pictures, 1 leaves the pattern alone. Patterns run between the 1st and the 99th percentile of each
    channel over all `pictures`, so their normalisation does not matter.
    """
    low, high = np.quantile(pictures, (0.01, 0.99), axis=(0, 2, 3), keepdims=True)
    shape = (pictures.shape[1], pictures.shape[2], pictures.shape[3])
    drawn = np.stack([pattern(name, number, shape, seed) for number in range(len(pictures))])
    return ((1 - strength) * pictures + strength * (low + (high - low) * drawn)).astype(np.float32)
