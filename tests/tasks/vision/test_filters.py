"""Filters in the store and on the page: raw kernels, one scale over steps, pairs of convolutions by what feeds what."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from stratascope.errors import DoesNotApply
from stratascope.storage.archive import join_path
from stratascope.storage.names import step_directory
from stratascope.tasks.analysis import named
from stratascope.tasks.vision.convolution_paths import Between, ConvolutionGraph
from stratascope.tasks.vision.filters import chosen_ways, kernel_rows, way_words
from stratascope.tasks.vision.stored_kernels import filter_picture
from tests.tasks.vision.conftest import bars


@pytest.fixture(scope="module")
def filed(pictured_audit):
    pictured_audit.analyse("filters")
    return pictured_audit


def stored(audit, step, *place):
    return audit.store.array(join_path("runs", "run", step_directory(step), "filters", *place))


def test_kernels_are_filed_as_they_are(filed):
    rows = filed.view("filters").rows
    assert set(rows["status"]) <= {"ok", "does_not_apply"}
    assert {metric.name for metric in named("filters").metrics} == set(rows["metric"])
    for step in (0, 40):
        weights = load_file(filed.folder / f"step-{step}.safetensors")["conv2.weight"].numpy()
        np.testing.assert_array_equal(stored(filed, step, "filters", "conv2", "weights"), weights)
        norm = rows[(rows["metric"] == "filter_norm") & (rows["step"] == step) & (rows["layer"] == "conv2") & (rows["part"] == "")]  # fmt: skip
        assert norm["value"].iloc[0] == pytest.approx(
            np.linalg.norm(weights.reshape(8, -1), axis=1).mean(), rel=1e-6
        )


def test_the_pair_is_found_composed_and_refused_where_steps_are_too_many(filed):
    rows = filed.view("filters").rows
    (pair,) = rows[(rows["metric"] == "expanded_weight_concentration") & (rows["step"] == 40)].itertuples()
    assert (pair.layer, pair.other_layer, pair.status) == ("conv2", "conv1", "does_not_apply")
    assert "conv1 reads one channel" in pair.reason
    assert "norm1, ReLU, maximum over 2 × 2" in pair.convention
    assert stored(filed, 40, "expanded", "conv1 to conv2", "weights").shape == (8, 1, 8, 8)


def test_figures_of_filters(filed):
    figures = {figure.key: figure for figure in filed.draw("filters")}
    tiles = figures["first-layer"]
    assert [step for step, _ in tiles.frames] == [0, 10, 40]
    assert all(svg.count("<image") == 6 + 1 for _, svg in tiles.frames)
    grid = figures["first-layer-steps"]
    assert grid.svg.count("<image") == 6 * 3 + 1
    places = [grid.svg.index(f">filter {number}<") for number in range(6)]
    assert places == sorted(places)
    assert {"norms", "duplicates", "roughness"} <= set(figures)
    (pair,) = (figure for key, figure in figures.items() if key.startswith("expanded-conv1_to_conv2"))
    assert pair.frames[0][1].count("<image") == 8 + 1
    for figure in figures.values():
        assert re.search(r"\d", figure.caution), figure.key
        assert "nan" not in figure.caution
        assert figure.table


def test_filters_of_three_channels_are_colours_and_zero_is_grey():
    kernel = np.zeros((3, 2, 4))
    kernel[0, 0, 0], kernel[2, 1, 3] = 1.0, -1.0
    picture = filter_picture(kernel, 1.0)
    assert picture.shape == (2, 4, 3)
    assert picture[0, 0].tolist() == [255, 128, 128]
    assert picture[1, 3].tolist() == [128, 128, 0]
    assert (filter_picture(np.zeros((3, 2, 4)), 0.0) == 128).all()
    assert filter_picture(np.zeros((5, 2, 4)), 0.0).min() > 240


def test_cosine_to_the_first_checkpoint(filed):
    rows = filed.analyse("filter_change")
    one = rows[(rows["layer"] == "conv1") & (rows["step"] == 40)].set_index("part")
    before, after = (
        load_file(filed.folder / f"step-{step}.safetensors")["conv1.weight"].flatten(1).double()
        for step in (0, 40)
    )
    expected = torch.nn.functional.cosine_similarity(before, after).mean()
    assert one.loc["against=first", "value"] == pytest.approx(float(expected), abs=1e-6)
    assert one.loc["against=previous", "other_step"] == 10
    (figure,) = filed.draw("filter_change")
    assert "1 is the same direction" in figure.reading


def test_what_cannot_be_said_of_a_kernel_is_named():
    def reasons(values):
        return {row.metric: row.reason for row in kernel_rows("layer", values) if row.status != "ok"}

    assert "single number" in reasons(np.ones((4, 1, 1, 1)))["filter_duplicates"]
    assert "one filter" in reasons(np.ones((1, 3, 3, 3)))["filter_duplicates"]
    assert "1 × 1" in reasons(np.ones((4, 3, 1, 1)))["filter_high_frequency_share"]
    assert "all weights are zero" in reasons(np.zeros((4, 3, 3, 3)))["filter_high_frequency_share"]
    broken = kernel_rows("layer", np.full((2, 1, 3, 3), np.inf))
    assert {row.status for row in broken} == {"failed"}
    assert "18 of 18" in broken[0].reason


def between(first, second, steps=(), sums=0):
    return Between(first, second, steps, (), (), sums)


def test_pairs_by_name_and_the_nearest_without():
    graph = ConvolutionGraph(("a", "b", "c"), (between("a", "b", ("Relu",)), between("a", "c", ("Relu",), 1), between("b", "c", ("Relu",), 1)))  # fmt: skip
    assert [(way.first, way.second) for way in chosen_ways(graph, ())] == [("a", "b"), ("b", "c")]
    assert [way.first for way in chosen_ways(graph, (("a", "c"),))] == ["a"]
    with pytest.raises(DoesNotApply, match="no convolution 'bb' is run"):
        chosen_ways(graph, (("a", "bb"),))
    with pytest.raises(DoesNotApply, match="c does not feed b directly; a does"):
        chosen_ways(graph, (("c", "b"),))
    assert way_words(graph.ways[1]) == "ReLU; 1 sum whose other branches are left out"
    assert way_words(between("a", "b")) == "nothing"


def dense() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 3))


def branched() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Flatten(1))


def five() -> nn.Module:
    return nn.Sequential(nn.Conv2d(5, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 6, 3), nn.Flatten(1))


def test_pairs_that_read_many_channels_are_drawn_by_pattern_and_channel(little_audit):
    audit = little_audit("tests.tasks.vision.test_filters:five")
    audit.probe("test", "test", inputs=bars(4, 0, 5, 48, 80)[0])
    for step in (0, 5):
        torch.manual_seed(step)
        audit.checkpoint(step, nn.DataParallel(five()))
    rows = audit.analyse("filters")
    found = rows[(rows["metric"] == "expanded_weight_concentration") & (rows["step"] == 5)].set_index("part")[
        "value"
    ]
    weights = stored(audit, 5, "expanded", "0 to 3", "weights").astype(float)
    power = (weights**2).sum((2, 3))
    assert found["over=channels"] == pytest.approx(
        ((power / power.sum(1, keepdims=True)) ** 2).sum(1).mean(), rel=1e-5
    )
    singular = [np.linalg.svd(kernel.reshape(5, -1), compute_uv=False) ** 2 for kernel in weights]
    assert found["over=factors"] == pytest.approx(
        np.mean([values[0] / values.sum() for values in singular]), rel=1e-5
    )
    figures = {figure.key: figure for figure in audit.draw("filters")}
    (pair,) = (figure for key, figure in figures.items() if key.startswith("expanded-0_to_3"))
    assert [svg.count("<image") for _, svg in pair.frames] == [5 * 6 + 1] * 2
    assert "ReLU, mean over 2 × 2" in pair.caution
    assert "The mean over the input channels is drawn" in figures["first-layer"].reading
    assert "3 has" in figures["concentration"].caution


def test_networks_without_pictures_or_convolutions_say_so(little_audit):
    audit = little_audit("tests.tasks.vision.test_filters:dense")
    audit.probe("test", "test", inputs=bars(4, 0)[0])
    audit.checkpoint(0, dense())
    rows = audit.analyse("filters")
    assert set(rows["status"]) == {"does_not_apply"}
    assert "no convolution over pictures" in rows["reason"].iloc[0]
    assert audit.draw("filters") == []


def test_a_single_checkpoint_and_what_lies_between_by_name(little_audit):
    audit = little_audit("tests.tasks.vision.test_filters:branched")
    audit.probe("test", "test", inputs=bars(4, 0, 3, 48, 80)[0])
    audit.checkpoint(7, branched())
    rows = audit.analyse("filters").set_index(["metric", "layer"])
    assert "NativeGroupNorm" in rows.loc[("expanded_weight_concentration", "3"), "reason"]
    figures = {figure.key: figure for figure in audit.draw("filters")}
    assert "first-layer-steps" not in figures
    assert "concentration" not in figures
    assert "red, green and blue" in figures["first-layer"].reading
    change = audit.analyse("filter_change")
    assert "two checkpoints" in change["reason"].iloc[0]
