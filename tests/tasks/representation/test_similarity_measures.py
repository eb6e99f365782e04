"""Every measure against an independent computation, and what each is and is not blind to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import orthogonal_procrustes, subspace_angles
from scipy.spatial.distance import pdist, squareform
from scipy.stats import ortho_group, spearmanr
from sklearn.cross_decomposition import CCA
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.neighbors import NearestNeighbors

from stratascope.errors import DoesNotApply
from stratascope.tasks.representation.similarity_measures import (
    INVARIANCES,
    MEASURES,
    NEIGHBOURS,
    RIDGE,
    cka,
    rsa,
    shape_measure,
)
from stratascope.tasks.representation.similarity_sides import Side


def pair(seed: int = 0, n: int = 60, first: int = 7, second: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Two layers that share half of what they hold, off centre and stretched."""
    generator = np.random.default_rng(seed)
    shared = generator.normal(size=(n, 3))

    def layer(width: int) -> np.ndarray:
        own = shared @ generator.normal(size=(3, width)) + generator.normal(size=(n, width))
        return (own * generator.uniform(0.5, 2, width) + generator.normal(size=width)).astype(np.float64)

    return layer(first), layer(second)


def compared(name: str, first: np.ndarray, second: np.ndarray) -> float:
    return MEASURES[name].checked(Side.of(first), Side.of(second))


# -- invariances -----------------------------------------------------------------------------------------


def changed(kind: str, values: np.ndarray, seed: int) -> np.ndarray:
    generator = np.random.default_rng([seed, 7])
    width = values.shape[1]
    if kind == "feature_permutation":
        return values[:, generator.permutation(width)]
    if kind == "rotation":
        return values @ ortho_group.rvs(width, random_state=seed)
    if kind == "isotropic_scaling":
        return values * generator.choice([0.01, 0.3, 40.0])
    if kind == "translation":
        return values + 3 * generator.normal(size=width)
    if kind == "invertible_linear_map":
        turns = [ortho_group.rvs(width, random_state=seed + number) for number in (1, 2)]
        return values @ turns[0] @ np.diag(np.geomspace(0.01, 3, width)) @ turns[1]
    if kind == "sample_scaling":
        return values * generator.uniform(0.2, 2, (len(values), 1))
    assert kind == "sample_order"
    return values[np.random.default_rng(3).permutation(len(values))]


DECLARED = [
    (name, kind, place)
    for name, measure in MEASURES.items()
    for kind in INVARIANCES
    for place, more in enumerate((frozenset(), measure.second_side))
    if kind in measure.invariances | more
]
UNDECLARED = [
    (name, kind, place)
    for name in MEASURES
    for kind in INVARIANCES
    for place in (0, 1)
    if (name, kind, place) not in DECLARED
]


@pytest.mark.parametrize("name", MEASURES)
@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_measure_is_blind_to_what_it_declares(name: str, seed: int):
    sides = pair(seed)
    expected = compared(name, *sides)
    for kind, place in ((kind, place) for owner, kind, place in DECLARED if owner == name):
        moved = list(sides)
        moved[place] = changed(kind, moved[place], seed)
        if kind == "sample_order":
            moved[1 - place] = changed(kind, moved[1 - place], seed)
        assert compared(name, *moved) == pytest.approx(expected, abs=3e-5), (kind, place)


@pytest.mark.parametrize(("name", "kind", "place"), UNDECLARED, ids=lambda item: str(item))
def test_a_measure_is_not_blind_to_anything_else(name: str, kind: str, place: int):
    sides = list(pair(1))
    expected = compared(name, *sides)
    sides[place] = changed(kind, sides[place], 1)
    assert abs(compared(name, *sides) - expected) > 1e-3


@pytest.mark.parametrize("name", MEASURES)
def test_a_measure_keeps_its_range_its_symmetry_and_knows_a_layer_again(name: str):
    measure = MEASURES[name]
    first, second = pair(2)
    there, back = compared(name, first, second), compared(name, second, first)
    assert (abs(there - back) < 1e-6) == measure.symmetric
    same = compared(name, first, first)
    if measure.kind == "distance":
        assert same == pytest.approx(0, abs=1e-3)
        assert there > 0.1
    else:
        assert same == pytest.approx(1, abs=1e-2 if name == "linear_predictivity" else 1e-6)
        assert there < 0.99
    assert set(measure.invariances) <= set(INVARIANCES)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_shape_distances_keep_the_triangle_inequality(alpha: float):
    sides = [Side.of(values) for seed in range(4) for values in pair(seed)]
    measure = shape_measure(alpha)
    distance = np.array([[measure.compare(one, other) for other in sides] for one in sides])
    assert (distance[:, None, :] <= distance[:, :, None] + distance[None, :, :] + 1e-6).all()


# -- known answers ---------------------------------------------------------------------------------------


def test_cka_of_a_matrix_with_its_rotation_is_1():
    values = np.random.default_rng(0).normal(size=(100, 20))
    turned = values @ ortho_group.rvs(20, random_state=0)
    for debiased in (True, False):
        assert cka(Side.of(values), Side.of(turned), debiased=debiased) == pytest.approx(1, abs=1e-6)


def test_debiased_cka_of_independent_gaussians_is_near_0_where_the_biased_is_near_1():
    generator = np.random.default_rng(0)
    first, second = (Side.of(generator.normal(size=(128, 4096))) for _ in range(2))
    assert abs(cka(first, second)) < 0.05
    assert cka(first, second, debiased=False) > 0.9


# -- independent computations ----------------------------------------------------------------------------


def kernel_of(values: np.ndarray, kind: str) -> np.ndarray:
    if kind == "linear":
        return values @ values.T
    distances = pdist(values)
    return np.exp(-(squareform(distances) ** 2) / (2 * np.median(distances) ** 2))


def naive_hsic(k: np.ndarray, m: np.ndarray, debiased: bool) -> float:
    n = len(k)
    if not debiased:
        centre = np.eye(n) - 1 / n
        return float(np.trace(k @ centre @ m @ centre)) / (n - 1) ** 2
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    one = np.ones(n)
    middle = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return float(np.trace(k @ m) + middle - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))


@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize("kind", ["linear", "rbf"])
def test_cka_equals_explicit_gram_matrices(kind: str, debiased: bool):
    for sides in (pair(3), pair(4, n=90, first=200, second=40)):
        k, m = (kernel_of(values, kind) for values in sides)
        expected = naive_hsic(k, m, debiased) / np.sqrt(naive_hsic(k, k, debiased) * naive_hsic(m, m, debiased))
        assert cka(Side.of(sides[0]), Side.of(sides[1]), kind, debiased) == pytest.approx(expected, abs=2e-6)


def canonical_correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    centred = [values - values.mean(0) for values in (first, second)]
    return np.sort(np.cos(subspace_angles(*centred)))[::-1]


def leading(values: np.ndarray, share: float) -> np.ndarray:
    u, s, _ = np.linalg.svd(values - values.mean(0), full_matrices=False)
    count = int(np.argmax(np.cumsum(s**2) / (s**2).sum() >= share)) + 1
    return u[:, :count] * s[:count]


def test_svcca_is_the_mean_cosine_between_the_leading_subspaces():
    first, second = pair(5, first=9, second=6)
    first = first * np.geomspace(1, 0.01, 9)
    expected = canonical_correlations(leading(first, 0.99), leading(second, 0.99)).mean()
    assert leading(first, 0.99).shape[1] < 9
    assert compared("svcca", first, second) == pytest.approx(expected, abs=1e-5)


def test_canonical_correlations_equal_those_of_scikit_learn():
    first, second = pair(6)
    by_hand = CCA(n_components=2, scale=False, max_iter=5000, tol=1e-12).fit(first, second)
    x, y = by_hand.transform(first, second)
    found = [abs(np.corrcoef(x[:, place], y[:, place])[0, 1]) for place in range(2)]
    np.testing.assert_allclose(found, canonical_correlations(first, second)[:2], atol=1e-4)


def test_pwcca_weighs_each_correlation_by_what_it_stands_for():
    first, second = pair(7)
    x, y = first - first.mean(0), second - second.mean(0)
    axes = np.linalg.svd(x, full_matrices=False)[2]
    basis, _ = np.linalg.qr(x)
    other, _ = np.linalg.qr(y)
    left, correlations, _ = np.linalg.svd(basis.T @ other, full_matrices=False)
    weights = np.abs((basis @ left).T @ (x @ axes.T)).sum(1)
    expected = (weights * correlations).sum() / weights.sum()
    assert compared("pwcca", first, second) == pytest.approx(expected, abs=1e-5)


def test_procrustes_distance_equals_scipy():
    first, second = pair(8, first=6, second=6)
    x, y = (values - values.mean(0) for values in (first, second))
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    turn, _ = orthogonal_procrustes(y, x)
    assert compared("procrustes_distance", first, second) == pytest.approx(np.linalg.norm(x - y @ turn), abs=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_shape_distance_equals_explicit_whitening_and_scipy(alpha: float):
    whitened = []
    for values in pair(9, first=6, second=6):
        x = values - values.mean(0)
        sizes, axes = np.linalg.eigh(x.T @ x)
        x = x @ (alpha * np.eye(6) + (1 - alpha) * axes @ np.diag(sizes**-0.5) @ axes.T)
        whitened.append(x / np.linalg.norm(x))
    turn, _ = orthogonal_procrustes(whitened[1], whitened[0])
    expected = np.arccos((whitened[0] * (whitened[1] @ turn)).sum())
    assert compared(f"shape_distance_{alpha:g}", *pair(9, first=6, second=6)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("compare", "theirs"), [("spearman", "spearman"), ("pearson", "corr"), ("cosine", "cosine")]
)
def test_rsa_equals_rsatoolbox(compare, theirs):
    rsatoolbox = pytest.importorskip("rsatoolbox")
    sides = pair(10, n=40, first=30, second=20)
    distances = [
        rsatoolbox.rdm.calc_rdm(rsatoolbox.data.Dataset(values), method="correlation") for values in sides
    ]
    expected = float(np.squeeze(rsatoolbox.rdm.compare(*distances, method=theirs)))
    assert compared(f"rsa_correlation_{compare}", *sides) == pytest.approx(expected, abs=1e-5)


def test_rsa_by_euclidean_distance_equals_scipy():
    sides = pair(11, n=70)
    expected = spearmanr(*(pdist(values) for values in sides)).statistic
    assert rsa(Side.of(sides[0]), Side.of(sides[1]), "euclidean") == pytest.approx(expected, abs=1e-5)


def test_mutual_neighbours_equal_scikit_learn_and_chance_is_what_unrelated_layers_have():
    sides = pair(12, n=80)
    near = [
        NearestNeighbors(n_neighbors=NEIGHBOURS).fit(values).kneighbors(return_distance=False) for values in sides
    ]
    expected = np.mean([len(set(one) & set(other)) / NEIGHBOURS for one, other in zip(*near, strict=True)])
    assert compared("mutual_knn", *sides) == pytest.approx(expected, abs=1e-12)
    generator = np.random.default_rng(0)
    unrelated = [Side.of(generator.normal(size=(400, 6))) for _ in range(2)]
    measure = MEASURES["mutual_knn"]
    assert measure.chance is not None
    assert measure.compare(*unrelated) == pytest.approx(measure.chance(*unrelated), abs=0.01)


def test_linear_predictivity_equals_refitting_without_each_sample():
    first, second = pair(13)
    variance = np.linalg.svd(first - first.mean(0), compute_uv=False)[0] ** 2
    predicted = cross_val_predict(Ridge(alpha=RIDGE * variance), first, second, cv=LeaveOneOut())
    n = len(second)
    rest = (second.sum(0) - second) / (n - 1)
    expected = 1 - ((second - predicted) ** 2).sum() / ((second - rest) ** 2).sum()
    assert compared("linear_predictivity", first, second) == pytest.approx(expected, abs=1e-5)


# -- named reasons ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sides", "reason"),
    [
        ("cka", (np.eye(3), np.eye(3)), "at least 4 samples"),
        ("pwcca", pair(0, n=10), "subspaces so large"),
        ("shape_distance_0", pair(0, n=10), "subspaces so large"),
        ("svcca", pair(0, n=9), "subspaces so large"),
        ("mutual_knn", pair(0, n=8), "10 neighbours are asked for, 7 are kept"),
        ("rsa_correlation_spearman", (np.array([[1.0, 1], [1, 2], [0, 3]]), np.eye(3)), "constant"),
        ("rsa_euclidean_pearson", (np.eye(5), pair(0, n=5)[0]), "equally far"),
        ("cka_rbf", (np.repeat([[0.0], [1.0]], [30, 2], axis=0), pair(0, n=32)[0]), "look alike"),
        ("cka", (pair(0, n=9)[0], pair(0, n=8)[1]), "must have seen the same"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_has_a_reason(name: str, sides, reason: str):
    with pytest.raises(DoesNotApply, match=reason):
        compared(name, *sides)


def test_layers_that_are_noise_to_their_samples_have_no_debiased_cka():
    # At the corners of a simplex all samples are equally far from each other: nothing is left once chance is taken off.
    with pytest.raises(DoesNotApply, match="no more alike than noise"):
        cka(Side.of(np.eye(20)), Side.of(pair(0, n=20)[0]))


def test_correlations_of_patterns_need_the_features_themselves():
    side = Side.of(pair(0)[0])
    with pytest.raises(DoesNotApply, match="features themselves"):
        rsa(Side(side.found), side)


@pytest.mark.parametrize("kind", ["correlation", "euclidean"])
def test_ranks_of_some_samples_are_those_of_their_own_dissimilarities(kind: str):
    """Taken from the order among all, ties included: copies of a sample are at distance 0 from each other."""
    from scipy.stats import rankdata

    values = np.random.default_rng(0).normal(size=(30, 6))
    values[20:26] = values[3]
    rows = np.array([0, 3, 4, 7, 11, 20, 21, 23, 25, 29])
    part = Side.of(values).subset(rows)
    np.testing.assert_array_equal(part.ranks(kind), rankdata(part.dissimilarities(kind)))
    np.testing.assert_array_equal(Side.of(values).ranks(kind), rankdata(Side.of(values).dissimilarities(kind)))
