"""Calls of torch functions as a network makes them: by what name, with which activations, in place or not.

Methods that give single operations another way back look at functions rather than at modules: so functional, fresh,
re-used and in-place operations count like any others, and no hook is put on anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stratascope.errors import DoesNotApply

if TYPE_CHECKING:
    from stratascope.tasks.vision.image_network import ImageNetwork

_IN_PLACE_OPERATORS = {"__iadd__": "add", "__isub__": "sub", "__imul__": "mul", "__itruediv__": "div"}
_OPERATORS = {
    "__add__": "add", "__radd__": "add", "__sub__": "sub", "__mul__": "mul", "__rmul__": "mul", "__truediv__": "div",
    "__div__": "div", "__rsub__": "rsub", "__rdiv__": "rdiv", "__rtruediv__": "rdiv", "__matmul__": "matmul",
    "__neg__": "neg", "__pow__": "pow", "__abs__": "abs", "subtract": "sub", "multiply": "mul", "true_divide": "div",
    "divide": "div", "negative": "neg", "absolute": "abs", "clip": "clamp", "concat": "cat", "concatenate": "cat",
    "special_expit": "sigmoid", "special_erf": "erf", "swapaxes": "transpose", "swapdims": "transpose",
    "moveaxis": "movedim", "softmax_": "softmax", "_softmax": "softmax", "_log_softmax": "log_softmax",
}  # fmt: skip
_POOLING_ORDER = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
_MAXIMUM_POOLS = frozenset(f"{kind}max_pool{axes}d" for kind in ("", "adaptive_") for axes in (1, 2, 3))


@dataclass(frozen=True)
class Call:
    """One call of a torch function."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    name: str
    """Of the operation, the same for the function, the method, the operator and the exported form: `relu`, `add`."""
    in_place: bool

    @classmethod
    def of(cls, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any] | None) -> Call:
        found = str(getattr(function, "__name__", function)).split(".")[0]
        kwargs = kwargs or {}
        in_place = found in _IN_PLACE_OPERATORS or bool(kwargs.get("inplace"))
        if found.endswith("_") and not found.startswith("__"):
            in_place, found = True, found.rstrip("_")
        name = _IN_PLACE_OPERATORS.get(found) or _OPERATORS.get(found, found)
        return cls(function, tuple(args), kwargs, name, in_place)

    @property
    def activations(self) -> list[Tensor]:
        """The tensors among the arguments that depend on the network's input, in order; one given twice comes twice."""
        return [item for item in _tensors((self.args, self.kwargs)) if item.requires_grad]

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """The argument that has this place or this name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)

    def on(self, values: Sequence[Tensor]) -> Any:
        """The function of other activations, with everything else as it was; nothing is overwritten."""
        left = iter(value.clone() if self.in_place else value for value in values)

        def replaced(value: Any) -> Any:
            if isinstance(value, Tensor):
                return next(left) if value.requires_grad else value
            if isinstance(value, tuple) and hasattr(value, "_fields"):
                return type(value)(*map(replaced, value))
            if isinstance(value, tuple | list):
                return type(value)(map(replaced, value))
            if isinstance(value, dict):
                return {key: replaced(item) for key, item in value.items()}
            return value

        args, kwargs = replaced((self.args, self.kwargs))
        return self.function(*args, **kwargs)

    def plainly(self) -> Any:
        return self.function(*self.args, **self.kwargs)

    def handed_on(self, result: Any) -> Any:
        """`result`, which was computed out of place, where the network expects it."""
        if not self.in_place:
            return result
        place: Tensor = self.args[0] if self.args else self.kwargs["input"]
        return place.copy_(result)


def check_operations_can_be_seen(network: ImageNetwork, method: str) -> None:
    """Raises DoesNotApply for TorchScript, which runs as one piece."""
    if any(isinstance(module, torch.jit.ScriptModule) for module in network.network.modules()):
        raise DoesNotApply(
            f"{method} changes single operations, and those of a TorchScript program cannot be seen."
        )


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)


Winner = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Values → (maxima, which place won, counted through the last axes)."""


def pooled_maximum(call: Call) -> tuple[Winner, int] | None:
    """For a max-pool: how it is done, and over how many last axes places are counted; None for any other operation."""
    name = call.name.removesuffix("_with_indices")
    if name not in _MAXIMUM_POOLS:
        return None
    pooling = getattr(torch.nn.functional, name)
    if name.startswith("adaptive"):
        given = {"output_size": call.argument(1, "output_size")}
    else:
        given = {key: call.argument(place, key) for place, key in enumerate(_POOLING_ORDER) if place}
        # Exported programs write an empty list for a stride that is not given.
        given = {key: value for key, value in given.items() if value is not None and value != []}
    return lambda values: pooling(values, **given, return_indices=True), int(name[-2])
