"""Directions that features use, dimensions of manifolds, hubs: known answers, scikit-dimension, and invariances."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group, skew

from stratascope.tasks.representation.dimensionality import (
    Spectrum,
    class_radius,
    effective_rank,
    fitted_ranks,
    mean_cosine,
    participation_ratio,
    power_law,
)
from stratascope.tasks.representation.distances import Neighbours, centred_values
from stratascope.tasks.representation.hubness import hub_share, occurrences, orphan_share, skewness
from stratascope.tasks.representation.intrinsic_dimension import maximum_likelihood, two_nearest
from stratascope.tasks.representation.resampling import bootstrap_counts


def manifold(dimension: int, count: int, seed: int = 0) -> np.ndarray:
    """A bent torus of `dimension` angles in `2 * dimension + 24` coordinates: without an edge, and not flat."""
    generator = np.random.default_rng(seed)
    angles = generator.uniform(0, 2 * np.pi, (count, dimension))
    circles = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)
    bent = np.tanh(circles @ generator.normal(size=(2 * dimension, 24)) / np.sqrt(2 * dimension))
    return np.concatenate([circles, 0.3 * bent], axis=1)


def variances_of(values: np.ndarray) -> np.ndarray:
    return Spectrum.of(centred_values(values)).variances


@pytest.mark.parametrize("dimension", [1, 2, 3, 4, 5])
def test_both_estimators_find_the_dimension_of_a_bent_manifold(dimension: int):
    distance = Neighbours.of(centred_values(manifold(dimension, 5000)), 10).distance
    assert two_nearest(distance) == pytest.approx(dimension, rel=0.1)
    assert maximum_likelihood(distance) == pytest.approx(dimension, rel=0.1)


def test_both_estimators_equal_those_of_scikit_dimension():
    skdim = pytest.importorskip("skdim", reason="scikit-dimension is not installed")
    values = manifold(3, 800, seed=1)
    near = Neighbours.of(centred_values(values), 20)
    assert two_nearest(near.distance) == pytest.approx(
        skdim.id.TwoNN(discard_fraction=0.1).fit(values).dimension_, rel=1e-9
    )
    pairs = (near.distance, near.order)
    found = skdim.id.MLE(K=20, neighborhood_based=True).fit(
        values, precomputed_knn_arrays=pairs, n_neighbors=20, comb="mle"
    )
    assert maximum_likelihood(near.distance) == pytest.approx(found.dimension_, rel=1e-9)


def test_all_alike_distances_have_no_dimension():
    assert np.isnan(two_nearest(np.ones((30, 5))))
    assert np.isnan(maximum_likelihood(np.ones((30, 5))))


def test_isotropic_features_use_all_directions_and_features_on_a_line_one():
    generator = np.random.default_rng(0)
    turned, _ = np.linalg.qr(centred_values(generator.normal(size=(200, 12))))
    assert effective_rank(variances_of(turned)) == pytest.approx(12)
    assert participation_ratio(variances_of(turned)) == pytest.approx(12)
    line = np.outer(generator.normal(size=200), generator.normal(size=12)) + 3.0
    # What rounding leaves of the other singular values is 1e-8 of the first at most.
    assert effective_rank(variances_of(line)) == pytest.approx(1, abs=1e-4)
    assert participation_ratio(variances_of(line)) == pytest.approx(1)


def test_the_spectrum_is_that_of_numpy_on_either_side_of_square():
    for shape in ((50, 8), (8, 50)):
        values = np.random.default_rng(1).normal(size=shape)
        expected = np.linalg.svd(centred_values(values), compute_uv=False) ** 2 / shape[0]
        np.testing.assert_allclose(variances_of(values), expected, atol=1e-12)
        found = Spectrum.of(centred_values(values))
        np.testing.assert_allclose((found.scores**2).mean(0), found.variances, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), scale=st.floats(1e-3, 1e3), features=st.integers(2, 30))
def test_shapes_do_not_change_with_rotation_scale_translation_and_order(seed: int, scale: float, features: int):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(40, features)) * generator.uniform(0.1, 2, features)
    turn = ortho_group.rvs(features, random_state=seed)
    moved = (scale * values @ turn + scale)[generator.permutation(40)]

    def measures(item: np.ndarray) -> list[float]:
        variances = variances_of(item)[:39]
        near = Neighbours.of(centred_values(item), 6)
        counts = occurrences(near.order, 40)
        return [
            float(effective_rank(variances)), float(participation_ratio(variances)), two_nearest(near.distance),
            maximum_likelihood(near.distance), skewness(counts), hub_share(counts, 6), orphan_share(counts),
        ]  # fmt: skip

    np.testing.assert_allclose(measures(moved), measures(values), rtol=1e-6)
    np.testing.assert_allclose(
        mean_cosine(scale * values @ turn, np.ones((1, 40), int)),
        mean_cosine(values, np.ones((1, 40), int)),
        atol=1e-9,
    )


def test_a_power_law_is_found_and_what_is_none_is_doubted():
    ranks = np.arange(1, 301)
    first, last = fitted_ranks(ranks**-1.5, 2000)
    assert (first, last) == (20, 200)
    law = power_law(7.0 * ranks**-1.5, first, last)
    assert law.exponent == pytest.approx(1.5)
    assert law.fit == pytest.approx(1)
    assert law.doubt == ""
    falling = power_law(np.exp(-ranks / 20.0), first, last)
    assert "R²" in falling.doubt
    generator = np.random.default_rng(0)
    assert "no power law" in power_law(np.sort(generator.uniform(0.5, 1.5, 300))[::-1], 1, 20).doubt
    assert fitted_ranks(ranks**-1.0, 190) == (0, 0)


def test_the_mean_cosine_is_that_of_all_pairs_and_repeats_do_not_count_as_pairs():
    values = np.random.default_rng(2).normal(size=(20, 5)) + 0.5
    directions = values / np.linalg.norm(values, axis=1, keepdims=True)
    cosines = directions @ directions.T
    expected = cosines[np.triu_indices(20, 1)].mean()
    assert mean_cosine(values, np.ones((1, 20), int))[0] == pytest.approx(expected)
    counts = bootstrap_counts(20, 1, 0)
    pairs = np.outer(counts[0], counts[0]) * (1 - np.eye(20))
    assert mean_cosine(values, counts)[0] == pytest.approx((pairs * cosines).sum() / pairs.sum())


def test_the_interval_of_the_effective_rank_is_as_wide_as_fresh_samples_say():
    sizes = np.arange(1, 31) ** -0.7
    fresh = [
        effective_rank(variances_of(np.random.default_rng(seed).normal(size=(400, 30)) * sizes))
        for seed in range(200)
    ]
    values = np.random.default_rng(999).normal(size=(400, 30)) * sizes
    drawn = effective_rank(Spectrum.of(centred_values(values)).resampled(bootstrap_counts(400, 200, 0)))
    assert drawn.std() == pytest.approx(np.std(fresh), rel=0.25)


def test_resampled_variances_are_right_to_first_order():
    values = centred_values(np.random.default_rng(5).normal(size=(300, 6)) * [6, 5, 4, 3, 2, 1])
    errors = []
    for step in (0.01, 0.001):
        counts = np.ones((1, 300))
        counts[0, :3] += step
        exact = np.linalg.eigvalsh(np.cov(values.T, aweights=counts[0], bias=True))[::-1]
        errors.append(np.abs(Spectrum.of(values).resampled(counts)[0] - exact).max())
        assert errors[-1] < 1e-3 * np.abs(exact - variances_of(values)).max()
    assert errors[0] == pytest.approx(100 * errors[1], rel=0.1)  # what is left is of second order


def test_hubs_are_counted():
    order = np.array([[1, 2], [0, 2], [0, 1], [0, 1], [0, 1]])
    counts = occurrences(order, 5)
    assert counts.tolist() == [4, 4, 2, 0, 0]
    assert skewness(counts) == pytest.approx(skew(counts))
    assert hub_share(np.array([5, 2, 2, 1, 0]), 2) == 0.5
    assert orphan_share(counts) == 0.4
    assert np.isnan(skewness(np.full(4, 2)))


def test_hubness_grows_with_the_dimension():
    generator = np.random.default_rng(0)

    def found(features: int) -> float:
        near = Neighbours.of(centred_values(generator.normal(size=(800, features))), 10)
        return skewness(occurrences(near.order, 800))

    assert found(3) < 0.5
    assert found(100) > 1.5


def test_the_radius_of_a_class_is_its_spread_by_the_distance_of_its_centre():
    centres = np.array([[3.0, 0.0], [-3.0, 0.0]])
    np.testing.assert_allclose(class_radius(np.array([9.0, 36.0]), centres), [1.0, 2.0])
    assert np.isnan(class_radius(np.ones(2), np.ones((2, 2)))).all()
