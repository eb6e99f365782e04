"""How much each unit of a layer matters for an answer: at the sample itself, and along the way to it from a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from stratascope.errors import DoesNotApply
from stratascope.tasks.capture.layers import LayerInfo
from stratascope.tasks.vision.image_network import ImageNetwork, gradient_of, layer_pass, replaced_outputs
from stratascope.tasks.vision.targets import Target

ON_INPUT_PATH = ("activation", "gradient_times_activation", "internal_influence", "conductance")
METHODS = (*ON_INPUT_PATH, "integrated_gradients")


@dataclass
class LayerAttribution:
    """What one method says of one layer."""

    values: Tensor
    """float64 (sample, …), of the layer's shape, raw and signed."""
    gap: Tensor | None = None
    """float64 (sample,): the sum of the values minus what they should add up to; None where nothing is promised."""
    difference: Tensor | None = None
    """float64 (sample,): what they should add up to."""


@dataclass
class _Path:
    activation: Tensor
    gradient: Tensor
    influence: Tensor
    conductance: Tensor
    scores: list[Tensor] = field(default_factory=list)


def along_inputs(
    network: ImageNetwork,
    inputs: Tensor,
    baseline: Tensor,
    indices: Tensor,
    target: Target,
    layers: Sequence[LayerInfo],
    steps: int,
) -> dict[str, dict[str, LayerAttribution]]:
    """By layer and method: `activation`, `gradient_times_activation`, `internal_influence`, `conductance`.

    All come from one walk from `baseline` to `inputs` (sample, channel, y, x) in `steps` equal steps, one pass forward and
    one back at each end of a step, for all layers at once. With A the activations and G = ∂y/∂A:
    A; A ⊙ G; ∫ G dα (Leino et al. 2018, eq. 2); ∫ G ⊙ dA/dα dα by the trapezoidal rule (Dhamdhere et al. 2019, eq. 4), which
    adds up to y(x) − y(x′) where nothing bypasses the layer.
    """
    walked: dict[str, _Path] = {}
    ends: list[Tensor] = []
    for number in range(steps + 1):
        here = baseline + (number / steps) * (inputs - baseline)
        found = layer_pass(network, here, indices, target, layers)
        if number in (0, steps):
            ends.append(found.scores.double().cpu())
        for layer in layers:
            activation, gradient = found.activations[layer.name].double(), found.gradients[layer.name].double()
            known = walked.get(layer.name)
            if known is None:
                zeros = torch.zeros_like(activation)
                walked[layer.name] = _Path(activation, gradient, zeros, zeros.clone())
                continue
            known.influence += (known.gradient + gradient) / (2 * steps)
            known.conductance += (known.gradient + gradient) / 2 * (activation - known.activation)
            known.activation, known.gradient = activation, gradient
    difference = ends[1] - ends[0]
    return {
        name: {
            "activation": LayerAttribution(path.activation.cpu()),
            "gradient_times_activation": LayerAttribution((path.activation * path.gradient).cpu()),
            "internal_influence": LayerAttribution(path.influence.cpu()),
            "conductance": _adding_up(path.conductance.cpu(), difference),
        }
        for name, path in walked.items()
    }


def along_layer(
    network: ImageNetwork,
    inputs: Tensor,
    baseline: Tensor,
    indices: Tensor,
    target: Target,
    layer: LayerInfo,
    steps: int,
) -> LayerAttribution:
    """(A − A′) ⊙ ∫ ∂y/∂A dα on the straight line from A′ = A(x′) to A, by Gauss and Legendre's rule with `steps` places.

    Sundararajan et al. 2017 within the layer. What bypasses the layer stays that of the sample, so the values add up to the
    score less the score with the layer's output exchanged for A′.
    """
    places, weights = np.polynomial.legendre.leggauss(steps)
    outputs = {}
    for name, given in (("end", inputs), ("start", baseline)):
        outputs[name] = _outputs_of(network, given, layer)
    start, way = outputs["start"], outputs["end"] - outputs["start"]
    total = torch.zeros_like(way, dtype=torch.float64)
    for place, weight in zip((1 + places) / 2, weights / 2, strict=True):
        gradient, _ = _with_output(network, inputs, indices, target, layer, start + float(place) * way)
        total += float(weight) * gradient.double()
    scores = [_with_output(network, inputs, indices, target, layer, item)[1] for item in (outputs["end"], start)]
    values = (total * way.double()).movedim(layer.sample_axis, 0)
    return _adding_up(values.cpu(), (scores[0] - scores[1]).double().cpu())


def _adding_up(values: Tensor, difference: Tensor) -> LayerAttribution:
    return LayerAttribution(values, values.flatten(1).sum(1) - difference, difference)


@torch.no_grad()
def _outputs_of(network: ImageNetwork, inputs: Tensor, layer: LayerInfo) -> Tensor:
    kept: list[Tensor] = []

    def keep(_: LayerInfo, values: Tensor) -> Tensor:
        kept.append(values.clone())
        return values

    with replaced_outputs(network.network, [layer], keep):
        network.outputs(inputs)
    if not kept:
        raise DoesNotApply(f"layer {layer.name!r} is not reached by a forward pass.")
    return kept[-1]


def _with_output(
    network: ImageNetwork, inputs: Tensor, indices: Tensor, target: Target, layer: LayerInfo, given: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradient of the scores by the layer's output where that is `given`, and the scores."""
    put = given.detach().requires_grad_()
    with torch.enable_grad(), replaced_outputs(network.network, [layer], lambda _, values: put.clone()):
        scores = target.scores(network.outputs(inputs.detach()), indices)
        (gradient,) = gradient_of(scores.sum(), [put], f"layer {layer.name}")
    return gradient, scores.detach()
