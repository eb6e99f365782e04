"""A device that is none: tensors on it compute on the processor, but mix with others as little as those of a card."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

NAME = "meta"
"""What its tensors call their device: of the devices that torch knows everywhere, the one without values."""
_aten = torch.ops.aten
_BETWEEN = {_aten.copy_.default, _aten._to_copy.default}


class Elsewhere(torch.Tensor):
    """A tensor on the pretended device; NumPy cannot see it, and its `device` is not the processor."""

    value: torch.Tensor

    @staticmethod
    def __new__(cls, value: torch.Tensor) -> Elsewhere:
        made = torch.Tensor._make_wrapper_subclass(
            cls, value.shape, strides=value.stride(), storage_offset=value.storage_offset(), dtype=value.dtype,
            device=NAME, requires_grad=False,
        )  # fmt: skip
        made.value = value
        return made  # type: ignore[no-any-return]

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(function, args, kwargs or {})


class PretendedDevice(TorchDispatchMode):
    """While it lasts, what is moved to or made on `NAME` is there with its values."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return computed(function, args, kwargs or {})


def computed(function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run `function` on the values; raises RuntimeError, as a card would, where tensors of two devices meet."""
    flat, _ = tree_flatten((args, kwargs))
    there = [item for item in flat if isinstance(item, Elsewhere)]
    here = [
        item for item in flat if isinstance(item, torch.Tensor) and not isinstance(item, Elsewhere) and item.ndim
    ]
    if there and here and function not in _BETWEEN:
        raise RuntimeError(f"{function} got tensors on two devices, {NAME} and cpu")
    wanted = kwargs.get("device")
    goes_there = bool(there) if wanted is None else torch.device(wanted).type == NAME
    if function is _aten.copy_.default:
        goes_there = isinstance(args[0], Elsewhere)
    given = {name: item for name, item in kwargs.items() if name != "device"}
    if wanted is not None:
        given["device"] = "cpu"
    plain_args, plain_kwargs = tree_map(
        lambda item: item.value if isinstance(item, Elsewhere) else item, (args, given)
    )
    result = function(*plain_args, **plain_kwargs)
    known = {id(item.value): item for item in there}

    def placed(item: Any) -> Any:
        if not isinstance(item, torch.Tensor) or not goes_there:
            return item
        return known.get(id(item)) if id(item) in known else Elsewhere(item)

    return tree_map(placed, result)
