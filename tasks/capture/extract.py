"""One forward pass a batch for all layers, all reductions and all statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stratascope.errors import CaptureError
from stratascope.storage.archive import LOGICAL_DTYPE, join_path
from stratascope.storage.model_spec import ModelSpec
from stratascope.storage.probes import Probe
from stratascope.storage.staging import StagedUnit
from stratascope.tasks.analysis import CaptureRequest
from stratascope.tasks.capture.accumulators import BatchPart, LayerStatistics
from stratascope.tasks.capture.layers import OUTPUT, LayerInfo, tensors_in
from stratascope.tasks.capture.observe import ORDINARY
from stratascope.tasks.capture.planning import CapturePlan, plan_capture
from stratascope.tasks.capture.reductions import (
    by_unit,
    mean_over_positions,
    projection_matrix,
    reduce,
    reduced_dims,
    samples_first,
    stored_dtype,
    to_stored,
)
from stratascope.tasks.capture.spec import CaptureSpec
from stratascope.tasks.intake.load import NetworkTraits
from stratascope.tasks.memory import is_memory_shortage
from stratascope.tasks.models.network import as_tensor, call_network, select_output

Receive = Callable[[LayerInfo, Tensor], None]


class _LastLayerSeen(Exception):
    """Ends a forward pass of which nothing more is wanted."""


@contextmanager
def watched(
    network: nn.Module, layers: Sequence[LayerInfo], receive: Receive, stop_after: LayerInfo | None = None
) -> Iterator[None]:
    """While it lasts, each pass hands the outputs (or inputs) of `layers` to `receive`, sample axis in front.

    `receive` gets the tensor before any later in-place operation can overwrite it, and must not keep it. The hooks
    are always removed.
    """
    calls: dict[str, int] = {}
    wanted: dict[str, list[LayerInfo]] = {}
    for layer in layers:
        wanted.setdefault(layer.module, []).append(layer)

    def on_input(module: nn.Module, inputs: tuple[Any, ...], name: str) -> None:
        for layer in wanted[name]:
            if layer.side == "input" and layer.call == calls.get(name, 0):
                receive(layer, samples_first(inputs[0].detach(), layer))

    def on_output(module: nn.Module, inputs: Any, output: Any, name: str) -> None:
        call = calls.get(name, 0)
        calls[name] = call + 1
        members = dict(tensors_in(output))
        for layer in wanted[name]:
            if layer.side == "output" and layer.call == call and layer.element in members:
                receive(layer, samples_first(members[layer.element].detach(), layer))
                if layer is stop_after:
                    raise _LastLayerSeen

    def restart(module: nn.Module, inputs: Any) -> None:
        calls.clear()

    handles = []
    try:
        if wanted:
            handles.append(network.register_forward_pre_hook(restart))
        modules = dict(network.named_modules())
        for name in wanted:
            handles.append(modules[name].register_forward_pre_hook(lambda m, i, name=name: on_input(m, i, name)))
            handles.append(
                modules[name].register_forward_hook(lambda m, i, o, name=name: on_output(m, i, o, name))
            )
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def extract(
    network: nn.Module,
    probe: Probe,
    patterns: Sequence[str] | None,
    requests: Sequence[CaptureRequest],
    spec: CaptureSpec,
    model: ModelSpec,
    staged: StagedUnit,
    folder: Path | None = None,
    traits: NetworkTraits = ORDINARY,
) -> dict[str, Any]:
    """Run `probe` through `network` once and write what `spec` keeps into `staged`.

    Returns the names of the layers in the order of execution, their facts, and the aliases. Raises
    CaptureError, ConfigurationError, ProbeError. The network is left as it was.
    """
    was_training = network.training
    dtype = getattr(torch, model.compute_dtype)
    # An exported program has its mode built in, and refuses to change it.
    has_mode = traits.kind != "exported"
    if has_mode:
        network.eval()
    if dtype != torch.float32:
        network.to(dtype)
    try:
        plan = plan_capture(network, probe, patterns, requests, spec, model, folder, traits)
        writer = _Writer(staged, probe, plan, spec)
        _run(network, probe, plan, spec, model, writer, folder, traits.fixed_batch_size)
        writer.finish()
    finally:
        if has_mode:
            network.train(was_training)
    shown = [layer for layer in plan.layers if layer.name in plan.selected]
    facts = {
        layer.name: {
            "type": layer.kind,
            "shape": list(layer.shape),
            "dims": list(layer.dims),
            "kept": list(plan.keep[layer.name]),
        }
        for layer in shown
    }
    return {
        "layers": [layer.name for layer in shown],
        "facts": facts,
        "aliases": dict(plan.aliases),
        "narrowed": writer.narrowed,
        "warnings": list(plan.warnings),
    }


def _run(
    network: nn.Module,
    probe: Probe,
    plan: CapturePlan,
    spec: CaptureSpec,
    model: ModelSpec,
    writer: _Writer,
    folder: Path | None,
    fixed: int | None,
) -> None:
    dtype = getattr(torch, model.compute_dtype)
    size = fixed or spec.batch_size
    start = 0
    batch = _Batch()
    with watched(network, plan.layers, lambda layer, values: writer.receive(batch, layer, values), plan.last):
        while start < len(probe):
            rows = slice(start, min(start + size, len(probe)))
            batch.begin({name: probe.mask_at(rows, name) for name in probe.masks}, rows.stop - rows.start)
            try:
                inputs = _padded(as_tensor(probe.inputs_at(rows), dtype), fixed)
                output = select_output(call_network(network, inputs, model, folder), model.output)
                batch.output = output[: batch.samples] if plan.wants_output else None
            except _LastLayerSeen:
                batch.output = None
            except Exception as error:
                if not is_memory_shortage(error):
                    raise
                size = _halved(size, fixed)
                continue
            writer.add(batch, rows)
            start = rows.stop


def _halved(size: int, fixed: int | None) -> int:
    if size == 1 or fixed:
        raise CaptureError(
            f"{size} sample(s) at once do not fit into the memory, and no fewer can be run."
        ) from None
    return size // 2


def _padded(inputs: Any, size: int | None) -> Any:
    """`inputs` with the first sample repeated up to `size`, for a program that takes no other batch."""
    if isinstance(inputs, dict):
        return {name: _padded(item, size) for name, item in inputs.items()}
    if size is None or len(inputs) == size:
        return inputs
    return torch.cat([inputs, inputs[:1].expand(size - len(inputs), *inputs.shape[1:])])


@dataclass
class _Batch:
    """What one forward pass has given so far: nothing of it counts before the pass has ended well."""

    masks: dict[str, Tensor] = field(default_factory=dict)
    """bool (sample, token), by input."""
    samples: int = 0
    reduced: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)
    parts: dict[str, BatchPart] = field(default_factory=dict)
    peaks: dict[str, Tensor] = field(default_factory=dict)
    output: Tensor | None = None
    narrowed: int = 0

    def begin(self, masks: Mapping[str, Any], samples: int) -> None:
        self.masks = {name: torch.from_numpy(np.ascontiguousarray(mask)) for name, mask in masks.items()}
        self.samples, self.output, self.narrowed = samples, None, 0
        self.reduced.clear()
        self.parts.clear()
        self.peaks.clear()


class _Writer:
    """Reduces each layer while its output is hot, and sends each finished batch where it belongs."""

    def __init__(self, staged: StagedUnit, probe: Probe, plan: CapturePlan, spec: CaptureSpec) -> None:
        self.staged, self.probe, self.plan, self.spec = staged, probe, plan, spec
        self.writers: dict[tuple[str, str], Any] = {}
        self.narrowed = 0
        self.largest: dict[str, Tensor] = {}
        self.tellers = frozenset(plan.rectified_by.values()) if "moments" in spec.statistics else frozenset()
        self.projections = {
            layer.name: projection_matrix(layer.values_per_sample, spec.projection, layer.name)
            for layer in plan.layers
            if "projection" in plan.keep.get(layer.name, ())
        }
        targets = probe.targets
        labelled = targets is not None and targets.ndim == 1 and targets.dtype.kind in "iu" and targets.size > 0
        self.targets = torch.from_numpy(targets.astype(np.int64)) if labelled and targets is not None else None
        classes = int(self.targets.max()) + 1 if self.targets is not None and self.targets.min() >= 0 else 0
        self.statistics = {
            layer.name: LayerStatistics(
                layer,
                spec.statistics,
                spec.histogram_bins,
                spec.histogram_positions,
                spec.covariance_limit,
                classes,
            )
            for layer in plan.layers
            if spec.statistics and layer.name in plan.selected
        }

    def receive(self, batch: _Batch, layer: LayerInfo, values: Tensor) -> None:
        """Called from inside the forward pass with the output of `layer`."""
        values = values[: batch.samples]
        units = by_unit(values, layer)
        spoken = self.plan.token_inputs.get(layer.name)
        mask = None if spoken is None else batch.masks[spoken].to(values.device)
        means = mean_over_positions(units, mask)
        for reduction in self.plan.keep.get(layer.name, ()):
            pooled = reduction == "pooled" and values.ndim > 2
            found = (
                means
                if pooled
                else reduce(values, units, reduction, layer, mask, self._projection(layer, values.device))
            )
            array, lost = to_stored(found, self.spec.dtype)
            # What is a view of the layer's own memory must be copied before the pass goes on.
            batch.reduced[layer.name, reduction] = (
                array.copy() if np.shares_memory(array, _numbers(values)) else array
            )
            batch.narrowed += lost
        if layer.name in self.statistics:
            batch.parts[layer.name] = self.statistics[layer.name].measure(units, mask, means)
            if layer.name in self.tellers:
                batch.peaks[layer.name] = batch.parts[layer.name].largest.amax(0)
        elif layer.name in self.tellers:
            batch.peaks[layer.name] = units.amax((0, 2)).float().cpu()

    def _projection(self, layer: LayerInfo, device: torch.device) -> Tensor | None:
        matrix = self.projections.get(layer.name)
        if matrix is not None and matrix.device != device:
            matrix = self.projections[layer.name] = matrix.to(device)
        return matrix

    def add(self, batch: _Batch, rows: slice) -> None:
        """Take in a forward pass that has ended well."""
        for layer in self.plan.layers:
            for reduction in self.plan.keep.get(layer.name, ()):
                if (layer.name, reduction) not in batch.reduced:
                    raise CaptureError(
                        f"layer {layer.name!r} did not run for every batch: its calls depend on the data."
                    )
                dims = reduced_dims(reduction, layer)
                self._append(layer.name, reduction, batch.reduced[layer.name, reduction], dims)
        targets = None if self.targets is None else self.targets[rows]
        for name, part in batch.parts.items():
            self.statistics[name].add(part, targets)
        for name, peak in batch.peaks.items():
            self.largest[name] = torch.maximum(self.largest[name], peak) if name in self.largest else peak
        if batch.output is not None:
            extra = (f"axis_{number}" for number in range(1, batch.output.ndim))
            dims = ("sample", "class") if batch.output.ndim == 2 else ("sample", *extra)
            self._append(OUTPUT, "full", batch.output.float().cpu().numpy(), dims)
        self.narrowed += batch.narrowed

    def _append(self, layer: str, reduction: str, array: np.ndarray, dims: tuple[str, ...]) -> None:
        writer = self.writers.get((layer, reduction))
        if writer is None:
            attributes = {"layer": layer, "reduction": reduction}
            if layer != OUTPUT and self.spec.dtype == "bfloat16":
                attributes[LOGICAL_DTYPE] = "bfloat16"
            writer = self.staged.create_array(
                join_path("activations", self.probe.name, layer, reduction),
                dims=dims,
                shape=(len(self.probe), *array.shape[1:]),
                dtype=np.dtype("float32") if layer == OUTPUT else stored_dtype(self.spec.dtype),
                attributes=attributes,
                codec=self.spec.codec,
            )
            self.writers[layer, reduction] = writer
        writer.append(array)

    def finish(self) -> None:
        """Write the statistics."""
        for name, statistics in self.statistics.items():
            teller = self.plan.rectified_by.get(name)
            dead = (self.largest[teller] <= 0).numpy() if teller in self.largest and teller is not None else None
            for path, array in statistics.arrays(dead).items():
                self.staged.write_array(join_path("statistics", self.probe.name, name, path), array)


def _numbers(values: Tensor) -> np.ndarray:
    """The memory of `values` as an array, without a copy; empty for what NumPy cannot see."""
    return values.numpy() if values.dtype != torch.bfloat16 and values.device.type == "cpu" else np.empty(0)
