"""Neural collapse: at its end every number is 0, off it the formula of the paper, and a network comes to it in training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ortho_group
from torch.nn import functional

from stratascope.tasks.models import mlp
from stratascope.tasks.representation.class_separation import ClassMoments, Grouping
from stratascope.tasks.representation.distances import centred_values
from stratascope.tasks.representation.neural_collapse import (
    centred_means,
    disagreement_with_nearest_mean,
    self_duality,
    simplex_deviations,
    within_class_variability,
)


def moments_of(values: np.ndarray, index: np.ndarray) -> ClassMoments:
    centred = centred_values(values)
    return ClassMoments.of(centred, (centred**2).sum(1), Grouping.of(index))


def written_out(values: np.ndarray, index: np.ndarray) -> float:
    """NC1 with the whole matrices."""
    classes = np.unique(index)
    means = np.stack([values[index == value].mean(0) for value in classes])
    within = np.mean([np.cov(values[index == value].T, bias=True) for value in classes], axis=0)
    centred = means - means.mean(0)
    between = centred.T @ centred / len(classes)
    return float(np.trace(within @ np.linalg.pinv(between, rcond=1e-10, hermitian=True)) / len(classes))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**20), features=st.integers(2, 15), scale=st.floats(1e-3, 1e3))
def test_the_first_is_the_papers_formula_and_rotation_and_scale_do_not_change_it(seed, features, scale):
    generator = np.random.default_rng(seed)
    index = np.concatenate([np.arange(5).repeat(2), generator.integers(0, 5, 50)])
    values = generator.normal(size=(5, features))[index] + 0.3 * generator.normal(size=(60, features))
    found = within_class_variability(moments_of(values, index))
    assert found == pytest.approx(written_out(values, index), rel=1e-5)
    turned = scale * values @ ortho_group.rvs(features, random_state=seed) + 1.0
    assert within_class_variability(moments_of(turned, index)) == pytest.approx(found, rel=1e-6)


def test_at_a_simplex_of_points_with_its_own_weights_all_are_zero():
    simplex = np.eye(6) - 1 / 6
    index = np.arange(24) % 6
    moments = moments_of(simplex[index] + 5.0, index)
    assert within_class_variability(moments) == pytest.approx(0, abs=1e-12)
    assert all(
        value == pytest.approx(0, abs=1e-12) for value in simplex_deviations(centred_means(moments)).values()
    )
    assert self_duality(moments, 3.0 * simplex) == pytest.approx(0, abs=1e-12)
    assert self_duality(moments, -simplex) == pytest.approx(4)
    assert disagreement_with_nearest_mean(moments, index) == 0
    wrong = index.copy()
    wrong[:6] = (wrong[:6] + 1) % 6
    assert disagreement_with_nearest_mean(moments, wrong) == 0.25


def test_off_the_simplex_each_of_the_second_says_what_is_off():
    simplex = np.eye(3) - 1 / 3
    longer = simplex_deviations(simplex * np.array([[1.0], [1.0], [2.0]]))
    norms = np.array([1, 1, 2])
    assert longer["equinorm"] == pytest.approx(norms.std() / norms.mean())
    assert longer["equiangle"] == pytest.approx(0, abs=1e-12)
    right = simplex_deviations(np.eye(3))
    assert right["equiangle"] == 0
    assert right["maximal_angle"] == pytest.approx(0.5)
    two = simplex_deviations(np.array([[1.0, 0.0], [-1.0, 0.0]]))
    assert two["equinorm"] == 0
    assert np.isnan(two["equiangle"])


def test_means_that_coincide_leave_it_undefined():
    values = np.tile([[0.0, 1.0], [1.0, 0.0]], (4, 1))
    moments = moments_of(values, np.array([0, 0, 1, 1, 0, 0, 1, 1]))
    assert np.isnan(within_class_variability(moments))
    assert np.isnan(simplex_deviations(centred_means(moments))["equinorm"])
    assert np.isnan(self_duality(moments, np.ones((2, 2))))


def test_a_network_trained_to_no_error_and_beyond_collapses():
    torch.manual_seed(0)
    generator = np.random.default_rng(0)
    index = np.arange(150) % 3
    values = (0.5 * generator.normal(size=(3, 10))[index] + generator.normal(size=(150, 10))).astype(np.float32)
    inputs, targets = torch.from_numpy(values), torch.from_numpy(index)
    network = mlp(inputs=10, widths=[64] * 5, outputs=3)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-3)

    def measures() -> tuple[np.ndarray, float]:
        kept: list[torch.Tensor] = []
        last = [module for module in network.modules() if isinstance(module, torch.nn.Linear)][-1]
        hook = last.register_forward_hook(lambda module, given, output: kept.append(given[0]))
        with torch.no_grad():
            decided = network(inputs).argmax(1).numpy()
        hook.remove()
        moments = moments_of(kept[0].numpy(), index)
        weights = last.weight.detach().double().numpy()
        found = [
            within_class_variability(moments),
            simplex_deviations(centred_means(moments))["equinorm"],
            simplex_deviations(centred_means(moments))["maximal_angle"],
            self_duality(moments, weights),
            disagreement_with_nearest_mean(moments, decided),
        ]
        return np.array(found), float((decided != index).mean())

    found = {}
    for step in range(1001):
        if step in (0, 30, 100, 1000):
            found[step], error = measures()
        optimizer.zero_grad()
        functional.cross_entropy(network(inputs), targets).backward()
        optimizer.step()
    assert error == 0
    first = [found[step][0] for step in (0, 30, 100, 1000)]
    assert first == sorted(first, reverse=True)
    assert first[-1] < first[0] / 30
    assert (found[1000][1:] < found[100][1:]).all()
    assert found[1000][3] < found[0][3] / 10
    assert found[1000][4] == 0
