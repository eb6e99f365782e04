"""Figures on their way to the pages: drawn once, kept as small files, with their data beside the pages."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from stratascope.storage.manifests import write_atomically
from stratascope.storage.names import encode_path_part
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.tasks.analysis import Figure, named
from stratascope.tasks.contexts import View

FIGURES = ".figures"
MOST_FRAMES = 40
"""A slider over more steps than this shows an even choice of them."""


def draw_analysis(store_path: str, run: str, name: str, options: dict[str, Any]) -> int:
    """Draw all figures of one analysis of one run into the report's folder; returns how many there are."""
    store = Store.open(store_path)
    analysis = named(name)
    manifests = store.manifests()
    units = [unit for unit in manifests if unit.run == run and unit.analysis == name]
    steps = tuple(sorted(unit.step for unit in manifests if unit.run == run and unit.analysis == "capture"))
    view = View(store, run, name, analysis.scope, steps, store.rows(units))
    figures = analysis.draw(view, analysis.options.model_validate(options)) if len(view.rows) else []
    write_figures(store.path / "report", name, run, figures)
    return len(figures)


def write_figures(report: Path, analysis: str, run: str, figures: list[Figure]) -> None:
    """Write `figures` as the drawings of one analysis of one run: an index, and data files beside the pages."""
    index = []
    for figure in figures:
        figure = _thinned(figure)
        name = encode_path_part(f"{analysis}-{run}-{figure.key}" if run else f"{analysis}-{figure.key}")
        entry: dict[str, Any] = {
            field: getattr(figure, field)
            for field in (
                "key", "title", "shows", "reading", "caution", "audience", "practitioner", "researcher", "run",
                "layer", "probe", "svg", "headline",
            )
        }  # fmt: skip
        entry |= {"analysis": analysis, "id": name, "steps": [step for step, _ in figure.frames]}
        data: dict[str, Any] = {}
        if figure.frames:
            entry["svg"] = figure.frames[-1][1]
            data = {"frames": [svg for _, svg in figure.frames]}
        if figure.plotly is not None:
            data = {"plotly": figure.plotly}
            entry["steps"] = [int(frame["name"]) for frame in figure.plotly.get("frames", [])]
        entry["plotly"] = figure.plotly is not None
        if data:
            script = f"window.stratascope=window.stratascope||{{}};window.stratascope[{json.dumps(name)}]={json.dumps(data, separators=(',', ':'))};"
            write_atomically(report / "data" / f"{name}.js", script.encode())
            entry["script"] = f"data/{quote(name)}.js"
        if figure.table:
            write_atomically(report / "data" / f"{name}.csv", _csv(figure.table))
            entry["csv"] = f"data/{quote(name)}.csv"
        index.append(entry)
    place = report / FIGURES / encode_path_part(analysis) / f"{encode_path_part(run)}.json"
    write_atomically(place, json.dumps(index, sort_keys=True).encode())


def _thinned(figure: Figure) -> Figure:
    """`figure` with at most `MOST_FRAMES` frames, the first and the last among them."""
    count = len(figure.frames)
    if count <= MOST_FRAMES:
        return figure
    chosen = sorted({round(place * (count - 1) / (MOST_FRAMES - 1)) for place in range(MOST_FRAMES)})
    return replace(figure, frames=tuple(figure.frames[place] for place in chosen))


def _csv(table: Any) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    return stream.getvalue().encode()


def read_figures(report: Path, analysis: str | None = None) -> list[dict[str, Any]]:
    """The figures that have been drawn, by analysis and run; damaged files are passed over."""
    found: list[dict[str, Any]] = []
    pattern = f"{encode_path_part(analysis)}/*.json" if analysis else "*/*.json"
    for path in sorted((report / FIGURES).glob(pattern)):
        try:
            found += json.loads(path.read_bytes())
        except ValueError:
            continue
    return found


def report_unit() -> Unit:
    """The unit under which the report is remembered."""
    return Unit("report", "", -1, "report")
