"""Convolutions of 3 × 3 with a quarter of the multiplications, on one thread of a processor: Winograd's minimal filtering.

Lavin and Gray (2016, "Fast algorithms for convolutional neural networks", section 4.3), F(4 × 4, 3 × 3): the picture is cut
into overlapping tiles of 6 × 6, each is transformed by sums, and 36 small matrix products over the channels give the
transform of 4 × 4 outputs. The matrix products are NumPy's, the transforms are compiled (`winograd_kernels`). torch has no
such convolution on a processor with which many pictures are quicker than with oneDNN's direct one.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

LANES = 16
"""Channels that are computed at once; channels come in multiples of it."""
TILE = 4
"""Outputs of a tile along y and x."""
TAKEN = TILE + 2
"""Inputs of a tile along y and x: a kernel of 3 reaches one further on both sides."""
NEAR, FAR = math.sqrt(0.5), math.sqrt(2)
"""Tiles are taken for polynomials and known by their values at 0, ±NEAR, ±FAR and infinity.

The points 0, ±1 and ±2 of Lavin and Gray give sums with twice the rounding error
(`tests/tasks/vision/test_winograd_convolution.py`).
"""
_PLANES = TAKEN**2
_CACHE = 1_200_000
"""Bytes of transformed tiles that are worked on at a time: about what a core's own cache holds beside the weights."""
_LEAST_TILES = 128
"""But so many tiles at least: fewer, and the matrix products wait for the weights."""
_LEAST_COVERED = 0.5
"""So much of its tiles must an output fill, or the direct convolution is quicker."""
_FILTER_TRANSFORM = np.array(
    [[1, 0, 0], [-2 / 3, -2 * NEAR / 3, -1 / 3], [-2 / 3, 2 * NEAR / 3, -1 / 3],
     [1 / 6, FAR / 6, 1 / 3], [1 / 6, -FAR / 6, 1 / 3], [0, 0, 1]]
)  # fmt: skip
"""G of the paper, for these points."""


def can_be_transformed(module: nn.Module) -> bool:
    """Whether `module` is a convolution that WinogradConvolution computes, and computes sooner than torch."""
    return (
        type(module) is nn.Conv2d
        and module.kernel_size == (3, 3)
        and module.stride == module.dilation == (1, 1)
        and module.groups == 1
        and module.padding_mode == "zeros"
        and module.padding in ("same", "valid", (0, 0), (1, 1), (0, 1), (1, 0))
        and module.in_channels % LANES == module.out_channels % LANES == 0
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
    )


class WinogradConvolution(nn.Module):
    """What `convolution` computes; with `rectified` a ReLU behind it.

    Takes float32 (sample, channel, y, x) and what is added to its outputs before the ReLU, if anything; gives the same laid
    out channels last. Exact sums are within about 3e-6 of the largest output. No gradient comes out of it. Raises ValueError
    for a convolution of another kind, and for tensors of another type or shape: compiled code would not notice.
    """

    planes: Tensor
    bias: Tensor

    def __init__(self, convolution: nn.Conv2d, rectified: bool = False) -> None:
        if not can_be_transformed(convolution):
            raise ValueError(f"{convolution} is not one that can be computed in tiles.")
        super().__init__()
        weight = convolution.weight.detach().double().numpy()
        bias = convolution.bias
        named = {"same": (1, 1), "valid": (0, 0)}
        padding: Any = convolution.padding
        self.padding: tuple[int, int] = named[padding] if isinstance(padding, str) else padding
        transformed = np.einsum("ai,bj,okij->abko", _FILTER_TRANSFORM, _FILTER_TRANSFORM, weight)
        self.register_buffer("planes", torch.from_numpy(transformed.reshape(_PLANES, *transformed.shape[2:])).float().contiguous())  # fmt: skip
        self.register_buffer("bias", torch.zeros(len(weight)) if bias is None else bias.detach().clone())
        self.least = np.float32(0 if rectified else -np.inf)

    def forward(self, inputs: Tensor, added: Tensor | None = None) -> Tensor:
        from stratascope.tasks.vision.winograd_kernels import finish_strips, transform_strips

        planes, bias = self.planes.numpy(), self.bias.numpy()
        shape = self._output_shape(inputs, added)
        samples, _, height, width = shape
        values, outputs = _channels_last(inputs), torch.empty(shape, memory_format=torch.channels_last)
        into = _channels_last(outputs)
        other = into if added is None else _channels_last(added)
        down, across = -(-height // TILE), -(-width // TILE)
        strips = samples * down
        together = max(
            1, min(strips, max(_LEAST_TILES, _CACHE // (4 * _PLANES * sum(planes.shape[1:]))) // across)
        )
        # One tile more than needed: planes a power of two apart would push each other out of the cache.
        transformed, products = (
            torch.empty(_PLANES, together * across + 1, size).numpy() for size in planes.shape[1:]
        )
        # torch's memory begins at a multiple of 64 bytes, NumPy's need not: vectors across two lines cost double.
        rows = torch.empty(TAKEN * (TILE * across + 2) * planes.shape[1]).numpy()
        edge = torch.zeros((2 * TILE**2 + 1) * len(bias)).numpy()
        for first in range(0, strips, together):
            last = min(first + together, strips)
            tiles = slice(0, (last - first) * across)
            transform_strips(values, first, last, down, *self.padding, rows, transformed)
            np.matmul(transformed[:, tiles], planes, out=products[:, tiles])
            finish_strips(products, first, last, down, bias, self.least, other, added is not None, edge, into)
        return outputs

    def _output_shape(self, inputs: Tensor, added: Tensor | None) -> tuple[int, int, int, int]:
        if inputs.ndim != 4 or inputs.shape[1] != self.planes.shape[1]:
            raise ValueError(
                f"inputs of shape {tuple(inputs.shape)}: (sample, {self.planes.shape[1]}, y, x) is needed."
            )
        height, width = (size + 2 * room - 2 for size, room in zip(inputs.shape[2:], self.padding, strict=True))
        shape = len(inputs), len(self.bias), height, width
        if min(shape) < 1:
            raise ValueError(f"inputs of shape {tuple(inputs.shape)} leave nothing to put out.")
        if added is not None and tuple(added.shape) != shape:
            raise ValueError(f"{tuple(added.shape)} is to be added; {shape} is needed.")
        for given in (inputs, added):
            if given is not None and given.dtype != torch.float32:
                raise ValueError(f"{given.dtype} is given; float32 is needed.")
        return shape


def _channels_last(values: Tensor) -> np.ndarray:
    """float32 (sample, y, x, channel), contiguous: a view where `values` is laid out so."""
    return values.detach().permute(0, 2, 3, 1).contiguous().numpy()


def exchange_convolutions(traced: fx.GraphModule) -> None:
    """Exchanges convolutions of `traced` for Winograd's, each with the sum and the ReLU that read it and nothing else does.

    The modules must each be called once, and the nodes know their shapes (`torch.fx.passes.shape_prop`).
    """
    modules = dict(traced.named_modules())
    for node in _transformable(traced, modules):
        last, operands, rectified = node, node.args[:1], False
        reader = _only_reader(last)
        if reader is not None and _adds_to(reader, node):
            last, operands = reader, (*operands, *(other for other in reader.args if other is not node))
            reader = _only_reader(last)
        if reader is not None and calls_relu(reader, modules):
            last, rectified = reader, True
        name = f"{str(node.target).replace('.', '_')}_winograd"
        traced.add_submodule(name, WinogradConvolution(modules[node.target], rectified))
        with traced.graph.inserting_before(last):
            last.replace_all_uses_with(traced.graph.call_module(name, operands))
        traced.graph.eliminate_dead_code()
    traced.delete_all_unused_submodules()
    traced.recompile()


def transformable_multiplications(traced: fx.GraphModule) -> int:
    """How many multiplications the convolutions have that can be exchanged, for the samples that the nodes' shapes are of."""
    modules: dict[Any, Any] = dict(traced.named_modules())
    return sum(
        math.prod(_shape(node)) * modules[node.target].weight[0].numel()
        for node in _transformable(traced, modules)
    )


def _transformable(traced: fx.GraphModule, modules: dict[Any, Any]) -> list[fx.Node]:
    return [
        node
        for node in traced.graph.nodes
        if node.op == "call_module" and can_be_transformed(modules[node.target]) and _is_worthwhile(_shape(node))
    ]


def calls_relu(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    """Whether `node` is a ReLU: a module, a function or a method."""
    if node.op == "call_module":
        return type(modules[str(node.target)]) is nn.ReLU
    functions = (functional.relu, torch.relu)
    return (node.op == "call_function" and node.target in functions) or (node.op == "call_method" and node.target == "relu")  # fmt: skip


def _is_worthwhile(shape: tuple[int, ...]) -> bool:
    """Whether tiles cover outputs of `shape` (sample, channel, y, x) without too much beside them."""
    height, width = shape[2:]
    return height * width >= _LEAST_COVERED * TILE**2 * -(-height // TILE) * -(-width // TILE)


def _adds_to(node: fx.Node, convolution: fx.Node) -> bool:
    """Whether `node` is the sum of `convolution` and something else of the same shape."""
    if node.op != "call_function" or node.kwargs or len(node.args) != 2:
        return False
    others = [other for other in node.args if other is not convolution]
    return (
        node.target in (operator.add, torch.add)
        and len(others) == 1
        and isinstance(others[0], fx.Node)
        and _shape(others[0]) == _shape(convolution)
    )


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _shape(node: fx.Node) -> tuple[int, ...]:
    """Empty for what is no tensor."""
    return tuple(getattr(node.meta.get("tensor_meta"), "shape", ()))
