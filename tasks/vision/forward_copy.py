"""A private copy of a network that is quicker forward and does nothing else: for methods that ask about many altered pictures.

Batch norms are folded into the convolution before them, ReLUs and additions write over what nobody reads again, and on a
processor the kernels are laid out channels last; there, where one thread is asked much, convolutions of 3 × 3 are Winograd's.
The network itself is left as it is, and stands in where it cannot be traced or where the copy does not give what it gives.
"""

from __future__ import annotations

import copy
import operator
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn.utils.fusion import fuse_conv_bn_eval

from stratascope.tasks.vision.image_network import ImageNetwork
from stratascope.tasks.vision.winograd_convolution import (
    WinogradConvolution,
    calls_relu,
    exchange_convolutions,
    transformable_multiplications,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_TRACING = threading.Lock()
_TOLERANCE = 1e-5
"""Of the largest output: so far may the copy be from the network."""
_TESTED = 8
_WORTHWHILE = 16
"""So many times the tested samples must be asked about, or making the copy costs more than it saves."""
_WORTH_TRANSFORMING = 1e11
"""So many multiplications must there be to save, or loading the compiled transforms costs more."""
_FOLDED = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))
_FRESH = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.Linear,
    WinogradConvolution,
)  # fmt: skip
"""Their outputs share memory with nothing else."""


@torch.no_grad()
def forward_copy(network: ImageNetwork, inputs: Tensor, evaluations: int) -> ImageNetwork:
    """A quicker copy of `network`, for about `evaluations` forward passes of one picture; or `network`, where there is none.

    Its outputs on the first eight of `inputs` (sample, channel, y, x) are within 1e-5 of the network's, relative to the largest
    of them, for any number of samples at a time. It has no layers by the names they had, carries no gradient, and does not
    follow later changes of the weights. Must be used inside `network.untouched()`.
    """
    given = inputs[:_TESTED]
    if evaluations < _WORTHWHILE * len(given) or not network.hookable or network.model.call != "positional":
        return network
    if any(module._forward_hooks or module._forward_pre_hooks for module in network.network.modules()):
        return network
    expected = network.outputs(given)
    for made in _forms(network, given, evaluations):
        found = replace(network, network=made, hookable=False)
        if _agrees(found, given, expected):
            return found
    return network


def _forms(network: ImageNetwork, given: Tensor, evaluations: int) -> Iterator[fx.GraphModule]:
    """Copies, the quickest first; none where the network cannot be traced."""

    def folded(layout: torch.memory_format | None, many: bool) -> fx.GraphModule:
        made = _folded(network.network)
        if many:
            ShapeProp(made).propagate(given.clone())  # type: ignore[no-untyped-call]
            if transformable_multiplications(made) / len(given) * evaluations >= _WORTH_TRANSFORMING:
                exchange_convolutions(made)
        _write_over(made)
        if layout is not None:
            made.to(memory_format=layout)  # type: ignore[call-overload]
        return made

    forms: list[tuple[torch.memory_format | None, bool]] = [(None, False)]
    if network.device.type == "cpu":
        # On several threads torch's own convolutions share their work better.
        alone = torch.get_num_threads() == 1
        forms = [(torch.channels_last, many) for many in (True, False) if alone or not many] + forms
    for layout, many in forms:
        try:
            yield folded(layout, many)
        except Exception:
            # The network's own code runs while it is traced, and may raise anything: then there is no such copy.
            continue


def _folded(network: nn.Module) -> fx.GraphModule:
    own = _own_copy(network)
    with _TRACING:
        traced = fx.GraphModule(own, _Tracer().trace(own))
    _unshare(traced)
    _fold(traced)
    return traced


class _Tracer(fx.Tracer):
    """While it traces, torch hands it the modules of the whole process: those that other threads run go past it."""

    def __init__(self) -> None:
        super().__init__()
        self._thread = threading.get_ident()

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != self._thread:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        if threading.get_ident() != self._thread:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)


def _own_copy(network: nn.Module) -> nn.Module:
    own = copy.deepcopy(network)
    for module in own.modules():
        module.training = False
    return own.requires_grad_(False)


def _unshare(traced: fx.GraphModule) -> None:
    """A module that is called several times gets a copy for each call: what follows differs from call to call."""
    calls: dict[Any, int] = {}
    for node in traced.graph.nodes:
        if node.op != "call_module":
            continue
        number = calls.get(node.target, 0)
        calls[node.target] = number + 1
        if number:
            name = f"{node.target.replace('.', '_')}_call_{number}"
            traced.add_submodule(name, copy.deepcopy(traced.get_submodule(node.target)))
            node.target = name
    traced.recompile()


def _fold(traced: fx.GraphModule) -> None:
    """Batch norms become part of the convolution before them, if nothing else reads what that gives."""
    for node in list(traced.graph.nodes):
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) != 1:
            continue
        convolution: Any = traced.get_submodule(str(before.target))
        norm: Any = traced.get_submodule(str(node.target))
        if (type(convolution), type(norm)) in _FOLDED and norm.track_running_stats:
            traced.set_submodule(str(before.target), fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(before)
            traced.graph.erase_node(node)
    traced.recompile()


def _write_over(traced: fx.GraphModule) -> None:
    """ReLUs and additions put their result where their operand was, if it is read by them alone."""
    modules = dict(traced.named_modules())
    for node in traced.graph.nodes:
        if calls_relu(node, modules) and _is_free(node.args[0], modules):
            if node.op == "call_module":
                modules[node.target].inplace = True
            else:
                node.op, node.target, node.args, node.kwargs = "call_function", torch.relu_, node.args[:1], {}
        elif node.op == "call_function" and node.target in (operator.add, torch.add) and not node.kwargs:
            first, second = node.args
            if _is_free(first, modules):
                node.target = operator.iadd
            elif _is_free(second, modules):
                node.target, node.args = operator.iadd, (second, first)
    traced.recompile()


def _is_free(node: Any, modules: dict[str, nn.Module]) -> bool:
    """Whether what `node` gives has memory of its own that is read once."""
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return False
    if node.op == "call_module":
        return type(modules[str(node.target)]) in _FRESH
    if node.op == "call_function" and node.target is operator.iadd:
        return _is_free(node.args[0], modules)
    return node.op == "call_function" and node.target in (operator.add, torch.add)


def _agrees(found: ImageNetwork, given: Tensor, expected: Tensor) -> bool:
    try:
        whole, alone = found.outputs(given), found.outputs(given[:1])
    except Exception:
        return False
    if whole.shape != expected.shape or whole.dtype != expected.dtype or alone.shape != expected[:1].shape:
        return False
    bound = _TOLERANCE * float(expected.abs().max())
    return float((whole - expected).abs().max()) <= bound and float((alone - expected[:1]).abs().max()) <= bound
