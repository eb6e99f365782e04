"""Relevance propagation: equal to formulas and to captum's where those apply, nothing lost, refused where it has no rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from stratascope.errors import DoesNotApply
from stratascope.tasks.models import cifar_resnet, vision_transformer
from stratascope.tasks.vision.attribution_methods import method_named
from stratascope.tasks.vision.rescale_maps import deep_lift
from tests.tasks.vision.explaining import (
    WAYS,
    Untouched,
    Written,
    classes,
    explained,
    linear_network,
    pictures,
    weights_times,
)

METHODS = ("lrp_epsilon", "lrp_gamma", "lrp_alpha1beta0", "lrp_composite")


def relevance(name, *question, **more):
    return method_named(name).compute(explained(*question, **more))


def gradient_times_input(network, inputs):
    pixels = inputs.clone().requires_grad_()
    network(pixels)[torch.arange(len(inputs)), classes(len(inputs))].sum().backward()
    return (pixels.grad * inputs).numpy()


class WithoutBiases(nn.Module):
    """A plain stack that captum's LRP takes: it has no rule for flattening as a module."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.stack = nn.Sequential(
            nn.Conv2d(2, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 6, 3, bias=False), nn.ReLU(), nn.AvgPool2d(2),
            nn.Conv2d(6, 4, (2, 4), bias=False),
        )  # fmt: skip

    def forward(self, inputs):
        return self.stack(inputs).flatten(1)


def test_epsilon_without_biases_is_captums_and_gradient_times_input():
    from captum.attr import LRP

    network, inputs = WithoutBiases().eval(), pictures()
    wanted = LRP(network).attribute(inputs, target=classes(5)).detach().numpy()
    found = relevance("lrp_epsilon", network, inputs)
    np.testing.assert_allclose(found.maps, wanted, atol=1e-6)
    np.testing.assert_allclose(found.maps, gradient_times_input(network, inputs), atol=1e-6)
    assert np.abs(wanted).max() > 0.01


@pytest.mark.parametrize("name", METHODS)
def test_without_biases_nothing_is_lost(name):
    network, inputs = WithoutBiases(), pictures()
    found = relevance(name, network, inputs)
    scores = network(inputs)[torch.arange(5), classes(5)].detach().numpy()
    np.testing.assert_allclose(found.maps.sum((1, 2, 3)), scores, atol=1e-6)
    assert np.abs(found.numbers["conservation_gap"]).max() < 1e-6


def test_closed_form_1_a_linear_network():
    network, inputs = linear_network(bias=False), pictures(5, 2, 3, 4)
    np.testing.assert_allclose(
        relevance("lrp_epsilon", network, inputs).maps, weights_times(network, inputs), atol=1e-6
    )


def dense_reference(network, inputs, contributions):
    """Relevance of two linear layers with a ReLU between, written out with loops over neither autograd nor our rules."""
    first, second = (
        (layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy())
        for layer in (network[1], network[3])
    )
    values = inputs.flatten(1).double().numpy()
    hidden = np.maximum(values @ first[0].T + first[1], 0)
    outputs = hidden @ second[0].T + second[1]
    found = np.zeros_like(values)
    for sample in range(len(values)):
        chosen = np.arange(len(outputs[sample])) == sample % 4
        from_hidden = contributions(hidden[sample], *second, outputs[sample], outputs[sample] * chosen)
        before = first[0] @ values[sample] + first[1]
        found[sample] = contributions(values[sample], *first, before, from_hidden)
    return found.reshape(inputs.shape)


def by_gamma(values, weight, bias, output, given):
    parts = weight * values
    sign = np.where(output >= 0, 1, -1)[:, None]
    own = parts + 0.25 * np.where(parts * sign > 0, parts, 0)
    shift = bias + 0.25 * np.where(bias * sign[:, 0] > 0, bias, 0)
    return (own / (own.sum(1) + shift)[:, None] * given[:, None]).sum(0)


def by_positive_parts(values, weight, bias, output, given):
    parts = np.maximum(weight * values, 0)
    whole = parts.sum(1) + np.maximum(bias, 0)
    return (parts / np.where(whole > 0, whole, 1)[:, None] * given[:, None]).sum(0)


@pytest.mark.parametrize(("name", "rule"), [("lrp_gamma", by_gamma), ("lrp_alpha1beta0", by_positive_parts)])
def test_a_rule_is_its_formula_written_out(name, rule):
    torch.manual_seed(5)
    network = nn.Sequential(nn.Flatten(), nn.Linear(24, 9), nn.ReLU(), nn.Linear(9, 4))
    inputs = pictures(5, 2, 3, 4)
    found = relevance(name, network, inputs)
    np.testing.assert_allclose(found.maps, dense_reference(network, inputs, rule), atol=1e-5)
    assert np.abs(found.maps).max() > 0.01


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("way", WAYS)
def test_p6_every_way_of_writing_gives_the_same_and_biases_make_up_for_what_is_missing(name, way):
    inputs = pictures()
    found, wanted = (relevance(name, Written(own), inputs) for own in (way, "modules"))
    np.testing.assert_allclose(found.maps, wanted.maps, atol=1e-5)
    assert np.abs(found.numbers["conservation_gap_with_biases"]).max() < 1e-5
    assert np.abs(found.numbers["conservation_gap"]).max() > 1e-3
    assert found.warnings == ()


def test_epsilon_is_gradient_times_input_through_sums_batch_norm_and_pooling():
    inputs = pictures()
    wanted = gradient_times_input(Written("modules").eval(), inputs)
    np.testing.assert_allclose(relevance("lrp_epsilon", Written("in place"), inputs).maps, wanted, atol=1e-5)


def test_p6_a_residual_network_with_batch_norm_hands_on_all_but_what_biases_take():
    torch.manual_seed(0)
    network, inputs = cifar_resnet(20, width=4), pictures(3, 3, 16, 20)
    for name in METHODS:
        found = relevance(name, network, inputs)
        assert np.abs(found.numbers["conservation_gap_with_biases"]).max() < 1e-4
    # Freshly made, batch norm has no shift and the last layer alone has a bias: that is all that is missing.
    found = relevance("lrp_epsilon", network, inputs)
    bias = network.fc.bias.detach().numpy()[classes(3)]
    np.testing.assert_allclose(found.numbers["conservation_gap"], -bias, atol=1e-4)


def test_p6_batch_norm_is_one_step_with_the_convolution_before_it():
    """The same network with its batch norm folded into the convolution by hand."""

    class Two(nn.Module):
        def __init__(self, folded: bool) -> None:
            super().__init__()
            source = Written("modules").eval()
            self.first, self.head, self.folded = source.second, source.head, folded
            self.norm = source.norm
            if folded:
                scale = self.norm.weight / torch.sqrt(self.norm.running_var + self.norm.eps)
                self.first = nn.Conv2d(5, 5, 3, padding=1)
                self.first.weight.data = source.second.weight.data * scale.data[:, None, None, None]
                self.first.bias.data = (self.norm.bias - self.norm.running_mean * scale).data

        def forward(self, inputs):
            hidden = self.first(inputs)
            return self.head(functional.relu(hidden if self.folded else self.norm(hidden)).mean((2, 3)))

    inputs = pictures(channels=5)
    for name in METHODS:
        one, other = (relevance(name, Two(folded), inputs) for folded in (True, False))
        np.testing.assert_allclose(one.maps, other.maps, atol=1e-6)


def test_the_first_layer_can_be_flat():
    """Every pixel that a position looks at gets the same: a 1 × 1 convolution splits over channels evenly."""
    torch.manual_seed(2)
    network = nn.Sequential(
        nn.Conv2d(2, 3, 1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 9 * 13, 4, bias=False)
    )
    found = relevance("lrp_composite", network, pictures(), settings={"first_layer": "flat"})
    np.testing.assert_allclose(found.maps[:, 0], found.maps[:, 1], atol=1e-7)
    assert np.abs(found.numbers["conservation_gap"]).max() < 1e-5
    with pytest.raises(DoesNotApply, match="`first_layer` 'odd' is not known"):
        relevance("lrp_composite", network, pictures(), settings={"first_layer": "odd"})


class Head(nn.Module):
    """A convolution, then what is given, then the mean over places and a linear layer."""

    def __init__(self, then) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.then, self.head = nn.Conv2d(2, 4, 3), then, nn.Linear(4, 4)

    def forward(self, inputs):
        return self.head(self.then(self.first(inputs)).mean((2, 3)))


@pytest.mark.parametrize(
    ("then", "named"),
    [
        (lambda values: values * values.mean((2, 3), keepdim=True).sigmoid(), "`mul` of two activations"),
        (lambda values: values.sigmoid(), "`sigmoid`"),
        (lambda values: functional.softmax(values, 1), "`softmax`"),
        (lambda values: 1 / (2 + values.square()), "`rdiv`"),
        (nn.GroupNorm(2, 4), "`group_norm`"),
    ],
)
def test_p6_where_it_does_not_apply_the_operation_is_named_and_nothing_is_left_behind(then, named):
    network = Head(then)
    before = Untouched(network.eval())
    with pytest.raises(DoesNotApply, match=f"no rule for {named}"):
        relevance("lrp_composite", network, pictures())
    before.check()
    relevance("lrp_composite", Head(nn.SiLU()), pictures())


def test_attention_and_the_statistics_of_a_batch_are_refused():
    with pytest.raises(DoesNotApply, match="no rule for"):
        relevance("lrp_epsilon", vision_transformer(), pictures(2, 1, 28, 28))
    with pytest.raises(DoesNotApply, match="normalises by the batch itself"):
        relevance("lrp_epsilon", Head(nn.BatchNorm2d(4, track_running_stats=False)), pictures())


def test_a_side_branch_without_a_rule_does_not_count():
    class WithProbabilities(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Written("modules")

        def forward(self, inputs):
            logits = self.inner(inputs)
            return logits, functional.softmax(logits, 1)

    inputs = pictures()
    found = relevance("lrp_epsilon", WithProbabilities(), inputs, output="[0]")
    np.testing.assert_allclose(found.maps, relevance("lrp_epsilon", Written("modules"), inputs).maps, atol=1e-7)
    with pytest.raises(DoesNotApply, match="no rule for `softmax`"):
        relevance("lrp_epsilon", WithProbabilities(), inputs, output="[1]")


def test_differences_scaled_sums_and_outputs_with_positions_hand_on_all():
    """The score of a segmentation is a mean over the places of its class."""

    class Segmenting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(6)
            self.first, self.second = nn.Conv2d(2, 6, 3, bias=False), nn.ConvTranspose2d(6, 4, 3, bias=False)

        def forward(self, inputs):
            hidden = functional.gelu(self.first(inputs))
            hidden = torch.sub(hidden, hidden.flip(3), alpha=0.5) - 2 * functional.avg_pool2d(hidden, 3, 1, 1)
            return self.second(torch.cat([hidden[:, :3], -hidden[:, 3:]], 1) / 2)

    for name in ("lrp_epsilon", "lrp_gamma", "lrp_composite"):
        found = relevance(name, Segmenting(), pictures())
        assert np.abs(found.numbers["conservation_gap"]).max() < 1e-5
        assert np.abs(found.maps).max() > 1e-3
    # A sum of two negative numbers has no positive part, so this rule has nobody to hand it to, and says so.
    found = relevance("lrp_alpha1beta0", Segmenting(), pictures())
    assert "of 5 maps do not hand on the whole score" in found.warnings[0]


def test_a_zero_picture_and_a_zero_score_give_zero():
    network = WithoutBiases()
    found = relevance("lrp_composite", network, torch.zeros(2, 2, 9, 13))
    assert not found.maps.any()


@pytest.mark.parametrize("channels", [1, 5])
def test_p27_any_channels_and_a_picture_that_is_not_square_whatever_the_batch(channels):
    inputs, network = pictures(5, channels, 9, 16), Written("functions", channels, outputs=7)
    whole = relevance("lrp_composite", network, inputs)
    assert whole.maps.shape == inputs.shape
    assert whole.maps.dtype == np.float32
    single = explained(network, inputs, batch_size=2)
    method = method_named("lrp_composite")
    np.testing.assert_allclose(method.compute(single).maps, whole.maps, atol=1e-6)
    np.testing.assert_allclose(method.compute(single.part(slice(3, 4))).maps, whole.maps[3:4], atol=1e-6)


def test_p16_the_network_is_left_as_it_was():
    network = Written("in place").eval()
    question = explained(network, pictures())
    before = Untouched(network.train())
    method_named("lrp_gamma").compute(question)
    before.check()


def test_exported_programs_are_seen_and_scripts_are_refused():
    network, inputs = Written("modules").eval(), pictures(4)
    exported = torch.export.export(network, (inputs,)).module()
    exported.eval = lambda: exported
    for compute in (method_named("lrp_composite").compute, deep_lift):
        found = compute(explained(exported, inputs, batch_size=4))
        np.testing.assert_allclose(found.maps, compute(explained(network, inputs)).maps, atol=1e-6)
    script = torch.jit.trace(network, inputs)
    for compute, name in (
        (method_named("lrp_composite").compute, "relevance propagation"),
        (deep_lift, "DeepLIFT"),
    ):
        with pytest.raises(DoesNotApply, match=f"{name} changes single operations"):
            compute(explained(script, inputs))
