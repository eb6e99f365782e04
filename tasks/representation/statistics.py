"""How the units of every layer behave on the probe: spread, silence, saturation; and the size of the weights."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any, Literal

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.tasks.analysis import Analysis, Findings, Metric, Options, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.representation.statistics_drawing import draw

_BUFFERS = ("running_mean", "running_var")
"""Tensors of norm layers that are counted, not trained."""


class StatisticsOptions(Options):
    """Nothing to choose: `capture: {statistics: …}` decides what is accumulated."""


def compute(context: CheckpointContext, options: StatisticsOptions) -> Findings:
    """One row for each layer and metric, from what the forward pass streamed into `statistics/`, and the weights.

    A layer with values that are not finite gets their number, and `failed` for what they spoil.
    """
    rows: list[Row] = []
    for probe in context.probes:
        for layer in context.layers(probe):
            found = context.statistics(probe, layer)
            if found:
                rows += layer_rows(probe, layer, found)
    rows += weight_rows(context.facts.get("tensors", {}))
    if not rows:
        raise DoesNotApply("no statistics of activations are stored, and the network has no weights.")
    return Findings(rows)


def layer_rows(probe: str, layer: str, found: dict[str, np.ndarray]) -> list[Row]:
    """The rows of one layer from its statistics by unit; each statistic that was not accumulated has none."""
    units = len(found["non_finite_count"])
    shared: dict[str, Any] = {"probe": probe, "layer": layer, "n": units}
    bad = float(found["non_finite_count"].sum())
    values: dict[str, float] = {}
    if "mean" in found:
        values["activation_mean"] = float(found["mean"].mean())
        # The layer's spread over samples, positions and units, from the units' own moments.
        values["activation_std"] = math.sqrt(float(np.mean(found["std"] ** 2) + np.var(found["mean"])))
    for metric, name in (
        ("sparsity", "zero_fraction"),
        ("dead_fraction", "dead"),
        ("saturated_fraction", "saturated_fraction"),
    ):
        if name in found:
            values[metric] = float(found[name].mean())
    status: Literal["ok", "failed"] = "failed" if bad else "ok"
    reason = f"{bad:.0f} of the layer's activations are not finite" if bad else ""
    rows = [Row(metric, value, status=status, reason=reason, **shared) for metric, value in values.items()]
    return [*rows, Row("non_finite_count", bad, part="of=activations", unit="values", **shared)]


def weight_rows(tensors: dict[str, dict[str, Any]]) -> list[Row]:
    """`weight_norm` of each tensor, of each layer's tensors together (part ""), and of the network (layer "")."""
    rows = []
    layers: dict[str, list[tuple[float, int]]] = defaultdict(list)
    shared: dict[str, Any] = {"convention": "Frobenius, finite entries"}
    for name, facts in tensors.items():
        layer, _, tensor = name.rpartition(".")
        if not facts["dtype"].startswith(("float", "bfloat")) or tensor in _BUFFERS:
            continue
        size = (float(facts["norm"]), math.prod(facts["shape"]))
        rows.append(Row("weight_norm", size[0], layer=layer, part=f"tensor={tensor}", n=size[1], **shared))
        layers[layer].append(size)
    for layer, sizes in layers.items():
        if layer:
            rows.append(_joined(layer, sizes, shared))
    if layers:
        rows.append(_joined("", [size for sizes in layers.values() for size in sizes], shared))
    return rows


def _joined(layer: str, sizes: list[tuple[float, int]], shared: dict[str, Any]) -> Row:
    norm = math.hypot(*(size[0] for size in sizes))
    return Row("weight_norm", norm, layer=layer, n=sum(size[1] for size in sizes), **shared)


ANALYSIS = register(
    Analysis(
        name="statistics", version=1, scope="checkpoint", title="Statistics of layers", question="Are its units alive and well scaled?",
        options=StatisticsOptions, compute=compute, draw=draw, needs=frozenset({"activations", "weights"}), default=True,
        metrics=(
            Metric("activation_mean", "activation", "(-∞, ∞)", "Mean of a layer's outputs over samples, positions and units.", "", "permutation of units, samples and positions"),
            Metric("activation_std", "activation", "[0, ∞)", "Standard deviation of a layer's outputs over samples, positions and units together.", "", "permutation of units, samples and positions; adding a constant"),
            Metric("sparsity", "fraction", "[0, 1]", "Share of exact zeros among a layer's outputs.", "", "permutation; positive rescaling of units"),
            Metric("dead_fraction", "fraction", "[0, 1]", "Share of a layer's units that are at most 0 after their ReLU on every sample and position; filed for the ReLU and for the layer that feeds it.", "", "permutation; positive rescaling of units"),
            Metric("saturated_fraction", "fraction", "[0, 1]", "Share of the values of a bounded activation (sigmoid, tanh and the like) within a twentieth of half its range of either end.", "", "permutation of units, samples and positions"),
            Metric("non_finite_count", "values", "[0, ∞)", "Values among a layer's outputs that are NaN or infinite (part `of=activations`).", "", "permutation of units, samples and positions"),
            Metric("weight_norm", "weight", "[0, ∞)", "Frobenius norm of a tensor's finite entries (`part`), of a layer's tensors together (no part), or of the network's (no layer); running means and variances of norm layers are left out.", "", "permutation of units; rotation"),
        ),
    )
)  # fmt: skip
