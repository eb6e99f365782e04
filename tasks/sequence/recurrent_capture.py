"""Every gate and state of a network's recurrent layers, taken while the network runs, and held against its real outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from stratascope.errors import DoesNotApply
from stratascope.tasks.sequence.recurrent_cells import (
    GATES,
    CellStep,
    CellWeights,
    cell_of,
    cell_step,
    cell_weights,
    kept,
)
from stratascope.tasks.sequence.sequence_network import SequenceNetwork
from stratascope.tasks.sequence.unrolling import Edit, Unrolled, UnrolledLayer, tracked, unroll

_NAN = float("nan")
_OWN = {nn.LSTM.forward, nn.GRU.forward, nn.RNN.forward}
_TRUSTED = 1e-4
"""A layer whose first pass left no larger residual need not run itself in the passes after it."""


@dataclass(frozen=True)
class RecurrentTrace:
    """What one layer and direction did in one forward pass. Padding is 0."""

    layer: str
    """The module's name and torch's suffix, `recurrent.l0` or `encoder.l0_reverse`; a cell module's name. `#1` is added for
    a second sequence that the module reads in the same pass."""
    cell: str
    """`lstm`, `gru`, `rnn_tanh`, `rnn_relu`."""
    hidden: Tensor
    """(sample, time, hidden): h_t in the time order of the input, also where the layer reads backwards."""
    state: Tensor | None
    """(sample, time, unit): c_t of an LSTM."""
    gates: dict[str, Tensor]
    """(sample, time, unit): of an LSTM `input`, `forget`, `candidate`, `output`; of a GRU `reset`, `update` (1 keeps),
    `candidate`; a plain cell has none."""
    real: Tensor
    """bool (sample, time): the steps that the module was told to take."""
    residual: float
    """The largest |unrolled - real| over the largest |real|, the worst of the output, h_n and c_n; NaN where `edit` changed it. Of a
    pass after the first one it may be that of the first."""
    weights: CellWeights
    """Those of this layer and direction."""
    steps: tuple[CellStep, ...] = ()
    """With `retain`, for each time step the tensors that the network's output was made of."""


def recurrent_modules(network: nn.Module) -> dict[str, nn.Module]:
    """The recurrent layers and cells of `network` by name. Raises DoesNotApply where it has none."""
    found = {name: module for name, module in network.named_modules() if cell_of(module) is not None}
    if not found:
        raise DoesNotApply(
            "this network has no recurrent layer: no LSTM, GRU or RNN of torch's, nor a cell of these."
        )
    return found


@contextmanager
def captured_states(
    network: SequenceNetwork, *, retain: bool = False, edit: Edit | None = None
) -> Iterator[StateRecorder]:
    """While it lasts, each forward pass leaves the traces of all recurrent layers in the recorder.

    The first pass runs the layers themselves and their unrolled form, and holds one against the other. Layers whose
    results agree are then run unrolled only, which is what goes on through the network. With `retain` or `edit` the network goes on with the unrolled output from the start: gradients by the tensors of
    `RecurrentTrace.steps` can then be asked (with gradients enabled), and what `edit` changes has its effect. The network
    must be in evaluation mode. The hooks are always removed. Raises DoesNotApply where nothing can be watched.
    """
    if not network.hookable:
        raise DoesNotApply("the layers of an exported program cannot be watched.")
    recorder = StateRecorder(retain, edit)
    modules = recurrent_modules(network.network)
    handles = [network.network.register_forward_pre_hook(lambda module, inputs: recorder.begin())]
    replaced: list[nn.Module] = []
    for name, module in modules.items():
        handles.append(module.register_forward_hook(recorder.hook(name), with_kwargs=True))
        if getattr(module.forward, "__func__", None) in _OWN:
            module.forward = recorder.forward_of(name, module)  # type: ignore[arg-type]
            replaced.append(module)
    fast_products = torch.backends.cudnn.allow_tf32
    try:
        # On graphics cards the library would round products to 10 bits, and differ from the unrolled ones by 1e-3.
        torch.backends.cudnn.allow_tf32 = False
        yield recorder
    finally:
        torch.backends.cudnn.allow_tf32 = fast_products
        for module in replaced:
            del module.forward
        for handle in handles:
            handle.remove()


class StateRecorder:
    """Collects the calls of recurrent modules in one forward pass."""

    def __init__(self, retain: bool, edit: Edit | None) -> None:
        self.retain, self.edit = retain, edit
        self._sequences: dict[str, list[_Sequence]] = {}
        self._tested: dict[str, float] = {}
        self._trusted: dict[str, float] = {}

    @property
    def replaces(self) -> bool:
        return self.retain or self.edit is not None

    def begin(self) -> None:
        """Forget what an earlier pass left; called by itself whenever the network starts."""
        self._sequences = {}
        self._trusted |= {name: worst for name, worst in self._tested.items() if worst <= _TRUSTED}

    def take(self, count: int | None = None) -> list[RecurrentTrace]:
        """The traces of the last pass, layers in the order in which they ran, and forget them.

        `count` keeps the first so many samples, where a network of a fixed batch size was given more to fill it up.
        """
        found: list[RecurrentTrace] = []
        for name, sequences in self._sequences.items():
            for number, sequence in enumerate(sequences):
                found += sequence.traces(name, f"#{number}" if number else "", count)
        self.begin()
        return found

    def hook(self, name: str) -> Any:
        """A forward hook for the module called `name`."""

        def on_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            if name in self._trusted:
                return None
            given = args[0] if args else kwargs["input"]
            initial = args[1] if len(args) > 1 else kwargs.get("hx")
            if isinstance(module, nn.RNNBase):
                return self._layer_call(name, module, given, initial, output)
            return self._cell_call(name, module, given, initial, output)

        return on_call

    def forward_of(self, name: str, module: nn.RNNBase) -> Any:
        """What stands for the `forward` of a layer called `name`: itself until it is known to agree."""
        own = module.forward

        def forward(input: Any, hx: Any = None) -> Any:
            return self._layer_call(name, module, input, hx, None) if name in self._trusted else own(input, hx)

        return forward

    def _layer_call(self, name: str, module: nn.RNNBase, given: Any, initial: Any, output: Any) -> Any:
        """Unroll one call. `output` is the module's own, None where it was not run; returns what goes on in its place."""
        inputs, lengths = _samples_first(given, module.batch_first)
        single = not isinstance(given, PackedSequence) and given.ndim == 2
        start = _pair(initial, 1 if single else None)
        sequence = self._sequence_of(name, _carries_on_layer(module, lengths), start, len(inputs))
        made = unroll(
            module, inputs, lengths, _initial(start), retain=self.retain, edit=self.edit, prefix=f"{name}." if name else "", first_step=sequence.time,
        )  # fmt: skip
        last = tuple(item for item in (made.last_hidden, made.last_state) if item is not None)
        real_last = () if output is None else _pair(output[1], 1 if single else None) or ()
        if self.edit is not None:
            sequence.judge(_NAN)
        elif output is None:
            sequence.judge(self._trusted[name])
        else:
            real = _samples_first(output[0], module.batch_first)[0]
            self._judge(name, sequence, _difference([made.output, *last], [real, *real_last], made.real))
        stays = output is not None and not self.replaces
        # The next call is given what goes on from here: the module's own values, or these.
        sequence.add(
            made, [cell_weights(module, layer.suffix) for layer in made.layers], real_last if stays else last
        )
        if stays:
            return None
        ends = tuple(item[:, 0] if single else item for item in last)
        return _shaped_as(given, made.output, module.batch_first), ends if len(ends) > 1 else ends[0]

    def _judge(self, name: str, sequence: _Sequence, residual: float) -> None:
        sequence.judge(residual)
        self._tested[name] = residual if name not in self._tested else max(residual, self._tested[name])

    def _cell_call(self, name: str, module: nn.Module, given: Tensor, initial: Any, output: Any) -> Any:
        single = given.ndim == 1
        inputs = given[None] if single else given
        start = _pair(initial, 0 if single else None)
        sequence = self._sequence_of(name, _carries_on_cell, start, len(inputs))
        weights = cell_weights(module)
        if start is None:
            sizes = (weights.outputs, weights.units)[: 2 if weights.cell == "lstm" else 1]
            start = tuple(inputs.new_zeros(len(inputs), size) for size in sizes)
        keep = tracked if self.retain else kept
        made = cell_step(weights, weights.projected(inputs), start[0], start[1] if len(start) > 1 else None, keep)
        real = _pair(output, 0 if single else None) or ()
        if self.edit is None:
            whole = [made.hidden, *([] if made.state is None else [made.state])]
            sequence.judge(_difference(whole, real, None))
        else:
            made = CellStep(*self.edit(name, sequence.time, made.hidden, made.state), made.gates)
            sequence.judge(_NAN)
        sequence.add_step(weights, made)
        going_on = [made.hidden, *([] if made.state is None else [made.state])] if self.replaces else list(real)
        sequence.last = tuple(item.detach() for item in going_on)
        if not self.replaces:
            return None
        # A copy: what the network does with it in place must not change what is kept.
        ends = [item[0].clone() if single else item.clone() for item in going_on]
        return tuple(ends) if isinstance(output, tuple) else ends[0]

    def _sequence_of(self, name: str, carries_on: Any, start: tuple[Tensor, ...] | None, count: int) -> _Sequence:
        """The sequence that this call goes on with, or a new one."""
        known = self._sequences.setdefault(name, [])
        if not known or start is None or known[-1].count != count or not carries_on(known[-1], start):
            first = None if start is None else tuple(item.detach() for item in start)
            known.append(_Sequence(count, first))
        return known[-1]


@dataclass
class _Sequence:
    """Calls of one module that follow one another in time."""

    count: int
    first: tuple[Tensor, ...] | None
    """What the first call was given to start from."""
    calls: list[Unrolled] = field(default_factory=list)
    weights: list[CellWeights] = field(default_factory=list)
    """Of each layer and direction."""
    steps: list[CellStep] = field(default_factory=list)
    """Of a cell module."""
    last: tuple[Tensor, ...] = ()
    """What the network was given by the last call to go on with: h_n, and an LSTM's c_n."""
    residual: float = 0.0
    whole: bool = True
    """Whether all steps of all calls are real."""

    @property
    def time(self) -> int:
        return len(self.steps) + sum(call.output.shape[1] for call in self.calls)

    def judge(self, residual: float) -> None:
        """Keep the worst of the calls' residuals; one that is not known makes the whole unknown."""
        self.residual = residual if residual != residual or residual > self.residual else self.residual

    def add(self, made: Unrolled, weights: list[CellWeights], last: tuple[Tensor, ...]) -> None:
        self.calls.append(made)
        self.weights = weights
        self.last = tuple(item.detach() for item in last)
        self.whole = self.whole and bool(made.real.all())

    def add_step(self, weights: CellWeights, made: CellStep) -> None:
        self.weights = [weights]
        self.steps.append(made)

    def traces(self, name: str, number: str, count: int | None) -> Iterator[RecurrentTrace]:
        if self.steps:
            real = torch.ones(self.count, len(self.steps), dtype=torch.bool, device=self.steps[0].hidden.device)
            states = [step.state for step in self.steps if step.state is not None]
            cell = self.weights[0].cell
            yield RecurrentTrace(
                f"{name}{number}",
                cell,
                torch.stack([step.hidden for step in self.steps], 1)[:count],
                torch.stack(states, 1)[:count] if states else None,
                {gate: torch.stack([step.gates[gate] for step in self.steps], 1)[:count] for gate in GATES[cell]},
                real[:count],
                self.residual,
                self.weights[0],
                tuple(self.steps) if self.steps[0].hidden.requires_grad else (),
            )
            return
        real = _joined([call.real for call in self.calls])
        for place, layer in enumerate(self.calls[0].layers):
            parts: list[UnrolledLayer] = [call.layers[place] for call in self.calls]
            states = [part.state for part in parts if part.state is not None]
            yield RecurrentTrace(
                f"{name}.{layer.suffix}{number}" if name else f"{layer.suffix}{number}",
                layer.cell,
                _joined([part.hidden for part in parts])[:count],
                _joined(states)[:count] if states else None,
                {gate: _joined([part.gates[gate] for part in parts])[:count] for gate in layer.gates},
                real[:count],
                self.residual,
                self.weights[place],
                tuple(step for part in parts for step in part.steps),
            )


def _initial(start: tuple[Tensor, ...] | None) -> Tensor | tuple[Tensor, Tensor] | None:
    """As `unroll` takes it."""
    return start if start is None else start[0] if len(start) == 1 else (start[0], start[1])


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _carries_on_layer(module: nn.RNNBase, lengths: Tensor | None) -> Any:
    """Whether a call starts from where the one before ended. A layer that reads backwards too never does."""

    def answer(before: _Sequence, start: tuple[Tensor, ...]) -> bool:
        if module.bidirectional or lengths is not None or not before.whole or len(before.last) != len(start):
            return False
        return all(torch.equal(one, other) for one, other in zip(before.last, start, strict=True))

    return answer


def _carries_on_cell(before: _Sequence, start: tuple[Tensor, ...]) -> bool:
    """Whether a step belongs to the sequence before it: a loop may change the state between two steps (a mask, a norm),
    so it does unless it starts from zeros, or from where that sequence started, and not from its end."""
    if all(torch.equal(one, other) for one, other in zip(before.last, start, strict=True)):
        return True
    if not any(bool(item.any()) for item in start):
        return False
    return before.first is None or not all(
        torch.equal(one, other) for one, other in zip(before.first, start, strict=True)
    )


def _samples_first(values: Tensor | PackedSequence, batch_first: bool) -> tuple[Tensor, Tensor | None]:
    """(sample, time, feature) in the caller's order of samples, and their lengths where `values` are packed."""
    if isinstance(values, PackedSequence):
        return pad_packed_sequence(values, batch_first=True)
    if values.ndim == 2:
        return values[None], None
    return values if batch_first else values.transpose(0, 1), None


def _pair(given: Any, sample_axis: int | None) -> tuple[Tensor, ...] | None:
    """(h,) or (h, c), with a sample axis put in where `sample_axis` says that it is missing."""
    if given is None:
        return None
    items = tuple(given) if isinstance(given, tuple | list) else (given,)
    return items if sample_axis is None else tuple(item.unsqueeze(sample_axis) for item in items)


@torch.no_grad()
def _difference(made: list[Tensor], real: Any, mask: Tensor | None) -> float:
    """The worst of max |made - real| / max |real| over outputs; the first counts where `mask` (sample, time) is true."""
    worst = 0.0
    for place, (one, other) in enumerate(zip(made, real, strict=True)):
        if place == 0 and mask is not None:
            one, other = one[mask], other[mask]
        if not other.numel():
            continue
        gap, size = float((one - other).abs().max()), float(other.abs().max())
        gap = gap / size if size > 0 else gap
        # `max` would pass over a NaN that does not stand first.
        worst = gap if gap != gap or gap > worst else worst
    return worst


def _shaped_as(given: Tensor | PackedSequence, output: Tensor, batch_first: bool) -> Tensor | PackedSequence:
    """`output` (sample, time, hidden) in the form in which a layer answers to `given`."""
    if isinstance(given, PackedSequence):
        lengths = pad_packed_sequence(given, batch_first=True)[1]
        if given.sorted_indices is not None:
            output, lengths = output[given.sorted_indices], lengths[given.sorted_indices.cpu()]
        data = pack_padded_sequence(output, lengths, batch_first=True).data
        return PackedSequence(data, given.batch_sizes, given.sorted_indices, given.unsorted_indices)
    if given.ndim == 2:
        return output[0]
    return output if batch_first else output.transpose(0, 1)
