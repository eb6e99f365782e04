"""The same samples and the same noise at every checkpoint, whatever the order of the probe; baselines by name."""

from __future__ import annotations

import numpy as np
import pytest

from stratascope.errors import DoesNotApply
from stratascope.storage.datasets.dataset import Normalization
from stratascope.storage.probes import Probe
from stratascope.tasks.vision.baselines import baseline_of
from stratascope.tasks.vision.chosen_samples import SampleOptions, chosen_samples, normal_noise
from tests.tasks.vision.conftest import bars


def probe_of(order=None, normalization=None, **changes) -> Probe:
    inputs, targets = bars(40, 0)
    order = np.arange(40) if order is None else order
    fields = {
        "inputs": inputs[order],
        "targets": targets[order],
        "sample_id": np.arange(100, 140)[order],
    } | changes
    return Probe("test", "test", class_names=(), digest="", normalization=normalization, **fields)


def test_the_choice_does_not_depend_on_places():
    plain = chosen_samples(probe_of(), SampleOptions(samples=8))
    shuffled = chosen_samples(probe_of(np.random.default_rng(1).permutation(40)), SampleOptions(samples=8))
    np.testing.assert_array_equal(plain.sample_id, shuffled.sample_id)
    np.testing.assert_array_equal(plain.inputs, shuffled.inputs)
    assert plain.classes.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_samples_by_id_and_what_is_no_image():
    found = chosen_samples(probe_of(), SampleOptions(sample_ids=(139, "101")))
    assert found.sample_id.tolist() == [139, 101]
    with pytest.raises(DoesNotApply, match="no sample '7'"):
        chosen_samples(probe_of(), SampleOptions(sample_ids=(7,)))
    with pytest.raises(DoesNotApply, match=r"has the shape \(192\); an image has \(channel, y, x\)"):
        chosen_samples(probe_of(inputs=bars(40, 0)[0].reshape(40, -1)), SampleOptions())


def test_p10_noise_belongs_to_the_sample():
    one = normal_noise(5, slice(0, 4), (2, 3), 0, "smooth")
    np.testing.assert_array_equal(one[2:], normal_noise(5, slice(2, 4), (2, 3), 0, "smooth"))
    for other in (normal_noise(6, slice(0, 4), (2, 3), 0, "smooth"), normal_noise(5, slice(0, 4), (2, 3), 1, "smooth"), normal_noise(5, slice(0, 4), (2, 3), 0, "road")):  # fmt: skip
        assert np.abs(other - one).min() > 0
    many = normal_noise(5, slice(0, 500), (10, 10), 0, "smooth")
    assert abs(many.mean()) < 0.02
    assert abs(many.std() - 1) < 0.02


def test_p7_black_is_not_zero_in_normalised_numbers():
    probe = probe_of(normalization=Normalization(mean=(0.2,), std=(0.5,), scale=255.0))
    inputs = probe.inputs[:3]
    black = baseline_of("black", inputs, probe)
    np.testing.assert_allclose(probe.normalization.undo(black), 0, atol=1e-4)
    np.testing.assert_array_equal(baseline_of("zero", inputs, probe), 0)
    np.testing.assert_allclose(
        baseline_of("mean", inputs, probe)[0], probe.inputs.mean(0, dtype=np.float64), rtol=1e-5
    )
    blurred = baseline_of("blur", inputs, probe)
    assert (blurred.std((2, 3)) < inputs.std((2, 3))).all()
    np.testing.assert_allclose(blurred.mean((2, 3)), inputs.mean((2, 3)), atol=0.05)
    with pytest.raises(DoesNotApply, match="use `mean`, `blur` or `zero`"):
        baseline_of("black", inputs, probe_of())
