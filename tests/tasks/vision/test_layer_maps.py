"""Maps are what a forward pass by hand gives; few bytes lose nothing that counts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from stratascope.tasks.vision.layer_maps import (
    kept_channels,
    layer_maps,
    map_scale,
    narrowed,
    relative_change,
    zero_channels,
)
from stratascope.tasks.vision.picture_sheet import PictureSheet, drawable, fitting
from stratascope.tasks.vision.spatial_layers import chosen_spatial_layers, observed
from tests.tasks.vision.conftest import bars, wrapped
from tests.tasks.vision.test_image_network import probe_of


class Twice(nn.Module):
    """An in-place ReLU that is used twice, a functional one, a tuple for an output; any number of channels."""

    def __init__(self, channels: int, inplace: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(channels, 5, 3, padding=1), nn.Conv2d(5, 4, 3, stride=2)
        self.relu, self.head = nn.ReLU(inplace=inplace), nn.Linear(4, 7)

    def forward(self, inputs):
        hidden = self.relu(self.first(inputs))
        hidden = self.relu(self.second(hidden))
        return {"logits": self.head(functional.relu_(hidden).mean((2, 3)))}, hidden


def maps_of(network, inputs, patterns=("@convolutions",), batch_size=64):
    layers = chosen_spatial_layers(patterns, observed(network, probe_of(inputs)).layers, inputs.shape[2:])
    with network.untouched():
        return layer_maps(network, inputs, layers, batch_size)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_p2_p27_maps_equal_a_forward_pass_by_hand(channels):
    torch.manual_seed(channels)
    inputs = bars(5, 0, channels, 48, 80)[0]
    inner = Twice(channels)
    network = wrapped(inner, output="[0].logits")
    found = maps_of(network, inputs, ("@convolutions", "relu"))
    assert set(found) == {
        "first",
        "second",
        "relu",
        "relu#1",
    }
    with torch.no_grad():
        first = inner.first(torch.from_numpy(inputs))
        second = inner.second(first.clamp(min=0))
    assert found["first"].shape == (5, 5, 48, 80)
    assert found["first"].min() < 0
    for name, expected in (
        ("first", first),
        ("relu", first.clamp(min=0)),
        ("second", second),
        ("relu#1", second.clamp(min=0)),
    ):
        np.testing.assert_allclose(found[name], expected.numpy(), atol=1e-6)
        assert found[name].dtype == np.float32


def test_in_place_or_not_and_any_batch_size_give_the_same_maps():
    inputs = bars(5, 1, 1)[0]
    networks = []
    for inplace in (True, False):
        torch.manual_seed(0)
        networks.append(wrapped(Twice(1, inplace), output="[0].logits"))
    whole = maps_of(networks[0], inputs)
    for name, values in maps_of(networks[1], inputs, batch_size=2).items():
        np.testing.assert_allclose(values, whole[name], atol=1e-6)
    alone = maps_of(networks[0], inputs[[3]])
    np.testing.assert_allclose(alone["second"][0], whole["second"][3], atol=1e-6)
    networks[0].fixed_batch_size = 3
    with networks[0].untouched():
        layers = chosen_spatial_layers(["second"], observed(networks[1], probe_of(inputs)).layers)
        np.testing.assert_allclose(
            layer_maps(networks[0], inputs, layers, 64)["second"], whole["second"], atol=1e-6
        )


def test_the_network_is_left_as_it_was_also_by_maps():
    network = wrapped(nn.DataParallel(Twice(1)), output="[0].logits")
    network.network.train()
    before = {name: value.clone() for name, value in network.network.state_dict().items()}
    assert set(maps_of(network, bars(3, 0)[0])) == {"module.first", "module.second"}
    assert all(module.training for module in network.network.modules())
    assert all(item.requires_grad and item.grad is None for item in network.network.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.network.modules())
    for name, value in network.network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_p30_half_precision_only_where_it_loses_nothing():
    ordinary = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    narrow = narrowed(ordinary, map_scale(ordinary))
    assert narrow.dtype == np.float16
    np.testing.assert_allclose(narrow.astype(np.float32), ordinary, rtol=2**-11, atol=2**-11 / 64)
    for factor in (1e-7, 1e5):
        assert narrowed(ordinary * np.float32(factor), map_scale(ordinary) * factor).dtype == np.float32
    faint = ordinary.copy()
    faint[:, 1] = 1e-9
    assert narrowed(faint, map_scale(faint)).dtype == np.float32
    assert narrowed(np.zeros_like(ordinary), 0.0).dtype == np.float16
    broken = ordinary.copy()
    broken[0, 0, 0, 0] = np.nan
    assert narrowed(broken, 1.0).dtype == np.float32
    assert np.isnan(map_scale(broken))


def test_channels_are_kept_by_size_alone_and_within_the_budget():
    sizes = {"small": (8, 10), "wide": (100, 40), "deep": (512, 10)}
    kept = kept_channels(sizes, 2000)
    np.testing.assert_array_equal(kept["small"], np.arange(8))
    assert sum(len(kept[name]) * each for name, (_, each) in sizes.items()) <= 2000
    for name in ("wide", "deep"):
        assert len(set(np.diff(kept[name]).tolist())) <= 2
        assert kept[name][0] == 0
        assert kept[name][-1] < sizes[name][0]
    assert all(len(found) == sizes[name][0] for name, found in kept_channels(sizes, 10**6).items())
    assert all(len(found) == 1 for found in kept_channels(sizes, 1).values())


def test_change_of_maps_has_a_closed_form():
    before = np.random.default_rng(0).normal(size=(3, 2, 4, 5))
    np.testing.assert_allclose(relative_change(before, before), 0)
    np.testing.assert_allclose(relative_change(before, -before), 2)
    np.testing.assert_allclose(relative_change(before, 3 * before), 2 * (3 - 1) / (3 + 1))
    np.testing.assert_allclose(relative_change(7 * before, 21 * before), 1)
    np.testing.assert_array_equal(relative_change(0 * before, 0 * before), 0)
    assert np.isnan(relative_change(before, np.full_like(before, np.nan))).all()


def test_channels_of_zeros_are_counted():
    values = np.zeros((2, 3, 4, 4))
    values[1, 1, 2, 2] = -1e-30
    np.testing.assert_array_equal(zero_channels(values), [True, False, True])


def test_small_pictures_of_maps_are_means_of_blocks():
    values = np.random.default_rng(0).normal(size=(2, 10, 14))
    found = drawable(values, 7)
    assert found.shape == (2, 5, 7)
    np.testing.assert_allclose(found, functional.avg_pool2d(torch.from_numpy(values), 2).numpy())
    assert drawable(values, 14) is values
    np.testing.assert_allclose(drawable(np.full((11, 13), 3.0), 4), 3.0)


def test_p28_a_sheet_leaves_no_global_state():
    import matplotlib

    before = dict(matplotlib.rcParams)
    sheet = PictureSheet(1.0)
    number = sheet.picture(np.zeros((3, 4, 3), np.uint8), 0, 0, 1, 1)
    sheet.words(0, 0.5, "a < b")
    frames = sheet.frames(
        [0, 3], [{number: np.zeros((3, 4, 3), np.uint8)}, {number: np.full((3, 4, 3), 9, np.uint8)}]
    )
    assert [step for step, _ in frames] == [0, 3]
    assert frames[0][1] != frames[1][1]
    assert "a &lt; b" in frames[0][1]
    assert dict(matplotlib.rcParams) == before
    if "matplotlib.pyplot" in __import__("sys").modules:
        assert not matplotlib.pyplot.get_fignums()


def test_words_are_made_to_fit():
    assert fitting("conv1", 1.0) == ("conv1", 9.5)
    text, size = fitting("layer3.2.a_very_long_name.conv2", 0.8)
    assert size == 7
    assert text.endswith("conv2")
    assert len(text) * size * 0.0085 <= 0.81
