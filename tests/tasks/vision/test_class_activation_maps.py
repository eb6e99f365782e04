"""Each map against its formula in double precision, against captum, and where it is known in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stratascope.tasks.vision.class_activation_maps import (
    GRADIENT_MAPS,
    edges,
    eigen_cam,
    enlarged,
    first_component,
    grad_cam_plus_plus,
    layer_cam,
    random_cam,
    x_grad_cam,
)
from stratascope.tasks.vision.image_network import layer_pass
from stratascope.tasks.vision.spatial_layers import chosen_spatial_layers, observed
from stratascope.tasks.vision.targets import Target
from tests.tasks.vision.conftest import bars, probe_of, wrapped


def pair(channels: int = 5, height: int = 3, width: int = 4, signed: bool = True, count: int = 3, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    activations = torch.randn(count, channels, height, width, generator=generator)
    gradients = torch.randn(count, channels, height, width, generator=generator)
    return (activations if signed else activations.clamp(min=0)), gradients


def singular(values: np.ndarray) -> np.ndarray:
    maps = []
    for item in values:
        matrix = item.reshape(len(item), -1).T
        direction = np.linalg.svd(matrix)[2][0]
        maps.append((matrix @ direction * np.sign(direction.sum())).reshape(item.shape[1:]))
    return np.stack(maps)


def in_double(name: str, a: np.ndarray, g: np.ndarray) -> np.ndarray:
    """The formulas of the papers, written out."""
    if name == "grad_cam":
        weights = g.mean((2, 3))
    elif name == "grad_cam_plus_plus":
        alpha = g**2 / (2 * g**2 + a.sum((2, 3), keepdims=True) * g**3)
        weights = (alpha * np.maximum(g, 0)).sum((2, 3))
    elif name == "x_grad_cam":
        weights = (g * a).sum((2, 3)) / a.sum((2, 3))
    elif name == "fem":
        mean, spread = a.mean((2, 3)), a.std((2, 3))
        return (mean[..., None, None] * (a > (mean + 2 * spread)[..., None, None])).sum(1)
    else:
        return {
            "hi_res_cam": (g * a).sum(1),
            "element_wise_cam": np.maximum(g * a, 0).sum(1),
            "layer_cam": (np.maximum(g, 0) * a).sum(1),
            "eigen_cam": singular(a),
            "eigen_grad_cam": singular(g * a),
        }[name]
    return (weights[..., None, None] * a).sum(1)


@pytest.mark.parametrize("channels", [5, 20])
@pytest.mark.parametrize("name", GRADIENT_MAPS)
def test_every_map_is_its_formula(name, channels):
    activations, gradients = pair(channels, signed=False)
    found = GRADIENT_MAPS[name](activations, gradients)
    expected = in_double(name, activations.double().numpy(), gradients.double().numpy())
    np.testing.assert_allclose(found.maps, expected, rtol=2e-5, atol=2e-5)
    if found.weights is not None and name != "fem":
        source = gradients * activations if name == "eigen_grad_cam" else activations
        again = torch.einsum("nc,ncyx->nyx", found.weights, source)
        torch.testing.assert_close(again, found.maps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", GRADIENT_MAPS)
def test_a_sample_does_not_depend_on_its_batch(name):
    activations, gradients = pair(count=5)
    together = GRADIENT_MAPS[name](activations, gradients).maps
    alone = torch.cat([GRADIENT_MAPS[name](activations[row : row + 1], gradients[row : row + 1]).maps for row in range(5)])  # fmt: skip
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_closed_form_3_with_pooling_and_one_linear_layer_grad_cam_is_the_class_activation_map():
    torch.manual_seed(0)
    network = wrapped(nn.Sequential(nn.Conv2d(2, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)))  # fmt: skip
    inputs = torch.randn(3, 2, 9, 12)
    layers = chosen_spatial_layers(["1"], observed(network, probe_of(inputs.numpy())).layers)
    seen = layer_pass(network, inputs, torch.tensor([0, 3, 1]), Target(), [layers[0].info])
    activations, gradients = seen.activations["1"], seen.gradients["1"]
    weights = network.network[4].weight.detach()[[0, 3, 1]]
    expected = torch.einsum("nc,ncyx->nyx", weights, activations) / (7 * 10)
    for name in ("grad_cam", "x_grad_cam", "hi_res_cam"):
        torch.testing.assert_close(GRADIENT_MAPS[name](activations, gradients).maps, expected)


def test_grad_cam_equals_captum():
    from captum.attr import LayerGradCam

    from stratascope.tasks.models import convnet

    torch.manual_seed(1)
    network = wrapped(convnet(channels=1, widths=[4, 6], outputs=4))
    inputs, targets = (torch.from_numpy(values) for values in bars(6, 0))
    layers = chosen_spatial_layers(["conv2", "relu1"], observed(network, probe_of(inputs.numpy())).layers)
    seen = layer_pass(network, inputs, targets, Target(), [layer.info for layer in layers])
    for layer in layers:
        expected = LayerGradCam(network.network, network.network.get_submodule(layer.name)).attribute(
            inputs, targets
        )
        found = GRADIENT_MAPS["grad_cam"](seen.activations[layer.name], seen.gradients[layer.name])
        torch.testing.assert_close(found.maps, expected[:, 0].detach(), rtol=1e-4, atol=1e-7)


def test_closed_form_6_layer_cam_of_gradients_above_zero_is_hi_res_cam():
    activations, gradients = pair()
    found = layer_cam(activations, gradients.abs())
    torch.testing.assert_close(found.maps, GRADIENT_MAPS["hi_res_cam"](activations, gradients.abs()).maps)


@pytest.mark.parametrize("channels", [4, 30])
def test_closed_form_6_eigen_cam_of_rank_one_is_its_spatial_factor(channels):
    place, weight = torch.rand(2, 3, 4), torch.rand(2, channels)
    activations = torch.einsum("nyx,nc->ncyx", place, weight)
    found = eigen_cam(activations, torch.zeros_like(activations))
    torch.testing.assert_close(found.maps, place * weight.norm(dim=1)[:, None, None])


def test_the_sign_of_a_component_does_not_depend_on_the_solver():
    """Turned inside out the map turns too, and it agrees with the sum over channels."""
    values = pair(7, seed=3)[0]
    found = first_component(values)
    assert (found.weights.sum(1) > 0).all()
    assert ((found.maps * values.sum(1)).sum((1, 2)) > 0).all()
    torch.testing.assert_close(first_component(-values).maps, -found.maps)
    place = torch.rand(2, 2)
    balanced = torch.einsum("yx,c->cyx", place, torch.tensor([1.0, -1.0, 0.5, -0.5]))[None]
    torch.testing.assert_close(first_component(balanced).maps[0], place * 2.5**0.5)


@pytest.mark.parametrize(("channels", "places"), [(40, 60), (60, 40)])
@pytest.mark.parametrize("second", [0.2, 0.9, 0.999])
def test_a_component_is_found_whatever_the_gap_to_the_next_one(channels, places, second):
    """Singular values 1, `second` and many just below it: the quick way, the slow one and the solver agree with numpy."""
    generator = np.random.default_rng(0)
    left = np.linalg.qr(generator.normal(size=(places, 40)))[0]
    right = np.linalg.qr(generator.normal(size=(channels, 40)))[0]
    values = (left * np.r_[1, second * np.linspace(1, 0.98, 39)]) @ right.T
    found = first_component(torch.from_numpy(values.T.reshape(1, channels, 5, -1)).float())
    expected = left[:, 0] * np.sign(right[:, 0].sum())
    # Rounding of the values themselves turns the direction by their size over the gap.
    np.testing.assert_allclose(found.maps.numpy().ravel(), expected, atol=1e-6 + 3e-7 / (1 - second))


def test_samples_that_need_the_solver_do_not_change_those_that_do_not():
    easy, hard = torch.rand(2, 30, 4, 8), torch.randn(2, 30, 4, 8, generator=torch.Generator().manual_seed(0))
    mixed = first_component(torch.cat([easy[:1], hard, easy[1:]])).maps
    torch.testing.assert_close(mixed[[0, 3]], first_component(easy).maps, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(mixed[1:3], singular(hard.double().numpy()), atol=2e-5)


@pytest.mark.parametrize("name", GRADIENT_MAPS)
def test_p8_p26_nothing_gives_zero_and_never_nan(name):
    """The sum starts at 0; a channel whose activations cancel, or are constant, has no denominator."""
    activations, gradients = pair()
    zeros = torch.zeros_like(activations)
    for values in ((zeros, gradients), (zeros, zeros)):
        assert torch.equal(GRADIENT_MAPS[name](*values).maps, torch.zeros(3, 3, 4))
    cancelled = activations - activations.mean((2, 3), keepdim=True)
    cancelled[:, 0] = 0
    cancelled[:, 1] = 3
    assert torch.isfinite(GRADIENT_MAPS[name](cancelled, gradients).maps).all()


def test_p26_a_channel_that_cancels_weighs_nothing():
    activations, gradients = pair()
    activations[:, 0] = torch.tensor([1.0, -1.0]).repeat(6).reshape(3, 4)
    found = x_grad_cam(activations, gradients)
    assert torch.equal(found.weights[:, 0], torch.zeros(3))
    # 2 + ΣA · G = 0 at every place of channel 0.
    activations[:, 0], gradients[:, 0] = 1 / 12, -2.0
    assert torch.isfinite(grad_cam_plus_plus(activations, gradients).maps).all()


def test_p26_grad_cam_plus_plus_is_right_for_the_exponential_of_the_logit():
    """α from second and third derivatives of Y = exp(S), S linear in the activations."""
    generator = torch.Generator().manual_seed(0)
    activations = torch.rand(1, 2, 2, 2, generator=generator).double()
    slopes = torch.randn(1, 2, 2, 2, generator=generator).double()
    derivatives = []
    value = activations.clone().requires_grad_()
    current = ((value * slopes).sum()).exp()
    for _ in range(3):
        # Each entry's own derivative of the entry before it.
        if current.ndim == 0:
            (current,) = torch.autograd.grad(current, value, create_graph=True)
        else:
            rows = [torch.autograd.grad(item, value, create_graph=True)[0].flatten()[place] for place, item in enumerate(current.flatten())]  # fmt: skip
            current = torch.stack(rows).reshape(value.shape)
        derivatives.append(current.detach())
    first, second, third = derivatives
    alpha = second / (2 * second + activations.sum((2, 3), keepdim=True) * third)
    score = float((activations * slopes).sum().exp())
    expected = (alpha * first.clamp(min=0)).sum((2, 3)) / score
    torch.testing.assert_close(grad_cam_plus_plus(activations, slopes).weights, expected)


def test_p30_small_gradients_are_not_lost():
    activations, gradients = pair(signed=False)
    for name, function in GRADIENT_MAPS.items():
        if name not in ("eigen_cam", "fem", "grad_cam_plus_plus"):
            small = function(activations, gradients * 1e-20).maps * 1e20
            torch.testing.assert_close(small, function(activations, gradients).maps, rtol=1e-3, atol=1e-5)
    small = grad_cam_plus_plus(activations, gradients * 1e-20).maps
    limit = torch.einsum("nc,ncyx->nyx", gradients.clamp(min=0).sum((2, 3)) / 2, activations)
    torch.testing.assert_close(small * 1e20, limit)


@pytest.mark.parametrize("name", GRADIENT_MAPS)
def test_what_is_not_finite_stays_so_in_its_own_sample_alone(name):
    activations, gradients = pair()
    whole = GRADIENT_MAPS[name](activations, gradients).maps
    activations[1, 2, 1, 1] = torch.nan
    found = GRADIENT_MAPS[name](activations, gradients).maps
    assert not torch.isfinite(found[1]).all()
    torch.testing.assert_close(found[[0, 2]], whole[[0, 2]])


def test_random_weights_belong_to_samples_and_layers():
    activations = torch.rand(3, 6, 2, 2)
    names = np.array(["a", "b", "c"])
    found = random_cam(activations, names, "layer", 0)
    again = random_cam(activations.flip(0), names[::-1], "layer", 0)
    torch.testing.assert_close(again.maps.flip(0), found.maps)
    assert not torch.equal(random_cam(activations, names, "other", 0).weights, found.weights)
    assert not torch.equal(random_cam(activations, names, "layer", 1).weights, found.weights)
    assert float(found.weights.min()) < 0 < float(found.weights.max())


def test_p27_edges_of_a_wide_picture_are_where_they_are():
    picture = torch.zeros(2, 5, 48, 80)
    picture[0, :, :, 40:] = 1
    picture[1, :, 24:] = 1
    found = edges(picture, (6, 10))
    assert found.shape == (2, 6, 10)
    assert (found[0, :, 4:6] > 0).all()
    assert not found[0, :, :4].any()
    assert (found[1, 2:4] > 0).all()
    assert not found[1, :2].any()
    assert not edges(torch.full((1, 1, 8, 8), 3.0), (4, 4)).any()


def test_enlarging_by_a_whole_factor_keeps_the_mean():
    maps = torch.randn(2, 3, 5)
    torch.testing.assert_close(enlarged(maps, (12, 20)).mean((1, 2)), maps.mean((1, 2)))
