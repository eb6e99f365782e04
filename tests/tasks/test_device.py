"""Networks on another device: nothing there may meet what is here, and what is kept is the same bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stratascope.errors import ClusterError
from stratascope.storage.model_spec import ModelSpec
from stratascope.storage.probes import Probe
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.tasks.analysis import CaptureRequest
from stratascope.tasks.capture.extract import extract
from stratascope.tasks.capture.spec import CaptureSpec
from stratascope.tasks.device import device_of, moved, visible_devices
from stratascope.tasks.models import lenet, text_transformer
from stratascope.tasks.representation.gradients import mean_gradient
from tests.tasks.pretended_device import NAME, Elsewhere, PretendedDevice

MODEL = ModelSpec(factory="made:here")


def pictures() -> Probe:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(37, 3, 16, 16)).astype(np.float32)
    return Probe("test", "test", inputs, generator.integers(0, 10, 37), np.arange(37), (), "digest")


def sentences() -> Probe:
    generator = np.random.default_rng(0)
    mask = np.arange(9) < generator.integers(3, 10, (20, 1))
    codes = generator.integers(1, 30, (20, 9))
    return Probe("test", "test", codes, codes, np.arange(20), (), "digest", masks={"": mask})


def captured(folder: Path, network: nn.Module, probe: Probe, **spec: Any) -> dict[str, bytes]:
    store = Store.open(folder, create=True)
    unit = Unit("checkpoint", "run", 0, "capture")
    requests = [CaptureRequest(("@output", "@last_linear:input"), ("full",))]
    with store.stage(unit, "identity", {}) as staged:
        extract(network, probe, None, requests, CaptureSpec(**spec), MODEL, staged)
        staged.commit()
    root = folder / "archive.zarr" / "runs"
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_capture_keeps_its_tensors_apart_and_stores_the_same_bytes(tmp_path, dtype):
    torch.manual_seed(0)
    network = lenet(3, 16, width=4).eval()
    everything = {
        "keep": ["full", "pooled", "max", "flat", "projection"],
        "statistics": ["moments", "zeros", "histogram", "top", "covariance", "class_mean"],
        "batch_size": 16,
        "dtype": dtype,
    }
    expected = captured(tmp_path / "here", network, pictures(), **everything)
    with PretendedDevice():
        network.to(NAME)
        assert all(isinstance(item, Elsewhere) for item in network.parameters())
        assert captured(tmp_path / "there", network, pictures(), **everything) == expected
    assert len(expected) > 20


def test_masks_of_tokens_go_where_the_network_is(tmp_path):
    torch.manual_seed(0)
    network = text_transformer(30, width=16, depth=1, heads=2, length=9).eval()
    spec = {"keep": ["pooled", "max", "cls", "last"], "statistics": ["moments", "zeros"]}
    captured(tmp_path / "here", network, sentences(), **spec)
    with PretendedDevice():
        captured(tmp_path / "there", network.to(NAME), sentences(), **spec)
    here, there = Store.open(tmp_path / "here"), Store.open(tmp_path / "there")
    paths = here.list_arrays("runs")
    assert there.list_arrays("runs") == paths
    assert len(paths) > 20
    for path in paths:
        # Attention takes another kernel there, which sums in another order.
        np.testing.assert_allclose(there.array(path), here.array(path), rtol=1e-4, atol=1e-5, err_msg=path)


def test_what_is_not_finite_is_found_there_too(tmp_path):
    torch.manual_seed(0)
    network, probe = lenet(3, 16, width=4).eval(), pictures()
    probe.inputs[3, 0, 2, 2] = np.nan
    expected = captured(tmp_path / "here", network, probe)
    with PretendedDevice():
        assert captured(tmp_path / "there", network.to(NAME), probe) == expected


def test_gradients_come_back_from_there():
    torch.manual_seed(0)
    network, probe = lenet(3, 16, width=4).eval(), pictures()
    expected, count = mean_gradient(network, iter([(probe.inputs, probe.targets, None)]), MODEL, "classification", "cross_entropy")  # fmt: skip
    with PretendedDevice():
        network.to(NAME)
        found, _ = mean_gradient(network, iter([(probe.inputs, probe.targets, None)]), MODEL, "classification", "cross_entropy")  # fmt: skip
        assert count == len(probe)
        for name, gradient in expected.items():
            assert isinstance(found[name], Elsewhere)
            assert torch.equal(found[name].cpu(), gradient)


def test_the_pretended_device_is_as_strict_as_a_card():
    with PretendedDevice():
        there, here = torch.ones(3).to(NAME), torch.ones(3)
        assert isinstance(there, Elsewhere)
        assert torch.equal((there + there).cpu(), here + here)
        assert float(there.sum()) == 3
        with pytest.raises(RuntimeError, match="two devices"):
            there + here
        with pytest.raises((RuntimeError, TypeError)):
            there.numpy()
        assert torch.equal((there * torch.tensor(2.0)).cpu(), 2 * here)


def test_inputs_of_any_shape_are_moved():
    with PretendedDevice():
        there = moved({"a": torch.ones(2), "b": {"c": torch.zeros(1)}, "d": 3}, torch.device(NAME))
    assert isinstance(there["a"], Elsewhere)
    assert isinstance(there["b"]["c"], Elsewhere)
    assert there["d"] == 3


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_a_worker_without_the_card_that_it_offers_says_so(monkeypatch):
    monkeypatch.delenv("STRATASCOPE_DEVICE", raising=False)
    with pytest.raises(
        ClusterError, match=r"a worker that is to run networks on 'cuda' cannot: torch finds no CUDA"
    ):
        device_of("cuda")
    monkeypatch.setenv("STRATASCOPE_DEVICE", "nonsense")
    with pytest.raises(ClusterError, match="nonsense"):
        device_of("cuda")
    monkeypatch.setenv("STRATASCOPE_DEVICE", "cpu")
    assert device_of("cuda") == torch.device("cpu")


def test_cards_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.delenv("STRATASCOPE_DEVICE", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, GPU-8f1,7")
    assert visible_devices(2) == ("2", "GPU-8f1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_devices(2) == ()
