"""The statistics of two groups of runs, against SciPy, against enumeration, and under the null hypothesis."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import special, stats

from stratascope.tasks.comparison import statistics

A = np.array([0.91, 0.93, 0.90, 0.95])
B = np.array([0.88, 0.89, 0.86, 0.90, 0.87])


def test_welchs_test_and_interval_are_those_of_the_formula():
    found, estimate = statistics.t_test(A, B), statistics.mean_difference(A, B, 0.9)
    parts = [values.var(ddof=1) / len(values) for values in (A, B)]
    error = math.sqrt(sum(parts))
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (A, B), strict=True)
    )
    t = (A.mean() - B.mean()) / error
    assert found.p == pytest.approx(2 * special.stdtr(freedom, -abs(t)), rel=1e-10)
    half = special.stdtrit(freedom, 0.95) * error
    assert (estimate.low, estimate.high) == pytest.approx((A.mean() - B.mean() - half, A.mean() - B.mean() + half))


def test_pairs_are_tested_by_their_differences():
    first, second = A, B[:4]
    found = statistics.t_test(first, second, paired=True)
    assert found.p == pytest.approx(stats.ttest_1samp(first - second, 0).pvalue)
    estimate = statistics.mean_difference(first, second, paired=True)
    assert estimate.low < estimate.value < estimate.high


def test_the_permutation_test_is_the_one_that_tries_everything():
    found = statistics.permutation_test(A, B)
    reference = stats.permutation_test(
        (A, B), lambda a, b: abs(a.mean() - b.mean()), alternative="greater", n_resamples=10**6
    )
    assert found.is_exact
    assert found.assignments == math.comb(9, 4)
    assert found.p == pytest.approx(reference.pvalue)
    pooled = np.concatenate([A, B])
    gaps = []
    for chosen in itertools.combinations(range(9), 4):
        mask = np.isin(np.arange(9), chosen)
        gaps.append(abs(pooled[mask].mean() - pooled[~mask].mean()))
    assert found.p == pytest.approx(np.mean(np.array(gaps) >= abs(A.mean() - B.mean()) - 1e-12))


def test_the_paired_permutation_test_tries_all_signs():
    found = statistics.permutation_test(A, B[:4], paired=True)
    reference = stats.permutation_test(
        (A - B[:4],), lambda d: abs(d.mean()), permutation_type="samples", alternative="greater", n_resamples=10**6
    )
    assert found.assignments == 16
    assert found.p == pytest.approx(reference.pvalue)


def test_where_there_are_too_many_assignments_a_seeded_sample_stands_for_them():
    generator = np.random.default_rng(3)
    a, b = generator.normal(0.6, 1, 14), generator.normal(0, 1, 14)
    found = statistics.permutation_test(a, b, seed=1, resamples=9_999)
    assert not found.is_exact
    assert found == statistics.permutation_test(a, b, seed=1, resamples=9_999)
    reference = stats.ttest_ind(a, b).pvalue
    error = math.sqrt(reference * (1 - reference) / 9_999)
    assert abs(found.p - reference) < 5 * error + 0.01
    assert statistics.permutation_test(a + 100, b, resamples=99).p == pytest.approx(1 / 100)


def test_the_smallest_p_value_that_so_few_runs_allow_is_told():
    found = statistics.permutation_test(np.array([5.0, 6.0, 7.0]), np.array([1.0, 2.0, 3.0]))
    assert found.p == found.smallest == pytest.approx(2 / 20)
    unequal = statistics.permutation_test(np.array([5.0, 6.0, 7.0]), np.array([1.0, 2.0]))
    assert unequal.smallest == pytest.approx(1 / 10)


def test_hedges_g_is_free_of_bias_and_its_interval_covers():
    generator = np.random.default_rng(0)
    effects, covered = [], 0
    for _ in range(1_000):
        a, b = generator.normal(1.2, 1, 4), generator.normal(0, 1, 5)
        found = statistics.hedges_g(a, b)
        effects.append(found.value)
        covered += found.low <= 1.2 <= found.high
    assert abs(np.mean(effects) - 1.2) < 4 * np.std(effects) / math.sqrt(1_000)
    low, high = stats.binom.interval(0.999, 1_000, 0.95)
    assert low <= covered <= high


@pytest.mark.parametrize("t", [0.0, 0.4, 1.1, -3.0, 7.0, -20.0])
@pytest.mark.parametrize("freedom", [2, 5, 18])
def test_the_noncentral_t_has_the_asked_tails_at_the_ends_of_the_interval(t, freedom):
    low, high = statistics.noncentrality_interval(t, freedom, 0.95)
    assert stats.nct.cdf(t, freedom, low) == pytest.approx(0.975, abs=1e-5)
    assert stats.nct.cdf(t, freedom, high) == pytest.approx(0.025, abs=1e-5)


def test_the_noncentral_interval_holds_where_the_observed_t_is_huge():
    low, high = statistics.noncentrality_interval(1e6, 4, 0.95)
    # Then only the spread is uncertain: T = δ √(ν / χ²).
    assert low == pytest.approx(1e6 * math.sqrt(stats.chi2.ppf(0.025, 4) / 4), rel=1e-4)
    assert high == pytest.approx(1e6 * math.sqrt(stats.chi2.ppf(0.975, 4) / 4), rel=1e-4)


def test_the_small_sample_factor_has_its_tabulated_values():
    # 1 - 3 / (4 ν - 1) is the usual approximation of it; these are Hedges' (1981) exact ones.
    for freedom, exact in ((2, 0.5642), (3, 0.7236), (10, 0.9228), (50, 0.9849)):
        assert statistics.bias_factor(freedom) == pytest.approx(exact, abs=1e-4)


def test_corrections_are_those_computed_by_hand_and_by_scipy():
    p = [0.01, 0.04, math.nan, 0.03, 0.005]
    holm = statistics.corrected(p, "holm")
    # Ordered 0.005·4, 0.01·3, 0.03·2, 0.04·1; never falling: 0.02, 0.03, 0.06, 0.06.
    assert holm == pytest.approx([0.03, 0.06, math.nan, 0.06, 0.02], nan_ok=True)
    found = statistics.corrected(p, "benjamini_hochberg")
    # 0.005·4/1, 0.01·4/2, 0.03·4/3, 0.04·4/4, from the right never rising.
    assert found == pytest.approx([0.02, 0.04, math.nan, 0.04, 0.02], nan_ok=True)
    assert found[[0, 1, 3, 4]] == pytest.approx(stats.false_discovery_control([0.01, 0.04, 0.03, 0.005]))
    assert np.isnan(statistics.corrected([math.nan], "holm")).all()


def test_what_cannot_be_known_has_a_reason_and_no_number():
    one = np.array([0.9])
    for paired in (False, True):
        other = B[:1] if paired else B
        assert "fewer than two runs" in statistics.t_test(one, other, paired).reason
        assert "fewer than two runs" in statistics.hedges_g(one, other, paired=paired).reason
        assert "fewer than two runs" in statistics.permutation_test(one, other, paired).reason
        estimate = statistics.mean_difference(one, other, paired=paired)
        assert estimate.value == pytest.approx(0.9 - other.mean())
        assert math.isnan(estimate.low)
    same = np.full(3, 0.1 + 0.2)
    assert statistics.t_test(same, np.full(4, 0.3)).reason == "all values are equal."
    assert statistics.permutation_test(same, np.full(4, 0.3)).reason == "all values are equal."
    apart = statistics.t_test(same, np.full(3, 0.4))
    assert "no spread" in apart.reason
    assert math.isnan(apart.p)
    # The permutation test needs no spread within the groups.
    assert statistics.permutation_test(same, np.full(3, 0.4)).p == pytest.approx(0.1)
    assert "no pairs" in statistics.t_test(A, B, paired=True).reason


def test_under_the_null_hypothesis_a_family_gives_a_false_finding_as_often_as_it_may():
    generator = np.random.default_rng(7)
    rounds, families = 200, {"holm": 0, "benjamini_hochberg": 0}
    for _ in range(rounds):
        groups = generator.normal(size=(2, 8, 5))
        tests = [statistics.t_test(groups[0, k], groups[1, k]).p for k in range(8)]
        for correction in families:
            families[correction] += bool((statistics.corrected(tests, correction) <= 0.05).any())
    # Welch's test is a little conservative at five runs a side, hence the lower rate below.
    for count in families.values():
        assert stats.binom.ppf(0.001, rounds, 0.02) <= count <= stats.binom.ppf(0.999, rounds, 0.05)


def test_under_the_null_hypothesis_the_permutation_test_keeps_its_level():
    generator = np.random.default_rng(11)
    rounds = 2_000
    found = [statistics.permutation_test(*generator.exponential(size=(2, 4))).p for _ in range(rounds)]
    # Of 70 assignments in mirrored pairs, p ≤ 4/70 happens in exactly 4/70 of the cases.
    low, high = stats.binom.interval(0.999, rounds, 4 / 70)
    assert low <= sum(p <= 4 / 70 + 1e-9 for p in found) <= high
