"""What an audit would keep, told before anything runs: layers, shapes, bytes and time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from stratascope.errors import StratascopeError
from stratascope.storage.model_spec import ModelSpec
from stratascope.storage.probes import Probe, read_probe
from stratascope.storage.store import Store
from stratascope.tasks.analysis import CaptureRequest
from stratascope.tasks.capture.spec import CaptureSpec


@dataclass(frozen=True)
class LayerPreview:
    """One layer as it would be kept; `bytes` is before compression, for one checkpoint and all probes."""

    name: str
    kind: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    kept: tuple[str, ...]
    bytes: int


@dataclass(frozen=True)
class Preview:
    """What one checkpoint of a run would cost."""

    layers: list[LayerPreview] = field(default_factory=list)
    parameters: int = 0
    seconds: float = 0.0
    """One forward pass over all probes in this process, on one thread, estimated from one batch."""

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "bytes": self.bytes}


def preview(
    model: ModelSpec,
    folder: Path,
    probes: Sequence[Probe],
    patterns: Sequence[str] | None,
    requests: Sequence[CaptureRequest],
    spec: CaptureSpec,
) -> Preview:
    """Build the bare network, show it one batch, and tell what would be kept.

    Raises ConfigurationError for a pattern that matches nothing, CaptureError for inputs that do not fit,
    ProbeError for an empty probe.
    """
    import torch

    from stratascope.tasks.capture.extract import plan_layers
    from stratascope.tasks.models.network import as_tensor, build_network, call_network, select_output

    network = build_network(model, folder).eval()
    layers: dict[str, LayerPreview] = {}
    seconds = 0.0
    for probe in probes:
        chosen, aliases = plan_layers(network, probe, patterns, requests, model)
        for layer in chosen:
            keep = tuple(dict.fromkeys((*spec.keep, "pooled"))) if layer.name in aliases.values() else spec.keep
            size = sum(_kept_values(item, layer.shape, layer.dims, spec) for item in keep)
            known = layers[layer.name].bytes if layer.name in layers else 0
            total = known + size * len(probe) * np.dtype(spec.dtype).itemsize
            layers[layer.name] = LayerPreview(layer.name, layer.kind, layer.shape, layer.dims, keep, total)
        batch = as_tensor(probe.inputs[0 : min(spec.batch_size, len(probe))])
        with torch.inference_mode():
            select_output(call_network(network, batch, model, folder), model.output)
            started = time.perf_counter()
            call_network(network, batch, model, folder)
        seconds += (time.perf_counter() - started) * len(probe) / len(batch)
    count = sum(item.numel() for item in network.parameters())
    return Preview(list(layers.values()), count, seconds)


def _kept_values(reduction: str, shape: tuple[int, ...], dims: tuple[str, ...], spec: CaptureSpec) -> int:
    if reduction == "projection":
        return spec.projection
    if reduction in ("full", "flat") or len(shape) < 2:
        return math.prod(shape)
    return shape[0] if dims[0] == "channel" else shape[-1]


def complaint(
    store_path: str,
    model: ModelSpec,
    folder: str,
    probes: Sequence[str],
    patterns: Sequence[str] | None,
    requests: Sequence[CaptureRequest],
    spec: CaptureSpec,
) -> str:
    """Why a run of this network cannot be audited with these probes and layers; "" where it can."""
    store = Store.open(store_path)
    try:
        preview(model, Path(folder), [read_probe(store, name) for name in probes], patterns, requests, spec)
    except StratascopeError as error:
        return str(error)
    return ""
