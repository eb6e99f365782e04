"""Conditions on the ledger, and the verdict that follows from them: plain arithmetic, no files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Literal

from stratascope.tasks.checks.spec import SUITES, CheckSpec

if TYPE_CHECKING:
    import pandas as pd

Level = Literal["pass", "info", "warn", "fail", "error"]
ORDER: tuple[Level, ...] = ("pass", "info", "warn", "fail", "error")


@dataclass(frozen=True)
class Outcome:
    """What one check says of one row of the ledger. `error` means that it could not be evaluated."""

    name: str
    metric: str
    run: str
    layer: str
    step: int
    outcome: Level
    value: float
    bound: str
    reason: str = ""
    probe: str = ""
    part: str = ""


def expand(checks: Iterable[CheckSpec] | None) -> list[tuple[CheckSpec, bool]]:
    """Each single condition, with whether it came from a suite. None stands for the suite `soundness`."""
    conditions: list[tuple[CheckSpec, bool]] = []
    for check in checks if checks is not None else (CheckSpec(suite="soundness"),):
        if check.suite is None:
            conditions.append((check, False))
        else:
            conditions.extend((member, True) for member in SUITES[check.suite])
    return conditions


def evaluate(rows: pd.DataFrame, checks: Sequence[CheckSpec] | None) -> list[Outcome]:
    """Judge every matching row of the ledger.

    A row whose status is ``does_not_apply`` is passed over. One that ``failed``, and a NaN value, cannot be
    evaluated, unless the check bounds a value that is itself meant to be finite. A check of the user's own
    that matches no row at all is an error, never a pass. Where numbers that are not finite are on file, what a suite
    could not evaluate for them is no news: the suite's own check of finite numbers speaks.
    """
    outcomes: list[Outcome] = []
    bad = rows[(rows["metric"] == "non_finite_count") & (rows["value"] > 0)]
    spoilt = set(zip(bad["run"], bad["step"], strict=True))
    for check, from_suite in expand(checks):
        selected = _select(rows, check)
        if from_suite and spoilt and not selected.empty:
            told = zip(selected["run"], selected["step"], selected["status"], strict=True)
            selected = selected[[status != "failed" or (run, step) not in spoilt for run, step, status in told]]
        if selected.empty and not from_suite:
            reason = f"no finding called {check.metric!r} matches this check: look at `stratascope metrics`"
            outcomes.append(
                Outcome(check.name or "", check.metric or "", "", "", -1, "error", math.nan, bound(check), reason)
            )
        for _, series in selected.groupby(["run", "probe", "layer", "part"], sort=True):
            outcomes.extend(_judge_series(series.sort_values("step"), check))
    return outcomes


def verdict(outcomes: Iterable[Outcome]) -> Level:
    """The worst outcome, or `pass`."""
    return max((item.outcome for item in outcomes), key=ORDER.index, default="pass")


def _select(rows: pd.DataFrame, check: CheckSpec) -> pd.DataFrame:
    chosen = rows[(rows["metric"] == check.metric) & (rows["status"] != "does_not_apply")]
    for column in ("run", "layer", "probe", "part"):
        pattern = getattr(check, column)
        if pattern != "*" and not chosen.empty:
            chosen = chosen[[fnmatchcase(str(item), pattern) for item in chosen[column]]]
    if check.steps is not None and not chosen.empty:
        first, last = check.steps
        chosen = chosen[
            (chosen["step"] >= (first if first is not None else -1))
            & (chosen["step"] <= (last if last is not None else math.inf))
        ]
    return chosen


def _judge_series(series: pd.DataFrame, check: CheckSpec) -> list[Outcome]:
    outcomes = []
    in_a_row = 0
    first: float | None = None
    previous: float | None = None
    for row in series.itertuples():
        level, reason = _judge(row, check, first if check.change and check.change.against == "first" else previous)
        in_a_row = in_a_row + 1 if level == check.severity else 0
        if level == check.severity and in_a_row < check.after:
            level, reason = "pass", f"{reason}; {in_a_row} of {check.after} in a row"
        outcomes.append(
            Outcome(
                check.name or "", check.metric or "", row.run, row.layer, int(row.step), level,
                float(row.value), bound(check), reason, row.probe, row.part,
            )
        )  # fmt: skip
        if math.isfinite(row.value):
            first = row.value if first is None else first
            previous = row.value
    return outcomes


def _judge(row: pd.Series, check: CheckSpec, earlier: float | None) -> tuple[Level, str]:
    value = float(row.value)
    if row.status == "failed":
        return "error", row.reason or "the finding could not be computed"
    if math.isnan(value):
        return check.severity, "the value is not a number"
    broken = []
    if check.min is not None and value < check.min:
        broken.append(f"{value:.6g} is below {check.min:g}")
    if check.max is not None and value > check.max:
        broken.append(f"{value:.6g} is above {check.max:g}")
    if check.equals is not None and value != check.equals:
        broken.append(f"{value:.6g} is not {check.equals:g}")
    if check.change is not None and earlier is not None:
        moved = abs(value - earlier)
        if check.change.max_absolute is not None and moved > check.change.max_absolute:
            broken.append(f"moved by {moved:.6g} from {earlier:.6g}")
        if check.change.max_relative is not None and moved > check.change.max_relative * abs(earlier):
            broken.append(f"moved by {moved:.6g} from {earlier:.6g}")
    return (check.severity, "; ".join(broken)) if broken else ("pass", "")


def bound(check: CheckSpec) -> str:
    """What `check` wants, in words and signs."""
    parts = []
    if check.min is not None:
        parts.append(f">= {check.min:g}")
    if check.max is not None:
        parts.append(f"<= {check.max:g}")
    if check.equals is not None:
        parts.append(f"= {check.equals:g}")
    if check.change is not None:
        for kind in ("absolute", "relative"):
            limit = getattr(check.change, f"max_{kind}")
            if limit is not None:
                parts.append(f"{kind} change against {check.change.against} <= {limit:g}")
    return ", ".join(parts)
