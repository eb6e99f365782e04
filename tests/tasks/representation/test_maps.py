"""Principal components, alignment, neighbours' votes, and what can be mapped: against scikit-learn and analytic cases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ortho_group
from sklearn.decomposition import PCA

from stratascope.tasks.representation.maps import (
    nearest_in,
    principal_components,
    turned_onto,
    unfit,
    voted_accuracy,
)
from tests.tasks.representation.blobs import blobs


@pytest.mark.parametrize("shape", [(60, 12), (30, 90), (10, 10)])
def test_principal_components_are_scikit_learns_up_to_their_signs(shape):
    values = np.random.default_rng(0).normal(size=shape) @ np.diag(np.linspace(3, 1, shape[1])) + 50
    scores, shares = principal_components(values, 5)
    reference = PCA(5, svd_solver="full")
    expected = reference.fit_transform(values)
    signs = np.sign((scores * expected).sum(0))
    np.testing.assert_allclose(scores * signs, expected, atol=1e-8)
    np.testing.assert_allclose(shares, reference.explained_variance_ratio_, atol=1e-10)
    assert (scores[np.abs(scores).argmax(0), range(5)] > 0).all()


def test_explained_variance_of_a_known_covariance():
    # Orthogonal columns of sums of squares 9, 4, 1 and mean 0.
    columns = np.linalg.qr(np.column_stack([np.ones(40), np.random.default_rng(1).normal(size=(40, 3))]))[0][:, 1:]
    values = columns @ np.diag([3.0, 2.0, 1.0]) @ ortho_group.rvs(3, random_state=0) + 7
    _, shares = principal_components(values, 3)
    np.testing.assert_allclose(shares, [9 / 14, 4 / 14, 1 / 14], atol=1e-12)


def test_fewer_dimensions_than_asked_for_are_filled_with_zeros():
    line = np.outer(np.arange(12.0), np.ones(4))
    scores, shares = principal_components(line, 3)
    np.testing.assert_allclose(shares, [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(scores[:, 1:], 0, atol=1e-6)
    assert principal_components(line[:, :1], 3)[0].shape == (12, 3)


def test_rotated_and_reflected_copies_coincide_once_turned():
    values = np.random.default_rng(2).normal(size=(50, 3)) * [3, 2, 1]
    for seed in range(4):
        np.testing.assert_allclose(
            turned_onto(values @ ortho_group.rvs(3, random_state=seed), values), values, atol=1e-10
        )


def test_turning_keeps_growth_visible():
    values = np.random.default_rng(3).normal(size=(20, 2))
    turned = turned_onto(values @ np.array([[0.0, -0.5], [0.5, 0.0]]), values)
    np.testing.assert_allclose(turned, values / 2, atol=1e-12)


def test_neighbours_votes_are_scikit_learns():
    from sklearn.model_selection import LeaveOneOut, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    features, targets = blobs(distance=1.0)
    expected = cross_val_score(KNeighborsClassifier(15), features, targets, cv=LeaveOneOut()).mean()
    assert voted_accuracy(nearest_in(features, 15), targets) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.where(np.arange(20)[:, None] == 3, np.nan, np.ones((20, 2))), "1 of 20 samples are not finite"),
        (np.random.default_rng(0).normal(size=(9, 2)), "at least 10 samples, there are 9"),
        (np.full((20, 3), 2.5), "constant"),
        (np.repeat(np.eye(3), 10, axis=0), "only 3 of 30 samples differ"),
        (np.random.default_rng(0).normal(size=(10, 1)), ""),
    ],
)
def test_features_that_cannot_be_mapped_say_why(values, reason: str):
    found = unfit(values)
    assert reason in found if reason else found == ""
