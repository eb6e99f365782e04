"""A real audit: maps by hand at every step, the same question at each, one bad method or probe that stops nothing."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from stratascope.tasks.analysis import named
from stratascope.tasks.models import convnet
from stratascope.tasks.vision import attribution_methods as registry
from stratascope.tasks.vision.attribution import AttributionOptions
from stratascope.tasks.vision.attribution_forms import colour_form, grey_form, part_forms
from stratascope.tasks.vision.attribution_methods import Attributed, AttributionMethod
from stratascope.tasks.vision.attribution_pictures import FiledMaps, reduced
from tests.tasks.vision.conftest import CLASSES, bars

METHODS = {
    "gradient": {}, "guided_backpropagation": {}, "smooth_grad": {"draws": 4}, "var_grad": {"draws": 4},
    "integrated_gradients": {"steps": 8, "most_steps": 16}, "expected_gradients": {"draws": 6},
}  # fmt: skip


@pytest.fixture(scope="module")
def rows(pictured_audit):
    return pictured_audit.analyse("attribution", methods=METHODS, samples=6)


def network_at(audit, step: int) -> torch.nn.Module:
    network = convnet(channels=1, widths=[6, 8], outputs=4).eval()
    network.load_state_dict(load_file(audit.folder / f"step-{step}.safetensors"))
    return network


@pytest.mark.usefixtures("rows")
def test_p20_maps_are_stored_raw_with_scores_and_answers_of_the_checkpoint(pictured_audit):
    view = pictured_audit.view("attribution")
    for step in (0, 40):
        arrays = view.arrays(step)
        probe = view.probes["test"]
        places = {str(name): row for row, name in enumerate(probe.sample_id.tolist())}
        chosen = [places[str(name)] for name in arrays["test/sample_id"].tolist()]
        pixels = torch.from_numpy(np.asarray(probe.inputs)[chosen]).requires_grad_()
        outputs = network_at(pictured_audit, step)(pixels)
        index = torch.from_numpy(probe.targets[chosen]).long()
        scores = outputs.gather(1, index[:, None])[:, 0]
        scores.sum().backward()
        np.testing.assert_array_equal(arrays["test/index"], index.numpy())
        np.testing.assert_array_equal(arrays["test/predicted"], outputs.argmax(1).numpy())
        np.testing.assert_allclose(arrays["test/score"], scores.detach().numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(arrays["test/gradient/map"], pixels.grad.numpy(), rtol=1e-4, atol=1e-7)
        assert {values.dtype.name for path, values in arrays.items() if path.endswith("/map")} == {"float32"}
        assert arrays["test/smooth_grad/spread"].shape == (6, 12, 16)


def test_rows_are_what_the_arrays_say(pictured_audit, rows):
    arrays = pictured_audit.view("attribution").arrays(40)
    here = rows[(rows["step"] == 40) & (rows["probe"] == "test")].set_index(["metric", "part"])
    sizes = np.abs(arrays["test/integrated_gradients/map"]).sum((1, 2, 3), np.float64)
    row = here.loc["attribution_size", "method=integrated_gradients"]
    assert (row["value"], row["low"], row["high"]) == pytest.approx((sizes.mean(), sizes.min(), sizes.max()))
    gaps = np.abs(arrays["test/integrated_gradients/completeness_gap"])
    wanted = np.abs(arrays["test/integrated_gradients/score_difference"])
    absolute = here.loc["attribution_completeness_gap", "method=integrated_gradients;kind=absolute"]
    relative = here.loc["attribution_completeness_gap", "method=integrated_gradients;kind=relative"]
    assert absolute["value"] == pytest.approx(np.median(gaps))
    assert relative["value"] == pytest.approx(np.median(gaps / wanted), rel=1e-3)
    assert relative["high"] < 0.2
    assert (here["status"] == "ok").all()
    assert (here["n"] == 6).all()
    attributes = pictured_audit.store.array_info(
        "runs/run/000000000040/attribution/test/integrated_gradients/map"
    )[3]
    assert json.loads(attributes["settings"]) == {"steps": 8, "most_steps": 16, "tolerance": 0.05}
    assert attributes["baseline"] == "black"


def test_similarity_over_training(pictured_audit):
    found = pictured_audit.analyse("attribution_over_training")
    here = found[(found["probe"] == "test") & (found["step"] == 40)].set_index("part")
    first, last = (pictured_audit.view("attribution").arrays(step)["test/gradient/map"] for step in (10, 40))
    one, two = first.reshape(len(first), -1), last.reshape(len(last), -1)
    cosines = (one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
    row = here.loc["method=gradient;measure=cosine;against=previous"]
    assert row["value"] == pytest.approx(np.median(cosines), abs=1e-5)
    assert row["low"] <= row["value"] <= row["high"]
    assert row["other_step"] == 10
    for measure in ("cosine", "spearman", "ssim"):
        assert here.loc[f"method=gradient;measure={measure};against=last"]["value"] == pytest.approx(1)
        null = here.loc[f"method=gradient;measure={measure};against=previous;null=other_sample"]["value"]
        assert null < here.loc[f"method=gradient;measure={measure};against=previous"]["value"]
    figures = pictured_audit.draw("attribution_over_training")
    assert {figure.key for figure in figures} >= {
        "settling-test",
        "similarity-test-cosine",
        "similarity-test-ssim",
    }


def _lossy(explained):
    """Puts 3 on one pixel, of which the score was 4."""
    maps = np.zeros(tuple(explained.inputs.shape), np.float32)
    maps[:, 0, 0, 0] = 3
    return Attributed(maps, {"conservation_gap": np.full(len(maps), -1.0)})


def _broken(kind: str):
    def compute(explained):
        if kind == "raises":
            raise ZeroDivisionError("on purpose")
        maps = np.zeros(tuple(explained.inputs.shape), np.float32)
        if kind == "not finite":
            maps[1] = np.nan
        return Attributed(maps, {"completeness_gap": np.zeros(len(maps))}, warnings=("made for a test",))

    if kind == "relevance":
        return AttributionMethod("test_relevance", "Test: relevance", "relevance", "x", "", "always", _lossy)
    return AttributionMethod(f"test_{kind.replace(' ', '_')}", f"Test: {kind}", "path", "0", "", "always", compute, complete=True)  # fmt: skip


@pytest.fixture
def broken(monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", dict(registry.attribution_methods()))
    for kind in ("raises", "not finite", "zero", "relevance"):
        registry.register_method(_broken(kind))


@pytest.mark.usefixtures("broken")
def test_a_failing_method_never_sinks_the_others(pictured_audit):
    names = ["test_raises", "test_not_finite", "test_zero", "test_relevance", "gradient"]
    found = pictured_audit.analyse("attribution", methods=names, samples=3, seed=3)
    here = found[(found["step"] == 10) & (found["probe"] == "test")]

    def row(method: str, metric: str = "attribution_size", kind: str = ""):
        return here[(here["metric"] == metric) & (here["part"] == f"method={method}{kind}")].iloc[0]

    assert row("gradient")["status"] == "ok"
    assert row("test_raises")["status"] == "failed"
    assert row("test_raises")["reason"] == "ZeroDivisionError: on purpose"
    assert row("test_not_finite")["status"] == "failed"
    assert row("test_not_finite")["reason"].startswith("the maps of 1 of 3 samples are not finite: ")
    assert row("test_zero", "attribution_zero_fraction")["value"] == 1
    assert "zero everywhere: " in row("test_zero", "attribution_zero_fraction")["convention"]
    relative = row("test_zero", "attribution_completeness_gap", ";kind=relative")
    assert relative["status"] == "does_not_apply"
    assert relative["reason"] == "what the maps should add up to is zero for every sample"

    assert row("test_relevance", "attribution_conservation_gap", ";kind=absolute")["value"] == 1
    assert row("test_relevance", "attribution_conservation_gap", ";kind=relative")["value"] == 0.25

    figures = {figure.key: figure for figure in pictured_audit.draw("attribution")}
    zero = figures["steps-test-test_zero"]
    assert zero.title == "Test: zero over training, probe test (with a warning)"
    assert "Warning, on this network: made for a test." in zero.caution
    assert "3 of 3 maps at the last step are zero everywhere" in zero.caution
    # A map of zeros is white in every pixel, so all of them are one and the same picture.
    pictures = re.findall(r"base64,([^\"]+)\"", zero.svg)
    maps = [picture for place, picture in enumerate(pictures) if place % 4 and place < 12]
    assert len(set(maps)) == 1
    assert "steps-test-test_not_finite" not in figures
    assert "Test: zero (!)" in figures["methods-test"].frames[0][1]


def test_p29_what_cannot_be_asked_is_a_row_with_its_reason(pictured_audit, little_audit):
    out_of_range = pictured_audit.analyse("attribution", methods=["gradient"], target=7)
    assert set(out_of_range["status"]) == {"does_not_apply"}
    assert set(out_of_range["reason"]) == {"target 7 is out of range: the network has 4 outputs."}
    assert not pictured_audit.draw("attribution")

    smooth = little_audit("stratascope.tasks.models:mlp", {"inputs": 12, "widths": [4], "outputs": 3})
    smooth.probe("test", inputs=np.zeros((6, 12), np.float32), targets=np.arange(6) % 3)
    torch.manual_seed(0)
    from stratascope.tasks.models import mlp

    smooth.checkpoint(0, mlp(inputs=12, widths=[4], outputs=3))
    smooth.capture()
    found = smooth.analyse("attribution")
    assert set(found["status"]) == {"does_not_apply"}
    assert "an image has (channel, y, x)" in found["reason"].iloc[0]
    series = smooth.analyse("attribution_over_training")
    assert set(series["reason"]) == {"a change of maps needs two checkpoints or more; the run has one checkpoint."}


def test_a_baseline_that_is_not_known_stops_only_those_that_need_it(little_audit):
    audit = little_audit("stratascope.tasks.models:convnet", {"channels": 1, "widths": [3], "outputs": 4})
    inputs, targets = bars(12, 0, height=8, width=8)
    audit.probe("test", "test", CLASSES, inputs=inputs, targets=targets)
    for step in (0, 1):
        torch.manual_seed(step)
        audit.checkpoint(step, convnet(channels=1, widths=[3], outputs=4))
    audit.capture()
    methods = {
        "gradient": {},
        "integrated_gradients": {"steps": 4},
        "expected_gradients": {"draws": 2, "baseline": "blur"},
    }
    found = audit.analyse("attribution", methods=methods, samples=2).set_index(["step", "metric", "part"])
    assert found.loc[(0, "attribution_size", "method=gradient"), "status"] == "ok"
    assert found.loc[(0, "attribution_size", "method=expected_gradients"), "status"] == "ok"
    assert "how probe 'test' was normalised is not known" in found.loc[(0, "attribution_size", "method=integrated_gradients"), "reason"]  # fmt: skip
    figures = audit.draw("attribution")
    assert {figure.key for figure in figures} >= {"methods-test", "steps-test-gradient", "forms-test-gradient"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": ["gradiant"]}, "there is no attribution method 'gradiant'.*Did you mean 'gradient'"),
        ({"methods": {"smooth_grad": {"draw": 3}}}, "smooth_grad has no setting 'draw'; it has draws, level. Did you mean 'draws'"),
        ({"methods": {"smooth_grad": {"draws": 2.5}}}, "`draws` is 2.5; it must be a whole number"),
        ({"methods": {"gradient": {"baseline": "black"}}}, "gradient has no setting 'baseline'; it has none"),
        ({"methods": {"integrated_gradients": {"baseline": "grey"}}}, "there is no baseline 'grey'"),
        ({"target": "lable"}, "'lable' is not `label`"),
        ({"methods": []}, "at least 1"),
    ],
)  # fmt: skip
def test_bad_options_are_named_before_any_work(options, message):
    with pytest.raises(ValidationError, match=message):
        AttributionOptions.model_validate(options)


def test_options_are_complete_and_stay_the_same_when_read_again():
    options = AttributionOptions.model_validate({"methods": ["var_grad"]})
    assert options.methods == {"var_grad": {"draws": 32, "level": 0.15}}
    assert AttributionOptions.model_validate(options.model_dump()) == options
    assert list(AttributionOptions().methods) == ["gradient", "gradient_times_input", "guided_backpropagation", "smooth_grad", "integrated_gradients"]  # fmt: skip


@pytest.mark.usefixtures("rows")
def test_every_figure_has_its_words_and_pictures_stay_out_where_they_must(pictured_audit):
    few = {name: METHODS[name] for name in ("gradient", "var_grad", "integrated_gradients")}
    pictured_audit.analyse("attribution", methods=few, samples=4)
    view = pictured_audit.view("attribution")
    found = {}
    for shown in (True, False):
        view.show_inputs = shown
        figures = list(named("attribution").draw(view, named("attribution").options()))
        assert len({figure.key for figure in figures}) == len(figures)
        for figure in figures:
            for text in (figure.shows, figure.reading, figure.caution, figure.audience, figure.practitioner, figure.researcher):  # fmt: skip
                assert len(text) > 20
                assert not re.search(r"[{}]|\bnan\b", text)
            assert re.search(r"\d", figure.caution)
        found[shown] = {figure.key: figure for figure in figures}
    keys = {f"steps-test-{name}" for name in few} | {"forms-test-gradient", "completeness-test", "sizes-test", "methods-train"}  # fmt: skip
    assert keys <= set(found[True])
    for key in ("steps-test-gradient", "methods-test", "forms-test-gradient"):
        texts = [figure.svg or figure.frames[0][1] for figure in (found[True][key], found[False][key])]
        assert ">picture<" in texts[0]
        assert ">picture<" not in texts[1]
        assert texts[1].count("<image") < texts[0].count("<image")


def test_p22_pictures_are_shown_as_they_were_before_normalisation(pictured_audit):
    pictured_audit.analyse("attribution", methods=["gradient"], samples=3)
    view = pictured_audit.view("attribution")
    filed = FiledMaps(view, view.probes["test"])
    raw = bars(48, 1)[0][filed.rows]
    assert [picture.shape for picture in filed.pictures] == [(12, 16)] * 3
    np.testing.assert_allclose(np.stack(filed.pictures), 255 * raw[:, 0], atol=0.51)
    assert filed.names[0].startswith(CLASSES[int(view.probes["test"].targets[filed.rows[0]])])


def test_p21_forms_of_zero_and_of_one_sign():
    zeros = np.zeros((3, 4, 5), np.float32)
    assert (colour_form(zeros) == 128).all()
    assert (grey_form(zeros) == 0).all()
    assert {part.tobytes() for part in part_forms(zeros)} == {part_forms(zeros)[0].tobytes()}
    one = zeros.copy()
    one[1, 2, 3] = -2.0
    assert grey_form(one)[2, 3] == 255
    assert (grey_form(one) > 0).sum() == 1
    positive, negative = part_forms(one)
    assert positive.tobytes() == part_forms(zeros)[0].tobytes()
    assert negative[2, 3, 2] > negative[2, 3, 0]
    assert (colour_form(one)[2, 3] == [255, 0, 255]).all()
    broken = one.copy()
    broken[0, 0, 0] = np.nan
    assert grey_form(broken)[2, 3] == 255


def test_p27_large_maps_are_drawn_by_means_that_keep_the_aspect():
    maps = np.random.default_rng(0).normal(size=(2, 3, 190, 285))
    small = reduced(maps)
    assert small.shape == (2, 3, 64, 95)
    np.testing.assert_allclose(small[1, 2, 5, 7], maps[1, 2, 15:18, 21:24].mean())
    assert reduced(maps[..., :90, :96]).shape == (2, 3, 90, 96)
