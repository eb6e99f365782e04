"""Two convolutions as one: their kernels composed, as if nothing but linear maps lay between them.

Voss et al. 2021 ("Visualizing Weights") call these expanded weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stratascope.errors import DoesNotApply

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stratascope.tasks.vision.convolution_paths import Between

_MOST_WEIGHTS = 32 << 20
"""Numbers of a composed kernel; above it fewer output channels are composed."""
_ACTIVATIONS = (
    "Relu", "LeakyRelu", "Elu", "Gelu", "Silu", "Sigmoid", "Tanh", "Hardtanh", "Hardswish", "Hardsigmoid", "Softplus",
    "Mish", "Prelu", "Threshold", "Clamp", "MaxPool2D",
)  # fmt: skip
"""Beginnings of the names of steps that are replaced by the identity, and a maximum by a mean."""


def expanded_weights(network: nn.Module, way: Between, output_channels: np.ndarray | None = None) -> np.ndarray:
    """float32 (output_channel, input_channel, ky, kx): what the second convolution sees of what the first one reads.

    It is the gradient of an output of the second convolution, far from any border, by the first one's input, with every
    non-linearity replaced by the identity, batch norms by their scale in evaluation mode, and a maximum over a window by
    its mean. Strides, dilations and mean pooling are exact; a maximum is not. Other branches of a sum are left out. Raises
    DoesNotApply where something else lies between, or where channels are joined, cut or padded on the way.
    """
    import torch
    from torch.nn import functional

    modules = dict(network.named_modules())
    first, second = modules[way.first], modules[way.second]
    assert isinstance(first, torch.nn.Conv2d)
    assert isinstance(second, torch.nn.Conv2d)
    foreign = [step for step in way.steps if not step.startswith(_ACTIVATIONS)]
    if foreign:
        raise DoesNotApply(
            f"between {way.first} and {way.second} lies {foreign[0]}, which no single kernel stands for."
        )
    chosen = np.arange(second.out_channels) if output_channels is None else output_channels
    with torch.no_grad():
        one = torch.zeros(len(chosen), second.out_channels, 1, 1, dtype=torch.float32)
        one[torch.arange(len(chosen)), torch.as_tensor(chosen), 0, 0] = 1.0
        found = functional.conv_transpose2d(
            one, second.weight.float().cpu(), groups=second.groups, dilation=second.dilation
        )
        if found.shape[1] != first.out_channels:
            raise DoesNotApply(
                f"{way.second} reads {found.shape[1]} channels and {way.first} puts out {first.out_channels}: on the way "
                "channels are joined, cut or padded."
            )
        for _, kernel, stride in reversed(way.pools):
            window = torch.full((found.shape[1], 1, *kernel), 1 / (kernel[0] * kernel[1]))
            found = functional.conv_transpose2d(found, window, stride=stride, groups=found.shape[1])
        for name in reversed(way.norms):
            found = found * _norm_scale(modules[name]).view(1, -1, 1, 1)
        found = functional.conv_transpose2d(
            found, first.weight.float().cpu(), groups=first.groups, dilation=first.dilation, stride=first.stride
        )
    return found.numpy()


def _norm_scale(norm: nn.Module) -> Tensor:
    """(channel,): what a batch norm multiplies by in evaluation mode."""
    import torch

    assert isinstance(norm, torch.nn.BatchNorm2d)
    if norm.running_var is None:
        raise DoesNotApply("a batch norm without running statistics has no fixed scale.")
    scale = torch.rsqrt(norm.running_var.float().cpu() + norm.eps)
    return scale if norm.weight is None else scale * norm.weight.float().cpu()


def composed_channels(outputs: int, inputs: int, kernel: int) -> np.ndarray:
    """int64 (channel,): the output channels that are composed: all, or evenly spread ones where all are too many."""
    count = int(min(outputs, max(1, _MOST_WEIGHTS // max(1, inputs * kernel))))
    return np.arange(count, dtype=np.int64) * outputs // count


def channel_shares(weights: np.ndarray) -> np.ndarray:
    """float64 (output_channel, input_channel): each input channel's share of the squared weights; NaN where all are zero."""
    power = (weights.astype(np.float64) ** 2).sum((2, 3))
    total = power.sum(1, keepdims=True)
    return np.divide(power, total, out=np.full_like(power, np.nan), where=total > 0)


def dominant_factors(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best product of one picture and one list of channels for each output channel.

    Of weights (output_channel, input_channel, ky, kx): float64 pattern (output_channel, ky, kx), of size 1 with its largest
    entry positive; loading (output_channel, input_channel); and share (output_channel,) of the squared weights that
    it holds, NaN where all are zero. By singular value decomposition.
    """
    outputs, inputs, height, width = weights.shape
    left, values, right = np.linalg.svd(
        weights.reshape(outputs, inputs, -1).astype(np.float64), full_matrices=False
    )
    pattern, loading = right[:, 0], left[:, :, 0] * values[:, :1]
    rows = np.arange(outputs)
    sign = np.sign(pattern[rows, np.abs(pattern).argmax(1)])
    sign[sign == 0] = 1.0
    total = (values**2).sum(1)
    share = np.divide(values[:, 0] ** 2, total, out=np.full(outputs, np.nan), where=total > 0)
    return (pattern * sign[:, None]).reshape(outputs, height, width), loading * sign[:, None], share
