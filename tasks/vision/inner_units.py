"""A unit inside the network as if it were an output, so that every attribution method answers for it too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from stratascope.errors import DoesNotApply
from stratascope.storage.model_spec import ModelSpec
from stratascope.tasks.capture.layers import tensors_in
from stratascope.tasks.vision.image_network import ImageNetwork, ScoredOutput
from stratascope.tasks.vision.spatial_layers import SpatialLayer

Place = Literal["mean", "max", "centre"]


class _Reached(Exception):
    """Ends a forward pass: what follows the layer does not matter."""


class InnerOutput(nn.Module):
    """(sample, channel, y, x) → (sample, unit): what the channels of a layer say, one number each.

    `mean` over its places, the `max` of them, or the place in the `centre`. The pass ends at the layer.
    """

    def __init__(self, scored: ScoredOutput, layer: SpatialLayer, place: Place = "mean") -> None:
        super().__init__()
        self.scored = scored
        self._layer, self._place = layer, place

    def forward(self, inputs: Tensor) -> Tensor:
        info = self._layer.info
        calls = 0
        kept: list[Tensor] = []

        def on_output(module: nn.Module, given: Any, output: Any) -> None:
            nonlocal calls
            calls += 1
            if calls - 1 == info.call:
                kept.append(dict(tensors_in(output))[info.element])
                raise _Reached

        handle = self.scored.network.get_submodule(info.module).register_forward_hook(on_output)
        try:
            self.scored(inputs)
        except _Reached:
            pass
        finally:
            handle.remove()
        if not kept:
            raise DoesNotApply(f"layer {info.name!r} is not reached by a forward pass.")
        grid = self._layer.on_grid(kept[0].movedim(info.sample_axis, 0))
        if self._place == "centre":
            return grid[:, :, grid.shape[2] // 2, grid.shape[3] // 2]
        return grid.mean((2, 3)) if self._place == "mean" else grid.amax((2, 3))


def inner_network(network: ImageNetwork, layer: SpatialLayer, place: Place = "mean") -> ImageNetwork:
    """`network` cut off after `layer`, with the layer's channels for outputs."""
    if not network.hookable:
        raise DoesNotApply("the layers of an exported program cannot be watched.")
    inner = InnerOutput(network.scored, layer, place)
    inner.eval()
    return replace(network, network=inner, model=ModelSpec(factory=network.model.factory))


def unit_values(network: ImageNetwork, inputs: Tensor, size: int) -> Tensor:
    """float32 (sample, unit) of a network from `inner_network`."""
    with torch.no_grad():
        return network.outputs_in_batches(inputs, size)
