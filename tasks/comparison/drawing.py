"""The pictures of a comparison, drawn from archive and ledger alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stratascope.storage.probes import Probe, read_probe
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.tasks.analysis import Figure
from stratascope.tasks.comparison.mosaic import mosaic_figures
from stratascope.tasks.comparison.page import (
    FEATURE_NAMES,
    METHOD_NAMES,
    comparison_names,
    drawn_unit,
    summaries,
)
from stratascope.tasks.comparison.spec import PREFIX
from stratascope.tasks.comparison.words import WORDS
from stratascope.tasks.memory import returning_memory
from stratascope.tasks.report.drawing import drawing_folder, write_figures
from stratascope.tasks.report.text import counted, shortened
from stratascope.tasks.representation.pictures import worded

_MOST_EFFECTS = 30


@dataclass
class Drawn:
    """What the drawings of one comparison are made from."""

    store: Store
    name: str
    found: dict[str, Any]
    methods: list[dict[str, Any]]
    show_inputs: bool

    @property
    def labels(self) -> tuple[str, str]:
        a, b = (str(group["label"]) for group in self.found["groups"])
        return a, b

    def array(self, path: str) -> np.ndarray | None:
        """An array of the comparison's unit; None where it has none."""
        place = f"cohort/{PREFIX}{self.name}/{path}"
        return self.store.array(place) if self.store.has_array(place) else None

    def probe(self) -> Probe:
        return read_probe(self.store, self.found["probe"])


@returning_memory
def draw_comparison(store_path: str, name: str, show_inputs: bool) -> int:
    """Draw all figures of the comparison called `name`; returns how many there are.

    Without `show_inputs` no sample is shown, only its id.
    """
    store = Store.open(store_path)
    found, methods = summaries(store, name)
    drawn = Drawn(store, name, found, list(methods.values()), show_inputs)
    figures = _figures(drawn) if found else iter(())
    with drawing_folder(store, f"{PREFIX}{name}", "") as report:
        return write_figures(report, f"{PREFIX}{name}", "", figures)


def redraw_comparisons(store_path: str) -> int:
    """Draw every stored comparison again; returns how many there are. Inputs are shown only where they were before."""
    store = Store.open(store_path)
    names = comparison_names(store.units())
    for name in names:
        manifest = store.manifest(drawn_unit(name))
        shown = manifest is not None and bool(manifest.summary.get("show_inputs"))
        draw_comparison(store_path, name, shown)
    return len(names)


def _figures(drawn: Drawn) -> Iterator[Figure]:
    yield from _effects(drawn)
    for metric in ("accuracy", "loss"):
        yield from _trend(drawn, metric)
    if not drawn.found["samples"]["reason"]:
        yield from mosaic_figures(drawn)
    yield from _traditional(drawn)


# -- effects ---------------------------------------------------------------------------------------------


def _effects(drawn: Drawn) -> Iterator[Figure]:
    """Every metric's effect with its interval on one axis of standard deviations."""
    known = [item for item in drawn.found["metrics"] if item["effect"]["value"] is not None]
    if not known:
        return
    shown = sorted(known, key=lambda item: -abs(item["effect"]["value"]))[:_MOST_EFFECTS]
    wide = [item for item in known if item["effect"]["low"] <= 0 <= item["effect"]["high"]]
    largest = shown[0]
    sizes = " and ".join(counted(len(group["runs"]), "run") for group in drawn.found["groups"])
    a, b = drawn.labels
    numbers = {
        "a": a, "b": b, "level": f"{drawn.found['confidence'] * 100:g} %", "shown": len(shown), "known": len(known),
        "wide": len(wide), "sizes": sizes, "largest": _metric_name(largest), "value": largest["effect"]["value"],
        "low": largest["effect"]["low"], "high": largest["effect"]["high"],
        "family": drawn.found["family"], "test": drawn.found["test"],
    }  # fmt: skip
    yield worded(
        WORDS["effects"], numbers, key="effects", title="How far apart, in standard deviations",
        svg=_forest(shown, (a, b)), table=_effect_table(known),
    )  # fmt: skip


def _metric_name(item: Mapping[str, Any]) -> str:
    return ", ".join(text for text in (item["metric"], item["layer"], item["part"], item["probe"]) if text)


def _forest(items: Sequence[Mapping[str, Any]], labels: tuple[str, str]) -> str:
    from stratascope.tasks.report.style import COLOURS, INK, new_axes, to_svg

    figure, axes = new_axes(width=6.4, height=max(1.9, 0.27 * len(items) + 1.0))
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", color=INK, alpha=0.13, linewidth=0.7)
    values = [item["effect"] for item in items]
    reach = max(max(abs(value["value"]) for value in values), 1.0)
    # An interval of three runs may be ten times as wide as all effects: what leaves the picture ends in an arrow.
    limit = min(max(max(abs(value["low"]), abs(value["high"])) for value in values), 2.5 * reach) * 1.05
    for place, (item, value) in enumerate(zip(items, values, strict=True)):
        colour = COLOURS[0] if item["differs"] else COLOURS[8]
        axes.plot(
            [max(value["low"], -limit), min(value["high"], limit)], [place, place], color=colour, linewidth=2
        )
        for end, marker in ((value["low"], "<"), (value["high"], ">")):
            if abs(end) > limit:
                axes.plot([math.copysign(limit, end)], [place], marker, color=colour, markersize=5, clip_on=False)
        axes.plot([value["value"]], [place], "o", color=colour, markersize=6.5)
    axes.axvline(0, color=INK, linewidth=1, alpha=0.6)
    axes.set(xlim=(-limit, limit), ylim=(len(items) - 0.4, -0.6))
    axes.set_yticks(range(len(items)), [shortened(_metric_name(item), 34) for item in items])
    axes.set_xlabel(f"Hedges’ g: ← {shortened(labels[1], 16)} higher · {shortened(labels[0], 16)} higher →")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return to_svg(figure)


def _effect_table(items: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    about = ("analysis", "metric", "probe", "layer", "part", "unit")
    table: dict[str, list[Any]] = {name: [item[name] for item in items] for name in about}
    for side in ("a", "b"):
        for part in ("mean", "std", "n"):
            table[f"{part}_{side}"] = [item[side][part] for item in items]
    for name in ("difference", "effect"):
        for part in ("value", "low", "high"):
            table[f"{name}_{part}"] = [item[name][part] for item in items]
    table["p_t_test"] = [item["t_test"]["p"] for item in items]
    table["p_permutation"] = [item["permutation"]["p"] for item in items]
    table["p_corrected"] = [item["adjusted_p"] for item in items]
    return table


# -- trends ----------------------------------------------------------------------------------------------


def _trend(drawn: Drawn, metric: str) -> Iterator[Figure]:
    """Both groups over training: the mean of the runs that share a step, and from the lowest to the highest of them."""
    from stratascope.tasks.report.style import lines

    rows = drawn.store.rows(_output_units(drawn))
    rows = rows[
        (rows["metric"] == metric) & (rows["probe"] == drawn.found["probe"]) & (rows["part"] == "")
        & (rows["layer"] == "") & (rows["status"] == "ok")
    ]  # fmt: skip
    series: dict[str, tuple[list[int], list[float]]] = {}
    bands: dict[str, tuple[list[float], list[float]]] = {}
    alone = []
    for group in drawn.found["groups"]:
        runs = [item["run"] for item in group["runs"]]
        table = rows[rows["run"].isin(runs)].pivot_table(index="step", columns="run", values="value").dropna()
        if len(table) < 2 or len(table.columns) < len(runs):
            alone.append(group["label"])
            continue
        label = str(group["label"])
        series[label] = ([int(step) for step in table.index], table.mean(axis=1).tolist())
        bands[label] = (table.min(axis=1).tolist(), table.max(axis=1).tolist())
    if not series:
        return
    unit = "fraction right" if metric == "accuracy" else "loss"
    ends = {label: (steps[-1], values[-1]) for label, (steps, values) in series.items()}
    spreads = {label: high[-1] - low[-1] for label, (low, high) in bands.items()}
    numbers = {
        "metric": metric, "probe": drawn.found["probe"],
        "ends": "; ".join(f"{label} ends at {value:.4g} (step {step:,})" for label, (step, value) in ends.items()),
        "spreads": " and ".join(f"{value:.3g}" for value in spreads.values()),
        "left_out": f" {' and '.join(alone)} cannot be drawn: its runs share fewer than two steps." if alone else "",
        "runs": " and ".join(str(len(group["runs"])) for group in drawn.found["groups"]),
    }  # fmt: skip
    table = {
        "group": [label for label, (steps, _) in series.items() for _ in steps],
        "step": [step for steps, _ in series.values() for step in steps],
        "mean": [value for _, values in series.values() for value in values],
        "lowest": [value for label in series for value in bands[label][0]],
        "highest": [value for label in series for value in bands[label][1]],
    }
    yield worded(
        WORDS["trend"], numbers, key=f"trend-{metric}", title=f"{metric.capitalize()} over training, side by side",
        svg=lines(series, unit, logarithmic=metric == "loss", bands=bands), probe=drawn.found["probe"],
        table=table, headline=True,
    )  # fmt: skip


def _output_units(drawn: Drawn) -> list[Unit]:
    runs = {item["run"] for group in drawn.found["groups"] for item in group["runs"]}
    return [unit for unit in drawn.store.manifests() if unit.run in runs and unit.analysis == "outputs"]


# -- traditional methods ---------------------------------------------------------------------------------


def _traditional(drawn: Drawn) -> Iterator[Figure]:
    """Accuracy of every method on every kind of features, beside the networks' own on the same samples."""
    lines = [entry for method in drawn.methods for entry in _method_lines(drawn, method)]
    if not lines:
        return
    networks = _network_accuracy(drawn)
    a, b = drawn.labels
    sizes = next(item for item in drawn.methods if item["results"])
    plain_ones = [line for line in lines if line["features"] in ("raw", "pca")]
    best = max(plain_ones or lines, key=lambda line: line["value"])
    gains = [gain["gain"]["value"] for item in drawn.methods for gain in item["gains"]]
    numbers = {
        "a": a, "b": b, "train": f"{sizes['train_samples']:,}", "test": f"{sizes['test_samples']:,}",
        "train_probe": sizes["train_probe"], "probe": drawn.found["probe"], "level": f"{drawn.found['confidence'] * 100:g} %",
        "best": f"{best['method']} on {best['label']}", "best_value": best["value"],
        "networks": " and ".join(f"{label} {value:.3f}" for label, value in networks.items()),
        "gains": f"{min(gains):+.3f} to {max(gains):+.3f}" if gains else "not known",
        "half": max(line["high"] - line["low"] for line in lines) / 2,
    }  # fmt: skip
    table = {key: [line[key] for line in lines] for key in ("method", "label", "value", "low", "high", "runs")}
    yield worded(
        WORDS["traditional"], numbers, key="traditional", title="Traditional methods on the same samples",
        svg=_dots(lines, networks), probe=drawn.found["probe"], table=table,
    )  # fmt: skip


def _method_lines(drawn: Drawn, method: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One line of the picture for each kind of features: of a group's runs their mean, and the mean interval."""
    name = METHOD_NAMES[method["method"]]
    good = [item for item in method["results"] if not item["reason"]]
    found = [
        {"method": name, "features": item["features"], "label": FEATURE_NAMES[item["features"]], "value": item["accuracy"], "low": item["low"], "high": item["high"], "runs": 0}
        for item in good
        if not item["run"]
    ]  # fmt: skip
    for group in drawn.found["groups"]:
        runs = {item["run"] for item in group["runs"]}
        mine = [item for item in good if item["run"] in runs]
        if mine:
            means = {key: float(np.mean([item[key] for item in mine])) for key in ("accuracy", "low", "high")}
            found.append({"method": name, "features": f"network-{group['name']}", "label": f"features of {group['label']}", "value": means["accuracy"], "low": means["low"], "high": means["high"], "runs": len(mine)})  # fmt: skip
    return found


def _network_accuracy(drawn: Drawn) -> dict[str, float]:
    """Mean accuracy of each group's runs on the samples that the traditional methods are tested on."""
    from stratascope.tasks.comparison.samples import class_targets

    unit = next(
        f"cohort/traditional:{drawn.name}:{item['method']}/test_row" for item in drawn.methods if item["results"]
    )
    rows = drawn.store.array(unit)
    targets = class_targets(drawn.probe())[rows]
    found = {}
    for side, label in zip("ab", drawn.labels, strict=True):
        predicted = drawn.array(f"samples/predicted_{side}")
        if predicted is not None:
            found[label] = float((predicted[:, rows] == targets).mean())
    return found


def _dots(lines: Sequence[Mapping[str, Any]], networks: Mapping[str, float]) -> str:
    from matplotlib.lines import Line2D

    from stratascope.tasks.report.style import COLOURS, INK, new_axes, to_svg

    methods = list(dict.fromkeys(line["method"] for line in lines))
    labels = list(dict.fromkeys(line["label"] for line in lines))
    figure, axes = new_axes(width=6.4, height=0.34 * len(methods) * max(2, len(labels)) * 0.62 + 1.5)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", color=INK, alpha=0.13, linewidth=0.7)
    markers = ("o", "s", "^", "D")
    for line in lines:
        kind = labels.index(line["label"])
        place = methods.index(line["method"]) + (kind - (len(labels) - 1) / 2) * 0.19
        axes.plot([line["low"], line["high"]], [place, place], color=COLOURS[kind], linewidth=1.8)
        axes.plot([line["value"]], [place], markers[kind % 4], color=COLOURS[kind], markersize=6)
    for number, value in enumerate(networks.values()):
        axes.axvline(value, color=COLOURS[2 + number], linewidth=1.6, linestyle=("--", ":")[number % 2])
    axes.set_yticks(range(len(methods)), methods)
    axes.set_ylim(len(methods) - 0.5, -0.5)
    axes.set_xlabel("fraction of the test samples right")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    handles = [
        Line2D([], [], color=COLOURS[kind], marker=markers[kind % 4], label=shortened(label, 26))
        for kind, label in enumerate(labels)
    ]
    handles += [
        Line2D([], [], color=COLOURS[2 + number], linestyle=("--", ":")[number % 2], label=f"{shortened(label, 20)} itself")
        for number, label in enumerate(networks)
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False, fontsize=9.5, labelcolor=INK)
    return to_svg(figure)
