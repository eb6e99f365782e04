"""A number with its interval and what chance gives, as rows: shared by the analyses that score one layer's features."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stratascope.storage.ledger import Row
from stratascope.tasks.representation.features import Features
from stratascope.tasks.representation.resampling import (
    percentile_interval,
    permutation_p,
    subsample_interval,
)

NULL = "null=permuted"
P_VALUE = "permutation_p_value"
ANYWHERE = (-math.inf, math.inf)
NOT_NEGATIVE = (0.0, math.inf)


@dataclass(frozen=True)
class Interval:
    """What resampling says about a number, and how it was done."""

    low: float = math.nan
    high: float = math.nan
    how: str = ""


def bootstrap_interval(
    value: float, rounds: Sequence[float] | np.ndarray, ends: tuple[float, float] = ANYWHERE
) -> Interval:
    """The middle 95 % of the bootstrap's spread around its own mean, laid around `value` and cut at `ends`.

    The mean of the rounds is taken off because repeated samples shift most measures of spread in one direction, which
    says nothing about how sure the number is.
    """
    found = np.asarray(rounds, np.float64)
    sound = found[np.isfinite(found)]
    if not len(sound) or not math.isfinite(value):
        return Interval()
    low, high = percentile_interval(sound - sound.mean() + value)
    return Interval(_cut(low, ends), _cut(high, ends), f"95 % bootstrap, {len(found)} rounds")


def halves_interval(
    value: float, rounds: Sequence[float] | np.ndarray, ends: tuple[float, float] = ANYWHERE
) -> Interval:
    """The interval of `value` from its values on random halves of the samples, cut at `ends`."""
    found = np.asarray(rounds, np.float64)
    if not len(found) or not math.isfinite(value):
        return Interval()
    low, high = subsample_interval(value, found)
    how = f"95 % from halves without replacement, {len(found)} rounds"
    return Interval(_cut(low, ends), _cut(high, ends), how)


def _cut(value: float, ends: tuple[float, float]) -> float:
    return float(np.clip(value, *ends))


def scored_row(
    features: Features,
    metric: str,
    value: float,
    interval: Interval,
    estimator: str,
    undefined: str,
    **more: Any,
) -> Row:
    """A finding with its interval; one that is not finite is a row with the reason `undefined` instead."""
    if not math.isfinite(value):
        more.pop("convention", "")
        return features.refusal(metric, undefined, **more)
    text = "; ".join(filter(None, (estimator, interval.how)))
    return features.row(metric, value, low=interval.low, high=interval.high, estimator=text, **more)


def null_rows(
    features: Features, metric: str, value: float, null: Sequence[float], part: str, convention: str
) -> list[Row]:
    """What permuted labels give on average, with the middle 95 %, and the share of them that reach `value`."""
    found = np.asarray(null, np.float64)
    if not len(found) or not math.isfinite(value) or not np.isfinite(found).any():
        return []
    low, high = percentile_interval(found)
    about = f"labels permuted, {len(found)} rounds"
    return [
        features.row(
            metric, float(np.nanmean(found)), low=low, high=high, estimator=about, convention=convention,
            part=";".join(filter(None, (part, NULL))),
        ),
        features.row(P_VALUE, permutation_p(value, found), part=f"of={metric}", estimator=about),
    ]  # fmt: skip
