"""Convolutional networks: LeNet-like, plain, and the residual networks for CIFAR."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def lenet(
    channels: int = 1, size: int = 28, outputs: int = 10, width: int = 16, dropout: float = 0.0
) -> nn.Sequential:
    """Two convolutions, two poolings and two linear layers, in the manner of LeCun et al. 1998."""
    reduced = size // 4
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, width, 5, padding=2),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(width, 2 * width, 5, padding=2),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(2 * width * reduced * reduced, 8 * width),
            relu3=nn.ReLU(),
            dropout=nn.Dropout(dropout),
            fc2=nn.Linear(8 * width, outputs),
        )
    )


def convnet(
    channels: int = 3, widths: Sequence[int] = (16, 32), outputs: int = 10, batch_norm: bool = True
) -> nn.Sequential:
    """Blocks of convolution, (batch norm,) ReLU and pooling, then the mean over positions and a linear layer."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    before = channels
    for number, width in enumerate(widths, start=1):
        layers[f"conv{number}"] = nn.Conv2d(before, width, 3, padding=1, bias=not batch_norm)
        if batch_norm:
            layers[f"norm{number}"] = nn.BatchNorm2d(width)
        layers[f"relu{number}"] = nn.ReLU()
        if number < len(widths):
            layers[f"pool{number}"] = nn.MaxPool2d(2)
        before = width
    layers["average"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(before, outputs)
    return nn.Sequential(layers)


class ResidualBlock(nn.Module):
    """Two convolutions with batch norm, and the parameter-free shortcut of He et al. 2016 (option A)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu2 = nn.ReLU()
        self._stride = stride
        self._added = width - before

    def forward(self, inputs: Tensor) -> Tensor:
        """(sample, before, y, x) → (sample, width, y / stride, x / stride)."""
        shortcut = inputs[:, :, :: self._stride, :: self._stride]
        if self._added:
            half = self._added // 2
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, half, self._added - half))
        hidden = self.relu1(self.norm1(self.conv1(inputs)))
        return self.relu2(self.norm2(self.conv2(hidden)) + shortcut)


class CifarResNet(nn.Module):
    """The residual network for 32 × 32 images: three stages of `blocks` blocks each."""

    def __init__(self, blocks: int, outputs: int, width: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, 1, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        before = width
        for stage in range(3):
            members = []
            for block in range(blocks):
                after = width * 2**stage
                members.append(ResidualBlock(before, after, 2 if stage and not block else 1))
                before = after
            setattr(self, f"layer{stage + 1}", nn.Sequential(*members))
        self.average = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """(sample, channel, y, x) → (sample, outputs)."""
        hidden = self.relu1(self.norm1(self.conv1(inputs)))
        for stage in ("layer1", "layer2", "layer3"):
            hidden = self.get_submodule(stage)(hidden)
        return self.fc(torch.flatten(self.average(hidden), 1))


def cifar_resnet(depth: int = 20, outputs: int = 10, width: int = 16, channels: int = 3) -> CifarResNet:
    """ResNet-`depth` of He et al. 2016, section 4.2: depth 20, 32, 44 or 56 (any 6 n + 2).

    Raises ValueError for another depth.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth {depth} is not 6 n + 2; use 20, 32, 44 or 56.")
    return CifarResNet((depth - 2) // 6, outputs, width, channels)
