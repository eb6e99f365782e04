"""Every way to write a ReLU follows the rule: against captum, and against a reference that writes the rule out."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from stratascope.errors import DoesNotApply
from stratascope.tasks.vision.attribution_methods import method_named
from stratascope.tasks.vision.rectifier_rules import rectifiers
from tests.tasks.vision.conftest import bars, wrapped
from tests.tasks.vision.questions import Rectified, attributed, question

METHODS = ("guided_backpropagation", "deconvolution")


class Guided(torch.autograd.Function):
    @staticmethod
    def forward(context, values):
        context.save_for_backward(values)
        return values.clamp(min=0)

    @staticmethod
    def backward(context, gradient):
        (values,) = context.saved_tensors
        return torch.where((values > 0) & (gradient > 0), gradient, 0.0)


class Deconvolved(torch.autograd.Function):
    @staticmethod
    def forward(context, values):
        return values.clamp(min=0)

    @staticmethod
    def backward(context, gradient):
        return torch.where(gradient > 0, gradient, 0.0)


REFERENCES = {"guided_backpropagation": Guided, "deconvolution": Deconvolved}


@pytest.fixture(scope="module")
def pictures():
    return (bars(6, 5, channels=2, height=10, width=14)[0] - 0.3).astype(np.float32)


def reference(name: str, inputs: np.ndarray, indices: torch.Tensor) -> np.ndarray:
    network = Rectified("modules").eval()
    network.rectify = lambda values, place: REFERENCES[name].apply(values)
    pixels = torch.from_numpy(inputs).requires_grad_()
    network(pixels).gather(1, indices[:, None]).sum().backward()
    return pixels.grad.numpy()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("way", Rectified.WAYS)
def test_p4_every_way_to_write_a_relu_follows_the_rule(name, way, pictures):
    explained = question(wrapped(Rectified(way)), pictures)
    found = attributed(name, explained)
    np.testing.assert_allclose(found.maps, reference(name, pictures, explained.indices), rtol=0, atol=1e-7)
    assert not found.warnings
    assert np.abs(found.maps - attributed("gradient", explained).maps).max() > 1e-3


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
@pytest.mark.parametrize("name", METHODS)
def test_captum_finds_the_same_where_relus_are_modules(name, pictures):
    import captum.attr

    network = wrapped(Rectified("modules"))
    explained = question(network, pictures)
    theirs = {"guided_backpropagation": "GuidedBackprop", "deconvolution": "Deconvolution"}[name]
    expected = getattr(captum.attr, theirs)(Rectified("modules").eval()).attribute(
        explained.inputs.clone().requires_grad_(), target=explained.indices
    )
    np.testing.assert_array_equal(attributed(name, explained).maps, expected.detach().numpy())


@pytest.mark.parametrize("rule", ["guided", "deconvolution"])
@pytest.mark.parametrize(
    "rectify",
    [
        lambda values: functional.relu6(values), lambda values: nn.ReLU6(inplace=True)(values), lambda values: nn.Hardtanh(0, 6)(values),
        lambda values: functional.threshold(values, 0.0, 0.0), lambda values: torch.clip(values, 0, 6), lambda values: torch.max(values, torch.zeros_like(values)),
        lambda values: functional.relu(values.flatten(1), inplace=True), lambda values: torch.ops.aten.relu.default(values),
    ],
)  # fmt: skip
def test_other_rectifiers_and_views_changed_in_place(rule, rectify):
    given = torch.tensor([[-1.0, 2.0, 8.0, 3.0]], requires_grad=True)
    weights = torch.tensor([1.0, 1.0, 1.0, -1.0])
    with rectifiers(rule) as calls:
        found = rectify(given * 1.0)
        (found * weights).sum().backward()
    with torch.no_grad():
        expected = rectify(given.detach().clone())
    torch.testing.assert_close(found.detach(), expected)
    inside = torch.tensor([0.0, 1.0, float(expected[0, 2] == 8), 0.0])
    torch.testing.assert_close(given.grad[0], inside if rule == "guided" else torch.tensor([1.0, 1.0, 1.0, 0.0]))
    assert calls.rectified.total() == 1


@pytest.mark.parametrize("rule", ["guided", "deconvolution"])
def test_what_is_changed_in_place_keeps_its_earlier_uses(rule):
    """What was read before the ReLU overwrote it has its own gradient, which the rule must leave alone."""
    given = torch.tensor([2.0, -3.0], requires_grad=True)
    with rectifiers(rule):
        hidden = given * 1.0
        before = hidden * -5.0
        hidden.relu_()
        (before + hidden).sum().backward()
    assert given.grad.tolist() == ([-4.0, -5.0] if rule == "guided" else [-4.0, -4.0])


@pytest.mark.parametrize("function", [
    lambda values: values.clamp(-1, 1), lambda values: values.clamp(max=0), nn.Hardtanh(), nn.Threshold(0.1, 0.0), torch.abs, torch.sigmoid,
    lambda values: torch.maximum(values, torch.ones(3)), lambda values: values.max(-1).values,
])  # fmt: skip
def test_what_is_no_relu_keeps_its_gradient(function):
    values = torch.tensor([-0.5, 0.5, 2.0])
    found = []
    for ruled in (False, True):
        given = values.clone().requires_grad_()
        if ruled:
            with rectifiers("guided") as calls:
                (-function(given)).sum().backward()
            assert not calls.rectified
        else:
            (-function(given)).sum().backward()
        found.append(given.grad)
    torch.testing.assert_close(*found)


def test_check_5_guided_equals_the_gradient_where_nothing_is_below_zero(pictures):
    network = Rectified("function")
    for item in network.parameters():
        item.data.abs_()
    explained = question(wrapped(network), np.abs(pictures))
    plain = attributed("gradient", explained).maps
    for name in METHODS:
        np.testing.assert_allclose(attributed(name, explained).maps, plain, rtol=1e-6)


def test_a_network_without_a_relu_is_not_guided(pictures):
    smooth = nn.Sequential(nn.Conv2d(2, 3, 3), nn.GELU(), nn.Flatten(), nn.Linear(3 * 8 * 12, 4), nn.SiLU())
    with pytest.raises(DoesNotApply, match="not guided: this network has no ReLU; it has GELU, SiLU, for which"):
        attributed("guided_backpropagation", question(wrapped(smooth), pictures))
    with pytest.raises(DoesNotApply, match=r"not a deconvolution: this network has no ReLU\. Its plain"):
        attributed("deconvolution", question(wrapped(nn.Sequential(nn.Flatten(), nn.Linear(280, 4))), pictures))
    both = nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.GELU(), nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(180, 4)
    )
    found = attributed("guided_backpropagation", question(wrapped(both), pictures))
    assert found.warnings == ("guided at its ReLUs only: GELU keep their plain gradient",)


def test_p1_a_rule_in_one_thread_is_not_felt_in_another(pictures):
    """Both threads run the very same network: hooks on it would reach both."""
    network = wrapped(Rectified("modules"))
    for item in network.network.parameters():
        item.requires_grad_(False)

    def maps(name: str) -> np.ndarray:
        return method_named(name).compute(question(network, pictures)).maps

    names = ("gradient", *METHODS)
    expected = {name: maps(name) for name in names}
    wrong: list[str] = []

    def work(name: str) -> None:
        wrong.extend(name for _ in range(15) if not np.array_equal(maps(name), expected[name]))

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
