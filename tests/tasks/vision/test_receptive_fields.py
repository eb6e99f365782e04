"""The pixels that a unit can see, against the closed form."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from stratascope.tasks.vision.receptive_fields import receptive_fields
from stratascope.tasks.vision.spatial_layers import chosen_spatial_layers, observed
from tests.tasks.vision.conftest import bars, wrapped
from tests.tasks.vision.test_image_network import Residual, probe_of


def spans(count: int, places: int, size: int, stride: int, start: int) -> np.ndarray:
    """Of a unit whose field has `size` pixels every `stride`, the first from `start` on, cut at the border."""
    first = start + stride * np.arange(places)
    return np.stack([np.clip(first, 0, count), np.clip(first + size, 0, count)], 1)


def through_holes(count: int, places: int) -> np.ndarray:
    """Three taps two pooled cells apart; cell t sees the pixels 4 t - 1 to 4 t + 3, and taps in the padding see none."""
    found = []
    for place in range(places):
        taps = [tap for tap in (place - 2, place, place + 2) if 0 <= tap < places]
        found.append((max(0, 4 * taps[0] - 1), min(count, 4 * taps[-1] + 4)))
    return np.array(found)


class Stack(nn.Module):
    """3 × 3 with stride 2, functional and in-place activations, pooling by 2, then 5 × 5 with holes; weights of zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 2, 3, padding=2, dilation=2)
        self.head = nn.Linear(2, 7)
        nn.init.zeros_(self.first.weight)

    def forward(self, inputs):
        hidden = functional.max_pool2d(functional.relu_(self.norm(self.first(inputs))), 2)
        return self.head(functional.relu(self.second(hidden)).mean((2, 3)))


def test_p27_boxes_of_a_stack_are_the_closed_form_on_any_aspect():
    inputs = torch.zeros(3, 48, 80)
    network = wrapped(Stack())
    layers = chosen_spatial_layers(["@convolutions"], observed(network, probe_of(inputs[None].numpy())).layers)
    for batch in (64, 7):
        found = receptive_fields(network, inputs, layers, batch)
        np.testing.assert_array_equal(found["first"].rows, spans(48, 24, 3, 2, -1))
        np.testing.assert_array_equal(found["first"].columns, spans(80, 40, 3, 2, -1))
        np.testing.assert_array_equal(found["second"].rows, through_holes(48, 12))
        np.testing.assert_array_equal(found["second"].columns, through_holes(80, 20))
    places = np.array([[0, 0], [6, 10]])
    assert found["second"].boxes(places).tolist() == [[0, 12, 0, 12], [15, 36, 31, 52]]


def test_a_box_is_where_the_gradient_of_a_unit_can_be():
    """With positive weights nothing cancels: the gradient's support is the field; a residual sum included."""
    inputs = torch.from_numpy(bars(1, 0)[0])
    network = wrapped(Residual(False), output="[0]")
    for item in network.network.parameters():
        item.data.abs_()
    layers = chosen_spatial_layers(["second"], observed(network, probe_of(inputs.numpy())).layers)
    found = receptive_fields(network, inputs[0], layers, 64)["second"]
    pixels = inputs.clone().requires_grad_()
    inner = network.network
    (gradient,) = torch.autograd.grad(inner.second(functional.relu(inner.first(pixels)))[0, :, 4, 7].sum(), pixels)
    rows, columns = (np.flatnonzero(gradient[0, 0].abs().sum(axis).numpy()) for axis in (1, 0))
    assert found.boxes(np.array([4, 7])).tolist() == [rows[0], rows[-1] + 1, columns[0], columns[-1] + 1]


def test_attention_sees_the_whole_picture():
    from stratascope.tasks.models import vision_transformer

    network = wrapped(vision_transformer())
    inputs = torch.zeros(1, 28, 28)
    layers = chosen_spatial_layers(["@last_spatial"], observed(network, probe_of(inputs[None].numpy())).layers)
    found = receptive_fields(network, inputs, layers, 64)[layers[0].name]
    assert (found.rows == [0, 28]).all()
    assert (found.columns == [0, 28]).all()
