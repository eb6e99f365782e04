"""Multi-layer perceptrons of any depth and width."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn


def mlp(
    inputs: int = 784,
    widths: Sequence[int] = (512,),
    outputs: int = 10,
    bias: bool = True,
    batch_norm: bool = False,
    dropout: float = 0.0,
) -> nn.Sequential:
    """A perceptron (sample, …) → (sample, outputs); inputs are flattened to `inputs` numbers each.

    Layers are called ``fc1``, ``relu1``, …, the last one ``fc<depth>``.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    before = inputs
    for number, width in enumerate(widths, start=1):
        layers[f"fc{number}"] = nn.Linear(before, width, bias=bias)
        if batch_norm:
            layers[f"norm{number}"] = nn.BatchNorm1d(width)
        layers[f"relu{number}"] = nn.ReLU()
        if dropout:
            layers[f"dropout{number}"] = nn.Dropout(dropout)
        before = width
    layers[f"fc{len(widths) + 1}"] = nn.Linear(before, outputs, bias=bias)
    return nn.Sequential(layers)
