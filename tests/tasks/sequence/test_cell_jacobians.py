"""Derivatives of a recurrent state by itself some steps before, against automatic differentiation and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stratascope.tasks.sequence.cell_jacobians import (
    CellSteps,
    direct_paths,
    full_jacobians,
    pulled_rows,
    spectral_norms,
    state_jacobian,
)


def drawn(cell: str, units: int = 6, time: int = 9, samples: int = 2, projected: int | None = None, seed: int = 0):
    """A random layer's weights, its inputs to the gates, and its states (sample, time, unit) one by one in a graph."""
    torch.manual_seed(seed)
    outputs = projected or units
    blocks = {"lstm": 4, "gru": 3}.get(cell, 1)
    weight = torch.randn(blocks * units, outputs, dtype=torch.float64) * 0.7
    bias = torch.randn(blocks * units, dtype=torch.float64) * 0.5
    projection = torch.randn(projected, units, dtype=torch.float64) * 0.6 if projected else None
    given = torch.randn(samples, time, blocks * units, dtype=torch.float64)
    return weight, bias, projection, given


def run(cell, weight, bias, projection, given, detached=False):
    """The textbook equations; states and gates by step, all in one graph. `detached` cuts gates off from the state."""
    units = given.shape[-1] // {"lstm": 4, "gru": 3}.get(cell, 1)
    hidden = given.new_zeros(len(given), weight.shape[1])
    state = given.new_zeros(len(given), units)
    states, hiddens, gates = [], [], []
    for time in range(given.shape[1]):
        again = (hidden.detach() if detached else hidden) @ weight.T
        if cell == "lstm":
            total = given[:, time] + again + bias
            i, f, g, o = total.chunk(4, -1)
            i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
            state = f * state + i * g
            hidden = o * state.tanh()
            hidden = hidden if projection is None else hidden @ projection.T
            gates.append({"input": i, "forget": f, "candidate": g, "output": o})
        elif cell == "gru":
            a, b = given[:, time].chunk(3, -1), (again + bias).chunk(3, -1)
            r, z = (a[0] + b[0]).sigmoid(), (a[1] + b[1]).sigmoid()
            n = (a[2] + r * b[2]).tanh()
            hidden = (1 - z) * n + z * hidden
            gates.append({"reset": r, "update": z, "candidate": n})
        else:
            total = given[:, time] + again + bias
            hidden = total.tanh() if cell == "rnn_tanh" else total.relu()
            gates.append({})
        if not hidden.requires_grad:
            hidden = hidden.requires_grad_()
        states.append(state)
        hiddens.append(hidden)
    return states, hiddens, gates


def steps_of(cell, weight, bias, projection, states, hiddens, gates) -> CellSteps:
    back = lambda items: torch.stack(items[::-1], 1).detach()  # noqa: E731
    named = {name: back([step[name] for step in gates]) for name in gates[0]}
    return CellSteps(
        cell, back(hiddens), named, weight, back(states) if cell == "lstm" else None, projection, bias
    )


def by_autograd(cell, weight, bias, projection, given, lag: int) -> torch.Tensor:
    """(unit at the end, unit before) of the first sample, by differentiating the run from the state `lag` steps back on."""
    states, hiddens, _ = run(cell, weight, bias, projection, given[:1])
    start = given.shape[1] - 1 - lag

    def rest(followed: torch.Tensor) -> torch.Tensor:
        if cell == "lstm":
            units = len(followed)
            forget = (given[:1, start, 3 * units :] + bias[3 * units :]).sigmoid()
            if start:
                forget = (given[:1, start, 3 * units :] + hiddens[start - 1] @ weight[3 * units :].T + bias[3 * units :]).sigmoid()  # fmt: skip
            hidden = forget * followed[None].tanh()
            hidden = hidden if projection is None else hidden @ projection.T
            state = followed[None]
        else:
            hidden, state = followed[None], None
        for time in range(start + 1, given.shape[1]):
            again = hidden @ weight.T
            if cell == "lstm":
                i, f, g, o = (given[:1, time] + again + bias).chunk(4, -1)
                state = f.sigmoid() * state + i.sigmoid() * g.tanh()
                hidden = o.sigmoid() * state.tanh()
                hidden = hidden if projection is None else hidden @ projection.T
            elif cell == "gru":
                a, b = given[:1, time].chunk(3, -1), (again + bias).chunk(3, -1)
                z = (a[1] + b[1]).sigmoid()
                hidden = (1 - z) * (a[2] + (a[0] + b[0]).sigmoid() * b[2]).tanh() + z * hidden
            else:
                total = given[:1, time] + again + bias
                hidden = total.tanh() if cell == "rnn_tanh" else total.relu()
        return (hidden if state is None else state)[0]

    followed = (states if cell == "lstm" else hiddens)[start][0].detach()
    return torch.autograd.functional.jacobian(rest, followed)


@pytest.mark.parametrize(
    ("cell", "projected"),
    [("lstm", None), ("lstm", 4), ("gru", None), ("rnn_tanh", None), ("rnn_relu", None)],
)
def test_the_recursion_gives_what_automatic_differentiation_gives(cell, projected):
    weight, bias, projection, given = drawn(cell, projected=projected)
    steps = steps_of(cell, weight, bias, projection, *run(cell, weight, bias, projection, given))
    found = full_jacobians(steps, [0, 1, 4, 8])
    for place, lag in enumerate((0, 1, 4, 8)):
        wanted = by_autograd(cell, weight, bias, projection, given, lag)
        torch.testing.assert_close(found[0, place], wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_without_recurrent_weights_the_whole_derivative_is_the_product_of_the_gates(cell):
    weight, bias, _, given = drawn(cell)
    weight = weight * 0
    steps = steps_of(cell, weight, bias, None, *run(cell, weight, bias, None, given))
    direct = direct_paths(steps)
    torch.testing.assert_close(full_jacobians(steps, [0, 3, 7]), torch.diag_embed(direct[:, [0, 3, 7]]))


def test_with_the_gates_cut_off_from_the_state_autograd_gives_the_direct_path_exactly():
    weight, bias, _, given = drawn("lstm")
    given = given.requires_grad_()
    states, hiddens, gates = run("lstm", weight, bias, None, given, detached=True)
    direct = direct_paths(steps_of("lstm", weight, bias, None, states, hiddens, gates))
    for lag in (0, 2, 8):
        gradient = torch.autograd.grad(states[-1].sum(), states[-1 - lag], retain_graph=True)[0]
        torch.testing.assert_close(gradient, direct[:, lag], rtol=1e-12, atol=0)


def test_the_direct_path_is_not_the_whole_of_it():
    """A random network of 8 units: the two differ, and units reach each other."""
    weight, bias, _, given = drawn("lstm", units=8)
    steps = steps_of("lstm", weight, bias, None, *run("lstm", weight, bias, None, given))
    full, direct = full_jacobians(steps, [6])[0, 0], direct_paths(steps)[0, 6]
    assert ((full.diagonal() - direct).abs() > 0.1 * direct).any()
    assert (full - torch.diag(full.diagonal())).abs().max() > 0.005


def test_a_linear_network_of_a_scaled_rotation_forgets_by_its_scale():
    torch.manual_seed(1)
    rotation = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64))[0]
    hidden = torch.ones(1, 21, 12, dtype=torch.float64)
    # With ReLUs that are all open the network is linear.
    steps = CellSteps("rnn_relu", hidden, {}, 0.9 * rotation)
    found = state_jacobian(steps, [0, 10, 20])
    np.testing.assert_allclose(found.full_largest[0].numpy(), [1.0, 0.9**10, 0.121577], atol=5e-7)
    np.testing.assert_allclose(found.full_typical, found.full_largest, rtol=1e-12)
    np.testing.assert_allclose(spectral_norms(steps, [20])[0].numpy(), 0.9**20, rtol=1e-9)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_large_layers_are_measured_without_the_whole_matrix(cell):
    weight, bias, _, given = drawn(cell, units=40, time=12)
    steps = steps_of(cell, weight * 0.4, bias, None, *run(cell, weight * 0.4, bias, None, given))
    exact, estimated = (state_jacobian(steps, [0, 3, 8], exact_units=units) for units in (64, 16))
    assert (exact.exact, estimated.exact) == (True, False)
    ratio = (estimated.full_largest / exact.full_largest).numpy()
    assert ratio.max() < 1 + 1e-9
    assert ratio.min() > 0.95
    np.testing.assert_allclose(estimated.full_typical, exact.full_typical, rtol=0.25)
    if cell == "rnn_tanh":
        assert exact.direct_largest is None
    else:
        np.testing.assert_allclose(exact.direct_largest, direct_paths(steps)[:, [0, 3, 8]].amax(-1))


def test_rows_of_one_sample_do_not_depend_on_the_others():
    weight, bias, _, given = drawn("lstm", samples=3)
    steps = steps_of("lstm", weight, bias, None, *run("lstm", weight, bias, None, given))
    alone = steps_of("lstm", weight, bias, None, *run("lstm", weight, bias, None, given[1:2]))
    rows = torch.eye(6, dtype=torch.float64)[:2]
    torch.testing.assert_close(
        pulled_rows(steps, rows.expand(3, -1, -1), [5])[1:2], pulled_rows(alone, rows[None], [5])
    )
