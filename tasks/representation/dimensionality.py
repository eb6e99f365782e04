"""How many directions features use, from their spectrum; how alike they point; how wide classes are. Plain functions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LEAST_RANKS = 20
"""So many well-estimated eigenvalues a power law needs."""
_NOISE = 1e-12
"""Eigenvalues below this share of the largest are rounding."""
_FIT = 0.95
"""R² below which no power law is claimed."""


@dataclass(frozen=True)
class Spectrum:
    """Features in their principal axes."""

    scores: np.ndarray
    """float64 (sample, component): centred, along the axes, largest variance first."""
    variances: np.ndarray
    """float64 (component,): divided by n."""

    @classmethod
    def of(cls, centred: np.ndarray) -> Spectrum:
        """Of `centred` (sample, feature); exact, from the smaller of the two Gram matrices."""
        from scipy.linalg import eigh

        samples, features = centred.shape
        if features <= samples:
            sizes, turns = eigh(centred.T @ centred)
            scores = centred @ turns[:, ::-1]
        else:
            sizes, turns = eigh(centred @ centred.T)
            scores = turns[:, ::-1] * np.sqrt(np.clip(sizes[::-1], 0.0, None))
        return cls(scores, np.clip(sizes[::-1], 0.0, None) / samples)

    def resampled(self, counts: np.ndarray) -> np.ndarray:
        """Variances (round, component) along the same axes when each sample counts as `counts` (round, sample) say.

        To first order these are the eigenvalues of the resampled covariance (the axes turn in second order only), without
        the inflation of large and the loss of small ones that repeated samples cause.
        """
        weights = counts / counts.sum(1, keepdims=True)
        return np.clip(weights @ self.scores**2 - (weights @ self.scores) ** 2, 0.0, None)


def effective_rank(variances: np.ndarray) -> np.ndarray:
    """exp of the entropy of the singular values' shares, of `variances` (…, component). Roy and Vetterli 2007.

    Singular values are the square roots of the variances, as in the paper, not the variances themselves.
    """
    sizes = np.sqrt(variances)
    shares = sizes / sizes.sum(-1, keepdims=True)
    logs = np.log(np.where(shares > 0, shares, 1.0))
    found: np.ndarray = np.exp(-(shares * logs).sum(-1))
    return found


def participation_ratio(variances: np.ndarray) -> np.ndarray:
    """(Σλ)² / Σλ² of `variances` (…, component). Gao et al. 2017."""
    found: np.ndarray = variances.sum(-1) ** 2 / (variances**2).sum(-1)
    return found


@dataclass(frozen=True)
class PowerLaw:
    """How a spectrum falls: variance ∝ rank^-exponent over the ranks from `first` to `last`."""

    exponent: float
    first: int
    last: int
    fit: float
    """R² of the line through log variance over log rank."""
    exponential_fit: float
    """R² of the line through log variance over rank: that of an exponential decay."""

    @property
    def doubt(self) -> str:
        """Why the exponent is not to be trusted; empty where it may be."""
        if self.fit < _FIT:
            return f"no power law: R² is {self.fit:.3f} over ranks {self.first} to {self.last}, below {_FIT}"
        if self.exponential_fit > self.fit:
            return (
                f"an exponential fits better over ranks {self.first} to {self.last}: R² {self.exponential_fit:.3f} "
                f"against {self.fit:.3f}"
            )
        return ""


def fitted_ranks(variances: np.ndarray, samples: int) -> tuple[int, int]:
    """First and last rank for a power law: the last decade of those that `samples` tell well, one in ten of them.

    (0, 0) where there are fewer than `LEAST_RANKS`.
    """
    last = min(int((variances > _NOISE * variances[0]).sum()), samples // 10)
    return (max(1, last // 10), last) if last >= LEAST_RANKS else (0, 0)


def power_law(variances: np.ndarray, first: int, last: int) -> PowerLaw:
    """The least-squares line through log variance over log rank, each rank with weight 1 / rank: a decade counts evenly."""
    ranks = np.arange(first, last + 1)
    logs = np.log(variances[first - 1 : last])
    exponent, fit = _line(np.log(ranks), logs, 1.0 / ranks)
    return PowerLaw(-exponent, first, last, fit, _line(ranks.astype(float), logs, 1.0 / ranks)[1])


def _line(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Slope and R² of the weighted least-squares line; R² 0 where `y` does not vary."""
    share = weights / weights.sum()
    across, up = x - share @ x, y - share @ y
    slope = (share * across) @ up / (share @ across**2)
    total = share @ up**2
    return float(slope), float(1 - share @ (up - slope * across) ** 2 / total) if total > 1e-18 else 0.0


def mean_cosine(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean cosine (round,) of all pairs of different samples, `counts` (round, sample) times each. Ethayarajh 2019.

    Of `values` (sample, feature) as they are, about the origin; zero vectors must be left out before. Pairs of a sample
    with itself, which repeats make, do not count.
    """
    directions = values / np.linalg.norm(values, axis=1, keepdims=True)
    sums = (counts @ directions) if len(counts) else np.empty((0, values.shape[1]))
    itself = (counts.astype(np.float64) ** 2).sum(1)
    found: np.ndarray = ((sums**2).sum(1) - itself) / (counts.sum(1).astype(np.float64) ** 2 - itself)
    return found


def class_radius(spread: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Radius (class,) of each class: root of its mean squared distance from its centre, by the centre's own size.

    `spread` (class,) are mean squared distances, `centres` (class, feature) the class means; their size is the distance
    from the mean of all centres. The first two moments of what Chung, Lee and Sompolinsky 2018 call a manifold's radius,
    without their anchor points. NaN where a centre lies in the middle of all.
    """
    sizes = np.linalg.norm(centres - centres.mean(0), axis=1)
    return np.sqrt(spread) / np.where(sizes > 0, sizes, np.nan)
