"""What channels add to a score: closed forms, completeness, and the network left as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stratascope.tasks.vision.channel_contributions import (
    ScoredImages,
    ablation_contribution,
    path_contribution,
)
from stratascope.tasks.vision.channel_places import channel_places, channel_records, first_look
from stratascope.tasks.vision.position_links import class_maps
from stratascope.tasks.vision.spatial_layers import chosen_spatial_layers, observed
from stratascope.tasks.vision.targets import Target
from tests.tasks.vision.conftest import bars, wrapped
from tests.tasks.vision.test_image_network import Residual, probe_of


@pytest.fixture
def pictures():
    return torch.from_numpy(bars(5, 3)[0])


def looked_at(network, pictures, patterns, indices=None, size=64):
    """(places, records by layer, images) of `network`."""
    observation = observed(network, probe_of(pictures.numpy()))
    places = channel_places(chosen_spatial_layers(patterns, observation.layers, (12, 16)), observation, (12, 16))
    indices = torch.arange(len(pictures)) % 3 if indices is None else indices
    _, ranges = first_look(network, pictures, places, size)
    records = channel_records(network, pictures, indices, Target(), places, ranges, size, 8)
    images = ScoredImages(network, pictures, indices, Target(), size)
    return places, {place.layer.name: records[place.at.info] for place in places}, images


def test_check_4_channels_and_positions_add_up_to_the_same(pictures):
    torch.manual_seed(0)
    network = wrapped(Residual(), output="[0]")
    indices = torch.arange(5) % 3
    places, records, _ = looked_at(network, pictures, ["first", "second"], indices)
    layers = [place.at for place in places]
    maps, scores = class_maps(network, pictures, indices, Target(), layers, 2)
    for place in places:
        over_channels = records[place.layer.name].joined("linear").sum(1)
        np.testing.assert_allclose(over_channels, maps[place.at.name].sum((1, 2)), rtol=1e-4, atol=1e-6)
    # Without a bias in the head, the score of the last hidden layer is linear in what is above 0.
    assert scores.shape == (5,)


class Head(nn.Module):
    """Convolution, ReLU, mean over positions, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.fc = nn.Conv2d(1, 6, 3), nn.ReLU(inplace=True), nn.Linear(6, 3)

    def forward(self, inputs):
        return self.fc(self.relu(self.conv(inputs)).mean((2, 3)))


def test_check_3_with_a_linear_head_all_estimates_are_weight_times_mean(pictures):
    torch.manual_seed(1)
    network = wrapped(Head())
    (place,), records, images = looked_at(network, pictures, ["conv"])
    assert place.rectified
    with torch.no_grad():
        means = network.network.conv(pictures).relu().mean((2, 3))
    expected = (means * network.network.fc.weight[images.indices]).detach().numpy()
    np.testing.assert_allclose(records["conv"].joined("linear"), expected, atol=1e-6)
    path = path_contribution(images, place, 3)
    np.testing.assert_allclose(path.channels, expected, atol=1e-6)
    np.testing.assert_allclose(path.gap, 0, atol=1e-6)
    every = np.arange(6)
    np.testing.assert_allclose(ablation_contribution(images, place, every, np.zeros(6)), expected, atol=1e-6)
    average = records["conv"].joined("mean").mean(0)
    against_mean = expected - average * network.network.fc.weight[images.indices].detach().numpy()
    np.testing.assert_allclose(ablation_contribution(images, place, every, average), against_mean, atol=1e-6)


def test_check_2_path_contributions_are_complete_behind_a_curved_head(pictures):
    class Curved(Head):
        def forward(self, inputs):
            hidden = self.conv(inputs).mean((2, 3))
            return self.fc(torch.tanh(3 * hidden) ** 2)

    torch.manual_seed(2)
    network = wrapped(Curved())
    (place,), records, images = looked_at(network, pictures, ["conv"])
    path = path_contribution(images, place, 16)
    linear = records["conv"].joined("linear").sum(1)
    assert np.abs(path.difference).min() > 1e-3
    np.testing.assert_allclose(path.channels.sum(1), path.difference, atol=1e-5)
    assert np.abs(linear - path.difference).max() > 0.01


def test_p26_p12_an_ablation_is_a_signed_difference_for_every_class_and_batch(pictures):
    """Scores near -5 must not turn the sign round; one target for each sample, and many changes at once."""
    torch.manual_seed(1)
    network = wrapped(Head())
    network.network.fc.bias.data.fill_(-5.0)
    (place,), _, images = looked_at(network, pictures, ["conv"])
    found = ablation_contribution(images, place, np.array([4, 1]), np.zeros(6))
    assert np.isnan(found[:, [0, 2, 3, 5]]).all()
    weight = network.network.conv.weight.data.clone(), network.network.conv.bias.data.clone()
    for channel in (1, 4):
        network.network.conv.weight.data[channel] = 0
        network.network.conv.bias.data[channel] = 0
        with torch.no_grad():
            without = network.network(pictures)[torch.arange(5), images.indices]
        network.network.conv.weight.data, network.network.conv.bias.data = (item.clone() for item in weight)
        with torch.no_grad():
            whole = network.network(pictures)[torch.arange(5), images.indices]
        np.testing.assert_allclose(found[:, channel], (whole - without).numpy(), atol=1e-5)


def test_batches_of_any_size_give_the_same(pictures):
    torch.manual_seed(0)
    network = wrapped(Residual(), output="[0]")
    found = []
    for size in (64, 2):
        (place,), records, images = looked_at(network, pictures, ["second"], size=size)
        record = records["second"]
        found.append(
            (
                record.joined("linear"), record.joined("mean"), record.joined("peak"), record.joined("place"),
                record.histogram, path_contribution(images, place, 4).channels,
                ablation_contribution(images, place, np.arange(4), np.zeros(4)),
            )
        )  # fmt: skip
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_peaks_places_and_histograms_are_those_of_the_layer(pictures):
    torch.manual_seed(0)
    network = wrapped(Head())
    _, records, _ = looked_at(network, pictures, ["conv"])
    with torch.no_grad():
        values = network.network.conv(pictures).numpy()
    record = records["conv"]
    np.testing.assert_allclose(record.joined("peak"), values.max((2, 3)), atol=1e-6)
    where = record.joined("place")
    sample, channel = np.meshgrid(np.arange(5), np.arange(6), indexing="ij")
    np.testing.assert_allclose(
        values[sample, channel, where[..., 0], where[..., 1]], values.max((2, 3)), atol=1e-6
    )
    expected = [np.histogram(values[:, number], 8, (record.low, record.high))[0] for number in range(6)]
    np.testing.assert_allclose(record.histogram, expected, atol=1)
    assert record.histogram.sum() == values.size
    np.testing.assert_allclose(record.sums[2], (values <= 0).sum((0, 2, 3)))


def test_check_10_the_network_is_left_as_it_was(pictures):
    network = wrapped(Residual(), output="[0]")
    inner = network.network
    before = {name: value.clone() for name, value in inner.state_dict().items()}
    inner.train()
    with network.untouched():
        (place,), _, images = looked_at(network, pictures, ["second"])
        path_contribution(images, place, 2)
        ablation_contribution(images, place, np.arange(4), np.zeros(4))
    assert inner.training
    assert all(item.requires_grad and item.grad is None for item in inner.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in inner.modules())
    for name, value in inner.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_check_9_tokens_have_channels_too():
    from stratascope.tasks.models import vision_transformer

    torch.manual_seed(0)
    network = wrapped(vision_transformer())
    pictures = torch.rand(2, 1, 28, 28)
    observation = observed(network, probe_of(pictures.numpy()))
    places = channel_places(chosen_spatial_layers(["@last_spatial"], observation.layers, (28, 28)), observation)
    images = ScoredImages(network, pictures, torch.tensor([1, 2]), Target(), 16)
    path = path_contribution(images, places[0], 12)
    np.testing.assert_allclose(path.channels.sum(1), path.difference, rtol=0.02, atol=1e-2)
    found = ablation_contribution(images, places[0], np.array([0]), np.zeros(places[0].channels))
    assert np.isfinite(found[:, 0]).all()


def test_check_9_in_place_and_functional_activations_give_the_same(pictures):
    found = []
    for inplace in (True, False):
        torch.manual_seed(0)
        (place,), records, images = looked_at(wrapped(Residual(inplace), output="[0]"), pictures, ["second"])
        ablated = ablation_contribution(images, place, np.arange(4), np.zeros(4))
        found.append((records["second"].joined("linear"), path_contribution(images, place, 4).channels, ablated))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-7)


def test_the_linear_estimate_is_captums_summed_over_positions(pictures):
    from captum.attr import LayerFeatureAblation, LayerGradientXActivation

    torch.manual_seed(0)
    network = wrapped(Residual(False), output="[0]")
    (place,), records, images = looked_at(network, pictures, ["second"])
    scored, layer = network.scored, network.network.second
    expected = LayerGradientXActivation(scored, layer).attribute(pictures, target=images.indices.tolist())
    np.testing.assert_allclose(
        records["second"].joined("linear"), expected.detach().sum((2, 3)).numpy(), rtol=1e-4, atol=1e-6
    )
    mask = torch.arange(4)[None, :, None, None].expand(1, 4, 12, 16)
    same = ScoredImages(network, pictures, torch.full((5,), 1), Target(1), 64)
    reference = LayerFeatureAblation(scored, layer).attribute(pictures, target=1, layer_mask=mask)
    found = ablation_contribution(same, place, np.arange(4), np.zeros(4))
    np.testing.assert_allclose(found, reference[:, :, 0, 0].detach().numpy(), rtol=1e-4, atol=1e-6)


class Fixed(nn.Module):
    """A reused module, outputs with positions, and batches of four only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.again = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, inputs):
        assert len(inputs) == 4
        return self.again(torch.tanh(self.again(torch.tanh(self.conv(inputs)))))


def test_a_fixed_batch_a_reused_module_and_a_target_over_positions(pictures):
    from stratascope.tasks.vision.image_network import ImageNetwork

    torch.manual_seed(0)
    network = ImageNetwork(Fixed().eval(), fixed_batch_size=4)
    target = Target("here:score", lambda outputs, indices: outputs[:, 1].square().mean((1, 2)))
    observation = observed(network, probe_of(pictures.numpy()))
    names = ["conv", "again", "again#1"]
    places = channel_places(chosen_spatial_layers(names, observation.layers), observation)
    assert [place.at.name for place in places] == names
    images = ScoredImages(network, pictures, torch.zeros(5, dtype=torch.int64), target, 64)
    for place in places:
        path = path_contribution(images, place, 8)
        assert path.channels.shape == (5, 4)
        np.testing.assert_allclose(path.channels.sum(1), path.difference, rtol=1e-3, atol=1e-6)
    last = ablation_contribution(images, places[2], np.arange(4), np.zeros(4))
    # Only the second channel of the last call enters the score, and all of the score comes from it.
    with torch.no_grad():
        scores = images.scores(torch.arange(5)).numpy()
    np.testing.assert_allclose(last[:, 1], scores, rtol=1e-5)
    np.testing.assert_allclose(np.delete(last, 1, 1), 0, atol=1e-7)
