"""Completeness within the gap that is filed, captum's numbers, closed forms, and steps that each sample chooses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stratascope.errors import DoesNotApply
from tests.tasks.vision.conftest import bars, wrapped
from tests.tasks.vision.questions import Rectified, attributed, question


@pytest.fixture(scope="module")
def pictures():
    return (bars(5, 5, channels=2, height=10, width=14)[0] - 0.3).astype(np.float32)


def scores(network, inputs, indices) -> np.ndarray:
    with torch.no_grad():
        return network.network(inputs).gather(1, indices[:, None])[:, 0].double().numpy()


def test_p7_check_2_the_map_adds_up_to_the_difference_of_scores(pictures):
    network = wrapped(Rectified("in place"))
    explained = question(network, pictures, baseline=torch.full(pictures.shape, -0.4))
    found = attributed("integrated_gradients", explained, steps=128, most_steps=128)
    difference = scores(network, explained.inputs, explained.indices) - scores(
        network, explained.baseline, explained.indices
    )
    gaps = found.maps.sum((1, 2, 3), np.float64) - difference
    assert np.abs(gaps).max() < 0.01 * np.abs(difference).max()
    np.testing.assert_allclose(found.numbers["completeness_gap"], gaps, atol=1e-6)
    np.testing.assert_allclose(found.numbers["score_difference"], difference, atol=1e-6)


def test_captum_s_integrated_gradients_are_the_same(pictures):
    from captum.attr import IntegratedGradients

    network = wrapped(Rectified("modules"))
    explained = question(network, pictures, baseline=torch.full(pictures.shape, -0.4), batch_size=7)
    expected = IntegratedGradients(network.network).attribute(
        explained.inputs, explained.baseline, target=explained.indices, n_steps=20, method="gausslegendre"
    )
    found = attributed("integrated_gradients", explained, steps=20, most_steps=20)
    np.testing.assert_allclose(found.maps, expected.detach().numpy(), atol=2e-7, rtol=1e-4)


class Cubic(nn.Module):
    """y = Σ x³/3 − 2 Σ x: the integral of its gradient from x′ to x is known."""

    def forward(self, inputs):
        return (inputs**3 / 3 - 2 * inputs).flatten(1).sum(1, keepdim=True)


def test_two_places_integrate_a_cubic_exactly(pictures):
    baseline = torch.full(pictures.shape, 0.5)
    explained = question(wrapped(Cubic()), pictures, [0] * 5, baseline=baseline)
    found = attributed("integrated_gradients", explained, steps=2)
    expected = (pictures**3 - 0.125) / 3 - 2 * (pictures - 0.5)
    np.testing.assert_allclose(found.maps, expected, atol=1e-6)
    assert (found.numbers["steps"] == 2).all()


def test_each_sample_takes_the_steps_that_it_needs(pictures):
    class Stepped(nn.Module):
        """Smooth for the first sample's sign of the corner, and with a kink on the way for the others."""

        def forward(self, inputs):
            total = inputs.flatten(1).sum(1, keepdim=True)
            return torch.relu(total - 5.0) * 3

    inputs = np.zeros((3, 1, 4, 4), np.float32)
    inputs[0] -= 0.1
    inputs[1, 0] += 0.5
    inputs[2, 0] += 0.4
    explained = question(wrapped(Stepped()), inputs, [0, 0, 0])
    found = attributed("integrated_gradients", explained, steps=2, most_steps=64, tolerance=0.02)
    gaps, steps = found.numbers["completeness_gap"], found.numbers["steps"]
    assert steps[0] == 2
    assert (steps[1:] > 2).all()
    done = np.abs(gaps) <= 0.02 * np.abs(found.numbers["score_difference"])
    assert (done | (steps == 64)).all()
    alone = attributed("integrated_gradients", question(wrapped(Stepped()), inputs[1:2], [0], sample_id=np.array([101])), steps=2, most_steps=64, tolerance=0.02)  # fmt: skip
    np.testing.assert_allclose(alone.maps[0], found.maps[1], rtol=1e-5)
    fixed = attributed("integrated_gradients", explained, steps=2, most_steps=2)
    assert (fixed.numbers["steps"] == 2).all()


def test_expected_gradients_of_a_square_are_known(pictures):
    """For y = ½ Σ x² the mean over α of (x − x′)(x′ + α(x − x′)) is (x² − x′²)/2."""

    class Square(nn.Module):
        def forward(self, inputs):
            return 0.5 * (inputs**2).flatten(1).sum(1, keepdim=True)

    baselines = torch.from_numpy(pictures[2:])
    explained = question(wrapped(Square()), pictures[:1], [0], baselines=baselines)
    found = attributed("expected_gradients", explained, draws=4000)
    expected = (pictures[:1] ** 2 - (pictures[2:] ** 2).mean(0)) / 2
    np.testing.assert_allclose(found.maps, expected, atol=0.02)
    few = attributed("expected_gradients", explained, draws=16)
    assert abs(found.numbers["completeness_gap"][0]) < abs(few.numbers["completeness_gap"][0])


def test_expected_gradients_file_how_far_they_are_from_complete(pictures):
    network = wrapped(Rectified("function"))
    baselines = torch.from_numpy(pictures[1:4] * 0.5)
    explained = question(network, pictures, baselines=baselines)
    found = attributed("expected_gradients", explained, draws=600)
    standing = np.array([scores(network, baselines, index.expand(3)).mean() for index in explained.indices])
    difference = scores(network, explained.inputs, explained.indices) - standing
    np.testing.assert_allclose(found.maps.sum((1, 2, 3)), difference, atol=0.05 * np.abs(difference).max())
    np.testing.assert_allclose(found.numbers["score_difference"], difference, atol=0.05 * np.abs(difference).max())
    with pytest.raises(DoesNotApply, match="need a set of baselines"):
        attributed("expected_gradients", question(network, pictures))


def test_settings_that_make_no_sense_are_named(pictures):
    explained = question(wrapped(Cubic()), pictures, [0] * 5, baselines=torch.from_numpy(pictures))
    for name, setting in (
        ("integrated_gradients", "steps"),
        ("expected_gradients", "draws"),
        ("smooth_grad", "draws"),
    ):
        with pytest.raises(DoesNotApply, match=f"`{setting}` is 0"):
            attributed(name, explained, **{setting: 0})
