"""The pictures of the samples' gradients: their sizes by layer and step, their noise, and whether classes agree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.representation.layer_heatmaps import COLUMNS, LayerMap, layer_map
from stratascope.tasks.representation.pictures import (
    even_choice,
    figure_key,
    grid_of,
    leading_probe,
    lines_by,
    table_of,
    worded,
)
from stratascope.tasks.vision.gradient_flow_words import WORDS

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
"""Of the norms of single samples, as they are stored."""
_MEDIAN, _LOW, _HIGH = 3, 1, 5
_MOST_LINES = 4
_MOST_FRAMES = 12
_DRAWN_CLASSES = 30


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe norms by layer and step, with their spread over samples; noise; agreement of classes."""
    probes = sorted(set(view.metric("sample_gradient_norm")["probe"].unique()) - {""})
    yield from _noise(view)
    for probe in probes:
        yield from _heat(view, probe)
        yield from _spread(view, probe)
        rows = view.metric("gradient_noise_scale", probe=probe)
        if (rows["layer"] != "").any():
            kind = LayerMap("gradient_noise_scale", "", "Gradient noise scale", "samples, power of ten", "noise", powers=True)  # fmt: skip
            yield from layer_map(_without_whole(view), kind, probe, WORDS["noise_map"])
        yield from _alignment(view, probe)


def _without_whole(view: View) -> View:
    """The same findings but for those of the whole network, which is no layer of a map."""
    rows = view.rows
    return View(view.store, view.run, view.analysis, view.scope, view.steps, rows[rows["layer"] != ""], view.show_inputs)  # fmt: skip


def _layers(view: View, rows: Any) -> list[str]:
    present = set(rows["layer"].unique())
    return [layer for layer in view.layers("sample_gradient_norm") if layer and layer in present]


def _heat(view: View, probe: str) -> Iterator[Figure]:
    from stratascope.tasks.report.style import heatmap

    rows = view.metric("sample_gradient_norm", probe=probe, part="quantile=0.5")
    layers = _layers(view, rows)
    if not layers:
        return
    grid, steps = grid_of(rows, "layer", layers)
    with np.errstate(divide="ignore"):
        powers = np.where(grid > 0, np.log10(np.maximum(grid, 1e-300)), np.nan)
    if not np.isfinite(powers).any():
        return
    flags = {
        name: [int(step) for step, value in zip(found["step"], found["value"], strict=True) if value == 1]
        for name in ("vanishing_gradient", "exploding_gradient")
        for found in [view.metric(name, probe=probe)]
    }
    last = powers[:, -1]
    spread = float(np.nanmax(last) - np.nanmin(last)) if np.isfinite(last).any() else float("nan")
    slope = view.metric("gradient_depth_slope", probe=probe)
    numbers = {
        "n": int(rows["n"].max()), "step": steps[-1], "spread": spread,
        "slope": f"{slope['value'].iloc[-1]:+.2f} powers of ten per layer" if len(slope) else "not known for so few layers",
        "vanishing": _steps_in_words(flags["vanishing_gradient"]),
        "exploding": _steps_in_words(flags["exploding_gradient"]),
        "empty": int((~np.isfinite(powers)).sum()),
    }  # fmt: skip
    yield worded(
        WORDS["heat"], numbers, key=figure_key("norms", probe),
        title=f"Median gradient of a sample by layer, probe {probe}",
        svg=heatmap(powers, layers, [str(step) for step in steps], "power of ten of the norm", "layer", "training step"),
        run=view.run, probe=probe, headline=probe == leading_probe(view, view.rows["probe"].unique()),
        table=table_of(rows, COLUMNS),
    )  # fmt: skip


def _steps_in_words(steps: list[int]) -> str:
    if not steps:
        return "at no step"
    return f"at {len(steps)} steps, first at {steps[0]}" if len(steps) > 1 else f"at step {steps[0]}"


def _spread(view: View, probe: str) -> Iterator[Figure]:
    """Median and the middle nine tenths of the samples' norms in a few layers, over the steps."""
    from stratascope.tasks.report.style import lines

    median = view.metric("sample_gradient_norm", probe=probe, part="quantile=0.5")
    layers = _layers(view, median)
    if not layers:
        return
    places = even_choice(range(len(layers)), _MOST_LINES)
    series, bands = {}, {}
    for layer in (layers[place] for place in dict.fromkeys(places)):
        steps = list(median[median["layer"] == layer]["step"])
        found = {}
        for share in ("0.05", "0.5", "0.95"):
            rows = view.metric("sample_gradient_norm", probe=probe, part=f"quantile={share}", layer=layer)
            found[share] = rows.set_index("step")["value"].reindex(steps).tolist()
        series[layer] = (steps, found["0.5"])
        bands[layer] = ([max(value, 1e-12) for value in found["0.05"]], found["0.95"])
    whole = {
        share: float(view.metric("sample_gradient_norm", probe=probe, part=f"quantile={share}", layer="")["value"].iloc[-1])
        for share in ("0.05", "0.5", "0.95")
    }  # fmt: skip
    numbers = {
        "n": int(median["n"].max()), "low": whole["0.05"], "middle": whole["0.5"], "high": whole["0.95"],
        "step": int(median["step"].max()), "count": len(series), "all": len(layers),
        "times": f"{whole['0.95'] / whole['0.05']:.3g}" if whole["0.05"] > 0 else "without bound",
    }  # fmt: skip
    rows = view.metric("sample_gradient_norm", probe=probe)
    yield worded(
        WORDS["spread"], numbers, key=figure_key("norm-spread", probe),
        title=f"Spread of the samples' gradients, probe {probe}",
        svg=lines(series, "norm", logarithmic=True, bands=bands), run=view.run, probe=probe,
        table=table_of(rows[rows["layer"].isin(list(series))], COLUMNS),
    )  # fmt: skip


def _noise(view: View) -> Iterator[Figure]:
    from stratascope.tasks.report.style import lines

    rows = view.metric("gradient_noise_scale", layer="", part="")
    if not len(rows):
        return
    names = sorted(rows["probe"].unique())
    series, bands = lines_by(rows, "probe", names)
    probe = leading_probe(view, names)
    own = rows[rows["probe"] == probe]
    every = view.rows
    missing = every[
        (every["metric"] == "gradient_noise_scale") & (every["layer"] == "") & (every["probe"] == probe)
    ]
    last = own.iloc[-1]
    signal = view.metric("gradient_signal_to_noise", layer="", probe=probe)
    numbers = {
        "probe": probe, "n": int(last["n"]), "first": own["value"].iloc[0], "last": last["value"],
        "step": int(last["step"]), "interval": _interval(last["low"], last["high"]),
        "missing": int((missing["status"] != "ok").sum()),
        "signal": f"{signal['value'].iloc[-1]:.3g}" if len(signal) else "not known",
    }  # fmt: skip
    yield worded(
        WORDS["noise"], numbers, key="noise-scale", title="Gradient noise scale of the whole network",
        svg=lines(series, "noise scale, samples", logarithmic=True, bands=bands), run=view.run,
        table=table_of(rows, COLUMNS),
    )  # fmt: skip


def _interval(low: float, high: float) -> str:
    if not np.isfinite([low, high]).all():
        return "its interval cannot be told: without some of the samples noise hides the signal"
    return f"interval {low:.3g} to {high:.3g}"


def _alignment(view: View, probe: str) -> Iterator[Figure]:
    from stratascope.tasks.report.style import moving_heatmap

    rows = view.metric("gradient_alignment", probe=probe, layer="")
    whole = rows[rows["part"] == ""]
    if not len(whole):
        return
    found: dict[int, np.ndarray] = {}
    for step in even_choice(sorted({int(step) for step in whole["step"]}), _MOST_FRAMES):
        matrix = view.arrays(step).get(f"{probe}/alignment")
        if matrix is not None:
            found[step] = matrix[0]
    names = _class_names(view, probe)
    if (
        not found
        or not 2 <= len(names) <= _DRAWN_CLASSES
        or any(len(item) != len(names) for item in found.values())
    ):
        return
    stacked = np.stack([np.where(np.eye(len(names), dtype=bool), np.nan, item) for item in found.values()])
    last = stacked[-1]
    if not np.isfinite(last).any():
        return
    one, other = np.unravel_index(int(np.nanargmax(last)), last.shape)
    against, with_it = np.unravel_index(int(np.nanargmin(last)), last.shape)
    conflict = view.metric("gradient_conflict_fraction", probe=probe, layer="")
    newest = whole.iloc[-1]
    numbers = {
        "one": names[one], "other": names[other], "highest": float(last[one, other]), "step": int(newest["step"]),
        "against": names[against], "with_it": names[with_it], "lowest": float(last[against, with_it]),
        "mean": newest["value"], "share": float(conflict["value"].iloc[-1]), "smallest": newest["convention"].partition("=")[2],
    }  # fmt: skip
    count = len(names)
    yield worded(
        WORDS["alignment"], numbers, key=figure_key("alignment", probe),
        title=f"Do the classes' gradients agree? Probe {probe}",
        frames=moving_heatmap(stacked, list(found), names, names, "cosine of mean gradients", "class", "class"),
        run=view.run, probe=probe,
        table={"step": [list(found)[-1]] * count**2, "class": [name for name in names for _ in names],
               "other_class": names * count, "cosine": last.ravel().astype(float).tolist()},
    )  # fmt: skip


def _class_names(view: View, probe: str) -> list[str]:
    """As the array's attribute has them, in the order of its axes."""
    from stratascope.storage.archive import join_path
    from stratascope.storage.names import step_directory

    for step in view.steps[::-1]:
        place = join_path("runs", view.run, step_directory(step), "gradient_flow", probe, "alignment")
        if view.store.has_array(place):
            return [str(name) for name in view.store.array_info(place)[3]["class"]]
    return []
