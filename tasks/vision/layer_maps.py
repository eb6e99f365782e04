"""What layers put out for a few pictures, and how much of it is kept: the same channels at every checkpoint, in few bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stratascope.errors import DoesNotApply

if TYPE_CHECKING:
    from torch import Tensor

    from stratascope.tasks.capture.layers import LayerInfo
    from stratascope.tasks.vision.image_network import ImageNetwork
    from stratascope.tasks.vision.spatial_layers import SpatialLayer

_ROUNDING = 2.0**-11
"""Relative error of a number in half precision."""
_FINEST = 1 / 128
"""Of a layer's scale; half precision must be exact to `_ROUNDING` down to this size."""


def layer_maps(
    network: ImageNetwork, inputs: np.ndarray, layers: Sequence[SpatialLayer], batch_size: int
) -> dict[str, np.ndarray]:
    """float32 (sample, channel, y, x) by layer: raw and signed, as each layer puts it out.

    Copies are taken before an in-place operation can overwrite them. Raises DoesNotApply where a layer is not reached.
    """
    import torch

    from stratascope.tasks.vision.image_network import replaced_outputs

    kept: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
    infos = [layer.info for layer in layers]

    def keep(layer: LayerInfo, values: Tensor) -> Tensor:
        kept[layer.name].append(values.movedim(layer.sample_axis, 0).float().cpu())
        # What goes on is a tensor of its own, so that an in-place operation cannot change what is kept.
        return values.clone()

    found: dict[str, list[np.ndarray]] = {layer.name: [] for layer in layers}
    size = network.fixed_batch_size or batch_size
    with torch.no_grad(), replaced_outputs(network.network, infos, keep):
        for part in torch.as_tensor(inputs).split(size):
            network.outputs(part)
            for layer in layers:
                if not kept[layer.name]:
                    raise DoesNotApply(f"layer {layer.name!r} is not reached by a forward pass.")
                # A network of fixed batch size is given more samples than were asked for.
                values = layer.on_grid(torch.cat(kept[layer.name])[: len(part)])
                found[layer.name].append(np.ascontiguousarray(values.numpy()))
                kept[layer.name].clear()
    return {name: np.concatenate(parts) for name, parts in found.items()}


def kept_channels(sizes: Mapping[str, tuple[int, int]], budget: int) -> dict[str, np.ndarray]:
    """int64 (channel,) by name: the numbers of the channels that are kept, at least one of each.

    `sizes` gives for each name how many channels there are and how many bytes one takes. Small layers keep all; the rest
    share equally what of the `budget` (bytes) is left, each with channels evenly over their numbers. Only sizes count, so
    that the same channels are kept at every checkpoint.
    """
    chosen: dict[str, np.ndarray] = {}
    left = budget
    order = sorted(sizes, key=lambda name: (sizes[name][0] * sizes[name][1], name))
    for place, name in enumerate(order):
        channels, each = sizes[name]
        share = left // (len(order) - place)
        count = int(min(channels, max(1, share // max(1, each))))
        chosen[name] = np.arange(count, dtype=np.int64) * channels // count
        left = max(0, left - count * each)
    return {name: chosen[name] for name in sizes}


def narrowed(values: np.ndarray, scale: float) -> np.ndarray:
    """`values` float32 (sample, channel, …) as float16 where that loses nothing that can be seen, else as they are.

    Half precision must hold every value to 1 in 2,048 of its size, or of a 128th of `scale` where it is smaller, and may
    turn no channel to zero that is not zero (featurevis P30: below 6e-8 it has no numbers, above 65,504 none either).
    """
    if not np.isfinite(values).all():
        return values
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float16)
    back = narrow.astype(np.float32)
    allowed = _ROUNDING * np.maximum(np.abs(values), scale * _FINEST)
    if not np.isfinite(back).all() or bool((np.abs(back - values) > allowed).any()):
        return values
    vanished = zero_channels(back) & ~zero_channels(values)
    return values if vanished.any() else narrow


def zero_channels(values: np.ndarray) -> np.ndarray:
    """bool (channel,): whether a channel of (sample, channel, …) is zero on every sample and everywhere."""
    return ~(values != 0).any(axis=(0, *range(2, values.ndim)))


def map_scale(values: np.ndarray) -> float:
    """The 99th percentile of the sizes of `values`; NaN where one is not finite."""
    if not np.isfinite(values).all():
        return float("nan")
    return float(np.quantile(np.abs(values), 0.99))


def relative_change(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """float64 (sample,) from 0 (equal) to 2 (opposite): ‖b − a‖ / ((‖a‖ + ‖b‖) / 2) of each sample's maps.

    Both are (sample, …). 0 where both are zero; NaN where one is not finite.
    """
    first, second = (item.reshape(len(item), -1).astype(np.float64) for item in (before, after))
    sizes = (np.linalg.norm(first, axis=1) + np.linalg.norm(second, axis=1)) / 2
    moved = np.linalg.norm(second - first, axis=1)
    return np.where(sizes == 0, 0.0, moved / np.where(sizes == 0, 1.0, sizes))
