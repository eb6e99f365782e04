"""Which pixels a unit can see: found by letting what is no number spread through the network, for any architecture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stratascope.tasks.capture.extract import watched
from stratascope.tasks.vision.image_network import ImageNetwork
from stratascope.tasks.vision.spatial_layers import SpatialLayer


@dataclass(frozen=True)
class ReceptiveField:
    """For each row and column of a layer's grid, the span of pixels that it depends on."""

    rows: np.ndarray
    """int16 (y, 2): first pixel row and the one after the last."""
    columns: np.ndarray
    """int16 (x, 2)."""

    def boxes(self, places: np.ndarray) -> np.ndarray:
        """int16 (…, 4): first row, row after the last, first column, column after the last, of `places` (…, 2) as (y, x)."""
        return np.concatenate([self.rows[places[..., 0]], self.columns[places[..., 1]]], -1)


@torch.no_grad()
def receptive_fields(
    network: ImageNetwork, picture: Tensor, layers: Sequence[SpatialLayer], batch_size: int
) -> dict[str, ReceptiveField]:
    """The receptive field of each of `layers` on inputs of the shape of `picture` (channel, y, x).

    One row of pixels at a time, then one column, is made NaN: whatever can see it becomes NaN, with any weights, even
    zero ones, through normalisation, activation and pooling alike. Where a layer's field is no box, this is the box
    around it. Padding has no pixels, so boxes end at the border of the picture. A position that no pixel reaches
    (or a network that mends NaN) is given the whole picture.
    """
    height, width = picture.shape[1:]
    spans = []
    for axis, count in ((1, height), (2, width)):
        seen: dict[str, list[np.ndarray]] = {layer.name: [] for layer in layers}
        for start in range(0, count, batch_size):
            lines = range(start, min(start + batch_size, count))
            poisoned = picture[None].repeat(len(lines), 1, 1, 1)
            for number, line in enumerate(lines):
                poisoned[number].select(axis, line).fill_(torch.nan)
            for name, reached in _reached(network, poisoned, layers, axis).items():
                seen[name].append(reached[: len(lines)])
        spans.append({name: _spans(np.concatenate(parts), count) for name, parts in seen.items()})
    return {layer.name: ReceptiveField(spans[0][layer.name], spans[1][layer.name]) for layer in layers}


def _reached(
    network: ImageNetwork, inputs: Tensor, layers: Sequence[SpatialLayer], axis: int
) -> dict[str, np.ndarray]:
    """bool (sample, place along `axis`) by layer: where anything is NaN."""
    by_info = {layer.info: layer for layer in layers}
    found: dict[str, np.ndarray] = {}

    def receive(info: object, values: Tensor) -> None:
        layer = by_info[info]  # type: ignore[index]
        lost = torch.isnan(layer.on_grid(values))
        found[layer.name] = lost.any(1).any(2 if axis == 1 else 1).cpu().numpy()

    with watched(network.network, [layer.info for layer in layers], receive):
        network.outputs(inputs)
    return found


def _spans(reached: np.ndarray, count: int) -> np.ndarray:
    """int16 (place, 2): the span of pixel lines (line, place) that reach each place."""
    spans = np.empty((reached.shape[1], 2), np.int16)
    for place, lines in enumerate(reached.T):
        hit = np.flatnonzero(lines)
        spans[place] = (hit[0], hit[-1] + 1) if len(hit) else (0, count)
    return spans
