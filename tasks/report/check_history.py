"""What the page of a check tells of its past: its outcomes over the steps of each run, and over past audits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stratascope.storage.units import CHECKS
from stratascope.tasks.checks.evaluate import ORDER
from stratascope.tasks.report.text import natural_order, plain_step

if TYPE_CHECKING:
    import pandas as pd

_WIDTH, _HEIGHT = 320.0, 24.0
_MOST_BARS = 80
"""A longer run puts several checkpoints into one bar, which shows the worst of them."""
_MOST_RUNS = 60
_MOST_AUDITS = 30
_HEIGHTS = {"pass": 0.25, "info": 0.45, "warn": 0.65, "fail": 1.0, "error": 1.0}
"""Of a bar, as a share of the strip: the outcome can be told without its colour."""


def runs_of(rows: pd.DataFrame, name: str) -> list[dict[str, Any]]:
    """For each run that the check `name` judged, a strip of bars over its steps, the worst outcome first.

    At most 60 runs; `rows` is the ledger.
    """
    chosen = rows[(rows["analysis"] == CHECKS) & (rows["part"] == f"check={name}") & (rows["step"] >= 0)]
    found = []
    for run, group in chosen.sort_values("step", kind="stable").groupby("run", sort=False):
        levels = [ORDER[int(value)] for value in group["value"]]
        steps = group["step"].tolist()
        worst = max(levels, key=ORDER.index)
        at_worst = [step for step, level in zip(steps, levels, strict=True) if level == worst]
        found.append(
            {"run": str(run), "count": len(levels), "first": steps[0], "last": steps[-1], "worst": worst,
             "latest": levels[-1], "bars": bars(levels), "label": _label(str(run), levels, at_worst)}
        )  # fmt: skip
    found.sort(key=lambda item: (-ORDER.index(item["worst"]), natural_order(item["run"])))
    return found[:_MOST_RUNS]


def bars(levels: Sequence[str]) -> list[dict[str, Any]]:
    """Bars of equal width for the outcomes `levels`, at most 80 of them, in a strip of 320 × 24."""
    count = min(len(levels), _MOST_BARS)
    made = []
    for place in range(count):
        part = levels[place * len(levels) // count : (place + 1) * len(levels) // count]
        level = max(part, key=ORDER.index)
        height = _HEIGHTS[level] * _HEIGHT
        stride = min(_WIDTH / count, 14.0)
        made.append(
            {"level": level, "x": f"{place * stride:.2f}", "y": f"{_HEIGHT - height:.1f}",
             "width": f"{stride * 0.82:.2f}", "height": f"{height:.1f}"}
        )  # fmt: skip
    return made


def _label(run: str, levels: Sequence[str], at_worst: Sequence[int]) -> str:
    counts = ", ".join(f"{levels.count(level)} {level}" for level in reversed(ORDER) if level in levels)
    where = f"; {levels[-1]} at the last one" if len(levels) > 1 else ""
    first = f"; first {max(levels, key=ORDER.index)} at step {plain_step(at_worst[0])}" if at_worst else ""
    worst = first if set(levels) != {"pass"} else ""
    return f"{run}: {counts} over {len(levels)} checkpoints{worst}{where}"


def past_audits(audits: Sequence[Mapping[str, Any]], name: str) -> list[dict[str, Any]]:
    """What the check `name` came to in past audits, newest first; audits in a row that say the same are one entry."""
    entries: list[dict[str, Any]] = []
    for audit in audits:
        condition = next((item for item in audit.get("conditions", ()) if item["name"] == name), None)
        if condition is None:
            continue
        counts = {level: condition["counts"].get(level, 0) for level in ORDER}
        told = [_told(item) for item in audit.get("alerts", ()) if item["check"] == name]
        outcome = max((level for level in ORDER if counts[level]), key=ORDER.index, default="")
        entry = {
            "from": audit["finished"], "to": audit["finished"], "audits": 1, "outcome": outcome, "counts": counts,
            "metric": condition["metric"], "bound": condition["bound"], "told": told,
        }  # fmt: skip
        same = ("outcome", "counts", "metric", "bound")
        if entries and not told and all(entries[-1][key] == entry[key] for key in same):
            entries[-1] |= {"to": entry["to"], "audits": entries[-1]["audits"] + 1}
        else:
            entries.append(entry)
    return entries[::-1][:_MOST_AUDITS]


def _told(item: Mapping[str, Any]) -> str:
    place = f" ({item['run']})" if item["run"] else ""
    failed = "" if item["delivered"] else ", not delivered"
    return f"{item['alert']}: {item['change']}{place}{failed}"
