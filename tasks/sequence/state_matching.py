"""Select and match, as LSTMVis does: which units are on during a stretch of text, and where else they are on together.

Strobelt et al. 2018, section 5. A unit is on where its state is above a threshold; here also where it is below the negative
threshold, as a unit of its own, since a network may as well say it with a minus.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, order=True)
class Match:
    """A stretch of tokens at which all selected units are on. Better ones sort first: longer, then with fewer others on."""

    rank: tuple[float, float]
    """(minus the length, the mean number of other units that are on)."""
    sample: int
    start: int
    stop: int

    @property
    def length(self) -> int:
        return self.stop - self.start

    @property
    def others(self) -> float:
        return self.rank[1]


def switched_on(states: np.ndarray, threshold: float, both_signs: bool) -> np.ndarray:
    """bool (sample, time, unit), or (sample, time, 2 · unit), the negative ones last: where `states` (sample, time, unit)
    lie above `threshold` or, with `both_signs`, below minus it."""
    above = states > threshold
    return np.concatenate([above, states < -threshold], -1) if both_signs else above


def selected_units(on: np.ndarray, start: int, stop: int, before: int, after: int) -> np.ndarray:
    """bool (unit,): on at every token from `start` to `stop` (not included), off at one or more of the `before` tokens just
    before and of the `after` tokens just behind. 0 asks for nothing there, nor is anything asked beyond the ends of `on`
    (time, unit)."""
    chosen = np.asarray(on[start:stop].all(0))
    for edge in (on[max(start - before, 0) : start], on[stop : stop + after]):
        if len(edge):
            chosen = np.logical_and(chosen, ~edge.all(0))
    return chosen


def matches(
    on: np.ndarray, real: np.ndarray, units: np.ndarray, shortest: int = 1, first_sample: int = 0
) -> list[Match]:
    """Every maximal stretch of at least `shortest` real tokens at which all of `units` (unit,) are on, best first.

    `on` is bool (sample, time, unit), `real` (sample, time); samples are numbered from `first_sample`.
    """
    if not units.any():
        return []
    together = on[..., units].all(-1) & real
    edges = np.diff(np.pad(together, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    starts, stops = np.argwhere(edges == 1), np.argwhere(edges == -1)
    others = on.sum(-1) - int(units.sum())
    found = []
    for (sample, start), (_, stop) in zip(starts.tolist(), stops.tolist(), strict=True):
        if stop - start >= shortest:
            rank = (-float(stop - start), float(others[sample, start:stop].mean()))
            found.append(Match(rank, first_sample + sample, start, stop))
    return sorted(found)


def overlaps(one: Match, sample: int, start: int, stop: int) -> bool:
    """Whether the match shares a token with a stretch of `sample`."""
    return one.sample == sample and one.start < stop and start < one.stop
