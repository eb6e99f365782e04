"""Where in the picture a class is decided, and which places of one layer feed a place of another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.vision.chosen_samples import SampleOptions, chosen_samples, sample_arrays
from stratascope.tasks.vision.spatial_attribution_drawing import draw

if TYPE_CHECKING:
    from torch import Tensor

    from stratascope.storage.probes import Probe
    from stratascope.tasks.vision.chosen_samples import ImageSamples
    from stratascope.tasks.vision.image_network import ImageNetwork
    from stratascope.tasks.vision.spatial_layers import SpatialLayer
    from stratascope.tasks.vision.targets import Target

SAMPLE = "spatial_attribution_sample"
RIVAL = "rival"
_MAPS = ("attribution_spread", "class_map_cosine")
_LINKS = ("link_distance", "linked_share")


class SpatialAttributionOptions(SampleOptions):
    """Which classes are asked about, on which layers, and which positions are linked."""

    samples: int = Field(default=6, ge=1)
    layers: tuple[str, ...] = Field(default=("@last_spatial",), min_length=1)
    """The layers whose positions are said to speak for a class."""
    target: str | int = "label"
    """The first question; the second is the output that is highest beside it, where it is `label` or `predicted`."""
    classes: tuple[int, ...] = ()
    """These outputs instead, for every sample."""
    link_to: str = "@last_spatial"
    """Of this layer single positions are chosen."""
    link_from: str = ""
    """To the positions of this earlier layer they are traced; by default the convolution in the middle."""
    cells: int = Field(default=3, ge=1, le=8)
    """So many positions down and across are traced."""


def compute(context: CheckpointContext, options: SpatialAttributionOptions) -> Findings:
    """Rows by layer, arrays `<probe>/<layer>/class_map` and `<probe>/<layer>/link`; what does not apply says why."""
    from stratascope.tasks.vision.image_network import ImageNetwork

    findings = Findings()
    network = ImageNetwork.of(context)
    with network.untouched():
        for name, probe in context.probes.items():
            try:
                _probe(context, options, network, probe, findings)
            except DoesNotApply as reason:
                findings.rows += _refused((*_MAPS, *_LINKS), str(reason), probe=name)
    return findings


def _refused(metrics: tuple[str, ...], reason: str, **about: Any) -> list[Row]:
    return [Row(metric, status="does_not_apply", reason=reason, **about) for metric in metrics]


def _probe(
    context: CheckpointContext,
    options: SpatialAttributionOptions,
    network: ImageNetwork,
    probe: Probe,
    findings: Findings,
) -> None:
    import torch

    from stratascope.tasks.vision.spatial_layers import chosen_spatial_layers, observed

    samples = chosen_samples(probe, options)
    seen = observed(network, probe).layers
    picture = samples.inputs.shape[2], samples.inputs.shape[3]
    inputs = torch.from_numpy(samples.inputs)
    findings.arrays |= sample_arrays(samples, SAMPLE)
    try:
        layers = chosen_spatial_layers(options.layers, seen, picture)
        _class_to_position(context, options, network, samples, inputs, layers, findings)
    except DoesNotApply as reason:
        findings.rows += _refused(_MAPS, str(reason), probe=probe.name)
    try:
        upper = chosen_spatial_layers((options.link_to,), seen, picture)[-1]
        earlier = chosen_spatial_layers((options.link_from or "@convolutions",), seen, picture)
        lower = earlier[(len(earlier) - 1) // 2]
        _position_to_position(options, network, samples, inputs, lower, upper, findings)
    except DoesNotApply as reason:
        findings.rows += _refused(_LINKS, str(reason), probe=probe.name)


def _questions(
    options: SpatialAttributionOptions, target: Target, outputs: Tensor, samples: ImageSamples
) -> dict[str, tuple[Target, Tensor]]:
    """What is asked, by name: the target, and for each sample the output. Raises DoesNotApply."""
    from stratascope.tasks.vision.targets import Target

    if options.classes:
        asked = {f"class {number}": Target(number) for number in options.classes}
        return {name: (one, one.indices(outputs, samples.classes)) for name, one in asked.items()}
    first = target.indices(outputs, samples.classes)
    found = {str(options.target): (target, first)}
    if target.function is None and outputs.ndim > 1 and outputs.shape[1] > 1:
        scores = outputs.flatten(2).mean(2) if outputs.ndim > 2 else outputs.clone()
        scores[range(len(scores)), first] = -np.inf
        found[RIVAL] = (target, scores.argmax(1))
    return found


def _class_to_position(
    context: CheckpointContext,
    options: SpatialAttributionOptions,
    network: ImageNetwork,
    samples: ImageSamples,
    inputs: Tensor,
    layers: list[SpatialLayer],
    findings: Findings,
) -> None:
    from stratascope.tasks.vision.position_links import class_maps, cosines, effective_share
    from stratascope.tasks.vision.targets import Target

    target = Target.of(options.target, Path(context.subject.folder))
    questions = _questions(options, target, network.outputs_in_batches(inputs, options.batch_size), samples)
    answers = {
        name: class_maps(network, inputs, indices, asked, layers, options.batch_size)
        for name, (asked, indices) in questions.items()
    }
    root = encode_path_part(samples.probe)
    dims = (SAMPLE, "question")
    names = {"question": list(questions)}
    indices = np.stack([indices.numpy() for _, indices in questions.values()], 1)
    findings.arrays[f"{root}/class_index"] = NamedArray(dims, indices.astype(np.int64), names)
    scores = np.stack([found for _, found in answers.values()], 1)
    findings.arrays[f"{root}/score"] = NamedArray(dims, scores, names)
    for layer in layers:
        maps = np.stack([found[layer.name] for found, _ in answers.values()], 1)
        about: dict[str, Any] = {"probe": samples.probe, "layer": layer.name, "n": len(samples)}
        if not np.isfinite(maps).all():
            reason = "the maps of the layer are not finite"
            findings.rows += [Row(metric, status="failed", reason=reason, **about) for metric in _MAPS]
            continue
        place = f"{root}/{encode_path_part(layer.name)}/class_map"
        findings.arrays[place] = NamedArray((*dims, "y", "x"), maps.astype(np.float32), names)
        for number, name in enumerate(questions):
            spread = effective_share(maps[:, number])
            findings.rows.append(_mean("attribution_spread", spread, part=f"question={name}", **about))
        if len(questions) > 1:
            found = cosines(maps[:, 0], maps[:, 1])
            part = f"between={','.join(list(questions)[:2])}"
            findings.rows.append(_mean("class_map_cosine", found, part=part, **about))
        else:
            findings.rows += _refused(("class_map_cosine",), "the network has one output: no other class to compare with", **about)  # fmt: skip


def _mean(metric: str, values: np.ndarray, **about: Any) -> Row:
    """The mean over what is known; a row that says why where nothing is."""
    known = values[np.isfinite(values)]
    if not len(known):
        return Row(metric, status="does_not_apply", reason="every map is zero", **about)
    return Row(metric, float(known.mean()), **{**about, "n": len(known)})


def _position_to_position(
    options: SpatialAttributionOptions,
    network: ImageNetwork,
    samples: ImageSamples,
    inputs: Tensor,
    lower: SpatialLayer,
    upper: SpatialLayer,
    findings: Findings,
) -> None:
    from stratascope.tasks.vision.position_links import (
        effective_share,
        even_cells,
        link_distances,
        position_links,
    )

    rows, columns = even_cells(upper.height, options.cells), even_cells(upper.width, options.cells)
    cells = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
    links, norms = position_links(network, inputs, lower, upper, cells, options.batch_size)
    about: dict[str, Any] = {
        "probe": samples.probe,
        "layer": upper.name,
        "other_layer": lower.name,
        "n": len(samples) * len(cells),
    }
    if not np.isfinite(links).all():
        reason = f"the links from layer {lower.name!r} are not finite"
        findings.rows += [Row(metric, status="failed", reason=reason, **about) for metric in _LINKS]
        return
    root = f"{encode_path_part(samples.probe)}/{encode_path_part(upper.name)}"
    shape = (len(samples), len(rows), len(columns))
    told = {
        "from_layer": lower.name, "y2": rows.tolist(), "x2": columns.tolist(),
        "grid_of_y2_x2": [upper.height, upper.width],
    }  # fmt: skip
    dims = (SAMPLE, "y2", "x2")
    findings.arrays[f"{root}/link"] = NamedArray(
        (*dims, "y1", "x1"), links.reshape(*shape, lower.height, lower.width).astype(np.float32), told
    )
    findings.arrays[f"{root}/cell_norm"] = NamedArray(dims, norms.reshape(shape), told)
    distances = link_distances(links, cells, (upper.height, upper.width))
    findings.rows.append(_mean("link_distance", distances.ravel(), **about))
    findings.rows.append(_mean("linked_share", effective_share(links).ravel(), **about))


_RESCALED = "a positive factor on the score"

ANALYSIS = register(
    Analysis(
        name="spatial_attribution", version=1, scope="checkpoint", title="Spatial attribution", question="Which places speak for a class, and which places feed a place?",
        options=SpatialAttributionOptions, compute=compute, draw=draw, needs=frozenset({"network", "gradients"}),
        metrics=(
            Metric("attribution_spread", "fraction", "(0, 1]", "Effective share of a layer's positions that speak for or against a class (`question`): the square of the sum of sizes divided by n times the sum of squares of the map m = Σ over the channels of activation × gradient; mean over the samples.", "Olah et al. 2018", _RESCALED),
            Metric("class_map_cosine", "1", "[-1, 1]", "Cosine of the maps of two classes (`between`) on the same sample, mean over the samples: 1 where the same places speak for both.", "", _RESCALED),
            Metric("link_distance", "sides of the picture", "[0, √2]", "Mean distance from a position of a layer to the positions of an earlier one (`other_layer`) that its norm comes from, weighted by the size of activation × gradient.", "Olah et al. 2018", _RESCALED),
            Metric("linked_share", "fraction", "(0, 1]", "Effective share of the earlier layer's positions that feed a position, as for `attribution_spread`.", "Olah et al. 2018", _RESCALED),
        ),
    )
)  # fmt: skip
