"""Which layers a network has, what they put out, and which of them a pattern means."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from stratascope.errors import ConfigurationError, did_you_mean
from stratascope.storage.model_spec import ModelSpec
from stratascope.tasks.models.network import call_network

LAST_LINEAR = "@last_linear:input"


@dataclass(frozen=True)
class LayerInfo:
    """One output (or input) that can be captured; `shape` and `dims` are those of one sample."""

    name: str
    module: str
    kind: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    call: int = 0
    element: tuple[int, ...] = ()
    side: str = "output"

    @property
    def values_per_sample(self) -> int:
        return math.prod(self.shape)


def dimension_names(kind: str, shape: Sequence[int]) -> tuple[str, ...]:
    """Names of a layer's dimensions without the sample axis, from its module's type and rank."""
    rank = len(shape)
    if (
        kind.startswith(("LSTM", "GRU", "RNN", "Embedding", "MultiheadAttention", "Transformer", "LayerNorm"))
        and rank == 2
    ):
        return ("token", "feature")
    return {0: (), 1: ("feature",), 2: ("token", "feature"), 3: ("channel", "y", "x")}.get(
        rank, tuple(f"axis_{number}" for number in range(1, rank + 1))
    )


def tensors_in(output: Any, path: tuple[int, ...] = ()) -> list[tuple[tuple[int, ...], Tensor]]:
    """(path, tensor) for every tensor in nested tuples, lists and mappings, in order."""
    if isinstance(output, Tensor):
        return [(path, output)]
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, tuple | list):
        return [found for number, item in enumerate(output) for found in tensors_in(item, (*path, number))]
    return []


def last_linear(network: nn.Module) -> str | None:
    """The name of the last linear layer in the order of registration."""
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return names[-1] if names else None


def list_layers(network: nn.Module, example: Any, spec: ModelSpec) -> list[LayerInfo]:
    """All leaves with an array output, in the order of execution, from one pass over `example`.

    `example` holds at least two samples: what does not have them as its first axis is not offered.
    """
    found: list[LayerInfo] = []
    calls: dict[str, int] = {}
    samples = len(example)

    def hook(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        call = calls.get(name, 0)
        calls[name] = call + 1
        suffix = f"#{call}" if call else ""
        members = tensors_in(output)
        for path, tensor in members:
            if tensor.ndim < 2 or tensor.shape[0] != samples:
                continue
            place = "".join(f"[{number}]" for number in path)
            shape = tuple(tensor.shape[1:])
            kind = type(module).__name__
            found.append(
                LayerInfo(f"{name}{suffix}{place}", name, kind, shape, dimension_names(kind, shape), call, path)
            )

    handles = [
        module.register_forward_hook(lambda m, i, o, name=name: hook(name, m, i, o))
        for name, module in network.named_modules()
        if name and not list(module.children())
    ]
    was_training = network.training
    try:
        with torch.inference_mode():
            call_network(network.eval(), example, spec)
    finally:
        for handle in handles:
            handle.remove()
        network.train(was_training)
    return found


def select_layers(patterns: Sequence[str] | None, available: Sequence[LayerInfo]) -> list[LayerInfo]:
    """The layers that `patterns` mean, in the order of execution; None means all.

    A pattern is a glob, ``re:…``, ``type:Conv2d``, an index or a slice such as ``2:5``; a glob that ends in
    ``:input`` means what enters the layer. Raises ConfigurationError with the nearest names where one
    matches nothing.
    """
    if patterns is None:
        return list(available)
    chosen: dict[str, LayerInfo] = {}
    for pattern in patterns:
        matched = _matches(pattern, available)
        if not matched:
            names = [layer.name for layer in available]
            raise ConfigurationError(
                f"layers: {pattern!r} matches no layer of this network."
                + did_you_mean(pattern, names)
                + f" It has {', '.join(names[:12])}{' …' if len(names) > 12 else ''}."
            )
        chosen.update({layer.name: layer for layer in matched})
    order = {layer.name: number for number, layer in enumerate(available)}
    return sorted(chosen.values(), key=lambda layer: order.get(layer.name, len(order)))


def _matches(pattern: str, available: Sequence[LayerInfo]) -> list[LayerInfo]:
    if pattern.startswith("re:"):
        try:
            return [layer for layer in available if re.fullmatch(pattern[3:], layer.name)]
        except re.error as error:
            raise ConfigurationError(f"layers: {pattern!r} is no regular expression: {error}.") from None
    if pattern.startswith("type:"):
        return [layer for layer in available if layer.kind == pattern[5:]]
    if re.fullmatch(r"-?\d+", pattern):
        index = int(pattern)
        return [available[index]] if -len(available) <= index < len(available) else []
    if (bounds := re.fullmatch(r"(-?\d*):(-?\d*)", pattern)) and pattern != ":":
        start, stop = (int(item) if item else None for item in bounds.groups())
        return list(available)[start:stop]
    return [layer for layer in available if fnmatchcase(layer.name, pattern) or layer.module == pattern]
