"""Pitfalls of other tools that belong to all of vision, by the numbers that the reference gives them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from stratascope.tasks import vision
from stratascope.tasks.vision.attribution_methods import attribution_methods
from stratascope.tasks.vision.image_network import layer_pass
from stratascope.tasks.vision.layer_attributions import along_inputs
from stratascope.tasks.vision.spatial_layers import chosen_spatial_layers, observed
from stratascope.tasks.vision.targets import Target
from tests.tasks.vision.conftest import bars, wrapped
from tests.tasks.vision.questions import attributed, question
from tests.tasks.vision.test_image_network import Residual, probe_of


def test_p3_no_module_has_a_backward_hook():
    """In-place operations make them raise or lie; tensors have hooks of their own."""
    folder = Path(next(iter(vision.__path__)))
    files = sorted(folder.glob("*.py"))
    assert len(files) > 50
    for path in files:
        assert not re.search(r"register_(full_)?backward_(pre_)?hook", path.read_text()), path.name


@pytest.mark.parametrize("name", sorted(attribution_methods()))
def test_p11_every_method_hands_back_plain_numbers(name):
    """Arrays hold no graph alive; the network has none either, nor gradients in its weights."""
    torch.manual_seed(0)
    network = wrapped(Residual(), output="[0]")
    inputs = torch.from_numpy(bars(2, 3)[0])
    found = attributed(name, question(network, inputs, [0, 2], baselines=inputs))
    assert isinstance(found.maps, np.ndarray)
    assert found.maps.dtype == np.float32
    assert found.maps.shape == tuple(inputs.shape)
    assert np.isfinite(found.maps).all()
    for values in (*found.numbers.values(), *found.arrays.values()):
        assert isinstance(values, np.ndarray)
    assert all(item.grad is None and item.grad_fn is None for item in network.network.parameters())
    assert not inputs.requires_grad


def test_p11_passes_through_layers_hand_back_detached_tensors():
    network = wrapped(Residual(), output="[0]")
    inputs = torch.from_numpy(bars(2, 3)[0])
    layers = [layer.info for layer in chosen_spatial_layers(["first", "second"], observed(network, probe_of(inputs.numpy())).layers)]  # fmt: skip
    found = layer_pass(network, inputs, torch.tensor([0, 1]), Target(), layers)
    kept = [found.outputs, found.scores, *found.activations.values(), *found.gradients.values()]
    walked = along_inputs(network, inputs, torch.zeros_like(inputs), torch.tensor([0, 1]), Target(), layers, 2)
    kept += [item.values for methods in walked.values() for item in methods.values()]
    assert all(not tensor.requires_grad and tensor.grad_fn is None for tensor in kept)
