"""When a curve over the checkpoints changes its level: exact segmentation, and how sure each change is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEAST_VALUES = 8
"""A shorter curve can be cut anywhere without this meaning anything."""
LEAST_SEGMENT = 2
"""One wild value is no level of its own."""
_NORMAL_MAD = 0.6744898
"""The median absolute value of a standard normal."""
_ROUNDING = 1e-9
"""What differs by no more, relative to the largest value or to 1, differs by rounding only."""
_LEAST_SPREAD = 1e-3
"""Of a curve that hardly rattles, so large a share of its range still counts as its noise."""


@dataclass(frozen=True)
class Change:
    """One change of level."""

    place: int
    """The number of the first value on the new level."""
    size: float
    """The mean after it, up to the next change, minus the mean before it, from the last change on."""
    p_value: float


def unsuited(values: np.ndarray) -> str:
    """Why no change is looked for in `values` (step,); empty where one is."""
    if len(values) < LEAST_VALUES:
        return f"a change of level needs at least {LEAST_VALUES} checkpoints, there are {len(values)}"
    if not np.isfinite(values).all():
        return f"{int((~np.isfinite(values)).sum())} of the curve's {len(values)} values are not finite"
    if np.ptp(values) <= _ROUNDING * max(1.0, float(np.abs(values).max())):
        return "the curve is constant"
    return ""


def noise_of(values: np.ndarray) -> float:
    """The standard deviation of what is left of `values` (step,) beside its levels: from first differences, by their median.

    So neither a few jumps nor a slow slope counts as noise (as Fearnhead and Rigaill 2019 do); at least a thousandth of
    the values' range.
    """
    rattling = float(np.median(np.abs(np.diff(values)))) / _NORMAL_MAD / np.sqrt(2)
    return max(rattling, _LEAST_SPREAD * float(np.ptp(values)))


def segments(values: np.ndarray, penalty: float, least: int = LEAST_SEGMENT) -> list[int]:
    """Where each segment after the first begins, in the division of `values` (step,) that costs least.

    The cost is the sum of squared deviations from each segment's mean, plus `penalty` for each change; the division is
    the best of all with segments of `least` values or more, found by dynamic programming (Jackson et al. 2005). Of equally
    good ones that with the earlier last change. Takes time quadratic in the number of values.
    """
    count = len(values)
    centred = values - values.mean()
    sums = np.concatenate([[0.0], np.cumsum(centred)])
    squares = np.concatenate([[0.0], np.cumsum(centred**2)])
    best = np.full(count + 1, np.inf)
    best[0] = -penalty
    previous = np.zeros(count + 1, np.int64)
    starts = np.arange(count + 1)
    for end in range(least, count + 1):
        begin = starts[: end - least + 1]
        inside = squares[end] - squares[begin] - (sums[end] - sums[begin]) ** 2 / (end - begin)
        total = best[begin] + np.maximum(inside, 0.0) + penalty
        previous[end] = int(np.argmin(total))
        best[end] = total[previous[end]]
    found: list[int] = []
    end = count
    while (end := int(previous[end])) > 0:
        found.insert(0, end)
    return found


def greatest_shift(values: np.ndarray, least: int = LEAST_SEGMENT) -> np.ndarray:
    """(row,): the largest standardised difference of means before and after any place of each row of `values` (row, step).

    The cumulative-sum statistic |S_k − k S_n/n| √(n / (k (n − k))) (Csörgő and Horváth 1997), in the unit of the values.
    """
    count = values.shape[1]
    place = np.arange(least, count - least + 1)
    sums = np.cumsum(values - values.mean(1, keepdims=True), axis=1)[:, place - 1]
    found: np.ndarray = np.abs(sums * np.sqrt(count / (place * (count - place)))).max(1)
    return found


def changes(values: np.ndarray, strength: float, level: float, rounds: int, seed: int) -> list[Change]:
    """The changes of level in `values` (step,), in order, each with its size and the p-value of a permutation test.

    A change costs `strength` × log(n) times the noise's variance. Each is tested between its neighbours: how often does any
    place of the same values in random order part them as far as the best place does? As long as one has a p-value above
    `level` the least sure is withdrawn, and what lay beside it is tested over the longer stretch. The segmentation has
    seen the values before the test, and values in random order have no trend: a slope passes for changes. Expects values
    for which `unsuited` says nothing.
    """
    noise = noise_of(values)
    edges = [0, *segments(values, strength * np.log(len(values)) * noise**2), len(values)]
    known: dict[tuple[int, int], float] = {}
    while True:
        stretches = list(zip(edges, edges[2:], strict=False))
        for first, last in stretches:
            if (first, last) not in known:
                known[first, last] = shift_p_value(values[first:last], rounds, seed)
        chances = [known[stretch] for stretch in stretches]
        if not chances or max(chances) <= level:
            break
        del edges[1 + chances.index(max(chances))]
    return [
        Change(place, float(values[place:last].mean() - values[first:place].mean()), known[first, last])
        for (first, last), place in zip(stretches, edges[1:-1], strict=True)
    ]


def shift_p_value(values: np.ndarray, rounds: int, seed: int) -> float:
    """How often `values` (step,) in random order part at their best place as far as they do in theirs."""
    from stratascope.tasks.representation.resampling import permutation_p

    generator = np.random.default_rng([seed, len(values), rounds])
    null = greatest_shift(generator.permuted(np.tile(values, (rounds, 1)), axis=1))
    # Sums in another order differ in their last digits, which must not count as a smaller shift.
    return permutation_p(float(greatest_shift(values[None])[0]) * (1 - 1e-9), null)
