"""A recurrent layer of torch's taken apart into its steps: every gate, cell and hidden state of all layers and directions.

`nn.LSTM` and its kin return the hidden states of their top layer and nothing else; here the same equations run with the
module's own weights. Dropout between layers is left out, as in evaluation mode.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stratascope.tasks.sequence.recurrent_cells import (
    GATES,
    CellStep,
    CellWeights,
    cell_step,
    cell_step_in_place,
    cell_weights,
    kept,
    layer_suffixes,
)

Edit = Callable[[str, int, Tensor, Tensor | None], tuple[Tensor, Tensor | None]]
"""edit(layer, step, h_t, c_t) → (h_t, c_t), each (sample, unit) in the order of the inputs. `step` is the place in the
input, also where a layer reads backwards; samples that have ended by then are ignored. What it returns goes on."""


@dataclass(frozen=True)
class UnrolledLayer:
    """One layer and direction. Time runs as in the input, also for the reverse direction; padding is 0."""

    suffix: str
    """torch's: `l0`, `l0_reverse`."""
    cell: str
    hidden: Tensor
    """(sample, time, hidden)."""
    state: Tensor | None
    """(sample, time, unit): c_t, of an LSTM only."""
    gates: dict[str, Tensor]
    """(sample, time, unit) by name."""
    last_hidden: Tensor
    """(sample, hidden): h after the last real step, or after the first one where the layer reads backwards."""
    last_state: Tensor | None
    steps: tuple[CellStep, ...] = ()
    """With `retain`: for each time step the very tensors that the later steps are made of, (sample, unit) each. A
    gradient by one of them is one by h_t, by c_t or by a gate."""


@dataclass(frozen=True)
class Unrolled:
    """What `unroll` gives."""

    layers: tuple[UnrolledLayer, ...]
    output: Tensor
    """(sample, time, direction · hidden): as the module's own, padding 0."""
    real: Tensor
    """bool (sample, time)."""

    @property
    def last_hidden(self) -> Tensor:
        """(layer · direction, sample, hidden), as torch's h_n."""
        return torch.stack([layer.last_hidden for layer in self.layers])

    @property
    def last_state(self) -> Tensor | None:
        """(layer · direction, sample, unit), as torch's c_n; None but for an LSTM."""
        found = [layer.last_state for layer in self.layers if layer.last_state is not None]
        return torch.stack(found) if found else None


def unroll(
    module: nn.RNNBase,
    inputs: Tensor,
    lengths: Tensor | None = None,
    initial: Tensor | tuple[Tensor, Tensor] | None = None,
    *,
    retain: bool = False,
    edit: Edit | None = None,
    prefix: str = "",
    first_step: int = 0,
) -> Unrolled:
    """Run `module` over `inputs` (sample, time, feature), whatever its `batch_first` says.

    `lengths` int (sample,) are the real steps of each sample, as a packed sequence has them; None: all are real.
    `initial` is h_0 (layer · direction, sample, hidden), for an LSTM (h_0, c_0); None: zeros. `retain` keeps every step's
    tensors and makes sure that gradients by them can be asked. `edit` may change h_t and c_t; it is told the layer as
    `prefix` and suffix, and the step counted from `first_step`. A gradient flows to inputs, initial states and weights
    wherever torch is asked to keep one.
    """
    count, time = inputs.shape[:2]
    device = inputs.device
    size = torch.full((count,), time) if lengths is None else lengths.cpu()
    real = torch.arange(time)[None] < size[:, None]
    given = (initial, None) if isinstance(initial, Tensor) else (initial or (None, None))
    suffixes = layer_suffixes(module)
    directions = 2 if module.bidirectional else 1
    found: list[UnrolledLayer] = []
    below = inputs
    for place, suffix in enumerate(suffixes):
        weights = cell_weights(module, suffix)
        hidden = _start(given[0], place, below, weights.outputs)
        state = _start(given[1], place, below, weights.units) if weights.cell == "lstm" else None
        run = _Run(weights, suffix, below, size, real.to(device), hidden, state)
        if retain or edit is not None or run.carries_gradient():
            named = f"{prefix}{suffix}"
            whole = None if edit is None else _placed(edit, named, first_step)
            found.append(run.with_gradient(retain, whole))
        else:
            found.append(run.in_place())
        if (place + 1) % directions == 0:
            below = torch.cat([layer.hidden for layer in found[-directions:]], -1) if directions > 1 else found[-1].hidden  # fmt: skip
    return Unrolled(tuple(found), below, real.to(device))


def _start(given: Tensor | None, place: int, like: Tensor, units: int) -> Tensor:
    return like.new_zeros(len(like), units) if given is None else given[place]


_StepEdit = Callable[[int, CellStep], CellStep]


def _placed(edit: Edit, layer: str, first_step: int) -> _StepEdit:
    def change(step: int, made: CellStep) -> CellStep:
        hidden, state = edit(layer, first_step + step, made.hidden, made.state)
        return CellStep(hidden, state, made.gates)

    return change


@dataclass(frozen=True)
class _Run:
    """One layer and direction over one batch."""

    weights: CellWeights
    suffix: str
    inputs: Tensor
    """(sample, time, feature)."""
    lengths: Tensor
    real: Tensor
    hidden: Tensor
    state: Tensor | None

    @property
    def _order(self) -> Sequence[int]:
        steps = range(self.inputs.shape[1])
        return steps[::-1] if self.suffix.endswith("_reverse") else steps

    def carries_gradient(self) -> bool:
        if not torch.is_grad_enabled():
            return False
        given = [self.inputs, self.hidden, *([] if self.state is None else [self.state])]
        return any(item.requires_grad for item in given) or self.weights.carries_gradient()

    def with_gradient(self, retain: bool, edit: _StepEdit | None) -> UnrolledLayer:
        """Every step makes new tensors; samples that have ended keep what they had."""
        projected = self.weights.projected(self.inputs).unbind(1)
        hidden, state = self.hidden, self.state
        whole = bool(self.real.all())
        made: dict[int, CellStep] = {}
        for time in self._order:
            step = cell_step(self.weights, projected[time], hidden, state, tracked if retain else kept)
            if edit is not None:
                step = edit(time, step)
            made[time] = step
            active = self.real[:, time, None]
            hidden = step.hidden if whole else torch.where(active, step.hidden, hidden)
            if state is not None:
                assert step.state is not None
                state = step.state if whole else torch.where(active, step.state, state)
        steps = tuple(made[time] for time in range(len(projected)))
        padding = None if whole else ~self.real[:, :, None]
        return UnrolledLayer(
            self.suffix,
            self.weights.cell,
            _stacked([step.hidden for step in steps], padding),
            None if state is None else _stacked([step.state for step in steps if step.state is not None], padding),
            {name: _stacked([step.gates[name] for step in steps], padding) for name in GATES[self.weights.cell]},
            hidden,
            state,
            steps if retain else (),
        )

    def in_place(self) -> UnrolledLayer:
        """Everything is written into arrays (time, sample, …) that are made once.

        Samples stand by falling length, so that those at work at a step are the first so many.
        """
        order = None
        if bool((self.lengths[1:] > self.lengths[:-1]).any()):
            order = torch.argsort(self.lengths, descending=True, stable=True).to(self.inputs.device)
        inputs, hidden, state = (
            self.inputs,
            self.hidden.clone(),
            None if self.state is None else self.state.clone(),
        )
        if order is not None:
            inputs, hidden = inputs[order], hidden[order]
            state = None if state is None else state[order]
        # A product of a strided view is split into one a sample: the copy costs less.
        gates = self.weights.projected(inputs.transpose(0, 1).contiguous())
        time, count = gates.shape[:2]
        active = self.real.sum(0).tolist()
        hiddens = gates.new_zeros(time, count, self.weights.outputs)
        states = None if state is None else gates.new_zeros(time, count, self.weights.units)
        scratch = gates.new_empty(count, self.weights.units)
        for step in self._order:
            size = active[step]
            own = None if state is None else state[:size]
            cell_step_in_place(self.weights, gates[step, :size], hidden[:size], own, scratch[:size])
            hiddens[step, :size] = hidden[:size]
            if states is not None:
                assert own is not None
                states[step, :size] = own
            if size < count:
                gates[step, size:] = 0
        names = GATES[self.weights.cell]
        parts = dict(zip(names, gates.chunk(len(names), -1), strict=True)) if names else {}
        back = None if order is None else torch.argsort(order)
        return UnrolledLayer(
            self.suffix,
            self.weights.cell,
            _sample_first(hiddens, back),
            None if states is None else _sample_first(states, back),
            {name: _sample_first(part, back) for name, part in parts.items()},
            hidden if back is None else hidden[back],
            state if back is None or state is None else state[back],
        )


def tracked(values: Tensor) -> Tensor:
    """`values`, such that a gradient by them can be asked though nothing before them carries one."""
    return values if values.requires_grad else values.detach().requires_grad_()


def _stacked(steps: list[Tensor], padding: Tensor | None) -> Tensor:
    whole = torch.stack(steps, 1)
    return whole if padding is None else whole.masked_fill(padding, 0)


def _sample_first(values: Tensor, order: Tensor | None) -> Tensor:
    values = values.transpose(0, 1)
    return values if order is None else values[order]
