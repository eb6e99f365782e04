"""Filters as pictures: those of the first convolution, pairs of convolutions as one, and numbers of all layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.report.text import plain_number, plain_step
from stratascope.tasks.representation.pictures import even_choice, grid_of, lines_by, table_of, worded
from stratascope.tasks.vision.expanded_drawing import concentration_figure, expanded_figure
from stratascope.tasks.vision.filters_words import WORDS
from stratascope.tasks.vision.map_drawing import ColourScale, picture_grid
from stratascope.tasks.vision.picture_sheet import SHEET_WIDTH, numbered_tiles
from stratascope.tasks.vision.stored_kernels import (
    COLOUR_WORDS,
    MEAN_WORDS,
    Kernels,
    filter_picture,
    picture_bound,
    read_kernels,
    stored_kernels,
)

_MOST_STEPS = 10
_GRID_STEPS = 7
_MOST_FILTERS = 64
_STRIP_FILTERS = 8
_COLUMNS = ("step", "layer", "part", "value", "n", "convention")


def draw(view: View, options: Any) -> Iterator[Figure]:
    """The first convolution's filters, what is counted of all, and a few pairs of convolutions."""
    rows = view.metric("filter_norm", part="")
    if not len(rows):
        return
    steps = even_choice(sorted({int(step) for step in rows["step"]}), _MOST_STEPS)
    layers = stored_kernels(view, steps[-1], "filters")
    first = read_kernels(view, steps, "filters", layers[0])
    yield _first_layer(view, first)
    if len(first.steps) > 1:
        yield _first_layer_steps(view, first)
    yield _norms(view, layers)
    for metric in ("filter_duplicates", "filter_high_frequency_share"):
        yield from _map_of(view, metric, layers)
    pairs = stored_kernels(view, steps[-1], "expanded")
    for place in sorted({0, len(pairs) // 2, len(pairs) - 1} if pairs else ()):
        found = read_kernels(view, even_choice(steps, _GRID_STEPS), "expanded", pairs[place])
        if np.isfinite(found.weights).all() and found.weights[-1].any():
            yield expanded_figure(view, found)
    yield from concentration_figure(view)


# -- the first convolution -----------------------------------------------------------------------------------


def _scale_of(kernels: Kernels, bound: float) -> ColourScale | None:
    return None if kernels.weights.shape[2] == 3 else ColourScale("weight", bound, True)


def _first_numbers(kernels: Kernels, bound: float) -> dict[str, Any]:
    from stratascope.tasks.vision.filter_statistics import cosines_between, dead_filters, duplicate_filters

    inputs = kernels.weights.shape[2]
    cosines = cosines_between(kernels.weights[0], kernels.weights[-1])
    turned = int(np.nanargmin(cosines)) if np.isfinite(cosines).any() else 0
    return {
        "layer": kernels.name, "count": kernels.facts["channels"], "height": kernels.weights.shape[3],
        "width": kernels.weights.shape[4], "inputs": inputs, "first": plain_step(kernels.steps[0]),
        "last": plain_step(kernels.steps[-1]), "colours": COLOUR_WORDS.get(inputs, MEAN_WORDS),
        "bound": plain_number(float(f"{bound:.3g}")), "double": int(duplicate_filters(kernels.weights[-1]).sum()),
        "dead": int(dead_filters(kernels.weights[-1]).sum()), "turned": int(kernels.channel[turned]),
        "cosine": f"{cosines[turned]:.2f}", "stored": len(kernels.channel),
    }  # fmt: skip


def _first_layer(view: View, kernels: Kernels) -> Figure:
    """All filters as tiles in the order of their numbers, sliding over the steps."""
    channels = even_choice(range(len(kernels.channel)), _MOST_FILTERS)
    bound = picture_bound(kernels.weights)
    pictures = [[filter_picture(weights[channel], bound) for channel in channels] for weights in kernels.weights]
    names = [str(kernels.channel[channel]) for channel in channels]
    frames = numbered_tiles(kernels.steps, pictures, names, scale=_scale_of(kernels, bound))
    numbers = _first_numbers(kernels, bound) | {"shown": len(channels)}
    return worded(
        WORDS["first_layer"], numbers, key="first-layer", title=f"Filters of {kernels.name}",
        frames=frames, run=view.run, layer=kernels.name, table=_weight_table(kernels),
    )  # fmt: skip


def _weight_table(kernels: Kernels) -> dict[str, list[Any]]:
    """Every weight at the last step."""
    channel, inputs, y, x = (axis.ravel() for axis in np.indices(kernels.weights.shape[1:]))
    return {
        "step": [kernels.steps[-1]] * len(channel), "channel": kernels.channel[channel].tolist(),
        "input_channel": inputs.tolist(), "ky": y.tolist(), "kx": x.tolist(),
        "weight": kernels.weights[-1].ravel().astype(float).tolist(),
    }  # fmt: skip


def _first_layer_steps(view: View, kernels: Kernels) -> Figure:
    """The filters with the largest norms at the last step, by step."""
    bound = picture_bound(kernels.weights)
    steps = even_choice(kernels.steps, _GRID_STEPS)
    chosen = np.sort(np.argsort(-kernels.norms(), kind="stable")[:_STRIP_FILTERS])
    pictures = [
        [filter_picture(kernels.weights[kernels.steps.index(step), channel], bound) for step in steps]
        for channel in chosen
    ]
    names = [f"filter {kernels.channel[channel]}" for channel in chosen]
    numbers = _first_numbers(kernels, bound) | {"shown": len(chosen), "drawn": len(steps)}
    sizes = [float(np.linalg.norm(weights)) for weights in kernels.weights]
    numbers["growth"] = f"{sizes[-1] / sizes[0]:.3g}" if sizes[0] > 0 else "infinitely many"
    return worded(
        WORDS["first_layer_steps"], numbers, key="first-layer-steps",
        title=f"Filters of {kernels.name} through the training",
        svg=picture_grid(pictures, names, [plain_step(step) for step in steps], scale=_scale_of(kernels, bound), width=SHEET_WIDTH),
        run=view.run, layer=kernels.name, table=_weight_table(kernels),
    )  # fmt: skip


# -- numbers of all layers -----------------------------------------------------------------------------------


def _norms(view: View, layers: Sequence[str]) -> Figure:
    from stratascope.tasks.report.style import lines

    rows = view.metric("filter_norm", part="")
    series, _ = lines_by(rows, "layer", layers)
    last = {name: values[-1] for name, (_, values) in series.items()}
    growth = {name: values[-1] / values[0] for name, (_, values) in series.items() if values[0] > 0}
    most = max(growth, key=lambda name: growth[name]) if growth else next(iter(series))
    dead = view.metric("filter_dead_fraction")
    dead = dead[dead["step"] == dead["step"].max()]
    worst = dead.loc[dead["value"].idxmax()]
    numbers = {
        "high": max(last, key=lambda name: last[name]), "low": min(last, key=lambda name: last[name]),
        "most": most, "growth": f"{growth.get(most, float('nan')):.3g}", "worst": worst["layer"],
        "share": f"{worst['value']:.0%}",
    }  # fmt: skip
    return worded(
        WORDS["norms"], numbers, key="norms", title="Size of the filters, by layer",
        svg=lines(series, "mean norm of a filter", logarithmic=True), run=view.run, table=table_of(rows, _COLUMNS),
    )  # fmt: skip


_MAPS = {
    "filter_duplicates": ("duplicates", "Filters with a double, by layer", "share of filters with a double", "null=chance"),
    "filter_high_frequency_share": ("roughness", "Roughness of the filters, by layer", "share of power in high frequencies", "null=white"),
}  # fmt: skip


def _map_of(view: View, metric: str, layers: Sequence[str]) -> Iterator[Figure]:
    from stratascope.tasks.report.style import heatmap

    rows = view.metric(metric, part="")
    present = [layer for layer in layers if layer in set(rows["layer"])]
    if not present:
        return
    key, title, label, null = _MAPS[metric]
    grid, steps = grid_of(rows, "layer", present)
    last = grid[:, -1]
    high = int(np.nanargmax(last))
    chance = view.metric(metric, part=null, layer=present[high])
    numbers = {
        "newest": _newest(present, last, grid[:, 0]), "high": present[high], "last": plain_step(steps[-1]),
        "chance": _share(float(chance["value"].iloc[-1])), "first": plain_step(steps[0]),
        "missing": _missing(view, metric, len(present)),
    }  # fmt: skip
    yield worded(
        WORDS[key], numbers, key=key, title=title,
        svg=heatmap(grid, present, [str(step) for step in steps], label, "layer", "training step"), run=view.run,
        table=table_of(view.metric(metric), _COLUMNS),
    )  # fmt: skip


def _share(value: float) -> str:
    return "less than 0.1%" if value < 0.001 else f"{value:.0%}" if value >= 0.01 else f"{value:.1%}"


def _newest(layers: Sequence[str], last: np.ndarray, first: np.ndarray) -> str:
    """Which layers have most and least at the last step, and what the highest had at the first, in words."""
    high, low = int(np.nanargmax(last)), int(np.nanargmin(last))
    start = f"it was {first[high]:.0%} at the first step"
    if len(layers) == 1:
        return f"{layers[0]} has {last[0]:.0%}; {start}"
    if last[high] == last[low]:
        return f"all {len(layers)} layers have {last[high]:.0%}"
    return f"{layers[high]} has {last[high]:.0%}, the most ({start}), and {layers[low]} {last[low]:.0%}, the least"


def _missing(view: View, metric: str, present: int) -> str:
    """How many layers have no number, and why."""
    own = view.rows[view.rows["metric"] == metric]
    layers = len(set(own["layer"]))
    if layers <= present:
        return "every layer has a number"
    reason = str(own.loc[own["status"] != "ok", "reason"].iloc[0]).rstrip(".")
    return f"{layers - present} of {layers} layers have no number: {reason}"
