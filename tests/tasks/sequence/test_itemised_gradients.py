"""Gradients through time, one by one, against the gradient of torch's own layers and against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stratascope.tasks.sequence.itemised_gradients import (
    before_activation,
    chosen_loss_steps,
    itemised_norms,
    natural_window,
    weight_gradients,
)
from stratascope.tasks.sequence.unrolling import unroll

MODULES = {
    "lstm": lambda: nn.LSTM(3, 5, batch_first=True),
    "gru": lambda: nn.GRU(3, 5, batch_first=True),
    "rnn_tanh": lambda: nn.RNN(3, 5, batch_first=True),
    "rnn_relu": lambda: nn.RNN(3, 5, batch_first=True, nonlinearity="relu"),
}


@pytest.mark.parametrize("cell", MODULES)
def test_what_each_source_step_adds_sums_to_the_gradient_of_backpropagation_through_time(cell):
    torch.manual_seed(0)
    module = MODULES[cell]().double()
    inputs = torch.randn(4, 9, 3, dtype=torch.float64)
    readout = torch.randn(9, 5, dtype=torch.float64)
    (module(inputs)[0] * readout).sum().backward()
    layer = unroll(module, inputs, retain=True).layers[0]
    names = list(layer.steps[0].gates)
    hidden = [step.hidden for step in layer.steps]
    asked = [*hidden, *(step.gates[name] for step in layer.steps for name in names)]
    total = torch.zeros_like(module.weight_hh_l0)
    # Loss step by loss step, and within each, source step by source step.
    for step in range(9):
        loss = (hidden[step] * readout[step]).sum()
        found = torch.autograd.grad(loss, asked, retain_graph=True, materialize_grads=True)
        by_hidden = torch.stack(found[:9], 1)
        gates = {name: layer.gates[name] for name in names}
        by_gate = {
            name: torch.stack(found[9 + place :: max(1, len(names))], 1) for place, name in enumerate(names)
        }
        blocks = before_activation(cell, gates, by_gate, layer.hidden, by_hidden)
        before = torch.cat([torch.zeros_like(layer.hidden[:, :1]), layer.hidden[:, :-1]], 1)
        items = weight_gradients(blocks, before)
        assert items.shape == (9, *module.weight_hh_l0.shape)
        assert not items[step + 1 :].any()
        total += items.sum(0)
    torch.testing.assert_close(total, module.weight_hh_l0.grad, rtol=1e-9, atol=1e-11)


def test_a_linear_network_of_a_scaled_rotation_loses_a_tenth_at_every_step():
    torch.manual_seed(0)
    rotation = torch.linalg.qr(torch.randn(7, 7, dtype=torch.float64))[0]
    state = torch.randn(2, 7, dtype=torch.float64).requires_grad_()
    states = [state]
    for _ in range(20):
        states.append(0.9 * states[-1] @ rotation.T)
    direction = torch.randn(7, dtype=torch.float64)
    losses = [states[20] @ direction, states[12] @ direction]
    norms = itemised_norms(losses, [states], [(0, 21), (10, 13)])[0]
    wanted = direction.norm() * 0.9 ** torch.arange(20, -1, -1, dtype=torch.float64)
    torch.testing.assert_close(norms[0], wanted.expand(2, -1))
    assert norms[0, 0, 0] / norms[0, 0, 20] == pytest.approx(0.121577, abs=5e-7)
    torch.testing.assert_close(norms[1, 0, 10:13], wanted[18:21])
    assert torch.isnan(norms[1, :, [0, 9, 13, 20]]).all()


def test_loss_steps_are_spread_evenly_and_have_the_whole_window_behind_them():
    counts = torch.zeros(3, 40, dtype=torch.bool)
    counts[0, :30] = True
    counts[1, :35] = True
    steps = chosen_loss_steps(counts, 4, 20)
    assert steps[-1] == 34
    assert steps[0] >= 19
    assert len(steps) == 4
    assert np.ptp(np.diff(steps)) <= 1
    assert chosen_loss_steps(counts, 99, 30) == [29, 30, 31, 32, 33, 34]
    assert chosen_loss_steps(counts[:, :10], 4, 20) == [9]


def test_the_window_is_half_of_a_text_and_all_of_a_sequence_with_one_answer_at_its_end():
    counts = torch.ones(3, 40, dtype=torch.bool)
    assert natural_window(counts) == 20
    counts[:, :39] = False
    assert natural_window(counts) == 40
    assert natural_window(counts & False) == 1
