"""How far apart classes lie: against scikit-learn, closed forms, and what must not change it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import ortho_group

from stratascope.tasks.representation.class_separation import (
    ClassMoments,
    Grouping,
    confusion,
    davies_bouldin,
    fisher_ratio,
    silhouettes,
    votes,
    with_company,
)
from stratascope.tasks.representation.distances import (
    Neighbours,
    centred_values,
    different_rows,
    distance_matrix,
    reserve,
)


def blobs(seed: int, count: int = 90, features: int = 6, classes: int = 4, apart: float = 2.0):
    """Classes of unlike sizes around centres that lie `apart` times as far as they are wide."""
    generator = np.random.default_rng(seed)
    index = np.sort(
        generator.choice(classes, count, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    )
    index[: 2 * classes] = np.arange(2 * classes) % classes
    centres = apart * generator.normal(size=(classes, features))
    return (centres[index] + generator.normal(size=(count, features))) + 7.0, index


def moments_of(values: np.ndarray, index: np.ndarray, weight: np.ndarray | None = None) -> ClassMoments:
    centred = centred_values(values)
    return ClassMoments.of(centred, (centred**2).sum(1), Grouping.of(index), weight)


def scores(values: np.ndarray, index: np.ndarray) -> list[float]:
    centred = centred_values(values)
    distances = distance_matrix(centred)
    grouping = Grouping.of(index)
    moments = moments_of(values, index)
    given_classes = votes(Neighbours.among(distances, 5), grouping.index, len(grouping.values))
    return [
        float(np.nanmean(silhouettes(distances, grouping))),
        fisher_ratio(moments),
        davies_bouldin(moments),
        float((given_classes == grouping.index).mean()),
    ]


@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_those_of_scikit_learn(seed: int):
    from sklearn.metrics import (
        calinski_harabasz_score,
        davies_bouldin_score,
        silhouette_samples,
        silhouette_score,
    )
    from sklearn.model_selection import LeaveOneOut, cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier

    values, index = blobs(seed, apart=0.7)
    silhouette, ratio, bouldin, accuracy = scores(values, index)
    assert silhouette == pytest.approx(silhouette_score(values, index), abs=1e-10)
    assert bouldin == pytest.approx(davies_bouldin_score(values, index), rel=1e-10)
    # Calinski and Harabasz divide both scatters by their degrees of freedom.
    count, classes = len(index), 4
    assert ratio * (count - classes) / (classes - 1) == pytest.approx(calinski_harabasz_score(values, index))
    told = cross_val_predict(KNeighborsClassifier(5, algorithm="brute"), values, index, cv=LeaveOneOut())
    assert accuracy == (told == index).mean()
    grouping = Grouping.of(index)
    found = votes(Neighbours.among(distance_matrix(centred_values(values)), 5), index, classes)
    np.testing.assert_array_equal(found, told)
    np.testing.assert_allclose(
        silhouettes(cdist(values, values), grouping), silhouette_samples(values, index), atol=1e-10
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), scale=st.floats(1e-3, 1e3), features=st.integers(2, 12))
def test_scores_do_not_change_with_rotation_scale_translation_and_order(seed: int, scale: float, features: int):
    values, index = blobs(seed, 40, features, 3, apart=1.0)
    turn = ortho_group.rvs(features, random_state=seed)
    order = np.random.default_rng(seed).permutation(len(values))
    moved = (scale * values @ turn + scale * 3.0)[order]
    np.testing.assert_allclose(scores(moved, index[order]), scores(values, index), rtol=1e-7, atol=1e-9)


def test_a_subset_is_scored_as_if_there_were_no_other_samples():
    values, index = blobs(5)
    rows = np.sort(np.random.default_rng(0).permutation(len(values))[:45])
    whole = distance_matrix(centred_values(values))
    alone = silhouettes(distance_matrix(centred_values(values[rows])), Grouping.of(index[rows]))
    np.testing.assert_allclose(silhouettes(whole, Grouping.of(index), rows), alone, atol=1e-12)
    known = Neighbours.among(whole, reserve(5, len(values))).within(rows, 5)
    again = Neighbours.of(centred_values(values[rows]), 5)
    np.testing.assert_array_equal(known.order, rows[again.order])
    np.testing.assert_allclose(known.distance, again.distance, rtol=1e-12)


def test_weights_count_a_sample_as_often_as_they_say():
    values, index = blobs(6)
    weight = np.random.default_rng(1).integers(1, 4, len(values))
    repeated = moments_of(np.repeat(values, weight, axis=0), np.repeat(index, weight))
    weighted = moments_of(values, index, weight)
    assert fisher_ratio(weighted) == pytest.approx(fisher_ratio(repeated), rel=1e-10)
    assert davies_bouldin(weighted) == pytest.approx(davies_bouldin(repeated), rel=1e-10)


def test_two_points_a_class_have_the_closed_form():
    values, index = np.array([[0.0], [2.0], [10.0], [12.0]]), np.array([0, 0, 1, 1])
    # Samples at 0 and 12 have a = 2, b = 11; those at 2 and 10 a = 2, b = 9.
    found = silhouettes(cdist(values, values), Grouping.of(index))
    np.testing.assert_allclose(found, [9 / 11, 7 / 9, 7 / 9, 9 / 11])
    assert fisher_ratio(moments_of(values, index)) == pytest.approx(25.0)
    assert davies_bouldin(moments_of(values, index)) == pytest.approx(0.2)


def test_what_is_undefined_is_not_a_number_and_never_an_error():
    alike = np.repeat([[0.0, 0.0], [1.0, 1.0]], 3, axis=0)
    index = np.repeat([0, 1], 3)
    assert np.isnan(fisher_ratio(moments_of(alike, index)))
    same = np.tile([[0.0, 0.0], [1.0, 1.0]], (3, 1))
    assert np.isnan(davies_bouldin(moments_of(same, np.array([0, 0, 1, 1, 2, 2]))))
    found = silhouettes(cdist(alike, alike), Grouping.of(np.array([0, 0, 0, 1, 1, 2])))
    assert np.isnan(found[-1])
    assert found[0] == 1.0
    assert with_company(np.array([3, 1, 3, 2])).tolist() == [True, False, True, False]


def test_a_confusion_counts_each_sample_once():
    found = confusion(np.array([0, 0, 1, 2]), np.array([0, 2, 1, 2]), 3)
    assert found.tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 1]]


def test_equal_samples_have_distance_zero_and_near_ones_the_right_one():
    generator = np.random.default_rng(3)
    values = generator.normal(size=(600, 30)) + 1000.0
    values[10] = values[500]
    values[11] = values[501] + 1e-6
    centred = centred_values(values)
    found = distance_matrix(centred)
    assert found[10, 500] == 0
    assert found[11, 501] == pytest.approx(1e-6 * np.sqrt(30), rel=1e-3)
    np.testing.assert_allclose(found, cdist(centred, centred), rtol=1e-9, atol=1e-9)
    near = Neighbours.of(centred, 4)
    again = Neighbours.among(found, 4)
    np.testing.assert_array_equal(near.order, again.order)
    np.testing.assert_allclose(near.distance, again.distance, rtol=1e-12)
    assert len(different_rows(values)) == 599
    assert len(different_rows(np.array([[0.0], [-0.0], [1.0]]))) == 2
