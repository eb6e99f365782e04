"""How much each channel of a layer adds to a score: along the line to silence, and by taking the channel away."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stratascope.tasks.capture.layers import LayerInfo
from stratascope.tasks.vision.channel_places import ChannelPlace
from stratascope.tasks.vision.image_network import ImageNetwork, gradient_of, replaced_outputs
from stratascope.tasks.vision.targets import Target


@dataclass(frozen=True)
class ScoredImages:
    """Images, and for each the score that is asked about."""

    network: ImageNetwork
    inputs: Tensor
    """float32 (sample, channel, y, x)."""
    indices: Tensor
    """int64 (sample,)."""
    target: Target
    batch_size: int

    @property
    def size(self) -> int:
        return self.network.fixed_batch_size or self.batch_size

    def scores(self, rows: Tensor) -> Tensor:
        """(row,) of the samples `rows`, which may repeat; carries a gradient where what was put in does."""
        outputs = self.network.outputs(self.inputs[rows])
        return self.target.scores(outputs, self.indices[rows])


@dataclass(frozen=True)
class PathContribution:
    """The contributions along the path, with what they must add up to."""

    channels: np.ndarray
    """float32 (sample, channel)."""
    difference: np.ndarray
    """float64 (sample,): the score less the score with the layer at zero."""

    @property
    def gap(self) -> np.ndarray:
        """float64 (sample,): how far the sum of the contributions is from the difference."""
        return self.channels.sum(1, dtype=np.float64) - self.difference


def path_contribution(images: ScoredImages, place: ChannelPlace, steps: int) -> PathContribution:
    """Σ over the positions of A ⊙ ∫₀¹ ∂score/∂(αA) dα, by Gauss and Legendre's rule with `steps` nodes.

    A is what the layer puts out; all of it goes to zero together, what goes around the layer stays. The contributions of
    all channels add up to the score less the score without the layer (Sundararajan et al. 2017, applied to a layer).
    """
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    alphas = torch.from_numpy((nodes + 1) / 2).float()
    shares = torch.from_numpy(weights / 2)
    count = len(images.inputs)
    total = torch.zeros(count, place.channels, dtype=torch.float64)
    for rows, step in _pairs(count, steps, images.size):
        kept: list[tuple[Tensor, Tensor]] = []

        def scaled(values: Tensor, step: Tensor = step, kept: list[tuple[Tensor, Tensor]] = kept) -> Tensor:
            before = values.detach()
            factors = _filled(alphas[step], len(before)).to(before.device)
            start = (before * factors.reshape(-1, *(1,) * (before.ndim - 1))).requires_grad_()
            kept.append((before, start))
            return start.clone()

        with torch.enable_grad(), _replaced(images, place, scaled):
            score = images.scores(rows).sum()
            before, start = kept[0]
            gradient = gradient_of(score, [start], f"layer {place.at.name}")[0]
        parts = place.by_channel(before * gradient)[: len(rows)].double().sum(2).cpu()
        total.index_add_(0, rows, parts * shares[step, None])
    with torch.no_grad():
        whole = torch.cat([images.scores(rows).double().cpu() for rows, _ in _pairs(count, 1, images.size)])
        with _replaced(images, place, torch.zeros_like):
            without = torch.cat([images.scores(rows).double().cpu() for rows, _ in _pairs(count, 1, images.size)])
    return PathContribution(total.float().numpy(), (whole - without).numpy())


@torch.no_grad()
def ablation_contribution(
    images: ScoredImages, place: ChannelPlace, channels: np.ndarray, fill: np.ndarray
) -> np.ndarray:
    """float32 (sample, channel): the score less the score with one channel replaced, for `channels` (those of the layer).

    `fill` (channel,) is what takes the place of every value of the channel: zeros, or the channels' means. NaN for
    channels that were not asked for. A difference and no ratio, so that scores below zero keep their sign.
    """
    count = len(images.inputs)
    whole = torch.cat([images.scores(rows).double().cpu() for rows, _ in _pairs(count, 1, images.size)])
    found = np.full((count, place.channels), np.nan, np.float32)
    numbers = torch.from_numpy(np.asarray(channels, np.int64))
    values_in = torch.from_numpy(np.asarray(fill, np.float32))
    for rows, which in _pairs(count, len(numbers), images.size):
        chosen = numbers[which]

        def without(values: Tensor, chosen: Tensor = chosen) -> Tensor:
            wanted = torch.nn.functional.one_hot(_filled(chosen, len(values)), place.channels).bool()
            given = values_in[None].expand(len(values), -1)
            mask, fillings = (place.spread(item.to(values.device), values) for item in (wanted, given))
            return torch.where(mask, fillings.to(values.dtype), values)

        with _replaced(images, place, without):
            left = images.scores(rows).double().cpu()
        found[rows.numpy(), chosen.numpy()] = (whole[rows] - left).float().numpy()
    return found


def _pairs(samples: int, each: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(sample numbers, numbers below `each`) of all pairs of the two, at most `size` at once."""
    for start in range(0, samples * each, size):
        both = torch.arange(start, min(start + size, samples * each))
        yield both // each, both % each


def _filled(values: Tensor, count: int) -> Tensor:
    """`values` (row,) with the first repeated up to `count`, for a network that takes no other batch."""
    missing = count - len(values)
    return torch.cat([values, values[:1].expand(missing)]) if missing > 0 else values


def _replaced(
    images: ScoredImages, place: ChannelPlace, change: Callable[[Tensor], Tensor]
) -> AbstractContextManager[None]:
    """While it lasts `change` (sample, …) is applied to what the place puts out, sample axis first."""
    axis = place.at.info.sample_axis

    def replace(info: LayerInfo, values: Tensor) -> Tensor:
        return change(values.movedim(axis, 0)).movedim(0, axis)

    return replaced_outputs(images.network.network, [place.at.info], replace)
