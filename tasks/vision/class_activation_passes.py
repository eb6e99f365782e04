"""Class activation maps of all chosen layers and methods, batch by batch, from one shared pass each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from stratascope.errors import DoesNotApply
from stratascope.tasks.capture.layers import LayerInfo
from stratascope.tasks.vision import perturbed_activation_maps as perturbed
from stratascope.tasks.vision.class_activation_maps import GRADIENT_MAPS, WeightedMaps, edges, random_cam
from stratascope.tasks.vision.image_network import ImageNetwork, LayerPass, layer_pass
from stratascope.tasks.vision.spatial_layers import SpatialLayer
from stratascope.tasks.vision.targets import Target


@dataclass(frozen=True)
class Question:
    """Samples, and which output of the network is asked about for each."""

    network: ImageNetwork
    inputs: Tensor
    """float32 (sample, channel, y, x)."""
    indices: Tensor
    """int64 (sample,)."""
    target: Target
    sample_id: np.ndarray
    baseline: Tensor
    """Of the shape of `inputs`: what stands where a picture is masked."""
    seed: int = 0
    batch_size: int = 64

    def __len__(self) -> int:
        return len(self.inputs)

    def parts(self) -> list[Question]:
        """The same, at most `batch_size` samples at a time."""
        spans = [slice(start, start + self.batch_size) for start in range(0, len(self), self.batch_size)]
        return [
            replace(self, inputs=self.inputs[rows], indices=self.indices[rows], sample_id=self.sample_id[rows], baseline=self.baseline[rows])
            for rows in spans
        ]  # fmt: skip


@dataclass
class LayerMaps:
    """Maps of one layer by method, and channel weights of those that have them."""

    maps: dict[str, np.ndarray] = field(default_factory=dict)
    """float32 (sample, y, x), signed, before any ReLU."""
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    """float32 (sample, channel)."""
    is_flat: bool = False
    """Whether the gradient is zero at every place of the grid for every sample."""


def layer_maps(
    question: Question, layers: Sequence[SpatialLayer], methods: Sequence[str], known: Sequence[LayerInfo]
) -> tuple[dict[str, LayerMaps], dict[str, str]]:
    """Maps of every layer by its name, and for layers of which none can be had the reason."""
    refused: dict[str, str] = {}
    try:
        found = _maps_of(question, layers, methods, known)
    except DoesNotApply as reason:
        if len(layers) == 1:
            return {}, {layers[0].name: str(reason)}
        found = {}
        for layer in layers:
            one, why = layer_maps(question, [layer], methods, known)
            found |= one
            refused |= why
    return found, refused


def _maps_of(
    question: Question, layers: Sequence[SpatialLayer], methods: Sequence[str], known: Sequence[LayerInfo]
) -> dict[str, LayerMaps]:
    gathered: dict[str, dict[str, list[WeightedMaps]]] = {layer.name: defaultdict(list) for layer in layers}
    flat = dict.fromkeys(gathered, True)
    for part in question.parts():
        seen = layer_pass(part.network, part.inputs, part.indices, part.target, [layer.info for layer in layers])
        for layer in layers:
            flat[layer.name] &= not bool(layer.on_grid(seen.gradients[layer.name]).any())
            for name, made in batch_maps(part, seen, layer, methods, known).items():
                gathered[layer.name][name].append(made)
    return {layer: _joined(parts, flat[layer]) for layer, parts in gathered.items()}


def batch_maps(
    part: Question, seen: LayerPass, layer: SpatialLayer, methods: Sequence[str], known: Sequence[LayerInfo]
) -> dict[str, WeightedMaps]:
    """The maps of one layer for one batch, of which `seen` has activations and gradients, by method."""
    activations = layer.on_grid(seen.activations[layer.name])
    gradients = layer.on_grid(seen.gradients[layer.name])
    made = {name: GRADIENT_MAPS[name](activations, gradients) for name in methods if name in GRADIENT_MAPS}
    if "random_cam" in methods:
        made["random_cam"] = random_cam(activations, part.sample_id, layer.name, part.seed)
    if "edges" in methods:
        made["edges"] = WeightedMaps(edges(part.inputs, (layer.height, layer.width)))
    if {"score_cam", "score_cam_raw"} & set(methods):
        on_processor = activations.float().cpu()
        scores, ranged = perturbed.masked_scores(
            part.network, part.inputs, part.indices, part.target, on_processor, part.baseline, part.batch_size
        )
        for name, function in (("score_cam", perturbed.score_cam), ("score_cam_raw", perturbed.score_cam_raw)):
            if name in methods:
                made[name] = function(on_processor, scores, ranged)
    if "ablation_cam" in methods:
        drops = perturbed.ablation_drops(
            part.network, part.inputs, part.indices, part.target, layer, known, part.batch_size
        )
        made["ablation_cam"] = perturbed.ablation_cam(activations.float().cpu(), drops)
    return {name: made[name] for name in methods if name in made}


def _joined(parts: dict[str, list[WeightedMaps]], is_flat: bool) -> LayerMaps:
    found = LayerMaps(is_flat=is_flat)
    for name, made in parts.items():
        found.maps[name] = torch.cat([item.maps.float().cpu() for item in made]).numpy()
        weights = [item.weights.float().cpu() for item in made if item.weights is not None]
        if weights:
            found.weights[name] = torch.cat(weights).numpy()
    return found
