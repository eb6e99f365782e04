"""Channels of a real little audit: what is filed, what is refused, and the pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stratascope.tasks.analysis import named
from stratascope.tasks.contexts import View
from stratascope.tasks.vision.channel_examples import example_figures
from stratascope.tasks.vision.channels_drawing import LayerSeries
from tests.tasks.vision.conftest import CLASSES, bars

OPTIONS = {"samples": 40, "contributed": 3, "path_steps": 3, "reported": 2}


@pytest.fixture(scope="module")
def rows(pictured_audit):
    return pictured_audit.analyse("channels", **OPTIONS)


@pytest.fixture(scope="module")
def drawn(pictured_audit, rows):
    return list(named("channels").draw(pictured_audit.view("channels"), named("channels").options()))


def test_every_layer_is_said_something_about(rows):
    sound = rows[rows["status"] == "ok"]
    assert {"conv1", "conv2"} <= set(sound["layer"])
    for metric in named("channels").metrics:
        assert (sound["metric"] == metric.name).any(), metric.name
    contributions = sound[sound["metric"] == "channel_contribution"]
    assert len(contributions[(contributions["layer"] == "conv2") & (contributions["step"] == 40) & (contributions["probe"] == "test")]) == 2 * 4  # fmt: skip
    assert "read_at=norm2;relu_follows=yes" in set(contributions["convention"])
    gaps = sound[sound["metric"] == "channel_completeness_gap"]
    assert gaps["value"].max() < 0.2
    shares = sound[sound["metric"].isin(["channel_redundancy", "dead_channel_fraction", "channel_selectivity"])]
    assert shares["value"].between(0, 1).all()


def test_what_is_stored_is_what_a_plain_pass_gives(pictured_audit, rows):
    """Against the network written out: strongest samples, their places, the class means after the ReLU."""
    arrays = pictured_audit.view("channels").arrays(40)
    from stratascope.storage.probes import read_probe
    from stratascope.tasks.models import convnet

    probe = read_probe(pictured_audit.store, "test")
    network = convnet(channels=1, widths=[6, 8], outputs=4).eval()
    from safetensors.torch import load_file

    network.load_state_dict(load_file(pictured_audit.folder / "step-40.safetensors"))
    places = {str(name): row for row, name in enumerate(probe.sample_id.tolist())}
    chosen = [places[str(name)] for name in arrays["test/sample_id"].tolist()]
    inputs = torch.from_numpy(np.asarray(probe.inputs[:]))[chosen]
    with torch.no_grad():
        values = network[:6](inputs).numpy()
    peaks = values.max((2, 3))
    np.testing.assert_allclose(arrays["test/conv2/top_value"], -np.sort(-peaks, 0)[:4].T, rtol=1e-4, atol=1e-5)
    index, where = arrays["test/conv2/top_index"], arrays["test/conv2/top_place"]
    channel = np.arange(8)[:, None]
    np.testing.assert_allclose(
        values[index, channel, where[..., 0], where[..., 1]], arrays["test/conv2/top_value"], rtol=1e-4, atol=1e-5
    )
    target = arrays["test/target"]
    means = np.stack([np.maximum(values[target == label], 0).mean((0, 2, 3)) for label in range(4)])
    np.testing.assert_allclose(arrays["test/conv2/class_mean"], means, rtol=1e-4, atol=1e-5)
    boxes = arrays["test/conv2/box"]
    # 3 × 3, pooling by 2, 3 × 3: 8 pixels every 2, from 2 y - 3 on.
    np.testing.assert_array_equal(boxes[..., 0], np.maximum(0, 2 * where[..., 0].astype(int) - 3))
    np.testing.assert_array_equal(boxes[..., 3], np.minimum(16, 2 * where[..., 1].astype(int) + 5))


def test_the_figures_speak_of_this_run(drawn):
    keys = [figure.key for figure in drawn]
    assert len(keys) == len(set(keys))
    for start in ("classes", "examples", "over-steps", "contributions", "correlations", "channel_selectivity"):
        assert any(key.startswith(start) for key in keys), start
    for figure in drawn:
        assert figure.svg or figure.frames
        assert any(digit.isdigit() for digit in figure.caution)
        assert "{" not in figure.shows + figure.reading + figure.caution
        assert figure.table


def test_pictures_of_samples_are_left_out_where_they_may_not_be_shown(pictured_audit, rows):
    view = pictured_audit.view("channels")
    by_step = {40: view.arrays(40)}
    assert len(list(example_figures(LayerSeries(view, "test", "conv2", by_step)))) == 1
    hidden = View(view.store, view.run, view.analysis, view.scope, view.steps, view.rows, show_inputs=False)
    assert list(example_figures(LayerSeries(hidden, "test", "conv2", by_step))) == []


def test_a_probe_without_classes_and_one_without_pictures_say_so(little_audit):
    audit = little_audit(
        "stratascope.tasks.models:convnet", {"channels": 1, "widths": [4], "outputs": 2}, task="none"
    )
    audit.probe("pictures", inputs=bars(6, 0)[0])
    from stratascope.tasks.models import convnet

    audit.checkpoint(0, convnet(channels=1, widths=[4], outputs=2).eval())
    audit.capture("channels")
    found = audit.analyse("channels", contributed=2, path_steps=2)
    selectivity = found[found["metric"] == "channel_selectivity"]
    assert set(selectivity["status"]) == {"does_not_apply"}
    assert "no classes" in selectivity["reason"].iloc[0]
    assert (found[found["metric"] == "channel_contribution"]["status"] == "ok").all()


class Dying(nn.Module):
    """Two channels before a functional ReLU: the first is what `alive` says, the second always answers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 2, 1), nn.Linear(2, 4)

    def forward(self, inputs):
        return self.fc(nn.functional.relu(self.conv(inputs)).amax((2, 3)))

    def alive(self, answer: bool) -> Dying:
        self.conv.weight.data[:] = 1.0
        self.conv.bias.data[:] = torch.tensor([0.0 if answer else -50.0, 0.0])
        return self


def dying() -> Dying:
    return Dying()


def test_births_and_deaths_are_counted_at_their_steps(little_audit):
    audit = little_audit("tests.tasks.vision.test_channels:dying")
    inputs, targets = bars(16, 0)
    audit.probe("test", "test", CLASSES, inputs=inputs, targets=targets)
    torch.manual_seed(0)
    network = dying()
    for step, answer in ((0, True), (5, False), (7, False), (9, True)):
        audit.checkpoint(step, network.alive(answer))
    audit.capture("channels")
    found = audit.analyse("channels_over_training")
    sound = found[(found["status"] == "ok") & (found["layer"] == "conv")].set_index(["metric", "step"])["value"]
    assert [sound["channel_death", step] for step in (5, 7, 9)] == [1, 0, 0]
    assert [sound["channel_birth", step] for step in (5, 7, 9)] == [0, 0, 1]
    assert ("channel_birth", 0) not in sound.index
    assert sound["top_example_stability", 7] == 1
    arrays = audit.view("channels_over_training").arrays()
    assert arrays["test/conv/dead"].tolist() == [[0, 0], [1, 0], [1, 0], [0, 0]]
    assert arrays["test/conv/died_step"].tolist() == [5, -1]
    assert arrays["test/conv/born_step"].tolist() == [9, -1]
    # The design's definition is the capture's: both must say the same.
    dead = audit.store.rows([unit for unit in audit.store.manifests() if unit.analysis == "channels"])
    shares = dead[(dead["metric"] == "dead_channel_fraction") & (dead["layer"] == "conv")].sort_values("step")
    assert shares["value"].tolist() == [0, 0.5, 0.5, 0]
    keys = [figure.key for figure in audit.draw("channels_over_training")]
    assert any(key.startswith("births-and-deaths") for key in keys)
    assert any(key.startswith("lives") for key in keys)


def test_weights_that_are_not_finite_give_a_failed_row_and_no_picture(little_audit):
    audit = little_audit("tests.tasks.vision.test_channels:dying")
    inputs, targets = bars(8, 0)
    audit.probe("test", "test", CLASSES, inputs=inputs, targets=targets)
    network = dying().alive(True)
    network.conv.weight.data[0] = torch.nan
    audit.checkpoint(0, network)
    audit.capture("channels")
    found = audit.analyse("channels")
    assert set(found["status"]) == {"failed"}
    assert "not finite" in found["reason"].iloc[0]
    assert audit.draw("channels") == []
