"""A capture of one probe into a store of its own, for the tests of this folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from torch import nn

from stratascope.storage.archive import join_path
from stratascope.storage.model_spec import ModelSpec
from stratascope.storage.probes import Probe
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.tasks.capture.extract import extract
from stratascope.tasks.capture.spec import CaptureSpec
from stratascope.tasks.contexts import statistics_of

MODEL = ModelSpec(factory="made:here")
UNIT = Unit("checkpoint", "run", 3, "capture")


def probe_of(inputs, targets: np.ndarray | None = None, **masks: np.ndarray) -> Probe:
    """`inputs` are an array, or arrays by name."""
    samples = len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs)
    return Probe("test", "test", inputs, targets, np.arange(samples), (), "digest", masks=masks)


def pictures(count: int = 37, channels: int = 3, size: int = 16) -> Probe:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(count, channels, size, size)).astype(np.float32)
    return probe_of(inputs, generator.integers(0, 10, count))


def capture(folder: Path, network: nn.Module, probe: Probe, patterns=None, requests=(), model=MODEL, **spec):
    store = Store.open(folder, create=True)
    with store.stage(UNIT, "identity", {}) as staged:
        summary = extract(network, probe, patterns, list(requests), CaptureSpec(**spec), model, staged)
        json.dumps(summary)
        staged.summary = {probe.name: summary}
        staged.commit()
    return store, summary


def activations(store: Store, layer: str, reduction: str = "full") -> np.ndarray:
    return store.array(join_path("runs", "run", "000000000003", "activations", "test", layer, reduction))


def statistics(store: Store, layer: str) -> dict[str, np.ndarray]:
    return statistics_of(store, join_path("runs", "run", "000000000003", "statistics", "test", layer))


def plain_outputs(network: nn.Module, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Every leaf's last output, copied at once: the independent reference."""
    found: dict[str, np.ndarray] = {}
    handles = [
        module.register_forward_hook(lambda m, i, o, name=name: found.__setitem__(name, o.detach().numpy().copy()))
        for name, module in network.named_modules()
        if name and not list(module.children())
    ]
    network.eval()
    with torch.no_grad():
        found["@output"] = network(torch.from_numpy(inputs)).numpy()
    for handle in handles:
        handle.remove()
    return found
