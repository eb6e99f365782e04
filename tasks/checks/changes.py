"""What a value is held against: the value before, the run's first, another checkpoint, the run's own history.

All functions work on arrays over the rows of one metric, sorted by series and then by step. `start` gives for each row
the number of its series' first row, so that nothing looks across the border of a series.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_SCALE = 1.4826
"""Makes the median absolute deviation of normal values their standard deviation (Hampel 1974)."""
_LEAST_SCALE = 0.01
"""Of a history that hardly moves, a hundredth of its median still counts as its standard deviation."""
_ROWS_AT_ONCE = 20_000


@dataclass(frozen=True)
class Earlier:
    """What each row is held against; NaN where there is nothing, with the step it comes from (-1: none, or many)."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    step: np.ndarray

    @classmethod
    def from_rows(
        cls, place: np.ndarray, value: np.ndarray, low: np.ndarray, high: np.ndarray, step: np.ndarray
    ) -> Earlier:
        """The rows numbered `place`; -1 stands for none."""
        none = place < 0
        if not len(step):
            nothing = np.full(len(place), np.nan)
            return cls(nothing, nothing, nothing, np.full(len(place), -1))
        safe = np.where(none, 0, place)
        found = [np.where(none, np.nan, column[safe]) for column in (value, low, high)]
        return cls(found[0], found[1], found[2], np.where(none, -1, step[safe]))


def previous_place(values: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The number of the last finite row before each row in its series; -1 where there is none."""
    here = np.where(np.isfinite(values), np.arange(len(values)), -1)
    last = np.concatenate([[-1], np.maximum.accumulate(here)[:-1]]) if len(values) else here
    return np.where(last >= start, last, -1)


def first_place(values: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The number of the first finite row of each row's series; -1 for that row itself and those before it."""
    count = len(values)
    if not count:
        return np.empty(0, dtype=np.int64)
    here = np.where(np.isfinite(values), np.arange(count), count)
    borders = np.flatnonzero(start == np.arange(count))
    first = np.repeat(np.minimum.reduceat(here, borders), np.diff(np.append(borders, count)))
    return np.where(first < np.arange(count), first, -1)


def reference_place(
    series: np.ndarray, steps: np.ndarray, known_series: np.ndarray, known_steps: np.ndarray, exact: bool
) -> np.ndarray:
    """For each row the number of the known row of the same series at the same step; -1 where there is none.

    Unless `exact`, the nearest step does as well; of two equally near, the earlier. The known rows are sorted by series
    and then by step.
    """
    if not len(known_series):
        return np.full(len(series), -1)
    ranks, rank = np.unique(np.concatenate([steps, known_steps]), return_inverse=True)
    stride = len(ranks) + 1
    wanted = series.astype(np.int64) * stride + rank[: len(steps)]
    known = known_series.astype(np.int64) * stride + rank[len(steps) :]
    after = np.searchsorted(known, wanted)
    candidates = np.stack([after - 1, after])
    inside = (candidates >= 0) & (candidates < len(known))
    safe = np.where(inside, candidates, 0)
    fits = inside & (known_series[safe] == series)
    distance = np.where(fits, np.abs(known_steps[safe] - steps).astype(np.float64), np.inf)
    best = np.argmin(distance, axis=0)
    chosen, least = np.take_along_axis(safe, best[None], 0)[0], distance.min(axis=0)
    return np.where(np.isfinite(least) & ((least == 0) | (not exact)), chosen, -1)


def windows(values: np.ndarray, start: np.ndarray, rows: np.ndarray, width: int) -> np.ndarray:
    """float64 (row, width): the `width` values before each of `rows`, latest last; NaN where there is none or not finite."""
    place = rows[:, None] - np.arange(width, 0, -1)
    inside = place >= start[rows, None]
    found = values[np.where(inside, place, 0)]
    return np.where(inside & np.isfinite(found), found, np.nan)


def middle(window: np.ndarray) -> np.ndarray:
    """The median of each row, whatever is NaN left out; NaN where all is."""
    ordered = np.sort(window, axis=1)
    count = np.isfinite(window).sum(axis=1)
    last = np.maximum(count - 1, 0)
    rows = np.arange(len(window))
    return (ordered[rows, last // 2] + ordered[rows, (last + 1) // 2]) / 2


def robust_z(values: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed distance of each value from the median of its window in robust standard deviations, and that median.

    The scale is 1.4826 times the median absolute deviation (Hampel 1974; Iglewicz and Hoaglin 1993, section 3.3), but at
    least a hundredth of the median's size, or a history that stands still would make news of rounding errors. Where both
    are 0 any other value is infinitely far.
    """
    center = middle(window)
    spread = _SCALE * middle(np.abs(window - center[:, None]))
    scale = np.maximum(spread, _LEAST_SCALE * np.abs(center))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (values - center) / scale
    return np.where(values == center, 0.0, z), center


def growth(moves: np.ndarray, earlier_moves: np.ndarray) -> np.ndarray:
    """The size of each move as a multiple of the largest in its row of earlier ones; infinite where those are all 0."""
    largest = np.max(np.where(np.isnan(earlier_moves), 0.0, np.abs(earlier_moves)), axis=1, initial=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(moves == 0, 0.0, np.abs(moves) / largest)


def pettitt(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pettitt's test for one shift of level in each row, with NaN left out (Pettitt 1979, eqs 2 and 3.1).

    Returns the approximate p-value, the column of the last value before the shift, and the signed size: the median
    after it minus the median before it. The test ranks, so that one wild value cannot pass for a shift.
    """
    count, width = values.shape
    p, place, size = np.ones(count), np.zeros(count, dtype=np.int64), np.zeros(count)
    stride = max(1, _ROWS_AT_ONCE * 20 * 20 // width**2)
    for begin in range(0, count, stride):
        part = values[begin : begin + stride]
        finite = np.isfinite(part)
        with np.errstate(invalid="ignore"):
            signs = np.nan_to_num(np.sign(part[:, :, None] - part[:, None, :]))
        # Signs within the part before the shift cancel, so that sums over whole rows are enough.
        u = np.abs(np.cumsum(signs.sum(axis=2), axis=1))[:, :-1]
        n = finite.sum(axis=1).astype(np.float64)
        here = slice(begin, begin + len(part))
        place[here] = np.argmax(u, axis=1)
        statistic = u[np.arange(len(part)), place[here]]
        with np.errstate(divide="ignore", invalid="ignore"):
            p[here] = np.minimum(1.0, np.nan_to_num(2 * np.exp(-6 * statistic**2 / (n**3 + n**2)), nan=1.0))
        before = np.arange(width) <= place[here, None]
        size[here] = middle(np.where(before, np.nan, part)) - middle(np.where(before, part, np.nan))
    return p, place, size


def explained(value: np.ndarray, low: np.ndarray, high: np.ndarray, earlier: Earlier) -> np.ndarray:
    """How far two findings may differ by their intervals alone; 0 where neither has one.

    The interval of a difference from those of its two sides: Newcombe 1998, method 10; Zou and Donner 2008, eq. 4. It
    takes the two findings as independent, which for one probe is on the safe side.
    """
    falls = value < earlier.value
    own = np.where(falls, high - value, value - low)
    other = np.where(falls, earlier.value - earlier.low, earlier.high - earlier.value)
    return np.hypot(np.nan_to_num(own), np.nan_to_num(other))
