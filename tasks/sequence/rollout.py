"""Attention through all layers multiplied up, the residual connections counted in (Abnar and Zuidema 2020, section 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Fusion = Literal["mean", "max", "min"]


def with_residual(
    weights: Tensor, real: Tensor | None = None, share: float = 0.5, fusion: Fusion = "mean"
) -> Tensor:
    """float64 (sample, query, key): `share` × identity + (1 − `share`) × the heads of `weights` (sample, head, token, token)
    taken together; each row divided by its own sum.

    `real` (sample, token) is true for real tokens; padded ones attend to themselves and are attended to by none.
    """
    weights = weights.double()
    heads = {"mean": weights.mean(1), "max": weights.amax(1), "min": weights.amin(1)}[fusion]
    itself = torch.eye(weights.shape[-1], dtype=torch.float64, device=weights.device).expand_as(heads)
    if real is not None:
        pairs = real[:, :, None] & real[:, None, :]
        heads = torch.where(pairs, heads, torch.where(real[:, :, None], 0, itself))
    # The heads' largest or smallest weights do not sum to 1, and neither do rows that lost their padded keys.
    left = heads.sum(-1, keepdim=True)
    heads = torch.where(left > 0, heads / left.clamp_min(1e-30), itself)
    return share * itself + (1 - share) * heads


def rollout(layers: Sequence[Tensor]) -> list[Tensor]:
    """(sample, query, key) for each depth: A_1, A_2 A_1, … of `layers`, as from `with_residual`, the first layer first.

    Rows sum to 1. With depth the rows become alike: look at all depths, and at the spread of the rows.
    """
    found: list[Tensor] = []
    for layer in layers:
        found.append(layer @ found[-1] if found else layer)
    return found
