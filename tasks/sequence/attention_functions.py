"""Weights of attention that is computed by functions: `scaled_dot_product_attention`, and softmax in a named module.

A torch function mode sees every call, however the function was imported.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_ARGUMENTS = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
_MULTIHEAD = inspect.signature(functional.multi_head_attention_forward)
_SOFTMAX = frozenset({functional.softmax, torch.softmax, Tensor.softmax, torch.special.softmax})


def dot_product_arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of `scaled_dot_product_attention` by name, with those that were left out."""
    defaults = {"attn_mask": None, "dropout_p": 0.0, "is_causal": False, "scale": None, "enable_gqa": False}
    return {**defaults, **dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}


def dot_product_allowed(given: dict[str, Any]) -> Tensor | None:
    """bool (…, query, key): the keys that each query may look at; None where there is no mask."""
    query, key, mask = given["query"], given["key"], given["attn_mask"]
    if given["is_causal"]:
        return torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    if mask is None:
        return None
    return mask if mask.dtype == torch.bool else mask != -torch.inf


def dot_product_weights(given: dict[str, Any]) -> Tensor:
    """float (…, head, query, key): softmax(s · q kᵀ + mask), s being `scale` or 1/√width; NaN where a query sees no key."""
    query, key, mask = given["query"], _repeated(given, "key"), given["attn_mask"]
    scale = given["scale"] if given["scale"] is not None else 1 / math.sqrt(query.shape[-1])
    scores = (query * scale) @ key.transpose(-2, -1)
    if mask is not None and mask.dtype != torch.bool:
        scores = scores + mask
    else:
        allowed = dot_product_allowed(given)
        scores = scores if allowed is None else scores.masked_fill(~allowed, -math.inf)
    return scores.softmax(-1)


def dot_product_output(given: dict[str, Any], weights: Tensor) -> Tensor:
    """(…, head, query, width of a value): the values under `weights`."""
    return weights @ _repeated(given, "value")


def _repeated(given: dict[str, Any], name: str) -> Tensor:
    """Keys or values (…, head, key, width), each as often as there are query heads for it (grouped queries)."""
    item: Tensor = given[name]
    if not given["enable_gqa"]:
        return item
    return item.repeat_interleave(given["query"].shape[-3] // item.shape[-3], -3)


def softmax_with_keys_last(result: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """What a softmax returned, with the axis it ran over as the last one."""
    given = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return result if given is None else result.movedim(int(given), -1)


class WatchedFunctions(TorchFunctionMode):
    """While it is entered, `on_attention(given, run)` makes the output of each `scaled_dot_product_attention`,
    `on_multihead(weights)` is given those of each `multi_head_attention_forward` that no module of torch's own calls, and
    `on_softmax(result)` what each softmax returns, keys last. Inside a handler nothing is watched.
    """

    def __init__(
        self,
        on_attention: Callable[[dict[str, Any], Callable[[], Tensor]], Tensor],
        on_multihead: Callable[[Tensor], None],
        on_softmax: Callable[[Tensor], None],
        within_module: Callable[[], bool],
    ) -> None:
        super().__init__()
        self._on_attention, self._on_multihead, self._on_softmax = on_attention, on_multihead, on_softmax
        self._within_module = within_module

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is functional.scaled_dot_product_attention:
            given = dot_product_arguments(args, kwargs)
            return self._on_attention(given, lambda: function(*args, **kwargs))
        if function is functional.multi_head_attention_forward and not self._within_module():
            return self._bare_multihead(args, kwargs)
        result = function(*args, **kwargs)
        if function in _SOFTMAX:
            self._on_softmax(softmax_with_keys_last(result, args, kwargs))
        return result

    def _bare_multihead(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        function = functional.multi_head_attention_forward
        bound = _MULTIHEAD.bind(*args, **kwargs)
        bound.apply_defaults()
        asked = dict(bound.arguments)
        if asked["is_causal"] and not asked["need_weights"] and asked["key_padding_mask"] is None:
            counts = asked["query"].shape[0], asked["key"].shape[0]
            asked["attn_mask"] = torch.ones(*counts, dtype=torch.bool, device=asked["query"].device).triu(1)
        output, weights = function(**asked | {"need_weights": True, "average_attn_weights": False})
        assert weights is not None
        self._on_multihead(weights if weights.dim() == 4 else weights[None])
        if not asked["need_weights"]:
            return output, None
        return output, weights.mean(-3) if asked["average_attn_weights"] else weights.clone()
