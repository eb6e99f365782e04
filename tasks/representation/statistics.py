"""How the units of every layer behave on the probe: spread, silence, saturation; and the size of the weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from stratascope.storage.ledger import Row
from stratascope.tasks.analysis import Analysis, CaptureRequest, Figure, Findings, Metric, Options, register
from stratascope.tasks.contexts import CheckpointContext, View


class StatisticsOptions(Options):
    """Nothing to choose: the capture decides what is accumulated."""


def compute(context: CheckpointContext, options: StatisticsOptions) -> Findings:
    """One row for each layer and metric, from what the forward pass streamed into `statistics/`."""
    rows: list[Row] = []
    for probe in context.probes:
        for layer in context.layers(probe):
            found = context.statistics(probe, layer)
            if found:
                rows += _layer_rows(probe, layer, found)
    for name, facts in context.facts.get("tensors", {}).items():
        if facts["dtype"].startswith(("float", "bfloat")):
            layer, _, tensor = name.rpartition(".")
            count = int(np.prod(facts["shape"])) if facts["shape"] else 1
            rows.append(Row("weight_norm", facts["norm"], layer=layer, part=f"tensor={tensor}", n=count, convention="Frobenius, finite entries"))  # fmt: skip
    return Findings(rows)


def _layer_rows(probe: str, layer: str, found: dict[str, np.ndarray]) -> list[Row]:
    units = len(found["mean"])
    shared: dict[str, Any] = {"probe": probe, "layer": layer, "n": units}
    bad = float(found["non_finite_count"].sum())
    # The layer's spread over samples, positions and units, from the units' own moments.
    spread = float(np.sqrt(np.mean(found["std"] ** 2) + np.var(found["mean"])))
    rows = [
        Row("activation_mean", float(found["mean"].mean()), unit="activation", **shared),
        Row("activation_std", spread, unit="activation", **shared),
        Row("sparsity", float(found["zero_fraction"].mean()), unit="fraction", **shared),
        Row("non_finite_count", bad, part="of=activations", unit="values", **shared),
    ]
    for metric, name in (("dead_fraction", "dead"), ("saturated_fraction", "saturated_fraction")):
        if name in found:
            rows.append(Row(metric, float(found[name].mean()), unit="fraction", **shared))
    return rows


_FIGURES = (
    ("activation_std", "Spread of the activations", "standard deviation"),
    ("dead_fraction", "Dead units", "fraction of units"),
    ("sparsity", "Exact zeros", "fraction of values"),
    ("weight_norm", "Size of the weights", "Frobenius norm"),
)


def draw(view: View, options: StatisticsOptions) -> list[Figure]:
    """Layer by step heat-maps, and for every layer the histogram of its activations behind a slider."""
    from stratascope.tasks.report.style import heatmap

    figures = []
    for metric, title, unit in _FIGURES:
        rows = view.metric(metric)
        if metric == "weight_norm":
            rows = rows[rows["part"] == "tensor=weight"]
        layers = [layer for layer in view.layers(metric) if layer in set(rows["layer"])]
        steps = sorted(set(rows["step"]))
        if not layers or not steps:
            continue
        grid = np.full((len(layers), len(steps)), np.nan)
        for row in rows.itertuples():
            grid[layers.index(row.layer), steps.index(row.step)] = row.value
        place = np.unravel_index(int(np.nanargmax(grid)), grid.shape)
        words = _WORDS[metric]
        caution = words["caution"].format(
            value=grid[place], layer=layers[place[0]], step=steps[place[1]], n=int(rows["n"].min())
        )
        figures.append(
            Figure(key=metric, title=title, svg=heatmap(grid, layers, [str(step) for step in steps], unit, "layer", "training step"), run=view.run, caution=caution, headline=metric in ("dead_fraction", "activation_std"),
                   table={name: rows[name].tolist() for name in ("step", "probe", "layer", "part", "value", "n")},
                   **{name: words[name] for name in ("shows", "reading", "audience", "practitioner", "researcher")})
        )  # fmt: skip
    for probe in sorted(set(view.rows["probe"]) - {""}):
        for layer in view.layers("activation_mean"):
            figure = _histogram(view, probe, layer)
            if figure is not None:
                figures.append(figure)
    return figures


def _histogram(view: View, probe: str, layer: str) -> Figure | None:
    from stratascope.tasks.report.style import COLOURS, new_axes, to_svg

    frames = []
    outside = 0.0
    chosen = view.steps if len(view.steps) <= 16 else view.steps[:: -(-len(view.steps) // 16)]
    for step in chosen:
        found = view.statistics(step, probe, layer)
        if not found:
            continue
        edges, counts = found["histogram_edges"], found["histogram_counts"]
        share = counts / max(1.0, counts.sum())
        outside = max(outside, float(share[0] + share[-1]))
        figure, axes = new_axes(height=2.6)
        axes.fill_between(edges[:-1], share, step="post", color=COLOURS[0], alpha=0.75, linewidth=0)
        axes.set_yscale("symlog", linthresh=1e-4)
        axes.set_ylim(0, 1)
        axes.set_xlabel("activation")
        axes.set_ylabel("share of values")
        frames.append((int(step), to_svg(figure)))
    if not frames:
        return None
    words = _WORDS["histogram"]
    return Figure(
        key=f"histogram-{probe}-{abs(hash_of(layer))}", title=f"Activations of {layer}", frames=tuple(frames), run=view.run, layer=layer, probe=probe,
        caution=words["caution"].format(outside=outside, layer=layer),
        **{name: words[name] for name in ("shows", "reading", "audience", "practitioner", "researcher")},
    )  # fmt: skip


def hash_of(name: str) -> int:
    """A number for `name` that is the same in every process."""
    import zlib

    return zlib.crc32(name.encode())


_WORDS: dict[str, dict[str, Any]] = {
    "activation_std": {
        "shows": "The standard deviation of each layer's outputs over samples, positions and units, by layer and step.",
        "reading": "Neighbouring rows of similar colour carry signals of similar size. A row that fades or flares towards the right loses or amplifies its signal.",
        "caution": "One colour scale serves all layers; its top is set by {layer} at step {step} with {value:.3g}, so quieter layers may look alike.",
        "audience": "For anyone who tunes initialisation, normalisation or the step size.",
        "practitioner": "A fading row before the output calls for normalisation or a different initialisation.",
        "researcher": "Total spread: mean within-unit variance plus variance of the unit means, accumulated in float64 with a shift.",
    },
    "dead_fraction": {
        "shows": "The share of units whose activation after their ReLU is never above zero on the whole probe.",
        "reading": "Zero is ideal. A share that jumps at one step and stays usually follows too large an update.",
        "caution": "The largest share is {value:.3f} in {layer} at step {step}. A unit counts as dead on this probe only: the smallest layer has {n} units, and rarer inputs might still wake one.",
        "audience": "For people who train networks with rectifiers.",
        "practitioner": "Above a half, lower the rate or use a leaky rectifier; the capacity is paid for and unused.",
        "researcher": "Filed for the ReLU and for the layer that feeds it; with a norm between, for the norm. Death here is at most 0 on every sample and position.",
    },
    "sparsity": {
        "shows": "The share of exact zeros among each layer's outputs.",
        "reading": "Rectified layers sit near one half at the start; rising values mean that units answer to fewer inputs.",
        "caution": "The sparsest place is {layer} at step {step} with {value:.3f}; layers without a rectifier are near 0 by nature and are no worse for it.",
        "audience": "For readers interested in selectivity and in compressing activations.",
        "practitioner": "High sparsity without dead units is a healthy sign of selective features, and makes the archive small.",
        "researcher": "Lifetime and population sparsity are not separated here; the archive has the fraction of zeros for each unit.",
    },
    "weight_norm": {
        "shows": "The Frobenius norm of each layer's weight tensor.",
        "reading": "Norms grow while the loss falls and level off under weight decay. A sudden change points at one update.",
        "caution": "The largest is {layer} with {value:.3g} at step {step}; a norm says nothing across layers of different shape, nor where a batch norm makes the scale irrelevant.",
        "audience": "For those who study regularisation and stability.",
        "practitioner": "Compare along a row only. Steady growth to the end means that training had not settled.",
        "researcher": "Finite entries only; biases and norm parameters are in the ledger by tensor. Distances from initialisation stand in the triage.",
    },
    "histogram": {
        "shows": "How often each value occurs among this layer's activations on the probe; the slider moves through training.",
        "reading": "Watch the bulk move and the tail grow. A spike at zero is the rectifier; spikes at both ends mean saturation.",
        "caution": "Up to {outside:.1%} of the values of {layer} lie in the two outermost bins, which also hold everything beyond the range of the first 128 samples of that step.",
        "audience": "For close looks at one layer.",
        "practitioner": "Two separate humps often mean that a feature has become a switch.",
        "researcher": "Counts come from a seeded subset of positions of each map; edges are set per checkpoint, so compare shapes, not bins, over steps.",
    },
}

ANALYSIS = register(
    Analysis(
        name="statistics", version=1, scope="checkpoint", title="Statistics of layers", question="Are its units alive and well scaled?",
        options=StatisticsOptions, compute=compute, draw=draw, needs=frozenset({"activations", "weights"}), default=True,
        request=lambda options: CaptureRequest(statistics=True),
        metrics=(
            Metric("activation_mean", "activation", "(-∞, ∞)", "Mean of a layer's outputs over samples, positions and units."),
            Metric("activation_std", "activation", "[0, ∞)", "Standard deviation of the same."),
            Metric("sparsity", "fraction", "[0, 1]", "Share of exact zeros.", "", "positive rescaling"),
            Metric("dead_fraction", "fraction", "[0, 1]", "Share of units at most 0 after their ReLU on every sample and position.", "", "positive rescaling"),
            Metric("saturated_fraction", "fraction", "[0, 1]", "Share of values within 5 % of a bounded activation's ends."),
            Metric("weight_norm", "weight", "[0, ∞)", "Frobenius norm of a tensor's finite entries.", "", "permutation of units"),
        ),
    )
)  # fmt: skip
