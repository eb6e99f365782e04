"""The equations of torch's recurrent cells, one step at a time, with every gate in the open.

LSTM: Hochreiter and Schmidhuber 1997 with the forget gate of Gers et al. 2000, as in `torch.nn.LSTM`; GRU: Cho et al.
2014 in torch's form, whose reset gate acts after the matrix product and whose update gate keeps where it is 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

GATES: dict[str, tuple[str, ...]] = {
    "lstm": ("input", "forget", "candidate", "output"),
    "gru": ("reset", "update", "candidate"),
    "rnn_tanh": (),
    "rnn_relu": (),
}
"""Names of the gates of each cell, in the order of the rows of torch's weights."""

SQUASHED = ("input", "forget", "output", "reset", "update")
"""Gates between 0 and 1; a candidate lies between -1 and 1."""


def kept(values: Tensor) -> Tensor:
    """`values` as they are: what `cell_step` does with every value where nothing is asked of it."""
    return values


@dataclass(frozen=True)
class CellWeights:
    """The weights of one layer and direction."""

    cell: str
    input: Tensor
    """(gate · unit, feature)."""
    recurrent: Tensor
    """(gate · unit, hidden)."""
    input_bias: Tensor | None = None
    recurrent_bias: Tensor | None = None
    projection: Tensor | None = None
    """(hidden, unit) where an LSTM projects its output."""

    @property
    def units(self) -> int:
        """How many units the gates and the cell state have."""
        return len(self.input) // max(1, len(GATES[self.cell]))

    @property
    def outputs(self) -> int:
        """How many the hidden state has."""
        return self.recurrent.shape[1]

    @property
    def blocks(self) -> dict[str, Tensor]:
        """The recurrent weights (unit, hidden) by gate; those of a plain cell are called `candidate`."""
        names = GATES[self.cell] or ("candidate",)
        return dict(zip(names, self.recurrent.chunk(len(names)), strict=True))

    def carries_gradient(self) -> bool:
        every = (self.input, self.recurrent, self.input_bias, self.recurrent_bias, self.projection)
        return any(item is not None and item.requires_grad for item in every)

    def projected(self, inputs: Tensor) -> Tensor:
        """What `inputs` (…, feature) and the biases give the gates (…, gate · unit), in one product.

        The recurrent bias of a GRU's candidate is left out: the reset gate acts on it.
        """
        bias = self.input_bias
        if bias is not None and self.recurrent_bias is not None:
            other = self.recurrent_bias
            if self.cell == "gru":
                other = torch.cat([other[: 2 * self.units], torch.zeros_like(other[2 * self.units :])])
            bias = bias + other
        return functional.linear(inputs, self.input, bias)


@dataclass(frozen=True)
class CellStep:
    """What one step gives, each (sample, unit); `state` is an LSTM's c_t."""

    hidden: Tensor
    state: Tensor | None
    gates: dict[str, Tensor]


def cell_of(module: nn.Module) -> str | None:
    """`lstm`, `gru`, `rnn_tanh` or `rnn_relu`; None for a module that is no recurrent layer of torch's."""
    if isinstance(module, nn.RNNBase):
        return module.mode.lower()
    if isinstance(module, nn.LSTMCell):
        return "lstm"
    if isinstance(module, nn.GRUCell):
        return "gru"
    return f"rnn_{module.nonlinearity}" if isinstance(module, nn.RNNCell) else None


def layer_suffixes(module: nn.Module) -> tuple[str, ...]:
    """torch's own names of a module's layers and directions, `l0`, `l0_reverse`, …; ("",) for a cell module."""
    if not isinstance(module, nn.RNNBase):
        return ("",)
    directions = ("", "_reverse") if module.bidirectional else ("",)
    return tuple(f"l{layer}{direction}" for layer in range(module.num_layers) for direction in directions)


def cell_weights(module: nn.Module, suffix: str = "") -> CellWeights:
    """The weights of one layer and direction of `module`, live: a gradient by them is one by the module's own."""
    cell = cell_of(module)
    assert cell is not None
    end = f"_{suffix}" if suffix else ""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    found = [getattr(module, f"{name}{end}", None) for name in names]
    return CellWeights(cell, *found)  # type: ignore[arg-type]


def cell_step(
    weights: CellWeights,
    projected: Tensor,
    hidden: Tensor,
    state: Tensor | None,
    keep: Callable[[Tensor], Tensor] = kept,
) -> CellStep:
    """One step from h_(t-1) `hidden` (sample, hidden) and, for an LSTM, c_(t-1) `state` (sample, unit).

    `projected` (sample, gate · unit) is `weights.projected` of x_t. Every gate, c_t and h_t goes through `keep` before
    anything is made of it, so that what it returns is on the way of the gradient.
    """
    if weights.cell == "lstm":
        assert state is not None
        total = projected + functional.linear(hidden, weights.recurrent)
        names = GATES["lstm"]
        squash = (torch.sigmoid, torch.sigmoid, torch.tanh, torch.sigmoid)
        parts = zip(names, squash, total.chunk(4, -1), strict=True)
        gates = {name: keep(function(part)) for name, function, part in parts}
        state = keep(gates["forget"] * state + gates["input"] * gates["candidate"])
        output = gates["output"] * torch.tanh(state)
        if weights.projection is not None:
            output = functional.linear(output, weights.projection)
        return CellStep(keep(output), state, gates)
    again = functional.linear(hidden, weights.recurrent)
    if weights.cell == "gru":
        units = weights.units
        squashed = torch.sigmoid(projected[..., : 2 * units] + again[..., : 2 * units])
        reset, update = (keep(part) for part in squashed.chunk(2, -1))
        inner = again[..., 2 * units :]
        if weights.recurrent_bias is not None:
            inner = inner + weights.recurrent_bias[2 * units :]
        candidate = keep(torch.tanh(projected[..., 2 * units :] + reset * inner))
        gates = {"reset": reset, "update": update, "candidate": candidate}
        return CellStep(keep(candidate + update * (hidden - candidate)), None, gates)
    total = projected + again
    return CellStep(keep(torch.tanh(total) if weights.cell == "rnn_tanh" else torch.relu(total)), None, {})


def cell_step_in_place(
    weights: CellWeights, projected: Tensor, hidden: Tensor, state: Tensor | None, scratch: Tensor
) -> None:
    """As `cell_step` without a gradient: `projected` becomes the gates, `hidden` h_t and `state` c_t.

    `scratch` (sample, unit) is overwritten; it saves an allocation at every step.
    """
    units = weights.units
    if weights.cell == "lstm":
        assert state is not None
        projected.addmm_(hidden, weights.recurrent.t())
        enter, forget, candidate, output = projected.chunk(4, -1)
        projected[:, : 2 * units].sigmoid_()
        candidate.tanh_()
        output.sigmoid_()
        state.mul_(forget).addcmul_(enter, candidate)
        torch.tanh(state, out=scratch)
        if weights.projection is None:
            torch.mul(output, scratch, out=hidden)
        else:
            torch.mm(scratch.mul_(output), weights.projection.t(), out=hidden)
        return
    if weights.cell == "gru":
        projected[:, : 2 * units].addmm_(hidden, weights.recurrent[: 2 * units].t()).sigmoid_()
        reset, update, candidate = projected.chunk(3, -1)
        torch.mm(hidden, weights.recurrent[2 * units :].t(), out=scratch)
        if weights.recurrent_bias is not None:
            scratch.add_(weights.recurrent_bias[2 * units :])
        candidate.addcmul_(reset, scratch).tanh_()
        hidden.sub_(candidate).mul_(update).add_(candidate)
        return
    projected.addmm_(hidden, weights.recurrent.t())
    hidden.copy_(projected.tanh_() if weights.cell == "rnn_tanh" else projected.relu_())
