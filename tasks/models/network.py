"""Building a network from its factory, calling it, and taking what counts of its output."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stratascope.errors import CaptureError, ConfigurationError, StratascopeError
from stratascope.storage.factories import load_object
from stratascope.storage.model_spec import ModelSpec
from stratascope.tasks.device import moved
from stratascope.tasks.memory import is_memory_shortage

_PART = re.compile(r"\[(-?\d+)\]|\.?([^.\[\]]+)")


def build_network(spec: ModelSpec, folder: Path | None) -> nn.Module:
    """The bare network, freshly initialised. Raises ConfigurationError that names the factory."""
    if not spec.factory:
        raise ConfigurationError(
            "`model: {factory: module:name}` is missing: only TorchScript and exported programs need none."
        )
    factory = load_object(spec.factory, folder)
    try:
        network = factory(**spec.args)
    except StratascopeError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"model factory {spec.factory!r} with arguments {spec.args} fails: {type(error).__name__}: {error}."
        ) from error
    if not isinstance(network, nn.Module):
        raise ConfigurationError(
            f"model factory {spec.factory!r} returned {type(network).__name__}; expected a torch.nn.Module."
        )
    return network


def as_tensor(inputs: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Arrays as tensors (a copy), floating ones in `dtype`, whole numbers as int64."""
    if isinstance(inputs, dict):
        return {name: as_tensor(value, dtype) for name, value in inputs.items()}
    tensor = torch.tensor(inputs)
    return tensor.to(dtype) if tensor.is_floating_point() else tensor.long()


def place_of(network: nn.Module) -> torch.device:
    """The device of a network's weights; the processor for one without."""
    weights = next(itertools.chain(network.parameters(), network.buffers()), None)
    return torch.device("cpu") if weights is None else weights.device


def call_network(network: nn.Module, inputs: Any, spec: ModelSpec, folder: Path | None = None) -> Any:
    """What `network` returns for a batch, which is brought to where its weights are.

    Raises CaptureError where it does not take that shape.
    """
    inputs = moved(inputs, place_of(network))
    try:
        if spec.call == "positional":
            return network(inputs)
        if spec.call == "keywords":
            return network(**inputs)
        return load_object(spec.call, folder)(network, inputs)
    except StratascopeError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        if is_memory_shortage(error):
            raise
        shape = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
        first = str(error).strip().splitlines()[0]
        raise CaptureError(
            f"the network of {spec.factory!r} cannot be run on inputs of shape {shape}: {first}. Check that the "
            "probe's size, channels and dtype fit the network."
        ) from error


def select_output(output: Any, path: str | None) -> Tensor:
    """The part of `output` at `path` (``logits``, ``[0]``, ``a[1].b``). Raises CaptureError."""
    found = output
    for index, name in _PART.findall(path or ""):
        try:
            if index:
                found = found[int(index)]
            else:
                found = found[name] if isinstance(found, dict) else getattr(found, name)
        except (KeyError, IndexError, AttributeError, TypeError):
            raise CaptureError(
                f"the network's output has no part {path!r}: it is a {type(output).__name__}."
            ) from None
    if not isinstance(found, Tensor):
        raise CaptureError(
            f"the network's output{f' at {path!r}' if path else ''} is a {type(found).__name__}, not a tensor: "
            "name the part that counts with `model: {output: …}`."
        )
    return found
