"""The page of past audits: when, what was new, what changed, and the verdicts side by side."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stratascope.storage.history import NOTABLE, read_history
from stratascope.storage.store import Store
from stratascope.tasks.report.text import counted, joined, shortened

MOST_ROWS = 1000
"""The page shows so many rows, the latest ones; `stratascope history` has them all."""
_MOST_BARS = 240
"""The strip shows at most so many bars; where there are more audits, one stands for several and shows the worst."""
_LEVELS = ("pass", "info", "warn", "fail", "error")
_LONGEST = 120


def moment(stamp: str) -> str:
    """2026-11-24T21:29:16Z as 2026-11-24 21:29 UTC."""
    return f"{stamp[:10]} {stamp[11:16]} UTC" if len(stamp) >= 16 else stamp


def folded(history: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each audit that brought something; those with nothing new in between are joined.

    Rows are in the order of `history` and hold ``first`` and ``last`` (UTC), ``count``, ``seconds``, ``new`` (how many
    checkpoints), ``sentences``, ``verdict`` and ``quiet``, whether nothing was new.
    """
    rows: list[dict[str, Any]] = []
    for entry in history:
        finished = f"{entry['finished'][:10]} {entry['finished'][11:16]}"
        quiet = entry["nothing_new"]
        if quiet and rows and rows[-1]["quiet"] and rows[-1]["verdict"] == entry["verdict"]:
            rows[-1]["last"] = finished
            rows[-1]["count"] += 1
            rows[-1]["seconds"] += entry["seconds"]
            continue
        rows.append(
            {"first": finished, "last": finished, "count": 1, "seconds": entry["seconds"], "new": len(entry["new"]),
             "sentences": told(entry), "verdict": entry["verdict"], "quiet": quiet}
        )  # fmt: skip
    return rows


def told(entry: Mapping[str, Any]) -> list[str]:
    """What an audit brought, in sentences."""
    if entry["nothing_new"]:
        return ["Nothing new."]
    sentences = []
    if entry["new"]:
        sentences.append(f"{counted(len(entry['new']), 'checkpoint')} computed: {joined(list(entry['new']), 3)}.")
    before = entry["verdict_before"]
    if before is None:
        sentences.append("The first audit.")
    elif before != entry["verdict"]:
        sentences.append(f"The verdict went from {before} to {entry['verdict']}.")
    for label, key in (("Newly raised", "newly_raised"), ("No longer raised", "cleared")):
        if entry[key]:
            sentences.append(f"{label}: {joined([shortened(name, 60) for name in entry[key]], 4)}.")
    for status in NOTABLE:
        files = [_with_reason(item) for item in entry["newly"].get(status, ())]
        if files:
            sentences.append(f"Newly {status}: {joined(files, 3)}.")
    if entry["failures"]:
        failures = [shortened(text.rstrip("."), _LONGEST) for text in entry["failures"]]
        sentences.append(f"Not computed: {joined(failures, 2)}.")
    return sentences


def history_page(store: Store) -> dict[str, Any]:
    """The variables of the page."""
    history = read_history(store)
    rows = folded(history)
    shown = rows[-MOST_ROWS:][::-1]
    return {
        "heading": "Past audits",
        "count": len(history),
        "since": moment(history[0]["finished"]) if history else "",
        "until": moment(history[-1]["finished"]) if history else "",
        "tally": _tally(history),
        "bars": bars([entry["verdict"] for entry in history]),
        "each": -(-len(history) // _MOST_BARS) if history else 1,
        "rows": shown,
        "left_out": len(rows) - len(shown),
    }


def bars(verdicts: Sequence[str]) -> list[dict[str, Any]]:
    """One bar for each verdict, or for equal numbers of them: ``level`` is the worst, ``height`` grows with it.

    `x` and `width` share the interval 0 to 1000, `height` is at most 24.
    """
    if not verdicts:
        return []
    each = -(-len(verdicts) // _MOST_BARS)
    groups = [verdicts[start : start + each] for start in range(0, len(verdicts), each)]
    worst = [max(group, key=_rank) for group in groups]
    width = 1000 / len(worst)
    return [
        {"level": level, "x": round(place * width, 2), "width": round(max(width * 0.86, width - 2), 2),
         "height": 4 + 5 * _rank(level)}
        for place, level in enumerate(worst)
    ]  # fmt: skip


def _rank(level: str) -> int:
    return _LEVELS.index(level) if level in _LEVELS else 0


def _tally(history: Sequence[Mapping[str, Any]]) -> str:
    counts = [(level, sum(entry["verdict"] == level for entry in history)) for level in _LEVELS]
    return ", ".join(f"{count:,} {level}" for level, count in counts if count)


def _with_reason(item: Mapping[str, str]) -> str:
    reason = shortened(item["reason"].rstrip("."), _LONGEST)
    return shortened(item["file"], 60) + (f" ({reason})" if reason else "")
