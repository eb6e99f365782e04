"""Statistics of two answers to the same samples: plain functions on arrays, the sample being the unit of replication.

They tell whether these very networks differ on new samples, and nothing of other runs of the same kind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from stratascope.tasks.comparison.statistics import Estimate, TestResult

_CHUNK = 4_000_000
"""So many numbers are drawn at once."""


@dataclass(frozen=True)
class PairedCounts:
    """How many samples both have right, only the first, only the second, neither."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @property
    def n(self) -> int:
        return self.both + self.only_a + self.only_b + self.neither


def paired_counts(right_a: np.ndarray, right_b: np.ndarray) -> PairedCounts:
    """The table of `right_a` and `right_b`, bool (sample,)."""
    return PairedCounts(
        int((right_a & right_b).sum()), int((right_a & ~right_b).sum()), int((~right_a & right_b).sum()),
        int((~right_a & ~right_b).sum()),
    )  # fmt: skip


def mcnemar_test(counts: PairedCounts) -> TestResult:
    """McNemar's test in its exact form: the samples that only one has right fall on either side like a coin.

    McNemar (1947); two-sided binomial.
    """
    from scipy import stats

    discordant = counts.only_a + counts.only_b
    if discordant == 0:
        return TestResult(reason="there is no sample that only one of the two has right.")
    found = stats.binomtest(counts.only_a, discordant, 0.5)
    return TestResult(float(found.pvalue), smallest=min(1.0, 2.0 ** (1 - discordant)))


def difference_of_shares(counts: PairedCounts, confidence: float = 0.95) -> Estimate:
    """Share right of A less that of B, on the same samples, with the interval of Newcombe (1998, method 10).

    The Wilson intervals of both shares are joined with their correlation, which is made smaller for its own error.
    """
    n = counts.n
    if n == 0:
        return Estimate(reason="there are no samples.")
    first, second = counts.both + counts.only_a, counts.both + counts.only_b
    share_a, share_b = first / n, second / n
    low_a, high_a = wilson(first, n, confidence)
    low_b, high_b = wilson(second, n, confidence)
    margins = first * (n - first) * second * (n - second)
    association = counts.both * counts.neither - counts.only_a * counts.only_b
    if association > 0:
        association_shown = max(association - n / 2, 0.0)
    else:
        association_shown = float(association)
    phi = association_shown / math.sqrt(margins) if margins else 0.0
    below, above = share_a - low_a, high_b - share_b
    down = math.sqrt(max(0.0, below**2 - 2 * phi * below * above + above**2))
    over, under = high_a - share_a, share_b - low_b
    up = math.sqrt(max(0.0, over**2 - 2 * phi * over * under + under**2))
    value = share_a - share_b
    return Estimate(value, max(-1.0, value - down), min(1.0, value + up))


def wilson(right: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a share of independent trials (Wilson 1927)."""
    from scipy import stats

    found = stats.binomtest(right, count).proportion_ci(confidence, method="wilson")
    return float(found.low), float(found.high)


def bootstrap_mean(
    values: np.ndarray, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> Estimate:
    """Mean of `values` (sample,), such as differences of losses, with a percentile bootstrap interval over samples.

    Efron and Tibshirani (1993, chapter 13); seeded.
    """
    if len(values) < 2:
        return Estimate(
            float(values.mean()) if len(values) else math.nan, reason="there are fewer than two samples."
        )
    if not np.isfinite(values).all():
        return Estimate(reason="some values are not finite.")
    generator = np.random.default_rng(seed)
    means = np.empty(resamples)
    size = max(1, _CHUNK // len(values))
    for start in range(0, resamples, size):
        rows = min(size, resamples - start)
        means[start : start + rows] = values[generator.integers(0, len(values), (rows, len(values)))].mean(1)
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(float(values.mean()), float(low), float(high))


def sign_flip_test(values: np.ndarray, resamples: int = 2_000, seed: int = 0) -> TestResult:
    """Test that the mean of paired differences `values` (sample,) is 0, by random signs (Fisher 1935); seeded.

    The observed signs are counted too (Phipson and Smyth 2010).
    """
    if len(values) < 2:
        return TestResult(reason="there are fewer than two samples.")
    if not np.isfinite(values).all():
        return TestResult(reason="some values are not finite.")
    if not values.any():
        return TestResult(reason="all values are equal.")
    generator = np.random.default_rng(seed)
    observed = abs(float(values.sum()))
    extreme, size = 0, max(1, _CHUNK // len(values))
    for start in range(0, resamples, size):
        rows = min(size, resamples - start)
        signs = generator.integers(0, 2, (rows, len(values)), np.int8)
        sums = 2.0 * (signs @ values) - values.sum()
        extreme += int((np.abs(sums) >= observed * (1 - 1e-9)).sum())
    return TestResult((extreme + 1) / (resamples + 1), "", False, resamples, 1 / (resamples + 1))
