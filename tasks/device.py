"""Where networks run: on the processor, or on the graphics card of the worker."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from stratascope.errors import ClusterError

if TYPE_CHECKING:
    import torch

OVERRIDE = "STRATASCOPE_DEVICE"
"""In a worker's environment: the device in place of the one that was asked for, such as `cpu` or `xpu`."""


def device_of(wanted: str) -> torch.device:
    """The device for a network that is to run on `wanted` (``cpu`` or ``cuda``).

    Raises ClusterError where this process has no such device: a worker that fell back to its processor would be slow
    without a word.
    """
    import torch

    name = os.environ.get(OVERRIDE) or wanted
    try:
        device = torch.device(name)
        if device.type == "cuda" and not torch.cuda.is_available():
            raise RuntimeError("torch finds no CUDA device")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).strip().splitlines()[0]
        raise ClusterError(
            f"a worker that is to run networks on {name!r} cannot: {first}. Install a torch built for its card, or "
            f"set `cluster.gpus_per_worker` to 0; CUDA_VISIBLE_DEVICES is {os.environ.get('CUDA_VISIBLE_DEVICES')!r} there."
        ) from None
    if device.type == "cuda":
        # Convolutions in TF32, which torch allows by itself, keep three digits.
        torch.backends.cudnn.allow_tf32 = False
    return device


def visible_devices(most: int) -> tuple[str, ...]:
    """The graphics cards that this process may hand to its workers, as CUDA_VISIBLE_DEVICES names them; at most `most`.

    Where the environment says that networks run elsewhere, cards are only counted, and never looked for.
    """
    if os.environ.get(OVERRIDE):
        return tuple(str(number) for number in range(most))
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return tuple(part.strip() for part in named.split(",") if part.strip())[:most]
    import torch

    return tuple(str(number) for number in range(torch.cuda.device_count()))[:most]


def moved(values: Any, device: torch.device) -> Any:
    """Tensors, also in nested mappings, on `device`; anything else as it is."""
    if isinstance(values, dict):
        return {name: moved(item, device) for name, item in values.items()}
    return values.to(device) if hasattr(values, "to") else values
