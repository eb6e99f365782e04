"""What must be switched so that attention can be seen, and how it is switched back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import nn

_SEEN = ("sdpa", "eager")
"""Implementations of Hugging Face whose weights can be seen: by the function they call, or in what they return."""


def bare_network(network: nn.Module) -> nn.Module:
    """The network inside what spreads it over devices or compiles it: its names have no `module.` before them."""
    while True:
        if isinstance(network, nn.DataParallel | nn.parallel.DistributedDataParallel):
            network = network.module
        elif isinstance(getattr(network, "_orig_mod", None), nn.Module):
            network = network._orig_mod  # type: ignore[assignment]
        else:
            return network


@contextmanager
def visible_attention(network: nn.Module) -> Iterator[None]:
    """While it lasts no module is in training mode, torch takes no fused path around modules, compiled modules run as
    they are written, and models of Hugging Face use an attention whose weights can be seen; then all is as it was."""
    modes = {module: module.training for module in network.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        for module, mode in modes.items():
            stack.callback(setattr, module, "training", mode)
            module.training = False
        stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
        torch.backends.mha.set_fastpath_enabled(False)
        if any(isinstance(getattr(module, "_orig_mod", None), nn.Module) for module in modes):
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        for module in modes:
            if _implementation(module) not in (*_SEEN, None):
                stack.enter_context(_exchanged_implementation(module, "eager"))
        yield


@contextmanager
def gateable_attention(network: nn.Module) -> Iterator[None]:
    """While it lasts models of Hugging Face compute attention by torch's function, where every head has a gate, if they can."""
    with ExitStack() as stack:
        for module in network.modules():
            if _implementation(module) not in ("sdpa", None):
                stack.enter_context(_exchanged_implementation(module, "sdpa"))
        yield


def _implementation(module: Any) -> str | None:
    """How a model of Hugging Face computes attention; None for any other module."""
    if not hasattr(module, "set_attn_implementation") or not hasattr(module, "config"):
        return None
    return getattr(module.config, "_attn_implementation", None)


@contextmanager
def _exchanged_implementation(model: Any, wanted: str) -> Iterator[None]:
    before = _implementation(model)
    with suppress(ValueError, ImportError):  # a model that has no such implementation keeps its own
        model.set_attn_implementation(wanted)
    try:
        yield
    finally:
        if _implementation(model) != before:
            model.set_attn_implementation(before)
