"""Weights among what a module returns: those that the user names, and those that a module of attention has by its looks."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from stratascope.errors import DoesNotApply
from stratascope.tasks.capture.layers import tensors_in

_PART = re.compile(r"\[(-?\d+)\]|\.?([^.\[\]]+)")
_TOLERANCE = 1e-3
"""So far from 1 a row may sum to, half precision among them."""


def named_weights(output: Any, path: str, layer: str) -> Tensor:
    """float (sample, head, query, key): the weights at `path` (``[1]``, ``weights``) of what `layer` returned.

    Taken are (sample, key), (sample, query, key), (sample, head, query, key), and a pair of edges int64 (2, edge), source
    before target, and weights (edge,) or (edge, head) of one graph. Raises DoesNotApply for anything else.
    """
    found = output
    try:
        for index, name in _PART.findall(path):
            found = (
                found[int(index)] if index else found[name] if isinstance(found, dict) else getattr(found, name)
            )
    except (KeyError, IndexError, AttributeError, TypeError):
        raise DoesNotApply(f"{layer!r} returns {type(output).__name__}, which has no part {path!r}.") from None
    if is_edge_list(found):
        return dense_edges(*found)
    if not isinstance(found, Tensor) or not found.is_floating_point() or not 2 <= found.dim() <= 4:
        kind = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise DoesNotApply(f"part {path!r} of {layer!r} is no attention (sample, query, key): it is {kind}.")
    weights = with_heads(found)
    if not looks_like_weights(weights):
        raise DoesNotApply(f"part {path!r} of {layer!r} is no attention: its rows do not sum to 1.")
    return weights


def with_heads(weights: Tensor) -> Tensor:
    """(sample, head, query, key) of (sample, key), (sample, query, key) or those themselves."""
    return weights[:, None, None] if weights.dim() == 2 else weights[:, None] if weights.dim() == 3 else weights


def looks_like_weights(weights: Tensor) -> bool:
    """Whether no weight is below 0 and each row over the last axis sums to 1, or to 0 or NaN where it sees no key."""
    if weights.shape[-1] < 2 or not weights.numel():
        return False
    sums = weights.detach().float().sum(-1)
    fits = ((sums - 1).abs() < _TOLERANCE) | (sums == 0) | sums.isnan()
    return bool(fits.all() & ~(weights.detach() < 0).any() & ((sums - 1).abs() < _TOLERANCE).any())


def found_path(output: Any) -> tuple[int, ...] | None:
    """Where among the tensors that a module returned its weights are, as `tensors_in` counts; None where nowhere."""
    for path, item in tensors_in(output):
        if item.is_floating_point() and 2 <= item.dim() <= 4 and looks_like_weights(item):
            return path
    return None


def is_edge_list(found: Any) -> bool:
    """Whether `found` is a pair of edges int (2, edge) and one weight, or one for each head, of each edge."""
    if (
        not isinstance(found, tuple | list)
        or len(found) != 2
        or not all(isinstance(item, Tensor) for item in found)
    ):
        return False
    edges, weights = found
    return (
        edges.dim() == 2 and len(edges) == 2 and not edges.is_floating_point() and weights.dim() in (1, 2)
        and weights.is_floating_point() and len(weights) == edges.shape[1]
    )  # fmt: skip


def dense_edges(edges: Tensor, weights: Tensor) -> Tensor:
    """(1, head, node, node): row i holds what node i takes from each node j, of edges (2, edge) from j to i."""
    count = int(edges.max()) + 1 if edges.numel() else 0
    weights = weights if weights.dim() == 2 else weights[:, None]
    dense = weights.new_zeros(weights.shape[1], count, count)
    return dense.index_put((torch.arange(len(dense), device=edges.device)[:, None], edges[1], edges[0]), weights.T, accumulate=True)[None]  # fmt: skip


def attention_of_softmax(weights: Tensor) -> Tensor:
    """(sample, head, query, key) of what a softmax gave, keys last; of four axes one with as many places as the last one is that
    of the queries, the third where both or neither are."""
    if weights.dim() == 4 and weights.shape[2] != weights.shape[3] and weights.shape[1] == weights.shape[3]:
        weights = weights.transpose(1, 2)
    return with_heads(weights)


def held_against_inputs(module: nn.Module, inputs: tuple[Any, ...], output: Any, weights: Tensor) -> float:
    """Largest |weights · values − output| over the largest |output|, the values being one of `inputs`, or what one of the
    module's own layers would make of it; NaN where none fits.

    An attention of one head whose first output is the weighted mean of what it was given can be held against that.
    """
    tensors = [item for _, item in tensors_in(output)]
    if weights.shape[1] != 1 or not tensors or (weights.shape[2] == 1 and tensors[0].dim() == 2):
        return float("nan")
    best = float("nan")
    for _, values in tensors_in(list(inputs)):
        if values.dim() != 3 or values.shape[:2] != weights[:, 0, 0].shape or values.dtype != weights.dtype:
            continue
        made = weights[:, 0] @ values
        gap = relative_gap(made, tensors[0]) if made.shape == tensors[0].shape else 1.0
        # What is not the weighted mean of this input may be that of another one.
        if gap < _TOLERANCE and not best <= gap:
            best = gap
    return best


def relative_gap(made: Tensor, real: Tensor) -> float:
    """Largest |made − real| over the largest |real|, where both are numbers."""
    known = made.isfinite() & real.isfinite()
    if not known.any():
        return float("nan")
    largest = float(real[known].abs().max())
    gap = float((made - real)[known].abs().max())
    return gap / largest if largest > 0 else gap
