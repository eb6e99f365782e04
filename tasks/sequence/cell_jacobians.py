"""How a recurrent state depends on itself some steps before: the gates alone, and the whole derivative.

The gates' product is one path only, the one along the cell. The whole ∂c_T/∂c_t also counts how c_t reaches c_T over the
hidden state and the gates of the steps between (Hochreiter and Schmidhuber 1997, appendix; Pascanu et al. 2013, section 2).
Inputs of the layer are held as they are, also where another module feeds the state back into them.

Tensors run from the last step backwards: place `lag` holds the step `lag` steps before the last one.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

_ROUNDS, _BLOCK = 5, 8
"""Of power iteration, and how many changes are followed at once."""


@dataclass
class CellSteps:
    """What one layer did at the steps of some samples, the last step first."""

    cell: str
    """"lstm", "gru", "rnn_tanh" or "rnn_relu"."""
    hidden: Tensor
    """(sample, lag, unit) h_t."""
    gates: dict[str, Tensor]
    """(sample, lag, unit) by name."""
    weight: Tensor
    """(gate · unit, unit): the recurrent weights, as torch orders them."""
    state: Tensor | None = None
    """(sample, lag, unit) c_t of an LSTM."""
    projection: Tensor | None = None
    """(projected unit, unit) where the LSTM projects its hidden state."""
    bias: Tensor | None = None
    """(gate · unit,): the recurrent bias; a GRU's derivative needs it."""
    _slopes: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self._slopes = _slopes_of(self)

    @property
    def width(self) -> int:
        """Units of the state that is followed: of c_t, else of h_t."""
        return int((self.hidden if self.state is None else self.state).shape[-1])

    @property
    def lags(self) -> int:
        return int(self.hidden.shape[1])

    def kept(self) -> Tensor | None:
        """(sample, lag, unit): what the gate keeps of the state before; None where there is no such gate."""
        return self.gates.get("forget" if self.cell == "lstm" else "update")

    def pulled_back(self, rows: Tensor, lag: int) -> Tensor:
        """Rows (sample, k, joint) of a derivative by the joint state at `lag`, taken on to the joint state before it."""
        slope = {name: value[:, lag, None] for name, value in self._slopes.items()}
        if self.cell != "lstm":
            found = torch.zeros_like(rows)
            for name, block in self._blocks():
                found = found + (rows * slope[name]) @ block
            return found if "direct" not in slope else found + rows * slope["direct"]
        hidden, state = rows.split([rows.shape[-1] - self.width, self.width], dim=-1)
        outgoing = hidden if self.projection is None else hidden @ self.projection
        by_state = state + outgoing * slope["read"]
        back = (outgoing * slope["output"]) @ self._block(3)
        for place, name in enumerate(("input", "forget", "candidate")):
            back = back + (by_state * slope[name]) @ self._block(place)
        return torch.cat([back, by_state * slope["direct"]], dim=-1)

    def pushed_on(self, columns: Tensor, lag: int) -> Tensor:
        """Columns (sample, k, joint): a change of the joint state before `lag`, taken on to that at `lag`."""
        slope = {name: value[:, lag, None] for name, value in self._slopes.items()}
        if self.cell != "lstm":
            found = sum((columns @ block.T) * slope[name] for name, block in self._blocks())
            assert isinstance(found, Tensor)
            return found if "direct" not in slope else found + columns * slope["direct"]
        hidden, state = columns.split([columns.shape[-1] - self.width, self.width], dim=-1)
        change = state * slope["direct"]
        for place, name in enumerate(("input", "forget", "candidate")):
            change = change + (hidden @ self._block(place).T) * slope[name]
        outgoing = (hidden @ self._block(3).T) * slope["output"] + change * slope["read"]
        return torch.cat([outgoing if self.projection is None else outgoing @ self.projection.T, change], dim=-1)

    def entered(self, columns: Tensor, lag: int) -> Tensor:
        """A change (sample, k, unit) of the followed state at `lag` as one of the joint state: c_t changes h_t too."""
        if self.cell != "lstm":
            return columns
        outgoing = columns * self._slopes["read"][:, lag, None]
        return torch.cat([outgoing if self.projection is None else outgoing @ self.projection.T, columns], dim=-1)

    def left(self, rows: Tensor, lag: int) -> Tensor:
        """Rows (sample, k, joint) at `lag` as rows (sample, k, unit) by the followed state: the adjoint of `entered`."""
        if self.cell != "lstm":
            return rows
        hidden, state = rows.split([rows.shape[-1] - self.width, self.width], dim=-1)
        outgoing = hidden if self.projection is None else hidden @ self.projection
        return state + outgoing * self._slopes["read"][:, lag, None]

    def _block(self, place: int) -> Tensor:
        size = self.width
        return self.weight[place * size : (place + 1) * size]

    def _blocks(self) -> list[tuple[str, Tensor]]:
        names = ("reset", "update", "candidate") if self.cell == "gru" else ("hidden",)
        return [(name, self._block(place)) for place, name in enumerate(names)]


def _slopes_of(steps: CellSteps) -> dict[str, Tensor]:
    """(sample, lag, unit): by how much the new state changes with what each gate's weights add to, with the old state
    directly (`direct`), and h_t with c_t (`read`). The state before the first step is zero, or as good as unknown."""
    gate = steps.gates
    if steps.cell == "lstm":
        assert steps.state is not None
        squashed = torch.tanh(steps.state)
        before = _before(steps.state)
        return {
            "input": gate["candidate"] * gate["input"] * (1 - gate["input"]),
            "forget": before * gate["forget"] * (1 - gate["forget"]),
            "candidate": gate["input"] * (1 - gate["candidate"] ** 2),
            "output": squashed * gate["output"] * (1 - gate["output"]),
            "read": gate["output"] * (1 - squashed**2),
            "direct": gate["forget"],
        }
    if steps.cell == "gru":
        before = _before(steps.hidden)
        size = steps.width
        inner = before @ steps.weight[2 * size :].T
        if steps.bias is not None:
            inner = inner + steps.bias[2 * size :]
        new = (1 - gate["update"]) * (1 - gate["candidate"] ** 2)
        return {
            "reset": new * inner * gate["reset"] * (1 - gate["reset"]),
            "update": (before - gate["candidate"]) * gate["update"] * (1 - gate["update"]),
            "candidate": new * gate["reset"],
            "direct": gate["update"],
        }
    slope = 1 - steps.hidden**2 if steps.cell == "rnn_tanh" else (steps.hidden > 0).to(steps.hidden.dtype)
    return {"hidden": slope}


def _before(values: Tensor) -> Tensor:
    return torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)


def direct_paths(steps: CellSteps) -> Tensor | None:
    """(sample, lag, unit): the product of what the gates keep from each step to the last; 1 at lag 0. None without gates.

    Of an LSTM ∏ f, of a GRU ∏ z in torch's sense, where 1 keeps. It is ∂c_T/∂c_t where no gate looks at the state.
    """
    kept = steps.kept()
    if kept is None:
        return None
    # The gate of the step that is reached counts, that of the step where one starts does not.
    shifted = torch.cat([torch.ones_like(kept[:, :1]), kept[:, :-1]], dim=1)
    return shifted.double().cumprod(1)


def full_jacobians(steps: CellSteps, lags: list[int]) -> Tensor:
    """(sample, lag, unit at the end, unit before): the whole ∂c_T/∂c_t (∂h_T/∂h_t without a cell state) at `lags`.

    Exact, by the recursion over single steps. Time grows as unit³ · lag, memory as unit² · lag of `lags`.
    """
    rows = torch.eye(steps.width, dtype=steps.hidden.dtype, device=steps.hidden.device)
    return pulled_rows(steps, rows.expand(len(steps.hidden), -1, -1), lags)


def pulled_rows(steps: CellSteps, rows: Tensor, lags: list[int]) -> Tensor:
    """(sample, lag, k, unit): `rows` (sample, k, unit) times the whole derivative of the last state by that at `lags`."""
    if steps.cell == "lstm":
        joint = torch.zeros((*rows.shape[:2], steps.hidden.shape[-1]), dtype=rows.dtype, device=rows.device)
        current = torch.cat([joint, rows], dim=-1)
    else:
        current = rows
    found: dict[int, Tensor] = {}
    wanted = set(lags)
    for lag in range(max(wanted) + 1):
        if lag:
            current = steps.pulled_back(current, lag - 1)
        if lag in wanted:
            # At lag 0 the state is the one that is asked for: it does not reach itself over the hidden state.
            found[lag] = steps.left(current, lag) if lag else rows
    return torch.stack([found[lag] for lag in lags], dim=1)


def spectral_norms(steps: CellSteps, lags: list[int], rounds: int = _ROUNDS, seed: int = 0) -> Tensor:
    """(sample, lag): the largest singular value of the whole derivative at `lags`; never above it.

    Power iteration of a block of eight orthogonal changes (Halko et al. 2011, algorithm 4.4), the same start for all
    samples, drawn from `seed`.
    """
    generator = torch.Generator().manual_seed(seed)
    start = torch.randn(steps.width, min(_BLOCK, steps.width), generator=generator, dtype=torch.float64)
    start = torch.linalg.qr(start)[0].T.to(steps.hidden).expand(len(steps.hidden), -1, -1)
    found = []
    for lag in lags:
        columns = start
        for _ in range(rounds):
            rows = torch.linalg.qr(_pushed(steps, columns, lag).mT)[0].mT
            columns = torch.linalg.qr(pulled_rows(steps, rows.contiguous(), [lag])[:, 0].mT)[0].mT.contiguous()
        found.append(torch.linalg.svdvals(_pushed(steps, columns, lag))[..., 0])
    return torch.stack(found, dim=1)


def _pushed(steps: CellSteps, columns: Tensor, lag: int) -> Tensor:
    """(sample, k, unit): what changes `columns` of the state at `lag` make of the last state."""
    if not lag:
        return columns
    current = steps.entered(columns, lag)
    for place in range(lag - 1, -1, -1):
        current = steps.pushed_on(current, place)
    return current[..., -steps.width :]


@dataclass(frozen=True)
class StateJacobian:
    """How much of a change of the state is left `lag` steps later, in the best case and on average."""

    lags: list[int]
    full_largest: Tensor
    """float64 (sample, lag): the largest singular value of the whole derivative."""
    full_typical: Tensor
    """float64 (sample, lag): the root mean square of its singular values."""
    direct_largest: Tensor | None
    """float64 (sample, lag): the same of the gates' product; None where there are no gates."""
    direct_typical: Tensor | None
    exact: bool
    """False where norms come from power iteration and from random rows."""


def state_jacobian(steps: CellSteps, lags: list[int], exact_units: int = 160, seed: int = 0) -> StateJacobian:
    """Norms of the derivative of the last state by that at `lags`, whole and direct.

    Up to `exact_units` units all singular values are computed; beyond, the largest by power iteration and their mean
    square from 32 random rows (Hutchinson 1990).
    """
    exact = steps.width <= exact_units
    if exact:
        values = torch.linalg.svdvals(full_jacobians(steps, lags).double())
        largest, typical = values[..., 0], values.square().mean(-1).sqrt()
    else:
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(32, steps.width, generator=generator, dtype=torch.float64).to(steps.hidden)
        pulled = pulled_rows(steps, rows.expand(len(steps.hidden), -1, -1), lags).double()
        typical = pulled.square().sum((-1, -2)).div(len(rows) * steps.width).sqrt()
        largest = spectral_norms(steps, lags, seed=seed).double()
    direct = direct_paths(steps)
    chosen = None if direct is None else direct[:, lags]
    return StateJacobian(
        lags, largest, typical, None if chosen is None else chosen.amax(-1),
        None if chosen is None else chosen.square().mean(-1).sqrt(), exact,
    )  # fmt: skip
