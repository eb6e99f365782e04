"""Score-CAM and Ablation-CAM: what a channel weighs is found by running the network again, many copies at a time.

Memory is bounded by the batch: no more than `batch_size` altered pictures, or altered activations, exist at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from stratascope.tasks.capture.layers import LayerInfo
from stratascope.tasks.vision.class_activation_maps import WeightedMaps, enlarged, weighted_sum
from stratascope.tasks.vision.forward_copy import forward_copy
from stratascope.tasks.vision.image_network import ImageNetwork
from stratascope.tasks.vision.partial_forward import PartialForward
from stratascope.tasks.vision.spatial_layers import SpatialLayer
from stratascope.tasks.vision.targets import Target

_CONSTANT = 1e-6
"""A channel whose values differ by less than this share of the largest is constant: it makes no mask."""


def channel_masks(activations: Tensor) -> tuple[Tensor, Tensor]:
    """Each channel (sample, channel, y, x) scaled from 0 to 1 over its positions, and bool (sample, channel): which have a range.

    The mask of a constant channel is 0.
    """
    low, high = activations.amin((2, 3)), activations.amax((2, 3))
    ranged = high - low > _CONSTANT * torch.maximum(low.abs(), high.abs())
    width = torch.where(ranged, high - low, 1.0)[..., None, None]
    masks = (activations - low[..., None, None]) / width
    return torch.where(ranged[..., None, None], masks, 0.0), ranged


@torch.no_grad()
def masked_scores(
    network: ImageNetwork,
    inputs: Tensor,
    indices: Tensor,
    target: Target,
    activations: Tensor,
    baseline: Tensor,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """How much each channel's mask brings back: the score of x' + (x − x') ⊙ mask less that of x', and which have one.

    `inputs` x and `baseline` x' (sample, channel, y, x); the masks are those of `activations` on the grid of their layer,
    enlarged. Returns (sample, channel), 0 for channels without a mask, and bool (sample, channel).
    """
    masks, ranged = channel_masks(activations.float().cpu())
    found = torch.zeros(masks.shape[:2])
    places = ranged.nonzero()
    shape = int(inputs.shape[2]), int(inputs.shape[3])
    network = forward_copy(network, inputs[:batch_size], len(places))
    difference = inputs - baseline
    for rows in places.split(batch_size):
        owner, channel = rows.T
        grown = enlarged(masks[owner, channel], shape)[:, None]
        outputs = network.outputs(torch.addcmul(baseline[owner], difference[owner], grown))
        found[owner, channel] = target.scores(outputs, indices[owner]).float().cpu()
    return torch.where(ranged, found - baseline_scores(network, indices, target, baseline, batch_size)[:, None], 0.0), ranged  # fmt: skip


@torch.no_grad()
def baseline_scores(
    network: ImageNetwork, indices: Tensor, target: Target, baseline: Tensor, batch_size: int
) -> Tensor:
    """(sample,): the score of each sample's baseline; it is run once where all are the same."""
    same = bool((baseline == baseline[:1]).all())
    parts = baseline[:1].split(1) if same else baseline.split(batch_size)
    outputs = torch.cat([network.outputs(part) for part in parts])
    return target.scores(outputs.expand(len(baseline), *outputs.shape[1:]), indices).float().cpu()


def score_cam(activations: Tensor, scores: Tensor, ranged: Tensor) -> WeightedMaps:
    """w = softmax over channels of the scores (Wang et al. 2020, algorithm 1); constant channels take no part.

    The softmax does not see the baseline's score, which all channels share.
    """
    weights = torch.where(ranged, scores, -torch.inf).softmax(1)
    weights = torch.where(ranged.any(1, keepdim=True), weights, 0.0)
    return weighted_sum(activations, weights)


def score_cam_raw(activations: Tensor, scores: Tensor, ranged: Tensor) -> WeightedMaps:
    """w = the score of the masked picture less the baseline's, signed (Wang et al. 2020, definition 2)."""
    return weighted_sum(activations, torch.where(ranged, scores, 0.0))


def ablation_cam(activations: Tensor, drops: Tensor) -> WeightedMaps:
    """w = score − score without the channel, signed (Desai and Ramaswamy 2020, eq. 3, without its division by the score).

    The division turns every sign where the score is negative.
    """
    return weighted_sum(activations, drops)


@torch.no_grad()
def ablation_drops(
    network: ImageNetwork,
    inputs: Tensor,
    indices: Tensor,
    target: Target,
    layer: SpatialLayer,
    known: Sequence[LayerInfo],
    batch_size: int,
) -> Tensor:
    """(sample, channel): by how much the score falls when a channel of `layer` is 0 everywhere.

    A channel is ablated at all its places, also at tokens that belong to no place of the grid. Only what comes after the
    layer is run again, where that can be had. Channels that are 0 already are not run: they change nothing.
    """
    rest = PartialForward(network, layer.info, known)
    found = torch.zeros(len(inputs), layer.channels)
    for start in range(0, len(inputs), batch_size):
        given = inputs[start : start + batch_size]
        own = indices[start : start + batch_size]
        rest.record(given)
        scores = target.scores(rest.outputs, own).float().cpu()
        values = rest.values
        for row in range(len(given)):
            for channels, altered in _ablated(values[row : row + 1], layer.channel_axis, batch_size):
                outputs = rest.run(row, altered)
                after = target.scores(outputs, own[row].expand(len(channels)))
                found[start + row, channels] = scores[row] - after.float().cpu()
    return found


def _ablated(values: Tensor, axis: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Channel numbers, and copies of `values` (1, …) each without one of them, at most `batch_size` at once."""
    by_channel = values.movedim(axis, 1)
    alive = (by_channel.flatten(2) != 0).any(2)[0].nonzero()[:, 0]
    for channels in alive.split(batch_size):
        altered = by_channel.repeat(len(channels), *(1,) * (by_channel.ndim - 1))
        altered[torch.arange(len(channels), device=values.device), channels] = 0
        yield channels.cpu(), altered.movedim(1, axis)
