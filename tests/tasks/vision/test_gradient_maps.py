"""Gradients against differences, captum and closed forms; noise that belongs to the sample; nothing left behind."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import nn

from stratascope.errors import DoesNotApply
from stratascope.tasks.vision.chosen_samples import normal_noise
from stratascope.tasks.vision.gradient_maps import gradients_at_copies, signed_parts
from stratascope.tasks.vision.targets import Target
from tests.tasks.vision.conftest import bars, wrapped
from tests.tasks.vision.questions import Rectified, attributed, question

ALL = (
    "gradient", "gradient_times_input", "guided_backpropagation", "deconvolution", "smooth_grad", "smooth_grad_squared", "var_grad",
    "integrated_gradients", "expected_gradients",
)  # fmt: skip
QUICK = {
    "smooth_grad": {"draws": 5}, "smooth_grad_squared": {"draws": 5}, "var_grad": {"draws": 5},
    "integrated_gradients": {"steps": 6, "most_steps": 6}, "expected_gradients": {"draws": 5},
}  # fmt: skip


def quick(name: str, explained):
    return attributed(name, explained, **QUICK.get(name, {})).maps


@pytest.fixture(scope="module")
def pictures():
    return (bars(6, 5, channels=2, height=10, width=14)[0] - 0.3).astype(np.float32)


def with_baselines(network, pictures, **changes):
    return question(network, pictures, baselines=torch.from_numpy(pictures[::-1] * 0.5)[:3], **changes)


def test_the_gradient_is_what_a_small_step_changes(pictures):
    """By hand: two forward passes in double precision for some pixels."""
    network = wrapped(Rectified("function"))
    explained = question(network, pictures)
    found = attributed("gradient", explained).maps
    exact = Rectified("function").double().eval()
    for row, channel, y, x in ((0, 0, 2, 3), (3, 1, 9, 13), (5, 0, 0, 0)):
        scores = []
        for step in (-1e-6, 1e-6):
            moved = torch.from_numpy(pictures[row : row + 1]).double()
            moved[0, channel, y, x] += step
            scores.append(float(exact(moved)[0, explained.indices[row]].detach()))
        assert found[row, channel, y, x] == pytest.approx((scores[1] - scores[0]) / 2e-6, rel=1e-4, abs=1e-7)


def test_captum_finds_the_same_gradients(pictures):
    from captum.attr import InputXGradient, Saliency

    network = wrapped(Rectified("in place"))
    explained = question(network, pictures)
    given = explained.inputs.clone().requires_grad_()
    plain = Saliency(network.network).attribute(given, target=explained.indices, abs=False)
    np.testing.assert_array_equal(attributed("gradient", explained).maps, plain.numpy())
    times = InputXGradient(network.network).attribute(given, target=explained.indices)
    np.testing.assert_array_equal(attributed("gradient_times_input", explained).maps, times.detach().numpy())


def test_check_1_a_linear_model(pictures):
    """The gradient is the weights; x ⊙ w is what all complete methods with baseline zero give."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(280, 3))
    explained = question(wrapped(linear), pictures)
    weights = linear[1].weight.detach()[explained.indices].reshape(pictures.shape).numpy()
    np.testing.assert_allclose(attributed("gradient", explained).maps, weights, rtol=1e-6)
    for name in ("gradient_times_input", "integrated_gradients"):
        np.testing.assert_allclose(attributed(name, explained).maps, weights * pictures, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(attributed("smooth_grad", explained, draws=4).maps, weights, rtol=1e-6)
    np.testing.assert_allclose(attributed("smooth_grad_squared", explained, draws=4).maps, weights**2, rtol=1e-5)
    np.testing.assert_allclose(attributed("var_grad", explained, draws=4).maps, 0, atol=1e-12)
    baselines = torch.zeros(2, *pictures.shape[1:])
    found = attributed("expected_gradients", question(wrapped(linear), pictures, baselines=baselines), draws=3)
    np.testing.assert_allclose(found.maps, weights * pictures, rtol=1e-4, atol=1e-7)


class Square(nn.Module):
    """y = ½ Σ x²: its gradient is x itself."""

    def forward(self, inputs):
        return 0.5 * (inputs**2).flatten(1).sum(1, keepdim=True)


def test_p9_the_noise_is_a_share_of_the_picture_s_own_range(pictures):
    level, draws = 0.2, 400
    scaled = pictures[:2] * np.array([1.0, 10.0], np.float32)[:, None, None, None]
    explained = question(wrapped(Square()), scaled, [0, 0])
    spans = np.ptp(scaled.reshape(2, -1), axis=1)
    variance = attributed("var_grad", explained, draws=draws, level=level).maps
    np.testing.assert_allclose(np.sqrt(variance.mean((1, 2, 3))), level * spans, rtol=0.01)
    smooth = attributed("smooth_grad", explained, draws=draws, level=level)
    errors = (smooth.maps - scaled).std((1, 2, 3))
    np.testing.assert_allclose(errors, level * spans / np.sqrt(draws), rtol=0.15)
    np.testing.assert_allclose(smooth.arrays["spread"], np.sqrt(variance.sum(1)), rtol=1e-5)


def test_the_three_averages_are_those_of_the_same_noisy_gradients(pictures):
    explained = question(wrapped(Rectified("function")), pictures[:2])
    gradients = []
    for row in range(2):
        noise = normal_noise(100 + row, slice(0, 6), pictures.shape[1:], 0, "smooth_grad")
        copies = pictures[row] + 0.15 * np.ptp(pictures[row]) * noise
        given = torch.from_numpy(copies).requires_grad_()
        explained.network.network(given)[:, row].sum().backward()
        gradients.append(given.grad.double().numpy())
    exact = np.stack(gradients)
    for name, expected in (
        ("smooth_grad", exact.mean(1)), ("smooth_grad_squared", (exact**2).mean(1)), ("var_grad", exact.var(1)),
    ):  # fmt: skip
        np.testing.assert_allclose(attributed(name, explained, draws=6).maps, expected, atol=1e-7, rtol=1e-4)


def test_several_averages_share_one_pass(pictures):
    seen = []

    class Counted(Rectified):
        def forward(self, inputs):
            seen.append(len(inputs))
            return super().forward(inputs)

    explained = question(wrapped(Counted("function")), pictures)
    for name in ("smooth_grad", "smooth_grad_squared", "var_grad"):
        attributed(name, explained, draws=3)
    assert sum(seen) == 18
    attributed("smooth_grad", explained, draws=4)
    assert sum(seen) == 18 + 24


@pytest.mark.parametrize("name", ALL)
def test_p10_a_sample_is_independent_of_its_batch(name, pictures):
    network = wrapped(Rectified("in place"))
    whole = quick(name, with_baselines(network, pictures))
    for size in (1, 4, 7):
        found = quick(name, with_baselines(network, pictures, batch_size=size))
        np.testing.assert_allclose(found, whole, rtol=1e-4, atol=1e-7)
    order = [4, 1, 5]
    explained = question(
        network, pictures[order], [0, 1, 1], sample_id=np.array([104, 101, 105]),
        baselines=torch.from_numpy(pictures[::-1] * 0.5)[:3],
    )  # fmt: skip
    np.testing.assert_allclose(quick(name, explained), whole[order], rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(quick(name, with_baselines(network, pictures)), whole)


def test_the_batch_bounds_what_is_there_at_once(pictures):
    explained = question(wrapped(Rectified("function")), pictures, batch_size=4)
    sizes = []

    class Watched(Rectified):
        def forward(self, inputs):
            sizes.append(len(inputs))
            return super().forward(inputs)

    explained.network.network = Watched("function").eval()
    places = [
        (row, draw)
        for row, draws, found in gradients_at_copies(explained, 5, lambda row, draws: explained.inputs[[row] * (draws.stop - draws.start)])
        for draw, _ in zip(range(draws.start, draws.stop), found, strict=True)
    ]  # fmt: skip
    assert places == [(row, draw) for row in range(6) for draw in range(5)]
    assert sizes == [4] * 7 + [2]


@pytest.mark.parametrize("shape", [(1, 1, 9, 9), (1, 3, 13, 8), (3, 2, 8, 11)])
def test_check_9_p27_any_channels_shape_and_number_of_classes(shape):
    inputs = bars(shape[0], 1, *shape[1:])[0] - 0.2
    for outputs in (2, 7):
        explained = with_baselines(wrapped(Rectified("in place", shape[1], outputs)), inputs)
        for name in ALL:
            found = quick(name, explained)
            assert found.shape == shape
            assert found.dtype == np.float32
            assert np.isfinite(found).all()
            assert np.abs(found).max() > 0


@pytest.mark.parametrize("name", ALL)
def test_check_10_p15_p16_p17_the_network_is_left_as_it_was(name, pictures):
    """Frozen weights and dropout in training mode too; nothing attributed stays on the graph (P11)."""
    inner = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True), nn.Dropout(0.5), nn.Flatten(), nn.Linear(384, 3))  # fmt: skip
    network = wrapped(inner)
    inner.train()
    inner[0].weight.requires_grad_(False)
    inner[5].weight.grad = torch.full_like(inner[5].weight, 2.0)
    before = {key: value.clone() for key, value in inner.state_dict().items()}
    given = torch.from_numpy(pictures.copy())
    with torch.no_grad():
        first = quick(name, with_baselines(network, given.numpy()))
        second = quick(name, with_baselines(network, given.numpy()))
    np.testing.assert_array_equal(first, second)
    assert inner.training
    assert [item.requires_grad for item in inner.parameters()] == [False, True, True, True, True, True]
    assert (inner[5].weight.grad == 2).all()
    assert inner[5].bias.grad is None
    for key, value in inner.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)
    for module in inner.modules():
        hooks = (
            module._forward_hooks,
            module._forward_pre_hooks,
            module._backward_hooks,
            module._backward_pre_hooks,
        )
        assert not any(hooks)
    np.testing.assert_array_equal(given.numpy(), pictures)


def test_p1_check_11_two_threads_with_private_networks(pictures):
    expected = {name: quick(name, with_baselines(wrapped(Rectified("in place")), pictures)) for name in ALL}
    wrong: list[str] = []

    def work(names, explained) -> None:
        for _ in range(3):
            explained.shared.clear()
            wrong.extend(name for name in names if not np.array_equal(quick(name, explained), expected[name]))

    # The weights come from torch's global generator: the networks are built before the threads start.
    shares = [(names, with_baselines(wrapped(Rectified("in place")), pictures)) for names in (ALL[:4], ALL[4:])]
    threads = [threading.Thread(target=work, args=share) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_p29_outputs_by_a_selector_and_segmentation_by_a_target(pictures):
    class Several(Rectified):
        def forward(self, inputs):
            return {"hidden": inputs, "logits": (super().forward(inputs), 1)}

    plain = question(wrapped(Rectified("function")), pictures)
    several = question(wrapped(Several("function"), output="logits[0]"), pictures)
    for name in ALL[:5]:
        np.testing.assert_allclose(quick(name, several), quick(name, plain), rtol=1e-6)

    parallel = question(wrapped(nn.DataParallel(Rectified("function"))), pictures)
    for name in ALL[:5]:
        np.testing.assert_array_equal(quick(name, parallel), quick(name, plain))

    places = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    target = Target("mine:corner", lambda outputs, indices: outputs[torch.arange(len(outputs)), indices, 0, 0])
    for wanted in (target, Target()):
        explained = with_baselines(wrapped(places), pictures, target=wanted)
        for name in ALL:
            assert np.isfinite(quick(name, explained)).all()
        found = quick("gradient", explained)
        assert (np.abs(found[:, :, 2:, 2:]).max() == 0) == (wanted is target)


def test_a_network_that_takes_one_size_of_batch_gives_the_same(pictures):
    class Fixed(Rectified):
        def forward(self, inputs):
            assert len(inputs) == 4
            return super().forward(inputs)

    fixed = wrapped(Fixed("in place"))
    fixed.fixed_batch_size = 4
    for name in ALL:
        expected = quick(name, with_baselines(wrapped(Rectified("in place")), pictures))
        np.testing.assert_allclose(quick(name, with_baselines(fixed, pictures)), expected, rtol=1e-4, atol=1e-7)


def test_a_network_that_works_in_place_on_its_input_changes_no_question(pictures):
    class Greedy(Rectified):
        def forward(self, inputs):
            return super().forward(inputs.sub_(0.1).relu_())

    class Careful(Rectified):
        def forward(self, inputs):
            return super().forward(torch.relu(inputs - 0.1))

    given = with_baselines(wrapped(Greedy("in place")), pictures.copy())
    for name in ALL:
        expected = quick(name, with_baselines(wrapped(Careful("function")), pictures))
        np.testing.assert_allclose(quick(name, given), expected, rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(given.inputs.numpy(), pictures)


def test_an_input_without_a_gradient_is_named(pictures):
    class Detached(nn.Module):
        def forward(self, inputs):
            return nn.functional.relu(inputs).detach().mean((2, 3))

    for name in ALL:
        with pytest.raises(DoesNotApply, match=r"no gradient flows from the output to the inputs|this network has no ReLU"):  # fmt: skip
            quick(name, with_baselines(wrapped(Detached()), pictures))


def test_positive_and_negative_parts_are_safe_at_zero():
    """U divides by the largest of each sign, which is zero where one is missing."""
    maps = np.array([[[2.0, -4.0]], [[0.0, -1.0]], [[0.0, 0.0]], [[np.nan, 3.0]]])
    positive, negative = signed_parts(maps)
    np.testing.assert_array_equal(positive[:, 0], [[1, 0], [0, 0], [0, 0], [0, 1]])
    np.testing.assert_array_equal(negative[:, 0], [[0, 1], [0, 1], [0, 0], [0, 0]])


def test_p30_small_gradients_are_kept(pictures):
    class Faint(Rectified):
        def forward(self, inputs):
            return super().forward(inputs) * 1e-9

    faint = quick("gradient", question(wrapped(Faint("function")), pictures))
    plain = quick("gradient", question(wrapped(Rectified("function")), pictures))
    np.testing.assert_allclose(faint * 1e9, plain, rtol=1e-5, atol=1e-8)
