"""Filters as pictures: those of the first convolution, pairs of convolutions as one, and numbers of all layers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.storage.names import decode_path_part, step_directory
from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.report.text import plain_number, plain_step
from stratascope.tasks.representation.pictures import even_choice, figure_key, grid_of, lines_by, table_of, worded
from stratascope.tasks.vision.filters_words import WORDS
from stratascope.tasks.vision.map_drawing import ColourScale, picture_grid, scale_bound, signed_colours
from stratascope.tasks.vision.picture_sheet import SHEET_WIDTH, PictureSheet, fitting

_MOST_STEPS = 10
_GRID_STEPS = 7
_MOST_FILTERS = 64
_STRIP_FILTERS = 8
_MOST_PAIRS = 3
_OUTPUTS = 5
_INPUTS = 5
_GAP = 0.06
_COLUMNS = ("step", "layer", "part", "value", "n", "convention")


@dataclass(frozen=True)
class Kernels:
    """Stored kernels at several steps."""

    name: str
    channel: np.ndarray
    """int64 (channel,): the numbers of the stored output channels."""
    steps: tuple[int, ...]
    weights: np.ndarray
    """float32 (step, channel, input_channel, ky, kx)."""
    facts: dict[str, Any]

    def norms(self) -> np.ndarray:
        """float64 (channel,): at the last step."""
        from stratascope.tasks.vision.filter_statistics import filter_norms

        return np.nan_to_num(filter_norms(self.weights[-1]))


def _place(view: View, step: int, *parts: str) -> str:
    return join_path("runs", view.run, step_directory(step), view.analysis, *parts)


def stored_kernels(view: View, step: int, kind: str) -> list[str]:
    """Names of the kernels of `kind` (`filters` or `expanded`) at `step`, in the order of execution."""
    root = _place(view, step, kind)
    found = {}
    for path in view.store.list_arrays(root):
        name, _, array = path[len(root) + 1 :].rpartition("/")
        if array == "weights":
            found[decode_path_part(name)] = int(view.store.array_info(path)[3]["place"])
    return sorted(found, key=lambda name: found[name])


def read_kernels(view: View, steps: Sequence[int], kind: str, name: str) -> Kernels:
    """The kernels `name` at those of `steps` that have them in the shape of the last."""
    last = _place(view, steps[-1], kind, name, "weights")
    _, shape, _, facts = view.store.array_info(last)
    places = {step: _place(view, step, kind, name, "weights") for step in steps}
    known = [
        step
        for step, path in places.items()
        if view.store.has_array(path) and view.store.array_info(path)[1] == shape
    ]
    weights = np.stack([view.store.array(places[step]) for step in known])
    channel = view.store.array(_place(view, steps[-1], kind, name, "channel"))
    return Kernels(name, channel, tuple(known), weights, facts)


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
            yield _expanded(view, found)
    yield from _concentration(view)


# -- the first convolution -----------------------------------------------------------------------------------


def filter_picture(kernel: np.ndarray, bound: float) -> np.ndarray:
    """uint8 (ky, kx, 3) of one filter (input_channel, ky, kx), full at ± `bound`.

    Of three input channels red, green and blue with grey for zero; of others the mean, blue below zero and red above.
    """
    if len(kernel) == 3:
        shares = kernel / bound / 2 + 0.5 if bound > 0 else np.full(kernel.shape, 0.5)
        return np.round(255 * np.clip(np.nan_to_num(shares, nan=0.5), 0, 1)).astype(np.uint8).transpose(1, 2, 0)
    return signed_colours(kernel.mean(0), bound)


def picture_bound(weights: np.ndarray) -> float:
    """The scale of `filter_picture` over all of `weights` (…, input_channel, ky, kx)."""
    return scale_bound(weights if weights.shape[-3] == 3 else weights.mean(-3))


_COLOUR_WORDS = {
    1: "Blue weights are below zero, white is zero, red above",
    3: "The three weights of a place are drawn as red, green and blue; grey is zero, bright is above, dark is below",
}
_MEAN_WORDS = "The mean over the input channels is drawn: blue is below zero, white zero, red above"


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
        "last": plain_step(kernels.steps[-1]), "colours": _COLOUR_WORDS.get(inputs, _MEAN_WORDS),
        "bound": plain_number(float(f"{bound:.3g}")), "double": int(duplicate_filters(kernels.weights[-1]).sum()),
        "dead": int(dead_filters(kernels.weights[-1]).sum()), "turned": int(kernels.channel[turned]),
        "cosine": f"{cosines[turned]:.2f}", "stored": len(kernels.channel),
    }  # fmt: skip


def _first_layer(view: View, kernels: Kernels) -> Figure:
    """All filters as tiles in the order of their numbers, sliding over the steps."""
    channels = even_choice(range(len(kernels.channel)), _MOST_FILTERS)
    bound = picture_bound(kernels.weights)
    wide = min(8, len(channels))
    side = min(0.9, SHEET_WIDTH / wide - _GAP)
    height, width = kernels.weights.shape[3:]
    tall = min(1.2, side * height / width)
    side, head = min(side, tall * width / height), 0.16
    scale = _scale_of(kernels, bound)
    bottom = 0.66 if scale is not None else 0.06
    sheet = PictureSheet(-(-len(channels) // wide) * (head + tall + _GAP) + bottom)
    moving = {}
    for place, channel in enumerate(channels):
        start, top = place % wide * (side + _GAP) + 0.02, place // wide * (head + tall + _GAP) + head
        sheet.words(start, top - 0.145, str(kernels.channel[channel]), size=8)
        picture = filter_picture(kernels.weights[-1, channel], bound)
        moving[sheet.picture(picture, start, top, side, tall)] = channel
    if scale is not None:
        sheet.scale(scale, 0.3, sheet.height - 0.62)
    frames = [
        {number: filter_picture(weights[channel], bound) for number, channel in moving.items()}
        for weights in kernels.weights
    ]
    numbers = _first_numbers(kernels, bound) | {"shown": len(channels)}
    return worded(
        WORDS["first_layer"], numbers, key="first-layer", title=f"Filters of {kernels.name}",
        frames=sheet.frames(kernels.steps, frames), run=view.run, layer=kernels.name, table=_weight_table(kernels),
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
    high, low = int(np.nanargmax(last)), int(np.nanargmin(last))
    chance = view.metric(metric, part=null, layer=present[high])
    numbers = {
        "high": present[high], "high_value": f"{last[high]:.0%}", "low": present[low],
        "low_value": f"{last[low]:.0%}", "chance": f"{float(chance['value'].iloc[-1]):.2g}", "last": steps[-1],
        "first_value": f"{grid[high, 0]:.0%}", "first": steps[0], "missing": _missing(view, metric, len(present)),
    }  # fmt: skip
    yield worded(
        WORDS[key], numbers, key=key, title=title,
        svg=heatmap(grid, present, [str(step) for step in steps], label, "layer", "training step"), run=view.run,
        table=table_of(view.metric(metric), _COLUMNS),
    )  # fmt: skip


def _missing(view: View, metric: str, present: int) -> str:
    own = view.rows[view.rows["metric"] == metric]
    layers = len(set(own["layer"]))
    return f"{layers - present} of {layers} layers have none, since " + str(
        own.loc[own["status"] != "ok", "reason"].iloc[0]
    ).rstrip(".") if layers > present else "every layer has one"  # fmt: skip


# -- two convolutions as one ---------------------------------------------------------------------------------


def _expanded(view: View, kernels: Kernels) -> Figure:
    """The strongest output channels: the dominant factor, and their strongest input channels."""
    from stratascope.tasks.vision.expanded_weights import channel_shares, dominant_factors

    outputs = np.argsort(-kernels.norms(), kind="stable")[:_OUTPUTS]
    weights = kernels.weights[:, outputs]
    shares = channel_shares(weights[-1])
    count = weights.shape[2]
    inputs = np.argsort(-np.nan_to_num(shares), axis=1, kind="stable")[:, :_INPUTS]
    patterns, held = _factors(weights, dominant_factors)
    bounds = scale_bound(weights), scale_bound(patterns)
    left, head, gap = 1.0, 0.16, 0.2
    columns = min(count, _INPUTS) + 1
    height, width = weights.shape[3:]
    side = min(0.85, (SHEET_WIDTH - left - gap) / (_INPUTS + 1) - _GAP)
    tall = min(1.2, side * height / width)
    side, top = min(side, tall * width / height), 0.24
    sheet = PictureSheet(top + len(outputs) * (head + tall + _GAP) + 0.66)
    sheet.words(left, 0.03, "factor", size=9, bold=True)
    sheet.words(left + side + _GAP + gap, 0.03, "strongest input channels", size=9, bold=True)
    moving: dict[int, tuple[int, int]] = {}
    for row, output in enumerate(outputs):
        above = top + row * (head + tall + _GAP) + head
        name, size = fitting(f"channel {kernels.channel[output]}", left - 0.1, 9)
        sheet.words(left - 0.08, above + tall / 2 - 0.06, name, size=size, align="right")
        for column in range(columns):
            start = left + column * (side + _GAP) + (gap if column else 0)
            channel = int(inputs[row, column - 1]) if column else -1
            above_tile = f"{channel}: {shares[row, channel]:.0%}" if column else f"{held[-1, row]:.0%}"
            sheet.words(start, above - 0.145, above_tile, size=7.5)
            picture = _panel(weights, patterns, bounds, -1, row, channel)
            moving[sheet.picture(picture, start, above, side, tall)] = (row, channel)
    sheet.scale(ColourScale("weight of the composed kernel", bounds[0], True), left, sheet.height - 0.62)
    frames = [
        {number: _panel(weights, patterns, bounds, step, *place) for number, place in moving.items()}
        for step in range(len(kernels.steps))
    ]
    facts = kernels.facts
    concentration = (shares**2).sum(1)
    numbers = {
        "name": f"{facts['first']} and {facts['second']}", "first": facts["first"], "second": facts["second"],
        "between": facts["between"], "shown": len(outputs), "outputs": facts["channels"], "inputs": count,
        "height": height, "width": width, "held": f"{float(np.nanmean(held[-1])):.0%}",
        "effective": f"{float(np.nanmean(1 / concentration)):.3g}", "last": plain_step(kernels.steps[-1]),
        "branches": _branch_words(int(facts["sums"])), "steps": len(facts["steps"]),
    }  # fmt: skip
    return worded(
        WORDS["expanded"], numbers, key=figure_key("expanded", kernels.name),
        title=f"{facts['first']} and {facts['second']} as one convolution", frames=sheet.frames(kernels.steps, frames),
        run=view.run, layer=facts["second"], table=_expanded_table(kernels, outputs, inputs, shares, held[-1]),
    )  # fmt: skip


def _branch_words(sums: int) -> str:
    if not sums:
        return "No other branch joins on the way"
    return (
        f"{sums} residual sum{'s lie' if sums > 1 else ' lies'} on the way: what the other branch adds is left out"
    )


def _factors(weights: np.ndarray, factors_of: Any) -> tuple[np.ndarray, np.ndarray]:
    """(step, output, ky, kx) and (step, output): the dominant patterns, in their size, with the sign of the last step's."""
    patterns, held = [], []
    for one in weights:
        pattern, loading, share = factors_of(one)
        patterns.append(pattern * np.linalg.norm(loading, axis=1)[:, None, None])
        held.append(share)
    found = np.stack(patterns)
    signs = np.sign((found * found[-1]).sum((2, 3)))
    return found * np.where(signs == 0, 1, signs)[:, :, None, None], np.stack(held)


def _panel(
    weights: np.ndarray, patterns: np.ndarray, bounds: tuple[float, float], step: int, row: int, channel: int
) -> np.ndarray:
    if channel < 0:
        return signed_colours(patterns[step, row], bounds[1])
    return signed_colours(weights[step, row, channel], bounds[0])


def _expanded_table(
    kernels: Kernels, outputs: np.ndarray, inputs: np.ndarray, shares: np.ndarray, held: np.ndarray
) -> dict[str, list[Any]]:
    table: dict[str, list[Any]] = {
        name: []
        for name in ("channel", "rank", "input_channel", "share_of_squared_weights", "share_of_the_factor")
    }
    for row, output in enumerate(outputs):
        for rank, channel in enumerate(inputs[row], start=1):
            table["channel"].append(int(kernels.channel[output]))
            table["rank"].append(rank)
            table["input_channel"].append(int(channel))
            table["share_of_squared_weights"].append(float(shares[row, channel]))
            table["share_of_the_factor"].append(float(held[row]))
    return table


def _concentration(view: View) -> Iterator[Figure]:
    from stratascope.tasks.report.style import lines

    rows = view.metric("expanded_weight_concentration", part="over=factors")
    if not len(rows):
        return
    rows = rows.assign(pair=rows["other_layer"] + " → " + rows["layer"])
    order = [name.replace(" to ", " → ") for name in stored_kernels(view, int(rows["step"].max()), "expanded")]
    series, _ = lines_by(rows, "pair", [name for name in order if name in set(rows["pair"])])
    last = {name: values[-1] for name, (_, values) in series.items()}
    high, low = max(last, key=lambda name: last[name]), min(last, key=lambda name: last[name])
    refused = view.rows[(view.rows["metric"] == "expanded_weight_concentration") & (view.rows["status"] != "ok")]
    refused = refused[refused["part"] == ""]
    pairs = len(set(zip(refused["layer"], refused["other_layer"], strict=True)))
    numbers = {
        "high": high, "high_value": f"{last[high]:.0%}", "low": low, "low_value": f"{last[low]:.0%}",
        "count": len(series), "n": int(rows["n"].max()), "start": f"{series[high][1][0]:.0%}",
        "refused": f"{pairs} more pairs could not be taken as one" if pairs else "no pair was refused",
    }  # fmt: skip
    yield worded(
        WORDS["concentration"], numbers, key="concentration", title="How simple pairs of convolutions are",
        svg=lines(series, "share of the dominant factor"), run=view.run,
        table=table_of(rows, ("step", "other_layer", "layer", "value", "n", "convention")),
    )  # fmt: skip
