"""Score-CAM and Ablation-CAM against loops over one sample and one channel at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from stratascope.tasks.models import cifar_resnet
from stratascope.tasks.vision.forward_copy import forward_copy
from stratascope.tasks.vision.image_network import ImageNetwork, layer_pass, replaced_outputs
from stratascope.tasks.vision.perturbed_activation_maps import (
    ablation_cam,
    ablation_drops,
    channel_masks,
    masked_scores,
    score_cam,
    score_cam_raw,
)
from stratascope.tasks.vision.spatial_layers import chosen_spatial_layers, observed
from stratascope.tasks.vision.targets import Target
from tests.tasks.vision.conftest import probe_of, wrapped


def wide_network(classes: int = 7, channels: int = 5):
    """Pictures of 48 × 80 with five channels, seven classes."""
    torch.manual_seed(0)
    return wrapped(nn.Sequential(
        nn.Conv2d(channels, 6, 5, 3), nn.ReLU(inplace=True), nn.MaxPool2d(2), nn.Conv2d(6, 4, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(4 * 5 * 11, 12), nn.ReLU(), nn.Linear(12, classes),
    ))  # fmt: skip


@pytest.fixture
def asked():
    network = wide_network()
    inputs = torch.randn(3, 5, 48, 80, generator=torch.Generator().manual_seed(1))
    known = observed(network, probe_of(inputs.numpy())).layers
    layer = chosen_spatial_layers(["4"], known, (48, 80))[0]
    indices = torch.tensor([6, 0, 3])
    activations = layer_pass(network, inputs, indices, Target(), [layer.info]).activations["4"]
    return network, inputs, known, layer, indices, activations


def one_by_one_masks(network, inputs, indices, activations, baseline):
    found = np.zeros(activations.shape[:2])
    for row, item in enumerate(activations):
        empty = network.outputs(baseline[row : row + 1])[0, indices[row]]
        for channel, values in enumerate(item):
            if values.max() == values.min():
                continue
            mask = (values - values.min()) / (values.max() - values.min())
            mask = functional.interpolate(mask[None, None], inputs.shape[2:], mode="bilinear", align_corners=False)
            altered = baseline[row] + (inputs[row] - baseline[row]) * mask[0]
            found[row, channel] = network.outputs(altered[None])[0, indices[row]] - empty
    return found


@pytest.mark.parametrize(("batch_size", "level"), [(5, 0.0), (64, -0.7)])
@torch.no_grad()
def test_p27_score_cam_is_the_loop_on_wide_pictures(asked, batch_size, level):
    network, inputs, _, _, indices, activations = asked
    baseline = torch.full_like(inputs, level)
    scores, ranged = masked_scores(network, inputs, indices, Target(), activations, baseline, batch_size)
    expected = one_by_one_masks(network, inputs, indices, activations, baseline)
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    found = score_cam_raw(activations, scores, ranged)
    np.testing.assert_allclose(found.maps, (expected[..., None, None] * activations.numpy()).sum(1), atol=1e-5)
    weights = score_cam(activations, scores, ranged).weights
    for row in range(3):
        kept = ranged[row].numpy()
        powers = np.exp(expected[row][kept])
        np.testing.assert_allclose(weights[row][kept], powers / powers.sum(), rtol=1e-4)


@torch.no_grad()
def test_p26_constant_channels_make_no_mask_and_no_nan(asked):
    network, inputs, _, _, indices, activations = asked
    activations = activations.clone()
    activations[:, 0] = 5.0
    activations[1] = 0.0
    masks, ranged = channel_masks(activations)
    assert not masks[:, 0].any()
    assert not ranged[:, 0].any()
    scores, ranged = masked_scores(network, inputs, indices, Target(), activations, torch.zeros_like(inputs), 8)
    assert not scores[1].any()
    for function in (score_cam, score_cam_raw):
        found = function(activations, scores, ranged)
        assert torch.isfinite(found.maps).all()
        assert not found.weights[:, 0].any()
        assert not found.maps[1].any()


@pytest.mark.parametrize("batch_size", [3, 64])
@torch.no_grad()
def test_ablation_cam_is_the_loop(asked, batch_size):
    network, inputs, known, layer, indices, activations = asked
    drops = ablation_drops(network, inputs, indices, Target(), layer, known, batch_size)
    scores = network.outputs(inputs)[torch.arange(3), indices]
    expected = np.zeros((3, 4))
    for row in range(3):
        for channel in range(4):

            def without(layer, values, channel=channel):
                values[:, channel] = 0
                return values

            with replaced_outputs(network.network, [layer.info], without):
                expected[row, channel] = scores[row] - network.outputs(inputs[row : row + 1])[0, indices[row]]
    np.testing.assert_allclose(drops, expected, atol=1e-5)
    found = ablation_cam(activations, drops).maps
    np.testing.assert_allclose(found, (expected[..., None, None] * activations.numpy()).sum(1), atol=1e-5)


@torch.no_grad()
def test_p26_negative_logits_turn_no_sign():
    """With a linear head the drop is the channel's own contribution, whatever the score."""
    torch.manual_seed(0)
    network = wrapped(nn.Sequential(nn.Conv2d(1, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)))
    network.network[3].bias.fill_(-5)
    inputs = torch.randn(4, 1, 7, 9)
    known = observed(network, probe_of(inputs.numpy())).layers
    layer = chosen_spatial_layers(["0"], known)[0]
    assert float(network.outputs(inputs).max()) < 0
    drops = ablation_drops(network, inputs, torch.ones(4, dtype=torch.int64), Target(), layer, known, 64)
    expected = network.network[0](inputs).mean((2, 3)) * network.network[3].weight[1]
    torch.testing.assert_close(drops, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_memory_is_bounded_by_the_batch(asked, monkeypatch):
    network, inputs, known, layer, indices, activations = asked
    seen = []
    passed = ImageNetwork.outputs
    monkeypatch.setattr(
        ImageNetwork, "outputs", lambda self, given: seen.append(len(given)) or passed(self, given)
    )
    masked_scores(network, inputs, indices, Target(), activations, torch.randn_like(inputs), 3)
    ablation_drops(network, inputs, indices, Target(), layer, known, 3)
    assert max(seen) <= 3


@torch.no_grad()
def test_score_cam_asks_a_quick_copy_where_that_pays():
    """A residual network with many channels: the scores are those of the loop over the network itself."""
    torch.manual_seed(0)
    network = wrapped(cifar_resnet(8, width=8))
    inputs = torch.randn(6, 3, 16, 16)
    known = observed(network, probe_of(inputs.numpy())).layers
    layer = chosen_spatial_layers(["layer3.0.conv2"], known, (16, 16))[0]
    indices = torch.arange(6)
    activations = layer_pass(network, inputs, indices, Target(), [layer.info]).activations[layer.name]
    with network.untouched():
        assert forward_copy(network, inputs, 6 * 32) is not network
        scores, ranged = masked_scores(
            network, inputs, indices, Target(), activations, torch.zeros_like(inputs), 7
        )
    assert ranged.all()
    expected = one_by_one_masks(network, inputs, indices, activations, torch.zeros_like(inputs))
    np.testing.assert_allclose(scores, expected, atol=1e-5 * float(network.outputs(inputs).abs().max()))
