"""Intervals and nulls of similarities against resampling done the long way."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from stratascope.errors import DoesNotApply
from stratascope.tasks.representation.gram_products import Kernel
from stratascope.tasks.representation.resampling import bootstrap_counts, percentile_interval, subsamples
from stratascope.tasks.representation.resampling import permutations as shuffles
from stratascope.tasks.representation.similarity_measures import MEASURES, cka, procrustes_distance
from stratascope.tasks.representation.similarity_resampling import (
    WeightedKernel,
    cka_interval,
    procrustes_rounds,
    reordered,
)
from stratascope.tasks.representation.similarity_sides import Side


def pair(seed: int, n: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    shared = generator.normal(size=(n, 4))
    layers = [shared @ generator.normal(size=(4, width)) + noise * generator.normal(size=(n, width)) for width in (6, 5)]  # fmt: skip
    return layers[0], layers[1]


@pytest.mark.parametrize("kind", ["linear", "rbf"])
def test_the_weighted_criterion_is_the_u_statistic_over_different_samples(kind):
    first, second = (Kernel(Side.of(values), kind) for values in pair(0, 7))
    counts = bootstrap_counts(7, 3, 0)
    assert counts.max() > 1
    found = WeightedKernel(first, counts, True).hsic(WeightedKernel(second, counts, True))
    k, m = first.whole().astype(float), second.whole().astype(float)
    for weights, value in zip(counts, found, strict=True):
        sums, sizes = np.zeros(3), np.zeros(3)
        for i, j, q, r in permutations(range(7), 4):
            weight = weights[i] * weights[j] * weights[q] * weights[r]
            sums[2] += weight * k[i, j] * m[q, r]
            sizes[2] += weight
        for i, j, q in permutations(range(7), 3):
            sums[1] += weights[i] * weights[j] * weights[q] * k[i, j] * m[i, q]
            sizes[1] += weights[i] * weights[j] * weights[q]
        for i, j in permutations(range(7), 2):
            sums[0] += weights[i] * weights[j] * k[i, j] * m[i, j]
            sizes[0] += weights[i] * weights[j]
        expected = sums[0] / sizes[0] - 2 * sums[1] / sizes[1] + sums[2] / sizes[2]
        assert value == pytest.approx(expected, abs=2e-5 * np.abs(k * m).max())


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize("kind", ["linear", "rbf"])
def test_equal_weights_give_the_measure_itself(kind, debiased):
    first, second = (Side.of(values) for values in pair(1, 60))
    counts = np.ones((2, 60), np.int64)
    weighted = [WeightedKernel(Kernel(side, kind), counts, debiased) for side in (first, second)]
    np.testing.assert_allclose(weighted[0].cka(weighted[1]), cka(first, second, kind, debiased), atol=1e-5)


def test_biased_weights_are_samples_drawn_twice():
    first, second = pair(2, 40)
    counts = bootstrap_counts(40, 4, 0)
    weighted = [WeightedKernel(Kernel(Side.of(values), "linear"), counts, False) for values in (first, second)]
    for found, weights in zip(weighted[0].cka(weighted[1]), counts, strict=True):
        rows = np.repeat(np.arange(40), weights)
        assert found == pytest.approx(cka(Side.of(first[rows]), Side.of(second[rows]), debiased=False), abs=1e-5)


def test_resampling_brings_no_bias_back_into_debiased_cka():
    generator = np.random.default_rng(0)
    kernels = tuple(Kernel(Side.of(generator.normal(size=(64, 2000))), "linear") for _ in range(2))
    low, high = cka_interval((kernels[0], kernels[1]), True, 100, 0)
    assert -0.1 < low < 0 < high < 0.1


def test_the_interval_is_as_wide_as_new_samples_would_spread():
    values, widths = [], []
    for seed in range(60):
        generator = np.random.default_rng(seed)
        shared = generator.normal(size=(80, 4))
        mixing = np.random.default_rng(1).normal(size=(2, 4, 6))
        first, second = (Side.of(shared @ matrix + generator.normal(size=(80, 6))) for matrix in mixing)
        values.append(cka(first, second))
        low, high = cka_interval((Kernel(first, "linear"), Kernel(second, "linear")), True, 60, seed)
        widths.append(high - low)
    spread = np.subtract(*np.quantile(values, [0.975, 0.025]))
    assert np.mean(widths) == pytest.approx(spread, rel=0.25)


def test_procrustes_rounds_are_near_those_that_take_the_whole_problem_anew():
    first, second = pair(3, 300)
    counts = bootstrap_counts(300, 60, 0)
    cosines = procrustes_rounds(Side.of(first), Side.of(second), counts)
    exact = []
    for weights in counts:
        rows = np.repeat(np.arange(300), weights)
        exact.append(1 - procrustes_distance(Side.of(first[rows]), Side.of(second[rows])) ** 2 / 2)
    assert (cosines <= np.array(exact) + 1e-9).all()
    np.testing.assert_allclose(cosines, exact, atol=0.02)
    np.testing.assert_allclose(percentile_interval(cosines), percentile_interval(np.array(exact)), atol=0.012)


@pytest.mark.parametrize("name", MEASURES)
def test_the_null_is_the_measure_of_shuffled_samples(name: str):
    measure = MEASURES[name]
    first, second = pair(4, 60)
    sides = Side.of(first), Side.of(second)
    found = measure.null(*sides, 3, 0)
    expected = [measure.compare(sides[0], Side.of(second[order])) for order in shuffles(60, 3, 0)]
    np.testing.assert_allclose(found, expected, atol=2e-5)
    np.testing.assert_allclose(reordered(sides[1], np.arange(60)).found.scores, sides[1].found.scores)


@pytest.mark.parametrize("name", MEASURES)
def test_the_interval_lies_about_the_value(name: str):
    measure = MEASURES[name]
    sides = tuple(Side.of(values) for values in pair(5, 150, 0.5))
    value = measure.checked(sides[0], sides[1])
    low, high = measure.interval(sides[0], sides[1], value, 20, 0)
    # Procrustes and shape distances of a sample lean to its side: the interval need only come near.
    assert low - 0.03 < value < high + 0.03
    assert 0 < high - low < 0.5
    assert np.isnan(measure.interval(sides[0], sides[1], value, 0, 0)).all()


def exactly(name: str, values: tuple[np.ndarray, np.ndarray]) -> float:
    """Measures of canonical correlation by whole decompositions of the centred samples, in float64."""
    from stratascope.tasks.representation.similarity_measures import SVCCA_SHARE

    sides = []
    for layer in values:
        left, sizes, _ = np.linalg.svd(layer - layer.mean(0), full_matrices=False)
        kept = sizes**2 > 1e-10 * sizes[0] ** 2
        sides.append((left[:, kept], sizes[kept]))
    (first, weights), (second, others) = sides
    if name == "svcca":
        counts = [int(np.argmax(np.cumsum(s**2) / (s**2).sum() >= SVCCA_SHARE)) + 1 for s in (weights, others)]
        return float(np.linalg.svd(first[:, : counts[0]].T @ second[:, : counts[1]], compute_uv=False).mean())
    if name == "pwcca":
        left, correlations, _ = np.linalg.svd(first.T @ second, full_matrices=False)
        shares = np.abs(left * weights[:, None]).sum(0)
        return float(shares @ correlations / shares.sum())
    alpha = float(name.rpartition("_")[2])
    scaled = [basis * (alpha * sizes + 1 - alpha) for basis, sizes in sides]
    nuclear = np.linalg.svd(scaled[0].T @ scaled[1], compute_uv=False).sum()
    return float(np.arccos(nuclear / np.linalg.norm(scaled[0]) / np.linalg.norm(scaled[1])))


@pytest.mark.parametrize("share", [0.5, 0.75])
@pytest.mark.parametrize("layers", ["wide", "narrow", "deficient"])
@pytest.mark.parametrize("name", ["svcca", "pwcca", "shape_distance_0", "shape_distance_0.5", "shape_distance_1"])
def test_measures_of_some_samples_equal_whole_decompositions_of_them(name: str, layers: str, share: float):
    """Those are found from products of components alone, and those from what the samples left out take away."""
    generator = np.random.default_rng(6)
    values = [item * np.arange(1, 51) ** -0.7 for item in generator.normal(size=(2, 240, 50))]
    values[1] += values[0]
    if layers == "narrow":
        values[0] = values[0][:, :9]
    if layers == "deficient":
        values = [np.concatenate([item, item[:, :7]], 1) for item in values]
    sides = [Side.of(item) for item in values]
    for rows in subsamples(240, 3, 0, share):
        found = MEASURES[name].compare(sides[0].subset(rows), sides[1].subset(rows))
        expected = exactly(name, (sides[0].scores[rows], sides[1].scores[rows]))
        assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["pwcca", "shape_distance_0.5"])
def test_where_halves_hold_too_few_samples_three_quarters_give_an_interval_about_as_wide_as_new_samples_would_spread(
    name: str,
):
    measure = MEASURES[name]
    values, widths = [], []
    mixing = np.random.default_rng(1).normal(size=(2, 4, 20))
    for seed in range(60):
        generator = np.random.default_rng(seed)
        shared = generator.normal(size=(80, 4))
        sides = [Side.of(shared @ matrix + generator.normal(size=(80, 20))) for matrix in mixing]
        values.append(measure.compare(*sides))
        if seed < 12:
            with pytest.raises(DoesNotApply):
                measure.compare(*(side.subset(np.arange(40)) for side in sides))
            low, high = measure.interval(*sides, values[-1], 60, seed)
            widths.append(high - low)
    spread = np.subtract(*np.quantile(values, [0.975, 0.025]))
    # The weights of pwcca are no smooth function of the samples: what is left out counts for more, and intervals are wide.
    assert 0.75 < np.mean(widths) / spread < (1.9 if name == "pwcca" else 1.25)
