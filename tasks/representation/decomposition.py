"""Each layer's principal axes and neighbours, found once and read by everything that compares layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Analysis, Figure, Findings, Metric, NamedArray, register
from stratascope.tasks.contexts import CheckpointContext, View
from stratascope.tasks.representation.distances import Neighbours, centred_values
from stratascope.tasks.representation.features import (
    FeatureOptions,
    Features,
    degenerate,
    each_layer,
    request_of,
)
from stratascope.tasks.representation.maps import principal_components


class DecompositionOptions(FeatureOptions):
    """What is kept of each layer for the measures that compare layers."""

    lost_gram: float = Field(default=1e-4, ge=0, lt=0.1)
    """Components are kept until what is left of the Gram matrix is so small a share of its Frobenius norm. 0 keeps all."""
    neighbours: int = Field(default=20, ge=1)
    """So many nearest neighbours of each sample are kept."""


@dataclass(frozen=True)
class Decomposition:
    """Everything about features that neither rotation nor translation changes."""

    scores: np.ndarray
    """float32 (sample, component): principal components, largest first, of the centred features."""
    variance: np.ndarray
    """float64 (component,): the variance along each of all components, those that are not kept included."""
    squared_norm: np.ndarray
    """float64 (sample,): each sample's squared distance from the mean, from all components."""
    neighbour: np.ndarray
    """int32 (sample, rank): the nearest other samples, by Euclidean distance in all features."""
    features: int


def decompose(values: np.ndarray, lost_gram: float, neighbours: int) -> Decomposition:
    """`values` (sample, feature), finite and not constant, in their principal axes.

    As many components are kept as it takes for the Gram matrix of the rest to have at most `lost_gram` of the whole
    one's Frobenius norm. With 0 `neighbours` none are looked for.
    """
    centred = centred_values(values)
    scores, shares = principal_components(centred, min(centred.shape))
    squared = (centred**2).sum(1)
    variance = shares * squared.sum() / (len(values) - 1)
    tail = np.sqrt(np.append((variance[::-1] ** 2).cumsum()[::-1], 0.0))
    kept = max(1, int(np.argmax(tail <= lost_gram * tail[0])))
    if neighbours:
        nearest = Neighbours.of(centred, min(neighbours, len(values) - 1)).order
    else:
        nearest = np.empty((len(values), 0), np.int32)
    return Decomposition(
        scores[:, :kept].astype(np.float32), variance, squared, nearest.astype(np.int32), values.shape[1]
    )


def compute(context: CheckpointContext, options: DecompositionOptions) -> Findings:
    """Arrays `<probe>/<layer>/scores|variance|squared_norm|neighbour` and `<probe>/sample_id`; how many components are kept.

    A layer whose features say nothing has a row with the reason and no arrays.
    """
    from threadpoolctl import threadpool_limits

    findings = Findings()
    # Sums in BLAS depend on the number of threads: with one, every worker files the same bytes.
    with threadpool_limits(limits=1):
        for item in each_layer(context, options, "kept_components"):
            if isinstance(item, Row):
                findings.rows.append(item)
            elif reason := degenerate(item.values):
                findings.rows.append(item.refusal("kept_components", reason))
            else:
                _keep(item, decompose(item.values, options.lost_gram, options.neighbours), options, findings)
    return findings


def _keep(item: Features, found: Decomposition, options: DecompositionOptions, findings: Findings) -> None:
    probe = encode_path_part(item.probe)
    place = f"{probe}/{encode_path_part(item.layer)}"
    about = {"layer": item.layer, "probe": item.probe}
    sample = ("decomposition_sample",)
    findings.arrays[f"{probe}/sample_id"] = NamedArray(sample, item.sample_id, {"probe": item.probe})
    findings.arrays[f"{place}/scores"] = NamedArray(
        (*sample, "component"), found.scores, about | {"features": found.features}
    )
    findings.arrays[f"{place}/variance"] = NamedArray(("every_component",), found.variance, about)
    findings.arrays[f"{place}/squared_norm"] = NamedArray(sample, found.squared_norm, about)
    findings.arrays[f"{place}/neighbour"] = NamedArray((*sample, "rank"), found.neighbour, about)
    used = f"lost_gram={options.lost_gram:g}"
    findings.rows.append(item.row("kept_components", found.scores.shape[1], convention=used))


def read_decomposition(context: CheckpointContext, probe: str, layer: str) -> Decomposition:
    """What `decomposition` filed of a layer. Raises DoesNotApply where it filed nothing."""
    scores = context.found("decomposition", probe, layer, "scores")
    if scores is None:
        raise DoesNotApply(f"layer {layer!r} has no decomposition at step {context.step}")
    rest: dict[str, Any] = {
        name: context.found("decomposition", probe, layer, name)
        for name in ("variance", "squared_norm", "neighbour")
    }
    features = context.found_attributes("decomposition", probe, layer, "scores")["features"]
    return Decomposition(scores=scores, features=int(features), **rest)


def decomposed_layers(context: CheckpointContext, probe: str) -> list[str]:
    """The layers that `decomposition` filed at this step, in the order of execution, raw inputs first."""
    present = {
        path.rpartition("/")[0]
        for path in context.found_arrays("decomposition", probe)
        if path.endswith("/scores")
    }
    order = ["@input", *context.layers(probe)]
    return [name for name in order if name in present] + sorted(present - set(order))


def decomposed_samples(context: CheckpointContext, probe: str) -> np.ndarray:
    """The ids (sample,) of the samples that `decomposition` looked at, in its order. Raises DoesNotApply."""
    found = context.found("decomposition", probe, "sample_id")
    if found is None:
        raise DoesNotApply(f"nothing was decomposed of probe {probe!r} at step {context.step}")
    return found


def draw(view: View, options: DecompositionOptions) -> list[Figure]:
    """Nothing of its own: those that read it draw."""
    return []


ANALYSIS = register(
    Analysis(
        name="decomposition", version=1, scope="checkpoint", title="Decomposition", question="What is kept of each layer for comparing layers?",
        options=DecompositionOptions, compute=compute, draw=draw, needs=frozenset({"activations"}), request=request_of,
        metrics=(
            Metric("kept_components", "1", "[1, ∞)", "How many principal components of a layer are kept for comparing layers: as many as its Gram matrix needs up to a stated share of its Frobenius norm.", "Hotelling 1933", "rotation, reflection, translation and uniform scaling of the features; order of the samples"),
        ),
    )
)  # fmt: skip
