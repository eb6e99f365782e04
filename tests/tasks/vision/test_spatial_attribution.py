"""Class to position and position to position, against closed forms; what is filed and drawn; what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stratascope.errors import DoesNotApply
from stratascope.tasks.analysis import named
from stratascope.tasks.contexts import View
from stratascope.tasks.vision.position_links import (
    cosines,
    effective_share,
    even_cells,
    link_distances,
    position_links,
)
from stratascope.tasks.vision.spatial_layers import chosen_spatial_layers, observed
from tests.tasks.vision.conftest import bars, wrapped
from tests.tasks.vision.test_image_network import probe_of


class TwoConvolutions(nn.Module):
    """Without biases; the ReLU between them works in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(1, 4, 3, padding=1, bias=False),
            nn.Conv2d(4, 5, 3, padding=1, bias=False),
        )
        self.relu, self.side, self.head = nn.ReLU(inplace=True), nn.Conv2d(1, 5, 1), nn.Linear(5, 3)

    def forward(self, inputs):
        return self.head((self.second(self.relu(self.first(inputs))) + self.side(inputs)).mean((2, 3)))


@pytest.fixture
def linked():
    torch.manual_seed(0)
    network = wrapped(TwoConvolutions())
    pictures = torch.from_numpy(bars(3, 1)[0])
    layers = {layer.name: layer for layer in chosen_spatial_layers(["@convolutions"], observed(network, probe_of(pictures.numpy())).layers)}  # fmt: skip
    return network, pictures, layers


def test_links_of_a_homogeneous_part_add_up_to_the_norm_and_stay_in_its_window(linked):
    network, pictures, layers = linked
    cells = np.array([[5, 7], [0, 15]])
    links, norms = position_links(network, pictures, layers["first"], layers["second"], cells, 2)
    inner = network.network
    with torch.no_grad():
        second = inner.second(torch.relu(inner.first(pictures)))
    expected = second[:, :, cells[:, 0], cells[:, 1]].norm(dim=1).numpy()
    np.testing.assert_allclose(norms, expected, rtol=1e-5)
    np.testing.assert_allclose(links.sum((2, 3)), expected, rtol=1e-4)
    outside = links[:, 0].copy()
    outside[:, 4:7, 6:9] = 0
    assert not outside.any()
    # One cell written out: the sum over kernels of weight, input and direction of the norm.
    hidden = torch.relu(inner.first(pictures)).detach()
    direction = second[:, :, 5, 7] / second[:, :, 5, 7].norm(dim=1, keepdim=True)
    window = torch.einsum("so,oiyx,siyx->syx", direction, inner.second.weight, hidden[:, :, 4:7, 6:9])
    np.testing.assert_allclose(links[:, 0, 4:7, 6:9], window.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_a_layer_that_does_not_feed_another_is_named(linked):
    network, pictures, layers = linked
    for lower, upper in (("second", "first"), ("first", "side"), ("first", "first")):
        with pytest.raises(DoesNotApply, match=f"layer '{upper}' does not depend on layer '{lower}'"):
            position_links(network, pictures, layers[lower], layers[upper], np.array([[1, 1]]), 8)


def test_shares_cosines_and_distances_of_known_maps():
    one = np.zeros((1, 4, 4))
    one[0, 1, 1] = -2
    assert effective_share(one)[0] == pytest.approx(1 / 16)
    assert effective_share(np.ones((1, 4, 4)))[0] == pytest.approx(1)
    assert np.isnan(effective_share(np.zeros((1, 4, 4)))[0])
    assert cosines(one, -one)[0] == pytest.approx(-1)
    assert np.isnan(cosines(one, np.zeros_like(one))[0])
    # From cell (0, 0) of 2 × 2, centre (1/4, 1/4), to (1, 1) of 4 × 4, centre (3/8, 3/8).
    assert link_distances(one[:, None], np.array([[0, 0]]), (2, 2))[0, 0] == pytest.approx(np.hypot(1 / 8, 1 / 8))
    assert even_cells(7, 3).tolist() == [1, 3, 5]
    assert even_cells(2, 3).tolist() == [0, 1]


@pytest.fixture(scope="module")
def rows(pictured_audit):
    return pictured_audit.analyse("spatial_attribution", samples=3, cells=2)


def test_maps_are_complete_where_the_head_is_linear(pictured_audit, rows):
    """The grid before mean and linear layer: the map adds up to the score less the bias of the class."""
    from safetensors.torch import load_file

    for step in (0, 40):
        arrays = pictured_audit.view("spatial_attribution").arrays(step)
        bias = load_file(pictured_audit.folder / f"step-{step}.safetensors")["fc.bias"].numpy()
        (place,) = [name for name in arrays if name.startswith("test/") and name.endswith("/class_map")]
        expected = arrays["test/score"] - bias[arrays["test/class_index"]]
        np.testing.assert_allclose(arrays[place].sum((2, 3)), expected, rtol=1e-4, atol=1e-5)
        assert (arrays["test/class_index"][:, 0] == arrays["test/target"]).all()
        assert (arrays["test/class_index"][:, 0] != arrays["test/class_index"][:, 1]).all()
        (link,) = [name for name in arrays if name.startswith("test/") and name.endswith("/link")]
        assert arrays[link].shape == (3, 2, 2, 12, 16)
    assert set(rows["status"]) == {"ok"}
    assert set(rows["metric"]) == {metric.name for metric in named("spatial_attribution").metrics}


def test_the_figures_are_drawn_with_and_without_pictures(pictured_audit, rows):
    view = pictured_audit.view("spatial_attribution")
    hidden = View(view.store, view.run, view.analysis, view.scope, view.steps, view.rows, show_inputs=False)
    for shown in (view, hidden):
        figures = list(named("spatial_attribution").draw(shown, named("spatial_attribution").options()))
        assert [figure.key.split("-")[0] for figure in figures] == ["two", "over", "links", "links"]
        for figure in figures:
            assert any(digit.isdigit() for digit in figure.caution)
            assert "{" not in figure.shows + figure.caution


def test_bad_input_is_refused_by_name(pictured_audit):
    found = pictured_audit.analyse("spatial_attribution", samples=2, classes=[9], cells=1, link_from="fc")
    refused = found[found["status"] == "does_not_apply"]
    assert refused["reason"].str.contains("target 9 is out of range: the network has 4 outputs").any()
    assert refused["reason"].str.contains("layer 'fc' is not spatial").any()
    assert set(found["status"]) == {"does_not_apply"}


def test_given_classes_are_asked_of_every_sample(pictured_audit):
    pictured_audit.analyse("spatial_attribution", samples=2, classes=[1, 3], cells=1)
    arrays = pictured_audit.view("spatial_attribution").arrays(0)
    assert arrays["test/class_index"].tolist() == [[1, 3], [1, 3]]


def test_a_map_of_zeros_is_said_to_be_one(little_audit):
    from stratascope.tasks.models import convnet

    audit = little_audit("stratascope.tasks.models:convnet", {"channels": 1, "widths": [4, 4], "outputs": 3})
    inputs, targets = bars(4, 0)
    audit.probe("test", "test", inputs=inputs, targets=targets % 3)
    network = convnet(channels=1, widths=[4, 4], outputs=3).eval()
    network.fc.weight.data.zero_()
    audit.checkpoint(0, network)
    audit.capture("spatial_attribution")
    found = audit.analyse("spatial_attribution", samples=2, cells=1)
    spread = found[found["metric"] == "attribution_spread"]
    assert set(spread["status"]) == {"does_not_apply"}
    assert set(spread["reason"]) == {"every map is zero"}
    first = next(iter(audit.draw("spatial_attribution")))
    assert "2 have a map of zeros, drawn as zero" in first.caution
