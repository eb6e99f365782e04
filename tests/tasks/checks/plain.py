"""The conditions a second time, one row after the other and without NumPy's tricks: what `evaluate` is held against."""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from fnmatch import fnmatchcase
from typing import Any

from stratascope.tasks.checks.spec import CheckSpec
from stratascope.tasks.checks.suites import expand

KEYS = ("run", "probe", "layer", "part", "other_run", "other_layer")
Row = dict[str, Any]


def evaluate(rows: list[Row], checks: list[CheckSpec]) -> tuple[Counter, set]:
    """How often each check came out how, by run; and all that is no pass, as (check, run, probe, layer, part, step, level)."""
    counts: Counter = Counter()
    raised = set()
    bad = {(row["run"], row["step"]) for row in rows if row["metric"] == "non_finite_count" and row["value"] > 0}
    for check, suite in expand(checks):
        chosen = [row for row in rows if concerns(row, check) and not (suite and row["status"] == "failed" and (row["run"], row["step"]) in bad)]  # fmt: skip
        judged = [row for row in chosen if row["subject"] and fits(row["run"], check.run) and in_span(row["step"], check.steps)]  # fmt: skip
        if not judged and not suite:
            counts[check.name, "", "error"] += 1
            raised.add((check.name, "", "", "", "", -1, "error"))
        series: dict[tuple, list[Row]] = {}
        for row in chosen:
            series.setdefault(tuple(row[key] for key in KEYS), []).append(row)
        for key, members in series.items():
            members.sort(key=lambda row: row["step"])
            for row, level in judge_series(members, judged, series, check, bool(suite)):
                counts[check.name, key[0], level] += 1
                if level not in ("pass", "not_judged"):
                    raised.add((check.name, *key[:4], row["step"], level))
    return counts, raised


def concerns(row: Row, check: CheckSpec) -> bool:
    return (
        row["metric"] == check.metric
        and row["status"] != "does_not_apply"
        and all(fits(row[key], getattr(check, key)) for key in ("layer", "probe", "part"))
    )


def fits(name: str, pattern: str) -> bool:
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return fnmatchcase(name, pattern)


def in_span(step: int, steps: Any) -> bool:
    first, last = steps or (None, None)
    return (first is None or step >= first) and (last is None or step <= last)


def judge_series(
    members: list[Row], judged: list[Row], series: dict, check: CheckSpec, suite: bool
) -> list[tuple[Row, str]]:
    wanted = [place for place, row in enumerate(members) if any(row is item for item in judged)]
    levels = {place: judge_row(members, place, series, check) for place in wanted}
    if check.change and check.change.against == "history" and not suite and wanted:
        idle = [place for place in wanted if history_is_short(members, place, check)]
        usable = [place for place in idle if members[place]["status"] != "failed" and not math.isnan(members[place]["value"])]  # fmt: skip
        if len(wanted) == len(usable) and not broken_bounds(members[wanted[-1]]["value"], check):
            levels[wanted[-1]] = "error"
    in_a_row = 0
    found = []
    for place in wanted:
        level = levels[place]
        in_a_row = in_a_row + 1 if level == check.severity else 0
        found.append((members[place], "pass" if level == check.severity and in_a_row < check.after else level))
    return found


def history_is_short(members: list[Row], place: int, check: CheckSpec) -> bool:
    window = members[max(0, place - check.change.window) : place]
    return sum(math.isfinite(row["value"]) for row in window) < check.change.min_points


def broken_bounds(value: float, check: CheckSpec) -> bool:
    return (
        (check.min is not None and value < check.min)
        or (check.max is not None and value > check.max)
        or (check.equals is not None and value != check.equals)
    )


def judge_row(members: list[Row], place: int, series: dict, check: CheckSpec) -> str:
    row = members[place]
    value = row["value"]
    if row["status"] == "failed":
        return "error"
    if math.isnan(value):
        return check.severity
    broken = broken_bounds(value, check)
    if check.change is None:
        return check.severity if broken else "pass"
    if check.change.against == "history":
        state = "idle" if history_is_short(members, place, check) else judge_history(members, place, check)
    else:
        state = judge_change(members, place, series, check)
    if broken or state == "broken":
        return check.severity
    if state == "without":
        return "error"
    bounded = check.min is not None or check.max is not None or check.equals is not None
    return "pass" if state == "held" or bounded else "not_judged"


def judge_change(members: list[Row], place: int, series: dict, check: CheckSpec) -> str:
    row = members[place]
    finite = [item for item in members if math.isfinite(item["value"])]
    before = [item for item in members[:place] if math.isfinite(item["value"])]
    if check.change.against == "previous":
        if not before:
            return "idle"
        earlier = before[-1]
    elif check.change.against == "first":
        if not before:
            return "idle"
        earlier = finite[0]
    else:
        found = find_reference(row, series, check)
        if isinstance(found, str):
            return found
        earlier = found
    return "broken" if bounds_broken(row, earlier, row["value"] - earlier["value"], check) else "held"


def find_reference(row: Row, series: dict, check: CheckSpec) -> Row | str:
    wanted = check.change.reference
    run = wanted.run if wanted.run is not None else row["run"]
    step = wanted.step if wanted.step is not None else row["step"]
    if row["run"] == run and row["step"] == step:
        return "idle"
    others = [
        item for item in series.get((run, *(row[key] for key in KEYS[1:])), []) if math.isfinite(item["value"])
    ]
    if wanted.step is not None:
        others = [item for item in others if item["step"] == step]
    if not others:
        return "without"
    return min(others, key=lambda item: (abs(item["step"] - step), item["step"]))


def bounds_broken(row: Row, earlier: Row, moved: float, check: CheckSpec) -> bool:
    change = check.change
    size, base = abs(moved), abs(earlier["value"])
    if counts(row, earlier, moved, change):
        if change.max_absolute is not None and size > change.max_absolute:
            return True
        if change.max_relative is not None and size > change.max_relative * base:
            return True
    if change.min_relative is not None:
        way = {"either": size, "up": moved, "down": -moved}[change.direction]
        return not way >= change.min_relative * base
    return False


def counts(row: Row, earlier: Row, moved: float, change: Any) -> bool:
    size = abs(moved)
    right_way = {"either": size > 0, "up": moved > 0, "down": moved < 0}[change.direction]
    beyond = size > change.tolerance if change.tolerance else True
    if change.relative_tolerance:
        beyond = beyond and size > change.relative_tolerance * abs(earlier["value"])
    if change.beyond_interval:
        if moved < 0:
            sides = (row["high"] - row["value"], earlier["value"] - earlier["low"])
        else:
            sides = (row["value"] - row["low"], earlier["high"] - earlier["value"])
        beyond = beyond and size > math.hypot(*(0.0 if math.isnan(side) else side for side in sides))
    return right_way and beyond


def judge_history(members: list[Row], place: int, check: CheckSpec) -> str:
    change, row = check.change, members[place]
    window = [item["value"] for item in members[max(0, place - change.window) : place]]
    known = [value for value in window if math.isfinite(value)]
    center = statistics.median(known)
    usual = {"value": center, "low": center, "high": center}
    broken = bounds_broken(row, usual, row["value"] - center, check)
    if change.max_robust_z is not None and row["value"] != center:
        scale = max(1.4826 * statistics.median(abs(value - center) for value in known), 0.01 * abs(center))
        z = abs(row["value"] - center) / scale if scale else math.inf
        broken |= z > change.max_robust_z and counts(row, usual, row["value"] - center, change)
    if change.max_growth is not None:
        broken |= grew(members, place, change)
    if change.change_point is not None:
        broken |= shifted([*window, row["value"]], change)
    return "broken" if broken else "held"


def grew(members: list[Row], place: int, change: Any) -> bool:
    moves: list[float] = []
    last = None
    for row in members[: place + 1]:
        moves.append(
            row["value"] - last["value"] if last is not None and not math.isnan(row["value"]) else math.nan
        )
        before, last = last, row if math.isfinite(row["value"]) else last
    move, earlier = moves[-1], moves[:-1][-change.window :]
    if move == 0 or not counts(members[place], before, move, change):
        return False
    largest = max((abs(item) for item in earlier if math.isfinite(item)), default=0.0)
    return abs(move) > change.max_growth * largest if largest else True


def shifted(values: list[float], change: Any) -> bool:
    known = [value for value in values if math.isfinite(value)]
    n = len(known)
    best, at = -1.0, 0
    for place in range(len(values) - 1):
        before = [value for value in values[: place + 1] if math.isfinite(value)]
        after = [value for value in values[place + 1 :] if math.isfinite(value)]
        u = abs(sum((first > second) - (first < second) for first in before for second in after))
        if u > best:
            best, at = u, place
    p = min(1.0, 2 * math.exp(-6 * best**2 / (n**3 + n**2)))
    before = [value for value in values[: at + 1] if math.isfinite(value)]
    after = [value for value in values[at + 1 :] if math.isfinite(value)]
    if not before or not after:
        return False
    size = statistics.median(after) - statistics.median(before)
    right_way = {"either": True, "up": size > 0, "down": size < 0}[change.direction]
    usual = statistics.median(value for value in values[:-1] if math.isfinite(value))
    guards = max(change.tolerance, change.relative_tolerance * abs(usual))
    return p < change.change_point and right_way and abs(size) > guards
