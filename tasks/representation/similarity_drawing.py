"""The pictures of similarity within a run: a layer over the steps, all layers at a step, the way to the last step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.representation.pictures import (
    even_choice,
    figure_key,
    leading_probe,
    lines_by,
    table_of,
    worded,
)
from stratascope.tasks.representation.similarity_measures import MEASURES, Measure

_COLUMNS = (
    "step",
    "probe",
    "layer",
    "part",
    "other_step",
    "other_layer",
    "value",
    "low",
    "high",
    "n",
    "convention",
)
_LAYERS = 12
"""At most so many layers have a picture of their own, evenly chosen."""
CURVES = 8
"""At most so many layers stand in one picture of curves, where their intervals can still be told apart."""


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe and measure: all steps of a layer, all layers at a step; for each probe the way to the last step."""
    arrays = view.arrays()
    probes = sorted({path.partition("/")[0] for path in arrays})
    for probe in probes:
        headline = probe == leading_probe(view, probes)
        for measure in MEASURES.values():
            place = f"{probe}/{measure.name}"
            if measure.name in options.measures:
                yield from _curves(view, probe, measure, headline and measure.name == "cka")
            if measure.name in options.matrices and f"{place}/layer_by_layer" in arrays:
                yield from _by_layer(view, probe, measure, arrays)
            if measure.name in options.matrices and f"{place}/step_by_step" in arrays:
                yield from _by_step(view, probe, measure, arrays)


def titled(measure: Measure) -> str:
    """The measure as a title says it."""
    names = {"procrustes_distance": "Procrustes distance", "cka": "CKA", "cka_rbf": "CKA with a Gaussian kernel", "cka_biased": "biased CKA", "cka_rbf_biased": "biased CKA with a Gaussian kernel"}  # fmt: skip
    part = f" ({measure.part.replace(';', ', ').replace('=', ' ')})" if measure.part else ""
    return names.get(measure.name, measure.metric.replace("_", " ") + part)


def wording(measure: Measure) -> dict[str, str]:
    """How to word what is near and what is far."""
    if measure.kind == "similarity":
        return {"name": titled(measure), "near": "1", "towards": "rises to"}
    return {"name": titled(measure), "near": "0", "towards": "falls to"}


def _by_step(view: View, probe: str, measure: Measure, arrays: Mapping[str, np.ndarray]) -> Iterator[Figure]:
    from stratascope.tasks.report.style import heatmap

    steps = [int(step) for step in arrays[f"{probe}/step"]]
    layers = [str(layer) for layer in arrays[f"{probe}/layer"]]
    values = arrays[f"{probe}/{measure.name}/step_by_step"]
    if len(steps) < 2:
        return
    for number in even_choice(range(len(layers)), _LAYERS):
        layer, grid = layers[number], values[number]
        if not np.isfinite(grid).any():
            continue
        beside = np.diagonal(grid, 1)
        numbers: dict[str, Any] = {
            **wording(measure),
            "layer": layer,
            "count": len(steps),
            "apart": float(grid[0, -1]),
        }
        if np.isfinite(beside).any():
            place = int(np.nanargmin(beside) if measure.kind == "similarity" else np.nanargmax(beside))
            numbers |= {"before": steps[place], "after": steps[place + 1], "jump": float(beside[place])}
        else:
            numbers |= {"before": steps[0], "after": steps[-1], "jump": float("nan")}
        yield worded(
            _WORDS["step"], numbers, key=figure_key("steps", measure.name, probe, layer),
            title=f"{titled(measure)} of {layer} between all steps, probe {probe}",
            svg=heatmap(
                grid, [str(step) for step in steps], [str(step) for step in steps], titled(measure), "training step",
                "training step",
            ),
            run=view.run, probe=probe, layer=layer,
            table={"step": np.repeat(steps, len(steps)).tolist(), "other_step": steps * len(steps), "value": grid.ravel().tolist()},
        )  # fmt: skip


def _by_layer(view: View, probe: str, measure: Measure, arrays: Mapping[str, np.ndarray]) -> Iterator[Figure]:
    from stratascope.tasks.report.style import moving_heatmap

    layers = [str(layer) for layer in arrays[f"{probe}/layer"]]
    values = arrays[f"{probe}/{measure.name}/layer_by_layer"]
    place = join_path("series", view.run, "similarity", probe, measure.name, "layer_by_layer")
    steps = [int(step) for step in view.store.array_info(place)[3]["steps"]]
    if len(layers) < 2 or not np.isfinite(values).any():
        return
    last = np.where(np.eye(len(layers), dtype=bool), np.nan, values[-1])
    numbers: dict[str, Any] = {**wording(measure), "step": steps[-1], "count": len(layers)}
    if np.isfinite(last).any():
        nearest = np.unravel_index(
            np.nanargmax(last) if measure.kind == "similarity" else np.nanargmin(last), last.shape
        )
        farthest = np.unravel_index(
            np.nanargmin(last) if measure.kind == "similarity" else np.nanargmax(last), last.shape
        )
        numbers |= {
            "one": layers[nearest[0]], "other": layers[nearest[1]], "most": float(last[nearest]),
            "far": layers[farthest[0]], "away": layers[farthest[1]], "least": float(last[farthest]),
        }  # fmt: skip
    else:
        numbers |= dict.fromkeys(("one", "other", "far", "away"), "none") | dict.fromkeys(("most", "least"), float("nan"))  # fmt: skip
    yield worded(
        _WORDS["layer"], numbers, key=figure_key("layers", measure.name, probe),
        title=f"{titled(measure)} between all layers, probe {probe}",
        frames=moving_heatmap(values, steps, layers, layers, titled(measure), "layer", "layer"),
        run=view.run, probe=probe,
        table={
            "step": np.repeat(steps, len(layers) ** 2).tolist(), "layer": np.repeat(layers, len(layers)).tolist() * len(steps),
            "other_layer": layers * (len(layers) * len(steps)), "value": values.ravel().tolist(),
        },
    )  # fmt: skip


def _curves(view: View, probe: str, measure: Measure, headline: bool) -> Iterator[Figure]:
    from stratascope.tasks.report.style import lines

    part = ";".join(filter(None, ("against=last", measure.part)))
    rows = view.metric(measure.metric, probe=probe, part=part)
    if rows["step"].nunique() < 2:
        return
    present = set(rows["layer"])
    layers = [layer for layer in view.layers(measure.metric) if layer in present]
    shown = even_choice_of(layers, CURVES)
    series, bands = lines_by(rows, "layer", shown)
    first = rows[rows["step"] == rows["step"].min()].set_index("layer")["value"]
    towards = first if measure.kind == "similarity" else -first
    nulls = view.metric(measure.metric, probe=probe, part=";".join(filter(None, ("against=first", measure.part, "null=permuted"))))  # fmt: skip
    width = (rows["high"] - rows["low"]).max()
    numbers = {
        **wording(measure), "last": int(rows["other_step"].iloc[-1]), "start": int(rows["step"].min()), "n": int(rows["n"].iloc[-1]),
        "settled": towards.idxmax(), "most": float(first[towards.idxmax()]), "moved": towards.idxmin(),
        "least": float(first[towards.idxmin()]), "shown": len(shown), "count": len(layers),
        "chance": f"Shuffled samples would give {nulls['value'].mean():.2f}." if len(nulls) else "No shuffled samples were looked at.",
        "width": f"The widest interval spans {width:.2f}." if np.isfinite(width) else "No intervals were asked for.",
    }  # fmt: skip
    yield worded(
        _WORDS["last"], numbers, key=figure_key("last", measure.name, probe),
        title=f"{titled(measure)} of each layer with itself at the last step, probe {probe}",
        svg=lines(series, titled(measure), bands=bands, height=3.6), run=view.run, probe=probe, headline=headline,
        table=table_of(rows, _COLUMNS),
    )  # fmt: skip


def even_choice_of(names: list[str], most: int) -> list[str]:
    """At most `most` of `names`, evenly over their order."""
    return [names[place] for place in even_choice(range(len(names)), most)] if names else []


_WORDS: dict[str, dict[str, str]] = {
    "step": {
        "shows": "{name} of layer {layer} at every step with the same layer at every other of {count} steps, on the same samples.",
        "reading": "Near the diagonal are neighbouring checkpoints. A block of even colour is a time in which the layer kept what it does; the border between two blocks is when it changed. {near} means the same up to what the measure is blind to.",
        "caution": "From one checkpoint to the next it changes most between steps {before} and {after} ({jump:.2f}); between the first and the last step it stands at {apart:.2f}. Steps are drawn equally wide, whatever lies between them.",
        "audience": "For those who choose checkpoints, learning-rate schedules, or when to freeze a layer.",
        "practitioner": "Where the block that ends at the last step begins, this layer was done: training it further brought little, and it can be frozen.",
        "researcher": "Only the geometry of this probe's samples is compared, up to the measure's invariances: two steps can be alike here and differ on other data, or by a map that the measure is blind to.",
    },
    "layer": {
        "shows": "{name} of every layer with every other of {count} layers at one step; the slider moves over the steps.",
        "reading": "{near} means the same up to what the measure is blind to. Bright and dark blocks are groups of layers that do the same; a diagonal band means that each layer changes the representation a little.",
        "caution": "At step {step} the nearest two layers are {one} and {other} ({most:.2f}), the farthest {far} and {away} ({least:.2f}). A layer and its activation function are near by construction.",
        "audience": "For those who ask which layers could be left out.",
        "practitioner": "A run of layers that are all alike adds little on this probe: try a shallower network, or prune there.",
        "researcher": "High similarity between wide layers can stem from one dominant direction that all share: look at the effective rank and at a measure with other invariances before you read blocks as redundancy.",
    },
    "last": {
        "shows": "{name} of each layer at every step with the same layer at the last step, {last}; pale bands are 95 % intervals over the samples.",
        "reading": "Each curve {towards} {near} as the layer approaches what it ends as. Layers whose curves get there early settle first.",
        "caution": "At step {start} layer {settled} was nearest to its end ({most:.2f}) and {moved} farthest from it ({least:.2f}), among {n} samples. {chance} {width} {shown} of {count} layers are drawn.",
        "audience": "For anyone who wants to know when the layers were done.",
        "practitioner": "If all curves still move at the end, training was stopped early, or the rate was still high.",
        "researcher": "Similarity to the end hides loops: a layer can leave and come back. The matrix over all steps shows them. Intervals are over the samples of the probe and say nothing of other seeds.",
    },
}
