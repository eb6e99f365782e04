"""Directions of concepts in a layer, and whether outputs follow them more than they follow random directions (TCAV).

Kim et al. 2018. A concept's direction is the normal of a linear classifier between its samples and random ones. All is done
with inner products of the samples' activations, so layers of any width cost the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LayerProducts:
    """What is known of one layer: inner products of activations, and of gradients with activations."""

    gram: np.ndarray
    """float64 (sample, other sample): inner products of activations."""
    along: np.ndarray
    """float64 (explained sample, sample): inner products of the outputs' gradients with activations."""
    gradient_norms: np.ndarray
    """float64 (explained sample,)."""


@dataclass(frozen=True)
class Direction:
    """The normal of a classifier, as a weighed sum of samples."""

    rows: np.ndarray
    """int64 (sample,): the samples it was fitted on."""
    weights: np.ndarray
    """float64 (sample,): what each counts; they sum to 0."""
    middle: float
    """Inner product of the normal with the mean of those samples: scores above it are on the concept's side."""
    length: float
    """Norm of the normal."""


def fitted(gram: np.ndarray, concept: np.ndarray, random: np.ndarray, penalty: float) -> Direction:
    """The ridge classifier between two sets of samples (rows of `gram`), pointing to the concept.

    Equals scikit-learn's `RidgeClassifier` on the activations with `alpha` = `penalty` times their total variance, and its
    `KernelRidge` on the centred products, at an eighth of the time: there are thousands to fit. No random numbers are in it.
    """
    from scipy.linalg import solve

    rows = np.concatenate([concept, random])
    kernel = gram[np.ix_(rows, rows)]
    means = kernel.mean(0)
    centred = kernel - means[:, None] - means[None] + means.mean()
    answers = np.concatenate([np.ones(len(concept)), -np.ones(len(random))])
    scale = float(np.trace(centred)) / len(rows)
    if scale <= 1e-12 * max(float(np.trace(kernel)) / len(rows), 1e-300):
        return Direction(rows, np.zeros(len(rows)), 0.0, 0.0)
    centred[np.diag_indices_from(centred)] += penalty * scale
    weights = solve(centred, answers - answers.mean(), assume_a="pos")
    weights = weights - weights.mean()
    return Direction(rows, weights, float(weights @ means), math.sqrt(max(0.0, float(weights @ kernel @ weights))))


def accuracy(gram: np.ndarray, direction: Direction, concept: np.ndarray, random: np.ndarray) -> float:
    """Share of held-out samples on their own side, both sets weighing alike; 0.5 where there is no direction."""
    if direction.length == 0:
        return 0.5
    above = [
        gram[np.ix_(rows, direction.rows)] @ direction.weights > direction.middle for rows in (concept, random)
    ]
    return (float(above[0].mean()) + float(1 - above[1].mean())) / 2


def sensitivities(products: LayerProducts, direction: Direction) -> np.ndarray:
    """float64 (explained sample,): cosine of each sample's gradient with the direction; 0 where either is zero."""
    derivative = products.along[:, direction.rows] @ direction.weights
    sizes = products.gradient_norms * direction.length
    return np.divide(derivative, sizes, out=np.zeros_like(derivative), where=sizes > 0)


@dataclass(frozen=True)
class RandomSets:
    """Random samples of a pool, as many sets as asked for, each in an order of its own."""

    orders: np.ndarray
    """int64 (set, pool sample): rows of the pool in random order."""
    size: int

    @classmethod
    def drawn(cls, pool: int, sets: int, size: int, seed: int) -> RandomSets:
        generator = np.random.default_rng([seed, 0x7CA5])
        return cls(np.stack([generator.permutation(pool) for _ in range(sets)]), size)

    def __len__(self) -> int:
        return len(self.orders)

    def members(self, number: int, without: np.ndarray | None = None) -> np.ndarray:
        """The first `size` samples of set `number`, none of them among `without`."""
        order = self.orders[number]
        if without is not None:
            order = order[~np.isin(order, without)]
        return order[: self.size]


@dataclass(frozen=True)
class HeldAgainst:
    """One set of samples held against random sets: numbers by random set and class."""

    scores: np.ndarray
    """float64 (set, class): share of the class's samples whose output grows along the direction."""
    sensitivity: np.ndarray
    """float64 (set, class): mean cosine of their gradients with it."""
    accuracy: np.ndarray
    """float64 (set,): of held-out samples."""


def held_against(
    products: LayerProducts,
    concept: np.ndarray,
    excluded: np.ndarray,
    sets: RandomSets,
    classes: np.ndarray,
    class_count: int,
    penalty: float,
    skip: int | None = None,
    held_out: bool = True,
) -> HeldAgainst:
    """The samples `concept` (rows of the layer's products) against each random set but `skip`.

    `excluded` pool samples are in no opponent. `classes` (explained sample,) are 0 to `class_count` - 1. Accuracy is that of
    a second classifier, fitted on two thirds and tried on the last third of both sets.
    """
    scores, cosines, right = [], [], []
    for number in range(len(sets)):
        if number == skip:
            continue
        random = sets.members(number, excluded)
        direction = fitted(products.gram, concept, random, penalty)
        along = sensitivities(products, direction)
        counts = np.bincount(classes, minlength=class_count)
        scores.append(np.bincount(classes, along > 0, class_count) / counts)
        cosines.append(np.bincount(classes, along, class_count) / counts)
        if held_out:
            first, second = _two_thirds(len(concept)), _two_thirds(len(random))
            part = fitted(products.gram, concept[:first], random[:second], penalty)
            right.append(accuracy(products.gram, part, concept[first:], random[second:]))
    return HeldAgainst(np.array(scores), np.array(cosines), np.array(right))


def _two_thirds(count: int) -> int:
    return max(1, min(count - 1, round(2 * count / 3)))


def p_value(value: float, null: np.ndarray) -> float:
    """Two-sided t-test whether one new `value` could be a further draw like `null` (draw,): Student's t with n - 1 degrees.

    t = (value - mean) / (s √(1 + 1/n)): Crawford and Howell 1998, eq. 1. The random concepts' own numbers are the null, each
    of which was found as the concept's was; the usual test of the concept's scores over random sets against 0.5 takes
    them for independent, although they share the concept's samples, and finds any fixed set of samples significant.
    """
    from scipy.stats import t

    null = null[np.isfinite(null)]
    if len(null) < 2:
        return math.nan
    spread = float(null.std(ddof=1)) * math.sqrt(1 + 1 / len(null))
    distance = abs(value - float(null.mean()))
    if spread == 0:
        return 1.0 if distance == 0 else 0.0
    return float(2 * t.sf(distance / spread, len(null) - 1))


def holm(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """float64 (test,): p-values corrected for their number (Holm 1979); NaN stay NaN and do not count."""
    given = np.asarray(values, np.float64)
    found = np.full(len(given), np.nan)
    known = np.flatnonzero(np.isfinite(given))
    order = known[np.argsort(given[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    found[order] = np.minimum(1.0, np.maximum.accumulate(given[order] * factors))
    return found
