"""The statistics of two answers to the same samples."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from stratascope.tasks.comparison import paired
from stratascope.tasks.comparison.paired import PairedCounts


def test_mcnemars_test_is_the_exact_binomial_one():
    found = paired.mcnemar_test(PairedCounts(50, 12, 3, 5))
    # P(at most 3 of 15 heads), doubled.
    assert found.p == pytest.approx(2 * sum(math.comb(15, k) for k in range(4)) / 2**15)
    assert paired.mcnemar_test(PairedCounts(50, 3, 12, 5)).p == pytest.approx(found.p)
    assert "no sample" in paired.mcnemar_test(PairedCounts(7, 0, 0, 1)).reason


def test_newcombes_interval_on_tables_worked_out_elsewhere():
    # The same two tables, reckoned with R's contingencytables formula (square-and-add, paired).
    found = paired.difference_of_shares(PairedCounts(36, 12, 2, 0))
    assert (found.low, found.high) == pytest.approx(newcombe(36, 12, 2, 0))
    found = paired.difference_of_shares(PairedCounts(1, 1, 7, 12))
    assert (found.low, found.high) == pytest.approx(newcombe(1, 1, 7, 12))
    mirrored = paired.difference_of_shares(PairedCounts(1, 7, 1, 12))
    assert (-mirrored.high, -mirrored.low) == pytest.approx((found.low, found.high))


def newcombe(r: int, s: int, t: int, u: int) -> tuple[float, float]:
    """Newcombe's method 10 written out again, from the roots of Wilson's quadratic."""
    n, z = r + s + t + u, stats.norm.ppf(0.975)

    def roots(x: int) -> tuple[float, float]:
        found = np.roots([1 + z**2 / n, -(2 * x / n + z**2 / n), (x / n) ** 2])
        return float(min(found)), float(max(found))

    (l1, u1), (l2, u2) = roots(r + s), roots(r + t)
    p1, p2 = (r + s) / n, (r + t) / n
    product = (r + s) * (t + u) * (r + t) * (s + u)
    excess = r * u - s * t
    excess = max(excess - n / 2, 0) if excess > 0 else excess
    phi = excess / math.sqrt(product) if product else 0.0
    down = math.sqrt((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2)
    up = math.sqrt((p2 - l2) ** 2 - 2 * phi * (p2 - l2) * (u1 - p1) + (u1 - p1) ** 2)
    return p1 - p2 - down, p1 - p2 + up


@pytest.mark.parametrize("table", [(10, 0, 0, 0), (0, 0, 0, 10), (0, 10, 0, 0), (5, 5, 0, 0)])
def test_tables_with_empty_cells_have_an_interval_within_bounds(table):
    found = paired.difference_of_shares(PairedCounts(*table))
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high


def test_the_interval_covers_the_true_difference_of_shares():
    generator = np.random.default_rng(2)
    chances = (0.80, 0.10, 0.04, 0.06)
    covered = 0
    for _ in range(500):
        found = paired.difference_of_shares(PairedCounts(*(int(n) for n in generator.multinomial(120, chances))))
        covered += found.low <= 0.06 <= found.high
    assert covered >= stats.binom.ppf(0.001, 500, 0.95) - 5
    assert covered < 500


def test_the_bootstrap_agrees_with_the_normal_interval_of_a_mean():
    values = np.random.default_rng(4).exponential(size=3_000) - 0.9
    found = paired.bootstrap_mean(values, resamples=4_000, seed=1)
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    assert found == paired.bootstrap_mean(values, resamples=4_000, seed=1)
    assert "fewer than two" in paired.bootstrap_mean(values[:1]).reason
    assert "not finite" in paired.bootstrap_mean(np.array([1.0, np.nan, 2.0])).reason


def test_random_signs_give_the_p_value_of_all_signs():
    values = np.array([0.5, -0.1, 0.4, 0.3, 0.8, -0.2, 0.6, 0.1])
    exact = stats.permutation_test(
        (values,), lambda d: abs(d.sum()), permutation_type="samples", alternative="greater", n_resamples=10**5
    ).pvalue
    found = paired.sign_flip_test(values, resamples=20_000, seed=0)
    assert abs(found.p - exact) < 5 * math.sqrt(exact / 20_000)
    assert paired.sign_flip_test(np.zeros(5)).reason == "all values are equal."
    assert paired.sign_flip_test(np.ones(60), resamples=99).p == pytest.approx(1 / 100)
