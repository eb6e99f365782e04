"""The pictures of similarity between runs: all layers of two of them, and layers of one name over the steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.representation.pictures import figure_key, lines_by, table_of, worded
from stratascope.tasks.representation.similarity_drawing import CURVES, even_choice_of, titled, wording
from stratascope.tasks.representation.similarity_measures import MEASURES, Measure

_PAIRS = 15
"""At most so many pairs of runs are drawn for each probe and measure."""


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe, measure and pair of runs the layers of the one by those of the other, and their course."""
    drawn: dict[tuple[str, str], int] = {}
    for path, values in sorted(view.arrays().items()):
        probe, name, run, other, _ = path.split("/")
        drawn[probe, name] = drawn.get((probe, name), 0) + 1
        if name not in options.matrices or drawn[probe, name] > _PAIRS:
            continue
        place = join_path("cohort", view.analysis, probe, name, run, other, "layer_by_layer")
        about = view.store.array_info(place)[3]
        yield from _by_layer(MEASURES[name], values, about)
        if name in options.measures:
            yield from _course(view, MEASURES[name], about)


def _by_layer(measure: Measure, values: np.ndarray, about: dict[str, Any]) -> Iterator[Figure]:
    from stratascope.tasks.report.style import heatmap

    if not np.isfinite(values).any():
        return
    layers, others = about["layers"], about["other_layers"]
    best = np.nanargmax(values) if measure.kind == "similarity" else np.nanargmin(values)
    one, other = np.unravel_index(best, values.shape)
    shared = [name for name in layers if name in others]
    same = [values[layers.index(name), others.index(name)] for name in shared]
    numbers = {
        **wording(measure), **about, "count": len(layers), "others": len(others), "one": layers[one], "other": others[other],
        "most": float(values[one, other]),
        "named": f"Layers of one name ({len(shared)}) stand at {np.nanmean(same):.2f} on average." if np.isfinite(same).any() else "No layers have one name.",
    }  # fmt: skip
    run, other_run, probe = about["run"], about["other_run"], about["probe"]
    yield worded(
        _WORDS["layer"], numbers, key=figure_key("between", measure.name, probe, run, other_run),
        title=f"{titled(measure)} between the layers of {run} and {other_run}, probe {probe}",
        svg=heatmap(
            values, layers, others, titled(measure), f"layer of {run}, step {about['step']}",
            f"layer of {other_run}, step {about['other_step']}",
        ),
        probe=probe, headline=measure.name == "cka",
        table={"layer": np.repeat(layers, len(others)).tolist(), "other_layer": others * len(layers), "value": values.ravel().tolist()},
    )  # fmt: skip


def _course(view: View, measure: Measure, about: dict[str, Any]) -> Iterator[Figure]:
    from stratascope.tasks.report.style import lines

    run, other_run, probe = about["run"], about["other_run"], about["probe"]
    part = ";".join(filter(None, ("against=same_step", measure.part)))
    rows = view.metric(measure.metric, probe=probe, part=part, run=run, other_run=other_run)
    if rows["step"].nunique() < 2:
        return
    present = set(rows["layer"])
    layers = [layer for layer in about["layers"] if layer in present]
    shown = even_choice_of(layers, CURVES)
    series, bands = lines_by(rows, "layer", shown)
    ends = rows[rows["step"] == rows["step"].max()].set_index("layer")["value"]
    towards = ends if measure.kind == "similarity" else -ends
    numbers = {
        **wording(measure), **about, "start": int(rows["step"].min()), "end": int(rows["step"].max()), "n": int(rows["n"].iloc[-1]),
        "near_layer": towards.idxmax(), "most": float(ends[towards.idxmax()]), "far_layer": towards.idxmin(),
        "least": float(ends[towards.idxmin()]), "shown": len(shown), "count": len(layers),
    }  # fmt: skip
    yield worded(
        _WORDS["course"], numbers, key=figure_key("course", measure.name, probe, run, other_run),
        title=f"{titled(measure)} between layers of one name of {run} and {other_run}, probe {probe}",
        svg=lines(series, titled(measure), bands=bands, height=3.6), probe=probe,
        table=table_of(rows, ("run", "step", "layer", "other_run", "value", "low", "high", "n", "convention")),
    )  # fmt: skip


_WORDS: dict[str, dict[str, str]] = {
    "layer": {
        "shows": "{name} of every layer of {run} at step {step} with every layer of {other_run} at step {other_step}, on the same samples.",
        "reading": "{near} means the same up to what the measure is blind to. In each line look for the extreme cell: that layer of the other run does what this one does. A bright diagonal means that both build up their representation in the same order.",
        "caution": "{count} by {others} layers were compared. The nearest are {one} of {run} and {other} of {other_run} ({most:.2f}). {named} The best of many cells is better than any single comparison would be by chance.",
        "audience": "For those who compare seeds, architectures, or a small network with a large one.",
        "practitioner": "If two seeds do not agree in a layer, do not read meaning into its single units: they will not come back in the next run. If a small network's last layers match the large one's, it may do.",
        "researcher": "Layers of different width are compared through the geometry of the samples only. Early layers are alike for the data's sake: hold the numbers against an untrained network (step 0) before you speak of convergent learning.",
    },
    "course": {
        "shows": "{name} between layers of the same name in {run} and {other_run} at steps that both have; pale bands are 95 % intervals over the samples.",
        "reading": "A curve that moves away from {near} is a layer in which the two runs part; one that comes back is a layer in which they find the same solution.",
        "caution": "Among {n} samples, from step {start} to {end}: at the end {near_layer} agrees most ({most:.2f}) and {far_layer} least ({least:.2f}). {shown} of {count} layers are drawn. Equal steps need not be equal progress.",
        "audience": "For those who ask how much of a run is chance.",
        "practitioner": "Layers that agree across seeds can be shared, distilled or frozen with more confidence than those that do not.",
        "researcher": "Two runs are a sample of two: repeat over several seeds before you speak of the architecture. Intervals are over the probe's samples, not over seeds.",
    },
}
