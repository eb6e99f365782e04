"""Which operations relevance propagation knows, and as what: copies, activations, sums of contributions, batch norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from stratascope.errors import DoesNotApply
from stratascope.tasks.vision.intercepted_calls import Call
from stratascope.tasks.vision.relevance_rules import LinearStep

COPIES = frozenset([
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "t", "movedim", "contiguous", "clone",
    "__getitem__", "__get__", "select", "narrow", "slice", "chunk", "split", "split_with_sizes", "tensor_split", "unbind",
    "cat", "stack", "squeeze", "unsqueeze", "expand", "expand_as", "view_as", "reshape_as", "repeat",
    "repeat_interleave", "tile", "pad", "constant_pad_nd", "roll", "flip", "unfold", "index_select", "gather", "take_along_dim",
    "masked_fill", "where", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "float", "double", "to", "type", "type_as",
    "_to_copy", "alias", "detach", "requires_grad", "amax", "max", "diagonal", "lift_fresh", "copy", "cpu", "cuda",
])  # fmt: skip
"""Every number of the output is one of the input, or a constant: automatic differentiation moves relevance as it should.

A maximum hands its relevance to the place that won.
"""
PASSES = frozenset([
    "relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max", "leaky_relu", "rrelu", "prelu", "elu", "celu", "selu",
    "gelu", "silu", "mish", "hardswish", "tanh", "softsign", "threshold", "hardshrink", "softshrink", "tanhshrink", "dropout",
    "feature_dropout", "alpha_dropout", "dropout1d", "dropout2d", "dropout3d", "feature_alpha_dropout", "neg", "mul", "div",
])  # fmt: skip
"""Functions of one number that are 0 at 0, scaling by a constant among them: relevance passes unchanged."""
_CONVOLUTIONS = frozenset(f"conv{kind}{axes}d" for kind in ("", "_transpose") for axes in (1, 2, 3))
_MEANS = frozenset([
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "mean",
    "sum", "interpolate", "upsample", "upsample_nearest2d", "upsample_bilinear2d",
])  # fmt: skip
_PRODUCTS = ("matmul", "mm", "bmm")


class PassedOn(torch.autograd.Function):
    """A step of which every number of the output belongs to one of the input: relevance goes on unchanged."""

    @staticmethod
    def forward(ctx: Any, run: Callable[[Sequence[Tensor]], Tensor], values: Tensor) -> Tensor:
        output = run([values.detach()])
        # Dropout in evaluation mode returns what it is given.
        return output.clone() if output.data_ptr() == values.data_ptr() else output

    @staticmethod
    def backward(ctx: Any, *relevance: Any) -> Any:
        return None, relevance[0]


def passes(call: Call) -> bool:
    """Whether a call changes one activation number by number, and 0 to 0. Scaling by what depends on the input does not."""
    if call.name not in PASSES or len(call.activations) != 1:
        return False
    if call.name not in ("mul", "div"):
        return True
    values, other = call.args[0], call.argument(1, "other")
    if not isinstance(other, Tensor):
        return True
    if not isinstance(values, Tensor):
        return call.name == "mul"
    if call.name == "div" and other.requires_grad:
        return False
    return torch.broadcast_shapes(values.shape, other.shape) == call.activations[0].shape


def linear_step(call: Call) -> LinearStep | None:
    """A call as a sum of contributions; None where it is none."""
    count = len(call.activations)
    if call.name in _CONVOLUTIONS or call.name == "linear":
        weight, bias = call.argument(1, "weight"), call.argument(2, "bias")
        if count != 1 or not call.argument(0, "input").requires_grad:
            return None
        axes = 0 if call.name == "linear" else int(call.name[-2])
        shown = None if bias is None else bias.detach().view(-1, *(1,) * axes)
        outputs_first = "transpose" not in call.name
        return LinearStep(
            lambda values, own: _weighted(call, values[0], own),
            weight.detach(),
            shown,
            outputs_first,
            _backwards(call, axes),
        )
    if call.name in _PRODUCTS and count == 1:
        return _product(call)
    if call.name == "add":
        return _sum(call)
    if call.name in _MEANS and count == 1 and call.argument(4, "mode") != "bicubic":
        return LinearStep(
            lambda values, own: call.on(values) * own, torch.ones((), device=call.activations[0].device)
        )
    return None


def _weighted(call: Call, values: Tensor, weight: Tensor) -> Any:
    """The convolution or linear layer of `call` with another weight and without its bias."""
    kwargs = {name: item for name, item in call.kwargs.items() if name not in ("input", "weight", "bias")}
    return call.function(values, weight, None, *call.args[3:], **kwargs)


def _backwards(call: Call, axes: int) -> Callable[[Tensor, Tensor, Sequence[Tensor]], list[Tensor]] | None:
    """The gradient of a convolution or linear layer by what enters it, without a pass forward; None where that needs one."""
    if call.name == "linear":
        return lambda given, weight, values: [given @ weight]
    padding = call.argument(4, "padding", 0)
    if "transpose" in call.name or isinstance(padding, str):
        return None
    stride, padding, dilation = (
        list(item) if isinstance(item, tuple | list) else [item] * axes
        for item in (call.argument(3, "stride", 1), padding, call.argument(5, "dilation", 1))
    )
    groups = call.argument(6, "groups", 1)

    def gradient(given: Tensor, weight: Tensor, values: Sequence[Tensor]) -> list[Tensor]:
        place = stride, padding, dilation, False, [0] * axes, groups
        found = torch.ops.aten.convolution_backward(given, values[0], weight, None, *place, [True, False, False])
        return [found[0]]

    return gradient


def _product(call: Call) -> LinearStep:
    first, second = call.argument(0, "input"), call.argument(1, "other", call.kwargs.get("mat2"))
    if first.requires_grad:
        return LinearStep(lambda values, own: torch.matmul(values[0], own), second.detach())
    return LinearStep(lambda values, own: torch.matmul(own, values[0]), first.detach())


def as_sum(call: Call) -> Call:
    """A difference or a weighted sum as a plain sum of two; turning a sign hands relevance on unchanged."""
    factor = call.kwargs.get("alpha", 1)
    if call.name not in ("add", "sub", "rsub") or (call.name == "add" and factor == 1):
        return call
    first, second = call.args[0], call.argument(1, "other")
    if call.name == "rsub":
        first, second = second, first
    return Call(torch.add, (first, _scaled(second, factor if call.name == "add" else -factor)), {}, "add", False)


def _scaled(term: Any, factor: float) -> Any:
    if isinstance(term, Tensor) and term.requires_grad:
        return PassedOn.apply(lambda values: values[0] * factor, term)
    return term * factor


def _sum(call: Call) -> LinearStep:
    """A sum of two activations, or of one and a constant, which is a bias."""
    values = call.activations
    terms = (call.args[0], call.argument(1, "other"))
    shape = torch.broadcast_shapes(*(term.shape for term in terms if isinstance(term, Tensor)))
    constants = [term for term in terms if not (isinstance(term, Tensor) and term.requires_grad)]

    def operation(given: Sequence[Tensor], weight: Tensor) -> Tensor:
        total = given[0] if len(given) == 1 else given[0] + given[1]
        return total.expand(shape) * weight

    bias = torch.as_tensor(constants[0], dtype=values[0].dtype, device=values[0].device) if constants else None
    alike = all(term.shape == shape for term in values)
    return LinearStep(
        operation,
        torch.ones((), device=values[0].device),
        bias,
        backwards=(lambda given, weight, own: [given * weight] * len(own)) if alike else None,
    )


@dataclass(frozen=True)
class NormalisedStep:
    """A batch norm in evaluation mode: value · scale + shift by channel."""

    scale: Tensor
    shift: Tensor

    def alone(self, values: Tensor) -> LinearStep:
        shape = (-1, *(1,) * (values.ndim - 2))
        return LinearStep(lambda given, own: given[0] * own, self.scale.view(shape), self.shift.view(shape))

    def merged(self, step: LinearStep, values: Tensor) -> LinearStep | None:
        """This and the `step` that made `values` as one step; None where their channels are not the same axis."""
        weight = step.weight
        if not step.outputs_first or values.ndim != weight.ndim:
            return None
        shape = (-1, *(1,) * (weight.ndim - 2))
        shift = self.shift.view(shape)
        bias = shift if step.bias is None else step.bias * self.scale.view(shape) + shift
        return replace(step, weight=weight * self.scale.view(-1, *(1,) * (weight.ndim - 1)), bias=bias)


def normalised_step(call: Call) -> NormalisedStep | None:
    """A call of batch norm as scale and shift; None for any other. Raises DoesNotApply where it uses the batch's statistics."""
    if call.name != "batch_norm":
        return None
    functional = "training" in call.kwargs
    places = (3, 4, 1, 2, 5, 7) if functional else (1, 2, 3, 4, 5, 7)
    names = ("weight", "bias", "running_mean", "running_var", "training", "eps")
    weight, bias, mean, variance, training, small = (
        call.argument(place, name) for place, name in zip(places, names, strict=True)
    )
    if training or mean is None or variance is None:
        raise DoesNotApply(
            "a batch norm normalises by the batch itself (it keeps no running statistics): relevance of a sample would "
            "depend on the others."
        )
    scale = torch.rsqrt(variance.detach() + small)
    scale = scale if weight is None else scale * weight.detach()
    shift = -mean.detach() * scale
    return NormalisedStep(scale, shift if bias is None else shift + bias.detach())
