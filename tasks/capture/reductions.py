"""Reductions of a layer's output, on the device, before anything is copied."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from stratascope.tasks.capture.layers import LayerInfo


def units_last(values: Tensor, layer: LayerInfo) -> Tensor:
    """`values` (sample, …) as (sample, position, unit): maps by channel, sequences by feature."""
    if values.ndim == 2:
        return values[:, None, :]
    if layer.dims[0] == "channel":
        return values.flatten(2).transpose(1, 2)
    return values.flatten(1, -2) if values.ndim > 3 else values


def projection_matrix(width: int, count: int, name: str) -> Tensor:
    """A seeded Gaussian matrix (width, count), scaled so that norms are kept on average."""
    seed = int.from_bytes(hashlib.sha256(f"{name}/{width}/{count}".encode()).digest()[:7], "little")
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(width, count, generator=generator) / count**0.5


def reduce(values: Tensor, reduction: str, layer: LayerInfo, projection: Tensor | None) -> Tensor:
    """`values` (sample, …) reduced as `reduction` says."""
    if reduction == "full" or values.ndim == 2:
        reduced = values
    elif reduction == "pooled":
        reduced = units_last(values, layer).mean(1) if layer.dims[0] != "channel" else values.flatten(2).mean(2)
    elif reduction == "max":
        reduced = units_last(values, layer).amax(1) if layer.dims[0] != "channel" else values.flatten(2).amax(2)
    elif reduction == "last":
        reduced = units_last(values, layer)[:, -1]
    elif reduction == "cls":
        reduced = units_last(values, layer)[:, 0]
    else:
        reduced = values.flatten(1)
    if reduction == "projection":
        assert projection is not None
        reduced = values.flatten(1).float() @ projection
    return reduced


def reduced_dims(reduction: str, layer: LayerInfo, rank: int) -> tuple[str, ...]:
    """Names of the dimensions of what `reduce` returns."""
    if reduction == "full":
        return ("sample", *layer.dims)
    if reduction == "projection":
        return ("sample", "projected_feature")
    if reduction == "flat":
        return ("sample", "flat_feature")
    return ("sample", "channel" if layer.dims and layer.dims[0] == "channel" else "feature")
