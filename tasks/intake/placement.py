"""Which checkpoints do not belong where they stand in their run: order and kinship of weights, as plain numbers."""

from __future__ import annotations

import numpy as np

FEWEST = 5
"""Runs with fewer checkpoints have no curve of their own to measure against."""
_BEND = 4.0
"""A detour so many times the run's typical one counts as 1."""
_PLACE = 0.4
"""A better place that saves so much of the distance to the nearest checkpoint counts as 1."""
_KIN = 0.2
"""Below this share of the smaller squared norm in common, two sets of weights are strangers."""
_MOST_ROUNDS = 12
_MOST_SUSPECTS = 8


def distances(sketches: np.ndarray) -> np.ndarray:
    """Euclidean distances (checkpoint, checkpoint) of `sketches` (checkpoint, sketch).

    Below a millionth of the larger norm they are 0: rounding, where files hold the same weights.
    """
    products = sketches @ sketches.T
    squares = np.diag(products)
    found: np.ndarray = np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * products, 0))
    found[found < 1e-6 * np.sqrt(np.maximum(squares[:, None], squares[None]))] = 0
    return found


def misplaced_scores(sketches: np.ndarray) -> np.ndarray:
    """How badly each checkpoint of `sketches` (checkpoint, sketch), in order, stands in its place: above 1 it does not belong.

    The largest of three measures, none of which depends on the scale of weights or on the spacing of steps:

    * kinship: the inner product with its nearest relative, over the smaller squared norm, is near 1 inside a run and
      near 0 between two initialisations. Those outside the largest group of relatives score (1 - kinship) / 0.8.
    * detour: the way over it between its neighbours, against their distance, is 1 on a straight path, sqrt(2) on a random
      walk; scored as log4 of its ratio to the run's median.
    * place: how much shorter the path through all others becomes if it is put elsewhere, over 0.4 of the distance
      to the checkpoint nearest to it. 0 where it stands best already.

    Exact copies are not each other's neighbours. What is out of place bends the path of its neighbours too, so the
    checkpoint whose removal clears most is taken out, and the others are scored without it. Runs of fewer than
    five checkpoints get 0.
    """
    count = len(sketches)
    if count < FEWEST:
        return np.zeros(count)
    scores, related = _strangers(sketches)
    apart = distances(sketches)
    left = [int(place) for place in related]
    for attempt in range(_MOST_ROUNDS + 1):
        if len(left) < FEWEST:
            break
        now = _order(apart[np.ix_(left, left)])
        above = np.flatnonzero(now > 1)
        if len(above) == 0 or attempt == _MOST_ROUNDS:
            scores[left] = np.maximum(scores[left], now)
            break
        suspects = [int(place) for place in above[np.argsort(-now[above], kind="stable")][:_MOST_SUSPECTS]]
        remaining = [_worst_without(apart, left, place) for place in suspects]
        least = min(remaining)
        for place, rest in zip(suspects, remaining, strict=True):
            if rest <= max(1.0, least):
                scores[left[place]] = max(scores[left[place]], now[place])
        del left[suspects[int(np.argmin(remaining))]]
    return scores


def _strangers(sketches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of those without relatives in the main group, and the places of that group.

    Without a group of at least half the checkpoints nobody is a stranger: the weights lose their past too fast.
    """
    products = sketches @ sketches.T
    squares = np.diag(products)
    kinship = products / np.maximum(np.minimum(squares[:, None], squares[None]), 1e-300)
    group = np.arange(len(sketches))
    for number in range(len(sketches)):
        joined = np.unique(group[: number + 1][kinship[number, : number + 1] > _KIN])
        if len(joined):
            group[np.isin(group, np.append(joined, group[number]))] = joined[0]
    names, sizes = np.unique(group, return_counts=True)
    largest = names[sizes == sizes.max()]
    main = group[-1] if group[-1] in largest else largest[0]
    inside = np.flatnonzero(group == main)
    scores = np.zeros(len(sketches))
    if 2 * len(inside) < len(sketches):
        return scores, np.arange(len(sketches))
    for place in np.flatnonzero(group != main):
        scores[place] = (1 - max(float(kinship[place, inside].max()), 0.0)) / (1 - _KIN)
    return scores, inside


def _worst_without(apart: np.ndarray, left: list[int], place: int) -> float:
    rest = left[:place] + left[place + 1 :]
    return float(_order(apart[np.ix_(rest, rest)]).max())


def _order(apart: np.ndarray) -> np.ndarray:
    """The larger of detour and place of every checkpoint, from distances (checkpoint, checkpoint) in order."""
    count = len(apart)
    detour = np.full(count, np.nan)
    place = np.zeros(count)
    for number in range(count):
        others = np.flatnonzero(apart[number] > 0)
        if len(others) < 2:
            continue
        here = int((others < number).sum())
        reach = apart[number, others]
        strides = apart[others[:-1], others[1:]]
        costs = np.concatenate([reach[:1], reach[:-1] + reach[1:] - strides, reach[-1:]])
        place[number] = (costs[here] - costs.min()) / reach.min()
        if 0 < here < len(others):
            detour[number] = (reach[here - 1] + reach[here]) / max(strides[here - 1], 1e-12 * reach.max())
    bend = np.zeros(count)
    if np.isfinite(detour).any():
        bend = np.nan_to_num(np.log(detour / np.nanmedian(detour)) / np.log(_BEND))
    larger: np.ndarray = np.maximum(np.maximum(bend, 0), place / _PLACE)
    return larger
