"""The pictures of layers against raw inputs: lines with baselines, margins with the first layer that wins, random features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.representation.features import INPUT
from stratascope.tasks.representation.layer_heatmaps import COLUMNS
from stratascope.tasks.representation.linear_probe_drawing import chosen_layers
from stratascope.tasks.representation.linear_probe_words import WORDS
from stratascope.tasks.representation.pictures import (
    figure_key,
    layer_title,
    leading_probe,
    table_of,
    worded,
)

if TYPE_CHECKING:
    import pandas as pd

_ACCURACY, _MARGIN, _FIRST = "linear_probe_accuracy", "margin_over_inputs", "first_layer_beyond_inputs"
_LINES = 7
_TITLES = {
    "logistic_regression": "logistic regression", "rbf_svm": "RBF-SVM", "random_forest": "random forest",
    "k_nearest_neighbors": "k nearest neighbours",
}  # fmt: skip


@dataclass(frozen=True)
class _Found:
    """What was filed of one probe."""

    probe: str
    layers: list[str]
    steps: list[int]
    accuracy: np.ndarray
    """(layer, step)"""
    margin: np.ndarray
    """(layer, step)"""
    baselines: pd.DataFrame
    best: str
    share: float
    n: int


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe: layers over the steps with baselines, margins, and the newest step against random features."""
    arrays = view.arrays()
    for probe in sorted(set(view.rows["probe"].unique()) - {""}):
        found = _found(view, probe, arrays)
        if found is not None:
            yield _margins(view, found, options)
            yield from _lines(view, found)
            yield from _against_random(view, found)


def _found(view: View, probe: str, arrays: dict[str, np.ndarray]) -> _Found | None:
    if f"{probe}/margin" not in arrays:
        return None
    baselines = view.metric(_ACCURACY, probe=probe, layer=INPUT)
    baselines = baselines[baselines["part"].str.startswith("baseline=")]
    top = baselines.loc[baselines["value"].idxmax()]
    about = view.store.array_info(join_path("series", view.run, view.analysis, probe, "margin"))[3]
    steps = [int(step) for step in arrays[f"{probe}/step"]]
    return _Found(
        probe, list(about["layers"]), steps, arrays[f"{probe}/accuracy"], arrays[f"{probe}/margin"], baselines,
        _TITLES[about["best"]], float(top["value"]), int(top["n"]),
    )  # fmt: skip


def _lines(view: View, found: _Found) -> Iterator[Figure]:
    from stratascope.tasks.report.style import lines

    shown = chosen_layers(found.layers, _LINES)
    series = {
        layer_title(name): (found.steps, found.accuracy[found.layers.index(name)].tolist()) for name in shown
    }
    references = {
        _TITLES[row["part"].removeprefix("baseline=")]: (
            float(row["value"]),
            float(row["low"]),
            float(row["high"]),
        )
        for _, row in found.baselines.sort_values("value").iterrows()
    }
    # Only the best method's interval: four bands on one another hide the lines.
    references = {
        name: item if name == found.best else (item[0], np.nan, np.nan) for name, item in references.items()
    }
    role = view.probes[found.probe].role if found.probe in view.probes else "test"
    numbers = {
        "best": found.best, "share": found.share, "n": found.n, "step": found.steps[-1], "layers": len(found.layers),
        "above": int((found.margin[:, -1] > 0).sum()), "at_first": int((found.margin[:, 0] > 0).sum()),
        "role": "The network has been trained on the samples of this probe" if role == "train" else f"The probe's role is {role}",
        "shown": "All layers are drawn" if len(shown) == len(found.layers) else f"{len(shown)} of {len(found.layers)} layers are drawn",
    }  # fmt: skip
    count = len(found.steps)
    yield worded(
        WORDS["baselines"],
        numbers,
        key=figure_key("baselines", found.probe),
        title=f"Layers against traditional methods on raw inputs, probe {found.probe}",
        svg=lines(series, "fraction right, held out", height=3.6, references=references),
        run=view.run,
        probe=found.probe,
        table={
            "layer": [name for name in [*found.layers] for _ in range(count)] + [INPUT] * len(references),
            "part": [""] * (len(found.layers) * count) + found.baselines["part"].tolist(),
            "step": found.steps * len(found.layers) + [-1] * len(references),
            "value": found.accuracy.ravel().tolist() + found.baselines["value"].tolist(),
        },
    )


def _margins(view: View, found: _Found, options: Any) -> Figure:
    rows = view.metric(_MARGIN, probe=found.probe)
    last = found.margin[:, -1]
    high, low = int(np.nanargmax(last)), int(np.nanargmin(last))
    firsts = view.metric(_FIRST, probe=found.probe)
    winners = {int(row["step"]): str(row["other_layer"]) for _, row in firsts.iterrows()}
    step = found.steps[-1]
    since = min(winners) if winners else None
    sure = view.metric("margin_p_value", probe=found.probe, part="corrected=holm")
    sure = sure[(sure["step"] == step) & (sure["value"] < options.level)]
    beyond = rows[(rows["step"] == step) & rows["layer"].isin(sure["layer"]) & (rows["value"] > 0)]["value"]
    numbers = {
        "best": found.best, "step": step, "n": found.n, "level": options.level,
        "high": layer_title(found.layers[high]), "high_value": float(last[high]),
        "low": layer_title(found.layers[low]), "low_value": float(last[low]),
        "sure": f"the smallest margin that counts there is {beyond.min():+.3f}" if len(beyond) else "none of them counts as beyond chance",
        "first": f"there the first layer that wins is {layer_title(winners[step])}; the first checkpoint with such a layer is step {since}" if step in winners else f"no layer wins there, and the last checkpoint with such a layer is step {max(winners)}" if winners else "no layer wins at any checkpoint",
    }  # fmt: skip
    return worded(
        WORDS["margin"],
        numbers,
        key=figure_key("margin", found.probe),
        title=f"Margin of each layer over raw inputs, probe {found.probe}",
        svg=margin_map(
            found.margin, [layer_title(name) for name in found.layers], found.steps, _marks(found, winners)
        ),
        run=view.run,
        probe=found.probe,
        headline=found.probe == leading_probe(view, view.metric(_MARGIN)["probe"].unique()),
        table=table_of(rows, COLUMNS),
    )


def _marks(found: _Found, winners: dict[int, str]) -> list[tuple[int, int]]:
    """(layer, step) places of the first layers that win."""
    return [
        (found.layers.index(layer), found.steps.index(step))
        for step, layer in winners.items()
        if layer in found.layers and step in found.steps
    ]


def margin_map(margin: np.ndarray, layers: list[str], steps: list[int], marks: list[tuple[int, int]]) -> str:
    """`margin` (layer, step) as coloured cells around 0, with rings at `marks` (layer, step); as SVG."""
    from matplotlib.lines import Line2D

    from stratascope.tasks.report.style import INK, cells, to_svg

    widest = float(np.nanmax(np.abs(margin))) or 1.0
    figure, picture = cells(
        margin, layers, [str(step) for step in steps], "accuracy above raw inputs", "layer", "training step",
        np.array([-widest, widest]),
    )  # fmt: skip
    picture.set_cmap("PuOr")
    if marks:
        rows, columns = zip(*marks, strict=True)
        ring: dict[str, Any] = {
            "linestyle": "", "marker": "o", "markersize": 8, "markerfacecolor": "none", "markeredgecolor": INK,
            "markeredgewidth": 1.8,
        }  # fmt: skip
        picture.axes.plot(columns, rows, **ring)
        figure.legend(
            [Line2D([], [], **ring)], ["first layer that beats the raw inputs"], loc="outside lower left",
            frameon=False, fontsize=9.5, labelcolor=INK,
        )  # fmt: skip
    return to_svg(figure)


def _against_random(view: View, found: _Found) -> Iterator[Figure]:
    from stratascope.tasks.report.profiles import layer_profile

    random = view.metric(_ACCURACY, probe=found.probe, part="null=random_features").set_index("layer")
    if not len(random):
        return
    layers = [name for name in found.layers if name in random.index]
    random = random.loc[layers]
    own = np.array([found.accuracy[found.layers.index(name), -1] for name in layers])
    gap = own - random["value"].to_numpy(float)
    if not np.isfinite(gap).any():
        return
    widest = int(np.nanargmax(gap))
    nothing = [float("nan")] * len(layers)
    columns = {
        "probe of the layer": (own.tolist(), nothing, nothing),
        "random features": tuple(random[end].astype(float).tolist() for end in ("value", "low", "high")),
    }
    numbers = {
        "step": found.steps[-1], "n": found.n, "ahead": int((gap > 0).sum()), "layers": len(layers),
        "widest": layer_title(layers[widest]), "gap": float(gap[widest]), "best": found.best, "share": found.share,
    }  # fmt: skip
    yield worded(
        WORDS["against"],
        numbers,
        key=figure_key("random-features", found.probe),
        title=f"Layers against random features of their width at the newest step, probe {found.probe}",
        svg=layer_profile(
            [layer_title(name) for name in layers], columns, "fraction right, held out",  # type: ignore[arg-type]
            mark={f"{found.best} on raw inputs": found.share},
        ),
        run=view.run,
        probe=found.probe,
        table={
            "layer": layers, "step": [found.steps[-1]] * len(layers), "accuracy": own.tolist(),
            "random_features": random["value"].tolist(), "low": random["low"].tolist(), "high": random["high"].tolist(),
        },
    )  # fmt: skip
