"""How far a map may be believed: against scikit-learn and scipy, and where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import ortho_group, spearmanr
from sklearn.manifold import trustworthiness

from stratascope.tasks.representation.map_quality import (
    distance_correlations,
    judged,
    kept_neighbours,
    movement,
    neighbours_for,
)
from stratascope.tasks.representation.maps import principal_components
from tests.tasks.representation.blobs import blobs


def test_trustworthiness_and_continuity_are_scikit_learns():
    features, targets = blobs(distance=1.0, each=150)
    maps = {"pca": principal_components(features, 2)[0], "noise": np.random.default_rng(4).normal(size=(600, 2))}
    found = judged(features, maps, targets)
    for name, placed in maps.items():
        trust = trustworthiness(features, placed, n_neighbors=15)
        assert found[name]["trustworthiness"][0] == pytest.approx(trust, abs=1e-12)
        # The same with the roles exchanged.
        whole = trustworthiness(placed, features, n_neighbors=15)
        assert found[name]["continuity"][0] == pytest.approx(whole, abs=1e-12)


def test_a_map_of_points_as_themselves_is_perfect_and_a_shuffled_one_is_chance():
    points = np.random.default_rng(5).normal(size=(400, 2))
    shuffled = points[np.random.default_rng(6).permutation(400)]
    found = judged(points, {"same": points, "shuffled": shuffled}, None)
    assert {name: value[0] for name, value in found["same"].items()} == {
        "trustworthiness": 1.0, "continuity": 1.0, "knn_preservation": 1.0,
    }  # fmt: skip
    assert found["same"]["knn_preservation"] == (1.0, 1.0, 1.0)
    assert found["shuffled"]["trustworthiness"][0] == pytest.approx(0.5, abs=0.08)
    assert found["shuffled"]["knn_preservation"][0] == pytest.approx(15 / 399, abs=0.015)
    assert found[""] == {}


def test_rotation_scale_and_order_change_nothing():
    features, targets = blobs(distance=1.0)
    placed = principal_components(features, 2)[0]
    order = np.random.default_rng(0).permutation(len(features))
    turned = features @ ortho_group.rvs(20, random_state=1) * 5 + 3
    first = judged(features, {"map": placed}, targets)["map"]
    second = judged(turned[order], {"map": placed[order] * -2 + 1}, targets[order])["map"]
    for name in first:
        assert first[name][0] == pytest.approx(second[name][0], abs=1e-12), name


def test_intervals_hold_the_value_of_more_samples():
    generator = np.random.default_rng(2)
    many = generator.normal(size=(2000, 5))
    truth = judged(many[:, :], {"map": many[:, :2]}, None)["map"]["knn_preservation"]
    assert truth[1] < truth[0] < truth[2]
    fewer = judged(many[:200], {"map": many[:200, :2]}, None)["map"]["knn_preservation"]
    assert fewer[2] - fewer[1] > 2 * (truth[2] - truth[1])


def test_distances_correlate_as_scipy_says():
    features, targets = blobs(distance=1.0)
    placed = principal_components(features, 2)[0]
    found = distance_correlations(features, {"map": placed, "same": features * 3}, targets)
    expected = spearmanr(pdist(features), pdist(placed)).statistic
    assert found["map"]["distance_correlation"][0] == pytest.approx(expected, abs=1e-9)
    assert found["same"]["distance_correlation"][0] == pytest.approx(1.0)
    low, high = found["map"]["distance_correlation"][1:]
    assert low < expected < high
    means = [np.stack([values[targets == kind].mean(0) for kind in range(4)]) for values in (features, placed)]
    between = spearmanr(*(pdist(item) for item in means)).statistic
    assert found["map"]["centroid_distance_correlation"][0] == pytest.approx(between)
    assert (
        "centroid_distance_correlation" not in distance_correlations(features, {"map": placed}, targets % 3)["map"]
    )


def test_movement_is_in_radii_and_knows_no_unit():
    placed = np.random.default_rng(0).normal(size=(100, 2))
    placed -= placed.mean(0)
    radius = np.sqrt((placed**2).sum(1).mean())
    assert movement(placed, placed) == 0
    assert movement(placed, placed + [radius / 2, 0]) == pytest.approx(0.5)
    assert movement(7 * placed, 7 * (placed + [radius / 2, 0])) == pytest.approx(0.5)


def test_neighbours_are_kept_by_a_turned_copy_and_not_by_another_map():
    generator = np.random.default_rng(0)
    placed = generator.normal(size=(300, 2))
    turned, other = placed @ ortho_group.rvs(2, random_state=0) * 4, generator.normal(size=(300, 2))
    assert kept_neighbours(placed, [turned])[0] == 1.0
    chance = 15 / 299
    assert kept_neighbours(placed, [other])[0] == pytest.approx(chance, abs=0.02)
    assert kept_neighbours(placed, [turned, other])[0] == pytest.approx((1 + chance) / 2, abs=0.02)
    assert neighbours_for(10) == 4
