"""Class activation maps of one layer, all from one pass: its activations, and the gradient of the score by them.

Every function takes activations A and gradients G (sample, channel, y, x) and returns maps (sample, y, x), before any
ReLU of the map as a whole, unscaled, and what each channel weighs (sample, channel) where the map is a weighted sum of
activations. Sums start at 0. Where a ratio has no denominator the channel weighs 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from stratascope.tasks.vision.chosen_samples import sample_generator

_NEARLY_NOTHING = 1e-6
"""A sum smaller than this share of its terms' sizes is rounding, and no denominator."""


_POWERS, _ROUNDINGS = 8, 16
_DIRECTIONS, _ROUNDS, _CONVERGED = 4, 4, 1e-9


class WeightedMaps(NamedTuple):
    """Maps of several samples, and where they come from."""

    maps: Tensor
    """(sample, y, x), signed."""
    weights: Tensor | None = None
    """(sample, channel)."""


def weighted_sum(activations: Tensor, weights: Tensor) -> WeightedMaps:
    """Σ_k w_k A_k with `weights` (sample, channel)."""
    return WeightedMaps(torch.einsum("nc,ncyx->nyx", weights, activations), weights)


def grad_cam(activations: Tensor, gradients: Tensor) -> WeightedMaps:
    """w_k is the mean of G_k over positions (Selvaraju et al. 2017, eq. 1 and 2)."""
    return weighted_sum(activations, gradients.mean((2, 3)))


def grad_cam_plus_plus(activations: Tensor, gradients: Tensor) -> WeightedMaps:
    """w_k = Σ α_k max(G_k, 0), α = G² / (2 G² + ΣA · G³) (Chattopadhyay et al. 2018, eq. 5 and 19).

    The formula holds where the score is exp(logit): its second and third derivative are then powers of G, and the factor
    exp(logit), the same for all channels, is left out. Here α = 1 / (2 + ΣA · G), the same number, which does not lose
    gradients so small that their squares vanish. Where activations are negative the denominator can reach 0; α is 0 there.
    """
    denominator = 2 + activations.sum((2, 3), keepdim=True) * gradients
    alpha = torch.where(denominator.abs() > _NEARLY_NOTHING, 1 / denominator, 0.0)
    return weighted_sum(activations, (alpha * gradients.clamp(min=0)).sum((2, 3)))


def x_grad_cam(activations: Tensor, gradients: Tensor) -> WeightedMaps:
    """w_k = Σ G_k A_k / Σ A_k over positions (Fu et al. 2020, eq. 8); 0 where Σ A_k is 0."""
    total = activations.sum((2, 3))
    sound = total.abs() > _NEARLY_NOTHING * activations.abs().sum((2, 3))
    ratio = (gradients * activations).sum((2, 3)) / torch.where(sound, total, 1.0)
    return weighted_sum(activations, torch.where(sound | ~torch.isfinite(total), ratio, 0.0))


def hi_res_cam(activations: Tensor, gradients: Tensor) -> WeightedMaps:
    """Σ_k G_k ⊙ A_k (Draelos and Carin 2020, eq. 5)."""
    return WeightedMaps((gradients * activations).sum(1))


def element_wise_cam(activations: Tensor, gradients: Tensor) -> WeightedMaps:
    """Σ_k max(G_k ⊙ A_k, 0)."""
    return WeightedMaps((gradients * activations).clamp(min=0).sum(1))


def layer_cam(activations: Tensor, gradients: Tensor) -> WeightedMaps:
    """Σ_k max(G_k, 0) ⊙ A_k (Jiang et al. 2021, eq. 6 and 7)."""
    return WeightedMaps((gradients.clamp(min=0) * activations).sum(1))


def eigen_cam(activations: Tensor, gradients: Tensor) -> WeightedMaps:
    """A projected on its first right singular vector (Muhammad and Yeasin 2020, eq. 2 and 3); blind to the class."""
    return first_component(activations)


def eigen_grad_cam(activations: Tensor, gradients: Tensor) -> WeightedMaps:
    """The same of G ⊙ A: the weights are those of its channels, not of activations alone."""
    return first_component(gradients * activations)


def fem(activations: Tensor, gradients: Tensor) -> WeightedMaps:
    """Σ_k mean(A_k) · [A_k > mean + 2 standard deviations] (Fuad et al. 2020); blind to the class."""
    mean = activations.mean((2, 3))
    centred = activations - mean[..., None, None]
    strong = centred > 2 * centred.square().mean((2, 3), keepdim=True).sqrt()
    marked = torch.where(torch.isfinite(activations), strong.to(activations.dtype), activations)
    return weighted_sum(marked, mean)


def first_component(values: Tensor) -> WeightedMaps:
    """`values` (sample, channel, y, x) as a matrix position × channel, times its first right singular vector.

    Not centred, as the paper has it. A singular vector has no sign of its own: it is given the one with which its
    entries add up to more than 0 (then the map agrees with the sum over channels), and where they add up to nothing, the one
    with which the largest entry is positive. Where two singular values are equal the direction is arbitrary. Computed
    in float32 where that bounds the vector's error by 2e-6, for other samples in float64.
    """
    count, channels, height, width = values.shape
    largest = torch.maximum(values.amax((1, 2, 3)), -values.amin((1, 2, 3)))
    sound = torch.isfinite(largest)
    dtype = torch.promote_types(values.dtype, torch.float32)
    scale = torch.where(sound & (largest > 0), largest, 1.0)[:, None, None].to(dtype)
    known = values if bool(sound.all()) else torch.where(sound[:, None, None, None], values, 0.0)
    matrix = (known.flatten(2).to(dtype) / scale).mT
    wide = channels > height * width
    sides = matrix.mT if wide else matrix
    direction, found = _top_vectors_soon(sides.mT @ sides)
    if not bool(found.all()):
        left = sides[~found].double()
        direction[~found] = _top_vectors(left.mT @ left).to(dtype)
    if wide:
        direction = functional.normalize(direction.mT @ matrix, dim=2).mT
    direction = torch.where((sound & (largest > 0))[:, None, None], direction, 0.0)
    direction = torch.where(_turned(direction), -direction, direction)
    maps = (direction.mT @ matrix.mT * scale).reshape(count, height, width)
    maps[~sound] = torch.nan
    return WeightedMaps(maps.to(values.dtype), direction[..., 0].to(values.dtype))


def _top_vectors_soon(products: Tensor) -> tuple[Tensor, Tensor]:
    """(sample, row, 1): the top eigenvector of each positive matrix (sample, row, row), and bool (sample,): whether it is.

    The best vector of a Krylov space (the Rayleigh-Ritz procedure). Its error is at most what it misses of being an
    eigenvector by the gap to the next eigenvalue (Davis and Kahan 1970); that bound decides, sample by sample. Eigenvalues
    closer than their rounding count as equal.
    """
    rows = products.shape[1]
    step = torch.from_numpy(_without_pattern(rows, 1)).to(products).expand(len(products), rows, 1)
    steps = []
    for _ in range(min(_POWERS, rows)):
        step = functional.normalize(_times(products, step), dim=1)
        steps.append(step)
    basis = torch.linalg.qr(torch.cat(steps, 2))[0]
    grown = _times(products, basis)
    sizes, inner = torch.linalg.eigh(basis.mT @ grown)
    vectors = basis @ inner[:, :, -1:]
    missed = (grown @ inner[:, :, -1:] - sizes[:, -1, None, None] * vectors).norm(dim=1)[:, 0]
    gap = sizes[:, -1] - (sizes[:, -2] if rows > 1 else 0)
    return vectors, missed <= _ROUNDINGS * torch.finfo(products.dtype).eps * gap


def _times(products: Tensor, columns: Tensor) -> Tensor:
    """`products` @ `columns` of symmetric matrices; a few rows times a matrix take a fraction of the time of the reverse."""
    return (columns.mT @ products).mT


def _without_pattern(rows: int, columns: int) -> np.ndarray:
    """Numbers without a pattern: no eigenvector is at a right angle to them."""
    return np.random.Generator(np.random.Philox(0)).uniform(0.5, 1.5, (rows, columns))


def _top_vectors(products: Tensor) -> Tensor:
    """(sample, row, 1): the eigenvector of the largest eigenvalue of each positive matrix (sample, row, row).

    A few directions are multiplied together and kept apart, and the best one among them is taken: that finds it unless
    as many eigenvalues lie close to the largest. For the rest the solver is asked for that one vector.
    """
    from scipy.linalg import eigh

    rows = products.shape[1]
    start = torch.from_numpy(_without_pattern(rows, min(_DIRECTIONS, rows))).to(products)
    basis = torch.linalg.qr(products @ start)[0]
    for _ in range(_ROUNDS):
        basis = torch.linalg.qr(_times(products, _times(products, basis)))[0]
    grown = _times(products, basis)
    inner = torch.linalg.eigh(basis.mT @ grown)[1]
    vectors = basis @ inner[:, :, -1:]
    grown = grown @ inner[:, :, -1:]
    size = grown.norm(dim=1, keepdim=True)
    rest = (grown - size * vectors).norm(dim=1, keepdim=True)
    left = (rest > _CONVERGED * size)[:, 0, 0].nonzero()[:, 0].tolist()
    for sample in left:
        matrix = products[sample].cpu().numpy()
        vector = eigh(matrix, subset_by_index=(rows - 1, rows - 1), driver="evx", check_finite=False)[1]
        vectors[sample] = torch.from_numpy(vector).to(products)
    return vectors


def _turned(directions: Tensor) -> Tensor:
    """bool (sample, 1, 1): which vectors (sample, channel, 1) are to be turned about."""
    sizes = directions.abs()
    first = (sizes >= 0.999 * sizes.amax(1, keepdim=True)).int().argmax(1, keepdim=True)
    total = directions.sum(1, keepdim=True)
    decisive = total.abs() > _NEARLY_NOTHING * directions.shape[1] ** 0.5
    return torch.where(decisive, total, torch.take_along_dim(directions, first, 1)) < 0


GRADIENT_MAPS: dict[str, Callable[[Tensor, Tensor], WeightedMaps]] = {
    "grad_cam": grad_cam, "grad_cam_plus_plus": grad_cam_plus_plus, "x_grad_cam": x_grad_cam,
    "hi_res_cam": hi_res_cam, "element_wise_cam": element_wise_cam, "layer_cam": layer_cam, "eigen_cam": eigen_cam,
    "eigen_grad_cam": eigen_grad_cam, "fem": fem,
}  # fmt: skip
"""Those that need no more than one pass forward and one back, by name."""


def random_cam(activations: Tensor, sample_id: np.ndarray, layer: str, seed: int) -> WeightedMaps:
    """Each channel weighs a random number from -1 to 1 that belongs to the sample and the layer: what no method may lose to.

    The weights are the same at every checkpoint.
    """
    channels = activations.shape[1]
    drawn = [sample_generator(name, seed, f"random_cam:{layer}").uniform(-1, 1, channels) for name in sample_id]
    weights = torch.from_numpy(np.stack(drawn)).to(activations)
    return weighted_sum(activations, weights)


def edges(inputs: Tensor, shape: tuple[int, int]) -> Tensor:
    """(sample, y, x) of `shape`: the size of the Sobel gradient of each picture's channel mean, averaged within the cells.

    It knows nothing of the network; the picture's border is repeated outwards.
    """
    grey = functional.pad(inputs.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]).to(inputs)
    slopes = functional.conv2d(grey, torch.stack([across, across.T])[:, None])
    return functional.adaptive_avg_pool2d(slopes.norm(dim=1, keepdim=True), shape)[:, 0]


def enlarged(maps: Tensor, shape: tuple[int, int]) -> Tensor:
    """(sample, y, x) of `shape` (height, width), bilinear between cell centres."""
    return functional.interpolate(maps[:, None], shape, mode="bilinear", align_corners=False)[:, 0]
