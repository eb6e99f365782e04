"""How far a layer's features have moved between two checkpoints, whatever rotation or shift they went through.

Two distances of the same samples' features at two checkpoints, each with what every sample contributes to it. The
contributions give intervals and a noise floor for hundreds of checkpoints in the time of the distances themselves, and
without drawing a sample twice, which would break what the debiased estimator is for.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

LEAST_SAMPLES = 10
"""With fewer, the debiased estimator is mostly noise."""


class Centred:
    """Features (sample, component) about their mean, with what every distance from them needs, found once."""

    def __init__(self, scores: np.ndarray) -> None:
        values = np.asarray(scores, np.float64)
        self.values = values - values.mean(0)
        self.squared = (self.values**2).sum(1)
        """(sample,): squared distances from the mean."""
        self.size = float(self.squared.sum())

    def __len__(self) -> int:
        return len(self.values)

    @cached_property
    def own_dependence(self) -> Dependence:
        return dependence(self, self, self.values.T @ self.values)


@dataclass(frozen=True)
class Dependence:
    """The debiased Hilbert–Schmidt criterion of two sets of features, and how much of it each sample carries."""

    value: float
    share: np.ndarray
    """float64 (sample,): the mean of the U-statistic's kernel over the quadruples with that sample; their mean is `value`."""


def dependence(first: Centred, second: Centred, cross: np.ndarray) -> Dependence:
    """HSIC with linear kernels, without the bias of finite samples (Song et al. 2012), `cross` being XᵀY.

    Each sample's share comes from the exact value without that sample: with U over all n and U₍₋ᵢ₎ over the others,
    n U = (n - 4) U₍₋ᵢ₎ + 4 shareᵢ. The features are centred, so that K 1 = 0 and no Gram matrix is formed.
    """
    n = len(first)
    k, m = first.squared, second.squared
    both = k * m
    pairs = ((first.values @ cross) * second.values).sum(1) - both
    crossed = first.values @ (first.values.T @ m) + second.values @ (second.values.T @ k) - 2 * both
    trace, left, right, corner = pairs.sum(), k.sum(), m.sum(), both.sum()

    def criterion(count: int, trace: Any, product: Any, corner: Any) -> Any:
        return (trace + product / ((count - 1) * (count - 2)) - 2 * corner / (count - 2)) / (count * (count - 3))

    value = float(criterion(n, trace, left * right, corner))
    without = criterion(
        n - 1, trace - 2 * pairs, (left - 2 * k) * (right - 2 * m), corner - both + crossed + pairs
    )
    return Dependence(value, (n * value - (n - 4) * without) / 4)


@dataclass(frozen=True)
class Distance:
    """How far one layer moved by one measure, and the same under other weights of the samples."""

    value: float
    rounds: np.ndarray
    """float64 (round,): under each round of bootstrap weights."""
    halves: np.ndarray
    """float64 (split,): half of the difference between two halves of the samples."""


@dataclass(frozen=True)
class Weights:
    """Weights of the samples by round, alike for all layers and checkpoints, so that rounds can be compared."""

    bootstrap: np.ndarray
    """float64 (round, sample), each round sums to 1."""
    halves: np.ndarray
    """float64 (split, sample): 2/n in the one half, -2/n in the other."""

    @classmethod
    def of(cls, samples: int, rounds: int, seed: int) -> Weights:
        """Seeded weights for `samples` samples."""
        from stratascope.tasks.representation.resampling import bootstrap_counts, permutations

        halves = np.empty((rounds, samples))
        for place, order in enumerate(permutations(samples, rounds, seed)):
            halves[place, order] = np.where(np.arange(samples) < samples // 2, 2.0, -2.0) / samples
        return cls(bootstrap_counts(samples, rounds, seed) / samples, halves)


def cka_distance(first: Centred, second: Centred, cross: np.ndarray, weights: Weights) -> Distance:
    """1 − debiased linear CKA (Kornblith et al. 2019 with the estimator of Song et al. 2012), `cross` being XᵀY.

    0 for features that are equal up to rotation, scale and shift; about 1 for unrelated ones, sometimes a little more.
    Rounds reweight the first-order parts of the three U-statistics (Hušková and Janssen 1993). NaN where a set of
    features depends on nothing, not even on itself.
    """
    parts = (dependence(first, second, cross), first.own_dependence, second.own_dependence)
    values = np.array([part.value for part in parts])
    shares = np.stack([part.share - part.value for part in parts], axis=1)
    moved = 4.0 * (weights.bootstrap @ shares)
    apart = 2.0 * (weights.halves @ shares)

    def distance(found: np.ndarray) -> np.ndarray:
        across, own, other = found[..., 0], found[..., 1], found[..., 2]
        sound = (own > 0) & (other > 0)
        alike = across / np.sqrt(np.where(sound, own * other, 1.0))
        return np.where(sound, np.maximum(0.0, 1.0 - alike), np.nan)

    halves = np.abs(distance(values + apart) - distance(values - apart)) / 2
    return Distance(float(distance(values)), distance(values + moved), halves)


def procrustes_distance(first: Centred, second: Centred, cross: np.ndarray, weights: Weights) -> Distance:
    """√(2 − 2 ‖XᵀY‖₊ / (‖X‖ ‖Y‖)): what the best rotation leaves, both scaled to size 1; `cross` is XᵀY.

    In [0, √2]; it is the root of the distance of Ding, Denain and Steinhardt (2021) of features so scaled
    (Williams et al. 2021). Each sample contributes xᵢᵀ R yᵢ under the best rotation R, which to first order does not
    turn when weights change.
    """
    from scipy.linalg import eigh

    x, y = (first.values, second.values) if cross.shape[0] >= cross.shape[1] else (second.values, first.values)
    tall = cross if cross.shape[0] >= cross.shape[1] else cross.T
    squares, axes = eigh(tall.T @ tall)
    sizes = np.sqrt(np.clip(squares, 0, None))
    # A direction in which nothing is shared has no best rotation, and nothing hangs on it.
    inverse = np.where(sizes > 1e-7 * sizes.max(initial=0.0), 1.0 / np.maximum(sizes, 1e-300), 0.0)
    rotated = x @ ((tall @ axes) * inverse @ axes.T)
    shares = np.stack([(rotated * y).sum(1), first.squared, second.squared], axis=1) * len(first)

    def distance(found: np.ndarray) -> np.ndarray:
        across, own, other = found[..., 0], found[..., 1], found[..., 2]
        return np.sqrt(np.clip(2.0 - 2.0 * across / np.sqrt(own * other), 0.0, 2.0))

    values = shares.mean(0)
    apart = weights.halves @ shares / 2
    halves = np.abs(distance(values + apart) - distance(values - apart)) / 2
    return Distance(float(distance(values)), distance(weights.bootstrap @ shares), halves)


MEASURES = {"cka": cka_distance, "procrustes": procrustes_distance}


def distances(first: Centred, second: Centred, measures: tuple[str, ...], weights: Weights) -> dict[str, Distance]:
    """Each of `measures` between the same samples' features at two checkpoints."""
    cross = first.values.T @ second.values
    return {name: MEASURES[name](first, second, cross, weights) for name in measures}


def doublings(earlier: int, later: int) -> float:
    """How many times the training's length doubled from step `earlier` to `later`, both counted from 1."""
    return float(np.log2((later + 1) / (earlier + 1)))


def ranks(moved: np.ndarray) -> np.ndarray:
    """int64 of the shape of `moved` (layer, …): 1 for the layer that moved most; the earlier layer first where equal."""
    order = np.argsort(-moved, axis=0, kind="stable")
    found = np.empty_like(order)
    place = np.arange(1, len(moved) + 1).reshape(-1, *[1] * (moved.ndim - 1))
    np.put_along_axis(found, order, np.broadcast_to(place, order.shape), 0)
    return found
