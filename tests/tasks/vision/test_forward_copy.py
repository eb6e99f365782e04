"""The quick copy gives what the network gives, whatever the network; and the network stays as it is."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from stratascope.tasks.models import cifar_resnet, convnet, lenet
from stratascope.tasks.vision.forward_copy import forward_copy
from stratascope.tasks.vision.winograd_convolution import WinogradConvolution
from tests.tasks.vision.conftest import wrapped

MANY = 10_000
VERY_MANY = 10**9
"""Enough that Winograd's convolutions are worth their start in the smallest network."""


def lived_in(network: nn.Module) -> nn.Module:
    """Batch norms with statistics and weights that matter, as after training."""
    torch.manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            if module.running_mean is not None:
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.3, 3)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return network


class Plain(nn.Module):
    """Functional ReLUs, also one whose input is read again, a sum with a view, and a ReLU of a view."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, groups=2)
        self.norm, self.last = nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, inputs):
        hidden = self.first(inputs)
        kept = functional.relu(hidden) + hidden
        view = kept[:, :, ::1]
        other = torch.relu(view) - kept
        summed = self.norm(self.second(kept)) + other
        return self.last((summed.relu() + 1).mean((2, 3)))


class Again(nn.Module):
    """A convolution called twice, followed by a batch norm once and by itself once; a batch norm called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.twice = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.shared, self.relu = nn.BatchNorm2d(6), nn.BatchNorm2d(6), nn.ReLU()
        self.last = nn.Linear(6, 4)

    def forward(self, inputs):
        hidden = self.relu(self.shared(self.start(inputs)))
        hidden = self.relu(self.norm(self.twice(hidden)))
        hidden = self.relu(self.twice(hidden))
        branch = self.shared(hidden) + hidden
        return self.last((branch + self.relu(hidden)).mean((2, 3)))


class Growing(nn.Module):
    """A sum that is larger than its first member, and a view that needs the channels in front."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm, self.weight = nn.BatchNorm2d(4), nn.Parameter(torch.ones(4, 1, 12, 12))

    def forward(self, inputs):
        hidden = self.norm(self.conv(inputs))
        return (functional.adaptive_avg_pool2d(hidden, (1, 12)) + hidden.view(-1, 4, 12, 12)).flatten(1)


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6, affine=False), nn.ReLU(),
        nn.Conv2d(6, 12, 3, groups=3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(12), nn.ReLU(inplace=True),
        nn.Conv2d(12, 12, 3, groups=12), nn.ReLU6(), nn.BatchNorm2d(12),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4), nn.ReLU(),
    )  # fmt: skip


NETWORKS = {
    "lenet": lambda: lenet(channels=3, size=12, width=4), "convnet": lambda: convnet(3, (6, 8)),
    "cifar_resnet": lambda: cifar_resnet(8, width=4), "functional": Plain, "called again": Again, "grouped": grouped,
    "growing": Growing, "wide": lambda: cifar_resnet(8, width=16),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread():
    """As in a worker."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("evaluations", [MANY, VERY_MANY])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_copy_gives_what_the_network_gives_and_leaves_it_alone(name, evaluations):
    torch.manual_seed(0)
    network = wrapped(lived_in(NETWORKS[name]()))
    inputs = torch.randn(24, 3, 12, 12)
    weights = copy.deepcopy(network.network.state_dict())
    modules = list(network.network.named_modules())
    with network.untouched():
        expected = network.outputs(inputs)
        found = forward_copy(network, inputs, evaluations)
        assert isinstance(found.network, fx.GraphModule)
        before = inputs.clone()
        for size in (24, 5, 1):
            parts = torch.cat([found.outputs(part) for part in inputs.split(size)])
            assert float((parts - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
        assert torch.equal(inputs, before)
        assert torch.equal(network.outputs(inputs), expected)
    assert all(torch.equal(value, weights[key]) for key, value in network.network.state_dict().items())
    assert [(key, id(module)) for key, module in network.network.named_modules()] == [(key, id(module)) for key, module in modules]  # fmt: skip
    assert all(item.requires_grad for item in network.network.parameters())


def transformed(network, inputs, evaluations):
    copied = forward_copy(network, inputs, evaluations).network
    return sum(isinstance(module, WinogradConvolution) for module in copied.modules())


@torch.no_grad()
def test_convolutions_are_winograds_on_one_thread_where_much_is_asked():
    network, inputs = wrapped(lived_in(cifar_resnet(8, width=16))), torch.randn(8, 3, 16, 16)
    with network.untouched():
        # Of seven convolutions the first has 3 channels in, and two have a stride.
        assert transformed(network, inputs, VERY_MANY) == 4
        assert transformed(network, inputs, MANY) == 0
        torch.set_num_threads(2)
        assert transformed(network, inputs, VERY_MANY) == 0


def test_batch_norms_are_folded_where_a_convolution_precedes_them_alone():
    def norms(network):
        copied = forward_copy(wrapped(lived_in(network)), torch.randn(8, 3, 12, 12), MANY).network
        return sum(type(copied.get_submodule(str(node.target))) is nn.BatchNorm2d for node in copied.graph.nodes if node.op == "call_module")  # fmt: skip

    assert norms(cifar_resnet(8, width=4)) == 0
    assert norms(grouped()) == 1
    assert norms(Again()) == 1


@torch.no_grad()
def test_a_network_that_writes_over_its_input_does_not_reach_what_is_asked_about():
    network = wrapped(nn.Sequential(nn.ReLU(inplace=True), lived_in(cifar_resnet(8, width=16))))
    inputs = torch.randn(8, 3, 16, 16)
    before = inputs.clone()
    with network.untouched():
        assert transformed(network, inputs, VERY_MANY) == 4
    assert torch.equal(inputs, before)


class Branching(nn.Module):
    def forward(self, inputs):
        return inputs.flatten(1) if inputs.sum() > 0 else -inputs.flatten(1)


class Hidden(nn.Module):
    """What it gives depends on what no trace sees."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, inputs):
        self.calls += 1
        return inputs.flatten(1) * self.calls


def without_statistics() -> nn.Module:
    """What it gives of a picture depends on the pictures beside it."""
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@torch.no_grad()
def test_where_there_is_no_true_copy_the_network_itself_is_asked():
    inputs = torch.randn(8, 3, 12, 12)
    for network in (wrapped(Branching()), wrapped(Hidden()), wrapped(without_statistics())):
        assert forward_copy(network, inputs, MANY) is network
    watched = wrapped(convnet(3, (6, 8)))
    handle = watched.network.conv1.register_forward_hook(lambda module, given, output: output * 2)
    assert forward_copy(watched, inputs, MANY) is watched
    handle.remove()
    assert forward_copy(watched, inputs, MANY) is not watched


@torch.no_grad()
def test_a_copy_that_would_be_asked_too_little_is_not_made():
    network, inputs = wrapped(convnet(3, (6, 8))), torch.randn(8, 3, 12, 12)
    assert forward_copy(network, inputs, 20) is network


@torch.no_grad()
def test_outputs_that_are_not_finite_make_no_copy():
    network = wrapped(convnet(3, (6, 8)))
    network.network.fc.bias[0] = torch.nan
    assert forward_copy(network, torch.randn(8, 3, 12, 12), MANY) is network


@torch.no_grad()
def test_a_network_in_training_is_copied_as_it_is_evaluated():
    network = wrapped(lived_in(lenet(channels=3, size=12, width=4, dropout=0.5)))
    network.network.train()
    inputs = torch.randn(8, 3, 12, 12)
    with network.untouched():
        expected = network.outputs(inputs)
        found = forward_copy(network, inputs, MANY)
    assert network.network.training
    torch.testing.assert_close(found.outputs(inputs), expected)


class Waiting(nn.Module):
    """Holds its trace up until another thread has run a network."""

    def __init__(self, entered: threading.Event, done: threading.Event) -> None:
        super().__init__()
        self.fc, self._events = nn.Linear(432, 3), (entered, done)

    def __deepcopy__(self, memo):
        return Waiting(*self._events)

    def forward(self, inputs):
        if isinstance(inputs, fx.Proxy):
            self._events[0].set()
            assert self._events[1].wait(30)
        return self.fc(inputs.flatten(1))


@torch.no_grad()
def test_what_another_thread_runs_meanwhile_is_not_drawn_in():
    other, inputs = convnet(3, (6, 8)).eval(), torch.randn(8, 3, 12, 12)
    expected, found = other(inputs), []
    entered, done = threading.Event(), threading.Event()

    def beside() -> None:
        assert entered.wait(30)
        with torch.no_grad():
            try:
                found.append(other(inputs))
            finally:
                done.set()

    thread = threading.Thread(target=beside)
    thread.start()
    forward_copy(wrapped(Waiting(entered, done)), inputs, MANY)
    thread.join()
    assert torch.equal(found[0], expected)
