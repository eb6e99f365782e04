"""Questions about little networks, as attribution methods are asked them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stratascope.tasks.vision.attribution_methods import Explained
from stratascope.tasks.vision.targets import Target
from tests.tasks.vision.conftest import wrapped


def explained(
    network: nn.Module,
    inputs: Tensor,
    baseline: Tensor | float = 0.0,
    wanted: str | int = "label",
    output: str | None = None,
    **more,
) -> Explained:
    """Each sample's class is its place, modulo 4."""
    given = baseline if isinstance(baseline, Tensor) else torch.full_like(inputs, baseline)
    indices = classes(len(inputs)) if wanted == "label" else torch.full((len(inputs),), int(wanted))
    return Explained(
        wrapped(network, output=output),
        inputs,
        indices,
        Target.of(wanted),
        np.arange(len(inputs)) + 7,
        given,
        **more,
    )


def classes(count: int) -> Tensor:
    return torch.arange(count) % 4


def pictures(count: int = 5, channels: int = 2, height: int = 9, width: int = 13, seed: int = 0) -> Tensor:
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(seed))


def score_difference(network: nn.Module, inputs: Tensor, baseline: Tensor) -> np.ndarray:
    """float64 (sample,): of each sample's class."""
    chosen = torch.arange(len(inputs)), classes(len(inputs))
    with torch.no_grad():
        return (network(inputs)[chosen] - network(baseline)[chosen]).double().numpy()


def linear_network(channels: int = 2, height: int = 3, width: int = 4, bias: bool = True) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, 4, bias=bias))


def weights_times(network: nn.Sequential, inputs: Tensor) -> np.ndarray:
    """What each pixel adds to the score of a linear network: its weight times its value."""
    weights = network[1].weight.detach()[classes(len(inputs))]
    return (weights.view(inputs.shape) * inputs).numpy()


class Written(nn.Module):
    """The same numbers, written in several ways: with modules once each, in place, as functions, or one module re-used.

    Two convolutions with batch norm, a residual sum, overlapping max-pooling; `outputs` logits.
    """

    def __init__(self, way: str, channels: int = 2, outputs: int = 4, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.way = way
        self.first, self.second = nn.Conv2d(channels, 5, 3, padding=1), nn.Conv2d(5, 5, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(5)
        nn.init.normal_(self.norm.running_mean, 0, 0.2)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        nn.init.normal_(self.norm.bias, 0, 0.2)
        self.head = nn.Linear(5, outputs)
        self.once = nn.ModuleList(nn.ReLU() for _ in range(3))
        self.again = nn.ReLU(inplace=True)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self._activated(self.first(inputs), 0)
        other = self._activated(self.norm(self.second(hidden)), 1)
        if self.way == "in place":
            other += hidden
        else:
            other = other + hidden
        other = self._activated(other, 2)
        return self.head(functional.max_pool2d(other, 3, 2).mean((2, 3)))

    def _activated(self, values: Tensor, number: int) -> Tensor:
        if self.way == "functions":
            return (functional.relu(values), torch.relu(values), values.clamp(min=0))[number]
        if self.way == "in place":
            return (functional.relu_, torch.Tensor.relu_, lambda given: functional.relu(given, inplace=True))[
                number
            ](values)
        return self.again(values) if self.way == "re-used" else self.once[number](values)


WAYS = ("modules", "functions", "in place", "re-used")


class Untouched:
    """Everything about a network that attribution must leave as it was."""

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._state = self._of()

    def _of(self) -> dict:
        network = self._network
        return {
            "values": {name: value.clone() for name, value in network.state_dict().items()},
            "attributes": {name: sorted(vars(module)) for name, module in network.named_modules()},
            "modes": [module.training for module in network.modules()],
            "hooks": [
                (len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks))
                for module in network.modules()
            ],
            "flags": [(item.requires_grad, item.grad is None) for item in network.parameters()],
        }

    def check(self) -> None:
        now = self._of()
        for name, value in now.pop("values").items():
            torch.testing.assert_close(value, self._state["values"][name], rtol=0, atol=0)
        assert now == {name: value for name, value in self._state.items() if name != "values"}
