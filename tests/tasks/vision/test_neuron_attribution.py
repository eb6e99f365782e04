"""Every method answers for a channel too; channels are chosen by number, and what is not there is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stratascope.errors import DoesNotApply
from stratascope.tasks.vision.neuron_attribution import NeuronAttributionOptions, chosen_channels


def test_channels_are_chosen_by_number_alone():
    assert chosen_channels(9, NeuronAttributionOptions(most_channels=3)) == [0, 4, 8]
    assert chosen_channels(2, NeuronAttributionOptions()) == [0, 1]
    assert chosen_channels(1, NeuronAttributionOptions(most_channels=1)) == [0]
    assert chosen_channels(9, NeuronAttributionOptions(channels=(5, 1, 5))) == [5, 1]
    with pytest.raises(DoesNotApply, match="no channel 9: the layer has 9, 0 to 8"):
        chosen_channels(9, NeuronAttributionOptions(channels=(9,)))


def test_maps_of_the_first_layer_are_its_kernels(pictured_audit):
    """The gradient of a first convolution's central place is its kernel, put at the centre."""
    options = {"layers": ("conv1",), "channels": (2,), "place": "centre", "methods": ("gradient", "guided_backpropagation"), "samples": 3}  # fmt: skip
    rows = pictured_audit.analyse("neuron_attribution", **options)
    view = pictured_audit.view("neuron_attribution")
    from safetensors.torch import load_file

    kernel = load_file(pictured_audit.files[-1].path)["conv1.weight"][2].numpy()
    found = view.arrays(40)["test/conv1/2/gradient/map"]
    expected = np.zeros(found.shape[1:], np.float32)
    expected[:, 12 // 2 - 1 : 12 // 2 + 2, 16 // 2 - 1 : 16 // 2 + 2] = kernel
    np.testing.assert_allclose(found, np.stack([expected] * 3), atol=1e-6)
    guided = rows[rows["part"] == "channel=2;method=guided_backpropagation"]
    assert set(guided["status"]) == {"does_not_apply"}
    assert guided["reason"].str.contains("no ReLU").all()


def test_an_audit_files_and_draws_them(pictured_audit):
    methods = ("gradient", "integrated_gradients")
    rows = pictured_audit.analyse(
        "neuron_attribution", layers=("relu2",), most_channels=2, samples=4, methods=methods
    )
    values = rows[rows["metric"] == "unit_value"]
    assert set(values["part"]) == {"channel=0", "channel=7"}
    arrays = pictured_audit.view("neuron_attribution").arrays(40)
    gap = arrays["test/relu2/7/integrated_gradients/map"].sum((1, 2, 3))
    assert gap.shape == arrays["test/relu2/7/value"].shape
    from stratascope.tasks.analysis import named

    analysis = named("neuron_attribution")
    figures = list(analysis.draw(pictured_audit.view("neuron_attribution"), analysis.options(methods=methods)))
    keys = [figure.key for figure in figures]
    assert keys == [
        "units-test-relu2-gradient",
        "units-test-relu2-integrated_gradients",
        "steps-test-relu2-gradient",
    ]
    assert [step for step, _ in figures[0].frames] == [0, 10, 40]
    assert torch.isfinite(torch.tensor(figures[2].table["value"])).all()
