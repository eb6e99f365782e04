"""Layers whose outputs lie on a grid over the picture: found by running the network once, chosen by name."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stratascope.errors import DoesNotApply
from stratascope.tasks.capture.layers import LayerInfo, select_layers
from stratascope.tasks.capture.observe import Observation, observe
from stratascope.tasks.intake.load import NetworkTraits

if TYPE_CHECKING:
    from torch import Tensor

    from stratascope.storage.probes import Probe
    from stratascope.tasks.vision.image_network import ImageNetwork

LAST_SPATIAL = "@last_spatial"
"""The last layer of the network whose output still lies on a grid of more than one position."""
CONVOLUTIONS = "@convolutions"
"""Every convolution, in the order of execution."""
_CONVOLUTION_KINDS = ("Conv2d", "ConvTranspose2d", "LazyConv2d")


@dataclass(frozen=True)
class SpatialLayer:
    """A layer that puts out `channels` numbers at each place of a grid of `height` × `width`."""

    info: LayerInfo
    channels: int
    height: int
    width: int
    skipped: int = 0
    """So many tokens in front belong to no place, such as a class token; only where tokens are the grid."""

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def is_convolution(self) -> bool:
        return self.info.kind in _CONVOLUTION_KINDS

    @property
    def channel_axis(self) -> int:
        """The axis of the channels in what the layer puts out with the sample axis first; the sample axis is 0."""
        if self.info.dims == ("token", "feature"):
            return 2
        return 3 if self.info.dims[:2] == ("y", "x") else 1

    def on_grid(self, values: Tensor) -> Tensor:
        """(sample, …) as the layer puts it out, sample axis first → (sample, channel, y, x)."""
        if self.info.dims == ("token", "feature"):
            places = values[:, self.skipped :]
            return places.reshape(len(values), self.height, self.width, self.channels).permute(0, 3, 1, 2)
        if self.info.dims == ("y", "x", "channel") or self.info.dims == ("y", "x", "feature"):
            return values.permute(0, 3, 1, 2)
        return values


def observed(network: ImageNetwork, probe: Probe) -> Observation:
    """Every layer of `network` with its shape, from two small batches of `probe`.

    Raises DoesNotApply for exported programs, which have no layers to watch.
    """
    if not network.hookable:
        raise DoesNotApply("the layers of an exported program cannot be watched.")
    traits = NetworkTraits(fixed_batch_size=network.fixed_batch_size)
    return observe(network.network, probe, network.model, network.folder, traits=traits)


def spatial_layers(layers: Sequence[LayerInfo], picture: tuple[int, int] | None = None) -> list[SpatialLayer]:
    """Those of `layers` that lie on a grid, in the order of execution.

    Tokens (token, feature) are a grid where their number, without at most a few in front, has the proportions of
    the `picture` (height, width); a square one is assumed where it is not given.
    """
    found = []
    for layer in layers:
        if layer.side != "output":
            continue
        spatial = _on_grid(layer, picture or (1, 1))
        if spatial is not None and spatial.height * spatial.width > 1:
            found.append(spatial)
    return found


def _on_grid(layer: LayerInfo, picture: tuple[int, int]) -> SpatialLayer | None:
    if len(layer.shape) == 3 and layer.dims[1:] == ("y", "x"):
        return SpatialLayer(layer, *layer.shape)
    if layer.dims in (("y", "x", "channel"), ("y", "x", "feature")):
        height, width, channels = layer.shape
        return SpatialLayer(layer, channels, height, width)
    if layer.dims == ("token", "feature"):
        tokens, features = layer.shape
        for skipped in range(min(6, tokens)):
            grid = _grid_of(tokens - skipped, picture)
            if grid is not None:
                return SpatialLayer(layer, features, *grid, skipped)
    return None


def _grid_of(count: int, picture: tuple[int, int]) -> tuple[int, int] | None:
    """(height, width) with `count` places and the proportions of the picture."""
    height = math.isqrt(count * picture[0] // picture[1])
    for candidate in (height, height + 1):
        if candidate and count % candidate == 0 and candidate * picture[1] == count // candidate * picture[0]:
            return candidate, count // candidate
    return None


def chosen_spatial_layers(
    patterns: Sequence[str], layers: Sequence[LayerInfo], picture: tuple[int, int] | None = None
) -> list[SpatialLayer]:
    """The spatial layers that `patterns` mean: `@last_spatial`, `@convolutions`, and all that names layers elsewhere.

    Raises DoesNotApply where the network has none, and for a layer that is not spatial, with its shape;
    ConfigurationError where a pattern matches no layer.
    """
    spatial = {layer.name: layer for layer in spatial_layers(layers, picture)}
    wanted: dict[str, SpatialLayer] = {}
    for pattern in patterns:
        if pattern == LAST_SPATIAL:
            names = _last(list(spatial.values()))
        elif pattern == CONVOLUTIONS:
            names = [name for name, layer in spatial.items() if layer.is_convolution]
            if not names:
                raise DoesNotApply("the network has no convolution whose output lies on a grid.")
        else:
            chosen = select_layers([pattern], layers)
            names = [layer.name for layer in chosen if layer.name in spatial]
            if not names:
                shape = ", ".join(f"{name} {size}" for name, size in zip(chosen[0].dims, chosen[0].shape))
                raise DoesNotApply(
                    f"layer {chosen[0].name!r} is not spatial: a sample of it has {shape or 'a single number'}. Choose one "
                    f"of {', '.join(list(spatial)[:8]) or 'another network: this one has none'}."
                )
        wanted |= {name: spatial[name] for name in names}
    order = {name: place for place, name in enumerate(spatial)}
    return sorted(wanted.values(), key=lambda layer: order[layer.name])


def _last(spatial: list[SpatialLayer]) -> list[str]:
    if not spatial:
        raise DoesNotApply("no layer of the network puts out a grid: attribution over positions has no ground.")
    leaves = [layer for layer in spatial if layer.info.is_leaf] or spatial
    # The grid that the head reads: past the last convolution, before positions are pooled away.
    last = (
        spatial[-1]
        if (spatial[-1].height, spatial[-1].width) == (leaves[-1].height, leaves[-1].width)
        else leaves[-1]
    )
    return [last.name]
