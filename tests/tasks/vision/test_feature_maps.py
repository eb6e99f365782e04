"""Feature maps in the store and on the page: raw, comparable over steps, and honest about what is not there."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from stratascope.storage.archive import join_path
from stratascope.storage.names import step_directory
from stratascope.tasks.analysis import named
from stratascope.tasks.models import convnet
from tests.tasks.vision.conftest import CLASSES, bars

LAYERS = ("conv1", "conv2", "relu2")


@pytest.fixture(scope="module")
def filed(pictured_audit):
    pictured_audit.analyse("feature_maps", samples=3, layers=("@convolutions", "relu2"))
    return pictured_audit


def stored(audit, step, *place):
    return audit.store.array(join_path("runs", "run", step_directory(step), "feature_maps", *place))


def test_maps_are_raw_and_those_of_a_forward_pass_by_hand(filed):
    view = filed.view("feature_maps")
    rows = view.rows[view.rows["status"] == "ok"]
    assert set(rows["metric"]) == {metric.name for metric in named("feature_maps").metrics}
    assert set(rows["layer"]) == set(LAYERS)
    network = convnet(channels=1, widths=[6, 8], outputs=4).eval()
    from safetensors.torch import load_file

    for step in (0, 40):
        network.load_state_dict(load_file(filed.folder / f"step-{step}.safetensors"))
        probe = view.probes["test"]
        identities = stored(filed, step, "test", "sample_id").tolist()
        places = {name: row for row, name in enumerate(probe.sample_id.tolist())}
        inputs = torch.from_numpy(np.stack([probe.inputs_at(slice(None))[places[name]] for name in identities]))
        with torch.no_grad():
            first = network.conv1(inputs)
            second = network.conv2(network.pool1(network.relu1(network.norm1(first))))
            last = network.relu2(network.norm2(second))
        for layer, expected in (("conv1", first), ("conv2", second), ("relu2", last)):
            maps = stored(filed, step, "test", layer, "maps")
            assert maps.dtype == np.float16
            np.testing.assert_allclose(maps, expected.numpy(), rtol=1e-3, atol=1e-4)
            scale = view.metric("feature_map_scale", probe="test", layer=layer)
            value = float(scale.loc[scale["step"] == step, "value"].iloc[0])
            assert value == pytest.approx(float(expected.abs().flatten().quantile(0.99)), rel=1e-5)
        np.testing.assert_array_equal(stored(filed, step, "test", "target"), probe.targets[[places[name] for name in identities]])  # fmt: skip


def test_the_same_samples_at_every_step(filed):
    identities = [stored(filed, step, "test", "sample_id").tolist() for step in (0, 10, 40)]
    assert identities[0] == identities[1] == identities[2]
    assert len(identities[0]) == 3


def test_figures_hold_all_layers_on_one_scale(filed):
    figures = {figure.key: figure for figure in filed.draw("feature_maps")}
    lead = figures["layers-side-by-side-test"]
    assert [figure.key for figure in figures.values() if figure.headline] == [lead.key]
    assert [step for step, _ in lead.frames] == [0, 10, 40]
    assert all(svg.count("<image") == 3 * (1 + len(LAYERS)) + 2 for _, svg in lead.frames)
    for layer in LAYERS:
        assert f">{layer}<" in lead.frames[0][1]
    scales = [set(re.findall(r"± [\d.]+|0 … [\d.]+", svg)) for _, svg in lead.frames]
    assert scales[0] == scales[1] == scales[2]
    assert len(scales[0]) == 3
    strip = figures["through-training-test"]
    assert strip.svg.count("<image") == 3 * len(LAYERS) + 1
    tiles = figures["by-channel-test-conv2"]
    assert len(tiles.frames) == 3
    assert tiles.frames[0][1].count("<image") == 8 + 1
    assert "0 of the stored channels" in tiles.caution
    assert {"by-checkpoint-test-conv1", "by-layer-test", "scales-test"} <= set(figures)
    for figure in figures.values():
        assert re.search(r"\d", figure.caution), figure.key
        assert "nan" not in figure.caution
        assert figure.table


def test_inputs_are_not_shown_where_they_may_not_be(filed):
    view = replace(filed.view("feature_maps"), show_inputs=False)
    figures = list(named("feature_maps").draw(view, named("feature_maps").options()))
    assert figures[0].frames[0][1].count("<image") == 3 * len(LAYERS) + 2
    assert ">input<" not in figures[0].frames[0][1]


def test_p22_inputs_are_shown_with_their_normalisation_undone(filed):
    from stratascope.tasks.vision.stored_maps import shown_samples

    view = filed.view("feature_maps")
    shown = shown_samples(view, "test", 40, 2)
    probe = view.probes["test"]
    row = [str(name) for name in probe.sample_id.tolist()].index(shown.names[0].split(":")[0][1:])
    raw = bars(48, 1)[0][row, 0]
    np.testing.assert_allclose(shown.pictures[0][..., 0] / 255, np.clip(raw, 0, 1), atol=0.003)
    assert shown.names[0].endswith(CLASSES[int(probe.targets[row])])
    assert not shown.normalised


def test_change_over_steps_is_filed_and_drawn(filed):
    rows = filed.analyse(
        "feature_map_change"
    )  # it computes the maps that it builds on anew, with their own defaults
    rows = rows[rows["status"] == "ok"]
    assert len(rows) == 2 * 2 * 2 * len(["conv1", "conv2"])
    one = rows[(rows["layer"] == "conv1") & (rows["probe"] == "test") & (rows["step"] == 40)].set_index("part")
    before, after = (stored(filed, step, "test", "conv1", "maps").astype(float) for step in (10, 40))
    flat = [item.reshape(len(item), -1) for item in (before, after)]
    expected = np.mean(np.linalg.norm(flat[1] - flat[0], axis=1) / np.mean([np.linalg.norm(item, axis=1) for item in flat], axis=0))  # fmt: skip
    assert one.loc["against=previous", "value"] == pytest.approx(expected, rel=1e-5)
    assert one.loc["against=first", "other_step"] == 0
    figures = filed.draw("feature_map_change")
    assert [figure.key for figure in figures] == ["change-previous-test", "change-first-test"]


def test_one_scale_leaves_no_step_empty_because_of_a_huge_one():
    from stratascope.tasks.vision.stored_maps import common_scale

    assert common_scale([1.0, 2.0, 8.0]) == (8.0, 1.0)
    assert common_scale([90.0, 2.0, 3.0]) == (3.0, 30.0)
    assert common_scale([4.0, 2.0, 0.0]) == (2.0, 2.0)
    assert common_scale([5.0, 0.0, 0.0]) == (5.0, 1.0)
    assert common_scale([0.0]) == (0.0, 1.0)


class Odd(nn.Module):
    """A channel that is always zero, one that is not finite where asked, five input channels, wide pictures."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.conv, self.next = nn.Conv2d(5, 3, 3), nn.Conv2d(3, 2, 3)
        self.broken = broken

    def forward(self, inputs):
        return self.next(torch.relu_(self.conv(inputs))).mean((2, 3))


def odd(broken: bool = False) -> nn.Module:
    return Odd(broken)


def test_p20_p21_zero_maps_are_zero_and_what_is_not_finite_is_said(little_audit):
    audit = little_audit("tests.tasks.vision.test_feature_maps:odd")
    audit.probe("wide", "test", inputs=bars(6, 0, 5, 48, 80)[0])
    audit.probe("rows", "shifted", inputs=np.zeros((4, 9), np.float32))
    for step in (0, 1):
        torch.manual_seed(0)
        network = Odd()
        with torch.no_grad():
            network.conv.weight[1] = 0
            network.conv.bias[1] = 0
            if step:
                network.next.weight[0, 0, 0, 0] = float("nan")
        audit.checkpoint(step, nn.DataParallel(network))
    rows = audit.analyse("feature_maps", samples=2)
    wide = rows[rows["probe"] == "wide"].set_index(["metric", "layer", "step"])
    assert wide.loc[("feature_map_zero_channel_fraction", "conv", 0), "value"] == pytest.approx(1 / 3)
    assert wide.loc[("feature_map_scale", "next", 1), "status"] == "failed"
    assert "not finite" in wide.loc[("feature_map_scale", "next", 1), "reason"]
    refused = rows[rows["probe"] == "rows"]
    assert set(refused["status"]) == {"does_not_apply"}
    assert "an image has (channel, y, x)" in refused["reason"].iloc[0]
    figures = {figure.key: figure for figure in audit.draw("feature_maps")}
    assert "shown 0 of the stored channels are zero" in figures["by-channel-wide-next"].caution
    assert "1 hold values that are not finite" in figures["by-channel-wide-next"].caution
    assert "shown 1 of the stored channels are zero" in figures["by-channel-wide-conv"].caution
    assert "not finite" in figures["scales-wide"].caution
    series = audit.analyse("feature_map_change")
    assert set(series.loc[series["layer"] == "next", "status"]) == {"failed"}
    assert set(series.loc[series["layer"] == "conv", "value"]) == {0.0}


def test_a_layer_that_is_not_spatial_is_named(pictured_audit):
    rows = pictured_audit.analyse("feature_maps", samples=2, layers=("fc",))
    assert set(rows["status"]) == {"does_not_apply"}
    assert "'fc' is not spatial" in rows["reason"].iloc[0]


def test_a_layer_to_draw_that_is_not_kept_is_named(pictured_audit):
    with pytest.raises(AssertionError, match="'conv3' is none of the 2 layers whose maps are kept"):
        pictured_audit.analyse("feature_maps", samples=2, drawn_layers=("conv3",))
