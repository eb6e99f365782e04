"""Two convolutions as one: the composed kernel is the gradient of the pair, and the way between them is found as it runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from stratascope.errors import DoesNotApply
from stratascope.tasks.vision.convolution_paths import convolution_graph
from stratascope.tasks.vision.expanded_weights import (
    channel_shares,
    composed_channels,
    dominant_factors,
    expanded_weights,
)
from tests.tasks.vision.conftest import wrapped


def gradient_at_the_centre(network: nn.Module, channels: int, size: tuple[int, int] = (33, 47)) -> np.ndarray:
    """(output_channel, input_channel, y, x): of the output in the middle by every pixel, by automatic differentiation."""
    pixels = torch.randn(1, channels, *size, requires_grad=True)
    outputs = network(pixels)
    middle = outputs[0, :, outputs.shape[2] // 2, outputs.shape[3] // 2]
    return np.stack([torch.autograd.grad(one, pixels, retain_graph=True)[0][0].numpy() for one in middle])


def cut(gradient: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """The window of `gradient` as large as `kernel` that holds all that is not zero, and check that nothing is outside."""
    rows, columns = (np.flatnonzero((gradient != 0).any(axis)) for axis in ((0, 1, 3), (0, 1, 2)))
    top, left = rows[0], columns[0]
    window = gradient[:, :, top : top + kernel.shape[2], left : left + kernel.shape[3]]
    assert np.count_nonzero(window) == np.count_nonzero(gradient)
    return window


@pytest.mark.parametrize(
    ("first", "second", "between"),
    [
        ({"kernel_size": 3, "padding": 1}, {"kernel_size": 3, "padding": 1}, ()),
        ({"kernel_size": (3, 5), "stride": 2}, {"kernel_size": (2, 3)}, ()),
        ({"kernel_size": 3, "dilation": 2}, {"kernel_size": 3, "dilation": (1, 2), "stride": 2}, ()),
        ({"kernel_size": 3}, {"kernel_size": 3}, (nn.AvgPool2d(2),)),
        ({"kernel_size": 3}, {"kernel_size": 3}, (nn.AvgPool2d(3, stride=2, padding=1), nn.AvgPool2d(2))),
        ({"kernel_size": 3}, {"kernel_size": 3, "groups": 2}, ()),
    ],
)
def test_expanded_weights_are_the_gradient_of_the_linear_pair(first, second, between):
    torch.manual_seed(0)
    one, two = nn.Conv2d(3, 6, **first), nn.Conv2d(6, 4, **second)
    layers = nn.Sequential(one, *between, two)
    network = wrapped(layers)
    with network.untouched():
        graph = convolution_graph(network, np.random.default_rng(0).normal(size=(1, 3, 33, 47)).astype(np.float32))
    (way,) = graph.ways
    assert (way.first, way.second, way.sums) == ("0", str(len(layers) - 1), 0)
    assert way.steps == ()
    found = expanded_weights(layers, way)
    np.testing.assert_allclose(found, cut(gradient_at_the_centre(layers, 3), found), atol=1e-6)
    np.testing.assert_allclose(expanded_weights(layers, way, np.array([2])), found[2:3], atol=1e-6)


def test_batch_norm_is_folded_and_activations_are_taken_as_nothing():
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(5)
    norm.running_var.uniform_(0.2, 3)
    norm.running_mean.normal_()
    with torch.no_grad():
        norm.weight.normal_()
    one, two = nn.Conv2d(1, 5, 3), nn.Conv2d(5, 2, 3)
    rectified, linear = nn.Sequential(one, norm, nn.ReLU(inplace=True), two), nn.Sequential(one, norm, two).eval()
    network = wrapped(rectified)
    with network.untouched():
        (way,) = convolution_graph(network, np.ones((1, 1, 33, 47), np.float32)).ways
    assert (way.norms, way.steps) == (("1",), ("Relu",))
    found = expanded_weights(rectified, way)
    np.testing.assert_allclose(found, cut(gradient_at_the_centre(linear, 1), found), atol=1e-6)


def test_a_maximum_counts_as_a_mean_over_its_window():
    torch.manual_seed(0)
    one, two = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 2, 3)
    found = []
    for pool in (nn.MaxPool2d(2), nn.AvgPool2d(2)):
        layers = nn.Sequential(one, pool, two)
        network = wrapped(layers)
        with network.untouched():
            (way,) = convolution_graph(network, np.random.default_rng(1).normal(size=(1, 1, 20, 24)).astype(np.float32)).ways  # fmt: skip
        found.append(expanded_weights(layers, way))
    np.testing.assert_array_equal(*found)


class Shortcut(nn.Module):
    """A residual sum, a functional activation, and a convolution that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.tail = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 3, 1)  # fmt: skip

    def forward(self, inputs):
        hidden = functional.relu(self.stem(inputs))
        hidden = functional.relu(self.body(hidden) + hidden)
        hidden = functional.relu(self.body(hidden))
        return self.tail(hidden[:, :, ::2, 1::3]).mean((2, 3))


def test_p5_the_way_is_read_from_what_runs_not_from_names():
    network = wrapped(nn.DataParallel(Shortcut()))
    with network.untouched():
        graph = convolution_graph(network, np.random.default_rng(0).normal(size=(1, 2, 8, 12)).astype(np.float32))
    ways = {(way.first, way.second): way for way in graph.ways}
    assert graph.order == ("module.stem", "module.body", "module.tail")
    assert ways["module.stem", "module.body"].sums == 0
    assert ways["module.stem", "module.body"].steps == ("Relu",)
    assert ways["module.body", "module.body"].sums == 1
    tail = ways["module.body", "module.tail"]
    assert tail.pools == (("slice", (1, 1), (2, 1)), ("slice", (1, 1), (1, 3)))
    assert not any(module._forward_hooks for module in network.network.modules())
    body, tail_module = network.network.module.body, network.network.module.tail
    found = expanded_weights(network.network, tail)
    linear = lambda pixels: tail_module(body(pixels)[:, :, ::2, 1::3])  # noqa: E731
    np.testing.assert_allclose(found, cut(gradient_at_the_centre(linear, 4), found), atol=1e-6)


def test_what_no_kernel_stands_for_is_named():
    layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Upsample(scale_factor=2), nn.Conv2d(4, 2, 3))
    network = wrapped(layers)
    with network.untouched():
        (way,) = convolution_graph(network, np.ones((1, 1, 12, 16), np.float32)).ways
    with pytest.raises(DoesNotApply, match="between 0 and 2 lies UpsampleNearest2D"):
        expanded_weights(layers, way)

    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.last = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1), nn.Conv2d(4, 1, 1)

        def forward(self, inputs):
            return self.last(torch.cat([self.left(inputs), self.right(inputs)], 1))

    network = wrapped(Joined())
    with network.untouched():
        ways = convolution_graph(network, np.ones((1, 1, 4, 4), np.float32)).ways
    assert len(ways) == 2
    with pytest.raises(DoesNotApply, match="lies Cat"):
        expanded_weights(network.network, ways[0])


def test_a_product_of_a_picture_and_channels_is_one_factor():
    generator = np.random.default_rng(0)
    pattern, loading = generator.normal(size=(3, 5)), generator.normal(size=7)
    weights = np.stack([loading[:, None, None] * pattern, np.zeros((7, 3, 5))]).astype(np.float32)
    found, loads, share = dominant_factors(weights)
    assert share[0] == pytest.approx(1, abs=1e-6)
    assert np.isnan(share[1])
    np.testing.assert_allclose(found[0][None] * loads[0][:, None, None], weights[0], atol=1e-5)
    assert found[0].flat[np.abs(found[0]).argmax()] > 0
    np.testing.assert_allclose(channel_shares(weights)[0], loading**2 / (loading**2).sum(), rtol=1e-5)
    assert np.isnan(channel_shares(weights)[1]).all()


def test_too_many_channels_are_thinned_evenly():
    np.testing.assert_array_equal(composed_channels(6, 4, 9), np.arange(6))
    chosen = composed_channels(4096, 4096, 25)
    assert len(chosen) < 4096
    assert len(set(np.diff(chosen))) <= 2
