"""What is remembered answers as if it had run; where that does not hold the whole network runs."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from stratascope.errors import DoesNotApply
from stratascope.tasks.vision.image_network import replaced_outputs
from stratascope.tasks.vision.partial_forward import PartialForward
from stratascope.tasks.vision.spatial_layers import observed
from tests.tasks.vision.conftest import probe_of, wrapped


class Counted(nn.Module):
    """A convolution that counts how many samples it was run on."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.inner = nn.Conv2d(before, after, 3, padding=1)
        self.samples = 0

    def forward(self, inputs):
        self.samples += len(inputs)
        return self.inner(inputs)


class Winding(nn.Module):
    """A re-used ReLU, in-place functional activations, a side branch around the middle, and a tuple for an output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = Counted(1, 4), Counted(4, 4), Counted(4, 4)
        self.relu = nn.ReLU(inplace=True)
        self.side = Counted(1, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs):
        hidden = functional.relu_(self.first(inputs))
        branch = self.side(inputs)
        hidden = self.relu(self.second(hidden))
        hidden = self.relu(self.third(hidden) + branch)
        return self.head(hidden.mean((2, 3))), hidden


def rest_of(network, name: str, inputs):
    known = observed(network, probe_of(inputs.numpy())).layers
    layer = next(item for item in known if item.name == name)
    rest = PartialForward(network, layer, known)
    return rest, layer


def whole(network, layer, inputs, values):
    with torch.no_grad(), replaced_outputs(network.network, [layer], lambda layer, own: values):
        return network.outputs(inputs.expand(values.shape[layer.sample_axis], *inputs.shape[1:]))


@pytest.mark.parametrize("name", ["first.inner", "side", "relu", "third", "relu#1"])
def test_any_layer_of_a_winding_network(name):
    torch.manual_seed(0)
    network, inputs = wrapped(Winding(), output="[0]"), torch.randn(3, 1, 6, 7)
    rest, layer = rest_of(network, name, inputs)
    rest.record(inputs)
    assert not rest.whole
    for sample in range(3):
        values = torch.randn(4, *layer.shape)
        expected = whole(network, layer, inputs[sample : sample + 1], values)
        torch.testing.assert_close(rest.run(sample, values), expected)


def test_what_came_before_is_not_run_again():
    network, inputs = wrapped(Winding(), output="[0]"), torch.randn(3, 1, 6, 7)
    rest, layer = rest_of(network, "relu", inputs)
    rest.record(inputs)
    before = {name: network.network.get_submodule(name).samples for name in ("first", "side", "second", "third")}
    rest.run(0, torch.randn(5, *layer.shape))
    after = {name: network.network.get_submodule(name).samples for name in before}
    assert {name: after[name] - before[name] for name in before} == {
        "first": 0,
        "side": 0,
        "second": 0,
        "third": 5,
    }


def test_tokens_behind_a_class_token():
    from stratascope.tasks.models import vision_transformer

    torch.manual_seed(0)
    network, inputs = wrapped(vision_transformer(width=16, heads=2, depth=2)), torch.randn(2, 1, 28, 28)
    rest, layer = rest_of(network, "blocks.1.norm1", inputs)
    rest.record(inputs)
    values = torch.randn(3, *layer.shape)
    assert not rest.whole
    torch.testing.assert_close(rest.run(1, values), whole(network, layer, inputs[1:], values))


class Sly(nn.Module):
    """Its ReLU works by what it does to its input, which an answer from memory does not do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, inputs):
        hidden = self.first(inputs)
        self.relu(hidden)
        return (self.second(hidden) + hidden[:, :, 1:-1, 1:-1]).mean((2, 3))


@pytest.mark.parametrize("fixed", [None, 4])
def test_where_the_part_is_wrong_the_whole_is_run(fixed):
    torch.manual_seed(0)
    network, inputs = wrapped(Sly()), torch.randn(3, 1, 6, 7)
    rest, layer = rest_of(network, "second", inputs)
    network.fixed_batch_size = fixed
    rest = PartialForward(network, layer, [layer])
    rest.record(inputs)
    assert rest.whole
    values = torch.randn(6, *layer.shape)
    network.fixed_batch_size = None
    expected = whole(network, layer, inputs[2:], values)
    network.fixed_batch_size = fixed
    torch.testing.assert_close(rest.run(2, values), expected)


def test_p17_the_network_is_left_as_it_was_also_after_an_error():
    network, inputs = wrapped(Winding(), output="[0]"), torch.randn(2, 1, 6, 7)
    rest, _ = rest_of(network, "third", inputs)
    rest.record(inputs)
    with pytest.raises(Exception, match="shape"):
        rest.run(0, torch.randn(2, 9, 6, 7))
    for module in network.network.modules():
        assert "forward" not in module.__dict__
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    torch.testing.assert_close(network.outputs(inputs).detach(), rest.outputs)


def test_a_layer_that_is_not_reached_is_named():
    network, inputs = wrapped(Winding(), output="[0]"), torch.randn(2, 1, 6, 7)
    rest, _ = rest_of(network, "relu#1", inputs)
    network.network.third, kept = nn.Identity(), network.network.third
    network.network.forward = lambda inputs: (
        network.network.head(kept(network.network.first(inputs)).mean((2, 3))),
    )
    with pytest.raises(DoesNotApply, match="'relu#1' is not reached"):
        rest.record(inputs)
