"""The pictures of attribution: each method over the steps, all methods side by side, and how complete and large maps are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.report.text import plain_number, plain_step
from stratascope.tasks.representation.pictures import even_choice, figure_key, leading_probe, table_of, worded
from stratascope.tasks.vision.attribution_forms import form_figure
from stratascope.tasks.vision.attribution_pictures import FiledMaps, marked_caution, marked_title
from stratascope.tasks.vision.attribution_words import MEANINGS
from stratascope.tasks.vision.attribution_words import WORDS as _WORDS

if TYPE_CHECKING:
    import pandas as pd

    from stratascope.tasks.contexts import View
    from stratascope.tasks.vision.attribution_methods import AttributionMethod

_COLUMNS = 5
"""So many steps stand side by side at most."""
_FRAMES = 8
_BESIDE = 4
"""So many samples stand beside each other where all methods are compared."""
_TABLE = ("step", "probe", "part", "value", "low", "high", "n", "unit", "estimator", "convention")


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe all methods side by side; for the leading one each method over the steps, its forms, and curves."""
    found = view.metric("attribution_size")
    present = [name for name in found["probe"].unique() if name in view.probes]
    if not present:
        return
    lead = leading_probe(view, present)
    for name in sorted(present, key=lambda probe: (probe != lead, probe)):
        filed = FiledMaps(view, view.probes[name])
        yield _side_by_side(filed, name == lead)
        if name != lead:
            continue
        for method in filed.methods:
            yield _over_steps(filed, method)
            if method.family == "gradient" and method.signed:
                yield form_figure(filed, method)
        for figure in (_gaps(view, filed), _sizes(view, filed)):
            if figure is not None:
                yield figure


def _summed(maps: np.ndarray) -> np.ndarray:
    """(sample, y, x): added over the channels."""
    return maps.sum(1)


def _over_steps(filed: FiledMaps, method: AttributionMethod) -> Figure:
    from stratascope.tasks.vision.map_drawing import (
        ColourScale,
        picture_grid,
        scale_bound,
        signed_colours,
        size_colours,
    )

    steps = even_choice(filed.steps(method.name), _COLUMNS)
    maps = {step: _summed(found) for step in steps if (found := filed.maps(method.name, step)) is not None}
    bound = scale_bound(np.stack(list(maps.values())))
    colours = signed_colours if method.signed else size_colours
    lines: list[list[np.ndarray | None]] = []
    for row in range(len(filed.rows)):
        shown: list[np.ndarray | None] = [] if filed.pictures is None else [filed.pictures[row]]
        lines.append(shown + [colours(found[row], bound) for found in maps.values()])
    heads = [*([] if filed.pictures is None else ["picture"]), *(f"step {plain_step(step)}" for step in maps)]
    scale = ColourScale(f"{method.title.lower()}, added over channels", bound, method.signed)
    rows = filed.view.metric("attribution_size", probe=filed.probe.name, part=f"method={method.name}")
    agree, count = filed.agreeing(steps[-1])
    blank = sum(not found.any() for found in maps[steps[-1]])
    warnings = filed.warnings(method.name)
    numbers = {
        "title": method.title, "formula": method.formula, "source": method.source, "lies": method.lies_when.rstrip("."),
        "meaning": MEANINGS[_kind(method)], "bound": plain_number(float(f"{bound:.3g}")),
        "first": plain_step(steps[0]), "last": plain_step(steps[-1]), "agree": agree, "count": count, "blank": blank,
        "shown": len(filed.rows), "low": rows["value"].iloc[0], "high": rows["value"].iloc[-1],
        "warning": marked_caution(warnings),
    }  # fmt: skip
    return worded(
        _WORDS["steps"], numbers, key=figure_key("steps", filed.probe.name, method.name),
        title=marked_title(f"{method.title} over training, probe {filed.probe.name}", warnings),
        svg=picture_grid(lines, filed.names, heads, scale=scale), run=filed.view.run, probe=filed.probe.name,
        table=table_of(rows, _TABLE),
    )  # fmt: skip


def _kind(method: AttributionMethod) -> str:
    """Which of the meanings of colours holds for a method's maps."""
    slope = method.family == "gradient" and method.name != "gradient_times_input"
    return "unsigned" if not method.signed else "slope" if slope else "signed"


def _side_by_side(filed: FiledMaps, leads: bool) -> Figure:
    from stratascope.tasks.vision.map_drawing import ColourScale, moving_picture_grid, scale_bound, signed_colours

    steps = even_choice(filed.all_steps, _FRAMES)
    beside = list(range(min(_BESIDE, len(filed.rows))))
    # Samples are ordered by class: an even choice shows different ones.
    beside = even_choice(list(range(len(filed.rows))), _BESIDE) if len(filed.rows) > _BESIDE else beside
    names: list[str] = [] if filed.pictures is None else ["picture"]
    head: list[list[np.ndarray | None]] = (
        [] if filed.pictures is None else [[filed.pictures[row] for row in beside]]
    )
    frames: list[list[list[np.ndarray | None]]] = [list(head) for _ in steps]
    warned = []
    for method in filed.methods:
        maps = [filed.maps(method.name, step) for step in steps]
        known = [found for found in maps if found is not None]
        if not known:
            continue
        sums = [np.full_like(_summed(known[0]), np.nan) if found is None else _summed(found) for found in maps]
        bound = scale_bound(np.stack(sums))
        if filed.warnings(method.name):
            warned.append(method.title)
        names.append(f"{method.title} (!)" if filed.warnings(method.name) else method.title)
        for place, found in enumerate(sums):
            frames[place].append(
                [signed_colours(found[row] / bound if bound else found[row], 1.0) for row in beside]
            )
    agree, count = filed.agreeing(steps[-1])
    numbers = {
        "methods": len(filed.methods), "agree": agree, "count": count, "last": plain_step(steps[-1]), "shown": len(beside),
        "warned": f"Those marked (!) come with a warning on this network: {', '.join(warned)}." if warned else "No method comes with a warning on this network.",
    }  # fmt: skip
    scale = ColourScale("share of the size at which the method's colour is full", 1.0, True)
    rows = filed.view.metric("attribution_size", probe=filed.probe.name)
    return worded(
        _WORDS["methods"], numbers, key=figure_key("methods", filed.probe.name),
        title=marked_title(f"All methods side by side, probe {filed.probe.name}", "some" if warned else ""),
        frames=moving_picture_grid(steps, frames, names, [filed.names[row] for row in beside], scale=scale, width=_wide(len(beside))),
        run=filed.view.run, probe=filed.probe.name, headline=leads, table=table_of(rows, _TABLE),
    )  # fmt: skip


def _wide(columns: int) -> float:
    """Inches that keep many rows of methods short enough for a screen."""
    return 2.5 + 1.15 * columns


def _method_of(rows: pd.DataFrame) -> pd.Series:
    return rows["part"].str.extract(r"method=([^;]+)")[0]


def _gaps(view: View, filed: FiledMaps) -> Figure | None:
    """How far the maps of every method that should add up are from it, relatively, over the steps."""
    from stratascope.tasks.report.style import lines

    rows = view.rows.sort_values("step")
    rows = rows[
        (rows["probe"] == filed.probe.name) & (rows["status"] == "ok") & rows["part"].str.endswith("kind=relative")
    ]
    if not len(rows):
        return None
    rows = rows.assign(method=_method_of(rows))
    series, bands = {}, {}
    for method in filed.methods:
        own = rows[rows["method"] == method.name]
        if len(own):
            title = f"{method.title} (!)" if filed.warnings(method.name) else method.title
            series[title] = (list(own["step"]), list(own["value"]))
            if (own["low"] > 0).all():
                bands[title] = (list(own["low"]), list(own["high"]))
    newest = rows[rows["step"] == rows["step"].max()]
    warning = "".join(marked_caution(filed.warnings(name)) for name in newest["method"].unique())
    worst = newest.loc[newest["value"].idxmax()]
    titles = {method.name: method.title for method in filed.methods}
    numbers = {
        "worst": titles.get(worst["method"], worst["method"]), "value": f"{worst['value']:.2%}",
        "high": f"{worst['high']:.1%}", "step": plain_step(worst["step"]), "n": int(worst["n"]),
        "warning": warning,
    }  # fmt: skip
    return worded(
        _WORDS["gaps"], numbers, key=figure_key("completeness", filed.probe.name),
        title=marked_title(f"How far maps are from adding up, probe {filed.probe.name}", warning),
        svg=lines(series, "relative gap", logarithmic=True, bands=bands), run=view.run, probe=filed.probe.name,
        table=table_of(rows, _TABLE),
    )  # fmt: skip


def _sizes(view: View, filed: FiledMaps) -> Figure | None:
    """How large the maps of each method are, against the last step's."""
    from stratascope.tasks.report.style import lines

    rows = view.metric("attribution_size", probe=filed.probe.name)
    rows = rows.assign(method=_method_of(rows))
    series, warned = {}, []
    for method in filed.methods:
        own = rows[rows["method"] == method.name]
        last = own["value"].iloc[-1]
        if len(own) > 1 and last > 0:
            title = f"{method.title} (!)" if filed.warnings(method.name) else method.title
            warned += [method.name] if filed.warnings(method.name) else []
            series[title] = (list(own["step"]), list(own["value"] / last))
    if not series:
        return None
    warning = "".join(marked_caution(filed.warnings(name)) for name in warned)
    # By how much each method's size changed over the run, whichever way.
    spans = {
        name: max(values) / min(values) if min(values) > 0 else np.inf for name, (_, values) in series.items()
    }
    most, least = max(spans, key=lambda name: spans[name]), min(spans, key=lambda name: spans[name])
    numbers = {
        "most": most, "span": plain_number(float(f"{spans[most]:.3g}")), "least": least,
        "small": plain_number(float(f"{spans[least]:.3g}")), "n": int(rows["n"].iloc[-1]),
        "warning": warning,
    }  # fmt: skip
    return worded(
        _WORDS["sizes"], numbers, key=figure_key("sizes", filed.probe.name),
        title=marked_title(f"Size of the maps over training, probe {filed.probe.name}", warning),
        svg=lines(series, "size by final size", logarithmic=True), run=view.run, probe=filed.probe.name,
        table=table_of(rows, _TABLE),
    )  # fmt: skip
