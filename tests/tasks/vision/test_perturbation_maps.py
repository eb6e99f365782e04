"""Occlusion, ablation, LIME and Kernel SHAP: equal to captum's and to closed forms, the same whatever the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stratascope.errors import DoesNotApply
from stratascope.tasks.vision.attribution_methods import method_named
from tests.tasks.vision.explaining import (
    Untouched,
    Written,
    classes,
    explained,
    linear_network,
    pictures,
    score_difference,
    weights_times,
)

METHODS = ("occlusion", "feature_ablation", "lime", "kernel_shap")
SMALL = {"segments": 7, "perturbations": 40, "evaluations": 60, "window": 4, "stride": 3}


def found_by(name, *question, **more):
    return method_named(name).compute(explained(*question, **more))


def by_piece(found):
    """(sample, piece): the values of the map, one of each superpixel."""
    segments = found.arrays["segment"]
    return [
        np.array([maps[0][pieces == number][0] for number in range(pieces.max() + 1)])
        for maps, pieces in zip(found.maps, segments, strict=True)
    ]


@pytest.mark.parametrize(("window", "stride"), [((3, 4), (2, 3)), ((4, 4), (4, 4)), ((9, 2), (5, 1))])
def test_occlusion_is_captums(window, stride):
    from captum.attr import Occlusion

    network, inputs, baseline = Written("modules").eval(), pictures(), pictures(seed=1)
    settings = {"window": list(window), "stride": list(stride)}
    found = found_by("occlusion", network, inputs, baseline, settings=settings, batch_size=7)
    wanted = Occlusion(network).attribute(
        inputs, (2, *window), (2, *stride), baselines=baseline, target=classes(5)
    )
    np.testing.assert_allclose(found.maps, wanted.numpy(), atol=1e-6)
    assert np.abs(found.maps).max() > 1e-3


def test_p12_every_sample_has_its_own_target_and_the_drop_of_each_window_is_kept():
    network, inputs, baseline = Written("modules").eval(), pictures(), pictures(seed=1)
    found = found_by("occlusion", network, inputs, baseline, settings={"window": [3, 4], "stride": [2, 3]})
    assert found.arrays["drop"].shape == (5, 4, 4)
    altered = inputs.clone()
    altered[:, :, 2:5, 9:13] = baseline[:, :, 2:5, 9:13]
    np.testing.assert_allclose(
        found.arrays["drop"][:, 1, 3], score_difference(network, inputs, altered), atol=1e-6
    )


def test_closed_form_1_a_linear_network():
    """Windows and superpixels of one pixel: all give the weight times what the pixel is above the baseline."""
    network, inputs, baseline = linear_network(1), pictures(5, 1, 3, 4), pictures(5, 1, 3, 4, seed=1)
    wanted = weights_times(network, inputs - baseline)
    settings = {"segments": 12, "regularisation": 0.0, "window": 1, "stride": 1}
    for name in METHODS:
        found = found_by(name, network, inputs, baseline, settings=settings)
        np.testing.assert_allclose(found.maps, wanted, atol=1e-5)
    lasso = found_by(
        "lime", network, inputs, baseline, settings=settings | {"surrogate": "lasso", "regularisation": 1e-5}
    )
    np.testing.assert_allclose(lasso.maps, wanted, atol=1e-3)
    np.testing.assert_allclose(lasso.numbers["surrogate_r2"], 1, atol=1e-3)


def test_ablation_of_superpixels_is_captums():
    from captum.attr import FeatureAblation

    network, inputs, baseline = Written("modules").eval(), pictures(), pictures(seed=1)
    found = found_by("feature_ablation", network, inputs, baseline, settings={"segments": 7}, batch_size=4)
    ablation = FeatureAblation(network)
    for sample in range(5):
        mask = torch.from_numpy(found.arrays["segment"][sample]).long().expand(1, 2, 9, 13)
        one = inputs[sample : sample + 1], baseline[sample : sample + 1]
        wanted = ablation.attribute(one[0], one[1], target=sample % 4, feature_mask=mask)
        np.testing.assert_allclose(found.maps[sample], wanted[0].numpy(), atol=1e-6)


def exact_shapley(network, picture, baseline, pieces, target):
    """By the definition: over all subsets of the other pieces."""
    import itertools
    import math

    count = int(pieces.max()) + 1
    worth = {}
    for shown in itertools.product([0, 1], repeat=count):
        kept = torch.from_numpy(np.array(shown, bool)[pieces])
        with torch.no_grad():
            worth[shown] = float(network(torch.where(kept, picture, baseline)[None])[0, target])
    values = np.zeros(count)
    for shown, score in worth.items():
        for piece in range(count):
            if not shown[piece]:
                size = sum(shown)
                share = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
                values[piece] += share * (worth[(*shown[:piece], 1, *shown[piece + 1 :])] - score)
    return values


def test_kernel_shap_is_exact_where_superpixels_are_few():
    network, inputs, baseline = Written("modules").eval(), pictures(2), pictures(2, seed=1)
    found = found_by("kernel_shap", network, inputs, baseline, settings={"segments": 6, "evaluations": 62})
    for sample, values in enumerate(by_piece(found)):
        pieces = found.arrays["segment"][sample]
        wanted = exact_shapley(network, inputs[sample], baseline[sample], pieces, sample % 4)
        np.testing.assert_allclose(values * np.bincount(pieces.ravel()) * 2, wanted, atol=1e-5)
        assert np.abs(wanted).max() > 1e-3


def test_kernel_shap_from_random_pairs_nears_the_exact_values_and_always_adds_up():
    network, inputs, baseline = Written("modules").eval(), pictures(2), pictures(2, seed=1)
    exact, near = (
        found_by("kernel_shap", network, inputs, baseline, settings={"segments": 9, "evaluations": evaluations})
        for evaluations in (510, 160)
    )
    for found in (exact, near):
        np.testing.assert_allclose(
            found.maps.sum((1, 2, 3)), score_difference(network, inputs, baseline), atol=1e-6
        )
        assert np.abs(found.numbers["completeness_gap"]).max() < 1e-6
    assert 0 < np.abs(near.maps - exact.maps).max() < 0.1 * np.abs(exact.maps).max()


@pytest.mark.parametrize("name", METHODS)
def test_p10_what_is_altered_belongs_to_the_sample_and_not_to_its_place_or_batch(name):
    network, inputs = Written("in place", outputs=7).eval(), pictures(5, 2, 9, 16)
    question = explained(network, inputs, 0.5, settings=SMALL)
    whole = method_named(name).compute(question)
    assert whole.maps.shape == inputs.shape
    assert whole.maps.dtype == np.float32
    alone = method_named(name).compute(question.part(slice(3, 4)))
    np.testing.assert_allclose(alone.maps, whole.maps[3:4], atol=1e-5)
    batches = explained(network, inputs, 0.5, settings=SMALL, batch_size=3)
    np.testing.assert_allclose(method_named(name).compute(batches).maps, whole.maps, atol=1e-5)
    again = method_named(name).compute(question)
    assert again.maps.tobytes() == whole.maps.tobytes()


def test_p10_every_checkpoint_sees_the_same_altered_pictures():
    seen: dict[int, list[torch.Tensor]] = {}

    def watched(seed: int) -> nn.Module:
        network = Written("modules", seed=seed)
        network.register_forward_pre_hook(lambda module, given: seen.setdefault(seed, []).append(given[0].clone()))
        return network

    for name in METHODS:
        seen.clear()
        for seed in (0, 1):
            found_by(name, watched(seed), pictures(), 0.5, settings=SMALL)
        torch.testing.assert_close(torch.cat(seen[0]), torch.cat(seen[1]), rtol=0, atol=0)


def test_the_seed_changes_random_perturbations_only():
    inputs = pictures()
    for name, changes in (("lime", True), ("kernel_shap", True), ("feature_ablation", False)):
        one, other = (
            found_by(name, Written("modules"), inputs, settings=SMALL, seed=seed).maps for seed in (0, 1)
        )
        assert (np.abs(one - other).max() > 0) == changes


@pytest.mark.parametrize("name", METHODS)
def test_memory_is_bounded_by_the_batch(name):
    class Counting(nn.Module):
        most = 0

        def forward(self, inputs):
            self.most = max(self.most, len(inputs))
            return inputs.flatten(1)[:, :4]

    network = Counting()
    found_by(name, network, pictures(), settings=SMALL, batch_size=3)
    assert network.most == 3


@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("name", METHODS)
def test_p27_any_channels_and_a_picture_higher_than_wide(name, channels):
    inputs = pictures(2, channels, 14, 8)
    found = found_by(name, Written("functions", channels), inputs, settings=SMALL)
    assert found.maps.shape == inputs.shape
    assert np.isfinite(found.maps).all()


@pytest.mark.parametrize("name", METHODS)
def test_a_picture_that_is_its_baseline_gives_a_map_of_zeros(name):
    found = found_by(name, Written("modules"), torch.zeros(2, 1, 8, 8).expand(2, 2, 8, 8), settings=SMALL)
    np.testing.assert_allclose(found.maps, 0, atol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_p16_the_network_is_left_as_it_was(name):
    network = Written("in place").eval()
    question = explained(network, pictures(2), settings=SMALL)
    before = Untouched(network.train())
    method_named(name).compute(question)
    before.check()


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("occlusion", {"window": 10}, r"`window` \[10, 10\] is larger than a picture of 9 × 13"),
        ("occlusion", {"window": 2, "stride": 3}, "pixels between the windows would have no value"),
        ("occlusion", {"window": [2, 0]}, "is not a whole number from 1, or two of them"),
        ("feature_ablation", {"segments": 0}, "`segments` 0 is not a whole number from 1"),
        ("lime", {"surrogate": "tree"}, "`surrogate` 'tree' is not known"),
        ("lime", {"perturbations": 1}, "`perturbations` begins at 2"),
        ("kernel_shap", {"segments": 9, "evaluations": 10}, "`evaluations` 10 is too small for 8 superpixels"),
    ],
)
def test_a_bad_option_is_named(name, settings, message):
    with pytest.raises(DoesNotApply, match=message):
        found_by(name, Written("modules"), pictures(), settings=settings)
