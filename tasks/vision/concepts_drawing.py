"""The pictures of concepts: what they look like, which answers follow them, in which layers, and since when."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.report.text import plain_step, shortened
from stratascope.tasks.representation.layer_heatmaps import COLUMNS
from stratascope.tasks.representation.pictures import figure_key, leading_probe, table_of, worded
from stratascope.tasks.vision.concept_pictures import SYNTHETIC, pattern
from stratascope.tasks.vision.concepts_words import WORDS

_GREY = "#9AA3AB"
_EXAMPLES = 6
_MOST_CLASSES = 3
"""Bars and lines are drawn for so many classes, those with the clearest findings."""


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe a table of sensitivities; for the classes with the clearest findings scores by layer, and over the steps."""
    probes = sorted(view.metric("tcav_score")["probe"].unique())
    if not probes:
        return
    yield from _patterns(view, options, leading_probe(view, probes))
    for probe in probes:
        found = {step: arrays for step in view.steps if (arrays := _arrays(view, step, probe))}
        if not found:
            continue
        yield _table(view, probe, found, options)
        last = list(found.values())[-1]
        least = np.nanmin(np.where(np.isfinite(last["p_value"]), last["p_value"], 1.0), axis=(0, 1))
        for place in np.argsort(least, kind="stable")[:_MOST_CLASSES]:
            yield _bars(view, probe, list(found)[-1], last, int(place), options)
            if len(found) > 1:
                yield _course(view, probe, found, int(place), options)


def _arrays(view: View, step: int, probe: str) -> dict[str, np.ndarray]:
    every = view.arrays(step)
    own = {name.removeprefix(f"{probe}/"): values for name, values in every.items() if name.startswith(f"{probe}/")}  # fmt: skip
    return own if "score" in own else {}


def _patterns(view: View, options: Any, probe: str) -> Iterator[Figure]:
    """The patterns alone, without any sample of the probe."""
    from stratascope.tasks.vision.map_drawing import picture_grid

    shape = tuple(view.probes[probe].inputs.shape[1:])
    drawn = [name for name in SYNTHETIC if name in options.synthetic]
    if len(shape) != 3 or not drawn:
        return
    channels = shape[0] if shape[0] in (1, 3) else 1
    pictures = []
    for name in drawn:
        items = [pattern(name, number, (channels, *shape[1:]), options.seed) for number in range(_EXAMPLES)]
        pictures.append([np.round(255 * item).astype(np.uint8).transpose(1, 2, 0) for item in items])
    rows = view.metric("concept_accuracy", probe=probe)
    last = rows[(rows["step"] == rows["step"].max()) & rows["part"].isin([f"concept={name}" for name in drawn])]
    best, worst = last.loc[last["value"].idxmax()], last.loc[last["value"].idxmin()]
    numbers = {
        "strength": f"{options.strength:.0%}", "best": best["part"][8:], "best_value": best["value"], "best_layer": best["layer"],
        "worst": worst["part"][8:], "worst_value": worst["value"], "worst_layer": worst["layer"],
        "step": plain_step(int(last["step"].max())),
    }  # fmt: skip
    yield worded(
        WORDS["patterns"], numbers, key="patterns", title="The built-in concepts",
        svg=picture_grid(pictures, drawn, [""] * _EXAMPLES, width=6.4), run=view.run, table=table_of(rows, COLUMNS),
    )  # fmt: skip


def _table(view: View, probe: str, found: dict[int, dict[str, np.ndarray]], options: Any) -> Figure:
    """Mean sensitivities by layer and concept, and class, at the last step; what chance could give is grey."""
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    from stratascope.tasks.report.style import INK, new_axes, to_svg

    step, arrays = list(found.items())[-1]
    values, p = arrays["sensitivity"].mean(-1), arrays["p_value"]
    layers, concepts, classes = (arrays[name].tolist() for name in ("layer", "concept", "class"))
    flat, sure = values.reshape(-1, len(classes)), (p <= options.significance).reshape(-1, len(classes))
    bound = float(np.abs(flat).max()) or 1.0
    figure, axes = new_axes(6.6, 0.2 * len(flat) + 1.5)
    axes.grid(False)
    colours = colormaps["RdBu_r"](Normalize(-bound, bound)(flat))[..., :3]
    colours[~sure] = 0.86
    axes.imshow(colours, aspect="auto", interpolation="none")
    axes.set_yticks(range(len(flat)), [shortened(name, 20) for _ in layers for name in concepts], fontsize=8.5)
    axes.set_xticks(range(len(classes)), [shortened(name, 9) for name in classes])
    if max(len(name) for name in classes) > 4:
        axes.tick_params(axis="x", rotation=35)
    for number, layer in enumerate(layers):
        edge = number * len(concepts)
        if number:
            axes.axhline(edge - 0.5, color=INK, linewidth=1.2)
        axes.text(len(classes) - 0.4, edge + (len(concepts) - 1) / 2, shortened(layer, 16), va="center", fontsize=9.5, color=INK)  # fmt: skip
    axes.set_xlabel("class")
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    from matplotlib.cm import ScalarMappable

    bar = figure.colorbar(ScalarMappable(Normalize(-bound, bound), "RdBu_r"), ax=axes, location="top", shrink=0.55, anchor=(0, 0), pad=0.02, aspect=28)  # fmt: skip
    bar.set_label("mean cosine of gradient and concept (grey: could be chance)", color=INK, fontsize=9.5)
    bar.ax.tick_params(colors=INK, labelsize=8.5, length=2)
    bar.outline.set_visible(False)
    rows = view.metric("concept_sensitivity", probe=probe)
    rows = rows[rows["step"] == step]
    control = sure.reshape(len(layers), len(concepts), -1)[:, concepts.index("noise")] if "noise" in concepts else None  # fmt: skip
    place = np.unravel_index(int(np.where(sure.reshape(values.shape), np.abs(values), -1).argmax()), values.shape)
    numbers = {
        "step": plain_step(step), "count": int(sure.sum()), "all": sure.size, "level": options.significance,
        "sets": arrays["score"].shape[-1], "best": f"{concepts[place[1]]} in {layers[place[0]]} for class {classes[place[2]]} ({values[place]:+.2f})" if sure.any() else "nothing",
        "control": f"the control, plain noise, is marked in {int(control.sum())} of {control.size}" if control is not None else "no control of plain noise was run",
    }  # fmt: skip
    return worded(
        WORDS["table"], numbers, key=figure_key("sensitivity", probe),
        title=f"Which classes follow which concepts at the last step, probe {probe}", svg=to_svg(figure), run=view.run,
        probe=probe, table=table_of(rows, COLUMNS),
    )  # fmt: skip


def _bars(view: View, probe: str, step: int, arrays: dict[str, np.ndarray], place: int, options: Any) -> Figure:
    """Scores of one class by concept and layer, with the middle 95 % over the random sets."""
    from matplotlib.figure import Figure as Canvas

    from stratascope.tasks.report.style import COLOURS, INK, quiet, to_svg

    layers, concepts = arrays["layer"].tolist(), arrays["concept"].tolist()
    columns = min(2, len(layers))
    lines = -(-len(layers) // columns)
    canvas = Canvas(figsize=(6.6, lines * (0.24 * len(concepts) + 0.75)), dpi=72, layout="constrained")
    for number, layer in enumerate(layers):
        axes = canvas.add_subplot(lines, columns, number + 1)
        quiet(axes)
        axes.grid(False, axis="y")
        scores = arrays["score"][number, :, place]
        low, high = np.quantile(scores, (0.025, 0.975), axis=1)
        sure = arrays["p_value"][number, :, place] <= options.significance
        heights = np.arange(len(concepts))
        axes.barh(heights, scores.mean(1), height=0.68, color=[COLOURS[0] if item else _GREY for item in sure])
        axes.hlines(heights, low, high, color=INK, linewidth=1.3)
        axes.axvline(0.5, color=INK, linewidth=1, linestyle="--", alpha=0.6)
        axes.set_yticks(heights, [shortened(name, 18) for name in concepts] if number % columns == 0 else [""] * len(concepts), fontsize=9)  # fmt: skip
        axes.set(xlim=(0, 1), ylim=(len(concepts) - 0.4, -0.6))
        axes.set_title(shortened(layer, 26), fontsize=10, color=INK, loc="left")
        if number >= len(layers) - columns:
            axes.set_xlabel("TCAV score")
    label = str(arrays["class"][place])
    scores = arrays["score"][:, :, place].mean(-1)
    sure = arrays["p_value"][:, :, place] <= options.significance
    numbers = {
        "class": label, "step": plain_step(step), "sets": arrays["score"].shape[-1], "level": options.significance,
        "count": int(sure.sum()), "all": sure.size,
        "widest": float(np.ptp(arrays["score"][:, :, place], axis=-1).max()),
        "range": f"{scores[sure].min():.2f} to {scores[sure].max():.2f}" if sure.any() else "none",
    }  # fmt: skip
    rows = _rows_of_class(view, probe, label)
    return worded(
        WORDS["bars"], numbers, key=figure_key("scores", probe, label),
        title=f"Does class {label} follow the concepts? Last step, probe {probe}", svg=to_svg(canvas), run=view.run,
        probe=probe, table=table_of(rows[rows["step"] == step], COLUMNS),
    )  # fmt: skip


def _rows_of_class(view: View, probe: str, label: str) -> Any:
    from stratascope.tasks.representation.outputs import class_part

    rows = view.metric("tcav_score", probe=probe)
    return rows[rows["part"].str.endswith(f";{class_part(0, (label,))}")]


def _course(view: View, probe: str, found: dict[int, dict[str, np.ndarray]], place: int, options: Any) -> Figure:
    """Sensitivities of one class over the steps, a chart a layer; points that could be chance are grey."""
    from matplotlib.figure import Figure as Canvas
    from matplotlib.lines import Line2D

    from stratascope.tasks.report.style import COLOURS, INK, quiet, step_axis, to_svg

    last = list(found.values())[-1]
    layers, concepts = last["layer"].tolist(), last["concept"].tolist()
    steps = [step for step, arrays in found.items() if arrays["score"].shape == last["score"].shape]
    values = np.stack([found[step]["sensitivity"][:, :, place].mean(-1) for step in steps])
    sure = np.stack([found[step]["p_value"][:, :, place] <= options.significance for step in steps])
    columns = min(2, len(layers))
    lines = -(-len(layers) // columns)
    canvas = Canvas(figsize=(6.6, 2.2 * lines + 0.5), dpi=72, layout="constrained")
    handles: dict[str, Any] = {}
    for number, layer in enumerate(layers):
        axes = canvas.add_subplot(lines, columns, number + 1)
        quiet(axes)
        axes.axhline(0, color=INK, linewidth=0.8, alpha=0.5)
        for row, name in enumerate(concepts):
            colour = COLOURS[row % len(COLOURS)]
            line = values[:, number, row]
            marked = sure[:, number, row]
            (handle,) = axes.plot(steps, line, color=colour, linewidth=1.3, alpha=0.9 if marked.any() else 0.35)
            axes.plot(np.array(steps)[marked], line[marked], "o", color=colour, markersize=4)
            axes.plot(np.array(steps)[~marked], line[~marked], "o", color=_GREY, markersize=2.5)
            handles.setdefault(shortened(name, 20), handle.get_color())
        axes.set_title(shortened(layer, 26), fontsize=10, color=INK, loc="left")
        step_axis(axes, steps)
        axes.set_xlabel(axes.get_xlabel() if number >= len(layers) - columns else "")
        if number % columns == 0:
            axes.set_ylabel("mean cosine")
    keys = [Line2D([], [], color=colour, marker="o", markersize=4) for colour in handles.values()]
    canvas.legend(keys, handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9, labelcolor=INK)  # fmt: skip
    label = str(last["class"][place])
    first = [step for step, here in zip(steps, sure, strict=True) if here.any()]
    numbers = {
        "class": label, "steps": len(steps), "share": f"{sure.mean():.0%}", "level": options.significance,
        "first": f"from step {plain_step(first[0])} on" if first else "at no step", "last": plain_step(steps[-1]),
        "high": float(values[-1].max()), "low": float(values[-1].min()),
    }  # fmt: skip
    return worded(
        WORDS["course"], numbers, key=figure_key("course", probe, label),
        title=f"Class {label} and the concepts over the training, probe {probe}", svg=to_svg(canvas), run=view.run,
        probe=probe, table=table_of(_rows_of_class(view, probe, label), COLUMNS),
    )  # fmt: skip
