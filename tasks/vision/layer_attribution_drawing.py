"""Pictures of the attribution of layers: channels that count, places that count, and whether the numbers add up."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.representation.drift_mosaics import class_label, probe_rows
from stratascope.tasks.representation.pictures import (
    even_choice,
    figure_key,
    grid_of,
    leading_probe,
    lines_by,
    table_of,
    worded,
)

_TITLES = {
    "activation": "activation", "gradient_times_activation": "gradient × act.", "internal_influence": "influence",
    "conductance": "conductance", "integrated_gradients": "integrated",
}  # fmt: skip
_COLUMNS = ("step", "probe", "layer", "part", "value", "low", "high", "n", "unit")
_MOST_CHANNELS = 12
_MOST_STEPS = 10
_MOST_SAMPLES = 5
_REFERENCE = "conductance"


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For the leading probe: the last layer's channels and places, how spread answers are, and the completeness gaps."""
    rows = view.metric("attributed_channels")
    if not len(rows):
        return
    probe = leading_probe(view, rows["probe"].unique())
    layers = [name for name in view.layers("attributed_channels") if name in set(rows.loc[rows["probe"] == probe, "layer"])]  # fmt: skip
    method = _REFERENCE if _REFERENCE in options.methods else options.methods[0]
    steps = even_choice(sorted({int(step) for step in rows.loc[rows["probe"] == probe, "step"]}), _MOST_STEPS)
    for layer in dict.fromkeys((layers[-1], layers[len(layers) // 2])):
        sums = _channel_sums(view, probe, layer, method, steps)
        if sums:
            yield _channels(view, probe, layer, method, sums, layer == layers[-1])
    places = _places(view, probe, layers[-1], options, steps)
    if places is not None:
        yield places
    yield _spread(view, probe, layers, method)
    gap = _gap(view, probe, layers)
    if gap is not None:
        yield gap


def _channel_sums(view: View, probe: str, layer: str, method: str, steps: list[int]) -> dict[int, np.ndarray]:
    """(sample, channel) by step, of those steps that have them."""
    found = {step: view.arrays(step).get(f"{probe}/{layer}/{method}/channel") for step in steps}
    return {step: values for step, values in found.items() if values is not None}


def _channels(view: View, probe: str, layer: str, method: str, sums: dict[int, np.ndarray], leads: bool) -> Figure:
    from stratascope.tasks.report.marked import values_with_intervals

    steps = sorted(sums)
    last = sums[steps[-1]].astype(np.float64)
    size = np.abs(last).mean(0)
    chosen = np.argsort(-size, kind="stable")[:_MOST_CHANNELS]
    names = [f"channel {number}" for number in chosen]
    low, high = np.quantile(last[:, chosen], (0.25, 0.75), axis=0)
    middle = np.median(last[:, chosen], axis=0)
    bars = [(float(a), float(b), float(c)) for a, b, c in zip(middle, low, high, strict=True)]
    told = size.sum()
    numbers = {
        "method": _TITLES.get(method, method), "n": len(last), "layer": layer, "last": f"{steps[-1]:,}", "count": last.shape[1],
        "shown": len(chosen), "share": f"{size[chosen].sum() / told:.0%}" if told > 0 else "none",
        "top": int(chosen[0]), "mixed": int(((low < 0) & (high > 0)).sum()), "first": steps[0],
    }  # fmt: skip
    table: dict[str, list[Any]] = {name: [] for name in ("step", "channel", "mean", "mean_size")}
    for step in steps:
        values = sums[step].astype(np.float64)
        table["step"] += [step] * values.shape[1]
        table["channel"] += list(range(values.shape[1]))
        table["mean"] += values.mean(0).tolist()
        table["mean_size"] += np.abs(values).mean(0).tolist()
    return worded(
        _WORDS["channels"],
        numbers,
        key=figure_key("channels", probe, layer),
        title=f"Channels of {layer} that the answers rest on, step {steps[-1]:,}, probe {probe}",
        svg=values_with_intervals(names, {"": bars}, f"{numbers['method']}, in the score's units"),
        run=view.run, layer=layer, probe=probe, headline=leads, table=table,
    )  # fmt: skip


def _places(view: View, probe: str, layer: str, options: Any, steps: list[int]) -> Figure | None:
    """The picture with each method's map over it, for some samples, with a slider over the steps."""
    from stratascope.tasks.report.mosaic import pictures_of
    from stratascope.tasks.vision.map_drawing import (
        ColourScale,
        moving_picture_grid,
        overlaid,
        resized,
        rgb_picture,
        scale_bound,
        signed_colours,
    )

    arrays = {step: view.arrays(step) for step in steps}
    methods = [name for name in options.methods if all(f"{probe}/{layer}/{name}/spatial" in found for found in arrays.values())]  # fmt: skip
    if not methods:
        return None
    identity = arrays[steps[-1]][f"{probe}/sample_id"]
    rows = _first_of_each_class(arrays[steps[-1]].get(f"{probe}/target"), len(identity))
    maps = {name: np.stack([arrays[step][f"{probe}/{layer}/{name}/spatial"][rows] for step in steps]) for name in methods}  # fmt: skip
    bounds = {name: scale_bound(values) for name, values in maps.items()}
    shown = view.probes[probe]
    pictures = pictures_of(shown, probe_rows(shown, identity[rows])) if view.show_inputs else None
    side = maps[methods[0]].shape[2:]
    grids = []
    for number in range(len(steps)):
        lines = []
        for sample in range(len(rows)):
            tiles = [] if pictures is None else [rgb_picture(pictures[sample])]
            for name in methods:
                values = maps[name][number, sample]
                if pictures is None:
                    tiles.append(signed_colours(resized(values, (side[0] * 4, side[1] * 4)), bounds[name]))
                else:
                    tiles.append(overlaid(pictures[sample], values, bounds[name], signed=True))
            lines.append(tiles)
        grids.append(lines)
    zero = sum(int((values[-1] == 0).all((1, 2)).sum()) for values in maps.values())
    columns = ([] if pictures is None else ["picture"]) + [_TITLES.get(name, name) for name in methods]
    numbers = {
        "layer": layer, "size": f"{side[0]} × {side[1]}", "zero": zero, "maps": len(rows) * len(methods), "first": f"{steps[0]:,}",
        "last": f"{steps[-1]:,}", "samples": len(rows),
    }  # fmt: skip
    return worded(
        _WORDS["places"],
        numbers,
        key=figure_key("places", probe, layer),
        title=f"Places in {layer} that the answers rest on, probe {probe}",
        frames=moving_picture_grid(
            steps, grids, [_label(shown, arrays[steps[-1]], probe, row) for row in rows], columns,
            scale=ColourScale("share of each method's own scale", 1.0, True),
        ),
        run=view.run, layer=layer, probe=probe, headline=True,
        table={"method": methods, "full colour at": [bounds[name] for name in methods]},
    )  # fmt: skip


def _first_of_each_class(targets: np.ndarray | None, count: int) -> list[int]:
    """Rows of at most five samples, of as many classes as there are."""
    if targets is None:
        return list(range(min(count, _MOST_SAMPLES)))
    _, first = np.unique(targets, return_index=True)
    others = [row for row in range(count) if row not in set(first.tolist())]
    return sorted([*first.tolist(), *others][:_MOST_SAMPLES])


def _label(probe: Any, arrays: dict[str, np.ndarray], name: str, row: int) -> str:
    target = arrays.get(f"{name}/target")
    if target is None:
        return str(arrays[f"{name}/sample_id"][row])
    return class_label(probe, int(target[row]))


def _spread(view: View, probe: str, layers: list[str], method: str) -> Figure:
    from stratascope.tasks.report.style import heatmap

    rows = view.metric("attributed_channels", probe=probe, part=f"method={method}")
    grid, steps = grid_of(rows, "layer", layers)
    last = grid[:, -1]
    numbers = {
        "method": _TITLES.get(method, method), "n": int(rows["n"].min()), "last": f"{steps[-1]:,}",
        "most": layers[int(np.nanargmax(last))], "most_value": f"{np.nanmax(last):.1f}",
        "least": layers[int(np.nanargmin(last))], "least_value": f"{np.nanmin(last):.1f}",
    }  # fmt: skip
    return worded(
        _WORDS["spread"],
        numbers,
        key=figure_key("spread", probe),
        title=f"Over how many channels an answer is spread, probe {probe}",
        svg=heatmap(grid, layers, [str(step) for step in steps], "effective channels", "layer", "training step"),
        run=view.run, probe=probe, table=table_of(view.metric("attributed_channels", probe=probe), _COLUMNS),
    )  # fmt: skip


def _gap(view: View, probe: str, layers: list[str]) -> Figure | None:
    from stratascope.tasks.report.style import lines

    rows = view.metric("layer_attribution_gap", probe=probe, part="method=conductance;kind=relative")
    if not len(rows):
        return None
    series, bands = lines_by(rows, "layer", layers)
    last = rows[rows["step"] == rows["step"].max()]
    worst = last.loc[last["value"].idxmax()]
    return worded(
        _WORDS["gap"],
        {"layer": worst["layer"], "value": f"{worst['value']:.1%}", "last": f"{int(worst['step']):,}", "n": int(worst["n"])},
        key=figure_key("gap", probe),
        title=f"How far conductance is from adding up, probe {probe}",
        svg=lines(series, "gap, as a share of the difference", bands=bands),
        run=view.run, probe=probe, table=table_of(view.metric("layer_attribution_gap", probe=probe), _COLUMNS),
    )  # fmt: skip


_WORDS: dict[str, dict[str, str]] = {
    "channels": {
        "shows": "The {shown} channels of {layer} with the largest attribution by {method} in the mean over {n} samples: the dot is the median, the line goes from the lower to the upper quartile of the samples.",
        "reading": "To the right of zero a channel speaks for the answers asked about, to the left against them. A long line means that the channel matters for some samples only.",
        "caution": "The shown channels hold {share} of all attribution in {layer}, which has {count}; {mixed} of them speak for some samples and against others. Numbers are of {n} samples at step {last}; another choice of samples puts other channels on top.",
        "audience": "For those who want to know which parts of a layer do the work.",
        "practitioner": "If few channels hold almost everything, the layer can probably be pruned; try it before you trust it. Channel {top} is the first to look at.",
        "researcher": "Sums over places, signed, against a baseline. Conductance counts what changes between baseline and sample, so a channel that is on for both gets nothing. The table has all channels at every drawn step.",
    },
    "places": {
        "shows": "The places of {layer} ({size}) that speak for (red) and against (blue) the answer, by each method, over the picture; the slider goes from step {first} to {last}.",
        "reading": "Compare along a row: where methods agree the place matters; where only the activation is strong, the layer sees something that the answer does not use.",
        "caution": "{zero} of the {maps} maps shown are zero at step {last} and leave the picture bare. Each method has a scale of its own, the same at all steps and for all {samples} samples; a place of the layer sees more of the picture than the spot on which it is drawn.",
        "audience": "For everyone who asks where in the picture the answer comes from.",
        "practitioner": "If red lies on the background, the network has learned the surroundings of a class: check with pictures of it elsewhere.",
        "researcher": "Sums over channels, raw and signed; integrated gradients run in the layer's own space and leave paths around the layer at the sample, conductance runs in the inputs.",
    },
    "spread": {
        "shows": "For every layer over how many channels the attribution of an answer by {method} is spread: (Σ|a|)² / Σa².",
        "reading": "1 means that a single channel decides, the number of channels that all count alike. Lines that grow darker have learned to rely on fewer.",
        "caution": "At step {last} it goes from {least_value} in {least} to {most_value} in {most}, medians over {n} samples. Layers have different numbers of channels, so compare along a line rather than down a column.",
        "audience": "For those who compare how distributed codes are.",
        "practitioner": "Where it drops to a few channels a single dead one costs accuracy.",
        "researcher": "The participation ratio of sizes, not of squares: invariant to the scale of the scores, not to splitting a channel in two.",
    },
    "gap": {
        "shows": "How far the conductances of a layer are from adding up to the difference between the scores of sample and baseline; the median of the samples, with quartiles.",
        "reading": "0 is exact. A layer whose line stays up has a path around it, or the walk from the baseline had too few steps.",
        "caution": "At step {last} the gap is largest in {layer}: {value} of the difference, over {n} samples. Where it is above a tenth, raise `steps` before you compare channels of that layer.",
        "audience": "For readers who want to know whether the other figures may be trusted.",
        "practitioner": "Below 5 % is fine.",
        "researcher": "Trapezoidal rule over equal steps; residual branches that bypass the layer are not in its conductance, and their part of the difference shows here.",
    },
}
