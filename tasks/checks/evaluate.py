"""Conditions on the ledger, and the verdict that follows from them: whole columns at a time, no files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from stratascope.tasks.checks.judging import Judged, judge
from stratascope.tasks.checks.spec import CheckSpec
from stratascope.tasks.checks.suites import expand
from stratascope.tasks.checks.tables import MetricTable, metric_tables

if TYPE_CHECKING:
    import pandas as pd

Level = Literal["pass", "info", "warn", "fail", "error"]
ORDER: tuple[Level, ...] = ("pass", "info", "warn", "fail", "error")
NOT_JUDGED = "not_judged"
"""How rows are counted that only serve as history: they are neither a pass nor an error."""


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


@dataclass(frozen=True)
class StepOutcome:
    """What one check says of one checkpoint: the worst over its layers, probes and parts."""

    run: str
    step: int
    outcome: Level
    judged: int
    raised: int


@dataclass(frozen=True)
class Condition:
    """One condition, and how often it came out how."""

    check: CheckSpec
    suite: str
    """Where it came from; "" for the user's own."""
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """By run, the number of rows by outcome, `not_judged` among them. Run "" stands for what belongs to none."""
    steps: tuple[StepOutcome, ...] = ()
    """In the order of runs and steps; rows that were not judged are left out."""

    @property
    def total(self) -> dict[str, int]:
        """The counts of all runs together."""
        sums: dict[str, int] = {}
        for counts in self.counts.values():
            for level, count in counts.items():
                sums[level] = sums.get(level, 0) + count
        return dict(sorted(sums.items()))


@dataclass(frozen=True)
class Evaluation:
    """All conditions, and an object for each outcome that is no pass."""

    conditions: tuple[Condition, ...]
    raised: tuple[Outcome, ...]

    @property
    def verdict(self) -> Level:
        """The worst outcome, or `pass`."""
        return max((item.outcome for item in self.raised), key=ORDER.index, default="pass")


def evaluate(
    rows: pd.DataFrame, checks: Sequence[CheckSpec] | None, subject: np.ndarray | None = None
) -> Evaluation:
    """Judge every matching row of the ledger.

    `rows` has the ledger's columns; of them those where `subject` (bool, one a row; default: all) holds are judged, the
    others only serve to be held against. A row whose status is ``does_not_apply`` is passed over. One that
    ``failed`` cannot be evaluated, nor can a change without its reference, nor a series whose history is too short for any
    of its rows: all are `error`. The rows at the start of a series that a change has nothing to hold against are not
    judged. A check of the user's own that matches no row at all is an error, never a pass; a suite's is silent there, and
    where a history is too short. Where numbers that are not finite are on file, what a suite could not evaluate for them is
    no news: the suite's own check of finite numbers speaks.
    """
    conditions = expand(checks)
    tables = metric_tables(rows, {check.metric or "" for check, _ in conditions}, subject)
    found, raised = [], []
    for check, suite in conditions:
        table = tables.get(check.metric or "")
        judged = judge(table, check, bool(suite)) if table is not None else None
        if judged is not None and len(judged.rows):
            assert table is not None
            found.append(Condition(check, suite, _counts(table, judged), _steps(table, judged)))
            raised += _outcomes(table, check, judged)
        elif suite:
            found.append(Condition(check, suite))
        else:
            reason = f"no finding called {check.metric!r} matches this check: look at `stratascope metrics`"
            raised.append(
                Outcome(check.name or "", check.metric or "", "", "", -1, "error", math.nan, bound(check), reason)
            )
            found.append(Condition(check, suite, {"": {"error": 1}}))
    return Evaluation(tuple(found), tuple(raised))


def verdict(outcomes: Iterable[Outcome]) -> Level:
    """The worst outcome, or `pass`."""
    return max((item.outcome for item in outcomes), key=ORDER.index, default="pass")


def _counts(table: MetricTable, judged: Judged) -> dict[str, dict[str, int]]:
    names = (NOT_JUDGED, *ORDER)
    run = table.codes["run"][judged.rows].astype(np.int64)
    counted = np.bincount(
        run * len(names) + judged.levels + 1, minlength=len(table.names["run"]) * len(names)
    ).reshape(-1, len(names))
    return {
        str(table.names["run"][code]): {name: int(count) for name, count in zip(names, row, strict=True) if count}
        for code, row in enumerate(counted)
        if row.any()
    }


def _steps(table: MetricTable, judged: Judged) -> tuple[StepOutcome, ...]:
    spoken = judged.levels >= 0
    rows, levels = judged.rows[spoken], judged.levels[spoken]
    run, step = table.codes["run"][rows], table.step[rows]
    order = np.lexsort((step, run))
    if not len(order):
        return ()
    run, step, levels = run[order], step[order], levels[order]
    borders = np.flatnonzero(np.concatenate([[True], (run[1:] != run[:-1]) | (step[1:] != step[:-1])]))
    worst = np.maximum.reduceat(levels, borders)
    raised = np.add.reduceat((levels > 0).astype(np.int64), borders)
    count = np.diff(np.append(borders, len(levels)))
    return tuple(
        StepOutcome(str(table.names["run"][code]), at, ORDER[level], number, bad)
        for code, at, level, number, bad in zip(
            run[borders].tolist(), step[borders].tolist(), worst.tolist(), count.tolist(), raised.tolist(), strict=True
        )
    )  # fmt: skip


def _outcomes(table: MetricTable, check: CheckSpec, judged: Judged) -> list[Outcome]:
    wanted = bound(check)
    return [
        Outcome(
            check.name or "", check.metric or "", table.name("run", row), table.name("layer", row), int(table.step[row]),
            ORDER[judged.levels[place]], float(table.value[row]), wanted, judged.reason(place),
            table.name("probe", row), table.name("part", row),
        )
        for place, row in ((place, judged.rows[place]) for place in np.flatnonzero(judged.levels > 0).tolist())
    ]  # fmt: skip


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
        parts += _bounds_of_change(check)
    return ", ".join(parts)


def _bounds_of_change(check: CheckSpec) -> list[str]:
    change = check.change
    assert change is not None
    against: str = change.against
    if change.reference is not None:
        run, step = change.reference.run, change.reference.step
        against = " ".join(filter(None, (run, f"step {step}" if step is not None else "")))
    move = {"either": "change", "up": "rise", "down": "fall"}[change.direction]
    parts = []
    for kind in ("absolute", "relative"):
        limit = getattr(change, f"max_{kind}")
        if limit is not None:
            parts.append(f"{kind} {move} against {against} <= {limit:g}")
    if change.min_relative is not None:
        parts.append(f"relative {move} against {against} >= {change.min_relative:g}")
    if change.max_robust_z is not None:
        parts.append(f"robust z of {move} against {against} <= {change.max_robust_z:g}")
    if change.max_growth is not None:
        parts.append(f"{move} <= {change.max_growth:g} × the largest in {against}")
    if change.change_point is not None:
        parts.append(f"no shift of level in {against} (p >= {change.change_point:g})")
    guards = []
    if change.tolerance:
        guards.append(f"{change.tolerance:g}")
    if change.relative_tolerance:
        guards.append(f"{change.relative_tolerance:.0%}")
    if change.beyond_interval:
        guards.append("its interval")
    return [*parts, f"moves within {' or '.join(guards)} aside"] if guards else parts
