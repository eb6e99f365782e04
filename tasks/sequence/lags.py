"""What lies how many steps back: profiles over the lag, how long they last, how fast they fall."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

_FAINTEST = 1e-12
"""Below this share of the largest value a profile is rounding, and no rate is fitted to it."""
_MARKS = (0, 1, 2, 5)


def marked_lags(count: int) -> list[int]:
    """Few of the lags 0 to `count` - 1, evenly on a scale of ratios: 0, 1, 2, 5, 10, 20, 50 …, and the last one."""
    found = [mark * 10**power for power in range(9) for mark in _MARKS if power == 0 or mark]
    inside = [lag for lag in found if lag < count]
    return inside if not inside or inside[-1] == count - 1 else [*inside, count - 1]


def places_back(real: np.ndarray, backwards: bool = False) -> np.ndarray:
    """int64 (sample, lag): the place of the step that was read `lag` steps before the last one, -1 where there is none.

    `real` is bool (sample, time). A layer that reads `backwards` reads the first step last.
    """
    count = real.shape[1]
    found = np.full(real.shape, -1, np.int64)
    for sample, steps in enumerate(real):
        places = np.flatnonzero(steps)
        found[sample, : len(places)] = places if backwards else places[::-1]
    return found[:, : max(1, int(real.sum(1).max(initial=0)))] if count else found


def lag_mean(values: np.ndarray, axis: int | Sequence[int] = 0) -> np.ndarray:
    """The mean over `axis` of what is known of `values`; NaN where nothing is."""
    axes = (axis,) if isinstance(axis, int) else tuple(axis)
    known = np.isfinite(values)
    count = known.sum(axes)
    total = np.where(known, values, 0.0).sum(axes, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def length_holding(profile: np.ndarray, share: float) -> float:
    """In how many steps, counted from lag 0 on, `share` of the mass of `profile` (lag,) lies; linear within a step.

    A flat profile of n lags gives share · n, one that is all at lag 0 gives `share`. NaN without any mass, or where a
    value is negative or infinite. Lags without a number hold nothing.
    """
    mass = np.where(np.isnan(profile), 0.0, profile.astype(np.float64))
    if not np.isfinite(mass).all() or (mass < 0).any() or mass.sum() <= 0:
        return float("nan")
    # Divided first: sums of tiny gradients must not lose their last lags.
    held = np.concatenate([[0.0], np.cumsum(mass / mass.sum())])
    place = int(np.searchsorted(held, share * held[-1], side="left"))
    if place == 0:
        return 0.0
    before, after = held[place - 1], held[place]
    return float(place - 1 + (share * held[-1] - before) / (after - before))


def decay_rate(profile: np.ndarray) -> float:
    """The slope of -log of `profile` (lag,) over the lag, by least squares, per step; positive where it falls.

    For c·exp(-r·lag) it is r, and 1/r the time constant. Values that are zero, not finite or below 1e-12 of the largest
    are left out; NaN for fewer than three.
    """
    known = np.isfinite(profile) & (profile > 0)
    if known.any():
        known &= profile > _FAINTEST * profile[known].max()
    if known.sum() < 3:
        return float("nan")
    lags = np.flatnonzero(known).astype(np.float64)
    return -float(np.polyfit(lags, np.log(profile[known].astype(np.float64)), 1)[0])


def crossing_below(profile: np.ndarray, level: float) -> float:
    """The first lag, linear between two, at which `profile` (lag,) falls to `level` or below it after its highest point.

    NaN where it never does.
    """
    known = np.flatnonzero(np.isfinite(profile))
    if not len(known):
        return float("nan")
    top = int(known[profile[known].argmax()])
    for before, after in itertools.pairwise(known):
        if before < top or profile[after] > level:
            continue
        fall = profile[before] - profile[after]
        return float(before + (profile[before] - level) / fall * (after - before)) if fall > 0 else float(after)
    return float("nan")
