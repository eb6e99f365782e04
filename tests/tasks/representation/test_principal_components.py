"""Four solvers of principal components, and samples that come block by block."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.decomposition import PCA

from stratascope.tasks.representation.maps import principal_components
from stratascope.tasks.representation.principal_components import (
    CentredGram,
    components_of_blocks,
    principal_scores,
)


def samples(count: int = 3000, width: int = 24, offset: float = 0.0) -> np.ndarray:
    generator = np.random.default_rng(0)
    turn = np.linalg.qr(generator.normal(size=(width, width)))[0]
    return (generator.normal(size=(count, width)) * np.geomspace(5, 0.1, width)) @ turn + offset


@pytest.mark.parametrize("solver", ["gram", "randomized", "incremental"])
@pytest.mark.parametrize("shape", [(3000, 24), (40, 90)])
def test_every_solver_finds_the_leading_components(solver, shape):
    values = samples(*shape)
    exact, shares = principal_components(values, 4)
    found, told = principal_scores(values, 4, solver)
    assert found.shape == exact.shape
    spread = exact[:, 0].std()
    # Incremental PCA forgets a little with each block, whose rank it cuts.
    tolerance = 1e-9 if solver == "gram" else 2e-2
    np.testing.assert_allclose(found, exact, atol=tolerance * spread)
    np.testing.assert_allclose(told, shares, atol=tolerance)


def test_blocks_in_any_cut_equal_all_samples_at_once():
    values = samples(offset=1000.0)
    expected = PCA(6, svd_solver="full").fit(values)
    for size in (1, 7, 1000, 5000):
        blocks = (values[start : start + size] for start in range(0, len(values), size))
        axes = components_of_blocks(blocks, 6)
        np.testing.assert_allclose(axes.variance, expected.explained_variance_, rtol=1e-9)
        np.testing.assert_allclose(axes.shares, expected.explained_variance_ratio_, rtol=1e-9)
        np.testing.assert_allclose(np.abs((axes.axes * expected.components_.T).sum(0)), 1, atol=1e-9)
        np.testing.assert_allclose(np.abs(axes.scores(values)), np.abs(expected.transform(values)), atol=1e-6)


def test_what_two_workers_saw_can_be_merged():
    values = samples(offset=50.0).astype(np.float32)
    whole, first, second, nothing = (CentredGram(24) for _ in range(4))
    whole.add(values)
    first.add(values[:1000])
    second.add(values[1000:])
    first.merge(second)
    first.merge(nothing)
    assert first.count == whole.count == 3000
    np.testing.assert_allclose(first.mean, whole.mean, atol=1e-10)
    np.testing.assert_allclose(first.gram, whole.gram, atol=1e-6 * np.abs(whole.gram).max())
    np.testing.assert_allclose(whole.gram / 2999, np.cov(values.T.astype(np.float64)), atol=1e-9)


def test_a_mean_far_from_zero_costs_no_digits():
    small = samples(500, 8) * 1e-3
    far = components_of_blocks([small + 1e5], 3)
    near = components_of_blocks([small], 3)
    np.testing.assert_allclose(far.variance, near.variance, rtol=1e-6)


def test_memory_is_that_of_a_block():
    import tracemalloc

    width, size = 128, 2000
    generator = np.random.default_rng(0)
    block = generator.normal(size=(size, width)).astype(np.float32)
    tracemalloc.start()
    try:
        components_of_blocks((block for _ in range(50)), 5)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * size * width * 8


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="no block"):
        components_of_blocks([], 2)
    with pytest.raises(ValueError, match="has 3 features, those before had 4"):
        components_of_blocks([np.ones((5, 4)), np.ones((5, 3))], 2)
    with pytest.raises(ValueError, match="need two samples, there are 1"):
        components_of_blocks([np.ones((1, 4))], 2)
    with pytest.raises(ValueError, match="3 features cannot join 2"):
        CentredGram(2).merge(CentredGram(3))
