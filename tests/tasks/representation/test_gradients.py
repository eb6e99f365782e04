"""Gradients of the probe's loss: against a closed form, plain autograd, and themselves in other batches."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from stratascope.errors import AnalysisError, DoesNotApply
from stratascope.storage.model_spec import ModelSpec
from stratascope.tasks.models import lenet, mlp
from stratascope.tasks.representation.gradients import gradient_rows, mean_gradient

SPEC = ModelSpec(factory="not:called")


def batches(inputs, targets, size: int, mask=None):
    for start in range(0, len(inputs), size):
        rows = slice(start, start + size)
        yield inputs[rows], targets[rows], None if mask is None else mask[rows]


def images(count: int = 96):
    generator = np.random.default_rng(0)
    return generator.normal(size=(count, 1, 8, 8)).astype(np.float32), generator.integers(0, 10, count)


def trained_for(steps: int):
    torch.manual_seed(0)
    network = lenet(size=8, width=4).eval()
    inputs, targets = images()
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        functional.cross_entropy(network(torch.from_numpy(inputs)), torch.from_numpy(targets)).backward()
        optimizer.step()
    optimizer.zero_grad()
    return network, inputs, targets


@pytest.fixture(scope="module")
def trained():
    """A small convolutional network on its way."""
    return trained_for(20)


def exact_gradient(network, inputs, targets):
    exact = copy.deepcopy(network).double()
    functional.cross_entropy(exact(torch.from_numpy(inputs).double()), torch.from_numpy(targets)).backward()
    return {name: parameter.grad for name, parameter in exact.named_parameters()}


def test_a_linear_model_with_squared_errors_has_the_closed_form():
    generator = np.random.default_rng(1)
    inputs, targets = (
        generator.normal(size=(30, 4)).astype(np.float32),
        generator.normal(size=30).astype(np.float32),
    )
    network = nn.Linear(4, 1)
    found, count = mean_gradient(network, batches(inputs, targets, 7), SPEC, "regression", "mse")
    weight, bias = network.weight.detach().double().numpy()[0], float(network.bias.detach())
    residual = inputs.astype(np.float64) @ weight + bias - targets
    assert count == 30
    np.testing.assert_allclose(found["weight"].numpy()[0], 2 / 30 * residual @ inputs, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found["bias"].numpy()[0], 2 * residual.mean(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("size", [1, 7, 32, 96])
def test_the_gradient_is_that_of_the_whole_batch_whatever_the_batches(trained, size: int):
    network, inputs, targets = trained
    found, _ = mean_gradient(network, batches(inputs, targets, size), SPEC, "classification", "cross_entropy")
    for name, gradient in exact_gradient(network, inputs, targets).items():
        assert float((found[name] - gradient).norm() / gradient.norm()) < 1e-5, name


def test_in_float64_that_holds_in_a_minimum_too():
    network, inputs, targets = trained_for(200)
    exact = exact_gradient(network, inputs, targets)
    assert max(float(gradient.norm()) for gradient in exact.values()) < 0.01
    network.double()
    for size in (1, 32):
        found, _ = mean_gradient(network, batches(inputs, targets, size), SPEC, "classification", "cross_entropy")
        for name, gradient in exact.items():
            assert float((found[name] - gradient).norm() / gradient.norm()) < 1e-10, name


def test_the_network_is_left_as_it_was(trained):
    network, inputs, targets = trained
    before = {name: value.clone() for name, value in network.state_dict().items()}
    mean_gradient(network, batches(inputs, targets, 32), SPEC, "classification", "cross_entropy")
    for module in network.modules():
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            assert not getattr(module, kind)
    for parameter in network.parameters():
        assert parameter.grad is None
        assert not parameter._backward_hooks
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])


def test_tokens_count_only_where_they_are_real():
    generator = np.random.default_rng(2)
    inputs = generator.normal(size=(12, 5, 3)).astype(np.float32)
    targets = generator.integers(0, 4, (12, 5))
    mask = np.arange(5) < generator.integers(1, 6, 12)[:, None]
    network = nn.Linear(3, 4)
    found, count = mean_gradient(network, batches(inputs, targets, 5, mask), SPEC, "tokens", "cross_entropy")
    real = torch.from_numpy(inputs[mask])
    functional.cross_entropy(network(real), torch.from_numpy(targets[mask])).backward()
    assert count == mask.sum()
    np.testing.assert_allclose(found["weight"].numpy(), network.weight.grad.numpy(), rtol=1e-4, atol=1e-7)


def test_a_mean_of_ones_own_weighs_batches_by_their_rows(tmp_path):
    (tmp_path / "gradient_losses.py").write_text(
        "from torch.nn import functional\n"
        "def mean(outputs, targets): return functional.cross_entropy(outputs, targets)\n"
        "def without(outputs, targets): return outputs.detach().abs().sum(1)\n"
    )
    inputs, targets = images(25)
    torch.manual_seed(1)
    network = mlp(inputs=64, widths=[8], outputs=10).eval()
    own, _ = mean_gradient(network, batches(inputs, targets, 10), SPEC, "classification", "gradient_losses:mean", tmp_path)  # fmt: skip
    built_in, _ = mean_gradient(network, batches(inputs, targets, 25), SPEC, "classification", "cross_entropy")
    for name, gradient in built_in.items():
        np.testing.assert_allclose(own[name].numpy(), gradient.numpy(), rtol=1e-4, atol=1e-7)
    with pytest.raises(AnalysisError, match="carries no gradient"):
        mean_gradient(network, batches(inputs, targets, 25), SPEC, "classification", "gradient_losses:without", tmp_path)  # fmt: skip


def test_a_network_without_parameters_does_not_apply():
    with pytest.raises(DoesNotApply, match="no parameter"):
        mean_gradient(nn.Flatten(), iter(()), SPEC, "classification", "cross_entropy")


def test_norms_add_up_from_tensors_to_layers_to_the_network():
    norms = {"a.weight": 3.0, "a.bias": 4.0, "b.weight": 12.0}
    weights = {"a.weight": 1.0, "a.bias": 0.0, "b.weight": 2.0}
    rows = {(row.metric, row.layer, row.part): row for row in gradient_rows("probe", norms, weights, 9)}
    assert rows["gradient_norm", "a", ""].value == 5.0
    assert rows["gradient_norm", "", ""].value == 13.0
    assert rows["gradient_to_weight_ratio", "b", "tensor=weight"].value == 6.0
    zero = rows["gradient_to_weight_ratio", "a", "tensor=bias"]
    assert (zero.status, zero.reason) == ("does_not_apply", "the weights are all zero")


def test_what_the_loss_does_not_reach_or_what_is_not_finite_says_so():
    norms = {"used.weight": float("inf"), "idle.weight": None}
    rows = gradient_rows("probe", norms, {"used.weight": 1.0, "idle.weight": 1.0}, 9)
    status = {(row.layer, row.status, row.reason) for row in rows if row.metric == "gradient_norm" and row.part}
    assert status == {
        ("used", "failed", "the gradient is not finite"),
        ("idle", "does_not_apply", "the loss does not depend on it"),
    }


def test_the_ledger_has_every_tensor_layer_and_the_whole_for_each_probe(trained_audit):
    rows = trained_audit.view("gradients").rows
    for probe in ("train", "test"):
        for step in (0, 3, 10, 30):
            here = rows[(rows.probe == probe) & (rows.step == step) & (rows.metric == "gradient_norm")]
            whole = float(here[(here.layer == "") & (here.part == "")].value.iloc[0])
            tensors = here[here.part.str.startswith("tensor=")]
            assert len(tensors) == 6
            assert whole == pytest.approx(float((tensors.value**2).sum() ** 0.5))
    assert set(rows.status) == {"ok"}
