"""DeepLIFT: equal to captum's where that is right, complete where that is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from stratascope.errors import DoesNotApply
from stratascope.tasks.models import lenet, vision_transformer
from stratascope.tasks.vision.rescale_maps import deep_lift, deep_lift_shap
from tests.tasks.vision.explaining import (
    WAYS,
    Untouched,
    Written,
    classes,
    explained,
    linear_network,
    pictures,
    score_difference,
    weights_times,
)


def plain() -> nn.Sequential:
    """Modules used once each, and no two non-linear ones in a row: what captum's DeepLIFT is right about."""
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.MaxPool2d(2), nn.Conv2d(4, 6, 1), nn.ELU(),
        nn.Conv2d(6, 5, 1), nn.Sigmoid(), nn.Flatten(), nn.Linear(40, 8), nn.Tanh(), nn.Linear(8, 6), nn.Softplus(),
        nn.Linear(6, 5), nn.LeakyReLU(), nn.Linear(5, 4),
    )  # fmt: skip
    for weight in network.parameters():
        weight.data *= 4
    return network


def test_it_is_captums_where_that_is_right():
    from captum.attr import DeepLift

    network, inputs, baseline = plain(), pictures(), pictures(seed=1)
    wanted = DeepLift(network).attribute(inputs, baseline, target=classes(5)).detach().numpy()
    found = deep_lift(explained(network, inputs, baseline, batch_size=2))
    np.testing.assert_allclose(found.maps, wanted, atol=1e-5)
    assert np.abs(wanted).max() > 0.01


def test_the_mean_over_baselines_is_captums_where_that_is_right():
    from captum.attr import DeepLiftShap

    network, inputs, baselines = plain(), pictures(), pictures(3, seed=1)
    wanted = DeepLiftShap(network).attribute(inputs, baselines, target=classes(5)).detach().numpy()
    found = deep_lift_shap(explained(network, inputs, baselines=baselines))
    np.testing.assert_allclose(found.maps, wanted, atol=1e-5)
    assert np.abs(found.numbers["completeness_gap"]).max() < 1e-6


@pytest.mark.parametrize("way", WAYS)
def test_p5_functional_in_place_and_re_used_activations_are_rescaled_too(way):
    """Every way of writing gives the same complete map; the modules' own is where captum could be right."""
    inputs, baseline = pictures(), pictures(seed=1) / 3
    found = deep_lift(explained(Written(way), inputs, baseline))
    wanted = deep_lift(explained(Written("modules"), inputs, baseline))
    np.testing.assert_allclose(found.maps, wanted.maps, atol=1e-6)
    np.testing.assert_allclose(
        found.maps.sum((1, 2, 3)), score_difference(Written(way).eval(), inputs, baseline), atol=1e-5
    )
    assert np.abs(found.numbers["completeness_gap"]).max() < 1e-5
    assert found.warnings == ()


def test_p5_captum_loses_some_where_a_pooling_follows_a_relu():
    """Its hooks take the gradient that comes to the ReLU before that of the pooling is exchanged; ours adds up."""
    from captum.attr import DeepLift

    torch.manual_seed(0)
    network = lenet(width=4, size=12).eval()
    inputs, baseline = pictures(5, 1, 12, 12), pictures(5, 1, 12, 12, seed=1)
    change = score_difference(network, inputs, baseline)
    theirs = DeepLift(network).attribute(inputs, baseline, target=classes(5)).detach().flatten(1).sum(1).numpy()
    assert np.abs(theirs - change).max() > 0.01 * np.abs(change).max()
    ours = deep_lift(explained(network, inputs, baseline))
    np.testing.assert_allclose(ours.maps.sum((1, 2, 3)), change, atol=1e-6)


def test_closed_form_1_a_linear_network():
    network, inputs = linear_network(), pictures(5, 2, 3, 4)
    np.testing.assert_allclose(
        deep_lift(explained(network, inputs)).maps, weights_times(network, inputs), atol=1e-6
    )
    baselines = pictures(4, 2, 3, 4, seed=2)
    found = deep_lift_shap(explained(network, inputs, baselines=baselines)).maps
    np.testing.assert_allclose(found, weights_times(network, inputs - baselines.mean(0)), atol=1e-6)


def test_a_unit_that_the_slope_does_not_see_gets_its_share():
    """1 − relu(1 − x) at x = 2, baseline 0: the slope is 0 there, the difference 1 (Shrikumar et al. 2017, figure 1)."""

    class Saturated(nn.Module):
        def forward(self, inputs):
            return (1 - functional.relu(1 - inputs)).flatten(1)

    inputs = torch.full((1, 1, 1, 1), 2.0)
    found = deep_lift(explained(Saturated(), inputs, wanted=0))
    assert found.maps.item() == pytest.approx(1)


class Gated(nn.Module):
    """Products of activations, softmax over channels, a maximum over places, group norm, a quotient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.first, self.norm = nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4)
        self.head = nn.Linear(12, 4)

    def forward(self, inputs):
        hidden = functional.silu(self.norm(self.first(inputs)))
        gate = hidden.mean((2, 3), keepdim=True).sigmoid()
        attended = functional.softmax(hidden, 1) * hidden
        highest, _ = attended.max(dim=2)
        parts = [
            (hidden * gate).amax((2, 3)), highest.mean(-1) / (1 + hidden.square().mean((2, 3))),
            functional.gelu(hidden).mean((2, 3)),
        ]  # fmt: skip
        return self.head(torch.cat(parts, 1))


def test_products_of_activations_softmax_and_maxima_are_complete():
    inputs, baseline = pictures(), pictures(seed=1)
    found = deep_lift(explained(Gated(), inputs, baseline))
    change = score_difference(Gated().eval(), inputs, baseline)
    assert np.abs(found.numbers["completeness_gap"]).max() < 1e-4
    np.testing.assert_allclose(found.maps.sum((1, 2, 3)), change, atol=1e-4)
    assert np.abs(change).max() > 0.05


def test_softmax_is_not_moved_by_what_is_added_to_all():
    """The rescale rule for single numbers would be complete as well; multipliers that add up to 0 need more."""

    class Soft(nn.Module):
        def forward(self, inputs):
            return functional.softmax(inputs.flatten(1), 1)

    inputs, baseline = pictures(3, 1, 2, 2), pictures(3, 1, 2, 2, seed=1)
    one = deep_lift(explained(Soft(), inputs, baseline))
    other = deep_lift(explained(Soft(), inputs + 5, baseline + 5))
    np.testing.assert_allclose(one.maps, other.maps, atol=1e-6)
    multipliers = one.maps / (inputs - baseline).numpy()
    np.testing.assert_allclose(multipliers.sum((1, 2, 3)), 0, atol=1e-6)


def test_a_vision_transformer_is_complete():
    torch.manual_seed(0)
    inputs = pictures(3, 1, 28, 28)
    found = deep_lift(explained(vision_transformer(), inputs))
    assert np.abs(found.numbers["completeness_gap"]).max() < 1e-4


def test_a_step_without_a_rule_is_told_by_the_gap():
    class Odd(nn.Module):
        def forward(self, inputs):
            return torch.sinh(inputs).flatten(1)[:, :4]

    found = deep_lift(explained(Odd(), pictures()))
    wanted = (torch.cosh(pictures()) * pictures() - torch.sinh(pictures())).flatten(1)[range(5), classes(5)]
    np.testing.assert_allclose(found.numbers["completeness_gap"], wanted, atol=1e-5)
    assert "of 5 maps do not add up" in found.warnings[0]


def test_a_network_that_goes_another_way_for_the_baseline_is_named():
    class Branching(nn.Module):
        def forward(self, inputs):
            values = inputs.flatten(1)[:, :4]
            return functional.relu(values) if float(inputs.detach().abs().sum()) > 0 else values

    with pytest.raises(
        DoesNotApply, match="goes another way for a baseline than for a sample, first seen at 'relu'"
    ):
        deep_lift(explained(Branching(), pictures()))


def test_a_missing_set_of_baselines_is_named():
    with pytest.raises(DoesNotApply, match="mean over a set of baselines, and there is none"):
        deep_lift_shap(explained(linear_network(), pictures(5, 2, 3, 4)))


@pytest.mark.parametrize("channels", [1, 5])
def test_p27_any_channels_and_a_picture_that_is_not_square_whatever_the_batch(channels):
    inputs, baseline = pictures(5, channels, 9, 16), pictures(5, channels, 9, 16, seed=1)
    network = Written("in place", channels, outputs=7)
    whole = deep_lift(explained(network, inputs, baseline))
    assert whole.maps.shape == inputs.shape
    assert whole.maps.dtype == np.float32
    single = explained(network, inputs, baseline, batch_size=2)
    np.testing.assert_allclose(deep_lift(single).maps, whole.maps, atol=1e-6)
    np.testing.assert_allclose(deep_lift(single.part(slice(3, 4))).maps, whole.maps[3:4], atol=1e-6)


def test_p16_the_network_is_left_as_it_was():
    network = Written("in place")
    before = Untouched(network.eval().train())
    question = explained(network, pictures())
    network.train()
    deep_lift(question)
    before.check()
