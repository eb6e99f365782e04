"""Questions about little networks, as the attribution methods get them."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from stratascope.tasks.vision.attribution_methods import Attributed, Explained, method_named
from stratascope.tasks.vision.image_network import ImageNetwork
from stratascope.tasks.vision.targets import Target


def question(network: ImageNetwork, inputs, indices=None, **changes) -> Explained:
    """About each of `inputs` (sample, channel, y, x), whose ids are 100, 101, …; by default about outputs 0, 1, 0, 1, …"""
    inputs = torch.as_tensor(inputs, dtype=torch.float32)
    indices = torch.arange(len(inputs)) % 2 if indices is None else torch.as_tensor(indices)
    fields = {
        "target": Target(), "sample_id": np.arange(100, 100 + len(inputs)), "baseline": torch.zeros_like(inputs),
    } | changes  # fmt: skip
    return Explained(network, inputs, indices, **fields)


def attributed(name: str, explained: Explained, **settings) -> Attributed:
    """What the method called `name` says, in the frame in which analyses run it."""
    from dataclasses import replace

    method = method_named(name)
    with explained.network.untouched():
        return method.compute(replace(explained, settings={**method.settings, **settings}))


CLAMPS = (
    lambda values: values.clamp(min=0), lambda values: values.clamp_(0), lambda values: torch.clamp_min(values, 0),
    lambda values: torch.maximum(values, torch.zeros(())),
)  # fmt: skip


class Rectified(nn.Module):
    """Three convolutions, pooling and a linear layer, with the ReLUs written in one of several ways."""

    WAYS = (
        "modules",
        "in place",
        "one used again",
        "function",
        "built in forward",
        "torch.relu",
        "method",
        "clamp",
    )

    def __init__(self, way: str, channels: int = 2, outputs: int = 7) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.way = way
        sizes = [(channels, 5), (5, 6), (6, 6)]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in sizes)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(6, outputs)
        if way in ("modules", "in place"):
            self.rectifiers = nn.ModuleList(nn.ReLU(inplace=way == "in place") for _ in range(4))
        elif way == "one used again":
            self.rectifier = nn.ReLU()

    def rectify(self, values: torch.Tensor, place: int) -> torch.Tensor:
        return {
            "modules": lambda: self.rectifiers[place](values),
            "in place": lambda: self.rectifiers[place](values),
            "one used again": lambda: self.rectifier(values),
            "function": lambda: functional.relu(values, place % 2 == 0),
            "built in forward": lambda: nn.ReLU(place % 2 == 1)(values),
            "torch.relu": lambda: torch.relu(values),
            "method": lambda: values.relu_() if place % 2 else values.relu(),
            "clamp": lambda: CLAMPS[place](values),
        }[self.way]()  # fmt: skip

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.rectify(self.layers[0](inputs), 0)
        hidden = self.pool(self.rectify(self.layers[1](hidden), 1))
        # The sum gives the gradient two ways to go.
        hidden = self.rectify(self.layers[2](hidden) + hidden, 2)
        return self.head(self.rectify(hidden.mean((2, 3)), 3))
