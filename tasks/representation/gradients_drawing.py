"""The pictures of the gradients: the whole network over training, and each layer relative to its weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.representation.pictures import figure_key, grid_of, leading_probe, table_of, worded

_COLUMNS = ("step", "probe", "layer", "part", "value", "n", "unit")


def draw(view: View, options: Any) -> list[Figure]:
    """The gradient's norm over the steps, and for each probe a heat-map of its ratio to the weights by layer."""
    rows = view.metric("gradient_to_weight_ratio", part="")
    ratios = [_ratio(view, probe) for probe in sorted(rows["probe"].unique())]
    return [figure for figure in (_norm(view), *ratios) if figure is not None]


def _norm(view: View) -> Figure | None:
    from stratascope.tasks.report.style import lines

    rows = view.metric("gradient_norm", layer="", part="")
    if not len(rows):
        return None
    series = {probe: (list(group["step"]), list(group["value"])) for probe, group in rows.groupby("probe")}
    probe = leading_probe(view, series)
    values = series[probe][1]
    own = rows[rows["probe"] == probe]
    highest = own.loc[own["value"].idxmax()]
    numbers = {
        "n": int(own["n"].iloc[-1]), "probe": probe, "first": values[0], "last": values[-1],
        "peak": highest["value"], "step": int(highest["step"]),
    }  # fmt: skip
    return worded(
        _WORDS["norm"],
        numbers,
        key="gradient-norm",
        title="Gradient of the whole network",
        svg=lines(series, "gradient norm", logarithmic=True),
        run=view.run,
        table=table_of(rows, _COLUMNS),
    )


def _ratio(view: View, probe: str) -> Figure | None:
    from stratascope.tasks.report.style import heatmap

    every = view.metric("gradient_to_weight_ratio", part="")
    rows = every[(every["probe"] == probe) & (every["layer"] != "")]
    present = set(rows["layer"].unique())
    layers = [layer for layer in view.layers("gradient_to_weight_ratio") if layer in present]
    if not layers:
        return None
    grid, steps = grid_of(rows, "layer", layers)
    powers = np.log10(np.maximum(grid, 1e-12))
    spans = np.nanmax(powers, 0) - np.nanmin(powers, 0)
    widest = int(spans.argmax())
    numbers = {
        "spread": float(spans[widest]), "step": steps[widest], "low": layers[int(np.nanargmin(powers[:, widest]))],
        "high": layers[int(np.nanargmax(powers[:, widest]))],
    }  # fmt: skip
    columns = [str(step) for step in steps]
    return worded(
        _WORDS["ratio"],
        numbers,
        key=figure_key("gradient-ratio", probe),
        title=f"Gradient relative to weight, by layer, probe {probe}",
        svg=heatmap(powers, layers, columns, "power of ten of the ratio", "layer", "training step"),
        run=view.run,
        probe=probe,
        headline=probe == leading_probe(view, every["probe"].unique()),
        table=table_of(rows, _COLUMNS),
    )


_WORDS: dict[str, dict[str, str]] = {
    "norm": {
        "shows": "The norm of the gradient of the probe's mean loss with respect to all weights together.",
        "reading": "It falls as the network settles on what the probe asks. Peaks mark steep places of the loss.",
        "caution": "Taken over {n} answers in evaluation mode, so dropout and batch statistics of training are not in it. On probe {probe} it went from {first:.3g} to {last:.3g}; the highest value, {peak:.3g}, stands at step {step}.",
        "audience": "For people who choose step sizes and schedules.",
        "practitioner": "If it is still large on the training probe at the end, training longer or with a smaller final rate should pay off.",
        "researcher": "The gradient of the mean, not the mean of per-sample norms: noise cancels, so its level differs from what the optimiser saw in a batch. On a test probe it need not vanish at a minimum of the training loss.",
    },
    "ratio": {
        "shows": "For every layer the norm of the gradient divided by the norm of the weights, as a power of ten.",
        "reading": "Rows of even colour learn at an even pace. Rows near the input that are much darker are the mark of vanishing gradients.",
        "caution": "The layers differ most at step {step}, by {spread:.1f} powers of ten between {low} and {high}; below two is ordinary. With adaptive optimisers the ratio does not tell the size of the update.",
        "audience": "For anyone who debugs a deep network that does not learn.",
        "practitioner": "Where early rows stay three or more powers of ten below late ones, add shortcuts or normalisation.",
        "researcher": "Multiplied by the learning rate it is the relative update of plain gradient descent. It is not invariant: halving a layer's weights before a norm layer doubles the gradient and makes the ratio four times as large.",
    },
}
