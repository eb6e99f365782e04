"""Attribution between positions: from a class to the places of a layer, and from a place of one layer to those of another."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stratascope.errors import DoesNotApply
from stratascope.tasks.capture.layers import LayerInfo
from stratascope.tasks.vision.image_network import ImageNetwork, layer_pass, replaced_outputs
from stratascope.tasks.vision.spatial_layers import SpatialLayer
from stratascope.tasks.vision.targets import Target


def class_maps(
    network: ImageNetwork,
    inputs: Tensor,
    indices: Tensor,
    target: Target,
    layers: list[SpatialLayer],
    batch_size: int,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """float32 (sample, y, x) by layer: Σ over the channels of activation × gradient of the score; and the scores (sample,).

    Over all positions it adds up to what the channels' contributions by gradient × activation add up to (Olah et al. 2018).
    Raises DoesNotApply where a layer carries no gradient.
    """
    maps: dict[str, list[np.ndarray]] = {layer.name: [] for layer in layers}
    scores = []
    size = network.fixed_batch_size or batch_size
    for start in range(0, len(inputs), size):
        rows = slice(start, start + size)
        passed = layer_pass(network, inputs[rows], indices[rows], target, [layer.info for layer in layers])
        scores.append(passed.scores[: len(inputs[rows])].float().cpu().numpy())
        for layer in layers:
            values = passed.activations[layer.name].float() * passed.gradients[layer.name].float()
            maps[layer.name].append(layer.on_grid(values).sum(1).cpu().numpy())
    return {name: np.concatenate(parts) for name, parts in maps.items()}, np.concatenate(scores)


def even_cells(size: int, most: int) -> np.ndarray:
    """At most `most` places out of `size`, evenly, none of them at the border where there is room."""
    return np.unique(((np.arange(most) + 0.5) * size / most).astype(int))


def position_links(
    network: ImageNetwork,
    inputs: Tensor,
    lower: SpatialLayer,
    upper: SpatialLayer,
    cells: np.ndarray,
    batch_size: int,
) -> tuple[np.ndarray, np.ndarray]:
    """What each position of `lower` gives to single positions of `upper`: float32 (sample, cell, y, x).

    Σ over the channels of the lower activations × the gradient, by them, of the norm of the upper activations at
    `cells` (cell, 2) as (y, x); and those norms (sample, cell). One pass back for each cell. Where everything between
    is homogeneous (no biases) the links of a cell add up to its norm. Raises DoesNotApply where `upper` does not
    depend on `lower`.
    """
    links, norms = [], []
    size = network.fixed_batch_size or batch_size
    for start in range(0, len(inputs), size):
        part = inputs[start : start + size]
        found, strength = _links(network, part, lower, upper, cells)
        links.append(found)
        norms.append(strength)
    return np.concatenate(links), np.concatenate(norms)


def _links(
    network: ImageNetwork, inputs: Tensor, lower: SpatialLayer, upper: SpatialLayer, cells: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    kept: dict[str, Tensor] = {}

    def keep(info: LayerInfo, values: Tensor) -> Tensor:
        kept[info.name] = values.detach().requires_grad_() if info is lower.info else values
        # What goes on is a copy, so that an in-place operation cannot change what is kept.
        return kept[info.name].clone()

    with torch.enable_grad(), replaced_outputs(network.network, [lower.info, upper.info], keep):
        network.outputs(inputs.detach())
        if lower.name not in kept or upper.name not in kept:
            missing = lower if lower.name not in kept else upper
            raise DoesNotApply(f"layer {missing.name!r} is not reached by a forward pass.")
        above, below = kept[upper.name], kept[lower.name]
        unlinked = f"layer {upper.name!r} does not depend on layer {lower.name!r}: link an earlier one."
        if lower.name == upper.name or not above.requires_grad:
            raise DoesNotApply(unlinked)
        grid = upper.on_grid(above.movedim(upper.info.sample_axis, 0))[: len(inputs)]
        strengths = torch.stack([torch.linalg.vector_norm(grid[:, :, y, x], dim=1) for y, x in cells.tolist()], 1)
        found = []
        for cell in range(len(cells)):
            total = strengths[:, cell].sum()
            (gradient,) = torch.autograd.grad(total, [below], retain_graph=True, allow_unused=True)
            if gradient is None:
                raise DoesNotApply(unlinked)
            product = (below.detach() * gradient).movedim(lower.info.sample_axis, 0)[: len(inputs)]
            found.append(lower.on_grid(product).float().sum(1).cpu().numpy())
    return np.stack(found, 1), strengths.detach().float().cpu().numpy()


def effective_share(maps: np.ndarray) -> np.ndarray:
    """float64 (…,): (Σ|m|)² / (n Σ m²) of maps (…, y, x): 1 where all n positions weigh alike, 1/n for one; NaN for zero maps."""
    sizes = np.abs(maps.astype(np.float64)).reshape(*maps.shape[:-2], -1)
    squares = np.square(sizes).sum(-1)
    total = np.square(sizes.sum(-1))
    return np.divide(total, squares * sizes.shape[-1], out=np.full(squares.shape, np.nan), where=squares > 0)


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """float64 (sample,): cosine of two maps (sample, y, x); NaN where one of them is zero."""
    one, other = (maps.reshape(len(maps), -1).astype(np.float64) for maps in (first, second))
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return np.divide((one * other).sum(1), norms, out=np.full(len(norms), np.nan), where=norms > 0)


def link_distances(links: np.ndarray, cells: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """float64 (sample, cell): how far the links (sample, cell, y, x) reach from their own cell, weighted by their size.

    Between the centres of the cells, of `grid` (height, width) and of the links' own, in sides of the picture. NaN where
    a cell has no link.
    """
    sizes = np.abs(links.astype(np.float64))
    places = [(np.arange(size) + 0.5) / size for size in links.shape[2:]]
    centres = (cells + 0.5) / np.asarray(grid)
    apart = np.hypot(
        places[0][None, :, None] - centres[:, 0, None, None], places[1][None, None, :] - centres[:, 1, None, None]
    )
    total = sizes.sum((2, 3))
    return np.divide((sizes * apart).sum((2, 3)), total, out=np.full(total.shape, np.nan), where=total > 0)
