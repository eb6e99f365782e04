"""What an audit would keep, told before anything runs: layers, shapes, bytes and time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratascope.errors import DoesNotApply, StratascopeError
from stratascope.storage.model_spec import ModelSpec
from stratascope.storage.probes import Probe, read_probe
from stratascope.storage.store import Store
from stratascope.tasks.analysis import CaptureRequest, Options, named
from stratascope.tasks.capture.spec import CaptureSpec
from stratascope.tasks.device import device_of

if TYPE_CHECKING:
    from stratascope.storage.checkpoint_files import CheckpointFile, RunSource
    from stratascope.tasks.capture.layers import LayerInfo
    from stratascope.tasks.intake.facts import LoadedNetwork


@dataclass(frozen=True)
class LayerPreview:
    """One layer as it would be kept; `bytes` is before compression, for one checkpoint and all probes."""

    name: str
    kind: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    kept: tuple[str, ...]
    bytes: int


PROCESS_BYTES = 600 << 20
"""A worker with its libraries loaded, before any network."""


@dataclass(frozen=True)
class Estimate:
    """What the driver must know before it hands out work: small enough to travel."""

    bytes: int = 0
    memory: int = 0
    seconds: float = 0.0
    complaint: str = ""


@dataclass(frozen=True)
class Preview:
    """What one checkpoint of a run would cost."""

    layers: list[LayerPreview] = field(default_factory=list)
    parameters: int = 0
    seconds: float = 0.0
    """One forward pass over all probes in this process, estimated from one batch."""
    warnings: list[str] = field(default_factory=list)
    memory: int = 0
    """Bytes that a worker needs at its peak, roughly."""

    @property
    def bytes(self) -> int:
        return sum(layer.bytes for layer in self.layers)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "bytes": self.bytes}


def preview(
    loaded: LoadedNetwork,
    model: ModelSpec,
    folder: Path,
    probes: Sequence[Probe],
    patterns: Sequence[str] | None,
    requests: Sequence[CaptureRequest],
    spec: CaptureSpec,
) -> Preview:
    """Show the network one batch, and tell what would be kept.

    Raises ConfigurationError for a pattern that matches nothing, CaptureError for inputs that do not fit,
    ProbeError for an empty probe.
    """
    import torch

    from stratascope.tasks.capture.observe import example_batch
    from stratascope.tasks.capture.planning import plan_capture
    from stratascope.tasks.models.network import call_network, select_output

    network, traits = loaded.module, loaded.traits
    dtype = getattr(torch, model.compute_dtype)
    network.to(dtype)
    layers: dict[str, LayerPreview] = {}
    seconds, batch_bytes = 0.0, 0
    warnings: dict[str, None] = {}
    for probe in probes:
        plan = plan_capture(network, probe, patterns, requests, spec, model, folder, traits)
        warnings |= dict.fromkeys(plan.warnings)
        size = traits.fixed_batch_size or min(spec.batch_size, len(probe))
        for layer in plan.layers:
            if layer.name in plan.selected:
                known = layers[layer.name].bytes if layer.name in layers else 0
                layers[layer.name] = _layer_preview(layer, plan.keep[layer.name], spec, len(probe), known)
        batch_bytes = max(batch_bytes, size * 4 * sum(layer.values_per_sample for layer in plan.layers))
        batch = example_batch(probe, size, dtype)
        with torch.inference_mode():
            select_output(call_network(network, batch, model, folder), model.output)
            started = time.perf_counter()
            call_network(network, batch, model, folder)
        seconds += (time.perf_counter() - started) * len(probe) / size
    count = sum(item.numel() for item in network.parameters())
    # The file and the network hold the weights once each; a batch's layers may all be alive at once, and be copied.
    memory = PROCESS_BYTES + 8 * count + 2 * batch_bytes
    return Preview(list(layers.values()), count, seconds, list(warnings), memory)


def _layer_preview(
    layer: LayerInfo, keep: Sequence[str], spec: CaptureSpec, samples: int, known: int
) -> LayerPreview:
    from stratascope.tasks.capture.reductions import stored_dtype

    values = sum(_kept_values(item, layer, spec) for item in keep)
    size = known + values * samples * stored_dtype(spec.dtype).itemsize
    return LayerPreview(layer.name, layer.kind, layer.shape, layer.dims, tuple(keep), size)


def _kept_values(reduction: str, layer: LayerInfo, spec: CaptureSpec) -> int:
    if reduction == "projection":
        return spec.projection
    if reduction in ("full", "flat") or len(layer.shape) < 2 or layer.unit_axis is None:
        return layer.values_per_sample
    return layer.shape[layer.unit_axis]


def foretold(
    loaded: LoadedNetwork, model: ModelSpec, folder: Path, probes: Sequence[Probe], analyses: Mapping[str, Options]
) -> list[str]:
    """What analyses file beyond what is captured, where they can tell; why an analysis does not apply."""
    from stratascope.tasks.vision.image_network import ImageNetwork

    network = ImageNetwork(loaded.module, model, folder, loaded.traits.fixed_batch_size, loaded.traits.hookable)
    found = []
    for name, options in analyses.items():
        foretell = named(name).foretell
        for probe in probes if foretell is not None else ():
            assert foretell is not None
            try:
                said = foretell(network, probe, options)
            except DoesNotApply as reason:
                said = f"does not apply: {reason}"
            except StratascopeError as error:
                said = f"cannot be told: {error}"
            found.append(f"{name}, probe {probe.name}: {said}")
    return found


def network_of(source: RunSource, files: Sequence[CheckpointFile], folder: Path) -> LoadedNetwork:
    """The bare network of a run; the program in its first file where it has no factory. Raises CheckpointError."""
    from stratascope.tasks.intake.facts import LoadedNetwork, open_network
    from stratascope.tasks.intake.load import NetworkTraits
    from stratascope.tasks.models.network import build_network

    if source.model.factory:
        return LoadedNetwork(build_network(source.model, folder).eval(), NetworkTraits())
    return open_network(files[0], source, folder)


def estimate(
    store_path: str,
    source: RunSource,
    files: Sequence[CheckpointFile],
    folder: str,
    probes: Sequence[str],
    patterns: Sequence[str] | None,
    requests: Sequence[CaptureRequest],
    spec: CaptureSpec,
    device: str = "cpu",
) -> Estimate:
    """What one checkpoint of a run costs, or why the run cannot be audited with these probes and layers."""
    store = Store.open(store_path)
    try:
        if device != "cpu":
            device_of(device)
        found = preview(
            network_of(source, files, Path(folder)), source.model, Path(folder),
            [read_probe(store, name) for name in probes], patterns, requests, spec,
        )  # fmt: skip
    except StratascopeError as error:
        return Estimate(complaint=str(error))
    return Estimate(found.bytes, found.memory, found.seconds)
