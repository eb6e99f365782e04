"""Feed-forward and convolutional networks: sizes by formula, shapes, the shortcut without weights."""

import itertools

import pytest
import torch
from torch import nn

from stratascope.tasks.models import cifar_resnet, convnet, lenet, mlp


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def weights_of(network):
    return sum(item.numel() for item in network.parameters())


@pytest.mark.parametrize("widths", [(), (7,), (16, 8, 5)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_a_perceptron_has_as_many_weights_as_its_matrices(widths, bias, batch_norm):
    network = mlp(12, widths, 3, bias=bias, batch_norm=batch_norm)
    sizes = (12, *widths, 3)
    expected = sum(before * after + bias * after for before, after in itertools.pairwise(sizes))
    expected += 2 * sum(widths) * batch_norm
    assert weights_of(network) == expected
    assert network(torch.zeros(5, 3, 2, 2)).shape == (5, 3)


def test_a_perceptron_without_hidden_layers_is_a_linear_map():
    network = mlp(6, (), 2)
    inputs = torch.randn(4, 6)
    assert torch.equal(network(inputs), inputs @ network.fc1.weight.T + network.fc1.bias)


@pytest.mark.parametrize(("size", "channels", "width"), [(28, 1, 16), (8, 1, 8), (32, 3, 4), (30, 2, 5)])
def test_lenet_takes_any_image_size_and_has_the_weights_of_its_formula(size, channels, width):
    network = lenet(channels, size, 7, width)
    reduced = size // 4
    expected = 25 * channels * width + width + 25 * width * 2 * width + 2 * width
    expected += 2 * width * reduced**2 * 8 * width + 8 * width + 8 * width * 7 + 7
    assert weights_of(network) == expected
    assert network(torch.zeros(3, channels, size, size)).shape == (3, 7)


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("size", [8, 32, 33])
def test_convnet_halves_the_image_between_blocks(size, batch_norm):
    network = convnet(3, (4, 6, 8), 5, batch_norm)
    shapes = []
    network.conv3.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    assert network(torch.zeros(2, 3, size, size)).shape == (2, 5)
    assert shapes == [(2, 8, size // 4, size // 4)]
    expected = sum(9 * a * b + (2 if batch_norm else 1) * b for a, b in ((3, 4), (4, 6), (6, 8))) + 8 * 5 + 5
    assert weights_of(network) == expected


def resnet_formula(depth, outputs=10):
    """Convolutions of 6 n + 1 layers with two numbers for each channel of their batch norm, then the last layer."""
    blocks = (depth - 2) // 6
    widths = [(3, 16)] + [(16, 16)] * (2 * blocks)
    widths += [(16, 32)] + [(32, 32)] * (2 * blocks - 1) + [(32, 64)] + [(64, 64)] * (2 * blocks - 1)
    return sum(9 * before * after + 2 * after for before, after in widths) + 64 * outputs + outputs


@pytest.mark.parametrize(("depth", "millions"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_residual_networks_have_the_sizes_of_he_et_al(depth, millions):
    network = cifar_resnet(depth)
    assert weights_of(network) == resnet_formula(depth)
    assert round(weights_of(network) / 1e6, 2) == millions
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == depth - 1


def test_the_shortcut_of_a_residual_network_has_no_weights():
    network = cifar_resnet(20).eval()
    block = network.layer2[0]
    with torch.no_grad():
        for name in ("norm2.weight", "norm2.bias"):
            block.get_parameter(name).zero_()
    inputs = torch.rand(2, 16, 8, 8)
    output = block(inputs)
    assert torch.equal(output[:, 8:24], inputs[:, :, ::2, ::2])
    assert not output[:, :8].any()
    assert not output[:, 24:].any()


@pytest.mark.parametrize("depth", [2, 19, 21])
def test_a_depth_that_makes_no_whole_blocks_is_refused(depth):
    with pytest.raises(ValueError, match="6 n"):
        cifar_resnet(depth)


@pytest.mark.parametrize("size", [16, 32])
def test_a_residual_network_takes_images_of_other_sizes_and_channels(size):
    assert cifar_resnet(8, 4, 8, 1)(torch.zeros(2, 1, size, size)).shape == (2, 4)


@pytest.mark.parametrize(
    "build",
    [lambda: mlp(16, (9,), 3, dropout=0.5), lambda: lenet(1, 8, 3, 4, dropout=0.5), lambda: cifar_resnet(8, 3)],
)
def test_a_seed_decides_the_initial_weights(build):
    def built(seed):
        torch.manual_seed(seed)
        return torch.cat([item.detach().reshape(-1) for item in build().parameters()])

    assert torch.equal(built(3), built(3))
    assert not torch.equal(built(3), built(4))


def test_dropout_acts_in_training_only():
    network = mlp(16, (64,), 3, dropout=0.5)
    inputs = torch.randn(2, 16)
    assert not torch.equal(network(inputs), network(inputs))
    network.eval()
    assert torch.equal(network(inputs), network(inputs))
