"""The rescale rule of DeepLIFT: differences from a baseline go back through non-linear steps as Δout / Δin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from stratascope.errors import DoesNotApply
from stratascope.tasks.vision.attribution_methods import Explained
from stratascope.tasks.vision.image_network import gradient_of
from stratascope.tasks.vision.intercepted_calls import (
    Call,
    Winner,
    check_operations_can_be_seen,
    pooled_maximum,
)

ELEMENTWISE = frozenset([
    "relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max", "sigmoid", "tanh", "gelu", "silu",
    "elu", "celu", "selu", "leaky_relu", "rrelu", "prelu", "softplus", "hardswish", "hardsigmoid", "mish",
    "softsign", "logsigmoid", "threshold", "hardshrink", "softshrink", "tanhshrink", "exp", "expm1", "log",
    "log1p", "sqrt", "rsqrt", "square", "pow", "abs", "sin", "cos", "erf", "reciprocal", "rdiv",
])  # fmt: skip
"""Functions of one number: their multiplier is Δout / Δin."""
JOINT = frozenset([
    "softmax", "log_softmax", "softmin", "layer_norm", "group_norm", "instance_norm", "rms_norm",
    "local_response_norm", "normalize", "glu", "norm", "linalg_vector_norm", "logsumexp",
    "cosine_similarity", "scaled_dot_product_attention", "multi_head_attention_forward", "var", "std",
    "lp_pool1d", "lp_pool2d",
])  # fmt: skip
"""Functions of several numbers at once."""
PRODUCTS = frozenset([
    "mul", "div", "matmul", "mm", "bmm", "einsum", "addmm", "baddbmm", "linear", "conv1d", "conv2d",
    "conv3d",
])  # fmt: skip
"""Linear while one activation takes part; with two they are functions of both at once."""
_NEAR = 1e-10, 1e-6
"""A difference below the first, or below the second times the values, is none: there the slope counts."""
_NODES = 16
"""Of the Gauss-Legendre rule; with these the gap of a small vision transformer is that of rounding."""


class Rescaled(torch.autograd.Function):
    """A function of one number; back through it goes Δout / Δin, its slope where there is no difference."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[Tensor], Tensor], reference: Tensor, values: Tensor) -> Tensor:
        output = run(values)
        difference = values - reference
        none = _is_none(difference, values, reference)
        multiplier = (output - run(reference)) / difference.masked_fill(none, 1)
        if bool(none.any()):
            with torch.enable_grad():
                point = values.detach().requires_grad_()
                (slope,) = torch.autograd.grad(run(point).sum(), point)
            multiplier = torch.where(none, slope, multiplier)
        ctx.save_for_backward(multiplier)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (multiplier,) = ctx.saved_tensors
        return None, None, gradients[0] * multiplier


class MeanSlope(torch.autograd.Function):
    """A function of several numbers; back through it goes its mean slope on the straight line from the reference.

    The rescale rule is just this for a function of one number. For a product of two it is exact at one node. The slopes of
    softmax and of normalisation do not change when one number is added to all: what comes back adds up to 0.
    """

    @staticmethod
    def forward(
        ctx: Any, run: Callable[[Sequence[Tensor]], Any], references: list[Tensor], nodes: int, *values: Tensor
    ) -> Any:
        ctx.run, ctx.references, ctx.nodes = run, references, nodes
        ctx.save_for_backward(*values)
        return run([value.detach() for value in values])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        values = ctx.saved_tensors
        totals = [torch.zeros_like(value) for value in values]
        places, weights = np.polynomial.legendre.leggauss(ctx.nodes)
        for place, weight in zip((places + 1) / 2, weights / 2, strict=True):
            with torch.enable_grad():
                points = [
                    (reference + place * (value - reference)).detach().requires_grad_()
                    for value, reference in zip(values, ctx.references, strict=True)
                ]
                outputs = ctx.run(points)
                pairs = [
                    (output, gradient)
                    for output, gradient in zip(_as_tuple(outputs), gradients, strict=True)
                    if gradient is not None and isinstance(output, Tensor) and output.requires_grad
                ]
                slopes = torch.autograd.grad(
                    [output for output, _ in pairs],
                    points,
                    [gradient for _, gradient in pairs],
                    allow_unused=True,
                )
            for total, slope in zip(totals, slopes, strict=True):
                if slope is not None:
                    total += weight * slope
        return None, None, None, *totals


class RescaledMaximum(torch.autograd.Function):
    """A maximum over places; its difference goes to the place that won in the sample and to that in the reference.

    Places are counted through the last `axes` axes. Windows may overlap: what a place gets from several is added.
    """

    @staticmethod
    def forward(ctx: Any, winner: Winner, axes: int, reference: Tensor, values: Tensor) -> Any:
        output, place = winner(values)
        other, other_place = winner(reference)
        highest = torch.maximum(output, other)
        ctx.axes = axes
        ctx.save_for_backward(values, reference, place, other_place, highest - other, output - highest)
        ctx.mark_non_differentiable(place)
        return output, place

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        values, reference, place, other_place, gained, lost = ctx.saved_tensors

        def scattered(parts: Tensor, places: Tensor) -> Tensor:
            empty = torch.zeros_like(values).flatten(-ctx.axes)
            return empty.scatter_add(-1, places.flatten(-ctx.axes), parts.flatten(-ctx.axes)).view_as(values)

        shares = scattered(gradients[0] * gained, place) + scattered(gradients[0] * lost, other_place)
        difference = values - reference
        none = _is_none(difference, values, reference)
        slopes = scattered(gradients[0], place)
        return None, None, None, torch.where(none, slopes, shares / difference.masked_fill(none, 1))


def _is_none(difference: Tensor, values: Tensor, reference: Tensor) -> Tensor:
    return difference.abs() <= _NEAR[0] + _NEAR[1] * torch.maximum(values.abs(), reference.abs())


def _as_tuple(outputs: Any) -> tuple[Any, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


class _Remembering(TorchFunctionMode):
    """Keeps what entered every operation that has a rule, while the network looks at the baselines."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, list[Tensor]]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = Call.of(function, args, kwargs)
        if _has_rule(call):
            # Copies: what comes after may overwrite them in place.
            self.calls.append((call.name, [value.detach().clone() for value in call.activations]))
        return call.plainly()


class _Rescaling(TorchFunctionMode):
    """Gives the same operations the way back of the rescale rule, while the network looks at the samples."""

    def __init__(self, calls: Sequence[tuple[str, list[Tensor]]]) -> None:
        super().__init__()
        self._calls: Iterator[tuple[str, list[Tensor]]] = iter(calls)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        call = Call.of(function, args, kwargs)
        if not _has_rule(call):
            return call.plainly()
        values = call.activations
        name, references = next(self._calls, ("", []))
        if name != call.name or [item.shape for item in values] != [item.shape for item in references]:
            raise DoesNotApply(
                f"the network goes another way for a baseline than for a sample, first seen at {call.name!r}: their "
                "difference cannot be passed back step by step."
            )
        if call.in_place:
            values = [value.clone() for value in values]
        return call.handed_on(_rescaled(call, values, references))

    @property
    def complete(self) -> bool:
        return next(self._calls, None) is None


def _has_rule(call: Call) -> bool:
    if call.name in PRODUCTS:
        over_an_activation = call.name == "div" and not call.args[0].requires_grad
        return len(call.activations) > 1 or (over_an_activation and bool(call.activations))
    maximum = call.name in ("amax", "max") and call.argument(1, "dim") is not None
    return (call.name in ELEMENTWISE | JOINT or maximum or pooled_maximum(call) is not None) and bool(
        call.activations
    )


def _rescaled(call: Call, values: list[Tensor], references: list[Tensor]) -> Any:
    pooled = pooled_maximum(call)
    if pooled is not None:
        output, places = RescaledMaximum.apply(*pooled, references[0], values[0])
        return (
            (output, places)
            if call.name.endswith("_with_indices") or call.kwargs.get("return_indices")
            else output
        )
    if call.name in ("amax", "max"):
        return _maximum_over_axes(call, values[0], references[0])
    if call.name in ELEMENTWISE and len(values) == 1:
        return Rescaled.apply(lambda value: call.on([value]), references[0], values[0])
    nodes = 1 if call.name in PRODUCTS - {"div"} else _NODES
    return MeanSlope.apply(call.on, references, nodes, *values)


def _maximum_over_axes(call: Call, values: Tensor, reference: Tensor) -> Any:
    given = call.argument(1, "dim")
    keep = bool(call.argument(2, "keepdim", False))
    axes = [axis % values.ndim for axis in (given if isinstance(given, tuple | list) else [given])]

    def lined_up(tensor: Tensor) -> Tensor:
        return tensor.movedim(axes, list(range(-len(axes), 0))).flatten(-len(axes))

    output, places = RescaledMaximum.apply(
        lambda line: line.max(-1, keepdim=True), 1, lined_up(reference), lined_up(values)
    )
    output, places = output.squeeze(-1), places.squeeze(-1)
    if keep:
        for axis in sorted(axes):
            output, places = output.unsqueeze(axis), places.unsqueeze(axis)
    return output if call.name == "amax" else torch.return_types.max((output, places))


def rescaled_differences(explained: Explained, baselines: Tensor) -> tuple[Tensor, Tensor]:
    """DeepLIFT of some samples against one baseline each; both are shown to the network at once, one after the other.

    `baselines` is (sample, channel, y, x). Returns what each pixel adds, float32 of the same shape, and the differences
    of the scores, float64 (sample,), on the processor. Raises DoesNotApply where no gradient reaches the inputs, or where
    the network's way depends on what it sees.
    """
    network = explained.network
    check_operations_can_be_seen(network, "DeepLIFT")
    with torch.enable_grad():
        remembering = _Remembering()
        with remembering:
            pixels = baselines.detach().to(network.device).requires_grad_()
            before = explained.target.scores(network.outputs(pixels.clone()), explained.indices).detach()
        rescaling = _Rescaling(remembering.calls)
        with rescaling:
            pixels = explained.inputs.detach().to(network.device).requires_grad_()
            scores = explained.target.scores(network.outputs(pixels.clone()), explained.indices)
        if not rescaling.complete:
            raise DoesNotApply("the network goes another way for a baseline than for a sample.")
        (multipliers,) = gradient_of(scores.sum(), [pixels], "the inputs")
    maps = multipliers.float().cpu() * (explained.inputs - baselines)
    return maps, (scores.detach().double() - before.double()).cpu()
