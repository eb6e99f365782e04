"""Similarities against closed forms and scikit-image; zero is no direction, and no noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from stratascope.tasks.vision.map_similarity import cosines, rank_correlations, structural_similarities


@pytest.fixture
def maps():
    return np.random.default_rng(0).normal(size=(3, 2, 14, 17)).astype(np.float32)


def test_the_same_the_opposite_and_a_multiple(maps):
    for measure, first in (
        (cosines, maps),
        (rank_correlations, maps),
        (structural_similarities, np.abs(maps).sum(1)),
    ):
        np.testing.assert_allclose(measure(first, first), 1, atol=1e-9)
        np.testing.assert_allclose(measure(first, 5 * first), 1, atol=1e-9)
        assert (measure(first, np.roll(first, 1, axis=0)) < 0.3).all()
    for measure in (cosines, rank_correlations):
        np.testing.assert_allclose(measure(maps, -maps), -1, atol=1e-9)
    with pytest.raises(ValueError, match="values below zero"):
        structural_similarities(maps.sum(1), -maps.sum(1))


def test_ranks_are_spearman_s(maps):
    other = np.where(np.random.default_rng(1).random(maps.shape) < 0.4, 0, maps**3 + 0.3 * maps[::-1])
    expected = [spearmanr(one.ravel(), two.ravel()).statistic for one, two in zip(maps, other, strict=True)]
    np.testing.assert_allclose(rank_correlations(maps, other), expected, atol=1e-12)


def test_structure_is_that_of_scikit_image(maps):
    metrics = pytest.importorskip("skimage.metrics")
    sizes = (np.abs(part).sum(1) for part in (maps, maps + 0.5 * maps[::-1]))
    first, second = (part / part.max((1, 2), keepdims=True) for part in sizes)
    found = structural_similarities(first * 3, second * 0.1)
    for row in range(3):
        _, whole = metrics.structural_similarity(
            first[row].astype(float), second[row].astype(float), data_range=1, gaussian_weights=True, sigma=1.5,
            use_sample_covariance=False, full=True,
        )  # fmt: skip
        assert found[row] == pytest.approx(whole.mean(), abs=1e-6)


def test_p20_maps_of_zeros_have_no_direction_and_are_alike(maps):
    zeros = np.zeros_like(maps)
    assert np.isnan(cosines(maps, zeros)).all()
    assert np.isnan(rank_correlations(zeros, zeros)).all()
    np.testing.assert_allclose(structural_similarities(zeros.sum(1), zeros.sum(1)), 1)
