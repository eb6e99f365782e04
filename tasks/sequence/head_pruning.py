"""In which order heads are taken away, and how far a network bears it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

RANDOM_ORDERS = 5
"""So many random orders stand beside the others: what an order is worth is what it is better than these."""
_POINTS = 13


def order_by(scores: Mapping[tuple[str, int], float]) -> list[tuple[str, int]]:
    """Heads by rising score; equal ones by layer and number."""
    return sorted(scores, key=lambda head: (scores[head], head))


def random_orders(heads: Sequence[tuple[str, int]], count: int, seed: int) -> list[list[tuple[str, int]]]:
    """`count` seeded orders of all heads."""
    generator = np.random.default_rng(seed)
    return [[heads[place] for place in generator.permutation(len(heads))] for _ in range(count)]


def pruning_points(heads: int) -> list[int]:
    """How many heads are taken away at each point of a curve: none, all, and evenly between them."""
    count = min(_POINTS, heads + 1)
    return sorted({round(place * heads / max(1, count - 1)) for place in range(count)})


def bearable_share(removed: Sequence[int], scores: np.ndarray, tolerance: float) -> float:
    """The largest share of all heads that an order may lose before it harms for the first time.

    `scores` (score, point) are the loss and the accuracy, NaN for numbers. Harm is an accuracy that has fallen, and for
    numbers a loss that has risen, by more than `tolerance` times what it is with all heads.
    """
    losses, accuracies = scores
    if np.isfinite(accuracies).all():
        harmed = accuracies < accuracies[0] * (1 - tolerance)
    else:
        harmed = losses > losses[0] + tolerance * abs(losses[0])
    beyond = np.flatnonzero(harmed)
    last = len(harmed) - 1 if not len(beyond) else int(beyond[0]) - 1
    return removed[last] / max(1, removed[-1])
