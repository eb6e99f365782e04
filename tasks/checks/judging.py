"""One condition held against all rows of its metric at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from stratascope.tasks.checks import changes
from stratascope.tasks.checks.changes import Earlier
from stratascope.tasks.checks.spec import ChangeSpec, CheckSpec
from stratascope.tasks.checks.tables import DOES_NOT_APPLY, FAILED, MetricTable

NOT_JUDGED, PASS, ERROR = -1, 0, 4
SEVERITIES = {"info": 1, "warn": 2, "fail": 3}
Say = Callable[[int], str]


@dataclass(frozen=True)
class Judged:
    """The rows of a table that a condition is about, with the level of each and, on demand, the reason."""

    rows: np.ndarray
    """Their numbers in the table, in its order."""
    levels: np.ndarray
    """`NOT_JUDGED`, or the place in pass, info, warn, fail, error."""
    said: list[tuple[np.ndarray, Say]] = field(default_factory=list)
    """Masks over `rows` with what to say where they hold."""

    def reason(self, place: int) -> str:
        """Why the row numbered `place` in `rows` came out as it did."""
        return "; ".join(say(place) for where, say in self.said if where[place])


def judge(table: MetricTable, check: CheckSpec, from_suite: bool) -> Judged | None:
    """The outcome of every row that `check` is about; None where there is none."""
    about = table.status != DOES_NOT_APPLY
    for key in ("layer", "probe", "part"):
        about &= table.matches(key, getattr(check, key))
    if from_suite:
        about &= ~((table.status == FAILED) & table.spoilt)
    table, kept = table.reduced_to(about), np.flatnonzero(about)
    chosen = table.subject & table.matches("run", check.run)
    if check.steps is not None:
        first, last = check.steps
        chosen &= (table.step >= first) if first is not None else True
        chosen &= (table.step <= last) if last is not None else True
    rows = np.flatnonzero(chosen)
    if not len(rows):
        return None
    judged = _judge_rows(table, check, rows, from_suite)
    return Judged(kept[rows], judged.levels, judged.said)


def _judge_rows(table: MetricTable, check: CheckSpec, rows: np.ndarray, from_suite: bool) -> Judged:
    severity = SEVERITIES[check.severity]
    value = table.value[rows]
    failed = table.status[rows] == FAILED
    missing = np.isnan(value) & ~failed
    said: list[tuple[np.ndarray, Say]] = [
        (failed, lambda i: _failure(table, rows[i])),
        (missing, lambda i: "the value is not a number"),
    ]
    usable = ~failed & ~missing
    broken = np.zeros(len(rows), dtype=bool)
    for limit, test, words in (
        (check.min, np.less, "below"),
        (check.max, np.greater, "above"),
        (check.equals, np.not_equal, "not"),
    ):
        if limit is not None:
            where = usable & test(value, limit)
            broken |= where
            said.append((where, lambda i, limit=limit, words=words: f"{value[i]:.6g} is {words} {limit:g}"))  # type: ignore[misc]
    levels = np.zeros(len(rows), dtype=np.int64)
    if check.change is not None:
        change = _judge_change(table, check.change, rows, usable)
        broken |= change.broken
        said += change.said
        bounded = check.min is not None or check.max is not None or check.equals is not None
        if not bounded:
            levels[change.idle & usable] = NOT_JUDGED
        levels[change.without & usable] = ERROR
        said.append((change.without & usable & ~broken, lambda i: change.complaint))
        if check.change.against == "history" and not from_suite:
            said.append(_mark_short_series(table, rows, levels, check.change, change.idle & usable))
    levels[broken | missing] = severity
    levels[failed] = ERROR
    _wait(levels, table.series[rows], severity, check.after, said)
    return Judged(rows, levels, said)


def _failure(table: MetricTable, row: int) -> str:
    reason = str(table.frame["reason"].iloc[table.reasons[row]]) if "reason" in table.frame else ""
    return reason or "the finding could not be computed"


def _wait(
    levels: np.ndarray, series: np.ndarray, severity: int, after: int, said: list[tuple[np.ndarray, Say]]
) -> None:
    """Let the outcome pass until it has come `after` times in a row."""
    if after < 2:
        return
    place = np.arange(len(levels))
    fresh = np.concatenate([[True], series[1:] != series[:-1]])
    breaks = np.where(levels != severity, place, np.where(fresh, place - 1, -1))
    in_a_row = place - np.maximum.accumulate(breaks)
    levels[(levels == severity) & (in_a_row < after)] = PASS


@dataclass
class _Change:
    """What a change says of each row: bounds broken, nothing to be held against yet, or no reference at all."""

    broken: np.ndarray
    idle: np.ndarray
    without: np.ndarray
    said: list[tuple[np.ndarray, Say]]
    complaint: str = ""


def _judge_change(table: MetricTable, change: ChangeSpec, rows: np.ndarray, usable: np.ndarray) -> _Change:
    if change.against == "history":
        return _judge_history(table, change, rows, usable)
    without = np.zeros(len(rows), dtype=bool)
    complaint = ""
    if change.against == "reference":
        earlier, itself = _reference(table, change, rows)
        without = np.isnan(earlier.value) & ~itself
        assert change.reference is not None
        complaint = f"there is no such finding of {_named(change.reference.run, change.reference.step)}"
        idle = itself
    else:
        find = changes.first_place if change.against == "first" else changes.previous_place
        place = find(table.value, table.start)[rows]
        earlier = Earlier.from_rows(place, table.value, table.low, table.high, table.step)
        idle = place < 0
    found = _Change(np.zeros(len(rows), dtype=bool), idle, without, [], complaint)
    value = table.value[rows]
    with np.errstate(invalid="ignore"):
        moved = value - earlier.value
    comparable = usable & ~idle & ~without
    _hold_against(found, change, table, rows, earlier, moved, comparable)
    return found


def _named(run: str | None, step: int | None) -> str:
    return " ".join(filter(None, (f"run {run!r}" if run else "", f"at step {step}" if step is not None else "")))


def _reference(table: MetricTable, change: ChangeSpec, rows: np.ndarray) -> tuple[Earlier, np.ndarray]:
    """What each row is held against, and which rows are the reference themselves."""
    assert change.reference is not None
    run, step = change.reference.run, change.reference.step
    known = np.isfinite(table.value)
    if run is not None:
        code = np.flatnonzero(table.names["run"] == run)
        known &= np.isin(table.codes["run"], code)
    series = table.place if run is not None else table.series
    known_rows = np.flatnonzero(known)
    known_rows = known_rows[np.lexsort((table.step[known_rows], series[known_rows]))]
    wanted = table.step[rows] if step is None else np.full(len(rows), step, dtype=np.int64)
    found = changes.reference_place(
        series[rows], wanted, series[known_rows], table.step[known_rows], exact=step is not None
    )
    place = np.where(found >= 0, known_rows[found] if len(known_rows) else -1, -1)
    same_run = np.ones(len(rows), dtype=bool) if run is None else np.isin(table.codes["run"][rows], code)
    itself = same_run & (table.step[rows] == wanted)
    return Earlier.from_rows(place, table.value, table.low, table.high, table.step), itself


def _hold_against(
    found: _Change,
    change: ChangeSpec,
    table: MetricTable,
    rows: np.ndarray,
    earlier: Earlier,
    moved: np.ndarray,
    comparable: np.ndarray,
) -> None:
    """The bounds that need one value to be held against."""
    counts = comparable & _counts(change, table, rows, earlier, moved)
    size = np.abs(moved)

    def moved_from(i: int) -> str:
        at = f" at step {earlier.step[i]}" if earlier.step[i] >= 0 else ""
        return f"moved by {size[i]:.6g} from {earlier.value[i]:.6g}{at}"

    for limit, base in ((change.max_absolute, 1.0), (change.max_relative, np.abs(earlier.value))):
        if limit is not None:
            with np.errstate(invalid="ignore"):
                where = counts & (size > limit * base)
            # Of two bounds that are both broken one sentence is enough.
            found.said.append((where & ~found.broken, moved_from))
            found.broken |= where
    if change.min_relative is not None:
        way = {"either": size, "up": moved, "down": -moved}[change.direction]
        with np.errstate(invalid="ignore"):
            where = comparable & ~(way >= change.min_relative * np.abs(earlier.value))
        found.said.append(
            (where, lambda i: f"has not moved from {earlier.value[i]:.6g} at step {earlier.step[i]}")
        )
        found.broken |= where


def _counts(
    change: ChangeSpec, table: MetricTable, rows: np.ndarray, earlier: Earlier, moved: np.ndarray
) -> np.ndarray:
    """The moves that count: in the right direction, and beyond all tolerances."""
    size = np.abs(moved)
    with np.errstate(invalid="ignore"):
        counts = size > 0
        if change.direction != "either":
            counts &= moved > 0 if change.direction == "up" else moved < 0
        if change.tolerance:
            counts &= size > change.tolerance
        if change.relative_tolerance:
            counts &= size > change.relative_tolerance * np.abs(earlier.value)
        if change.beyond_interval:
            value = table.value[rows]
            counts &= size > changes.explained(value, table.low[rows], table.high[rows], earlier)
    return counts


def _judge_history(table: MetricTable, change: ChangeSpec, rows: np.ndarray, usable: np.ndarray) -> _Change:
    value, start = table.value[rows], table.start
    window = changes.windows(table.value, start, rows, change.window)
    idle = np.isfinite(window).sum(axis=1) < change.min_points
    nothing = np.zeros(len(rows), dtype=bool)
    found = _Change(nothing.copy(), idle, nothing.copy(), [])
    comparable = usable & ~idle
    z, center = changes.robust_z(value, window)
    usual = Earlier(center, center, center, np.full(len(rows), -1))
    with np.errstate(invalid="ignore"):
        from_usual = value - center
    _hold_against(found, change, table, rows, usual, from_usual, comparable)
    if change.max_robust_z is not None:
        counts = comparable & _counts(change, table, rows, usual, from_usual)
        where = counts & (np.abs(z) > change.max_robust_z)
        found.said.append(
            (
                where,
                lambda i: f"{value[i]:.6g} is {abs(z[i]):.3g} robust deviations from the median {center[i]:.6g}",
            )
        )
        found.broken |= where
    if change.max_growth is not None:
        _hold_growth(found, change, table, rows, comparable)
    if change.change_point is not None:
        _hold_shift(found, change, table, rows, window, comparable)
    return found


def _hold_growth(
    found: _Change, change: ChangeSpec, table: MetricTable, rows: np.ndarray, comparable: np.ndarray
) -> None:
    place = changes.previous_place(table.value, table.start)
    before = Earlier.from_rows(place, table.value, table.low, table.high, table.step)
    with np.errstate(invalid="ignore"):
        moves = table.value - before.value
    earlier_moves = changes.windows(moves, table.start, rows, change.window)
    grown = changes.growth(moves[rows], earlier_moves)
    here = Earlier(*(column[rows] for column in (before.value, before.low, before.high, before.step)))
    where = comparable & _counts(change, table, rows, here, moves[rows]) & (grown > change.max_growth)
    found.said.append(
        (where, lambda i: f"moved by {abs(moves[rows[i]]):.6g} from {here.value[i]:.6g} at step {here.step[i]}, "
                          f"{grown[i]:.3g} times as far as ever in {change.window} checkpoints before")
    )  # fmt: skip
    found.broken |= where


def _hold_shift(
    found: _Change,
    change: ChangeSpec,
    table: MetricTable,
    rows: np.ndarray,
    window: np.ndarray,
    comparable: np.ndarray,
) -> None:
    assert change.change_point is not None
    value = table.value[rows]
    p, place, shift = changes.pettitt(np.concatenate([window, value[:, None]], axis=1))
    counts = np.abs(shift) > change.tolerance
    if change.direction != "either":
        counts &= shift > 0 if change.direction == "up" else shift < 0
    counts &= np.abs(shift) > change.relative_tolerance * np.abs(changes.middle(window))
    where = comparable & counts & (p < change.change_point)

    def shifted(i: int) -> str:
        at = table.step[max(table.start[rows[i]], rows[i] - change.window + place[i])]
        return f"its level moved by {shift[i]:.6g} after step {at} (Pettitt's test, p = {p[i]:.2g})"

    found.said.append((where, shifted))
    found.broken |= where


def _mark_short_series(
    table: MetricTable, rows: np.ndarray, levels: np.ndarray, change: ChangeSpec, idle: np.ndarray
) -> tuple[np.ndarray, Say]:
    """Make an error of the last row of each series in which the history was too short for every row."""
    series = table.series[rows]
    last = np.concatenate([series[1:] != series[:-1], [True]])
    numbers, inverse = np.unique(series, return_inverse=True)
    judged_somewhere = np.zeros(len(numbers), dtype=bool)
    np.logical_or.at(judged_somewhere, inverse, ~idle)
    where = last & idle & ~judged_somewhere[inverse]
    levels[where] = ERROR
    count = change.min_points
    return where, lambda i: f"there are fewer than {count} earlier values to hold it against"
