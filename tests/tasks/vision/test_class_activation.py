"""The analysis in a real store: raw maps by step, named refusals, drawings that hide nothing."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from stratascope.errors import DoesNotApply
from stratascope.storage.archive import join_path
from stratascope.storage.model_spec import ModelSpec
from stratascope.storage.names import step_directory
from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import Findings, named
from stratascope.tasks.contexts import CheckpointContext, Subject
from stratascope.tasks.vision.class_activation import ClassActivationOptions, _ProbeMaps
from stratascope.tasks.vision.class_activation_measures import soft_masks
from stratascope.tasks.vision.class_activation_methods import METHODS
from stratascope.tasks.vision.image_network import ImageNetwork
from stratascope.tasks.vision.map_similarity import rank_correlations
from tests.tasks.vision.conftest import bars

EVERY = tuple(METHODS)
LAYERS = ("relu1", "@last_spatial")


def findings_of(network, inputs, targets=None, model=None, task="classification", sample_id=None, **options):
    """The analysis of one network and one probe, without a store."""
    names = np.arange(len(inputs)) if sample_id is None else sample_id
    probe = Probe("test", "test", inputs, targets, names, (), "digest")
    subject = Subject("", "run", ("test",), None, "", task)
    context = CheckpointContext(None, subject, 0)
    private = ImageNetwork(network, ModelSpec(factory="none:none", **(model or {})))
    findings = Findings()
    with private.untouched():
        _ProbeMaps(context, private, probe, ClassActivationOptions(**options)).file(findings)
    return findings


def cams(findings, layer):
    values = findings.arrays[f"test/{layer}/cam"].values
    return dict(zip(findings.arrays[f"test/{layer}/method"].values.tolist(), values, strict=True))


def rows_of(findings, metric, **where):
    return [row for row in findings.rows if row.metric == metric and all(getattr(row, key) == value for key, value in where.items())]  # fmt: skip


class Segmenter(nn.Module):
    """Five channels in, seven classes for each place out, in a tuple; functional and in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(5, 4, 3, 2, 1), nn.Conv2d(4, 7, 1)

    def forward(self, inputs):
        hidden = torch.relu_(self.first(inputs))
        return {"scores": self.second(hidden), "hidden": hidden}


@pytest.fixture(scope="module")
def analysed(pictured_audit):
    rows = pictured_audit.analyse("class_activation", samples=3, layers=LAYERS, methods=EVERY)
    return pictured_audit, rows


def test_every_method_is_filed_at_every_step(analysed):
    audit, rows = analysed
    view = audit.view("class_activation")
    assert set(rows["status"]) == {"ok"}
    for step in (0, 10, 40):
        arrays = view.arrays(step)
        methods = [name for name in EVERY if METHODS[name].kind != "picture"]
        assert arrays["test/relu1/method"].tolist() == methods
        assert arrays["test/relu1/cam"].shape == (len(methods), 3, 12, 16)
        assert arrays["test/relu2/cam"].shape == (len(methods), 3, 6, 8)
        assert arrays["test/relu2/cam"].dtype == np.float32
        assert arrays["test/relu2/weights"].shape[1:] == (3, 8)
        assert arrays["test/@full_grad/map"].shape == (3, 12, 16)
        assert arrays["test/@guided/gradient"].shape == (3, 1, 12, 16)
        np.testing.assert_array_equal(arrays["test/sample_id"], view.arrays(0)["test/sample_id"])
        place = join_path("runs", "run", step_directory(step), "class_activation", "test", "relu2", "cam")
        assert audit.store.array_info(place)[0] == ("method", "class_activation_sample", "y", "x")
    gaps = rows[rows["metric"] == "cam_completeness_gap"]
    assert gaps["value"].max() < 1e-4
    counts = rows[(rows["probe"] == "test") & (rows["step"] == 40)]["metric"].value_counts()
    assert counts["cam_agreement"] == 2 * 13
    assert counts["cam_confidence_drop"] == 2 * 14 + 1


def test_p20_maps_are_raw_and_the_random_weights_are_the_same_at_every_step(analysed):
    view = analysed[0].view("class_activation")
    first, last = view.arrays(0), view.arrays(40)
    sizes = [np.abs(found["test/relu2/cam"][0]).max() for found in (first, last)]
    assert sizes[1] > 2 * sizes[0]
    assert first["test/relu2/cam"].min() < 0
    weighted = first["test/relu2/weighted_method"].tolist().index("random_cam")
    np.testing.assert_array_equal(first["test/relu2/weights"][weighted], last["test/relu2/weights"][weighted])


def test_the_head_of_pooling_and_one_linear_layer_makes_methods_agree(analysed):
    rows = analysed[1]
    found = rows[(rows["metric"] == "cam_agreement") & (rows["layer"] == "relu2")]
    for method in ("grad_cam", "x_grad_cam"):
        assert found[found["part"] == f"method={method}"]["value"].min() > 0.999
    assert abs(found[found["part"] == "method=random_cam"]["value"].mean()) < 0.6


def test_figures_speak_of_their_data(analysed):
    audit, _ = analysed
    figures = audit.draw("class_activation")
    keys = [figure.key for figure in figures]
    assert len(keys) == len(set(keys))
    wanted = ("weighed", "others", "steps-grad_cam", "steps-layer_cam", "depth", "signed", "full", "terms", "guided",
              "confidence", "agreement", "change")  # fmt: skip
    for start in wanted:
        assert any(key.startswith(start) for key in keys), start
    for figure in figures:
        assert re.search(r"\d", figure.caution)
        assert figure.practitioner != figure.researcher
        assert figure.svg or len(figure.frames) == 3
        assert figure.table
    slider = next(figure for figure in figures if figure.key == "weighed-test-relu2")
    assert slider.frames[0][1].count("<image") == 3 * 7 + 1
    assert sum(figure.headline for figure in figures) == 1


def test_pictures_stay_hidden_where_they_must(analysed):
    audit, _ = analysed
    view = audit.view("class_activation")
    view.show_inputs = False
    slider = next(iter(named("class_activation").draw(view, ClassActivationOptions())))
    assert slider.key == "weighed-test-relu2"
    assert ">picture<" not in slider.frames[0][1]
    assert slider.frames[0][1].count("<image") == 3 * 6 + 1


@pytest.fixture(scope="module")
def small():
    from stratascope.tasks.models import convnet

    torch.manual_seed(0)
    return convnet(channels=1, widths=[3, 4], outputs=4).eval()


def test_a_sample_depends_on_nothing_but_itself(small):
    inputs, targets = bars(5, 2)
    options = {"samples": 5, "methods": EVERY, "layers": LAYERS}
    whole = findings_of(small, inputs, targets, batch_size=64, **options)
    order = np.array([3, 0, 4, 1, 2])
    other = findings_of(small, inputs[order], targets[order], sample_id=order, batch_size=2, **options)
    assert whole.arrays.keys() == other.arrays.keys()
    for path, array in whole.arrays.items():
        if array.values.dtype.kind == "f":
            np.testing.assert_allclose(array.values, other.arrays[path].values, rtol=1e-4, atol=1e-5, err_msg=path)
        else:
            np.testing.assert_array_equal(array.values, other.arrays[path].values)
    assert [row.metric for row in whole.rows] == [row.metric for row in other.rows]


def test_p10_p15_p16_the_network_is_left_as_it_was(small):
    inputs, targets = bars(3, 2)
    network = small.train()
    network.conv1.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    findings_of(network, inputs, targets, methods=EVERY, layers=LAYERS)
    assert all(module.training for module in network.modules())
    assert [item.requires_grad for item in network.parameters()].count(False) == 1
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    for module in network.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
        assert "forward" not in module.__dict__
    assert all(item.grad is None for item in network.parameters())
    network.conv1.weight.requires_grad_(True)
    network.eval()


def test_p19_p27_p29_segmentation_with_five_channels_and_seven_classes():
    inputs = np.random.default_rng(0).normal(size=(2, 5, 48, 80)).astype(np.float32)
    targets = np.zeros((2, 24, 40), np.int64)
    methods = [name for name in EVERY if name != "guided_grad_cam"]
    found = findings_of(Segmenter(), inputs, targets, {"output": "scores"}, layers=("second", "first"), methods=methods, target=6)  # fmt: skip
    maps = cams(found, "first")
    assert maps["grad_cam"].shape == (2, 24, 40)
    assert found.arrays["test/@full_grad/map"].values.shape == (2, 48, 80)
    assert rows_of(found, "cam_completeness_gap")[0].value < 1e-5
    assert found.arrays["test/second/weights"].values.shape[2] == 7
    drops = rows_of(found, "cam_confidence_drop")
    assert {row.status for row in drops} == {"does_not_apply"}
    assert "outputs of shape (7, 24, 40)" in drops[0].reason
    # Only the asked class's channel has a gradient at the output itself.
    weights = dict(zip(found.arrays["test/second/weighted_method"].values.tolist(), found.arrays["test/second/weights"].values, strict=True))  # fmt: skip
    assert not weights["grad_cam"][:, :6].any()
    assert weights["grad_cam"][:, 6].all()


def test_a_class_that_is_not_there_and_a_layer_that_is_not_spatial_are_named(small):
    inputs, targets = bars(3, 2)
    with pytest.raises(DoesNotApply, match="target 9 is out of range: the network has 4 outputs"):
        findings_of(small, inputs, targets, target=9)
    with pytest.raises(DoesNotApply, match="'fc' is not spatial"):
        findings_of(small, inputs, targets, layers=("fc",))
    found = findings_of(small, inputs, targets, layers=("fc", "relu1"), methods=("grad_cam",))
    refused = [row for row in found.rows if row.layer == "fc"]
    assert {row.status for row in refused} == {"does_not_apply"}
    assert "is not spatial" in refused[0].reason
    assert "test/relu1/cam" in found.arrays
    with pytest.raises(ValidationError, match=r"there is no class activation map 'gradcam'.*grad_cam"):
        ClassActivationOptions(methods=("gradcam",))


def test_methods_that_need_relus_name_what_is_missing():
    smooth = nn.Sequential(nn.Conv2d(5, 3, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    refused = findings_of(smooth, np.zeros((1, 5, 8, 8), np.float32), None, methods=("guided_grad_cam",))
    assert [row.status for row in refused.rows] == ["does_not_apply"]
    assert "no ReLU: there is nothing to guide" in refused.rows[0].reason


def test_p4_functional_relus_are_guided_in_guided_grad_cam_too():
    pictures = np.random.default_rng(0).normal(size=(1, 5, 8, 8)).astype(np.float32)
    found = findings_of(Segmenter(), pictures, None, {"output": "scores"}, methods=("guided_grad_cam", "grad_cam"))
    assert found.arrays["test/@guided/gradient"].values.any()


def test_p21_a_class_token_leaves_a_map_of_zeros_that_is_named():
    """The head reads the class token alone: the last grid has no gradient, an earlier one has."""
    from stratascope.tasks.models import vision_transformer

    torch.manual_seed(0)
    network = vision_transformer(size=12, patch=4, width=16, heads=2, depth=2, outputs=4)
    inputs = np.random.default_rng(0).normal(size=(2, 1, 12, 12)).astype(np.float32)
    options = {"layers": ("norm", "blocks.1.norm1"), "methods": ("grad_cam", "hi_res_cam", "ablation_cam")}
    found = findings_of(network, inputs, np.array([1, 2]), **options)
    last, earlier = cams(found, "norm"), cams(found, "blocks.1.norm1")
    assert last["grad_cam"].shape == earlier["grad_cam"].shape == (2, 3, 3)
    assert not last["grad_cam"].any()
    assert earlier["hi_res_cam"].any()
    row = rows_of(found, "cam_zero_fraction", layer="norm", part="method=grad_cam")[0]
    assert row.value == 1
    assert "nowhere above 0: samples 0, 1" in row.convention
    assert "the gradient is zero at every place of this layer" in row.convention
    assert rows_of(found, "cam_agreement", layer="norm", part="method=grad_cam")[0].status == "does_not_apply"


def test_a_map_that_is_not_finite_is_failed_and_names_the_sample(small):
    inputs, targets = bars(3, 2)
    inputs[1, 0, 4, 4] = np.nan
    found = findings_of(small, inputs, targets, sample_id=np.array(["a", "b", "c"]), methods=("grad_cam", "edges"))
    row = rows_of(found, "cam_zero_fraction", part="method=grad_cam")[0]
    assert row.status == "failed"
    assert "1 of 3 maps are not finite, first that of sample b" in row.reason


def test_masks_and_ranks():
    maps = torch.tensor([[[0.0, 2.0], [-1.0, 1.0]], [[-1.0, -2.0], [0.0, -1.0]]])
    masks = soft_masks(maps, (4, 4))
    assert float(masks[0].max()) == 1
    assert not masks[1].any()
    from scipy.stats import spearmanr

    one, other = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).round(1)
    expected = [spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(one, other, strict=True)]
    np.testing.assert_allclose(rank_correlations(one, other), expected)
    assert np.isnan(rank_correlations(np.ones((1, 2, 2)), one[:1, :2, :2])[0])


def test_more_than_what_is_needed_is_never_lost_in_confidence(small):
    """A mask that keeps the whole picture loses nothing, an empty one what the baseline loses."""
    from stratascope.tasks.vision.class_activation_measures import class_probabilities, masked_confidence
    from tests.tasks.vision.conftest import wrapped

    network, inputs, indices = wrapped(small), torch.from_numpy(bars(4, 2)[0]), torch.tensor([0, 1, 2, 3])
    baseline = torch.zeros_like(inputs)
    before = class_probabilities(network.outputs(inputs).detach(), indices, "classification")
    empty = class_probabilities(network.outputs(baseline).detach(), indices, "classification")
    full = masked_confidence(network, inputs, indices, np.ones((4, 3, 4), np.float32), baseline, before, 3)
    np.testing.assert_allclose(full.drops, 0, atol=1e-6)
    none = masked_confidence(network, inputs, indices, np.zeros((4, 3, 4), np.float32), baseline, before, 3)
    np.testing.assert_allclose(none.after, empty, rtol=1e-6)


def test_p20_colours_are_full_at_the_same_value_at_every_step():
    """A wild start does not leave the later maps pale, and a map of zeros stays without a scale."""
    from stratascope.tasks.vision.class_activation_views import bounds_of, tile_of

    maps = np.ones((3, 2, 4, 4), np.float32)
    maps[0] *= 1000
    bounds = bounds_of({"grown": maps[::-1], "wild": maps, "empty": -maps})
    assert bounds == {"grown": 1000, "wild": 1, "empty": 0}
    picture = np.full((4, 4), 90, np.uint8)
    np.testing.assert_array_equal(tile_of(picture, -maps[0, 0], 0.0), np.full((4, 4, 3), 90))
    assert (tile_of(picture, np.full((4, 4), np.nan), 1.0)[0, 0] == (255, 0, 255)).all()
