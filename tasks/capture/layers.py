"""Which layers a network has, and which of them a pattern means."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from stratascope.errors import ConfigurationError, did_you_mean

LAST_LINEAR = "@last_linear:input"
OUTPUT = "@output"
UNIT_AXES = ("channel", "feature")
"""The axis over which a layer's units lie."""


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
    sample_axis: int = 0
    is_leaf: bool = True

    @property
    def values_per_sample(self) -> int:
        return math.prod(self.shape)

    @property
    def unit_axis(self) -> int | None:
        """The axis of the units, counted without the sample axis; None where it is not known."""
        places = [place for place, name in enumerate(self.dims) if name in UNIT_AXES]
        return places[0] if len(places) == 1 else None

    @property
    def token_axis(self) -> int | None:
        """The axis of tokens, counted without the sample axis; None where there is none."""
        return self.dims.index("token") if "token" in self.dims else None


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


def select_layers(patterns: Sequence[str] | None, available: Sequence[LayerInfo]) -> list[LayerInfo]:
    """The layers that `patterns` mean, in the order of execution; None means every leaf.

    A pattern is a glob, ``re:…``, ``type:Conv2d``, an index or a slice such as ``2:5`` (over the leaves); one that
    ends in ``:input`` means what enters the layer. A glob means leaves where it matches any, otherwise the
    modules that hold them. Raises ConfigurationError with the nearest names where one matches nothing.
    """
    outputs = [layer for layer in available if layer.side == "output"]
    if patterns is None:
        return [layer for layer in outputs if layer.is_leaf]
    chosen: dict[str, LayerInfo] = {}
    for pattern in patterns:
        wanted = available if pattern.endswith(":input") else outputs
        matched = _matches(pattern, wanted)
        if not matched:
            names = [layer.name for layer in wanted]
            raise ConfigurationError(
                f"layers: {pattern!r} matches no layer of this network."
                + did_you_mean(pattern, names)
                + f" It has {', '.join(names[:12])}{' …' if len(names) > 12 else ''}."
            )
        chosen.update({layer.name: layer for layer in matched})
    order = {layer.name: number for number, layer in enumerate(available)}
    return sorted(chosen.values(), key=lambda layer: order[layer.name])


def _matches(pattern: str, available: Sequence[LayerInfo]) -> list[LayerInfo]:
    leaves = [layer for layer in available if layer.is_leaf]
    if pattern.startswith("re:"):
        try:
            found = [layer for layer in available if re.fullmatch(pattern[3:], layer.name)]
        except re.error as error:
            raise ConfigurationError(f"layers: {pattern!r} is no regular expression: {error}.") from None
    elif pattern.startswith("type:"):
        return [layer for layer in available if layer.kind == pattern[5:]]
    elif re.fullmatch(r"-?\d+", pattern):
        index = int(pattern)
        return [leaves[index]] if -len(leaves) <= index < len(leaves) else []
    elif (bounds := re.fullmatch(r"(-?\d*):(-?\d*)", pattern)) and pattern != ":":
        start, stop = (int(item) if item else None for item in bounds.groups())
        return leaves[start:stop]
    else:
        exact = [layer for layer in available if pattern in (layer.name, layer.module)]
        found = exact or [layer for layer in available if fnmatchcase(layer.name, pattern)]
    return [layer for layer in found if layer.is_leaf] or found
