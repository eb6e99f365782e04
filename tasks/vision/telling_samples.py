"""Which samples tell most of a checkpoint: surely right, surely wrong, undecided, changed; and their nearest training samples."""

from __future__ import annotations

from typing import Literal

import numpy as np

KINDS = ("surely_right", "surely_wrong", "undecided", "changed_since_previous", "changed_since_first")


def probabilities(outputs: np.ndarray) -> np.ndarray:
    """float64 (sample, class): the softmax of scores (sample, class)."""
    from scipy.special import softmax

    return softmax(outputs.astype(np.float64), axis=1)


def moved_probability(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """float64 (sample,): the share of probability that went to other classes, half the sum of differences, from 0 to 1."""
    found: np.ndarray = np.abs(after - before).sum(1) / 2
    return found


def telling_samples(
    kind: str, now: np.ndarray, targets: np.ndarray, before: np.ndarray | None, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of at most `most` samples of one of `KINDS`, the clearest first, and a number for each.

    `now` and `before` are probabilities (sample, class). The number is the highest probability; for changed ones the share
    of probability that moved since `before`, of which those that did not move are left out. Ties go to the earlier row.
    """
    highest = now.max(1)
    right = now.argmax(1) == targets
    if kind.startswith("changed"):
        if before is None:
            return np.array([], np.int64), np.array([])
        moved = moved_probability(before, now)
        order = np.argsort(-moved, kind="stable")
        order = order[moved[order] > 0][:most]
        return order, moved[order]
    inside = np.flatnonzero(
        right if kind == "surely_right" else ~right if kind == "surely_wrong" else np.ones_like(right)
    )
    sign = 1 if kind == "undecided" else -1
    order = inside[np.argsort(sign * highest[inside], kind="stable")][:most]
    return order, highest[order]


def nearest_others(
    values: np.ndarray, others: np.ndarray, count: int, distance: Literal["euclidean", "cosine"]
) -> tuple[np.ndarray, np.ndarray]:
    """The `count` rows of `others` (other, feature) nearest to each of `values` (sample, feature), and their distances.

    Both are (sample, rank), in float64. The cosine distance is 1 - cosine; a zero vector has distance 1 to all. Ties go to
    the earlier row.
    """
    from sklearn.metrics import pairwise_distances

    far = pairwise_distances(values.astype(np.float64), others.astype(np.float64), metric=distance)
    order = np.argsort(far, axis=1, kind="stable")[:, :count]
    return order, np.take_along_axis(far, order, 1)
