"""t-SNE: against scikit-learn's and the formula, from common starts, and new samples in an old map."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import ortho_group

from stratascope.tasks.representation.map_quality import judged, movement
from stratascope.tasks.representation.maps import KEPT_COMPONENTS, principal_components, scaled
from stratascope.tasks.representation.tsne import Tsne, affinities_of, placed_in, with_distances
from stratascope.tasks.representation.umap_and_pacmap import GraphMap
from tests.tasks.representation.blobs import blobs


def scores_of(values: np.ndarray) -> np.ndarray:
    return scaled(principal_components(values, KEPT_COMPONENTS)[0])


def divergence_of(affinities, placed: np.ndarray) -> float:
    """The formula, over all pairs."""
    wanted = affinities.P.toarray()
    near = 1 / (1 + ((placed[:, None] - placed[None]) ** 2).sum(-1))
    np.fill_diagonal(near, 0)
    held = wanted > 0
    return float((wanted[held] * np.log(wanted[held] / (near / near.sum())[held])).sum())


@pytest.mark.parametrize("dimensions", [2, 3])
def test_well_separated_clusters_part_in_the_map(dimensions: int):
    values, targets = blobs()
    mapper = Tsne()
    found = mapper.alone(mapper.prepared(scores_of(values)), dimensions)
    assert found.positions.shape == (120, dimensions)
    assert judged(values, {"map": found.positions}, targets)["map"]["knn_accuracy"][0] > 0.95
    assert 0 < found.divergence < 1.5


def test_the_divergence_is_that_of_the_two_kinds_of_affinities():
    values, _ = blobs(each=15)
    mapper = Tsne(perplexity=(10.0,))
    ready = mapper.prepared(scores_of(values))
    found = mapper.alone(ready, 2)
    # The tree's approximation of the normalisation is all that stands between them.
    assert found.divergence == pytest.approx(divergence_of(ready[0], found.positions), abs=0.03)


def test_it_is_as_good_as_scikit_learns():
    from sklearn.manifold import TSNE

    ours, theirs = [], []
    for seed in range(2):
        scores = scores_of(blobs(classes=6, each=50, distance=1.0, seed=seed)[0])
        mapper = Tsne(perplexity=(20.0,), angle=0.5)
        ready = mapper.prepared(scores)
        ours.append(divergence_of(ready[0], mapper.alone(ready, 2).positions))
        start = (scores[:, :2] / scores[:, 0].std() * 1e-4).astype(np.float32)
        other = TSNE(perplexity=20, init=start, learning_rate="auto", random_state=0, method="exact")
        theirs.append(divergence_of(ready[0], other.fit_transform(scores)))
    # Both judged by the same affinities and the full sum over pairs.
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.02)


def test_affinities_are_openTSNEs_own_and_several_perplexities_are_mixed():
    from openTSNE.affinity import Multiscale, PerplexityBasedNN

    scores = scores_of(blobs()[0])
    one = PerplexityBasedNN(scores, perplexity=20, method="exact", n_jobs=1)
    np.testing.assert_allclose(affinities_of(scores, (20.0,)).P.toarray(), one.P.toarray(), atol=1e-12)
    two = Multiscale(scores, perplexities=[5, 20], method="exact", n_jobs=1)
    np.testing.assert_allclose(affinities_of(scores, (20.0, 5.0)).P.toarray(), two.P.toarray(), atol=1e-12)


def test_neighbours_and_distances_are_exact_and_in_order():
    from sklearn.neighbors import NearestNeighbors

    values = np.random.default_rng(0).normal(size=(700, 5))
    nearest, distances = with_distances(values, 10)
    expected, places = NearestNeighbors(n_neighbors=10).fit(values).kneighbors()
    np.testing.assert_array_equal(nearest, places)
    np.testing.assert_allclose(distances, expected, atol=1e-12)


def test_equal_input_gives_equal_bytes_with_a_tree_and_with_a_grid():
    generator = np.random.default_rng(0)
    for count in (120, 2100):
        scores = generator.normal(size=(count, 6))
        mapper = Tsne(iterations=50)
        ready = mapper.prepared(scores)
        first, second = (mapper.continued(ready, scores[:, :2]) for _ in range(2))
        assert first.positions.tobytes() == second.positions.tobytes()
        assert first.divergence == second.divergence


def test_equal_steps_and_turned_steps_have_equal_maps():
    values, _ = blobs()
    turned = values @ ortho_group.rvs(20, random_state=0) * 3 + 10
    mapper = Tsne()
    ready = [mapper.prepared(scores_of(item)) for item in (values, values, turned)]
    start = mapper.consensus(ready, 2).positions
    first, second, third = (mapper.continued(item, start) for item in ready)
    np.testing.assert_array_equal(first.positions, second.positions)
    # Rounding grows in a descent of hundreds of steps, but the places stay the same.
    assert movement(first.positions, third.positions) < 0.05


def test_a_common_start_moves_less_than_starts_of_their_own_at_about_the_same_divergence():
    generator = np.random.default_rng(0)
    values, _ = blobs(classes=8, each=40, distance=0.9, seed=1)
    steps = [scores_of(values + generator.normal(size=values.shape) * 0.5) for _ in range(3)]
    mapper = Tsne()
    ready = [mapper.prepared(item) for item in steps]
    start = mapper.consensus(ready, 2).positions
    common = [mapper.continued(item, start) for item in ready]
    own = [mapper.alone(item, 2) for item in ready]
    moved, moved_own = (
        np.mean([movement(first.positions, second.positions) for first, second in pairwise(maps)])
        for maps in (common, own)
    )
    assert moved < 0.7 * moved_own
    costs = [item.divergence / other.divergence - 1 for item, other in zip(common, own, strict=True)]
    assert np.mean(costs) < 0.05


def test_many_equal_samples_beside_some_different_ones_are_mapped():
    values, _ = blobs(classes=2, each=15)
    values = np.concatenate([values, np.repeat(values[:1], 100, axis=0)])
    mapper = Tsne()
    found = mapper.alone(mapper.prepared(scores_of(values)), 2)
    assert np.isfinite(found.positions).all()
    assert np.isfinite(found.divergence)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_new_samples_join_their_class_and_do_not_depend_on_each_other(dimensions: int):
    values, targets = blobs(each=40)
    scores = scores_of(values)
    old = np.arange(len(values)) % 4 != 0
    mapper = Tsne()
    drawn = mapper.alone(mapper.prepared(scores[old]), dimensions).positions
    kept = drawn.copy()
    placed = placed_in(drawn, scores[old], scores[~old])
    np.testing.assert_array_equal(drawn, kept)
    distances = ((placed[:, None] - drawn[None]) ** 2).sum(2)
    assert (targets[old][distances.argmin(1)] == targets[~old]).mean() == 1.0
    alone = placed_in(drawn, scores[old], scores[~old][:3])
    radius = np.sqrt((drawn**2).sum(1).mean())
    assert np.linalg.norm(alone - placed[:3], axis=1).max() < 0.05 * radius


# UMAP compiles itself for half a minute first.
@pytest.mark.parametrize("method", [pytest.param("umap", marks=pytest.mark.slow), "pacmap"])
def test_the_extras_part_clusters_repeat_to_the_byte_and_stay_near_their_start(method: str):
    pytest.importorskip(method, reason=f"{method} is an extra: pip install 'stratascope[{method}]'")
    values, targets = blobs()
    scores = scores_of(values)
    mapper = GraphMap(method)
    first, second = mapper.alone(scores, 2).positions, mapper.alone(scores, 2).positions
    assert first.tobytes() == second.tobytes()
    assert judged(values, {"map": first}, targets)["map"]["knn_accuracy"][0] > 0.95
    start = mapper.consensus([scores, scores], 2).positions
    joined = mapper.continued(scores, start).positions
    assert joined.tobytes() == mapper.continued(scores, start).positions.tobytes()
    assert movement(start, joined) < movement(start, mapper.alone(scores[::-1], 2).positions)
