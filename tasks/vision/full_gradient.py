"""FullGrad: a score of a rectifier network as what the picture contributes and what every bias contributes.

For a network of convolutions, linear layers, batch norms, ReLUs and poolings, f(x) = x · ∂f/∂x + Σ b · ∂f/∂z: the score
is piecewise linear in the picture, z is what a layer with bias b puts out (Srinivas and Fleuret 2019, proposition 1). A
batch norm's bias is β − γ μ / σ, for it adds that to a multiple of what it is given. What another kind of layer adds is not
seen; the gap says how much is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from stratascope.errors import DoesNotApply
from stratascope.tasks.capture.layers import LayerInfo
from stratascope.tasks.vision.class_activation_maps import enlarged
from stratascope.tasks.vision.image_network import ImageNetwork, replaced_outputs
from stratascope.tasks.vision.targets import Target

INPUT_TERM = "@input"
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class FullGradient(NamedTuple):
    """What the picture and the biases contribute to each sample's score."""

    maps: Tensor
    """(sample, y, x): Σ over channels of |x ∂f/∂x|, and of |b ∂f/∂z| of every layer that lies on a grid, enlarged."""
    signed: Tensor
    """(sample, y, x): the same without the sizes; with the biases that have no place it adds up to the score."""
    terms: Tensor
    """(sample, term): the picture's contribution and each layer's."""
    names: tuple[str, ...]
    """Of the terms: `@input`, then the layers in the order of execution."""
    gap: Tensor
    """(sample,): the score less the sum of all terms."""
    scores: Tensor


def biases_of(module: nn.Module) -> Tensor | None:
    """(channel,): what `module` adds to each channel of what it puts out, in evaluation mode; None where it adds nothing."""
    if isinstance(module, _BATCH_NORMS):
        if module.running_mean is None or module.running_var is None:
            return None
        scale = torch.rsqrt(module.running_var + module.eps)
        scale = scale if module.weight is None else scale * module.weight
        shift = -module.running_mean * scale
        return (shift if module.bias is None else shift + module.bias).detach()
    if isinstance(module, (*_CONVOLUTIONS, nn.Linear)) and module.bias is not None:
        return module.bias.detach()
    return None


def full_gradient(
    network: ImageNetwork, inputs: Tensor, indices: Tensor, target: Target, known: Sequence[LayerInfo]
) -> FullGradient:
    """The decomposition for one batch; `known` are the network's layers as observed.

    Enlarging a map of a layer keeps its sum. Raises DoesNotApply where no gradient reaches the picture.
    """
    modules = dict(network.network.named_modules())
    layers = [
        layer
        for layer in known
        if layer.side == "output" and layer.is_leaf and not layer.element and biases_of(modules[layer.module]) is not None
    ]  # fmt: skip
    kept: dict[str, Tensor] = {}

    def keep(layer: LayerInfo, values: Tensor) -> Tensor:
        values = values if values.requires_grad else values.requires_grad_()
        kept[layer.name] = values
        return values.clone()

    with torch.enable_grad(), replaced_outputs(network.network, layers, keep):
        pixels = inputs.detach().to(network.device).requires_grad_()
        scores = target.scores(network.outputs(pixels), indices)
        reached = [layer for layer in layers if layer.name in kept]
        sources = [pixels, *(kept[layer.name] for layer in reached)]
        found = torch.autograd.grad(scores.sum(), sources, allow_unused=True) if scores.requires_grad else (None,)
    if found[0] is None:
        raise DoesNotApply("no gradient flows from the output to the inputs: something on the way detaches it.")
    return _gathered(inputs, scores.detach(), found, reached, modules)


def _gathered(
    inputs: Tensor,
    scores: Tensor,
    found: Sequence[Tensor | None],
    layers: Sequence[LayerInfo],
    modules: dict[str, nn.Module],
) -> FullGradient:
    assert found[0] is not None
    part = (inputs.to(found[0]) * found[0].detach()).float().cpu()
    maps, signed = part.abs().sum(1), part.sum(1)
    names, terms = [INPUT_TERM], [signed.double().sum((1, 2))]
    for layer, gradient in zip(layers, found[1:], strict=True):
        names.append(layer.name)
        if gradient is None:
            terms.append(torch.zeros_like(terms[0]))
            continue
        values = gradient.detach().movedim(layer.sample_axis, 0)[: len(inputs)]
        module = modules[layer.module]
        values = values.movedim(-1, 1) if isinstance(module, nn.Linear) else values
        bias = biases_of(module)
        assert bias is not None
        shares = (values * bias.view(1, -1, *(1,) * (values.ndim - 2))).float().cpu()
        terms.append(shares.double().flatten(1).sum(1))
        if shares.ndim == 4:
            maps = maps + _spread(shares.abs().sum(1), maps.shape[1:])
            signed = signed + _spread(shares.sum(1), maps.shape[1:])
    every = torch.stack(terms, 1)
    gap = scores.double().cpu() - every.sum(1)
    return FullGradient(maps, signed, every.float(), tuple(names), gap.float(), scores.float().cpu())


def _spread(maps: Tensor, shape: Sequence[int]) -> Tensor:
    """`maps` (sample, y, x) enlarged to `shape` as densities: the sum over all places stays."""
    cells = maps.shape[1] * maps.shape[2]
    grown = enlarged(maps, (shape[0], shape[1]))
    return grown * (cells / (shape[0] * shape[1]))
