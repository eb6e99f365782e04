"""Influence of training samples: by hand for linear regression, as captum has it, and over a real little run."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from stratascope.errors import DoesNotApply
from stratascope.storage.probes import Probe
from stratascope.tasks.given_samples import given_samples
from stratascope.tasks.vision.influence_scores import (
    products_of_all,
    products_of_last_layer,
    same_class_share,
)
from stratascope.tasks.vision.sample_gradients import LossKind, trained_parameters
from tests.tasks.vision.conftest import wrapped


def samples_of(inputs, targets):
    probe = Probe("p", "train", inputs, np.asarray(targets), np.arange(len(targets)), (), "digest")
    return given_samples(probe, np.arange(len(targets)))


def products(network, test, train, kind=LossKind(), layer=None, most=4):  # noqa: B008
    given = wrapped(network)
    parameters = trained_parameters(network)
    with given.untouched():
        if layer is None:
            return products_of_all(given, test, train, kind, parameters, most)
        return products_of_last_layer(given, test, train, kind, layer, most)


@pytest.fixture
def blobs():
    generator = np.random.default_rng(0)
    inputs, targets = generator.normal(size=(17, 6)).astype(np.float32), generator.integers(0, 3, 17)
    return inputs, targets


def perceptron(bias: bool = True) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3, bias=bias))


def test_linear_regression_by_hand():
    """ℓ = (w·x + b - y)², so the product of two gradients is 4 r r' (x·x' + 1)."""
    generator = np.random.default_rng(2)
    inputs, targets = generator.normal(size=(9, 4)).astype(np.float32), generator.normal(size=9).astype(np.float32)
    network = nn.Sequential(nn.Linear(4, 1))
    residual = inputs @ network[0].weight.detach().numpy()[0] + network[0].bias.item() - targets
    expected = 4 * np.outer(residual, residual) * (inputs @ inputs.T + 1)
    samples = samples_of(inputs, targets)
    for layer in (None, "0"):
        found = products(network, samples.part(slice(0, 3)), samples, LossKind("regression", "mse"), layer)
        np.testing.assert_allclose(found.pairs, expected[:3], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.own, np.diagonal(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [None, "2"])
def test_it_is_what_captum_sums_over_checkpoints(blobs, layer):
    """Captum's fast variant leaves the last layer's bias out, which is a weight as any other: so it is held against one without."""
    from captum.influence import TracInCP, TracInCPFast

    inputs, targets = blobs
    network = perceptron(bias=layer is None)
    checkpoints, rates = [], [0.5, 0.125]
    for rate in rates:
        with torch.no_grad():
            for item in network.parameters():
                item.mul_(1 + rate)
        checkpoints.append(copy.deepcopy(network.state_dict()))
    data = TensorDataset(torch.from_numpy(inputs), torch.from_numpy(targets))
    asked = (torch.from_numpy(inputs[:4]), torch.from_numpy(targets[:4]))

    def load(model, number):
        model.load_state_dict(checkpoints[int(number)])
        return rates[int(number)]

    shared = {
        "train_dataset": data, "checkpoints": ["0", "1"], "checkpoints_load_func": load, "batch_size": 5,
        "loss_fn": nn.CrossEntropyLoss(reduction="sum"),
    }  # fmt: skip
    method = (
        TracInCP(copy.deepcopy(network), **shared, sample_wise_grads_per_batch=True)
        if layer is None
        else TracInCPFast(copy.deepcopy(network), final_fc_layer=layer, **shared)
    )
    samples = samples_of(inputs, targets)
    pairs, own = np.zeros((4, 17)), np.zeros(17)
    for state, rate in zip(checkpoints, rates, strict=True):
        network.load_state_dict(state)
        found = products(network, samples.part(slice(0, 4)), samples, layer=layer)
        pairs += rate * found.pairs
        own += rate * found.own
    np.testing.assert_allclose(pairs, method.influence(asked).numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(own, method.self_influence().numpy(), rtol=1e-4, atol=1e-5)


def test_the_last_layer_in_closed_form_is_its_own_part_of_all_weights(blobs):
    """With the first layer frozen all weights are those of the last; whatever the batches, and without a bias too."""
    for bias in (True, False):
        network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3, bias=bias))
        network[0].requires_grad_(False)
        samples = samples_of(*blobs)
        whole = products(network, samples, samples)
        for most in (1, 5, 64):
            found = products(network, samples, samples, layer="2", most=most)
            np.testing.assert_allclose(found.pairs, whole.pairs, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(found.own, whole.own, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found.own, np.diagonal(found.pairs), rtol=1e-6)


def test_a_layer_over_tokens_sums_over_its_places():
    generator = np.random.default_rng(3)
    inputs, targets = (
        generator.normal(size=(5, 4, 3)).astype(np.float32),
        generator.integers(0, 2, (5, 4)),
    )
    network = nn.Sequential(nn.Linear(3, 2))
    samples = samples_of(inputs, targets)
    kind = LossKind("tokens")
    np.testing.assert_allclose(
        products(network, samples, samples, kind, "0").pairs,
        products(network, samples, samples, kind).pairs,
        rtol=1e-4,
        atol=1e-6,
    )


def test_hooks_and_weights_are_as_before(blobs):
    network = perceptron()
    samples = samples_of(*blobs)
    products(network, samples, samples, layer="2")
    assert not any(module._forward_hooks for module in network.modules())
    assert all(item.grad is None and item.requires_grad for item in network.parameters())
    twice = nn.Sequential(network[0], network[1], network[2])
    twice.forward = lambda inputs: twice[2](twice[1](twice[0](inputs))) + twice[2](twice[1](twice[0](inputs)))
    with pytest.raises(DoesNotApply, match="run 2 times in a pass: take `weights: all`"):
        products(twice, samples, samples, layer="2")
    assert not any(module._forward_hooks for module in network.modules())


def test_the_share_of_proponents_of_ones_own_class():
    influence = np.array([[3.0, 2.0, 1.0, -5.0], [0.0, 0.0, 0.0, 9.0]])
    shares = same_class_share(influence, np.array([1, 0]), np.array([1, 0, 1, 0]), 2)
    assert shares.tolist() == [0.5, 0.5]


@pytest.fixture(scope="module")
def influenced(pictured_audit):
    trace = pd.DataFrame({"step": np.arange(1, 41), "lr": 0.1, "loss": np.linspace(1, 0.1, 40)})
    trace.to_csv(pictured_audit.folder / "trace.csv", index=False)
    pictured_audit.source = pictured_audit.source.model_copy(update={"trace": "trace.csv"})
    rows = {"checkpoint": pictured_audit.analyse("influence")}
    rows["series"] = pictured_audit.analyse("influence_over_training", pictures=3)
    return pictured_audit, rows


def test_a_run_sums_its_checkpoints_with_the_step_sizes_of_its_trace(influenced):
    audit, rows = influenced
    arrays = audit.view("influence_over_training").arrays()
    parts = [audit.view("influence").arrays(step) for step in (0, 10, 40)]
    expected = 0.1 * sum(part["test/train/inner_product"].astype(np.float64) for part in parts)
    np.testing.assert_allclose(arrays["test/train/influence"], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(arrays["train/self_influence"], 0.1 * sum(part["train/own_product"].astype(np.float64) for part in parts), rtol=1e-5)  # fmt: skip
    assert set(rows["series"].status) == {"ok"}
    assert set(rows["series"].metric) == {"summed_self_influence", "summed_proponent_same_class_fraction", "wrong_among_self_influential"}  # fmt: skip
    summed = rows["series"][rows["series"].metric == "summed_self_influence"].iloc[0]
    assert summed.convention == "rate=trace"
    assert summed.value == pytest.approx(arrays["train/self_influence"].mean(), rel=1e-5)
    own = rows["checkpoint"]
    own = own[(own.metric == "self_influence") & (own.part == "")]
    assert len(own) == 3
    assert (own.low < own.value).all()


def test_its_pictures_have_every_test_sample_and_none_where_inputs_are_hidden(influenced):
    audit, _ = influenced
    figures = {figure.key: figure for figure in audit.draw("influence_over_training")}
    assert set(figures) == {"influence-test-train", "self-influence-train"}
    assert figures["influence-test-train"].svg.count("<image") == 8 * 7
    assert "step sizes are those of the trace" in figures["influence-test-train"].caution
    from stratascope.tasks.analysis import named

    hidden = audit.view("influence_over_training")
    hidden.show_inputs = False
    analysis = named("influence_over_training")
    assert not any("<image" in figure.svg for figure in analysis.draw(hidden, analysis.options()))
    assert {figure.key for figure in audit.draw("influence")} == {"self-influence-train", "proponents"}


def test_without_training_samples_or_a_trace_it_says_so(little_audit):
    from stratascope.tasks.models import mlp

    audit = little_audit(args={"inputs": 4, "widths": [3], "outputs": 2})
    audit.probe("test", inputs=np.eye(4, dtype=np.float32), targets=np.arange(4) % 2)
    audit.checkpoint(0, mlp(inputs=4, widths=[3], outputs=2))
    audit.capture("outputs")
    rows = audit.analyse("influence")
    assert set(rows.status) == {"does_not_apply"}
    assert "needs a probe with role `train`" in rows.reason.iloc[0]
    rows = audit.analyse("training_trace")
    assert set(rows.status) == {"does_not_apply"}
    assert "has no `trace`" in rows.reason.iloc[0]


def test_the_trace_stands_beside_the_probes_gradients(influenced):
    audit, _ = influenced
    rows = audit.analyse("training_trace")
    losses = rows[rows.metric == "recorded_loss"].sort_values("step")
    assert losses.step.tolist() == [10, 40]
    assert losses.value.iloc[0] == pytest.approx(np.linspace(1, 0.1, 40)[:10].mean())
    assert rows[rows.metric == "recorded_gradient_norm"].status.tolist() == ["does_not_apply"]
    (figure,) = audit.draw("training_trace")
    assert "the batches' loss went from 1 to 0.1" in figure.caution
