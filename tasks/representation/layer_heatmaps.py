"""What drawings of scores by layer share: heat-maps of layer by step, and the newest step against the raw inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.representation.features import INPUT
from stratascope.tasks.representation.pictures import (
    figure_key,
    grid_of,
    layer_title,
    leading_probe,
    table_of,
    worded,
)

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ("step", "probe", "layer", "part", "value", "low", "high", "n", "estimator", "convention")


@dataclass(frozen=True)
class LayerMap:
    """A score that is drawn by layer and step."""

    metric: str
    part: str
    title: str
    label: str
    words: str
    powers: bool = False
    """Whether powers of ten are drawn."""


def layers_in_order(view: View, metric: str, present: Iterable[str]) -> list[str]:
    """Those of `present`, in the order of execution, the raw inputs first."""
    wanted = set(present)
    order = [layer for layer in view.layers(metric) if layer in wanted]
    return [layer for layer in order if layer == INPUT] + [layer for layer in order if layer != INPUT]


def layer_map(
    view: View, kind: LayerMap, probe: str, words: Mapping[str, str], headline: bool = False
) -> list[Figure]:
    """The heat-map of one score on one probe; nothing where no layer has it."""
    from stratascope.tasks.report.style import heatmap

    rows = view.metric(kind.metric, part=kind.part, probe=probe)
    layers = layers_in_order(view, kind.metric, rows["layer"].unique())
    if not layers:
        return []
    grid, steps = grid_of(rows, "layer", layers)
    drawn = np.log10(np.maximum(grid, 1e-12)) if kind.powers else grid
    numbers = {**_newest(grid, layers, steps), **_sureness(view, rows, kind, probe)}
    return [
        worded(
            words,
            numbers,
            key=figure_key(kind.metric, kind.part.partition("=")[2], probe),
            title=f"{kind.title} by layer, probe {probe}",
            svg=heatmap(
                drawn, [layer_title(name) for name in layers], [str(step) for step in steps], kind.label, "layer", "training step"
            ),
            run=view.run,
            probe=probe,
            headline=headline and probe == leading_probe(view, view.metric(kind.metric)["probe"].unique()),
            table=table_of(rows, COLUMNS),
        )
    ]  # fmt: skip


def _newest(grid: np.ndarray, layers: Sequence[str], steps: Sequence[int]) -> dict[str, Any]:
    """The highest and the lowest layer at the newest step, and what the raw inputs have there."""
    last = grid[:, -1]
    sound = np.flatnonzero(np.isfinite(last))
    high = int(sound[last[sound].argmax()])
    low = int(sound[last[sound].argmin()])
    raw = layers.index(INPUT) if INPUT in layers and np.isfinite(last[layers.index(INPUT)]) else None
    return {
        "step": steps[-1], "high": layer_title(layers[high]), "high_value": float(last[high]),
        "low": layer_title(layers[low]), "low_value": float(last[low]),
        "raw": "the raw inputs were not measured" if raw is None else f"the raw inputs have {last[raw]:.3g}",
    }  # fmt: skip


def _sureness(view: View, rows: pd.DataFrame, kind: LayerMap, probe: str) -> dict[str, Any]:
    """How many samples, how wide the newest step's widest interval is, and how many cells have no number."""
    newest = rows[rows["step"] == rows["step"].max()]
    halves = (newest["high"] - newest["low"]).to_numpy(float) / 2
    found = halves[np.isfinite(halves)]
    every = view.rows
    of_kind = (every["metric"] == kind.metric) & (every["probe"] == probe) & (every["part"] == kind.part)
    empty = int((of_kind & (every["status"] != "ok")).sum())
    return {
        "n": int(rows["n"].max()),
        "margin": f"± {float(f'{found.max():.2g}'):g} at most there"
        if len(found)
        else "not known: no resampling was asked for",
        "empty": "every cell has a number"
        if not empty
        else f"{empty} cells are empty, the table of findings says why",
    }


def newest_by_layer(
    view: View, series: Mapping[str, tuple[str, str]], probe: str
) -> tuple[int, list[str], dict[str, tuple[list[float], list[float], list[float]]], pd.DataFrame] | None:
    """Of the newest step: the step, the layers, (values, lows, highs) of each of `series` (metric, part), the rows."""
    import pandas as pd

    found = {name: view.metric(metric, part=part, probe=probe) for name, (metric, part) in series.items()}
    found = {name: rows for name, rows in found.items() if len(rows)}
    if not found:
        return None
    step = max(int(rows["step"].max()) for rows in found.values())
    found = {name: rows[rows["step"] == step].set_index("layer") for name, rows in found.items()}
    present = {layer for rows in found.values() for layer in rows.index}
    metric = next(iter(series.values()))[0]
    layers = layers_in_order(view, metric, present)
    columns = {}
    for name, rows in found.items():
        value, low, high = (rows[end].reindex(layers).astype(float).tolist() for end in ("value", "low", "high"))
        columns[name] = (value, low, high)
    table = pd.concat([rows.reset_index() for rows in found.values()])
    return step, layers, columns, table
