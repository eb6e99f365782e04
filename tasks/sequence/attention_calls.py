"""Attention weights of every head, wherever a network computes them, and gates on its heads.

Weights come from `nn.MultiheadAttention`, from `scaled_dot_product_attention`, from modules that return them, and from the last
softmax of modules that the user names. The network gives what it gives without: only the fast path of torch, which has
no weights, is off meanwhile.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from stratascope.errors import ConfigurationError, DoesNotApply, did_you_mean
from stratascope.tasks.capture.layers import tensors_in
from stratascope.tasks.sequence.attention_functions import (
    WatchedFunctions,
    dot_product_allowed,
    dot_product_output,
    dot_product_weights,
)
from stratascope.tasks.sequence.attention_modules import MultiheadCall, is_multihead
from stratascope.tasks.sequence.attention_outputs import (
    attention_of_softmax,
    found_path,
    held_against_inputs,
    is_edge_list,
    looks_like_weights,
    named_weights,
    relative_gap,
    with_heads,
)
from stratascope.tasks.sequence.attention_switches import bare_network, visible_attention

_BY_NAME = re.compile("attention|attn", re.IGNORECASE)
_CROSS = re.compile("cross|enc_?dec|encoder_attn", re.IGNORECASE)
_GRAPH = re.compile("graph|gat", re.IGNORECASE)
NETWORK = "@network"
"""The name of attention that the network computes outside of all its modules."""


@dataclass
class AttentionCall:
    """The attention of one call."""

    layer: str
    """Dotted module name, with `#1` for a second call."""
    weights: Tensor
    """float (sample, head, query, key), after softmax, dropout off; masked keys are exactly 0. A query that sees no key
    has a row of zeros."""
    residual: float
    """Largest |reconstructed output − real output| over the largest |output|; NaN where nothing can be held against it."""
    kind: str
    """`self`, `cross`, `named` or `graph`."""
    query_input: str | None = None
    key_input: str | None = None
    """Which input of the probe its axis runs over, "" for the only one; None where no input has that many tokens."""
    allowed: Tensor | None = None
    """bool (sample, query, key): the keys that a query may look at; None where the network gave no mask that can be seen."""
    blind: int = 0
    """Queries whose weights are no numbers, padded ones among them: they see no key."""
    added_keys: int = 0
    """So many last keys are no tokens: a learned one (`bias_k`) or one of zeros (`add_zero_attn`)."""
    gated: bool = True
    """Whether its heads can be gated."""


@dataclass(frozen=True)
class AttentionSpec:
    """Where weights are looked for, beyond torch's own attention."""

    modules: Mapping[str, str] = field(default_factory=dict)
    """Weights that modules return: the part of the output, by name or glob: `{"attention": "[1]"}`."""
    softmax: tuple[str, ...] = ()
    """Modules whose last softmax is their attention, by name or glob."""
    inputs: Mapping[str, int] = field(default_factory=dict)
    """The tokens of each input of the probe."""
    axes: Mapping[str, tuple[str | None, str | None]] = field(default_factory=dict)
    """By layer, which inputs queries and keys are of, where lengths alone do not tell."""


class AttentionRecorder:
    """Collects calls while its context lasts; `take` hands them over."""

    def __init__(self, network: nn.Module, spec: AttentionSpec, gates: Mapping[str, Tensor]) -> None:
        self._names = {module: name for name, module in network.named_modules()}
        self._network, self._spec, self._gates = network, spec, gates
        self._parts = _matched(spec.modules, self._names, "modules")
        self._softmax = set(_matched(dict.fromkeys(spec.softmax, ""), self._names, "softmax"))
        self._calls: list[AttentionCall] = []
        self._counts: Counter[str] = Counter()
        self._stack: list[_Frame] = []
        self._opened: dict[nn.Module, MultiheadCall] = {}
        self._looked: dict[str, tuple[int, ...] | None] = {}
        self._tests = True
        self._applied: set[str] = set()

    def take(self) -> list[AttentionCall]:
        """The calls since the last time, in the order of execution; the self-test is made until then.

        Where a loop called a module once for each query its rows are joined.
        """
        found = [self._with_inputs(call) for call in _joined(self._calls)]
        self._calls, self._tests = [], False
        self._counts.clear()
        return found

    def _with_inputs(self, call: AttentionCall) -> AttentionCall:
        queries, keys = call.weights.shape[-2:]
        kind = "cross" if call.kind == "self" and queries != keys - call.added_keys else call.kind
        known = self._spec.axes.get(call.layer)
        query, key = known or (self._input_of(queries), self._input_of(keys - call.added_keys))
        return replace(call, kind=kind, query_input=query, key_input=key)

    def _input_of(self, count: int) -> str | None:
        fitting = [name for name, tokens in self._spec.inputs.items() if tokens == count]
        return fitting[0] if fitting else None

    def _layer(self, name: str) -> str:
        name = name or NETWORK
        number = self._counts[name]
        self._counts[name] += 1
        return f"{name}#{number}" if number else name

    def _keep(self, layer: str, weights: Tensor, kind: str, **facts: Any) -> None:
        weights = weights.detach()
        blind = weights.isnan().any(-1, keepdim=True)
        count = int(blind.any(1).sum())
        weights = weights.masked_fill(blind, 0) if count else weights
        self._calls.append(AttentionCall(layer, weights, facts.pop("residual", float("nan")), kind, blind=count, **facts))  # fmt: skip

    # Torch's own module.

    def open_multihead(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        assert isinstance(module, nn.MultiheadAttention)
        call = MultiheadCall.of(module, args, kwargs)
        self._opened[module] = call
        return call.asked, {}

    def close_multihead(self, module: nn.Module, args: Any, kwargs: Any, result: tuple[Tensor, Tensor]) -> Any:
        call = self._opened.pop(module)
        output, raw = result
        layer = self._layer(self._names[module])
        weights = raw if raw.dim() == 4 else raw[None]
        residual = relative_gap(call.output_of(weights).detach(), output.detach()) if self._tests else float("nan")
        gates = self._gates_of(layer, *weights.shape[1:3])
        if gates is not None:
            output = call.output_of(weights, gates)
        kind = "self" if call.is_self else "cross"
        allowed = call.allowed(len(weights))
        self._keep(layer, weights, kind, residual=residual, allowed=allowed, added_keys=call.added_keys)
        return call.handed_on(output, raw)

    def _gates_of(self, layer: str, heads: int, queries: int) -> Tensor | None:
        # A loop over queries calls its module once for each: one gate serves them all.
        gates = self._gates.get(layer, self._gates.get(layer.partition("#")[0]) if queries == 1 else None)
        if gates is not None:
            if gates.shape[-1] != heads:
                raise ConfigurationError(f"{layer!r} has {heads} heads; the gates are for {gates.shape[-1]}.")
            self._applied |= {layer, layer.partition("#")[0]}
        return gates

    # Functions.

    def on_dot_product(self, given: dict[str, Any], run: Callable[[], Tensor]) -> Tensor:
        output = run()
        if given["query"].dim() not in (3, 4):
            return output
        layer = self._layer(self._stack[-1].name if self._stack else "")
        raw = dot_product_weights({**given, **{name: given[name].detach() for name in ("query", "key")}})
        residual = relative_gap(dot_product_output(given, raw).detach(), output.detach()) if self._tests else float("nan")  # fmt: skip
        weights, allowed = with_heads(raw), dot_product_allowed(given)
        if allowed is not None:
            allowed = allowed.expand(raw.shape)
            allowed = allowed.any(1) if raw.dim() == 4 else allowed
        gates = self._gates_of(layer, *weights.shape[1:3])
        if gates is not None:
            gates = gates.to(output)
            output = output * (gates[..., None, None] if raw.dim() == 4 else gates.reshape(-1, 1, 1))
        self._keep(layer, weights, "cross" if _CROSS.search(layer) else "self", residual=residual, allowed=allowed)
        return output

    def on_multihead(self, weights: Tensor) -> None:
        self._keep(self._layer(self._stack[-1].name if self._stack else ""), weights, "self", gated=False)

    def on_softmax(self, result: Tensor) -> None:
        for frame in reversed(self._stack):
            if frame.name in self._softmax:
                frame.softmax = result
                return

    # Any other module.

    def enter(self, module: nn.Module, inputs: Any) -> None:
        self._stack.append(_Frame(self._names[module], len(self._calls)))

    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        name = self._names[module]
        while self._stack and self._stack[-1].name != name:
            self._stack.pop()
        if not self._stack:
            return None
        frame = self._stack.pop()
        weights = self._weights_of(module, frame, output)
        if weights is None:
            return None
        layer = self._layer(name)
        edges = (
            name in self._parts and weights.shape[0] == 1 and any(is_edge_list(item) for item in _members(output))
        )
        graph = edges or _GRAPH.search(type(module).__name__) is not None
        tested = self._tests and not edges
        given = (*args, *kwargs.values())
        residual = held_against_inputs(module, given, output, weights.detach()) if tested else float("nan")
        gates = self._gates_of(layer, *weights.shape[1:3])
        if gates is not None and weights.shape[1] > 1:
            raise DoesNotApply(f"the heads of {layer!r} are mixed inside the module, where no gate reaches them.")
        self._keep(layer, weights, "graph" if graph else "named", residual=residual, gated=weights.shape[1] == 1)
        return None if gates is None else _scaled(output, gates)

    def _weights_of(self, module: nn.Module, frame: _Frame, output: Any) -> Tensor | None:
        name = frame.name
        if name in self._parts:
            return named_weights(output, self._parts[name], name)
        if name in self._softmax:
            if frame.softmax is None:
                raise DoesNotApply(f"{name!r} calls no softmax that can be seen.")
            return attention_of_softmax(frame.softmax)
        if not _BY_NAME.search(type(module).__name__) or len(self._calls) > frame.known:
            return None
        if name not in self._looked:
            self._looked[name] = found_path(output)
        path = self._looked[name]
        found = None if path is None else dict(tensors_in(output)).get(path)
        return None if found is None or not looks_like_weights(found) else with_heads(found)

    # The whole pass.

    def begin(self, module: nn.Module, inputs: Any) -> None:
        self._counts.clear()
        self._stack.clear()
        self._opened.clear()
        self._applied.clear()

    def end(self, module: nn.Module, inputs: Any, output: Any) -> None:
        left = sorted(set(self._gates) - self._applied)
        if left:
            raise DoesNotApply(f"{left[0]!r} is no attention of this network whose heads can be gated.")

    def hooks(self, network: nn.Module) -> Iterator[RemovableHandle]:
        """Hooks every module of `network`."""
        yield network.register_forward_pre_hook(self.begin, prepend=True)
        for module in network.modules():
            if is_multihead(module):
                yield module.register_forward_pre_hook(self.open_multihead, with_kwargs=True)
                yield module.register_forward_hook(self.close_multihead, with_kwargs=True, prepend=True)
            else:
                yield module.register_forward_pre_hook(self.enter)
                yield module.register_forward_hook(self.leave, with_kwargs=True)
        yield network.register_forward_hook(self.end)

    @property
    def within_multihead(self) -> bool:
        return bool(self._opened)


@dataclass
class _Frame:
    """A module that is at work."""

    name: str
    known: int
    softmax: Tensor | None = None


@contextmanager
def captured_attention(
    network: Any, spec: AttentionSpec | None = None, gates: Mapping[str, Tensor] | None = None
) -> Iterator[AttentionRecorder]:
    """While it lasts every pass of `network` (a module, or what holds one as `network`) leaves its attention with the recorder.

    `gates` (head,) or (sample, head) multiply, by layer, the output of each head before the output projection, and carry
    gradients. All modules are in evaluation mode meanwhile; modes, hooks and switches are put back, also after an
    error. Raises ConfigurationError for a pattern that matches no module, DoesNotApply where modules cannot be hooked or
    a gate has no head.
    """
    module = network if isinstance(network, nn.Module) else network.network
    if not getattr(network, "hookable", True) or isinstance(module, torch.jit.ScriptModule):
        raise DoesNotApply("the attention of an exported or compiled program cannot be watched.")
    inner = bare_network(module)
    recorder = AttentionRecorder(inner, spec or AttentionSpec(), gates or {})
    with ExitStack() as stack:
        stack.enter_context(visible_attention(module))
        for handle in recorder.hooks(inner):
            stack.callback(handle.remove)
        watch = WatchedFunctions(
            recorder.on_dot_product, recorder.on_multihead, recorder.on_softmax, lambda: recorder.within_multihead
        )
        stack.enter_context(watch)
        yield recorder


def _matched(wanted: Mapping[str, str], names: Mapping[nn.Module, str], option: str) -> dict[str, str]:
    """What is wanted of each module, by name. Raises ConfigurationError for a pattern that matches none."""
    found: dict[str, str] = {}
    known = [name for name in names.values() if name]
    for pattern, value in wanted.items():
        plain = pattern.removeprefix("module.")
        matched = [name for name in known if plain == name or fnmatchcase(name, plain)]
        if not matched:
            raise ConfigurationError(f"`{option}`: {pattern!r} matches no module of this network." + did_you_mean(pattern, known))  # fmt: skip
        found |= dict.fromkeys(matched, value)
    return found


def _members(output: Any) -> list[Any]:
    return [output, *(output if isinstance(output, tuple | list) else ())]


def _scaled(output: Any, gates: Tensor) -> Any:
    """`output` with its first tensor multiplied by the one gate of each sample."""
    from stratascope.tasks.vision.image_network import rebuilt

    path, first = tensors_in(output)[0]
    factor = gates.to(first).reshape(-1, *[1] * (first.dim() - 1))
    return rebuilt(output, {path: first * factor})


def _joined(calls: list[AttentionCall]) -> list[AttentionCall]:
    """Calls of one query each, of the same module, as one call; all others as they are."""
    groups: dict[str, list[AttentionCall]] = {}
    for call in calls:
        groups.setdefault(call.layer.partition("#")[0], []).append(call)
    found: list[AttentionCall] = []
    for call in calls:
        group = groups[call.layer.partition("#")[0]]
        shapes = {tuple(item.weights.shape) for item in group}
        if len(group) == 1 or len(shapes) > 1 or call.weights.shape[2] != 1:
            found.append(call)
        elif call is group[0]:
            gaps = [item.residual for item in group]
            masks = [item.allowed for item in group if item.allowed is not None]
            found.append(replace(
                call, weights=torch.cat([item.weights for item in group], 2), residual=max(gaps),
                allowed=torch.cat(masks, 1) if len(masks) == len(group) else None, blind=sum(item.blind for item in group),
                kind="cross" if call.kind == "self" else call.kind,
            ))  # fmt: skip
    return found
