"""The pictures of numbers about heads: boxes by layer, heat maps of sinks and known patterns, lag profiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.report.text import plain_step
from stratascope.tasks.representation.pictures import figure_key, worded
from stratascope.tasks.sequence.attention_filed import (
    FiledAttention,
    FiledLayer,
    drawn_steps,
    in_line,
    note_of,
    rows_of,
)
from stratascope.tasks.sequence.attention_words import WORDS

_CURVES = 6


def _by_layer(layers: Sequence[FiledLayer], score: str) -> dict[str, np.ndarray]:
    return {layer.layer: layer.scores(layer.steps[-1]).get(score, np.full(len(layer.ranked), np.nan)) for layer in layers}  # fmt: skip


def _extremes(values: Mapping[str, np.ndarray]) -> tuple[tuple[str, float], tuple[str, float]]:
    """The lowest and the highest head by name, with their values."""
    flat = [(f"head {head} of {layer}", float(value)) for layer, heads in values.items() for head, value in enumerate(heads) if np.isfinite(value)]  # fmt: skip
    return min(flat, key=lambda item: item[1]), max(flat, key=lambda item: item[1])


def box_figures(filed: FiledAttention) -> Iterator[Figure]:
    """How sharp the heads of each layer are, and how far they look."""
    from stratascope.tasks.sequence.attention_charts import boxes_by_layer

    shares = _by_layer(filed.layers, "attention_entropy_share")
    if sum(np.isfinite(values).sum() for values in shares.values()) < 2:
        return
    charts = {"entropy as a share of its largest value": shares}
    pictures = any(layer.is_picture for layer in filed.layers)
    distances = _by_layer(filed.layers, "attention_distance")
    far = any(np.isfinite(values).any() for values in distances.values())
    if far:
        charts[f"mean distance, {'patches' if pictures else 'tokens'}"] = distances
    (sharp, low), (even, high) = _extremes(shares)
    rows = filed.view.metric("attention_entropy_share", probe=filed.probe.name)
    counts = sorted({len(layer.ranked) for layer in filed.layers})
    numbers = {
        "step": plain_step(filed.layers[-1].steps[-1]), "n": int(rows["n"].iloc[-1]), "sharp": sharp, "low": low, "even": even,
        "high": high, "heads": " or ".join(str(count) for count in counts),
        "distance": ", and how far away its keys are" if far else "",
        "second": " On the right far is far: a head that looks at its own token has 0." if far else "",
        "note": note_of(filed, filed.layers, "attention_entropy_share"),
    }  # fmt: skip
    yield worded(
        WORDS["boxes"], numbers, key=figure_key("boxes", filed.probe.name), title=f"Sharp and even heads by layer, probe {filed.probe.name}",
        svg=boxes_by_layer(charts), run=filed.view.run, probe=filed.probe.name,
        table=rows_of(filed, "attention_entropy_share", "attention_entropy", "attention_distance"),
    )  # fmt: skip


def _maps(layers: Sequence[FiledLayer], steps: Sequence[int], score: str) -> np.ndarray:
    """(step, layer, head) of a score, NaN where a layer has fewer heads."""
    found = np.full((len(steps), len(layers), max(len(layer.ranked) for layer in layers)), np.nan)
    for row, step in enumerate(steps):
        for line, layer in enumerate(layers):
            values = layer.scores(step).get(score) if step in layer.steps else None
            if values is not None:
                found[row, line, : len(values)] = values
    return found


def score_figures(filed: FiledAttention) -> Iterator[Figure]:
    """Weight on the first token, heads of known kinds, and lag profiles."""
    yield from _sinks(filed)
    yield from _patterns(filed)
    yield from _lags(filed)


def _sinks(filed: FiledAttention) -> Iterator[Figure]:
    from stratascope.tasks.sequence.attention_charts import heat_maps_of_heads

    layers = [layer for layer in filed.layers if np.isfinite(layer.scores(layer.steps[-1])["sink_mass"]).any()]
    if sum(len(layer.ranked) for layer in layers) < 2:
        return
    steps = drawn_steps(layers[0].steps)
    maps = _maps(layers, steps, "sink_mass")
    _, (best, value) = _extremes(_by_layer(layers, "sink_mass"))
    last = maps[-1][np.isfinite(maps[-1])]
    class_token = any(layer.is_picture and layer.about["grid"][0] for layer in layers)
    numbers = {
        "step": plain_step(steps[-1]), "best": best, "value": value, "over": int((last > 0.5).sum()), "all": len(last),
        "expected": "Here it is the class token, which is meant to be looked at." if class_token else "In a causal network the first queries have nothing else to look at, which alone gives some weight.",
        "note": note_of(filed, layers, "sink_mass"),
    }  # fmt: skip
    yield worded(
        WORDS["sinks"], numbers, key=figure_key("sinks", filed.probe.name), title=f"Weight on the first token, probe {filed.probe.name}",
        frames=heat_maps_of_heads(steps, {"weight on the first token": maps}, [layer.layer for layer in layers], float(np.nanmax(maps))),
        run=filed.view.run, probe=filed.probe.name, table=rows_of(filed, "sink_mass"),
    )  # fmt: skip


def _patterns(filed: FiledAttention) -> Iterator[Figure]:
    from stratascope.tasks.sequence.attention_charts import heat_maps_of_heads

    layers = in_line(filed)
    names = [
        name for name in (layers[0].scores(layers[0].steps[-1]) if layers else {}) if name.endswith("_score")
    ][:4]
    names = [name for name in names if np.isfinite(np.concatenate(list(_by_layer(layers, name).values()))).any()]
    if not names:
        return
    steps = drawn_steps(layers[0].steps)
    titles = {name: name.removesuffix("_score").replace("_", " ") for name in names}
    tops = {name: _extremes(_by_layer(layers, name))[1] for name in names}
    top = max(names, key=lambda name: tops[name][1])
    rows, part = filed.view.rows, f"head={tops[top][0].split()[1]}"
    custom = f"{part};pattern={top.removesuffix('_score')}"
    own = rows[
        (rows["probe"] == filed.probe.name)
        & (rows["layer"] == tops[top][0].split(" of ", 1)[1])
        & (rows["status"] == "ok")
    ]
    own = (
        own[((own["metric"] == top) & (own["part"] == part)) | (own["part"] == custom)]
        .sort_values("step")
        .iloc[-1]
    )
    chances = _chances(filed, names)
    numbers = {
        "names": ", ".join(titles.values()), "step": plain_step(steps[-1]), "value": tops[top][1], "n": int(own["n"]),
        "best": f"{titles[top]} by {tops[top][0]}", "lowest": float(own["low"]), "highest": float(own["high"]),
        "chance": ", ".join(f"{chance} ({titles[name]})" for name, chance in chances.items()), "note": note_of(filed, layers, top),
    }  # fmt: skip
    yield worded(
        WORDS["patterns"], numbers, key=figure_key("patterns", filed.probe.name), title=f"Heads of known kinds, probe {filed.probe.name}",
        frames=heat_maps_of_heads(steps, {titles[name]: _maps(layers, steps, name) for name in names}, [layer.layer for layer in layers]),
        run=filed.view.run, probe=filed.probe.name, headline=True, table=rows_of(filed, *names, "pattern_score"),
    )  # fmt: skip


def _chances(filed: FiledAttention, names: Sequence[str]) -> dict[str, str]:
    """What an even head has, by score, from the convention of its rows."""
    rows = filed.view.rows
    rows = rows[(rows["probe"] == filed.probe.name) & rows["convention"].str.contains("chance=", regex=False)]
    found = {}
    for name in names:
        own = rows[(rows["metric"] == name) | rows["part"].str.endswith(f";pattern={name.removesuffix('_score')}")]
        if len(own):
            found[name] = f"{float(own['convention'].iloc[-1].split('chance=')[1].split(';')[0]):.2f}"
    return found


def _lags(filed: FiledAttention) -> Iterator[Figure]:
    from stratascope.tasks.sequence.attention_charts import lag_curves

    curves: dict[str, np.ndarray] = {}
    layers = in_line(filed)
    lags: list[int] = []
    for layer in layers:
        found = layer.array(layer.steps[-1], "lag_profile")
        if found is not None and (not lags or layer.lags == lags):
            lags = layer.lags
            curves |= {
                f"{layer.layer}, head {head}": values
                for head, values in enumerate(found)
                if np.isfinite(values).any()
            }
    if not curves or len(lags) < 2:
        return
    peaks = {name: float(np.nanmax(values)) for name, values in curves.items()}
    order = sorted(curves, key=lambda name: -peaks[name])
    best = order[0]
    weights = layers[0].array(layers[0].steps[-1], "weights")
    tokens = weights.shape[2] if weights is not None else len(lags)
    numbers = {
        "step": plain_step(layers[-1].steps[-1]), "count": min(_CURVES, len(order)), "best": best, "value": peaks[best],
        "lag": lags[int(np.nanargmax(curves[best]))], "few": tokens - lags[-1], "tokens": tokens,
        "ahead": "Negative lags look ahead." if lags[0] < 0 else "No query looks ahead.", "note": note_of(filed, layers, "locality"),
    }  # fmt: skip
    yield worded(
        WORDS["lags"], numbers, key=figure_key("lags", filed.probe.name), title=f"How far back heads look, probe {filed.probe.name}",
        svg=lag_curves(lags, {name: curves[name] for name in order[:_CURVES]}, [curves[name] for name in order[_CURVES:]]),
        run=filed.view.run, probe=filed.probe.name,
        table={"head": [name for name in order for _ in lags], "lag": lags * len(order), "weight": np.concatenate([curves[name] for name in order]).tolist()},
    )  # fmt: skip
