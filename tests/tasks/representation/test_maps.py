"""Principal components, alignment, t-SNE and their quality: against scikit-learn, analytic cases and invariances."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ortho_group
from sklearn.decomposition import PCA
from sklearn.manifold import trustworthiness

from stratascope.tasks.representation.maps import (
    Neighbourhoods,
    Reference,
    align_backwards,
    fitting_perplexity,
    nearest_in,
    principal_components,
    scaled,
    tsne_maps,
    unfit,
    voted_accuracy,
)


def blobs(classes: int = 4, each: int = 30, width: int = 20, distance: float = 8.0, seed: int = 0):
    generator = np.random.default_rng(seed)
    targets = np.repeat(np.arange(classes), each)
    return generator.normal(size=(classes, width))[targets] * distance + generator.normal(
        size=(len(targets), width)
    ), targets


def maps_of(features, dimensions: int = 2, iterations: int = 175):
    reduced = [scaled(principal_components(values, 50)[0]) for values in features]
    neighbourhoods = Neighbourhoods.of(reduced, fitting_perplexity(30, len(reduced[0])), seed=0)
    return tsne_maps(neighbourhoods, dimensions, iterations)


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


def test_rotated_and_reflected_copies_coincide_once_aligned():
    values = np.random.default_rng(2).normal(size=(50, 3)) * [3, 2, 1]
    copies = [values @ ortho_group.rvs(3, random_state=seed) for seed in range(4)] + [values]
    aligned = align_backwards(copies)
    assert aligned.shape == (5, 50, 3)
    for placed in aligned:
        np.testing.assert_allclose(placed, values, atol=1e-10)


def test_alignment_keeps_growth_visible():
    values = np.random.default_rng(3).normal(size=(20, 2))
    aligned = align_backwards([values @ np.array([[0.0, -0.5], [0.5, 0.0]]), values])
    np.testing.assert_allclose(aligned[0], values / 2, atol=1e-12)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_well_separated_clusters_part_in_the_map(dimensions: int):
    values, targets = blobs()
    maps, divergences = maps_of([values], dimensions)
    assert maps.shape == (1, 120, dimensions)
    assert voted_accuracy(nearest_in(maps[0], 15), targets) > 0.95
    assert 0 < divergences[0] < 1.5


def test_the_divergence_is_that_of_the_two_kinds_of_affinities():
    values, _ = blobs(each=15)
    reduced = scaled(principal_components(values, 50)[0])
    neighbourhoods = Neighbourhoods.of([reduced], 10, seed=0)
    maps, divergences = tsne_maps(neighbourhoods, 2, 100)
    wanted = neighbourhoods.affinities[0].P.toarray()
    near = 1 / (1 + ((maps[0][:, None] - maps[0][None]) ** 2).sum(-1))
    np.fill_diagonal(near, 0)
    held = wanted > 0
    exact = (wanted[held] * np.log(wanted[held] / (near / near.sum())[held])).sum()
    # The tree's approximation of the normalisation is all that stands between them.
    assert divergences[0] == pytest.approx(exact, abs=0.03)


def test_equal_input_gives_equal_bytes():
    features = [blobs(seed=seed)[0] for seed in range(2)]
    once, again = maps_of(features), maps_of(features)
    assert once[0].tobytes() == again[0].tobytes()
    assert once[1].tobytes() == again[1].tobytes()


def test_equal_steps_and_turned_steps_have_equal_maps():
    values, _ = blobs()
    turned = values @ ortho_group.rvs(20, random_state=0) * 3 + 10
    maps, divergences = maps_of([values, values, turned])
    np.testing.assert_array_equal(maps[0], maps[1])
    assert divergences[0] == divergences[1]
    # Rounding grows in a descent of hundreds of steps, but the places stay the same.
    radius = np.sqrt((maps[0] ** 2).sum(1).mean())
    assert np.median(np.linalg.norm(maps[2] - maps[0], axis=1)) / radius < 0.05


def test_trustworthiness_and_neighbours_votes_are_scikit_learns():
    features, targets = blobs(distance=1.0)
    for placed in (principal_components(features, 2)[0], np.random.default_rng(4).normal(size=(120, 2))):
        reference = Reference(features, 15)
        near = nearest_in(placed, 15)
        assert reference.trustworthiness(near) == pytest.approx(
            trustworthiness(features, placed, n_neighbors=15), abs=1e-12
        )
    from sklearn.model_selection import LeaveOneOut, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    expected = cross_val_score(KNeighborsClassifier(15), features, targets, cv=LeaveOneOut()).mean()
    assert voted_accuracy(reference.nearest, targets) == pytest.approx(expected)


def test_a_map_of_points_as_themselves_is_trusted_and_a_shuffled_one_is_not():
    points = np.random.default_rng(5).normal(size=(200, 2))
    reference = Reference(points, 15)
    assert reference.trustworthiness(nearest_in(points, 15)) == 1.0
    shuffled = points[np.random.default_rng(6).permutation(200)]
    assert reference.trustworthiness(nearest_in(shuffled, 15)) == pytest.approx(0.5, abs=0.08)


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


def test_many_equal_samples_beside_some_different_ones_are_mapped():
    values, _ = blobs(classes=2, each=15)
    values = np.concatenate([values, np.repeat(values[:1], 100, axis=0)])
    maps, divergences = maps_of([values])
    assert np.isfinite(maps).all()
    assert np.isfinite(divergences).all()
