"""Reductions of a layer's output, on the device, before anything is copied."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from stratascope.tasks.capture.layers import LayerInfo


def samples_first(values: Tensor, layer: LayerInfo) -> Tensor:
    """`values` with the sample axis in front."""
    return values if layer.sample_axis == 0 else values.movedim(layer.sample_axis, 0)


def by_unit(values: Tensor, layer: LayerInfo) -> Tensor:
    """`values` (sample, …) as (sample, unit, position), a view where memory allows it.

    A layer whose axis of units is not known counts as one unit.
    """
    axis = layer.unit_axis
    if values.ndim == 1:
        return values[:, None, None]
    if values.ndim == 2:
        return values[:, :, None]
    return values.flatten(1)[:, None, :] if axis is None else values.movedim(axis + 1, 1).flatten(2)


def projection_matrix(width: int, count: int, name: str) -> Tensor:
    """A seeded Gaussian matrix (width, count), scaled so that norms are kept on average."""
    seed = int.from_bytes(hashlib.sha256(f"{name}/{width}/{count}".encode()).digest()[:7], "little")
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(width, count, generator=generator) / count**0.5


def mean_over_positions(units: Tensor, mask: Tensor | None) -> Tensor:
    """(sample, unit, position) → (sample, unit), over the positions that `mask` (sample, position) lets through."""
    if mask is None:
        return units.mean(2) if units.shape[2] != 1 else units[:, :, 0]
    weights = mask.to(units.dtype)
    return torch.einsum("sup,sp->su", units, weights) / weights.sum(1, keepdim=True).clamp(min=1)


def max_over_positions(units: Tensor, mask: Tensor | None) -> Tensor:
    """(sample, unit, position) → (sample, unit), the largest value at a real position."""
    if mask is not None:
        units = units.masked_fill(~mask[:, None, :], -torch.inf)
    return units.amax(2) if units.shape[2] != 1 else units[:, :, 0]


def reduce(
    values: Tensor, units: Tensor, reduction: str, layer: LayerInfo, mask: Tensor | None, projection: Tensor | None
) -> Tensor:
    """`values` (sample, …), seen as `units` (sample, unit, position), reduced as `reduction` says.

    What has no axis of units that is known is kept `full`, whatever was asked for but `flat` and `projection`.
    """
    if reduction == "flat":
        return values.flatten(1)
    if reduction == "projection":
        assert projection is not None
        return values.flatten(1).float() @ projection
    if reduction == "full" or values.ndim <= 2 or layer.unit_axis is None:
        return values
    if reduction == "pooled":
        return mean_over_positions(units, mask)
    if reduction == "max":
        return max_over_positions(units, mask)
    if reduction == "cls":
        return units[:, :, 0]
    if mask is None:
        return units[:, :, -1]
    positions = torch.arange(mask.shape[1], device=mask.device)
    # The last real token, whatever the side of the padding.
    last = torch.where(mask, positions, -1).amax(1).clamp(min=0)
    return units[torch.arange(len(units), device=units.device), :, last]


def effective_reduction(reduction: str, layer: LayerInfo) -> str:
    """The reduction under which the result is stored: `full` where the axis of units is not known."""
    if reduction in ("full", "flat", "projection") or len(layer.shape) < 2 or layer.unit_axis is not None:
        return reduction
    return "full"


def reduced_dims(reduction: str, layer: LayerInfo) -> tuple[str, ...]:
    """Names of the dimensions of what `reduce` returns."""
    if reduction == "projection":
        return ("sample", "projected_feature")
    if reduction == "flat":
        return ("sample", "flat_feature")
    if reduction == "full" or layer.unit_axis is None:
        return ("sample", *layer.dims)
    return ("sample", layer.dims[layer.unit_axis])


def to_stored(values: Tensor, dtype: str) -> tuple[np.ndarray, int]:
    """`values` as an array to store in `dtype`, and how many finite numbers it could not hold."""
    if dtype == "float32":
        return values.float().cpu().numpy(), 0
    narrowed = values.to(getattr(torch, dtype))
    lost = int((torch.isinf(narrowed) & torch.isfinite(values)).sum())
    if dtype == "bfloat16":
        return narrowed.contiguous().cpu().view(torch.int16).numpy().view(np.uint16), lost
    return narrowed.cpu().numpy(), lost


def stored_dtype(dtype: str) -> np.dtype:
    """The dtype of the array that `to_stored` makes."""
    return np.dtype("uint16" if dtype == "bfloat16" else dtype)
