"""FullGrad adds up to the score where the network is piecewise linear, and says so where it is not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from stratascope.errors import DoesNotApply
from stratascope.tasks.vision.full_gradient import biases_of, full_gradient
from stratascope.tasks.vision.spatial_layers import observed
from stratascope.tasks.vision.targets import Target
from tests.tasks.vision.conftest import probe_of, wrapped


def shaken(network: nn.Module) -> nn.Module:
    """`network` with batch norms that do something."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.running_mean, module.bias):
                nn.init.normal_(values, std=0.3)
            for values in (module.running_var, module.weight):
                nn.init.uniform_(values, 0.5, 2)
    return network


def explained(network, inputs, indices, target=None, **model):
    wrapped_network = wrapped(network, **model)
    known = observed(wrapped_network, probe_of(inputs.numpy())).layers
    return full_gradient(wrapped_network, inputs, indices, target or Target(), known)


def test_without_biases_the_picture_has_everything():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 7, 3, bias=False))  # fmt: skip
    found = explained(network, torch.randn(4, 3, 8, 9), torch.tensor([0, 1, 2, 0]))
    assert found.names == ("@input",)
    torch.testing.assert_close(found.terms[:, 0], found.scores)
    torch.testing.assert_close(found.signed.sum((1, 2)), found.scores)


def test_a_linear_network_has_its_bias_as_a_term():
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 2))
    inputs = torch.randn(3, 1, 2, 3)
    found = explained(network, inputs, torch.tensor([1, 1, 0]))
    weight, bias = network[1].weight.detach()[[1, 1, 0]], network[1].bias.detach()[[1, 1, 0]]
    torch.testing.assert_close(found.signed, (inputs.flatten(1) * weight).reshape(3, 2, 3))
    torch.testing.assert_close(found.terms[:, 1], bias)


def test_batch_norms_have_the_bias_that_they_amount_to():
    torch.manual_seed(0)
    norm = shaken(nn.Sequential(nn.BatchNorm2d(5)))[0].eval()
    torch.testing.assert_close(biases_of(norm), norm(torch.zeros(1, 5, 1, 1)).detach().flatten())


@pytest.mark.parametrize("name", ["residual", "convnet"])
def test_completeness_of_rectifier_networks(name):
    from stratascope.tasks.models import cifar_resnet, convnet

    torch.manual_seed(0)
    network = shaken(cifar_resnet(8, outputs=7, channels=5) if name == "residual" else convnet(5, [4, 6], 7))
    found = explained(network, torch.randn(2, 5, 16, 24), torch.tensor([6, 2]))
    assert float((found.gap.abs() / found.scores.abs()).max()) < 1e-5
    placed = found.scores - found.terms[:, -1]
    # The last term is that of the linear layer, which has no place; the signed map adds up to all others.
    torch.testing.assert_close(found.signed.sum((1, 2)), placed, rtol=1e-4, atol=1e-4)
    assert (found.maps >= found.signed - 1e-5).all()
    assert len(found.names) == (9 if name == "residual" else 4)


def test_a_smooth_activation_leaves_a_gap():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(4 * 16, 2))
    found = explained(network, torch.randn(2, 1, 6, 6), torch.tensor([0, 1]))
    assert float(found.gap.abs().min()) > 1e-3


def test_used_twice_counts_twice_and_an_unused_layer_not_at_all():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.aside = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1)

        def forward(self, inputs):
            hidden = torch.relu(self.conv(inputs))
            self.aside(hidden)
            return self.conv(hidden).mean((2, 3)), hidden

    torch.manual_seed(0)
    found = explained(Twice(), torch.randn(2, 2, 5, 6), torch.tensor([0, 1]), output="[0]")
    assert found.names == ("@input", "conv", "aside", "conv#1")
    assert not found.terms[:, 2].any()
    assert float(found.gap.abs().max()) < 1e-6


def test_an_output_for_each_place_and_a_target_of_ones_own():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 1))
    inputs, indices = torch.randn(2, 3, 6, 8), torch.tensor([4, 1])
    for target in (Target(), Target("own:corner", lambda outputs, indices: outputs[:, 0, :2, :2].sum((1, 2)))):
        found = explained(network, inputs, indices, target)
        assert float(found.gap.abs().max()) < 1e-5


def test_an_input_without_a_gradient_is_named():
    class Detached(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 1)

        def forward(self, inputs):
            return self.conv(inputs.detach()).mean((2, 3))

    with pytest.raises(DoesNotApply, match="no gradient flows from the output to the inputs"):
        explained(Detached(), torch.randn(2, 1, 4, 4), torch.tensor([0, 1]))
