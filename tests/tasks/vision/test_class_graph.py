"""The graph of a class on networks whose influence is known, and the walk against a linear solve."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from stratascope.tasks.analysis import named
from stratascope.tasks.vision.channel_influence import (
    channel_sources,
    personalised_pagerank,
    single_channel_peaks,
    strongest_predecessors,
)
from stratascope.tasks.vision.spatial_layers import chosen_spatial_layers, observed
from tests.tasks.vision.conftest import CLASSES, bars, wrapped
from tests.tasks.vision.test_image_network import Residual, probe_of


def test_the_walk_is_the_solution_of_the_linear_system():
    generator = np.random.default_rng(0)
    edges = np.array([(a, b) for a in range(12) for b in range(a) if generator.uniform() < 0.4])
    weights = generator.uniform(0.1, 2, len(edges))
    restart = np.where(np.arange(12) % 3, generator.integers(0, 9, 12), 0)
    found = personalised_pagerank(edges, weights, restart, 0.85)
    start = restart / restart.sum()
    step = np.zeros((12, 12))
    np.add.at(step, (edges[:, 1], edges[:, 0]), weights)
    outgoing = step.sum(0)
    step = np.where(outgoing > 0, step / np.where(outgoing > 0, outgoing, 1), start[:, None])
    expected = np.linalg.solve(np.eye(12) - 0.85 * step, 0.15 * start)
    np.testing.assert_allclose(found, expected, atol=1e-11)
    assert found.sum() == pytest.approx(1)
    alone = personalised_pagerank(np.empty((0, 2), np.int64), np.empty(0), restart)
    np.testing.assert_allclose(alone, start, atol=1e-12)
    with pytest.raises(ValueError, match="restart"):
        personalised_pagerank(edges, weights, np.zeros(12))


@pytest.mark.parametrize(
    "options",
    [
        {"padding": 1},
        {"stride": 2, "padding": 2, "dilation": 2},
        {"groups": 2, "padding": "same"},
        {"padding": 1, "padding_mode": "reflect"},
    ],
)
def test_single_channel_convolutions_are_the_layer_with_all_other_channels_at_zero(options):
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, **options)
    inputs = torch.randn(2, 4, 9, 11)
    found = single_channel_peaks(layer, inputs)
    each = 4 // layer.groups
    for into in range(4):
        alone = torch.zeros_like(inputs)
        alone[:, into] = inputs[:, into]
        with torch.no_grad():
            expected = (layer(alone) - layer.bias[None, :, None, None]).amax((2, 3))
        mine = [out for out in range(6) if out // (6 // layer.groups) == into // each]
        torch.testing.assert_close(found[:, mine, into % each], expected[:, mine], atol=1e-5, rtol=1e-5)


def test_only_inputs_that_raise_a_channel_are_its_predecessors():
    peaks = torch.tensor([[[3.0, 1.0, 2.0], [-1.0, -2.0, 0.0], [1.0, 1.0, 1.0]]])
    found = strongest_predecessors(peaks, 2)[0]
    assert found.tolist() == [[True, False, True], [False, False, False], [True, True, False]]


class Joined(nn.Module):
    """Convolutions joined by a concatenation, a shuffle of channels, and a sum with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 3, 3, padding=1)
        self.three, self.four = nn.Conv2d(5, 5, 1), nn.Conv2d(5, 2, 1)
        self.norm = nn.BatchNorm2d(5)

    def forward(self, inputs):
        one = functional.relu(self.one(inputs))
        both = functional.max_pool2d(torch.cat([one, self.two(one)], 1).flip(1), 2)
        three = functional.relu_(self.norm(self.three(both)))
        return self.four(three + both).mean((2, 3))


def test_channels_are_followed_through_concatenation_shuffle_and_shortcut():
    network = wrapped(Joined())
    pictures = torch.from_numpy(bars(1, 0)[0])
    layers = chosen_spatial_layers(["@convolutions"], observed(network, probe_of(pictures.numpy())).layers)
    assert [layer.name for layer in layers] == ["one", "two", "three", "four"]
    for batch in (64, 2):
        found = channel_sources(network, pictures[0], layers, batch)
        assert found["one"].tolist() == [[-1, -1]]
        assert found["two"].tolist() == [[0, 0], [0, 1]]
        # Three channels of `two` and two of `one`, in reverse.
        assert found["three"].tolist() == [[1, 2], [1, 1], [1, 0], [0, 1], [0, 0]]
        # The sum brings both branches: the one that ran last counts.
        assert found["four"].tolist() == [[2, number] for number in range(5)]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.network.modules())


def test_a_shortcut_alone_brings_the_input_of_the_block():
    from stratascope.tasks.models import cifar_resnet

    network = wrapped(cifar_resnet(8, width=4, channels=1))
    pictures = torch.rand(1, 1, 16, 16)
    layers = chosen_spatial_layers(["@convolutions"], observed(network, probe_of(pictures.numpy())).layers)
    names = [layer.name for layer in layers]
    found = channel_sources(network, pictures[0], layers, 64)
    for name, before in (("layer1.0.conv1", "conv1"), ("layer1.0.conv2", "layer1.0.conv1"), ("layer2.0.conv1", "layer1.0.conv2")):  # fmt: skip
        assert found[name][:, 0].tolist() == [names.index(before)] * 4
        assert found[name][:, 1].tolist() == list(range(4))


class Known(nn.Module):
    """Two classes and what each is made of: bright at the left lights channels 0 → 2, at the right channels 1 → 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 3, 1)
        self.head = nn.Linear(3, 2)
        for item in self.parameters():
            item.data.zero_()
        self.first.weight.data[0, 0], self.first.weight.data[1, 1] = 1.0, 1.0
        self.second.weight.data[2, 0], self.second.weight.data[0, 1] = 2.0, 3.0
        self.second.weight.data[1, 0] = -1.0

    def forward(self, inputs):
        return self.head(functional.relu(self.second(functional.relu(self.first(inputs)))).mean((2, 3)))


def known() -> Known:
    return Known()


def test_a_hand_built_network_has_the_graph_that_it_was_built_with(little_audit):
    audit = little_audit("tests.tasks.vision.test_class_graph:known")
    inputs = np.zeros((8, 2, 4, 5), np.float32)
    targets = np.arange(8) % 2
    inputs[np.arange(8), targets, 2, 3] = 1 + np.arange(8)
    audit.probe("test", "test", ("left", "right"), inputs=inputs, targets=targets)
    audit.checkpoint(0, known())
    audit.capture("class_graph")
    found = audit.analyse("class_graph")
    arrays = audit.view("class_graph").arrays(0)
    edges = {tuple(edge): weight for edge, weight in zip(arrays["test/edge"].tolist(), arrays["test/weight"].tolist(), strict=True)}  # fmt: skip
    assert edges == {(0, 0, 0, 0): 1, (0, 1, 2, 0): 1, (1, 0, 1, 1): 1, (1, 1, 0, 1): 1}
    assert arrays["test/activation"].tolist() == [[4, 0, 0, 0, 0, 4], [0, 4, 0, 4, 0, 0]]
    # Two nodes, each as likely a start; all of the upper one's walks lead to the lower one.
    upper = 0.15 * 0.5 / (1 - 0.85 * 0.5 * 0.85 - 0.85 * 0.5)
    rank = arrays["test/pagerank"]
    np.testing.assert_allclose(rank.sum(1), 1, rtol=1e-6)
    assert rank[0, 0] > rank[0, 5] > 0
    lower = 1 - rank[0, 5]
    assert rank[0, 5] == pytest.approx(0.5 * 0.15 + 0.5 * 0.85 * lower, rel=1e-5)
    assert upper > 0
    sound = found[found["status"] == "ok"].set_index(["metric", "layer"])["value"]
    assert sound["class_channel_overlap", "first"] == 0
    assert sound["class_channels", "second"] == 1
    assert sound["followed_inputs", "second"] == 1
    assert sound["followed_inputs", "first"] == 0
    figures = audit.draw("class_graph")
    graph = next(figure for figure in figures if figure.key.startswith("graph-test-0"))
    assert "the strongest edge, from channel 0 of first to 2 of second, counted for 100% of the samples" in graph.caution  # fmt: skip


def test_what_cannot_be_a_graph_says_so(little_audit):
    audit = little_audit("stratascope.tasks.models:convnet", {"channels": 1, "widths": [4], "outputs": 4})
    inputs, targets = bars(8, 0)
    audit.probe("test", "test", CLASSES, inputs=inputs, targets=targets)
    audit.probe("unlabelled", "test", inputs=inputs)
    from stratascope.tasks.models import convnet

    audit.checkpoint(0, convnet(channels=1, widths=[4], outputs=4).eval())
    audit.capture("class_graph")
    found = audit.analyse("class_graph")
    assert set(found["status"]) == {"does_not_apply"}
    assert found[found["probe"] == "test"]["reason"].str.contains("two convolutions or more").all()
    assert found[found["probe"] == "unlabelled"]["reason"].str.contains("no classes").all()


def test_the_network_is_left_as_it_was():
    network = wrapped(Residual(), output="[0]")
    inner = network.network
    before = {name: value.clone() for name, value in inner.state_dict().items()}
    pictures = torch.from_numpy(bars(2, 0)[0])
    layers = chosen_spatial_layers(["@convolutions"], observed(network, probe_of(pictures.numpy())).layers)
    with network.untouched():
        channel_sources(network, pictures[0], layers, 8)
    for name, value in inner.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in inner.modules())


def test_the_options_are_those_of_the_registration():
    assert named("class_graph").options().alpha == 0.85
