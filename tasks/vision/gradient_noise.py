"""What the gradients of single samples say together: noise, signal, and whether classes pull the same way.

Only sums, norms and inner products are kept of the gradients, by layer; the empty layer name stands for the whole network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from stratascope.tasks.vision.sample_gradients import layer_of, squared_norms

if TYPE_CHECKING:
    from torch import Tensor

GROUPS = 10
"""Samples are put into so many groups, one of which is left out at a time for intervals."""
_NORMAL = 1.959964


@dataclass
class GradientSums:
    """Accumulates the gradients of single samples, whatever the batches they come in."""

    groups: np.ndarray
    """int64 (sample,): the group of each sample, for intervals."""
    classes: np.ndarray | None = None
    """int64 (sample,): the class of each from 0; None where classes are not told apart."""
    class_count: int = 0
    squared: dict[str, list[np.ndarray]] = field(default_factory=dict)
    """By layer, squared norms float64 (sample,), in pieces."""
    non_finite: int = 0
    _group_sums: dict[str, Tensor] = field(default_factory=dict)
    _class_sums: dict[str, Tensor] = field(default_factory=dict)
    _squares: dict[str, Tensor] = field(default_factory=dict)

    def add(self, rows: slice, gradients: Mapping[str, Tensor]) -> None:
        """Add the gradients (sample, …) by parameter of the samples at `rows`."""
        import torch

        by_layer: dict[str, np.ndarray] = {}
        whole = np.zeros(rows.stop - rows.start)
        for name, squares in squared_norms(dict(gradients)).items():
            by_layer[layer_of(name)] = by_layer.get(layer_of(name), 0.0) + squares
            whole += squares
        self.non_finite += int((~np.isfinite(whole)).sum())
        for layer, squares in by_layer.items():
            self.squared.setdefault(layer, []).append(squares)
        self.squared.setdefault("*", []).append(whole)
        for name, values in gradients.items():
            flat = values.flatten(1).double()
            self._add(
                self._group_sums, name, torch.from_numpy(self.groups[rows]), flat, int(self.groups.max()) + 1
            )
            if self.classes is not None:
                self._add(self._class_sums, name, torch.from_numpy(self.classes[rows]), flat, self.class_count)
            by_weight = flat.square().sum(0)
            self._squares[name] = self._squares[name] + by_weight if name in self._squares else by_weight

    @staticmethod
    def _add(sums: dict[str, Tensor], name: str, places: Tensor, flat: Tensor, count: int) -> None:
        if name not in sums:
            sums[name] = flat.new_zeros(count, flat.shape[1])
        sums[name].index_add_(0, places, flat)

    def norms(self) -> dict[str, np.ndarray]:
        """By layer, and as "" for the whole network: the norm of each sample's gradient, float64 (sample,)."""
        found = {layer: np.sqrt(np.concatenate(parts)) for layer, parts in self.squared.items()}
        return {layer if layer != "*" else "": values for layer, values in found.items()}

    def group_products(self) -> dict[str, np.ndarray]:
        """By layer and "": inner products float64 (group, other group) of the groups' summed gradients."""
        return _products(self._group_sums)

    def class_products(self) -> dict[str, np.ndarray]:
        """By layer and "": inner products float64 (class, other class) of the classes' summed gradients."""
        return _products(self._class_sums)

    def signal_to_noise(self) -> dict[str, tuple[float, int]]:
        """By layer and "": the mean over weights of (mean² − s²/n)/s², and how many weights have any spread.

        s² is the unbiased variance over the samples, so the numerator's expectation is the squared true mean. Weights
        whose gradient is the same for all samples (such as those of dead units) are left out; NaN where all are.
        """
        count = len(self.groups)
        sums: dict[str, list[float]] = {}
        for name, squares in self._squares.items():
            mean = self._group_sums[name].sum(0) / count
            variance = (squares - count * mean.square()).clamp(min=0) / max(1, count - 1)
            # Rounding leaves a spread of about 1e-16 of the squares where there is none.
            spread = variance > 1e-12 * squares / count
            ratio = (mean[spread].square() - variance[spread] / count) / variance[spread]
            for layer in dict.fromkeys((layer_of(name), "")):
                total, weights = sums.setdefault(layer, [0.0, 0])
                sums[layer] = [total + float(ratio.sum()), weights + int(spread.sum())]
        return {
            layer: (total / weights if weights else math.nan, int(weights))
            for layer, (total, weights) in sums.items()
        }


def _products(sums: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name, values in sums.items():
        product = (values @ values.T).numpy()
        for layer in dict.fromkeys((layer_of(name), "")):
            found[layer] = found.get(layer, 0.0) + product
    return found


@dataclass(frozen=True)
class Noise:
    """How the gradient of one sample differs from the mean over all."""

    mean_norm: float
    """Norm of the mean gradient of the samples at hand."""
    variance: float
    """Unbiased estimate of tr Σ, the total variance of a single sample's gradient."""
    signal: float
    """Unbiased estimate of |G|², the squared norm of the true gradient; below 0 where noise hides it."""

    @property
    def scale(self) -> float:
        """B_simple = tr Σ / |G|² (McCandlish et al. 2018, eq. 2.9); NaN where the signal is not above 0."""
        return self.variance / self.signal if self.signal > 0 else math.nan


def gradient_noise(count: int, mean_square: float, mean_norm_square: float) -> Noise:
    """From n samples: the mean of the squared norms of their gradients, and the squared norm of their mean gradient.

    McCandlish et al. 2018, appendix A.1, with batches of 1 and of n. With one sample all but the mean is NaN.
    """
    if count < 2:
        return Noise(math.sqrt(max(0.0, mean_norm_square)), math.nan, math.nan)
    variance = max(0.0, count / (count - 1) * (mean_square - mean_norm_square))
    return Noise(math.sqrt(max(0.0, mean_norm_square)), variance, mean_norm_square - variance / count)


def noise_interval(squared: np.ndarray, groups: np.ndarray, products: np.ndarray) -> tuple[float, float]:
    """95 % interval of the noise scale: a jackknife over groups of samples, on the logarithm.

    `squared` (sample,) are squared norms, `groups` (sample,) the samples' groups, `products` (group, other group) the
    inner products of the groups' summed gradients. NaN where a scale without one group has no value.
    """
    sizes = np.bincount(groups)
    sums = np.bincount(groups, squared)
    if len(sizes) < 3:
        return math.nan, math.nan
    whole = _logarithm(int(sizes.sum()), sums.sum(), products.sum())
    left_out = np.array(
        [
            _logarithm(
                int(sizes.sum() - sizes[group]),
                sums.sum() - sums[group],
                products.sum() - 2 * products[group].sum() + products[group, group],
            )
            for group in range(len(sizes))
        ]
    )
    if not np.isfinite(left_out).all() or not math.isfinite(whole):
        return math.nan, math.nan
    spread = math.sqrt((len(sizes) - 1) / len(sizes) * float(((left_out - left_out.mean()) ** 2).sum()))
    return math.exp(whole - _NORMAL * spread), math.exp(whole + _NORMAL * spread)


def _logarithm(count: int, square_sum: float, sum_square: float) -> float:
    scale = gradient_noise(count, square_sum / count, sum_square / count**2).scale
    return math.log(scale) if scale > 0 else math.nan


def class_cosines(products: np.ndarray) -> np.ndarray:
    """float64 (class, other class): cosines of the classes' mean gradients; NaN where one is zero."""
    sizes = np.sqrt(np.diagonal(products))
    with np.errstate(invalid="ignore", divide="ignore"):
        cosines = products / np.outer(sizes, sizes)
    cosines[~np.isfinite(cosines)] = np.nan
    return np.clip(cosines, -1, 1)


def off_diagonal(matrix: np.ndarray) -> np.ndarray:
    """The finite values above the diagonal, one for each pair."""
    values = matrix[np.triu_indices(len(matrix), 1)]
    return values[np.isfinite(values)]


def depth_slope(norms: np.ndarray) -> float:
    """Slope of the power of ten of positive `norms` (layer,) over their place, least squares; NaN below three layers."""
    if len(norms) < 3:
        return math.nan
    return float(np.polyfit(np.arange(len(norms)), np.log10(norms), 1)[0])
