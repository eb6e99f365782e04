"""Statistics of two groups of runs: plain functions on arrays, the run being the unit of replication.

Where a number cannot be had (one run in a group, no spread at all), it is NaN and `reason` says why.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

MOST_EXACT = 20_000
"""Up to so many assignments of runs to groups are all tried; of more, a seeded sample is drawn."""
_SAME = 1e-12
"""Values whose spread is below this share of their size count as equal."""


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; `reason` says why it, or its interval, is NaN."""

    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    reason: str = ""


@dataclass(frozen=True)
class TestResult:
    """A two-sided p-value; `reason` says why it is NaN."""

    p: float = math.nan
    reason: str = ""
    is_exact: bool = True
    assignments: int = 0
    """Of a permutation test: how many assignments were looked at."""
    smallest: float = math.nan
    """The smallest p-value that this test could have given with so many runs."""


def replication_problem(a: np.ndarray, b: np.ndarray, paired: bool = False) -> str:
    """Why nothing can be said of runs in general from `a` (run,) and `b` (run,); empty where something can be."""
    if paired and len(a) != len(b):
        return f"{len(a)} and {len(b)} runs are no pairs."
    if len(a) < 2 or len(b) < 2:
        few = " and ".join(name for name, values in (("A", a), ("B", b)) if len(values) < 2)
        return f"group {few} has fewer than two runs with this number: without replication nothing is known of other runs."
    return ""


def spread_problem(a: np.ndarray, b: np.ndarray, paired: bool = False) -> str:
    """Why a t statistic does not exist for `a` and `b`; empty where it does."""
    if paired:
        constant = _has_no_spread(a - b, float(np.abs(np.concatenate([a, b])).max()))
    else:
        constant = _has_no_spread(a) and _has_no_spread(b)
    if not constant:
        return ""
    if abs(a.mean() - b.mean()) <= _SAME * max(abs(a.mean()), abs(b.mean()), 1e-300):
        return "all values are equal."
    what = "the differences have" if paired else "both groups have"
    return f"{what} no spread at all, so that there is no scale to hold the difference against."


def _has_no_spread(values: np.ndarray, size: float | None = None) -> bool:
    size = float(np.abs(values).max()) if size is None else size
    return float(np.ptp(values)) <= _SAME * size


def mean_difference(a: np.ndarray, b: np.ndarray, confidence: float = 0.95, paired: bool = False) -> Estimate:
    """mean(a) − mean(b) of `a` (run,) and `b` (run,) with Welch's interval.

    Degrees of freedom by Welch (1947) and Satterthwaite (1946); `paired`: the t interval of the differences.
    """
    from scipy import stats

    value = float(a.mean() - b.mean())
    problem = replication_problem(a, b, paired) or spread_problem(a, b, paired)
    if problem:
        return Estimate(value, reason=problem)
    result = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
    found = result.confidence_interval(confidence)
    return Estimate(value, float(found.low), float(found.high))


def t_test(a: np.ndarray, b: np.ndarray, paired: bool = False) -> TestResult:
    """Welch's t test of `a` (run,) and `b` (run,) for equal means (Welch 1947); `paired`: Student's paired test."""
    from scipy import stats

    problem = replication_problem(a, b, paired) or spread_problem(a, b, paired)
    if problem:
        return TestResult(reason=problem)
    result = stats.ttest_rel(a, b) if paired else stats.ttest_ind(a, b, equal_var=False)
    return TestResult(float(result.pvalue), smallest=0.0)


def hedges_g(a: np.ndarray, b: np.ndarray, confidence: float = 0.95, paired: bool = False) -> Estimate:
    """Hedges' g of `a` (run,) and `b` (run,): the difference of means in standard deviations, less its small-sample bias.

    g = J(ν) · (mean a − mean b) / s with the pooled s and the exact J of Hedges (1981, eq. 6e). The interval holds the
    population's effect: the two noncentral t distributions in whose tails the observed t just lies, divided by
    √(n_a n_b / (n_a + n_b)) (Steiger and Fouladi 1997). Normal values of one variance are assumed. `paired`: s is that
    of the differences (g_z), with n − 1 degrees of freedom.
    """
    problem = replication_problem(a, b, paired) or spread_problem(a, b, paired)
    if problem:
        return Estimate(reason=problem)
    if paired:
        freedom, scale = len(a) - 1, math.sqrt(len(a))
        spread = float((a - b).std(ddof=1))
    else:
        freedom = len(a) + len(b) - 2
        scale = math.sqrt(len(a) * len(b) / (len(a) + len(b)))
        spread = math.sqrt((((a - a.mean()) ** 2).sum() + ((b - b.mean()) ** 2).sum()) / freedom)
    effect = float(a.mean() - b.mean()) / spread
    low, high = noncentrality_interval(effect * scale, freedom, confidence)
    return Estimate(bias_factor(freedom) * effect, low / scale, high / scale)


def bias_factor(freedom: int) -> float:
    """J(ν) = Γ(ν/2) / (√(ν/2) Γ((ν−1)/2)), which takes the bias out of a standardised difference (Hedges 1981)."""
    if freedom < 2:
        return 0.0  # With one degree of freedom the factor is 0: the estimate has no mean.
    return math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom - 1) / 2)) / math.sqrt(freedom / 2)


def noncentrality_interval(t: float, freedom: int, confidence: float) -> tuple[float, float]:
    """The noncentralities δ under which P(T ≤ `t`) is 1 − (1 − `confidence`)/2, and (1 − `confidence`)/2.

    T ≤ t says Z + δ ≤ t S, with Z normal and S = √(χ²/ν): so these are the quantiles of t S + Z. Its distribution is
    integrated over whichever of the two is the narrower, and stays exact where libraries' noncentral t gives out.
    """
    from scipy import optimize, special

    sign = -1.0 if t < 0 else 1.0
    size = abs(t)
    nodes, weights = _quadrature()
    if size > 1:
        normal = 9.0 * nodes
        density = 9.0 * weights * np.exp(-(normal**2) / 2) / math.sqrt(2 * math.pi)

        def below(value: float) -> float:
            root = np.maximum(0.0, (value - normal) / size)
            return float((density * special.chdtr(freedom, freedom * root**2)).sum())
    else:
        spread = np.sqrt(special.chdtri(freedom, (1 - nodes) / 2) / freedom)

        def below(value: float) -> float:
            return float((weights / 2 * special.ndtr(value - size * spread)).sum())

    widest = size * math.sqrt(float(special.chdtri(freedom, 1e-13)) / freedom) + 9.0
    tail = (1 - confidence) / 2
    low, high = (
        optimize.brentq(lambda value, wanted=wanted: below(value) - wanted, -9.0, widest, xtol=1e-10)
        for wanted in (tail, 1 - tail)
    )
    return (low, high) if sign > 0 else (-high, -low)


@lru_cache(maxsize=1)
def _quadrature() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(200)


def permutation_test(
    a: np.ndarray, b: np.ndarray, paired: bool = False, seed: int = 0, resamples: int = 9_999
) -> TestResult:
    """Permutation test of `a` (run,) and `b` (run,), two-sided in |mean(a) − mean(b)| (Fisher 1935; Pitman 1937).

    All assignments of the runs to two groups of these sizes are tried where there are at most `MOST_EXACT`; `paired`
    exchanges the two of a pair. Otherwise `resamples` of them are drawn from `seed`, and the observed one is counted
    too (Phipson and Smyth 2010). It supposes that under the null hypothesis the groups have one distribution.
    """
    problem = replication_problem(a, b, paired)
    if problem:
        return TestResult(reason=problem)
    if spread_problem(a, b, paired) == "all values are equal.":
        return TestResult(reason="all values are equal.")
    if paired:
        count, exact = 2 ** len(a), 2 ** len(a) <= MOST_EXACT
        signs = _all_signs(len(a)) if exact else _drawn_signs(len(a), seed, resamples)
        found = np.abs(signs @ (a - b)) / len(a)
    else:
        count = math.comb(len(a) + len(b), len(a))
        exact = count <= MOST_EXACT
        chosen = _all_choices(len(a), len(b)) if exact else _drawn_choices(len(a), len(b), seed, resamples)
        pooled = np.concatenate([a, b])
        sums = chosen @ pooled
        found = np.abs(sums / len(a) - (pooled.sum() - sums) / len(b))
    observed = abs(float(a.mean() - b.mean()))
    # Equal differences differ in their last bits, depending on the order of the sum.
    extreme = int((found >= observed - 1e-9 * max(observed, float(np.abs(found).max()))).sum())
    if exact:
        mirrored = paired or len(a) == len(b)
        return TestResult(extreme / count, "", True, count, (2 if mirrored else 1) / count)
    return TestResult((extreme + 1) / (resamples + 1), "", False, resamples, 1 / (resamples + 1))


@lru_cache(maxsize=8)
def _all_choices(first: int, second: int) -> np.ndarray:
    """float64 (assignment, run): 1 for the runs that go to the first group."""
    listed = np.array(list(itertools.combinations(range(first + second), first)))
    chosen = np.zeros((len(listed), first + second))
    np.put_along_axis(chosen, listed, 1.0, axis=1)
    return chosen


@lru_cache(maxsize=8)
def _drawn_choices(first: int, second: int, seed: int, count: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    places = generator.permuted(np.tile(np.arange(first + second), (count, 1)), axis=1)
    return (places < first).astype(np.float64)


@lru_cache(maxsize=8)
def _all_signs(pairs: int) -> np.ndarray:
    return np.array(list(itertools.product((1.0, -1.0), repeat=pairs)))


@lru_cache(maxsize=8)
def _drawn_signs(pairs: int, seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).choice((1.0, -1.0), size=(count, pairs))


def corrected(p_values: Sequence[float], method: str) -> np.ndarray:
    """`p_values` (test,) corrected for being many; NaN stays NaN and is not counted.

    `holm` bounds the chance of any false finding, whatever the tests depend on (Holm 1979); `benjamini_hochberg` bounds
    the expected share of false findings among the findings, for tests that are independent or positively dependent
    (Benjamini and Hochberg 1995).
    """
    from scipy import stats

    values = np.asarray(p_values, np.float64)
    found = np.full(values.shape, np.nan)
    there = np.isfinite(values)
    if not there.any():
        return found
    if method == "benjamini_hochberg":
        found[there] = stats.false_discovery_control(values[there], method="bh")
        return found
    order = np.argsort(values[there], kind="stable")
    ordered = values[there][order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(ordered))
    found[there] = adjusted
    return found
