"""One look at a network before it is captured: what each layer puts out, and which ReLU follows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from stratascope.storage.datasets.dataset import with_exchanged
from stratascope.storage.model_spec import ModelSpec
from stratascope.storage.probes import Probe
from stratascope.tasks.capture.axes import AxisGuesser
from stratascope.tasks.capture.layers import LayerInfo, tensors_in
from stratascope.tasks.intake.load import NetworkTraits
from stratascope.tasks.models.network import as_tensor, call_network

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)
RECTIFIERS = (nn.ReLU, nn.ReLU6)
ORDINARY = NetworkTraits()
"""A plain module: it takes hooks, and batches of any size."""
_RECTIFYING = frozenset({"relu", "relu_", "relu6", "hardtanh", "clamp_min"})


@dataclass
class Observation:
    """What was seen: layers in the order of execution, and for each the layer whose largest value tells death."""

    layers: list[LayerInfo] = field(default_factory=list)
    rectified_by: dict[str, str] = field(default_factory=dict)
    """Layer → the layer (itself, or the norm after it) whose output enters the ReLU, or the ReLU itself."""
    left_out: list[str] = field(default_factory=list)
    """Layers that put out nothing with a sample axis."""
    token_inputs: dict[str, str] = field(default_factory=dict)
    """Layer → the input whose mask tells which of the layer's tokens are real; missing where none does."""


def example_batch(
    probe: Probe, size: int, dtype: torch.dtype = torch.float32, exchanged: str | None = None
) -> Any:
    """`size` samples of `probe` as tensors, perhaps with one input exchanged; the first are repeated where it has fewer."""
    inputs = probe.inputs_at(slice(0, min(size, len(probe))))
    if exchanged is not None:
        inputs = with_exchanged(inputs, exchanged)

    def filled(tensor: Tensor) -> Tensor:
        rows = torch.arange(size) % len(tensor)
        return tensor[rows]

    batch = as_tensor(inputs, dtype)
    return {name: filled(item) for name, item in batch.items()} if isinstance(batch, dict) else filled(batch)


def observe(
    network: nn.Module,
    probe: Probe,
    spec: ModelSpec,
    folder: Path | None = None,
    axes: Mapping[str, Sequence[str]] | None = None,
    traits: NetworkTraits = ORDINARY,
) -> Observation:
    """Run `network` on two small batches of different sizes; what grows with them is the sample axis.

    Raises CaptureError where it does not take the probe. The network is left as it was.
    """
    if not traits.hookable:
        return Observation()
    was_training = network.training
    dtype = getattr(torch, spec.compute_dtype)
    fixed = traits.fixed_batch_size
    sizes = (fixed, fixed) if fixed else (2, 3)
    try:
        if traits.kind != "exported":
            network.eval()
        passes = [_Pass(network, AxisGuesser(axes or {})) for _ in sizes]
        for size, one in zip(sizes, passes, strict=True):
            one.run(example_batch(probe, size, dtype), spec, folder)
        observation = _compare(passes[0], passes[1], sizes, axes or {})

        def exchanged(name: str) -> _Pass:
            other = _Pass(network, AxisGuesser({}))
            other.run(example_batch(probe, sizes[0], dtype, exchanged=name), spec, folder)
            return other

        lengths = {name: mask.shape[1] for name, mask in probe.masks.items()}
        observation.token_inputs = _token_inputs(observation.layers, lengths, passes[0], exchanged)
    finally:
        if traits.kind != "exported":
            network.train(was_training)
    return observation


def _token_inputs(
    layers: Sequence[LayerInfo], lengths: Mapping[str, int], plain: _Pass, exchanged: Callable[[str], _Pass]
) -> dict[str, str]:
    """The input whose tokens each layer has: of those with a mask, one with as many tokens.

    Where several fit it is the last on which the layer depends: a decoder reads the target, and sees the source through its
    encoder. `exchanged` runs the network with one input of other samples.
    """
    fitting = {
        (layer.name, layer.side): [
            name for name, length in lengths.items() if length == layer.shape[layer.token_axis]
        ]
        for layer in layers
        if layer.token_axis is not None and len(layer.shape) == 2
    }
    before = {(item.name, item.side): item.tensor for item in plain.seen}
    changed: dict[str, set[tuple[str, str]]] = {}
    for name in dict.fromkeys(name for names in fitting.values() if len(names) > 1 for name in names):
        after = {(item.name, item.side): item.tensor for item in exchanged(name).seen}
        changed[name] = {
            key for key, tensor in before.items() if key in after and not torch.equal(tensor, after[key])
        }
    return {
        key[0]: ([name for name in names if key in changed.get(name, ())] or names)[-1]
        for key, names in fitting.items()
        if names
    }


@dataclass
class _Seen:
    module: str
    call: int
    element: tuple[int, ...]
    kind: str
    is_leaf: bool
    side: str
    shape: tuple[int, ...]
    tensor: Tensor
    inputs: Tensor | None

    @property
    def name(self) -> str:
        suffix = f"#{self.call}" if self.call else ""
        side = ":input" if self.side == "input" else ""
        return f"{self.module}{suffix}{''.join(f'[{number}]' for number in self.element)}{side}"


class _Pass(TorchFunctionMode):
    """Hooks on every module, and an eye on every rectifying function, for one batch."""

    def __init__(self, network: nn.Module, guesser: AxisGuesser) -> None:
        super().__init__()
        self.network, self.guesser = network, guesser
        self.seen: list[_Seen] = []
        self.rectified_by: dict[str, str] = {}
        self.modules = dict(network.named_modules())
        self._calls: dict[str, int] = {}
        self._owners: dict[int, tuple[str, ...]] = {}
        self._alive: list[Tensor] = []

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if getattr(function, "__name__", "") in _RECTIFYING and arguments and isinstance(arguments[0], Tensor):
            owners = self._owners.get(id(arguments[0]), ())
            for owner in owners:
                self.rectified_by.setdefault(owner, owners[-1])
        return function(*arguments, **(options or {}))

    def run(self, batch: Any, spec: ModelSpec, folder: Path | None) -> None:
        for _, tensor in tensors_in(batch):
            self.guesser.note_input(tensor)
        handles = []
        for name, module in self.modules.items():
            if name:
                handles.append(module.register_forward_pre_hook(lambda m, i, name=name: self._before(name, m, i)))
                handles.append(module.register_forward_hook(lambda m, i, o, name=name: self._after(name, m, i, o)))
        try:
            with torch.inference_mode(), self:
                call_network(self.network, batch, spec, folder)
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        call = self._calls.get(name, 0)
        if not call and inputs and isinstance(inputs[0], Tensor) and _is_leaf(module):
            shape = tuple(inputs[0].shape)
            kind = type(module).__name__
            self.seen.append(_Seen(name, 0, (), kind, True, "input", shape, inputs[0], inputs[0]))

    def _after(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        call = self._calls.get(name, 0)
        self._calls[name] = call + 1
        first = inputs[0] if inputs and isinstance(inputs[0], Tensor) else None
        kind, leaf = type(module).__name__, _is_leaf(module)
        for element, tensor in tensors_in(output):
            self.seen.append(_Seen(name, call, element, kind, leaf, "output", tuple(tensor.shape), tensor, first))
        if isinstance(output, Tensor):
            self._follow(f"{name}#{call}" if call else name, module, first, output)

    def _follow(self, name: str, module: nn.Module, inputs: Tensor | None, output: Tensor) -> None:
        before = self._owners.get(id(inputs), ()) if inputs is not None else ()
        if isinstance(module, RECTIFIERS):
            self.rectified_by[name] = name
        elif isinstance(module, _WEIGHTED):
            self._own(output, (name,))
        elif isinstance(module, _NORMS):
            self._own(output, (*before, name))

    def _own(self, tensor: Tensor, names: tuple[str, ...]) -> None:
        self._owners[id(tensor)] = names
        self._alive.append(tensor)


def _is_leaf(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention) or not list(module.children())


def _compare(
    first: _Pass, second: _Pass, sizes: tuple[int, int], axes: Mapping[str, Sequence[str]]
) -> Observation:
    """Settle sample axes and names of axes by what two batches of different sizes gave."""
    observation = Observation(rectified_by=first.rectified_by)
    others = {(item.name, item.side): item.shape for item in second.seen}
    for item in first.seen:
        module = first.modules[item.module]
        other = others.get((item.name, item.side), ())
        given = first.guesser.given_for(item.name, item.tensor) if axes else None
        places = [
            place
            for place, (one, two) in enumerate(zip(item.shape, other, strict=False))
            if (one, two) == sizes and len(other) == len(item.shape)
        ]
        if not places and given is None:
            if item.side == "output":
                observation.left_out.append(item.name)
            continue
        if item.side == "input":
            dims, axis = first.guesser.dims(item.name, nn.Identity(), (), item.tensor, item.tensor, places[0])
        else:
            place = places[0] if places else 0
            dims, axis = first.guesser.dims(item.name, module, item.element, item.inputs, item.tensor, place)
        shape = item.shape[:axis] + item.shape[axis + 1 :]
        observation.layers.append(
            LayerInfo(
                item.name,
                item.module,
                item.kind,
                shape,
                dims,
                item.call,
                item.element,
                item.side,
                axis,
                item.is_leaf,
            )
        )
    return observation
