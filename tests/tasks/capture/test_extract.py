"""The capture against plain hooks and plain NumPy, on the networks that trip other tools."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from stratascope import open_store
from stratascope.errors import CaptureError, ConfigurationError
from stratascope.storage.model_spec import ModelSpec
from stratascope.tasks.analysis import CaptureRequest
from stratascope.tasks.capture.layers import LayerInfo
from stratascope.tasks.models import cifar_resnet, convnet, lenet
from tests.tasks.capture.capturing import (
    activations,
    capture,
    pictures,
    plain_outputs,
    probe_of,
    statistics,
)


@pytest.mark.parametrize("codec", ["zstd", "none"])
@pytest.mark.parametrize("make", [lambda: lenet(3, 16, width=4), lambda: cifar_resnet(8, width=4), convnet])
def test_everything_that_is_kept_equals_what_plain_hooks_see(tmp_path, make, codec):
    torch.manual_seed(0)
    network, probe = make(), pictures()
    store, summary = capture(tmp_path, network, probe, keep=["full", "pooled", "max"], batch_size=16, codec=codec)
    expected = plain_outputs(network, probe.inputs)
    assert set(summary["layers"]) == set(expected) - {"@output"}
    np.testing.assert_allclose(activations(store, "@output"), expected["@output"], rtol=1e-5, atol=1e-6)
    for layer in summary["layers"]:
        whole = expected[layer]
        np.testing.assert_allclose(activations(store, layer), whole, rtol=1e-5, atol=1e-6)
        if whole.ndim == 4:
            np.testing.assert_allclose(
                activations(store, layer, "pooled"), whole.mean((2, 3)), rtol=1e-4, atol=1e-6
            )
            np.testing.assert_allclose(activations(store, layer, "max"), whole.max((2, 3)), rtol=1e-5, atol=1e-6)


def test_streamed_statistics_equal_those_of_the_stored_activations(tmp_path):
    torch.manual_seed(0)
    network, probe = cifar_resnet(8, width=4), pictures(150)
    wanted = ["moments", "zeros", "histogram", "top", "covariance", "class_mean"]
    store, summary = capture(tmp_path, network, probe, keep=["full"], batch_size=32, statistics=wanted)
    for layer in summary["layers"]:
        whole = activations(store, layer).astype(np.float64)
        units = whole.reshape(len(whole), whole.shape[1], -1)
        found, pooled = statistics(store, layer), units.mean(2)
        np.testing.assert_allclose(found["mean"], units.mean((0, 2)), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(found["std"], units.std((0, 2)), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(found["zero_fraction"], (units == 0).mean((0, 2)), atol=1e-9)
        np.testing.assert_allclose(found["min"], units.min((0, 2)), rtol=1e-6)
        np.testing.assert_allclose(found["max"], units.max((0, 2)), rtol=1e-6)
        np.testing.assert_allclose(found["covariance"], np.cov(pooled.T, bias=True), rtol=1e-4, atol=1e-8)
        for number in np.unique(probe.targets):
            expected = pooled[probe.targets == number].mean(0)
            np.testing.assert_allclose(found["class_mean"][number], expected, rtol=1e-4, atol=1e-6)
        order = np.argsort(-units.max(2), axis=0, kind="stable")[:9]
        np.testing.assert_array_equal(found["top_sample"], order)
        np.testing.assert_allclose(found["top_value"], np.take_along_axis(units.max(2), order, 0), rtol=1e-6)
        positions = min(16, units.shape[2])
        assert found["histogram_counts"].sum() == units.shape[0] * units.shape[1] * positions


@pytest.mark.parametrize("batch_size", [1, 7, 64, 1000])
def test_the_batch_size_changes_nothing_beyond_rounding(tmp_path, batch_size):
    torch.manual_seed(0)
    network, probe = lenet(3, 16, width=4), pictures(150)
    one, summary = capture(tmp_path / "a", network, probe, keep=["pooled"], batch_size=50)
    two, _ = capture(tmp_path / "b", network, probe, keep=["pooled"], batch_size=batch_size)
    for layer in summary["layers"]:
        first, second = activations(one, layer, "pooled"), activations(two, layer, "pooled")
        np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-6)
        for name, value in statistics(one, layer).items():
            other = statistics(two, layer)[name]
            if name == "histogram_counts":
                assert np.abs(value - other).sum() <= 1e-3 * value.sum()
            else:
                np.testing.assert_allclose(value, other, rtol=2e-5, atol=1e-6, err_msg=f"{layer} {name}")


def test_two_captures_of_one_network_are_the_same_bytes(tmp_path):
    torch.manual_seed(0)
    network, probe = lenet(3, 16, width=4), pictures()
    stores = [capture(tmp_path / name, network, probe)[0] for name in "ab"]
    files = [sorted(path for path in store.path.rglob("*") if path.is_file()) for store in stores]
    kept = [[path for path in found if "manifests" not in path.parts] for found in files]
    assert [path.relative_to(stores[0].path) for path in kept[0]] == [
        path.relative_to(stores[1].path) for path in kept[1]
    ]
    assert [path.read_bytes() for path in kept[0]] == [path.read_bytes() for path in kept[1]]


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(4, 2)

    def forward(self, inputs):
        hidden = self.relu(self.norm(self.conv(inputs)))
        hidden = self.relu(hidden - 0.1)
        return self.fc(hidden.mean((2, 3)))


def test_an_in_place_operation_does_not_overwrite_what_was_captured_and_each_call_has_a_name(tmp_path):
    torch.manual_seed(0)
    network, probe = InPlace().eval(), pictures()
    store, summary = capture(tmp_path, network, probe, keep=["full", "flat"])
    assert summary["layers"] == ["conv", "norm", "relu", "relu#1", "fc"]
    with torch.no_grad():
        normed = network.norm(network.conv(torch.from_numpy(probe.inputs)))
        twice = functional.relu(functional.relu(normed) - 0.1)
    assert activations(store, "norm").min() < -0.1
    np.testing.assert_allclose(activations(store, "norm"), normed.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(activations(store, "relu#1"), twice.numpy(), rtol=1e-5, atol=1e-6)
    assert activations(store, "conv", "flat").shape == (len(probe), 4 * 16 * 16)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.norm = nn.BatchNorm2d(6)
        self.fc1 = nn.Linear(6, 8)
        self.fc2 = nn.Linear(8, 2)

    def forward(self, inputs):
        hidden = functional.relu(self.norm(self.conv(inputs))).mean((2, 3))
        return self.fc2(torch.relu(self.fc1(hidden)))


def test_units_are_dead_by_the_relu_that_follows_be_it_a_module_or_a_function(tmp_path):
    torch.manual_seed(0)
    network, probe = Functional(), pictures()
    with torch.no_grad():
        network.norm.bias[:2] = -100.0
        network.fc1.bias[:3] = -100.0
    store, _ = capture(tmp_path, network, probe)
    assert statistics(store, "conv")["dead"].tolist() == [1, 1, 0, 0, 0, 0]
    assert statistics(store, "norm")["dead"].tolist() == [1, 1, 0, 0, 0, 0]
    assert statistics(store, "fc1")["dead"][:3].tolist() == [1, 1, 1]
    assert "dead" not in statistics(store, "fc2")
    alone, summary = capture(tmp_path / "alone", network, probe, ["conv"])
    assert summary["layers"] == ["conv"]
    assert statistics(alone, "conv")["dead"].tolist() == [1, 1, 0, 0, 0, 0]


class Recurrent(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.lstm = nn.LSTM(5, 7, 2, batch_first=batch_first)
        self.attention = nn.MultiheadAttention(7, 1, batch_first=batch_first)
        self.fc = nn.Linear(7, 3)

    def forward(self, inputs):
        inputs = inputs if self.batch_first else inputs.transpose(0, 1)
        hidden, _ = self.lstm(inputs)
        hidden, _ = self.attention(hidden, hidden, hidden)
        return self.fc(hidden if self.batch_first else hidden.transpose(0, 1))[:, -1]


def test_the_sample_axis_is_found_wherever_it_is_and_elements_of_tuples_have_names(tmp_path):
    generator = np.random.default_rng(0)
    probe = probe_of(generator.normal(size=(11, 6, 5)).astype(np.float32))
    torch.manual_seed(0)
    first = Recurrent(True)
    second = Recurrent(False)
    second.load_state_dict(first.state_dict())
    one, summary = capture(tmp_path / "a", first, probe, ["lstm*", "attention*"], keep=["full", "pooled"])
    two, _ = capture(tmp_path / "b", second, probe, ["lstm*", "attention*"], keep=["full", "pooled"])
    assert summary["layers"] == ["lstm[0]", "lstm[1][0]", "lstm[1][1]", "attention[0]", "attention[1]"]
    assert summary["facts"]["lstm[0]"]["dims"] == ["token", "feature"]
    assert summary["facts"]["lstm[1][0]"]["dims"] == ["recurrent_layer", "feature"]
    assert summary["facts"]["attention[1]"]["dims"] == ["token", "source_token"]
    for layer in summary["layers"]:
        np.testing.assert_allclose(activations(one, layer), activations(two, layer), rtol=1e-5, atol=1e-6)
    assert activations(one, "lstm[0]").shape == (11, 6, 7)
    assert activations(one, "lstm[0]", "pooled").shape == (11, 7)
    assert any("attention[1]" in text for text in summary["warnings"])


def test_padding_never_enters_a_reduction_whatever_its_side(tmp_path):
    generator = np.random.default_rng(0)
    values = generator.normal(size=(5, 6, 4)).astype(np.float32)
    lengths = np.array([6, 3, 1, 4, 2])
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(48, 2))
    for side in ("right", "left"):
        mask = np.arange(6) < lengths[:, None]
        padded = np.where(mask[:, :, None], values, 1e3).astype(np.float32)
        if side == "left":
            mask, padded = mask[:, ::-1].copy(), padded[:, ::-1].copy()
        probe = probe_of(padded, **{"": mask})
        keep = ["full", "pooled", "max", "last"]
        store, _ = capture(tmp_path / side, network, probe, ["0", "1"], keep=keep, batch_size=2)
        whole = activations(store, "1")
        real = [whole[row][mask[row]] for row in range(5)]
        pooled, last = activations(store, "1", "pooled"), activations(store, "1", "last")
        np.testing.assert_allclose(pooled, [rows.mean(0) for rows in real], rtol=1e-5)
        np.testing.assert_allclose(activations(store, "1", "max"), [rows.max(0) for rows in real], rtol=1e-6)
        np.testing.assert_allclose(last, [rows[-1] for rows in real], rtol=1e-6)
        joined, found = np.concatenate(real).astype(np.float64), statistics(store, "1")
        np.testing.assert_allclose(found["mean"], joined.mean(0), rtol=1e-5)
        np.testing.assert_allclose(found["std"], joined.std(0), rtol=1e-5)
        np.testing.assert_allclose(found["zero_fraction"], (joined == 0).mean(0))


class OneWay(nn.Module):
    """Puts out what has no axis that anybody knows."""

    def forward(self, inputs):
        return inputs.reshape(len(inputs), 6, 2, 4).transpose(1, 3).contiguous()


def test_what_stays_ambiguous_is_kept_whole_and_warned_of_until_its_axes_are_named(tmp_path):
    probe = probe_of(np.random.default_rng(0).normal(size=(9, 48)).astype(np.float32))
    network = nn.Sequential(OneWay(), nn.Flatten(), nn.Linear(48, 2))
    store, summary = capture(tmp_path / "a", network, probe, ["0"])
    assert summary["facts"]["0"]["kept"] == ["full"]
    assert "capture.axes" in summary["warnings"][0]
    named, summary = capture(tmp_path / "b", network, probe, ["0"], axes={"0": ["sample", "y", "x", "feature"]})
    assert summary["warnings"] == []
    np.testing.assert_allclose(activations(named, "0", "pooled"), activations(store, "0").mean((1, 2)), rtol=1e-5)
    with pytest.raises(ConfigurationError, match="names 2 axes"):
        capture(tmp_path / "c", network, probe, ["0"], axes={"0": ["sample", "feature"]})


def test_narrow_types_say_what_they_are_and_what_they_lost(tmp_path):
    probe = probe_of(np.full((4, 3), 1e5, np.float32))
    network = nn.Sequential(nn.Identity(), nn.Linear(3, 2))
    store, summary = capture(tmp_path / "half", network, probe, ["0"], dtype="float16")
    assert summary["narrowed"] == 12
    assert np.isinf(activations(store, "0", "pooled")).all()
    store, summary = capture(tmp_path / "brain", network, probe, ["0"], dtype="bfloat16")
    assert summary["narrowed"] == 0
    assert activations(store, "0", "pooled").dtype == np.uint16
    layer = open_store(store.path).layer("run", "0", "pooled", "test")
    np.testing.assert_allclose(layer.values, 1e5, rtol=2**-8)


def test_a_network_can_run_in_bfloat16(tmp_path):
    model = ModelSpec(factory="made:here", compute_dtype="bfloat16")
    probe = pictures()
    store, _ = capture(tmp_path, lenet(3, 16, width=4), probe, model=model, keep=["full"])
    assert np.isfinite(activations(store, "fc2")).all()


class Hungry(nn.Module):
    """Refuses batches of more than eight, as a device without the memory does."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 3)
        self.sizes: list[int] = []

    def forward(self, inputs):
        hidden = self.fc(inputs)
        if len(inputs) > 8:
            raise torch.OutOfMemoryError("no memory")
        self.sizes.append(len(inputs))
        return hidden


def test_out_of_memory_halves_the_batch_and_loses_nothing(tmp_path):
    torch.manual_seed(0)
    network = Hungry()
    probe = probe_of(np.random.default_rng(0).normal(size=(50, 5)).astype(np.float32))
    store, _ = capture(tmp_path, network, probe, batch_size=32)
    expected = network.fc(torch.from_numpy(probe.inputs)).detach().numpy()
    np.testing.assert_allclose(activations(store, "fc", "pooled"), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(statistics(store, "fc")["mean"], expected.mean(0), rtol=1e-5, atol=1e-6)
    assert max(network.sizes) == 8


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.ended = 0

    def forward(self, inputs):
        hidden = self.third(self.second(self.first(inputs)))
        self.ended += 1
        return hidden


def test_the_forward_stops_after_the_last_wanted_layer_where_nobody_asks_for_the_output(tmp_path):
    network = Counted()
    probe = probe_of(np.ones((6, 4), np.float32))
    store, _ = capture(tmp_path / "a", network, probe, ["first"], [CaptureRequest()], batch_size=2)
    looks = network.ended
    assert looks == 2  # the two looks at the network before the capture, and no pass of it
    assert not store.has_array("runs/run/000000000003/activations/test/@output/full")
    capture(tmp_path / "b", network, probe, ["first"], [CaptureRequest(layers=("@output",))], batch_size=2)
    assert network.ended == looks + 2 + 3


def test_the_network_is_left_as_it_was_even_after_a_failure(tmp_path):
    network = lenet(3, 16, width=4)
    network.train()
    capture(tmp_path / "a", network, pictures())
    with pytest.raises(CaptureError, match="cannot be run on inputs of shape"):
        capture(tmp_path / "b", network, pictures(channels=1))
    assert network.training
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules()]
    assert sum(hooks) == 0


def test_the_input_of_the_last_linear_layer_is_found_and_equals_what_went_in(tmp_path):
    torch.manual_seed(0)
    network, probe = Functional(), pictures()
    requests = [CaptureRequest(layers=("@last_linear:input", "@output"))]
    store, summary = capture(tmp_path, network, probe, ["conv"], requests)
    assert summary["aliases"] == {"@last_linear:input": "fc2:input"}
    hidden = plain_outputs(network, probe.inputs)["fc1"].clip(min=0)
    np.testing.assert_allclose(activations(store, "fc2:input", "pooled"), hidden, rtol=1e-5, atol=1e-6)


def test_values_that_are_not_finite_are_counted_and_kept_out_of_the_moments(tmp_path):
    inputs = np.ones((6, 3), np.float32)
    inputs[2, 1] = np.nan
    inputs[4, 1] = np.inf
    store, _ = capture(tmp_path, nn.Sequential(nn.Identity(), nn.Linear(3, 2)), probe_of(inputs), ["0"])
    found = statistics(store, "0")
    assert found["non_finite_count"].tolist() == [0, 2, 0]
    np.testing.assert_allclose(found["mean"], [1, 4 / 6, 1])


def test_a_steep_mean_does_not_eat_the_spread(tmp_path):
    values = (1e4 + np.random.default_rng(0).normal(size=(400, 2, 8, 8))).astype(np.float32)
    network = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(128, 2))
    store, _ = capture(tmp_path, network, probe_of(values), ["0"], batch_size=64)
    np.testing.assert_allclose(statistics(store, "0")["std"], values.astype(np.float64).std((0, 2, 3)), rtol=1e-4)


def test_units_lie_on_the_channel_or_the_feature_axis():
    assert LayerInfo("a", "a", "Conv2d", (4, 5, 6), ("channel", "y", "x")).unit_axis == 0
    assert LayerInfo("a", "a", "Linear", (4, 5), ("token", "feature")).unit_axis == 1
    assert LayerInfo("a", "a", "Softmax", (4, 5), ("axis_1", "axis_2")).unit_axis is None


class Translator(nn.Module):
    """Reads `source`, then `target` while it looks at the mean of what it made of the source."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder, self.last = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 6)
        self.place = nn.Linear(3, 6)

    def forward(self, inputs):
        seen = self.encoder(inputs["source"])
        count = inputs["target"].shape[1]
        places = self.place(torch.ones(len(seen), count, 3, dtype=seen.dtype))
        return self.last(self.decoder(inputs["target"]) + seen.mean(1, keepdim=True) + places).mean(1)


@pytest.mark.parametrize("tokens", [(6, 6), (6, 5)])
@pytest.mark.parametrize("order", [("source", "target"), ("target", "source")])
def test_of_several_inputs_each_layer_has_the_mask_of_the_one_whose_tokens_it_has(tmp_path, tokens, order):
    generator = np.random.default_rng(0)
    count = dict(zip(("source", "target"), tokens, strict=True))
    lengths = {"source": np.array([6, 3, 1, 4, 2]), "target": np.array([2, 5, 3, 1, 4])}
    inputs = {name: generator.normal(size=(5, count[name], 4)).astype(np.float32) for name in order}
    masks = {name: np.arange(count[name]) < lengths[name][:, None] for name in order}
    torch.manual_seed(0)
    network, probe = Translator(), probe_of(inputs, **masks)
    layers = ["encoder", "decoder", *(["last"] if order[1] == "target" or tokens[0] != tokens[1] else [])]
    store, _ = capture(tmp_path, network, probe, layers, keep=["full", "pooled"], batch_size=2)
    for layer in layers:
        mask = masks["source" if layer == "encoder" else "target"]
        whole = activations(store, layer)
        expected = [rows[real].mean(0) for rows, real in zip(whole, mask, strict=True)]
        np.testing.assert_allclose(activations(store, layer, "pooled"), expected, rtol=1e-5, err_msg=layer)


def test_inputs_that_are_the_same_for_all_samples_are_told_apart_too(tmp_path):
    values = np.random.default_rng(0).normal(size=(1, 6, 4)).astype(np.float32).repeat(5, 0)
    masks = {"source": np.arange(6) < np.full((5, 1), 2), "target": np.arange(6) < np.full((5, 1), 4)}
    probe = probe_of({"source": values, "target": values + 1}, **masks)
    store, _ = capture(tmp_path, Translator(), probe, ["encoder", "decoder"], keep=["full", "pooled"])
    for layer, real in (("encoder", 2), ("decoder", 4)):
        whole = activations(store, layer)
        np.testing.assert_allclose(activations(store, layer, "pooled"), whole[:, :real].mean(1), rtol=1e-5)
