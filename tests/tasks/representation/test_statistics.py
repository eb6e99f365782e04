"""What is filed of layers and weights: against a plain forward pass and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stratascope.tasks.models import mlp
from stratascope.tasks.representation.statistics import layer_rows, weight_rows
from stratascope.tasks.representation.statistics_drawing import shares_between

SIZE = {"inputs": 5, "widths": [6], "outputs": 2}


@pytest.fixture
def audited(little_audit):
    """Network, inputs and rows; the first two hidden units are dead by their bias."""
    torch.manual_seed(0)
    network = mlp(**SIZE)
    with torch.no_grad():
        network.fc1.bias[:2] = -1000.0
    inputs = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    audit = little_audit("stratascope.tasks.models:mlp", SIZE)
    audit.probe("probe", inputs=inputs, targets=np.arange(64) % 2)
    audit.checkpoint(1, network)
    audit.capture("statistics")
    return network, inputs, audit.analyse("statistics")


def one(rows, metric: str, layer: str, part: str = ""):
    chosen = rows[(rows.metric == metric) & (rows.layer == layer) & (rows.part == part)]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_moments_and_zeros_equal_those_of_a_plain_forward_pass(audited):
    network, inputs, rows = audited
    with torch.no_grad():
        hidden = network.fc1(torch.from_numpy(inputs)).double().numpy()
    for layer, values in (("fc1", hidden), ("relu1", np.maximum(hidden, 0))):
        assert one(rows, "activation_mean", layer).value == pytest.approx(values.mean(), rel=1e-5)
        assert one(rows, "activation_std", layer).value == pytest.approx(values.std(), rel=1e-5)
        assert one(rows, "sparsity", layer).value == pytest.approx((values == 0).mean())


def test_dead_units_are_filed_for_the_linear_layer_and_for_the_rectifier(audited):
    _, _, rows = audited
    assert one(rows, "dead_fraction", "fc1").value == pytest.approx(2 / 6)
    assert one(rows, "dead_fraction", "relu1").value == pytest.approx(2 / 6)
    assert "fc2" not in set(rows[rows.metric == "dead_fraction"].layer)


def test_weight_norms_add_up_from_tensors_to_layers_to_the_network(audited):
    network, _, rows = audited
    weight, bias = network.fc1.weight.detach().double(), network.fc1.bias.detach().double()
    assert one(rows, "weight_norm", "fc1", "tensor=weight").value == pytest.approx(float(weight.norm()))
    assert one(rows, "weight_norm", "fc1").value == pytest.approx(
        float((weight.norm() ** 2 + bias.norm() ** 2) ** 0.5)
    )
    every = torch.cat([item.detach().double().flatten() for item in network.parameters()])
    row = one(rows, "weight_norm", "")
    assert row.value == pytest.approx(float(every.norm()))
    assert row.n == len(every)


def test_counters_of_norm_layers_are_no_weights():
    facts = {name: {"dtype": "float32", "shape": [4], "norm": 2.0} for name in ("n.weight", "n.bias", "n.running_mean", "n.running_var")}  # fmt: skip
    facts["n.num_batches_tracked"] = {"dtype": "int64", "shape": [], "norm": 7.0}
    rows = {(row.layer, row.part): row.value for row in weight_rows(facts)}
    assert set(rows) == {("n", "tensor=weight"), ("n", "tensor=bias"), ("n", ""), ("", "")}
    assert rows["n", ""] == pytest.approx(8**0.5)


def test_what_is_not_finite_spoils_what_it_enters_and_is_counted():
    found = {"mean": np.array([1.0, np.nan]), "std": np.ones(2), "non_finite_count": np.array([0.0, 3.0]), "dead": np.zeros(2)}  # fmt: skip
    rows = {row.metric: row for row in layer_rows("probe", "layer", found)}
    assert rows["non_finite_count"].value == 3
    assert rows["non_finite_count"].status == "ok"
    for metric in ("activation_mean", "activation_std", "dead_fraction"):
        assert rows[metric].status == "failed"
        assert "3" in rows[metric].reason


def test_a_histogram_spread_over_other_bins_keeps_its_shares():
    edges, counts = np.linspace(0, 4, 5), np.array([4.0, 0.0, 8.0, 4.0])
    np.testing.assert_allclose(shares_between(edges, counts, edges), counts / 16)
    # Half bins hold half of each, and what lies outside holds nothing.
    np.testing.assert_allclose(
        shares_between(edges, counts, np.array([-1.0, 0.0, 0.5, 2.5, 9.0])), [0, 2 / 16, 6 / 16, 8 / 16]
    )
