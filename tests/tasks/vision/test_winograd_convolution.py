"""Winograd's convolution gives what exact sums give, alone and inside a network, and goes only where it does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional

from stratascope.tasks.vision.winograd_convolution import (
    WinogradConvolution,
    can_be_transformed,
    exchange_convolutions,
    transformable_multiplications,
)


def error(found: torch.Tensor, exact: torch.Tensor) -> float:
    return float((found.double() - exact).abs().max() / exact.abs().max())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("padding", [0, 1, (1, 0), "same", "valid"])
@pytest.mark.parametrize(
    ("samples", "taken", "given", "height", "width"),
    [(3, 16, 16, 32, 32), (5, 16, 32, 7, 7), (2, 64, 16, 5, 18), (1, 32, 48, 3, 3), (70, 16, 16, 4, 9)],
)
@torch.no_grad()
def test_outputs_are_the_exact_sums(samples, taken, given, height, width, padding, bias):
    torch.manual_seed(0)
    convolution = nn.Conv2d(taken, given, 3, padding=padding, bias=bias)
    inputs = torch.randn(samples, taken, height, width)
    exact = nn.Conv2d(taken, given, 3, padding=padding, bias=bias).double()
    exact.load_state_dict(convolution.state_dict())
    expected = exact(inputs.double())
    found = WinogradConvolution(convolution)(inputs)
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert error(found, expected) < 4e-6
    added = torch.randn_like(found)
    rectified = WinogradConvolution(convolution, rectified=True)(inputs.flip(3).flip(3), added)
    assert error(rectified, torch.relu(expected + added)) < 4e-6
    assert float(rectified.min()) == 0


@torch.no_grad()
def test_channels_by_the_hundred_stay_exact():
    torch.manual_seed(0)
    convolution, inputs = nn.Conv2d(512, 128, 3, padding=1), torch.rand(2, 512, 14, 14)
    expected = functional.conv2d(
        inputs.double(), convolution.weight.double(), convolution.bias.double(), padding=1
    )
    assert error(WinogradConvolution(convolution)(inputs), expected) < 4e-6


@torch.no_grad()
def test_a_sample_gets_the_same_whatever_is_beside_it():
    torch.manual_seed(0)
    convolution, inputs = WinogradConvolution(nn.Conv2d(32, 16, 3, padding=1)), torch.randn(37, 32, 9, 9)
    whole = convolution(inputs)
    for size in (1, 5, 36):
        torch.testing.assert_close(
            torch.cat([convolution(part) for part in inputs.split(size)]), whole, rtol=0, atol=1e-6
        )
    kept = inputs.clone()
    assert torch.equal(convolution(inputs), whole)
    assert torch.equal(inputs, kept)


@torch.no_grad()
def test_what_is_not_a_number_passes_the_relu():
    convolution, inputs = nn.Conv2d(16, 16, 3, padding=1), torch.randn(2, 16, 8, 8)
    inputs[1, 3, 2, 2] = torch.nan
    found = WinogradConvolution(convolution, rectified=True)(inputs)
    assert not found[0].isnan().any()
    assert found[1, :, 1:4, 1:4].isnan().all()


@torch.no_grad()
def test_what_compiled_code_would_not_notice_is_refused():
    convolution = WinogradConvolution(nn.Conv2d(16, 32, 3))
    fitting = torch.zeros(2, 16, 6, 6)
    for inputs, added in (
        (fitting.double(), None), (fitting.half(), None), (torch.zeros(2, 32, 6, 6), None), (torch.zeros(2, 16, 2, 6), None),
        (fitting[:0], None), (fitting, torch.zeros(2, 32, 6, 6)), (fitting, torch.zeros(2, 32, 4, 4).double()),
        (fitting, torch.zeros(1, 32, 1, 1)), (torch.zeros(2, 16, 6), None),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"is needed|nothing to put out"):
            convolution(inputs, added)
    assert convolution(fitting, torch.zeros(2, 32, 4, 4)).shape == (2, 32, 4, 4)
    with pytest.raises(ValueError, match="not one that can be computed"):
        WinogradConvolution(nn.Conv2d(16, 32, 3, stride=2))


def minimal_filtering(points: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A', G and B' of F(4, 3) for five points and infinity, from Lagrange's interpolation."""
    whole = np.polynomial.Polynomial.fromroots(points)
    outputs, filters, inputs = np.zeros((4, 6)), np.zeros((6, 3)), np.zeros((6, 6))
    for index, point in enumerate(points):
        others = np.polynomial.Polynomial.fromroots([other for other in points if other != point])
        outputs[:, index] = point ** np.arange(4)
        filters[index] = point ** np.arange(3) / others(point)
        inputs[index, :5] = others.coef
    outputs[3, 5] = filters[5, 2] = 1
    inputs[5] = whole.coef
    return outputs, filters, inputs


def rounding(points: tuple[float, ...]) -> tuple[float, float]:
    """Root mean square and largest error of F(4 × 4, 3 × 3) in float32 over 256 channels, relative to the outputs."""
    outputs, filters, inputs = minimal_filtering(points)
    generator = np.random.default_rng(0)
    tiles = generator.random((200, 256, 6, 6), np.float32)
    weights = generator.standard_normal((256, 8, 3, 3)).astype(np.float32)
    exact = np.zeros((4, 4, 200, 8))
    for y in range(4):
        for x in range(4):
            exact[y, x] = np.einsum("tcij,coij->to", tiles[:, :, y : y + 3, x : x + 3].astype(float), weights.astype(float))  # fmt: skip
    planes = np.einsum("ai,bj,coij->abco", filters, filters, weights.astype(float)).astype(np.float32)
    taken = np.einsum("ai,bj,tcij->abtc", inputs, inputs, tiles.astype(float)).astype(np.float32)
    products = (taken @ planes).astype(float)
    found = np.einsum("ai,bj,ijto->abto", outputs, outputs, products)
    difference = found - exact
    return float(np.sqrt((difference**2).mean()) / exact.std()), float(abs(difference).max() / abs(exact).max())


def test_the_points_round_less_than_the_integers_of_the_paper():
    ours, integers = rounding((0, 0.5**0.5, -(0.5**0.5), 2**0.5, -(2**0.5))), rounding((0, 1, -1, 2, -2))
    assert integers[0] > 1.5 * ours[0]
    assert integers[1] > 2 * ours[1]


def test_only_convolutions_that_it_computes_are_taken():
    plain = {"in_channels": 16, "out_channels": 32, "kernel_size": 3, "padding": 1}
    assert can_be_transformed(nn.Conv2d(**plain))
    for change in (
        {"kernel_size": 5}, {"kernel_size": (3, 1)}, {"stride": 2}, {"dilation": 2}, {"groups": 2}, {"padding": 2},
        {"padding_mode": "reflect"}, {"in_channels": 3}, {"out_channels": 20}, {"dtype": torch.float64},
    ):  # fmt: skip
        assert not can_be_transformed(nn.Conv2d(**plain | change)), change
    assert not can_be_transformed(nn.Conv2d(**plain, device="meta"))
    assert not can_be_transformed(nn.Linear(16, 16))


class Block(nn.Module):
    """A sum before a ReLU as in a residual network; `form` says how sum and ReLU are written."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.first, self.second, self.form = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), form
        self.relu, self.weight = nn.ReLU(), nn.Parameter(torch.randn(1, 16, 1, 1))

    def forward(self, inputs):
        hidden = self.second(functional.relu(self.first(inputs)))
        if self.form == "in place":
            hidden += inputs
            return hidden.relu()
        if self.form == "function":
            return torch.relu(torch.add(inputs, hidden))
        if self.form == "module":
            return self.relu(inputs + hidden)
        if self.form == "enlarged":
            return self.relu(hidden + self.weight)
        if self.form == "number":
            return self.relu(hidden + 1)
        if self.form == "into the other":
            inputs = inputs * 2
            inputs += hidden
            return self.relu(inputs)
        if self.form == "itself":
            return self.relu(hidden + hidden)
        return self.relu(hidden) - hidden


@pytest.mark.parametrize(
    ("form", "left"),
    [("in place", 0), ("function", 0), ("module", 0), ("enlarged", 2), ("number", 2), ("into the other", 0),
     ("itself", 2), ("read twice", 2)],
)  # fmt: skip
@torch.no_grad()
def test_sums_and_relus_are_taken_in_where_nothing_else_reads_what_is_before_them(form, left):
    torch.manual_seed(0)
    network, inputs = Block(form).eval(), torch.randn(3, 16, 8, 8)
    expected = network(inputs.clone())
    traced = fx.symbolic_trace(network)
    ShapeProp(traced).propagate(inputs)
    assert transformable_multiplications(traced) == 2 * 3 * 16 * 64 * 16 * 9
    exchange_convolutions(traced)
    assert transformable_multiplications(traced) == 0
    assert sum(isinstance(module, WinogradConvolution) for module in traced.modules()) == 2
    assert not any(isinstance(module, nn.Conv2d) for module in traced.modules())
    counted = {"add", "relu", "sub"}
    nodes = [node for node in traced.graph.nodes if node.op in ("call_function", "call_method") or node.target == "relu"]  # fmt: skip
    assert sum(getattr(node.target, "__name__", node.target) in counted for node in nodes) == left
    torch.testing.assert_close(traced(inputs.clone()), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_outputs_that_fill_little_of_their_tiles_stay_direct():
    for size, exchanged in ((5, 0), (6, 1), (7, 1), (2, 0), (8, 1)):
        traced = fx.symbolic_trace(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1)))
        ShapeProp(traced).propagate(torch.zeros(1, 16, size, size))
        exchange_convolutions(traced)
        assert sum(isinstance(module, WinogradConvolution) for module in traced.modules()) == exchanged, size
