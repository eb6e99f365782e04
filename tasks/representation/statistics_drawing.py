"""The pictures of the statistics: heat-maps of layer by step, and how each layer's activations spread over training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.representation.pictures import (
    even_choice,
    figure_key,
    grid_of,
    leading_probe,
    table_of,
    worded,
)

_COLUMNS = ("step", "probe", "layer", "part", "value", "n", "unit")
_MOST_STEPS = 60
_BINS = 96
_FAINTEST = 1e-4
"""Shares below this are drawn as nothing."""
_EDGE_SHARE = 0.001
"""So much of a step's values may lie beyond either end of the picture."""

_MAPS = (
    ("activation_std", "Spread of the activations", "standard deviation, power of ten"),
    ("dead_fraction", "Dead units", "fraction of units"),
    ("saturated_fraction", "Saturated activations", "fraction of values"),
    ("sparsity", "Exact zeros", "fraction of values"),
    ("weight_norm", "Size of the weights", "Frobenius norm"),
)


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each metric a heat-map of layer by step; for each layer and probe its values' shares by step."""
    for metric, title, unit in _MAPS:
        rows = view.metric(metric, part="")
        for probe in sorted(rows["probe"].unique()):
            yield from _map(view, metric, title, unit, probe)
    for probe in sorted(set(view.rows["probe"].unique()) - {""}):
        for layer in view.layers("activation_mean"):
            yield from _spread(view, probe, layer)


def _map(view: View, metric: str, title: str, unit: str, probe: str) -> list[Figure]:
    from stratascope.tasks.report.style import heatmap

    rows = view.metric(metric, part="", probe=probe)
    rows = rows[rows["layer"] != ""]
    present = set(rows["layer"].unique())
    layers = [layer for layer in view.layers(metric) if layer in present]
    if not layers:
        return []
    grid, steps = grid_of(rows, "layer", layers)
    top = np.unravel_index(int(np.nanargmax(grid)), grid.shape)
    ends = grid[:, [0, -1]]
    moved = np.abs(ends[:, 1] - ends[:, 0])
    most = int(np.nanargmax(moved)) if np.isfinite(moved).any() else 0
    leading = probe == leading_probe(view, view.metric(metric, part="")["probe"].unique())
    headline = leading and metric in ("dead_fraction", "activation_std")
    # Signals are compared by their ratios: a linear scale would show the largest layer alone.
    drawn = np.log10(grid, where=grid > 0, out=np.full_like(grid, np.nan)) if metric == "activation_std" else grid
    numbers = {
        "value": grid[top], "layer": layers[top[0]], "step": steps[top[1]], "n": int(rows["n"].min()),
        "moved": layers[most], "before": ends[most, 0], "after": ends[most, 1], "nonzero": int((grid[:, -1] > 0).sum()),
        "layers": len(layers),
    }  # fmt: skip
    return [
        worded(
            _WORDS[metric],
            numbers,
            key=figure_key(metric, probe),
            title=f"{title}, probe {probe}" if probe else title,
            svg=heatmap(drawn, layers, [str(step) for step in steps], unit, "layer", "training step"),
            run=view.run,
            probe=probe,
            table=table_of(rows, _COLUMNS),
            headline=headline,
        )
    ]


def shares_between(edges: np.ndarray, counts: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """Shares (cut − 1,) of a histogram's values between `cuts` (cut,), spread evenly within each of its bins."""
    below = np.concatenate([[0.0], np.cumsum(counts)]) / max(1.0, float(counts.sum()))
    return np.diff(np.interp(cuts, edges, below))


def _ends(edges: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """Where all but `_EDGE_SHARE` of the values begin and end, in whole bins."""
    below = np.cumsum(counts) / max(1.0, float(counts.sum()))
    first = int(np.searchsorted(below, _EDGE_SHARE, side="right"))
    last = int(np.searchsorted(below, 1.0 - _EDGE_SHARE))
    return float(edges[min(first, len(counts) - 1)]), float(edges[min(last, len(counts) - 1) + 1])


def _spread(view: View, probe: str, layer: str) -> list[Figure]:
    found = {}
    for step in even_choice(view.steps, _MOST_STEPS):
        statistics = view.statistics(step, probe, layer)
        if statistics.get("histogram_counts", np.zeros(1)).sum() > 0:
            found[step] = (statistics["histogram_edges"], statistics["histogram_counts"])
    if not found:
        return []
    ends = [_ends(*item) for item in found.values()]
    cuts = np.linspace(min(low for low, _ in ends), max(high for _, high in ends), _BINS + 1)
    shares = np.stack([shares_between(*item, cuts) for item in found.values()], axis=1)
    outside = 1.0 - shares.sum(0)
    steps = list(found)
    peaks = {step: float(counts.max() / counts.sum()) for step, (_, counts) in found.items()}
    when = max(peaks, key=lambda step: peaks[step])
    edges, counts = found[when]
    peak = int(counts.argmax())
    numbers = {
        "outside": max(0.0, float(outside.max())), "layer": layer, "step": steps[int(outside.argmax())],
        "peak": peaks[when], "low": float(edges[peak]), "high": float(edges[peak + 1]), "when": when,
    }  # fmt: skip
    inside = shares > 0
    table = {
        "step": [step for place, step in enumerate(steps) for _ in range(int(inside[:, place].sum()))],
        "from": [value for place in range(len(steps)) for value in cuts[:-1][inside[:, place]].tolist()],
        "to": [value for place in range(len(steps)) for value in cuts[1:][inside[:, place]].tolist()],
        "share": [value for place in range(len(steps)) for value in shares[inside[:, place], place].tolist()],
    }
    thinned = f" {len(steps)} of {len(view.steps):,} steps are drawn, spread evenly over them."
    return [
        worded(
            {**_WORDS["spread"], "shows": _WORDS["spread"]["shows"] + thinned * (len(steps) < len(view.steps))},
            numbers,
            key=figure_key("spread", probe, layer),
            title=f"Activations of {layer} over training, probe {probe}",
            svg=_spread_picture(cuts, shares, steps),
            run=view.run,
            layer=layer,
            probe=probe,
            table=table,
        )
    ]


def _spread_picture(cuts: np.ndarray, shares: np.ndarray, steps: list[int]) -> str:
    """`shares` (bin, step) as colours, upwards by value and to the right by step, on a logarithmic scale."""
    from matplotlib.colors import LogNorm

    from stratascope.tasks.report.style import INK, new_axes, to_svg

    figure, axes = new_axes(height=3.0)
    axes.grid(False)
    picture = axes.imshow(
        np.maximum(shares, _FAINTEST), origin="lower", aspect="auto", cmap="cividis", interpolation="none",
        extent=(-0.5, len(steps) - 0.5, cuts[0], cuts[-1]), norm=LogNorm(_FAINTEST, 1.0),
    )  # fmt: skip
    stride = max(1, -(-len(steps) // 9))
    shown = list(range(len(steps) - 1, -1, -stride))[::-1]
    axes.set_xticks(shown, [str(steps[place]) for place in shown])
    axes.set(xlabel="training step", ylabel="activation")
    bar = figure.colorbar(picture, ax=axes, location="top", shrink=0.55, anchor=(0.0, 0.0), pad=0.02, aspect=28)
    bar.set_ticks([1e-4, 1e-3, 1e-2, 1e-1, 1.0], labels=["0.0001", "0.001", "0.01", "0.1", "1"])
    bar.ax.minorticks_off()
    bar.set_label("share of values, logarithmic", color=INK, fontsize=10)
    bar.ax.tick_params(colors=INK, labelsize=9, length=2)
    bar.outline.set_visible(False)
    return to_svg(figure)


_WORDS: dict[str, dict[str, str]] = {
    "activation_std": {
        "shows": "The standard deviation of each layer's outputs over samples, positions and units, by layer and step.",
        "reading": "Neighbouring rows of similar colour carry signals of similar size; one unit of the scale is a factor of ten. A row that darkens or brightens towards the right loses or amplifies its signal.",
        "caution": "One colour scale serves all layers; its top is set by {layer} at step {step} with a deviation of {value:.3g}, and a layer that puts out one value alone has an empty cell. The largest change from first to last step is that of {moved}: {before:.3g} to {after:.3g}.",
        "audience": "For anyone who tunes initialisation, normalisation or the step size.",
        "practitioner": "A row that fades before the output calls for normalisation or a different initialisation.",
        "researcher": "Total spread: mean variance within units plus variance of the units' means. In a rectified layer it mixes how often units answer with how strongly.",
    },
    "dead_fraction": {
        "shows": "The share of units whose activation after their ReLU is never above zero on the whole probe.",
        "reading": "Zero is ideal. A share that jumps at one step and stays usually follows too large an update.",
        "caution": "The largest share is {value:.3f}, in {layer} at step {step}; at the end {nonzero} of {layers} layers have dead units. Dead on this probe is not dead on every input; the smallest layer has {n} units, so its share moves in strides of 1/{n}.",
        "audience": "For people who train networks with rectifiers.",
        "practitioner": "Above a half, lower the learning rate or use a leaky rectifier: that capacity is paid for and unused.",
        "researcher": "Filed for the ReLU and for the layer that feeds it, directly or through a norm. A unit counts as dead if it is at most 0 on every sample and position.",
    },
    "saturated_fraction": {
        "shows": "The share of outputs of bounded activations, such as sigmoid and tanh, that lie close to either bound.",
        "reading": "Values near 1 mean that the layer works as a switch and passes hardly any gradient on.",
        "caution": "The largest share is {value:.3f}, in {layer} at step {step}; gates of recurrent cells are not in it, since no module gives them out.",
        "audience": "For those who train networks with sigmoids or tanh.",
        "practitioner": "If it grows early in training, scale the inputs or the initial weights down.",
        "researcher": "Close means within a twentieth of half the range of either bound; units are averaged, so a few stuck units and many brief excursions look the same here.",
    },
    "sparsity": {
        "shows": "The share of exact zeros among each layer's outputs.",
        "reading": "Rectified layers sit near one half at the start; rising values mean that units answer to fewer inputs.",
        "caution": "The sparsest place is {layer} at step {step} with {value:.3f}. Layers without a rectifier, and without one before them, are near 0 by nature and are no worse for it.",
        "audience": "For readers interested in selectivity and in compressing activations.",
        "practitioner": "High sparsity without dead units is a healthy sign of selective features.",
        "researcher": "Lifetime and population sparsity are not separated here; the archive has the fraction of zeros of every unit.",
    },
    "weight_norm": {
        "shows": "The Frobenius norm of all trained tensors of each layer together.",
        "reading": "Norms usually grow while the loss falls and level off under weight decay. A sudden change points at one update.",
        "caution": "The largest is {layer} with {value:.3g} at step {step}, and {moved} moved most, from {before:.3g} to {after:.3g}. A norm says nothing across layers of different shape, nor where a norm layer makes the scale irrelevant.",
        "audience": "For those who study regularisation and stability.",
        "practitioner": "Compare along a row only. Steady growth to the end means that training had not settled.",
        "researcher": "Finite entries only, running means and variances left out; each tensor's own norm is in the ledger under its part.",
    },
    "spread": {
        "shows": "Which values this layer puts out on the probe, and how often: value upwards, training step to the right, share as colour. All steps share one axis.",
        "reading": "Follow the bright band: it shows the bulk. A band that widens means growing signals; a line at zero is the rectifier; bright edges at two heights mean saturation.",
        "caution": "The most crowded bin of {layer}, from {low:.3g} to {high:.3g} at step {when}, holds {peak:.1%} of that step's values. Up to {outside:.2%} of the values, at step {step}, lie beyond the picture; and bins were fixed on the first 128 samples of each step, with everything beyond them in the outermost ones.",
        "audience": "For close looks at one layer.",
        "practitioner": "A band that runs away upwards before the loss breaks is the earliest sign of divergence; two separate bands often mean that a feature has become a switch.",
        "researcher": "Counts come from a seeded subset of positions of each map; each step's histogram was spread over common bins, evenly within its own, so detail below a bin's width is not real. The scale is logarithmic from 0.0001.",
    },
}
