"""Where a layer's channels are read and changed, and what one pass forward and back tells of each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from stratascope.tasks.capture.extract import watched
from stratascope.tasks.capture.layers import LayerInfo
from stratascope.tasks.capture.observe import Observation
from stratascope.tasks.vision.image_network import ImageNetwork, layer_pass
from stratascope.tasks.vision.spatial_layers import SpatialLayer, spatial_layers
from stratascope.tasks.vision.targets import Target


@dataclass(frozen=True)
class ChannelPlace:
    """A layer, and the one whose output is watched for it.

    That is the layer itself, or the norm after it whose output enters the ReLU: a channel set to 0 there is silent
    after the ReLU, and gradient × activation there is what it is after the ReLU.
    """

    layer: SpatialLayer
    at: SpatialLayer
    rectified: bool
    """Whether a ReLU takes the output of `at`, so that what is below 0 is not passed on."""

    @property
    def channels(self) -> int:
        return self.at.channels

    def by_channel(self, values: Tensor) -> Tensor:
        """(sample, …) as the layer puts it out, sample axis first → (sample, channel, position), tokens in front too."""
        return values.flatten(2) if self._channels_first else values.movedim(-1, 1).flatten(2)

    def spread(self, numbers: Tensor, values: Tensor) -> Tensor:
        """`numbers` (sample, channel) shaped so that they meet the channels of `values` (sample, …)."""
        ones = (1,) * (values.ndim - 2)
        return numbers.reshape(*numbers.shape, *ones) if self._channels_first else numbers[:, None].reshape(len(numbers), *ones, -1)  # fmt: skip

    @property
    def _channels_first(self) -> bool:
        return len(self.at.info.dims) == 3 and self.at.info.dims[1:] == ("y", "x")


def channel_places(
    layers: Sequence[SpatialLayer], observation: Observation, picture: tuple[int, int] | None = None
) -> list[ChannelPlace]:
    """Each of `layers` with the place where its channels are read."""
    spatial = {layer.name: layer for layer in spatial_layers(observation.layers, picture)}
    found = []
    for layer in layers:
        at = spatial.get(observation.rectified_by.get(layer.name, ""))
        same = at is not None and (at.channels, at.height, at.width) == (layer.channels, layer.height, layer.width)
        found.append(ChannelPlace(layer, at if same and at is not None else layer, same))
    return found


@dataclass
class ChannelRecord:
    """What is known of one layer's channels over the samples, in their order."""

    low: float
    high: float
    mean: list[np.ndarray] = field(default_factory=list)
    """float32 (sample, channel) by batch: mean over the positions of what is passed on."""
    positive: list[np.ndarray] = field(default_factory=list)
    """The same of what is above 0."""
    peak: list[np.ndarray] = field(default_factory=list)
    """float32 (sample, channel): the largest value at any position."""
    place: list[np.ndarray] = field(default_factory=list)
    """int16 (sample, channel, 2): where that is, (y, x)."""
    linear: list[np.ndarray] = field(default_factory=list)
    """float32 (sample, channel): Σ over the positions of activation × gradient of the score."""
    histogram: np.ndarray | None = None
    """int64 (channel, bin), from `low` to `high`."""
    sums: np.ndarray | None = None
    """float64 (3, channel): sum, sum of squares, number at or below 0, over samples and positions."""
    positions: int = 0

    def joined(self, name: str) -> np.ndarray:
        return np.concatenate(getattr(self, name))


def first_look(
    network: ImageNetwork, inputs: Tensor, places: Sequence[ChannelPlace], batch_size: int
) -> tuple[Tensor, dict[LayerInfo, tuple[float, float]]]:
    """The outputs (sample, output, …), and the least and the largest value of each place; NaN where any is not finite."""
    ranges: dict[LayerInfo, tuple[float, float]] = {}

    def receive(info: LayerInfo, values: Tensor) -> None:
        low, high = (float(end) for end in torch.aminmax(values))
        before = ranges.get(info, (low, high))
        # Comparisons with NaN are false; a sum keeps it.
        known = np.isfinite([low, high, *before]).all()
        ranges[info] = (min(low, before[0]), max(high, before[1])) if known else (np.nan, np.nan)

    with watched(network.network, list(dict.fromkeys(place.at.info for place in places)), receive):
        outputs = network.outputs_in_batches(inputs, batch_size)
    return outputs, ranges


def channel_records(
    network: ImageNetwork,
    inputs: Tensor,
    indices: Tensor,
    target: Target,
    places: Sequence[ChannelPlace],
    ranges: Mapping[LayerInfo, tuple[float, float]],
    batch_size: int,
    bins: int,
) -> dict[LayerInfo, ChannelRecord]:
    """One pass forward and back over `inputs` (sample, channel, y, x), all `places` at once; by where they are read."""
    unique = {place.at.info: place for place in places}
    records = {info: ChannelRecord(*ranges[info]) for info in unique}
    size = network.fixed_batch_size or batch_size
    for start in range(0, len(inputs), size):
        rows = slice(start, min(start + size, len(inputs)))
        passed = layer_pass(network, inputs[rows], indices[rows], target, list(unique))
        for info, place in unique.items():
            _add(records[info], place, passed.activations[info.name], passed.gradients[info.name], bins)
    return records


def _add(record: ChannelRecord, place: ChannelPlace, activations: Tensor, gradients: Tensor, bins: int) -> None:
    values = place.by_channel(activations).float()
    positive = values.clamp(min=0).mean(2)
    record.positive.append(positive.cpu().numpy())
    record.mean.append((positive if place.rectified else values.mean(2)).cpu().numpy())
    grid = place.at.on_grid(activations).float()
    peak, where = grid.flatten(2).max(2)
    record.peak.append(peak.cpu().numpy())
    there = torch.stack([where // grid.shape[3], where % grid.shape[3]], -1)
    record.place.append(there.cpu().numpy().astype(np.int16))
    record.linear.append((values * place.by_channel(gradients).float()).sum(2).cpu().numpy())
    counts = _histogram(values, record.low, record.high, bins)
    wide = values.double()
    sums = torch.stack([wide.sum((0, 2)), wide.square().sum((0, 2)), (values <= 0).sum((0, 2)).double()])
    record.histogram = counts if record.histogram is None else record.histogram + counts
    record.sums = sums.cpu().numpy() if record.sums is None else record.sums + sums.cpu().numpy()
    record.positions += values.shape[0] * values.shape[2]


def _histogram(values: Tensor, low: float, high: float, bins: int) -> np.ndarray:
    """int64 (channel, bin) of `values` (sample, channel, position) between `low` and `high`."""
    channels = values.shape[1]
    span = high - low or 1.0
    # In float64, so that the edges are the same numbers for every batch.
    number = ((values.double() - low) * (bins / span)).long().clamp_(0, bins - 1)
    number += bins * torch.arange(channels, device=values.device)[None, :, None]
    return torch.bincount(number.flatten(), minlength=channels * bins).reshape(channels, bins).cpu().numpy()
