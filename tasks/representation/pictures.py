"""What the drawings of this folder share: keys, worded figures, and grids of a metric by step."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.representation.features import INPUT

if TYPE_CHECKING:
    import pandas as pd

    from stratascope.tasks.contexts import View

_TEXTS = ("shows", "reading", "caution", "audience", "practitioner", "researcher")


def figure_key(*parts: str) -> str:
    """A key of letters, digits, '.', '_' and '-'; a checksum keeps names apart that look alike after cleaning."""
    name = "-".join(part for part in parts if part)
    clean = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:80]
    return clean if clean == name else f"{clean}-{zlib.crc32(name.encode()):08x}"


def worded(words: Mapping[str, str], numbers: Mapping[str, Any], **figure: Any) -> Figure:
    """A figure with the six texts of `words`, into which the run's own `numbers` are put."""
    texts: dict[str, Any] = {name: words[name].format_map(dict(numbers)) for name in _TEXTS}
    return Figure(**texts, **figure)


def layer_title(layer: str) -> str:
    """The name of a layer for people."""
    return "raw inputs" if layer == INPUT else layer


def leading_probe(view: View, names: Iterable[str]) -> str:
    """The probe that a figure over all of `names` speaks of: the first whose role is `test`, or the first."""
    ordered = sorted(names)
    return next((name for name in ordered if name in view.probes and view.probes[name].role == "test"), ordered[0])


def table_of(rows: pd.DataFrame, columns: Iterable[str]) -> dict[str, list[Any]]:
    """The raw numbers behind a figure, by column."""
    return {name: rows[name].tolist() for name in columns}


def grid_of(rows: pd.DataFrame, column: str, names: Sequence[str]) -> tuple[np.ndarray, list[int]]:
    """Values (name, step) of `rows`, whose `column` names their line, NaN where there is none; and the steps."""
    steps = sorted({int(step) for step in rows["step"]})
    lines = {name: number for number, name in enumerate(names)}
    places = {step: number for number, step in enumerate(steps)}
    grid = np.full((len(lines), len(steps)), np.nan)
    for name, step, value in zip(rows[column], rows["step"], rows["value"], strict=True):
        if name in lines:
            grid[lines[name], places[int(step)]] = value
    return grid, steps


def lines_by(
    rows: pd.DataFrame, column: str, names: Sequence[str]
) -> tuple[dict[str, tuple[list[int], list[float]]], dict[str, tuple[list[float], list[float]]]]:
    """(steps, values) of each of `names` in `column` that has rows, and (low, high) of those that have intervals."""
    series, bands = {}, {}
    for name in names:
        own = rows[rows[column] == name]
        if not len(own):
            continue
        series[name] = (list(own["step"]), list(own["value"]))
        if own["low"].notna().any():
            bands[name] = (list(own["low"]), list(own["high"]))
    return series, bands


def even_choice(steps: Sequence[int], most: int) -> list[int]:
    """At most `most` of `steps`, evenly over their order, the first and the last among them."""
    if len(steps) <= most:
        return [int(step) for step in steps]
    return [int(steps[round(place * (len(steps) - 1) / (most - 1))]) for place in range(most)]
