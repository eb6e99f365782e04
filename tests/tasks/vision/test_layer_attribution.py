"""Attribution inside the network: closed forms, captum's numbers, completeness, and units as outputs."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from captum.attr import InternalInfluence, LayerConductance, LayerIntegratedGradients, NeuronGradient
from torch import nn

from stratascope.errors import DoesNotApply
from stratascope.tasks.vision.image_network import ImageNetwork
from stratascope.tasks.vision.inner_units import inner_network
from stratascope.tasks.vision.layer_attributions import along_inputs, along_layer
from stratascope.tasks.vision.spatial_layers import chosen_spatial_layers, observed
from stratascope.tasks.vision.targets import Target
from tests.tasks.vision.conftest import bars, wrapped
from tests.tasks.vision.test_image_network import Residual, probe_of


@pytest.fixture(scope="module")
def network() -> ImageNetwork:
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.Conv2d(5, 6, 3), nn.Tanh())
    return wrapped(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 7)))


@pytest.fixture(scope="module")
def question(network):
    inputs = torch.from_numpy(bars(4, 5, channels=2)[0])
    layers = chosen_spatial_layers(["0", "3"], observed(network, probe_of(inputs.numpy())).layers)
    return (
        inputs,
        torch.zeros_like(inputs),
        torch.tensor([1, 0, 6, 3]),
        Target("label"),
        [layer.info for layer in layers],
    )


def captums(network: ImageNetwork, name: str) -> tuple[nn.Module, nn.Module]:
    scored = copy.deepcopy(network.scored)
    scored.network[1] = nn.ReLU()
    return scored, scored.network.get_submodule(name)


def test_check_2_conductance_and_layer_integrated_gradients_add_up(network, question):
    inputs, baseline, indices, target, layers = question
    with torch.no_grad():
        scores = [target.scores(network.outputs(item), indices).double() for item in (inputs, baseline)]
    for name, found in along_inputs(network, inputs, baseline, indices, target, layers, 200).items():
        total = found["conductance"].values.flatten(1).sum(1)
        torch.testing.assert_close(total, scores[0] - scores[1], atol=2e-4, rtol=0)
        torch.testing.assert_close(found["conductance"].gap, total - found["conductance"].difference)
        info = next(layer for layer in layers if layer.name == name)
        inner = along_layer(network, inputs, baseline, indices, target, info, 64)
        torch.testing.assert_close(inner.values.flatten(1).sum(1), scores[0] - scores[1], atol=2e-3, rtol=0)


@pytest.mark.parametrize("name", ["0", "3"])
def test_equals_captum(network, question, name):
    inputs, baseline, indices, target, layers = question
    scored, module = captums(network, name)
    info = next(layer for layer in layers if layer.name == name)
    found = along_inputs(network, inputs, baseline, indices, target, layers, 200)[name]
    influence = InternalInfluence(scored, module).attribute(inputs, baseline, target=indices, n_steps=200)
    conductance = LayerConductance(scored, module).attribute(inputs, baseline, target=indices, n_steps=200)
    inner = LayerIntegratedGradients(scored, module).attribute(inputs, baseline, target=indices, n_steps=64)
    mine = along_layer(network, inputs, baseline, indices, target, info, 64)
    for ours, theirs in (
        (found["internal_influence"], influence), (found["conductance"], conductance), (mine, inner),
    ):  # fmt: skip
        theirs = theirs.detach()
        torch.testing.assert_close(ours.values.float(), theirs, atol=0.02 * float(theirs.abs().max()), rtol=0)


def test_a_linear_head_makes_gradient_times_activation_exact(network, question):
    """After tanh all is linear: Σ a ⊙ g is the score without the bias (check 4)."""
    inputs, baseline, indices, target, _ = question
    layers = [
        layer.info for layer in chosen_spatial_layers(["4"], observed(network, probe_of(inputs.numpy())).layers)
    ]
    found = along_inputs(network, inputs, baseline, indices, target, layers, 2)["4"]
    with torch.no_grad():
        scores = target.scores(network.outputs(inputs), indices) - network.network[-1].bias[indices]
    total = found["gradient_times_activation"].values.sum((1, 2, 3))
    torch.testing.assert_close(total.float(), scores, atol=1e-5, rtol=1e-5)
    head = network.network[-1].weight[indices] / (found["activation"].values.shape[2] * found["activation"].values.shape[3])  # fmt: skip
    torch.testing.assert_close(found["internal_influence"].values[:, :, 0, 0].float(), head.detach())


def test_a_path_around_the_layer_shows_in_the_gap():
    torch.manual_seed(1)
    network = wrapped(Residual(), output="[0]")
    inputs = torch.from_numpy(bars(3, 7)[0])
    info = [
        layer.info
        for layer in chosen_spatial_layers(["second"], observed(network, probe_of(inputs.numpy())).layers)
    ]
    found = along_inputs(network, inputs, torch.zeros_like(inputs), torch.tensor([0, 1, 2]), Target(), info, 100)
    conductance = found["second"]["conductance"]
    assert (conductance.gap.abs() > 0.05 * conductance.difference.abs()).any()
    inner = along_layer(network, inputs, torch.zeros_like(inputs), torch.tensor([0, 1, 2]), Target(), info[0], 100)
    assert inner.gap.abs().max() < 0.01 * inner.values.abs().sum((1, 2, 3)).max()


def test_a_sample_does_not_depend_on_the_others(network, question):
    inputs, baseline, indices, target, layers = question
    every = along_inputs(network, inputs, baseline, indices, target, layers, 4)
    alone = along_inputs(network, inputs[2:3], baseline[2:3], indices[2:3], target, layers, 4)
    for name, found in every.items():
        for method, item in found.items():
            torch.testing.assert_close(item.values[2:3], alone[name][method].values, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("place", ["mean", "max", "centre"])
def test_an_inner_unit_is_an_output_like_any_other(network, question, place):
    inputs, *_ = question
    (layer,) = chosen_spatial_layers(["3"], observed(network, probe_of(inputs.numpy())).layers)
    inner = inner_network(network, layer, place)
    grid = network.network[:4](inputs).detach()
    expected = {"mean": grid.mean((2, 3)), "max": grid.amax((2, 3)), "centre": grid[:, :, grid.shape[2] // 2, grid.shape[3] // 2]}  # fmt: skip
    torch.testing.assert_close(inner.outputs_in_batches(inputs, 3), expected[place])
    scored, module = captums(network, "3")
    gradient = inner.input_gradient(inputs, torch.full((4,), 2), Target(2))
    pick = {"mean": lambda values: values[:, 2].mean((1, 2)), "max": lambda values: values[:, 2].amax((1, 2)), "centre": lambda values: values[:, 2, grid.shape[2] // 2, grid.shape[3] // 2]}  # fmt: skip
    theirs = NeuronGradient(scored, module).attribute(inputs.clone().requires_grad_(), pick[place])
    torch.testing.assert_close(gradient, theirs.detach())
    assert not any(module._forward_hooks for module in network.network.modules())


def test_a_reused_layer_is_cut_at_its_own_call():
    network = wrapped(Residual(), output="[0]")
    inputs = torch.from_numpy(bars(3, 7)[0])
    found = chosen_spatial_layers(["relu", "relu#1"], observed(network, probe_of(inputs.numpy())).layers)
    means = [inner_network(network, layer).outputs_in_batches(inputs, 2) for layer in found]
    assert [layer.name for layer in found] == ["relu", "relu#1"]
    torch.testing.assert_close(means[1], network.network(inputs)[1].mean((2, 3)).detach())
    assert (means[0] != means[1]).any()


def test_layers_of_an_exported_program_cannot_be_watched(network, question):
    inputs, *_ = question
    (layer,) = chosen_spatial_layers(["3"], observed(network, probe_of(inputs.numpy())).layers)
    closed = ImageNetwork(network.network, network.model, hookable=False)
    with pytest.raises(DoesNotApply, match="exported program cannot be watched"):
        inner_network(closed, layer)


def test_an_audit_files_and_draws_them(pictured_audit):
    rows = pictured_audit.analyse("layer_attribution", samples=8, steps=16)
    gap = rows[
        (rows["metric"] == "layer_attribution_gap") & rows["part"].str.endswith("conductance;kind=relative")
    ]
    assert set(gap["layer"]) == {"conv1", "conv2"}
    assert (gap[gap["step"] == 40]["value"] < 0.1).all()
    spread = rows[rows["metric"] == "attributed_channels"]
    assert spread["value"].between(1, 8).all()
    arrays = pictured_audit.view("layer_attribution").arrays(40)
    values = arrays["test/conv2/conductance/channel"]
    np.testing.assert_allclose(values.sum(1), arrays["test/conv2/conductance/spatial"].sum((1, 2)), rtol=1e-4)
    assert values.shape == (8, 8)
    figures = {figure.key: figure for figure in pictured_audit.draw("layer_attribution")}
    assert {"channels-test-conv2", "places-test-conv2", "spread-test", "gap-test"} <= set(figures)
    assert [step for step, _ in figures["places-test-conv2"].frames] == [0, 10, 40]


def test_bad_options_are_named(pictured_audit):
    from pydantic import ValidationError

    from stratascope.tasks.vision.layer_attribution import LayerAttributionOptions

    with pytest.raises(ValidationError, match="Did you mean 'conductance'"):
        LayerAttributionOptions(methods=("conductanse",))
    rows = pictured_audit.analyse("layer_attribution", layers=("fc",))
    assert set(rows["status"]) == {"does_not_apply"}
    assert "layer 'fc' is not spatial" in rows["reason"].iloc[0]
