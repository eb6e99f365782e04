"""Which convolution feeds which, and through what: read off the graph that automatic differentiation keeps.

It needs one picture and no names: residual sums, functional activations and layers that are used twice are seen as they run.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.errors import DoesNotApply

if TYPE_CHECKING:
    from torch import nn

    from stratascope.tasks.vision.image_network import ImageNetwork

_SUM = "Add"
_LINEAR = (_SUM, "Clone", "Alias", "Slice", "ConstantPad", "Copy", "ToCopy", "AvgPool2D")
"""Beginnings of the names of operations that are linear in what comes from below, and keep channels and places apart."""
_POOLS = ("MaxPool2D", "AvgPool2D")
_MOST_STEPS = 8
"""Convolutions with more non-linear steps between them are not looked for."""


@dataclass(frozen=True)
class Between:
    """The shortest way from the output of one convolution to the input of another."""

    first: str
    second: str
    steps: tuple[str, ...]
    """Operations that have to be replaced by linear ones, in the order of execution."""
    norms: tuple[str, ...]
    """Names of batch norms on the way, in the order of execution."""
    pools: tuple[tuple[str, tuple[int, int], tuple[int, int]], ...]
    """(`max`, `mean` or `slice`, kernel, stride) of what leaves out places on the way, in the order of execution."""
    sums: int
    """So many sums with other branches are passed; those branches are left out."""


@dataclass(frozen=True)
class ConvolutionGraph:
    """The convolutions in the order of execution, and for each the nearest ones that feed it."""

    order: tuple[str, ...]
    ways: tuple[Between, ...]


def convolution_graph(network: ImageNetwork, picture: np.ndarray) -> ConvolutionGraph:
    """Of one pass forward of `picture` float32 (sample, channel, y, x). Raises DoesNotApply where there is no graph."""
    import torch

    from stratascope.tasks.models.network import call_network

    if not network.hookable:
        raise DoesNotApply("the layers of an exported program cannot be watched.")
    nodes = _Nodes()
    handles = []
    try:
        for name, module in network.network.named_modules():
            if isinstance(module, torch.nn.Conv2d | torch.nn.BatchNorm2d):
                handles.append(module.register_forward_hook(lambda m, i, o, name=name: nodes.note(name, m, i, o)))
        with torch.enable_grad():
            given = torch.as_tensor(picture)[:1].expand(network.fixed_batch_size or 1, -1, -1, -1)
            pixels = given.to(network.device, copy=True).requires_grad_()
            # The whole output is held, so that no node is freed before the graph has been read.
            held = call_network(network.network, pixels.clone(), network.model, network.folder)
    finally:
        for handle in handles:
            handle.remove()
    ways = [
        way
        for place, (name, _, entry) in enumerate(nodes.convolutions)
        for way in _ways(nodes, name, entry, place)
    ]
    del held
    # A convolution that is called twice counts by its first call.
    unique = {(way.first, way.second): way for way in reversed(ways)}
    order = tuple(dict.fromkeys(name for name, _, _ in nodes.convolutions))
    return ConvolutionGraph(order, tuple(reversed(list(unique.values()))))


class _Nodes:
    """Which node of the graph is the output of which module."""

    def __init__(self) -> None:
        self.convolutions: list[tuple[str, Any, Any]] = []
        """(name, node of the output, node of the input) by call."""
        self.names: dict[Any, tuple[str, bool]] = {}
        """(name, whether it is a convolution) by node."""

    def note(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        import torch

        if getattr(output, "grad_fn", None) is None:
            return
        convolution = isinstance(module, torch.nn.Conv2d)
        if convolution:
            self.convolutions.append((name, output.grad_fn, inputs[0].grad_fn))
        self.names[output.grad_fn] = (name, convolution)


def _ways(nodes: _Nodes, second: str, entry: Any, place: int) -> Iterator[Between]:
    """Back from the input of a convolution to the nearest ones below, by as few steps as there are."""
    if entry is None:
        return
    number = 0
    queue: list[tuple[int, int, Any, tuple[Any, ...]]] = [(0, number, entry, ())]
    seen: set[Any] = set()
    while queue:
        steps, _, node, way = heapq.heappop(queue)
        if node in seen:
            continue
        seen.add(node)
        name, convolution = nodes.names.get(node, ("", False))
        if convolution:
            yield _between(nodes, name, second, way)
            continue
        cost = steps + (0 if name or _is_linear(node) else 1)
        if cost > _MOST_STEPS:
            continue
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                number += 1
                heapq.heappush(queue, (cost, number, below, (*way, node)))


def _is_linear(node: Any) -> bool:
    return str(node.name()).startswith(_LINEAR)


def _between(nodes: _Nodes, first: str, second: str, way: tuple[Any, ...]) -> Between:
    steps, norms, pools, sums = [], [], [], 0
    for node in reversed(way):
        name, title = nodes.names.get(node, ("", False))[0], str(node.name())
        if name:
            norms.append(name)
            continue
        sums += title.startswith(_SUM)
        if title.startswith(_POOLS):
            kernel = _pair(node._saved_kernel_size)
            stride = _pair(node._saved_stride) if node._saved_stride else kernel
            pools.append(("max" if title.startswith("Max") else "mean", kernel, stride))
        elif title.startswith("Slice") and int(node._saved_step) > 1:
            # Taken as dimensions y and x, the last two of four.
            stride = (int(node._saved_step), 1) if int(node._saved_dim) % 4 == 2 else (1, int(node._saved_step))
            pools.append(("slice", (1, 1), stride))
        if not _is_linear(node):
            steps.append(title.rstrip("0123456789").removesuffix("Backward"))
    return Between(first, second, tuple(steps), tuple(norms), tuple(pools), sums)


def _pair(sides: Any) -> tuple[int, int]:
    found = [int(side) for side in sides]
    return found[0], found[-1]
