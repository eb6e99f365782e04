"""The pictures of linear probes: layers by step, the newest step against its controls, penalties, description length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.storage.names import step_directory
from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.representation.layer_heatmaps import (
    COLUMNS,
    LayerMap,
    layer_map,
    layers_in_order,
    newest_by_layer,
)
from stratascope.tasks.representation.linear_probe_words import WORDS
from stratascope.tasks.representation.pictures import (
    even_choice,
    figure_key,
    layer_title,
    lines_by,
    table_of,
    worded,
)

_ACCURACY, _R2 = "linear_probe_accuracy", "linear_probe_r2"
_SHUFFLED, _CONTROL = "null=shuffled_labels", "null=control_task"
_MAPS = (
    LayerMap(_ACCURACY, "", "Accuracy of linear probes", "fraction right", "accuracy"),
    LayerMap(_R2, "", "Variance that ridge probes explain", "R²", "r2"),
    LayerMap("compression", "", "Compression of the labels", "uniform by online code", "compression"),
)
_LINES, _PANELS = 8, 12
"""So many layers are drawn at most, evenly chosen over the depth: as lines, and as panels."""


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe scores by layer and step, layers against controls, penalties and description length at the newest."""
    for probe in sorted(set(view.rows["probe"].unique()) - {""}):
        yield from _profile(view, probe)
        for kind in _MAPS:
            yield from layer_map(view, kind, probe, WORDS[kind.words], headline=kind.words in ("accuracy", "r2"))
        for metric in (_ACCURACY, _R2):
            yield from _over_steps(view, probe, metric)
            yield from _penalties(view, probe, metric)
        yield from _description(view, probe)


def chosen_layers(layers: Sequence[str], most: int) -> list[str]:
    """At most `most` of `layers`, evenly over their order, the first and the last among them."""
    return [layers[place] for place in even_choice(range(len(layers)), most)]


def _profile(view: View, probe: str) -> Iterator[Figure]:
    from stratascope.tasks.report.profiles import layer_profile

    wanted = {
        "probe of the layer": (_ACCURACY, ""), "control task": (_ACCURACY, _CONTROL),
        "shuffled labels": (_ACCURACY, _SHUFFLED),
    }  # fmt: skip
    found = newest_by_layer(view, wanted, probe)
    if found is None or "probe of the layer" not in found[2]:
        return
    step, layers, columns, table = found
    values = np.array(columns["probe of the layer"][0], float)
    best = int(np.nanargmax(values))
    gain = view.metric("selectivity", probe=probe)
    gain = gain[gain["step"] == step]
    chance = view.metric("permutation_p_value", probe=probe, part=f"of={_ACCURACY}")
    chance = chance[chance["step"] == step]
    least = gain.loc[gain["value"].idxmin()] if len(gain) else None
    numbers = {
        "n": int(table["n"].max()), "step": step, "best": layer_title(layers[best]), "value": float(values[best]),
        "selective": "no control task was set" if least is None else f"selectivity is least in {layer_title(least['layer'])}, {least['value']:.3f}",
        "chance": f"against shuffled labels ({chance['estimator'].iloc[0].partition(', ')[2]}) p is {chance['value'].max():.2g} at most" if len(chance) else "labels were not shuffled",
    }  # fmt: skip
    yield worded(
        WORDS["profile"],
        numbers,
        key=figure_key("profile", probe),
        title=f"Linear probes against their controls at the newest step, probe {probe}",
        svg=layer_profile([layer_title(layer) for layer in layers], columns, "fraction right, held out"),
        run=view.run,
        probe=probe,
        table=table_of(table, COLUMNS),
    )


def _over_steps(view: View, probe: str, metric: str) -> Iterator[Figure]:
    from stratascope.tasks.report.style import lines

    rows = view.metric(metric, part="", probe=probe)
    layers = layers_in_order(view, metric, rows["layer"].unique())
    if not layers or rows["step"].nunique() < 2:
        return
    shown = chosen_layers(layers, _LINES)
    series, bands = lines_by(rows, "layer", shown)
    null = view.metric(metric, part=_SHUFFLED, probe=probe)
    references = {}
    if len(null):
        newest = null[null["step"] == null["step"].max()]
        references["shuffled labels"] = (
            float(newest["value"].mean()), float(newest["low"].min()), float(newest["high"].max()),
        )  # fmt: skip
    first, last = rows[rows["step"] == rows["step"].min()], rows[rows["step"] == rows["step"].max()]
    change = (last.set_index("layer")["value"] - first.set_index("layer")["value"]).dropna()
    overfit = view.metric("linear_probe_overfit", probe=probe)
    gap = overfit[overfit["step"] == overfit["step"].max()] if len(overfit) else overfit
    numbers = {
        "first": int(rows["step"].min()), "last": int(rows["step"].max()), "n": int(rows["n"].max()),
        "gained": f"{layer_title(change.idxmax())} changed most, by {change.max():+.3f}" if len(change) else "no layer was probed at both ends",
        "lost": f"{layer_title(change.idxmin())} least, by {change.min():+.3f}" if len(change) else "changes are not known",
        "gap": f"at the end training samples are scored up to {gap['value'].max():.3f} higher than those held out" if len(gap) else "how much training samples flatter is not known",
        "shown": "All layers are drawn" if len(shown) == len(layers) else f"{len(shown)} of {len(layers)} layers are drawn",
    }  # fmt: skip
    name, label = ("steps", "fraction right, held out") if metric == _ACCURACY else ("steps-r2", "R², held out")
    yield worded(
        WORDS["steps"],
        numbers,
        key=figure_key(name, probe),
        title=f"Linear probes over training, probe {probe}",
        svg=lines({layer_title(key): item for key, item in series.items()}, label,
                  bands={layer_title(key): item for key, item in bands.items()}, references=references),
        run=view.run,
        probe=probe,
        table=table_of(rows, COLUMNS),
    )  # fmt: skip


# -- penalties -----------------------------------------------------------------------------------------------


def _penalties(view: View, probe: str, metric: str) -> Iterator[Figure]:
    rows = view.metric(metric, part="", probe=probe)
    if not len(rows):
        return
    step = int(rows["step"].max())
    rows = rows[rows["step"] == step]
    found: dict[str, tuple[np.ndarray, dict[str, Any]]] = {}
    for layer in layers_in_order(view, metric, rows["layer"].unique()):
        place = join_path("runs", view.run, step_directory(step), "linear_probe", probe, layer, "path")
        if view.store.has_array(place):
            found[layer] = view.store.array(place), view.store.array_info(place)[3]
    if not found or min(len(about["C"]) for _, about in found.values()) < 2:
        return
    shown = {layer: found[layer] for layer in chosen_layers(list(found), _PANELS)}
    gaps = {layer: (values[0] - values[1]).max() for layer, (values, _) in found.items()}
    widest = max(gaps, key=lambda layer: gaps[layer])
    ends = sum(about["chosen"] in (about["C"][0], about["C"][-1]) for _, about in found.values())
    path = next(iter(found.values()))[1]["C"]
    numbers = {
        "step": step, "widest": layer_title(widest), "gap": float(gaps[widest]), "n": int(rows["n"].max()),
        "low": f"{path[0]:g}", "high": f"{path[-1]:g}", "layers": len(found),
        "ends": f"{ends} of {len(found)} layers chose a value at the end of the path, where a better one may lie beyond" if ends else "no layer chose a value at the end of the path",
        "shown": "" if len(shown) == len(found) else f" {len(shown)} of {len(found)} layers are drawn.",
    }  # fmt: skip
    label = "fraction right" if metric == _ACCURACY else "R²"
    yield worded(
        WORDS["path"],
        numbers,
        key=figure_key("path" if metric == _ACCURACY else "path-r2", probe),
        title=f"What the penalty does to each layer's probe at step {step}, probe {probe}",
        svg=penalty_paths(shown, label),
        run=view.run,
        probe=probe,
        table=_path_table(found, step),
    )


def _path_table(found: dict[str, tuple[np.ndarray, dict[str, Any]]], step: int) -> dict[str, list[Any]]:
    table: dict[str, list[Any]] = {"step": [], "layer": [], "C": []}
    for layer, (values, about) in found.items():
        count = len(about["C"])
        table["step"] += [step] * count
        table["layer"] += [layer] * count
        table["C"] += list(about["C"])
        for name, line in zip(about["quantity"], values, strict=True):
            table.setdefault(name, []).extend(line.tolist())
    return table


def penalty_paths(found: dict[str, tuple[np.ndarray, dict[str, Any]]], label: str) -> str:
    """A panel for each layer: its array `path` (quantity, C) and attributes; scores over C, the chosen C marked; as SVG."""
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import LogLocator, NullLocator

    from stratascope.tasks.report.style import COLOURS, INK, quiet, to_svg
    from stratascope.tasks.report.text import shortened

    across = min(3, len(found))
    down = -(-len(found) // across)
    figure = Canvas(figsize=(6.6, 1.75 * down + 0.75), dpi=72, layout="constrained")
    panels: Any = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
    for place, axes in enumerate(panels.flat):
        quiet(axes)
        if place >= len(found):
            axes.set_visible(False)
            continue
        layer, (values, about) = list(found.items())[place]
        axes.plot(about["C"], values[0], color=COLOURS[1], linestyle="--", linewidth=1.5, label="training samples")
        axes.plot(
            about["C"], values[1], color=COLOURS[0], marker="o", markersize=3.2, linewidth=1.7, label="held out"
        )
        axes.axvline(about["chosen"], color=INK, alpha=0.55, linewidth=1.1, linestyle=":", label="chosen C")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(numticks=4))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_title(shortened(layer_title(layer), 24), fontsize=10, color=INK, loc="left")
        if place + across >= len(found):
            axes.tick_params(labelbottom=True)
    figure.supxlabel("C, weak penalties to the right, logarithmic", fontsize=10, color=INK)
    figure.supylabel(label, fontsize=10, color=INK)
    figure.legend(*panels.flat[0].get_legend_handles_labels(), loc="outside upper left", ncols=3, frameon=False,
                  fontsize=9.5, labelcolor=INK)  # fmt: skip
    return to_svg(figure)


# -- description length --------------------------------------------------------------------------------------


def _description(view: View, probe: str) -> Iterator[Figure]:
    from stratascope.tasks.report.profiles import layer_profile

    found = newest_by_layer(view, {"online code": ("description_length", "")}, probe)
    if found is None:
        return
    step, layers, columns, table = found
    uniform = view.metric("description_length", probe=probe, part="code=uniform")
    plain = float(uniform["value"].iloc[-1])
    values = np.array(columns["online code"][0], float)
    short, long = int(np.nanargmin(values)), int(np.nanargmax(values))
    above = int((values > plain).sum())
    numbers = {
        "step": step, "n": int(table["n"].max()), "uniform": plain, "short": layer_title(layers[short]),
        "short_value": float(values[short]), "long": layer_title(layers[long]), "long_value": float(values[long]),
        "total": _size_of(values[short] * int(table["n"].max())),
        "above": f"{above} of {len(layers)} layers need more than the uniform code" if above else "no layer needs more than the uniform code",
    }  # fmt: skip
    yield worded(
        WORDS["description"],
        numbers,
        key=figure_key("description", probe),
        title=f"Description length of the labels at the newest step, probe {probe}",
        svg=layer_profile(
            [layer_title(layer) for layer in layers], columns, "bits per sample", mark={"uniform code": plain}
        ),
        run=view.run,
        probe=probe,
        table=table_of(table, COLUMNS),
    )


def _size_of(bits: float) -> str:
    return f"{bits / 8:,.0f} bytes"
