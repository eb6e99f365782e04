"""What must be switched so that attention can be seen, and how it is switched back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
            if hasattr(module, "set_attn_implementation") and hasattr(module, "config"):
                stack.enter_context(_seen_implementation(module))
        yield


@contextmanager
def _seen_implementation(model: Any) -> Iterator[None]:
    before = getattr(model.config, "_attn_implementation", None)
    if before in _SEEN or before is None:
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
