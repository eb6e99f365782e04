"""Time constants, saturation, clusters and spectra of cells whose answers are known."""

import numpy as np
import pytest
import torch
from torch import nn

from stratascope.tasks.sequence.recurrent_cells import cell_weights
from stratascope.tasks.sequence.recurrent_statistics import (
    BINS,
    StateSums,
    mode_time_constants,
    recurrent_blocks,
    sorted_eigenvalues,
    time_constants,
    unit_clusters,
)
from stratascope.tasks.sequence.unrolling import unroll

CONSTANTS = {0.5: 1.4427, 0.8: 4.4814, 0.9: 9.4912, 0.99: 99.4993}


def constant_lstm(gates, units=2):
    """An LSTM without weights, whose gates (input, forget, output) have fixed values; the candidate is tanh of x."""
    module = nn.LSTM(1, units, batch_first=True)
    with torch.no_grad():
        for item in module.parameters():
            item.zero_()
        for place, value in ((0, gates[0]), (1, gates[1]), (3, gates[2])):
            module.bias_ih_l0[place * units : (place + 1) * units] = torch.logit(torch.tensor(value))
        module.weight_ih_l0[2 * units : 3 * units] = 1.0
    return module


def summed(module, inputs, lengths=None, separate=None):
    with torch.no_grad():
        run = unroll(module, inputs, lengths)
    layer = run.layers[0]
    units = module.hidden_size
    sums = StateSums(layer.cell, tuple(layer.gates), units, units, (0.1, 0.9), correlated=True)
    marked = np.ones(len(inputs), bool) if separate is None else separate
    sums.add(layer.hidden, layer.state, layer.gates, run.real, marked)
    return sums, run


@pytest.mark.parametrize("keep", CONSTANTS)
def test_a_constant_forget_gate_has_its_time_constant_and_an_impulse_decays_with_it(keep):
    module = constant_lstm((0.5, keep, 0.5))
    impulse = torch.zeros(1, 30, 1)
    impulse[:, 0] = 3.0
    sums, run = summed(module, impulse)
    assert time_constants(sums.mean_log_keep()) == pytest.approx(CONSTANTS[keep], rel=2e-5)
    assert sums.sample_time_constants() == pytest.approx(CONSTANTS[keep], rel=2e-5)
    decay = np.log(run.layers[0].state[0, 1:, 0].double().numpy())
    slope = np.polyfit(np.arange(29), decay, 1)[0]
    assert -1 / slope == pytest.approx(CONSTANTS[keep], rel=1e-4)


def test_a_gate_that_always_keeps_has_the_largest_time_constant_and_no_infinity():
    assert time_constants(np.array([0.0])) == pytest.approx(1e7)
    assert mode_time_constants(np.array([1.3, 1j, 0.5, 0.0])) == pytest.approx([1e7, 1e7, 1.4427, 1 / np.log(1e30)], rel=1e-4)  # fmt: skip


def test_the_geometric_mean_counts_and_not_the_arithmetic_one():
    """For f uniform between 0.5 and 1 the arithmetic mean would say 3.47 steps."""
    values = np.random.default_rng(0).uniform(0.5, 1, 400_000)
    assert time_constants(np.log(values).mean()) == pytest.approx(3.26, abs=0.01)
    assert -1 / np.log(values.mean()) == pytest.approx(3.47, abs=0.01)


def test_a_gru_keeps_by_its_update_gate():
    module = nn.GRU(1, 3, batch_first=True)
    with torch.no_grad():
        for item in module.parameters():
            item.zero_()
        module.bias_hh_l0[3:6] = torch.logit(torch.tensor(0.9))
    sums, _ = summed(module, torch.randn(2, 7, 1))
    assert time_constants(sums.mean_log_keep()) == pytest.approx(9.4912, rel=1e-5)


@pytest.mark.parametrize(("value", "wanted"), [(0.05, (1, 0)), (0.95, (0, 1)), (0.5, (0, 0))])
def test_constant_gates_are_saturated_on_their_side_alone(value, wanted):
    sums, _ = summed(constant_lstm((value, value, value)), torch.randn(3, 11, 1))
    saturation = sums.saturation()
    for gate in ("input", "forget", "output"):
        found = saturation[sums.gates.index(gate)]
        assert found[0] == pytest.approx(wanted[0])
        assert found[1] == pytest.approx(wanted[1])


def test_left_and_right_saturation_never_exceed_one_and_fit_the_histogram():
    torch.manual_seed(0)
    module = nn.LSTM(3, 6, batch_first=True)
    with torch.no_grad():
        for item in module.parameters():
            item.mul_(8)
    sums, run = summed(module, torch.randn(5, 40, 3), torch.tensor([40, 1, 13, 40, 22]))
    saturation = sums.saturation()
    assert (saturation.sum(1) <= 1).all()
    assert sums.histogram.sum(2).eq(int(run.real.sum())).all()
    assert saturation[1, 0] == pytest.approx(
        sums.histogram[1, :, : BINS // 10].sum(1).numpy() / sums.steps, abs=1e-6
    )
    assert saturation[1].max() > 0.3


def test_padding_counts_nowhere():
    torch.manual_seed(0)
    module = nn.LSTM(3, 4, batch_first=True)
    inputs = torch.randn(3, 20, 3)
    lengths = torch.tensor([20, 4, 9])
    together, _ = summed(module, inputs, lengths)
    alone = StateSums("lstm", together.gates, 4, 4, (0.1, 0.9), correlated=True)
    with torch.no_grad():
        for place, length in enumerate(lengths.tolist()):
            run = unroll(module, inputs[place : place + 1, :length])
            layer = run.layers[0]
            alone.add(layer.hidden, layer.state, layer.gates, run.real, np.ones(1, bool))
    assert alone.steps == together.steps == 33
    assert torch.equal(alone.histogram, together.histogram)
    np.testing.assert_allclose(alone.hidden.table(), together.hidden.table(), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(alone.mean_log_keep(), together.mean_log_keep(), rtol=1e-6)
    np.testing.assert_allclose(alone.sample_time_constants(), together.sample_time_constants(), rtol=1e-5)
    moving = np.ones(4, bool)
    np.testing.assert_allclose(alone.correlation(moving), together.correlation(moving), atol=1e-6)


def test_moments_and_correlations_are_those_of_numpy():
    torch.manual_seed(1)
    sums, run = summed(nn.GRU(3, 5, batch_first=True), torch.randn(6, 15, 3))
    rows = run.layers[0].hidden.reshape(-1, 5).double().numpy()
    np.testing.assert_allclose(sums.hidden.table(), [rows.mean(0), rows.std(0), rows.min(0), rows.max(0)], rtol=1e-6)  # fmt: skip
    np.testing.assert_allclose(sums.correlation(np.ones(5, bool)), np.corrcoef(rows.T), atol=1e-9)


def test_units_that_say_the_same_form_clusters_and_still_ones_none():
    generator = np.random.default_rng(0)
    base = generator.normal(size=(3, 4000))
    rows = np.stack([base[0], -2 * base[0], base[1], base[0] + 0.05 * base[2], base[2], base[1] * 0.1])
    correlation = np.full((7, 7), np.nan)
    correlation[:6, :6] = np.corrcoef(rows)
    found = unit_clusters(correlation, 0.95)
    assert found.cluster.tolist() == [0, 0, 1, 0, 2, 1, -1]
    assert found.redundant == 3
    assert sorted(found.order.tolist()) == list(range(7))
    assert found.order[-1] == 6
    assert {*found.order[:6].tolist()} == set(range(6))


def test_a_chain_of_likeness_is_no_cluster():
    """a is like b and b like c, but a is not like c: complete linkage keeps the three from being one."""
    angles = np.deg2rad([0, 15, 30])
    correlation = np.cos(angles[:, None] - angles[None])
    assert unit_clusters(correlation, 0.95).redundant == 1


def test_spectra_of_known_blocks():
    module = nn.LSTM(2, 4, batch_first=True)
    quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    with torch.no_grad():
        module.weight_hh_l0[4:8] = torch.block_diag(0.9 * quarter, torch.diag(torch.tensor([0.5, -0.2])))
    blocks = recurrent_blocks(cell_weights(module, "l0"))
    assert list(blocks) == ["input", "forget", "candidate", "output"]
    np.testing.assert_allclose(sorted_eigenvalues(blocks["forget"]), [0.9j, -0.9j, 0.5, -0.2], atol=1e-7)


def test_a_projection_is_part_of_the_way_back():
    module = nn.LSTM(2, 4, proj_size=3, batch_first=True)
    block = recurrent_blocks(cell_weights(module, "l0"))["input"]
    wanted = (module.weight_hh_l0[:4] @ module.weight_hr_l0).detach().numpy()
    np.testing.assert_allclose(block, wanted, rtol=1e-5, atol=1e-7)
