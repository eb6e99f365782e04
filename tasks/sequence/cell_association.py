"""How closely the units of a recurrent layer follow features of the text, and how surely.

States within one text depend on each other, so positions cannot be shuffled. What is shuffled is which text goes with which
states, whole samples at a time: that keeps how states move within a sample, how features do, and what both owe to the mere
place in the sample. For the sum T = Σ_i ⟨s_i, f_i⟩ over samples i, with π a random order of them, Σ_i ⟨s_i, f_π(i)⟩ has the
mean and the variance that Hoeffding 1951 (eq. 4 and 5) gives for C_ij = ⟨s_i, f_j⟩ and its doubly centred D:

    mean = Σ_ij C_ij / n        variance = Σ_ij D_ij² / (n - 1)

D = S̃ F̃ᵀ, where S̃ (sample, time) and F̃ have lost their mean over the samples at each time, so Σ_ij D_ij² is the inner
product of S̃ᵀS̃ and F̃ᵀF̃, each (time, time): the exact variance for all units and features from sums that samples add to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_CHUNK = 4096
"""So many permutations are drawn at once."""


@dataclass
class AssociationSums:
    """Sums over samples, from which `correlations` and `permutation_z` are told; memory does not grow with the samples."""

    samples: int
    count: Tensor
    """float64 (feature,): positions at which each is known."""
    state: Tensor
    """(unit, feature): states, over those positions; `square` of their squares."""
    square: Tensor
    feature: Tensor
    """(feature,); `feature_square` of their squares."""
    feature_square: Tensor
    cross: Tensor
    """(unit, feature)."""
    state_by_time: Tensor
    """(unit, time)."""
    state_gram: Tensor | None
    """(unit, time, time); None where no z is asked for: it is what needs memory."""
    feature_by_time: Tensor
    """(feature, time)."""
    feature_gram: Tensor
    """(feature, time, time)."""

    @classmethod
    def empty(cls, units: int, features: int, times: int, with_z: bool = True) -> AssociationSums:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64)

        return cls(
            0, zeros(features), zeros(units, features), zeros(units, features), zeros(features), zeros(features),
            zeros(units, features), zeros(units, times), torch.zeros(units, times, times) if with_z else None,
            zeros(features, times), zeros(features, times, times),
        )  # fmt: skip

    def add(self, states: Tensor, features: Tensor, real: Tensor) -> None:
        """Add samples: `states` (sample, time, unit), `features` (sample, time, feature), `real` bool (sample, time).

        Features are NaN where they are not known. A constant taken off a feature beforehand keeps digits.
        """
        states = torch.where(real[..., None], states.double(), torch.zeros((), dtype=torch.float64))
        known = torch.isfinite(features) & real[..., None]
        values = torch.where(known, features.double(), torch.zeros((), dtype=torch.float64))
        flat, flat_known = states.flatten(0, 1), known.flatten(0, 1).double()
        flat_values = values.flatten(0, 1)
        self.samples += len(states)
        self.count += flat_known.sum(0)
        self.state += flat.T @ flat_known
        self.square += flat.square().T @ flat_known
        self.feature += flat_values.sum(0)
        self.feature_square += flat_values.square().sum(0)
        self.cross += flat.T @ flat_values
        self.state_by_time += states.sum(0).T
        self.feature_by_time += values.sum(0).T
        by_feature = values.permute(2, 0, 1)
        self.feature_gram += by_feature.transpose(1, 2) @ by_feature
        if self.state_gram is not None:
            by_unit = states.float().permute(2, 0, 1)
            self.state_gram += by_unit.transpose(1, 2) @ by_unit

    def correlations(self) -> np.ndarray:
        """float64 (unit, feature): Pearson's r over the positions at which the feature is known; NaN where one is constant."""
        count = self.count.clamp(min=1)
        covariance = self.cross / count - self.state / count * (self.feature / count)
        state = self.square / count - (self.state / count).square()
        feature = self.feature_square / count - (self.feature / count).square()
        constant = (state <= 1e-12 * (self.square / count).clamp(min=1e-12)) | (feature <= 1e-12)
        size = (state.clamp(min=0) * feature.clamp(min=0)).sqrt()
        found = torch.where(constant | (size == 0), torch.nan, covariance / size.clamp(min=1e-300))
        return found.clamp(-1, 1).numpy()

    def permutation_z(self) -> np.ndarray:
        """float64 (unit, feature): how many standard deviations of all permutations T lies from their mean.

        Raises ValueError where the states' products were not kept. NaN where permuting changes nothing: a unit or a feature that is the same in every sample.
        """
        if self.state_gram is None:
            raise ValueError("these sums were opened without z.")
        count = max(self.samples, 1)
        mean = self.state_by_time @ self.feature_by_time.T / count
        states = self.state_gram.double() - self.state_by_time[:, :, None] * self.state_by_time[:, None] / count
        features = self.feature_gram - self.feature_by_time[:, :, None] * self.feature_by_time[:, None] / count
        variance = states.flatten(1) @ features.flatten(1).T / max(count - 1, 1)
        scale = states.diagonal(dim1=1, dim2=2).sum(1)[:, None] * features.diagonal(dim1=1, dim2=2).sum(1)
        sound = variance > 1e-9 * scale.clamp(min=1e-30)
        found = torch.where(sound, (self.cross - mean) / variance.clamp(min=1e-300).sqrt(), torch.nan)
        return found.numpy()


def pairing_p_values(states: np.ndarray, features: np.ndarray, rounds: int, seed: int) -> np.ndarray:
    """Two-sided p (test,) of ⟨s_i, f_i⟩ summed over samples, from `rounds` random pairings; never 0 (Phipson and Smyth 2010).

    `states` and `features` (sample, time, test), zero where they do not count. 1 where pairing changes nothing.
    """
    samples, tests = len(states), states.shape[2]
    products = np.einsum("itk,jtk->kij", states.astype(np.float64), features.astype(np.float64), optimize=True)
    products -= (
        products.mean(1, keepdims=True) + products.mean(2, keepdims=True) - products.mean((1, 2), keepdims=True)
    )
    found = np.abs(np.trace(products, axis1=1, axis2=2))
    sizes = np.sqrt((states.astype(np.float64) ** 2).sum((0, 1)) * (features.astype(np.float64) ** 2).sum((0, 1)))
    fixed = np.abs(products).max((1, 2), initial=0.0) <= 1e-9 * np.maximum(sizes, 1e-30)
    beyond = np.zeros(tests, np.int64)
    start = np.arange(samples) * samples
    flat = products.reshape(tests, -1)
    for orders in pairings(samples, rounds, seed):
        places = orders + start
        for test in np.flatnonzero(~fixed):
            beyond[test] += int((np.abs(flat[test].take(places).sum(1)) >= found[test] * (1 - 1e-12)).sum())
    return np.where(fixed, 1.0, (1 + beyond) / (1 + rounds))


def pairings(samples: int, rounds: int, seed: int) -> Iterator[np.ndarray]:
    """`rounds` random orders of `samples`, as blocks int64 (round, sample)."""
    for start in range(0, rounds, _CHUNK):
        generator = np.random.default_rng([seed, 7, samples, start])
        size = min(_CHUNK, rounds - start)
        yield generator.random((size, samples)).argsort(1)


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values (test,) corrected by Holm 1979, in their order; NaN stays, and counts as no test."""
    found = np.full(p_values.shape, np.nan)
    known = np.flatnonzero(np.isfinite(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    steps = p_values[order] * (len(order) - np.arange(len(order)))
    found[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return found


def normal_bound(tests: int, level: float) -> float:
    """The |z| that any of `tests` standard normal numbers passes with probability `level` at most (Bonferroni)."""
    from scipy.stats import norm

    return float(norm.isf(level / (2 * max(tests, 1))))


def area_under_curve(values: np.ndarray, inside: np.ndarray) -> float:
    """How often a value (position,) from `inside` is above one from outside, ties half; NaN where either is empty."""
    from scipy.stats import rankdata

    count = int(inside.sum())
    if count == 0 or count == len(values):
        return float("nan")
    ranks = rankdata(values)
    return float((ranks[inside].sum() - count * (count + 1) / 2) / (count * (len(values) - count)))


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's, of two (position,); NaN where one is constant."""
    from scipy.stats import spearmanr

    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(spearmanr(first, second).statistic)
