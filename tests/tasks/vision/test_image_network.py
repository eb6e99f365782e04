"""The network is run as it is and left as it was; layers are watched and replaced by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from stratascope.errors import DoesNotApply
from stratascope.storage.probes import Probe
from stratascope.tasks.vision.image_network import layer_pass, replaced_outputs
from stratascope.tasks.vision.spatial_layers import chosen_spatial_layers, observed, spatial_layers
from stratascope.tasks.vision.targets import Target
from tests.tasks.vision.conftest import bars, wrapped


def probe_of(inputs) -> Probe:
    return Probe("test", "test", inputs, None, torch.arange(len(inputs)).numpy(), (), "digest")


class Residual(nn.Module):
    """In-place and functional activations, a ReLU used twice, and a tuple for an output."""

    def __init__(self, inplace: bool = True) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=inplace)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs):
        hidden = self.relu(self.first(inputs))
        hidden = self.relu(self.second(hidden) + hidden)
        return self.head(functional.relu(hidden).mean((2, 3))), hidden


@pytest.fixture
def pictures():
    return bars(5, 3)[0]


def test_p2_an_in_place_relu_does_not_overwrite_what_is_kept(pictures):
    torch.manual_seed(0)
    kept = {}
    for inplace in (True, False):
        torch.manual_seed(0)
        network = wrapped(Residual(inplace), output="[0]")
        layers = chosen_spatial_layers(["first", "second", "relu"], observed(network, probe_of(pictures)).layers)
        target, inputs = Target(1), torch.from_numpy(pictures)
        kept[inplace] = layer_pass(network, inputs, torch.full((5,), 1), target, [layer.info for layer in layers])
    assert kept[True].activations["first"].min() < 0
    for name, values in kept[True].activations.items():
        torch.testing.assert_close(values, kept[False].activations[name], rtol=0, atol=0)
        torch.testing.assert_close(kept[True].gradients[name], kept[False].gradients[name], rtol=0, atol=0)
    assert {"relu", "relu#1"} <= set(kept[True].activations)


def test_p19_gradients_belong_to_their_own_layers(pictures):
    """Against plain automatic differentiation of a network that is written out."""
    network = wrapped(Residual(False), output="[0]")
    inner = network.network
    layers = [
        layer.info
        for layer in chosen_spatial_layers(["second", "first"], observed(network, probe_of(pictures)).layers)
    ]
    found = layer_pass(network, torch.from_numpy(pictures), torch.full((5,), 2), Target(2), layers)
    first = inner.first(torch.from_numpy(pictures)).detach().requires_grad_()
    hidden = functional.relu(first)
    second = inner.second(hidden)
    second.retain_grad()
    inner.head(functional.relu(functional.relu(second + hidden)).mean((2, 3)))[:, 2].sum().backward()
    torch.testing.assert_close(found.gradients["first"], first.grad)
    torch.testing.assert_close(found.gradients["second"], second.grad)


def test_the_network_is_left_as_it_was(pictures):
    network = wrapped(Residual(), output="[0]")
    inner = network.network.train()
    inner.first.weight.requires_grad_(False)
    inner.head.weight.grad = torch.ones_like(inner.head.weight)
    before = {name: value.clone() for name, value in inner.state_dict().items()}
    with pytest.raises(RuntimeError, match="on purpose"), network.untouched():
        assert not inner.training
        assert not inner.head.weight.requires_grad
        network.input_gradient(torch.from_numpy(pictures), torch.zeros(5, dtype=torch.int64), Target(0))
        raise RuntimeError("on purpose")
    assert inner.training
    assert not inner.first.weight.requires_grad
    assert inner.second.weight.requires_grad
    torch.testing.assert_close(inner.head.weight.grad, torch.ones_like(inner.head.weight))
    for name, value in inner.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in inner.modules())


def test_p17_hooks_are_gone_after_an_error(pictures):
    network = wrapped(Residual(), output="[0]")
    layers = [
        layer.info for layer in chosen_spatial_layers(["first"], observed(network, probe_of(pictures)).layers)
    ]
    with (
        pytest.raises(ValueError, match="no"),
        replaced_outputs(network.network, layers, lambda layer, values: 1 / 0),
    ):
        raise ValueError("no")
    with pytest.raises(ZeroDivisionError), replaced_outputs(network.network, layers, lambda layer, values: 1 / 0):
        network.network(torch.from_numpy(pictures))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.network.modules())


def test_replacing_a_layer_changes_what_follows(pictures):
    network = wrapped(Residual(), output="[0]")
    layers = [
        layer.info
        for layer in chosen_spatial_layers(["second", "first"], observed(network, probe_of(pictures)).layers)
    ]
    with replaced_outputs(network.network, layers, lambda layer, values: torch.zeros_like(values)):
        outputs = network.outputs(torch.from_numpy(pictures))
    torch.testing.assert_close(outputs, network.network.head.bias.expand_as(outputs))


def test_an_input_without_a_gradient_is_named(pictures):
    class Detached(nn.Module):
        def forward(self, inputs):
            return inputs.detach().mean((2, 3)).repeat(1, 3)

    with pytest.raises(DoesNotApply, match="no gradient flows from the output to the inputs"):
        wrapped(Detached()).input_gradient(
            torch.from_numpy(pictures), torch.zeros(5, dtype=torch.int64), Target(0)
        )


def test_p18_any_layer_by_name_and_what_is_not_spatial_is_named(pictures):
    from stratascope.tasks.models import cifar_resnet

    network = wrapped(cifar_resnet(8, channels=1))
    layers = observed(network, probe_of(pictures)).layers
    names = [layer.name for layer in chosen_spatial_layers(["layer2.*.conv?", "@last_spatial"], layers)]
    assert names == ["layer2.0.conv1", "layer2.0.conv2", "layer3"]
    with pytest.raises(DoesNotApply, match="'fc' is not spatial: a sample of it has feature 10"):
        chosen_spatial_layers(["fc"], layers)


def test_tokens_of_a_vision_transformer_lie_on_a_grid():
    from stratascope.tasks.models import vision_transformer

    network = wrapped(vision_transformer())
    inputs = torch.zeros(2, 1, 28, 28).numpy()
    found = [layer for layer in spatial_layers(observed(network, probe_of(inputs)).layers) if layer.skipped]
    assert found
    assert {(layer.height, layer.width) for layer in found} == {(found[0].height, found[0].width)}
    layer = found[0]
    tokens = (
        torch.arange(layer.height * layer.width + layer.skipped)
        .float()[None, :, None]
        .repeat(1, 1, layer.channels)
    )
    grid = layer.on_grid(tokens)
    assert grid.shape == (1, layer.channels, layer.height, layer.width)
    assert grid[0, 0, 0, 0] == layer.skipped
    assert grid[0, 0, 1, 0] == layer.skipped + layer.width
