"""Other ways back through a ReLU: guided backpropagation and the deconvolution network.

The rule is put in where torch's functions are called, not where modules stand: a ReLU that is a function, that is built
inside `forward`, that works in place or that is used twice follows it like any other (featurevis P4). What is changed
belongs to the calling thread alone, so a network in another thread never feels it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

Rule = Literal["guided", "deconvolution"]

UNRULED = {
    "gelu": "GELU", "silu": "SiLU", "mish": "Mish", "hardswish": "Hardswish", "softplus": "Softplus", "elu": "ELU",
    "selu": "SELU", "celu": "CELU", "leaky_relu": "LeakyReLU", "prelu": "PReLU", "rrelu": "RReLU",
}  # fmt: skip
"""Activations that let something through below zero, by the name of their function. The rules are not defined for them:
both papers cut where a ReLU cuts. Their gradient stays as it is."""


@dataclass
class RectifierCalls:
    """What was met on the way from the inputs, by its kind, while a rule held."""

    rectified: Counter[str] = field(default_factory=Counter)
    """Calls that the rule applied to, by function."""
    unruled: Counter[str] = field(default_factory=Counter)
    """Calls of activations that the rule is not defined for, by their usual name."""


@contextmanager
def rectifiers(rule: Rule) -> Iterator[RectifierCalls]:
    """While it lasts, gradients of what this thread computes go through every ReLU by `rule`; outputs stay the same.

    `guided`: only where the input is above zero and the incoming gradient is too (Springenberg et al. 2015).
    `deconvolution`: the incoming gradient where it is above zero, whatever the input was (Zeiler and Fergus 2014).
    A ReLU is any of `relu`, `relu6`, `hardtanh` from 0, `threshold` at 0, `clamp` and `clip` from 0, and `maximum` with 0, as a
    module, a function or a method, in place or not. Use it around the forward pass and the gradient.
    """
    from torch.overrides import TorchFunctionMode

    calls = RectifierCalls()

    class Rectifiers(TorchFunctionMode):
        def __torch_function__(
            self,
            function: Any,
            types: Any,
            arguments: Sequence[Any] = (),
            keywords: Mapping[str, Any] | None = None,
        ) -> Any:
            keywords = keywords or {}
            # Functions of torch.ops are called `relu.default`; those that work in place end with a line.
            name = getattr(function, "__name__", "").partition(".")[0]
            plain = name.rstrip("_")
            if plain in UNRULED and _carries(arguments, keywords):
                calls.unruled[UNRULED[plain]] += 1
            check = _RECTIFIES.get(plain.lstrip("_"))
            if (
                check is None
                or name.startswith("__")
                or not _carries(arguments, keywords)
                or not check(arguments, keywords)
            ):
                return function(*arguments, **keywords)
            calls.rectified[plain.lstrip("_")] += 1
            changes = name.endswith("_") or bool(keywords.get("inplace"))
            return _ruled(rule, function, arguments, keywords, changes)

    with Rectifiers():
        yield calls


def _ruled(
    rule: Rule, function: Any, arguments: Sequence[Any], keywords: Mapping[str, Any], in_place: bool
) -> Tensor:
    import torch

    given = _first(arguments, keywords)
    in_place = in_place or (len(arguments) > 1 and arguments[-1] is True)
    if rule == "guided" and not (in_place and given._is_view()):
        # The ReLU's own gradient already stops where its input is below zero.
        found = function(*arguments, **keywords)
        found.register_hook(_above_zero)
        return found
    others = {name: value for name, value in keywords.items() if name not in ("input", "self")}
    if rule == "guided":
        # A hook on a view that was changed in place would be off the gradient's way.
        passed = function(given.clone(), *arguments[1:], **others)
    else:
        # The values of the ReLU on the gradient's way of a copy, which passes everything.
        passed = given.clone()
        with torch.no_grad():
            passed.copy_(function(given.detach().clone(), *arguments[1:], **others))
    passed.register_hook(_above_zero)
    return given.copy_(passed) if in_place else passed


def _above_zero(gradient: Tensor) -> Tensor:
    return gradient.clamp(min=0)


def _first(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
    return arguments[0] if arguments else keywords.get("input", keywords.get("self"))


def _carries(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> bool:
    import torch

    given = _first(arguments, keywords)
    return torch.is_grad_enabled() and isinstance(given, torch.Tensor) and given.requires_grad


def _always(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> bool:
    return True


def _given(
    arguments: Sequence[Any], keywords: Mapping[str, Any], place: int, *names: str, default: Any = None
) -> Any:
    if len(arguments) > place:
        return arguments[place]
    return next((keywords[name] for name in names if name in keywords), default)


def _is_zero(value: Any) -> bool:
    import torch

    if isinstance(value, torch.Tensor):
        return not value.requires_grad and value.numel() == 1 and bool(value == 0)
    return isinstance(value, int | float) and value == 0


def _from_zero(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> bool:
    return _is_zero(_given(arguments, keywords, 1, "min", "min_val"))


def _between(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> bool:
    return _is_zero(_given(arguments, keywords, 1, "min_val", default=-1.0))


def _threshold_at_zero(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> bool:
    value = _given(arguments, keywords, 2, "value")
    return _is_zero(_given(arguments, keywords, 1, "threshold")) and _is_zero(value)


def _with_zero(arguments: Sequence[Any], keywords: Mapping[str, Any]) -> bool:
    import torch

    other = _given(arguments, keywords, 1, "other")
    return isinstance(other, torch.Tensor) and not other.requires_grad and not bool(other.detach().any())


_RECTIFIES: dict[str, Callable[[Sequence[Any], Mapping[str, Any]], bool]] = {
    "relu": _always, "relu6": _always, "hardtanh": _between, "threshold": _threshold_at_zero, "clamp": _from_zero,
    "clip": _from_zero, "clamp_min": _from_zero, "maximum": _with_zero, "max": _with_zero,
}  # fmt: skip
