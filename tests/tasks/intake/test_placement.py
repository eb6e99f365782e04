"""The misplaced score: quiet on real training, loud where a file stands in the wrong place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn

from stratascope.tasks.intake.fingerprints import SKETCH, sketch
from stratascope.tasks.intake.placement import distances, misplaced_scores

STEPS = 400
EVEN = [round(step) for step in np.linspace(0, STEPS, 16)]
LOG = sorted({0, *(round(step) for step in np.geomspace(1, STEPS, 18))})
OPTIMISERS = {
    "sgd 0.02": lambda parameters: torch.optim.SGD(parameters, 0.02, momentum=0.9),
    "sgd 0.2": lambda parameters: torch.optim.SGD(parameters, 0.2, momentum=0.9),
    "adam 1e-3": lambda parameters: torch.optim.Adam(parameters, 1e-3),
    "adamw 3e-2": lambda parameters: torch.optim.AdamW(parameters, 3e-2, weight_decay=0.1),
}


def train(optimiser: str, seed: int) -> dict[int, np.ndarray]:
    """Sketches of the weight matrices of a small network at all steps of both grids, while it learns the digits."""
    images, labels = load_digits(return_X_y=True)
    images, labels = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))
    rule = OPTIMISERS[optimiser](network.parameters())
    found = {}
    for step in range(STEPS + 1):
        if step in EVEN or step in LOG:
            found[step] = sketch((name, value) for name, value in network.state_dict().items() if value.dim() > 1)
        chosen = torch.randint(0, len(images), (64,))
        rule.zero_grad()
        nn.functional.cross_entropy(network(images[chosen]), labels[chosen]).backward()
        rule.step()
    return found


@pytest.fixture(scope="module")
def runs():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {(optimiser, seed): train(optimiser, seed) for optimiser in OPTIMISERS for seed in (0, 1)}
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("steps", [EVEN, LOG], ids=["evenly spaced", "log-spaced"])
@pytest.mark.parametrize("optimiser", OPTIMISERS)
class TestOnRealTraining:
    def series(self, runs, optimiser, steps, seed=0):
        return np.array([runs[optimiser, seed][step] for step in steps])

    def test_a_sound_run_scores_below_one(self, runs, optimiser, steps):
        for seed in (0, 1):
            assert misplaced_scores(self.series(runs, optimiser, steps, seed)).max() < 1

    def test_a_swapped_pair_scores_above_one(self, runs, optimiser, steps):
        for first, second in ((4, 5), (2, 9), (6, 13)):
            series = self.series(runs, optimiser, steps)
            series[[first, second]] = series[[second, first]]
            scores = misplaced_scores(series)
            assert scores[[first, second]].max() > 1
            assert np.delete(scores, [first, second]).max() < scores[[first, second]].max()

    def test_a_checkpoint_of_another_run_scores_above_one_wherever_it_stands(self, runs, optimiser, steps):
        other = self.series(runs, optimiser, steps, seed=1)
        for place in range(len(steps)):
            series = self.series(runs, optimiser, steps)
            series[place] = other[place]
            scores = misplaced_scores(series)
            assert scores.argmax() == place
            assert scores[place] > 1
            assert np.delete(scores, place).max() < 1

    def test_a_late_checkpoint_put_early_scores_above_one(self, runs, optimiser, steps):
        whole = self.series(runs, optimiser, steps)
        for place in (0, 1, 3, 6):
            repeated = whole.copy()
            repeated[place] = whole[-1]
            moved = np.delete(whole, -3, axis=0)
            moved[place] = whole[-3]
            for series in (repeated, moved):
                scores = misplaced_scores(series)
                assert scores.argmax() == place
                assert scores[place] > 1
                assert np.delete(scores, place).max() < 1

    def test_the_start_of_another_run_before_a_run_scores_above_one(self, runs, optimiser, steps):
        series = self.series(runs, optimiser, steps)
        series[:3] = self.series(runs, optimiser, steps, seed=1)[:3]
        scores = misplaced_scores(series)
        assert scores[:3].min() > 1
        assert scores[3:].max() < 1


def test_a_straight_path_scores_nothing_whatever_its_spacing():
    direction = np.random.default_rng(0).normal(size=64)
    for times in (np.arange(12.0), 2.0 ** np.arange(12), np.sqrt(np.arange(12.0))):
        assert misplaced_scores(100 + times[:, None] * direction).max() < 1e-6


def test_short_runs_score_nothing():
    assert misplaced_scores(np.random.default_rng(0).normal(size=(4, 16))).tolist() == [0, 0, 0, 0]


def test_equal_checkpoints_and_zeros_score_nothing():
    assert misplaced_scores(np.ones((8, 16))).max() == 0
    assert misplaced_scores(np.zeros((8, 16))).max() == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-6, 1e6))
def test_the_score_ignores_scale_and_rotation(seed: int, scale: float):
    generator = np.random.default_rng(seed)
    path = 20 + np.cumsum(generator.normal(size=(9, 12)), axis=0)
    rotation, _ = np.linalg.qr(generator.normal(size=(12, 12)))
    expected = misplaced_scores(path)
    np.testing.assert_allclose(misplaced_scores(scale * path @ rotation), expected, rtol=1e-6, atol=1e-9)


def test_distances_are_euclidean_and_rounding_is_none():
    points = np.array([[3.0, 4.0], [0.0, 0.0], [3.0, 4.0 + 1e-9]])
    np.testing.assert_allclose(distances(points), [[0, 5, 0], [5, 0, 5], [0, 5, 0]])


def test_a_sketch_keeps_distances_within_its_error_and_is_linear():
    generator = torch.Generator().manual_seed(0)
    first = {"a": torch.randn(300, 70, generator=generator), "b": torch.randn(500, generator=generator)}
    second = {name: value + 0.1 * torch.randn(value.shape, generator=generator) for name, value in first.items()}
    apart = np.linalg.norm(sketch(first.items()) - sketch(second.items()))
    true = sum(float((first[name] - second[name]).double().square().sum()) for name in first) ** 0.5
    assert abs(apart / true - 1) < 4 / np.sqrt(SKETCH)
    parts = sketch([("a", first["a"])]) + sketch([("b", first["b"])])
    np.testing.assert_allclose(parts, sketch(first.items()), rtol=1e-9, atol=1e-9)
