"""Figures on their way to the pages: drawn once, kept as small files, with their numbers beside the pages."""

from __future__ import annotations

import csv
import gzip
import hashlib
import html
import io
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
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
from stratascope.tasks.memory import returning_memory
from stratascope.tasks.report.svg import with_prefix
from stratascope.tasks.report.text import visible

FIGURES = ".figures"
MOST_FRAMES = 40
"""A slider over more steps than this shows an even choice of them."""
_LARGE_CSV = 200_000
"""Numbers that take more bytes than this are compressed."""
_WORDS = (
    "key", "title", "shows", "reading", "caution", "audience", "practitioner", "researcher", "run", "layer", "probe",
    "headline",
)  # fmt: skip


@returning_memory
def draw_analysis(store_path: str, run: str, name: str, options: dict[str, Any], show_inputs: bool = False) -> int:
    """Draw all figures of one analysis of one run into the report's folder; returns how many there are.

    Without `show_inputs` no sample is shown, only its id.
    """
    store = Store.open(store_path)
    analysis = named(name)
    with store.snapshot():
        units = store.committed(run, name)
        steps = tuple(sorted(unit.step for unit in store.committed(run, "capture")))
        view = View(store, run, name, analysis.scope, steps, store.rows(units), show_inputs)
    with drawing_folder(store, name, run) as report:
        figures = analysis.draw(view, analysis.options.model_validate(options)) if len(view.rows) else ()
        return write_figures(report, name, run, figures)


def drawing_folder(store: Store, analysis: str, run: str) -> AbstractContextManager[Path]:
    """The report's folder for who draws one analysis of one run there."""
    own = f"{FIGURES}/{encode_path_part(analysis)}/{encode_path_part(run)}"
    return store.report_folder(replaces=[own], adds=["data"])


def write_figures(report: Path, analysis: str, run: str, figures: Iterable[Figure]) -> int:
    """Write `figures` as the drawings of one analysis of one run: an index, pictures, and data beside the pages.

    Returns how many there are; they are taken one at a time.
    """
    folder = report / FIGURES / encode_path_part(analysis) / encode_path_part(run)
    shutil.rmtree(folder, ignore_errors=True)
    index = [_write_figure(report, folder, analysis, run, _thinned(figure)) for figure in figures]
    write_if_changed(folder / "index.json", json.dumps(index, sort_keys=True).encode())
    return len(index)


def _write_figure(report: Path, folder: Path, analysis: str, run: str, figure: Figure) -> dict[str, Any]:
    name = encode_path_part(f"{analysis}-{run}-{figure.key}" if run else f"{analysis}-{figure.key}")
    prefix = f"f{hashlib.sha256(name.encode()).hexdigest()[:8]}-"
    entry: dict[str, Any] = {field: getattr(figure, field) for field in _WORDS}
    entry |= {"analysis": analysis, "id": name, "steps": [step for step, _ in figure.frames]}
    entry["plotly"] = figure.plotly is not None
    frames = [with_prefix(svg, prefix) for _, svg in figure.frames]
    picture = frames[-1] if frames else with_prefix(figure.svg, prefix)
    if picture:
        entry["picture"] = (folder / f"{name}.svg").relative_to(report).as_posix()
        write_if_changed(folder / f"{name}.svg", picture.encode())
    data: dict[str, Any] = pack_frames(frames) if len(frames) > 1 else {}
    if figure.plotly is not None:
        data = {"plotly": safe_plotly(figure.plotly)}
        entry["steps"] = [int(frame["name"]) for frame in figure.plotly.get("frames", [])]
    entry["explorer"] = figure.explorer is not None
    if figure.explorer is not None:
        data, entry["steps"] = {"explorer": figure.explorer}, list(figure.explorer["steps"])
    if figure.animation:
        write_if_changed(report / "data" / f"{name}.gif", figure.animation)
        entry["animation"] = f"data/{quote(name)}.gif"
    if data:
        write_if_changed(report / "data" / f"{name}.js", script_of(name, data).encode())
        entry["script"] = f"data/{quote(name)}.js"
    if figure.table:
        numbers, ending = _csv(figure.table), "csv"
        if len(numbers) > _LARGE_CSV:
            numbers, ending = gzip.compress(numbers, mtime=0), "csv.gz"
        write_if_changed(report / "data" / f"{name}.{ending}", numbers)
        entry["csv"] = f"data/{quote(name)}.{ending}"
    return entry


def write_if_changed(path: Path, data: bytes) -> None:
    """Write `data` to `path` by a rename, unless it stands there already."""
    try:
        if path.read_bytes() == data:
            return
    except OSError:
        pass
    write_atomically(path, data)


def script_of(name: str, data: Any) -> str:
    """JavaScript that hands `data` to the page under `name`; nothing in it can end the script or start a tag."""

    def literal(value: Any) -> str:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")

    return f"(window.stratascope=window.stratascope||{{}})[{literal(name)}]={literal(_without_nan(data))};\n"


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    return [_without_nan(item) for item in value] if isinstance(value, list | tuple) else value


def pack_frames(frames: Sequence[str]) -> dict[str, Any]:
    """`frames` without their repetitions: what all begin and end with, the pieces between, and each one's pieces."""
    split = [
        [part if not number else f"<{part}" for number, part in enumerate(frame.split("<"))] for frame in frames
    ]
    head = _same_start(split)
    middles = [parts[head:] for parts in split]
    tail = _same_start([parts[::-1] for parts in middles])
    pieces: dict[str, int] = {}
    order = [
        [pieces.setdefault(piece, len(pieces)) for piece in parts[: len(parts) - tail] if piece]
        for parts in middles
    ]
    ending = middles[0][len(middles[0]) - tail :]
    return {"head": "".join(split[0][:head]), "tail": "".join(ending), "pieces": list(pieces), "frames": order}


def _same_start(lists: Sequence[Sequence[str]]) -> int:
    """How many items all of `lists` begin with."""
    count = 0
    for items in zip(*lists, strict=False):
        if len(set(items)) > 1:
            break
        count += 1
    return count


def safe_plotly(plot: Mapping[str, Any]) -> dict[str, Any]:
    """`plot` with names from outside escaped, since Plotly reads tags in its texts, and with at most `MOST_FRAMES`."""
    frames = list(plot.get("frames", ()))
    safe = {key: value for key, value in plot.items() if key != "frames"}
    if frames:
        safe["frames"] = [{**frame, "data": [_safe_trace(trace) for trace in frame["data"]]} for frame in frames]
        safe.pop("data", None)  # the page shows the last frame first
    else:
        safe["data"] = [_safe_trace(trace) for trace in plot.get("data", ())]
    return safe


def _safe_trace(trace: Mapping[str, Any]) -> dict[str, Any]:
    safe = dict(trace)
    name = str(trace.get("name", ""))
    if name:
        safe["name"] = html.escape(visible(name))
        if "hovertemplate" in safe:
            safe["hovertemplate"] = str(safe["hovertemplate"]).replace(name, "%{fullData.name}")
    for key in ("text", "hovertext"):
        if isinstance(safe.get(key), str):
            safe[key] = html.escape(visible(safe[key]))
        elif key in safe:
            safe[key] = [html.escape(visible(str(item))) for item in safe[key]]
    return safe


def _thinned(figure: Figure) -> Figure:
    """`figure` with at most `MOST_FRAMES` frames, the first and the last among them."""
    if figure.plotly is not None:
        every = list(figure.plotly.get("frames", ()))
        chosen = [every[place] for place in _chosen(len(every))]
        return replace(figure, plotly={**figure.plotly, "frames": chosen}, shows=_told(figure, len(every)))
    frames = tuple(figure.frames[place] for place in _chosen(len(figure.frames)))
    return replace(figure, frames=frames, shows=_told(figure, len(figure.frames)))


def _told(figure: Figure, frames: int) -> str:
    """What `figure` shows, and that steps are left out where some are."""
    if frames <= MOST_FRAMES:
        return figure.shows
    return f"{figure.shows} {MOST_FRAMES} of {frames:,} steps can be chosen, spread evenly over them."


def _chosen(count: int) -> list[int]:
    if count <= MOST_FRAMES:
        return list(range(count))
    return sorted({round(place * (count - 1) / (MOST_FRAMES - 1)) for place in range(MOST_FRAMES)})


def _csv(table: Mapping[str, list[Any]]) -> bytes:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*([_short(item) for item in column] for column in table.values()), strict=True))
    return stream.getvalue().encode("utf-8", "replace")


def _short(value: Any) -> Any:
    """Floats with nine significant digits, which is more than a float32 holds."""
    return f"{value:.9g}" if isinstance(value, float) else value


def read_figures(report: Path, analysis: str | None = None) -> list[dict[str, Any]]:
    """The figures that have been drawn, by analysis and run, without their pictures; damaged files are passed over."""
    found: list[dict[str, Any]] = []
    pattern = f"{encode_path_part(analysis)}/*/index.json" if analysis else "*/*/index.json"
    for path in sorted((report / FIGURES).glob(pattern)):
        try:
            found += json.loads(path.read_bytes())
        except ValueError:
            continue
    return found


def report_unit() -> Unit:
    """The unit under which the report is remembered."""
    return Unit("report", "", -1, "report")
