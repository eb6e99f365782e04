"""Which channels feed which: found by following single channels, and weighed by each convolution's own kernels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stratascope.tasks.capture.layers import LayerInfo
from stratascope.tasks.vision.image_network import ImageNetwork, replaced_outputs
from stratascope.tasks.vision.spatial_layers import SpatialLayer

NOTHING = -1
"""Stands for the layer and the channel of an input that no channel of a convolution reaches alone."""
_HELD = 1 << 24
"""So many numbers of single-channel convolutions are held at once."""


@torch.no_grad()
def channel_sources(
    network: ImageNetwork,
    picture: Tensor,
    convolutions: Sequence[SpatialLayer],
    batch_size: int,
    opaque: Sequence[SpatialLayer] = (),
) -> dict[str, np.ndarray]:
    """int64 (in, 2) by convolution: which channel (number in `convolutions`, channel) arrives as each of its inputs.

    One channel of one convolution at a time is made NaN, while every other one, and each layer of `opaque`, puts out
    zeros, so that nothing passes through it: where NaN arrives, the channel does, through norms, activations, pooling, sums and
    concatenation alike. Where several arrive, as after the sum with a shortcut, the convolution that ran last counts; where several
    channels of that one arrive (a norm over channels), the one of the same number. (-1, -1) where none arrives.
    """
    infos = [layer.info for layer in convolutions]
    blocked = list(dict.fromkeys([*infos, *(layer.info for layer in opaque)]))
    sources: dict[str, np.ndarray] = {}
    size = network.fixed_batch_size or batch_size
    for number, layer in enumerate(convolutions):
        reached: dict[str, list[np.ndarray]] = {}
        for start in range(0, layer.channels, size):
            channels = torch.arange(start, min(start + size, layer.channels))
            for name, found in _arrivals(network, picture, infos, blocked, layer, channels).items():
                reached.setdefault(name, []).append(found)
        for name, parts in reached.items():
            arrived = np.concatenate(parts)
            before = sources.setdefault(name, np.full((arrived.shape[1], 2), NOTHING, np.int64))
            for place in range(arrived.shape[1]):
                those = np.flatnonzero(arrived[:, place])
                if len(those) and (len(those) == 1 or place in those):
                    before[place] = number, those[0] if len(those) == 1 else place
    return sources


def _arrivals(
    network: ImageNetwork,
    picture: Tensor,
    infos: list[LayerInfo],
    blocked: list[LayerInfo],
    source: SpatialLayer,
    channels: Tensor,
) -> dict[str, np.ndarray]:
    """bool (channel, in) by convolution: whether each of `channels` of `source` arrives."""
    found: dict[str, np.ndarray] = {}

    def poison(info: LayerInfo, values: Tensor) -> Tensor:
        if info is not source.info:
            return torch.zeros_like(values)
        values[torch.arange(len(channels)), channels] = torch.nan
        return values

    def look(name: str, inputs: tuple[Any, ...]) -> None:
        found[name] = torch.isnan(inputs[0][: len(channels)]).flatten(2).any(2).cpu().numpy()

    modules = dict(network.network.named_modules())
    with ExitStack() as stack:
        stack.enter_context(replaced_outputs(network.network, blocked, poison))
        for info in infos:
            hook = lambda module, inputs, name=info.name: look(name, inputs)  # noqa: E731
            stack.callback(modules[info.module].register_forward_pre_hook(hook).remove)
        network.outputs(picture[None].repeat(len(channels), 1, 1, 1))
    return found


@torch.no_grad()
def single_channel_peaks(convolution: nn.Conv2d, inputs: Tensor) -> Tensor:
    """(sample, out, in of its group): the largest value, over the positions, of each input channel's own convolution.

    `inputs` (sample, in, y, x); the bias is left out. The sum over `in`, before the maximum, would be the layer's
    output (Hohman et al. 2019, section 6.2). Kernels of one group see its own inputs only.
    """
    weight = convolution.weight
    out, each = weight.shape[:2]
    groups = convolution.groups
    padding: Any = convolution.padding
    if convolution.padding_mode != "zeros":
        inputs = functional.pad(inputs, convolution._reversed_padding_repeated_twice, convolution.padding_mode)
        padding = 0
    # (group, in, out, y, x): each input channel with the kernels that read it.
    kernels = weight.reshape(groups, out // groups, each, *weight.shape[2:]).transpose(1, 2)
    kernels = kernels.reshape(groups * each, out // groups, *weight.shape[2:])
    places = inputs.shape[2] * inputs.shape[3]
    block = max(1, _HELD // max(1, len(inputs) * (out // groups) * places))
    parts = []
    for start in range(0, groups * each, block):
        some = kernels[start : start + block]
        found = functional.conv2d(
            inputs[:, start : start + len(some)], some.flatten(0, 1)[:, None], None, convolution.stride, padding,
            convolution.dilation, len(some),
        )  # fmt: skip
        parts.append(found.flatten(2).amax(2).reshape(len(inputs), len(some), out // groups))
    peaks = torch.cat(parts, 1).reshape(len(inputs), groups, each, out // groups)
    return peaks.transpose(2, 3).reshape(len(inputs), out, each)


def strongest_predecessors(peaks: Tensor, number: int) -> Tensor:
    """bool (sample, out, in): the `number` largest of `peaks` for each output, those above 0 alone; ties to the lower."""
    order = torch.argsort(peaks, dim=2, descending=True, stable=True)[:, :, :number]
    found = torch.zeros_like(peaks, dtype=torch.bool).scatter_(2, order, True)
    return found & (peaks > 0)


def personalised_pagerank(
    edges: np.ndarray, weights: np.ndarray, restart: np.ndarray, alpha: float = 0.85, tolerance: float = 1e-12
) -> np.ndarray:
    """float64 (node,), summing to 1: where a walk is found that follows `edges` (edge, 2), (from, to), in proportion to
    `weights` (edge,), and starts anew with probability 1 - `alpha`, and wherever no edge leads on, at a node in proportion
    to `restart` (node,).

    Page et al. 1999; by power iteration, until no mass above `tolerance` moves. Raises ValueError for a `restart` without mass.
    """
    from scipy.sparse import csr_array

    total = restart.sum(dtype=np.float64)
    if not total > 0:
        raise ValueError("the walk needs a node to start at: `restart` is zero.")
    start = restart.astype(np.float64) / total
    count = len(start)
    outgoing = np.bincount(edges[:, 0], weights, count)
    shares = weights / outgoing[edges[:, 0]] if len(edges) else weights
    step = csr_array((shares, (edges[:, 1], edges[:, 0])), shape=(count, count))
    lost = outgoing == 0
    mass = start.copy()
    # Each round leaves at most `alpha` of the distance.
    for _ in range(int(np.ceil(np.log(tolerance / 2) / np.log(alpha))) + 1):
        moved = alpha * (step @ mass + mass[lost].sum() * start) + (1 - alpha) * start
        change = np.abs(moved - mass).sum()
        mass = moved
        if change < tolerance:
            break
    return mass
