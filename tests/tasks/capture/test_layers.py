"""Which layers a pattern names, and what a network is asked for them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from stratascope.errors import CaptureError, ConfigurationError, ProbeError
from stratascope.storage.model_spec import ModelSpec
from stratascope.storage.probes import Probe
from stratascope.tasks.capture.observe import observe
from stratascope.tasks.capture.planning import plan_capture
from stratascope.tasks.capture.spec import CaptureSpec
from stratascope.tasks.models import cifar_resnet, lenet
from tests.tasks.capture.capturing import (
    MODEL,
    activations,
    capture,
    pictures,
    probe_of,
)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["conv*"], ["conv1", "conv2"]),
        (["fc?"], ["fc1", "fc2"]),
        (["re:(conv|fc)1"], ["conv1", "fc1"]),
        (["type:ReLU"], ["relu1", "relu2", "relu3"]),
        (["0"], ["conv1"]),
        (["-1"], ["fc2"]),
        (["1:3"], ["relu1", "pool1"]),
        (["fc2:input", "fc2"], ["fc2:input", "fc2"]),
    ],
)
def test_patterns_mean_what_the_manual_says(patterns, expected):
    plan = plan_capture(lenet(3, 16, width=4), pictures(), patterns, [], CaptureSpec(statistics=False), MODEL)
    assert [layer.name for layer in plan.layers] == expected


def test_a_pattern_that_matches_nothing_names_the_nearest():
    with pytest.raises(ConfigurationError, match=r"'convv1' matches no layer.*Did you mean 'conv1'"):
        plan_capture(lenet(3, 16), pictures(), ["convv1"], [], CaptureSpec(), MODEL)
    with pytest.raises(ProbeError, match="empty"):
        plan_capture(lenet(3, 16), pictures(0), None, [], CaptureSpec(), MODEL)


def test_blocks_can_be_named_and_are_not_taken_by_default():
    seen = observe(cifar_resnet(8, width=4), pictures(), MODEL)
    blocks = {layer.name: layer for layer in seen.layers if not layer.is_leaf}
    assert blocks["layer2.0"].dims == ("channel", "y", "x")
    assert blocks["layer2.0"].shape == (8, 8, 8)
    plan = plan_capture(
        cifar_resnet(8, width=4), pictures(), ["layer2.0"], [], CaptureSpec(statistics=False), MODEL
    )
    assert [layer.name for layer in plan.layers] == ["layer2.0"]


def test_a_layer_that_runs_for_some_batches_only_is_refused(tmp_path):
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.other = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, inputs):
            return self.other(inputs) if inputs[0, 0] > 0 else self.fc(inputs)

    inputs = np.ones((8, 2), np.float32)
    inputs[4:] *= -1
    with pytest.raises(CaptureError, match="'other' did not run for every batch"):
        capture(tmp_path, Sometimes(), probe_of(inputs), batch_size=4)


def test_nested_inputs_reach_the_network_by_keyword(tmp_path):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, left, right):
            return self.fc(left + right)

    generator = np.random.default_rng(0)
    inputs = {name: generator.normal(size=(7, 3)).astype(np.float32) for name in ("left", "right")}
    probe = Probe("test", "test", inputs, None, np.arange(7), (), "digest")
    network = Two()
    store, _ = capture(
        tmp_path, network, probe, model=ModelSpec(factory="made:here", call="keywords"), batch_size=3
    )
    expected = network(*(torch.from_numpy(inputs[name]) for name in ("left", "right"))).detach().numpy()
    np.testing.assert_allclose(activations(store, "@output"), expected, rtol=1e-5, atol=1e-6)
