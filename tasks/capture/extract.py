"""One forward pass a batch for all layers, all reductions and all statistics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stratascope.errors import CaptureError, ProbeError
from stratascope.storage.archive import join_path
from stratascope.storage.model_spec import ModelSpec
from stratascope.storage.probes import Probe
from stratascope.storage.staging import StagedUnit
from stratascope.tasks.analysis import CaptureRequest
from stratascope.tasks.capture.accumulators import LayerStatistics, is_rectifier
from stratascope.tasks.capture.layers import (
    LAST_LINEAR,
    LayerInfo,
    last_linear,
    list_layers,
    select_layers,
    tensors_in,
)
from stratascope.tasks.capture.reductions import projection_matrix, reduce, reduced_dims
from stratascope.tasks.capture.spec import CaptureSpec
from stratascope.tasks.models.network import as_tensor, call_network, select_output

OUTPUT = "@output"
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.LayerNorm)


@contextmanager
def captured(network: nn.Module, layers: Sequence[LayerInfo]) -> Iterator[dict[str, Tensor]]:
    """While it lasts, each pass fills the mapping with the outputs of `layers` by name.

    Outputs are copied where a later in-place operation could overwrite them. The hooks are always removed.
    """
    values: dict[str, Tensor] = {}
    calls: dict[str, int] = {}
    wanted: dict[str, list[LayerInfo]] = {}
    for layer in layers:
        wanted.setdefault(layer.module, []).append(layer)
    copies = any(getattr(module, "inplace", False) for module in network.modules())

    def on_input(module: nn.Module, inputs: tuple[Any, ...], name: str) -> None:
        for layer in wanted[name]:
            if layer.side == "input" and layer.call == calls.get(name, 0):
                values[layer.name] = inputs[0].detach().clone() if copies else inputs[0].detach()

    def on_output(module: nn.Module, inputs: Any, output: Any, name: str) -> None:
        call = calls.get(name, 0)
        calls[name] = call + 1
        members = dict(tensors_in(output))
        for layer in wanted[name]:
            if layer.side == "output" and layer.call == call and layer.element in members:
                found = members[layer.element].detach()
                values[layer.name] = found.clone() if copies else found

    def restart(module: nn.Module, inputs: Any) -> None:
        calls.clear()
        values.clear()

    handles = [network.register_forward_pre_hook(restart)]
    try:
        modules = dict(network.named_modules())
        for name in wanted:
            handles.append(modules[name].register_forward_pre_hook(lambda m, i, name=name: on_input(m, i, name)))
            handles.append(
                modules[name].register_forward_hook(lambda m, i, o, name=name: on_output(m, i, o, name))
            )
        yield values
    finally:
        for handle in handles:
            handle.remove()


def plan_layers(
    network: nn.Module,
    probe: Probe,
    patterns: Sequence[str] | None,
    requests: Sequence[CaptureRequest],
    spec: ModelSpec,
) -> tuple[list[LayerInfo], dict[str, str]]:
    """The layers to capture in the order of execution, and what aliases such as `@last_linear:input` stand for.

    Raises ConfigurationError for a pattern that matches nothing, ProbeError for an empty probe.
    """
    if len(probe) == 0:
        raise ProbeError(f"probe {probe.name!r} is empty.")
    example = as_tensor(np.concatenate([probe.inputs[0:2]] * (2 if len(probe) == 1 else 1)))
    available = list_layers(network, example, spec)
    inputs_of = {f"{layer.name}:input": layer for layer in available if not layer.call and not layer.element}
    offered = available + [_input_side(layer, network) for layer in inputs_of.values()]
    chosen = (
        {layer.name: layer for layer in select_layers(patterns, available)}
        if patterns is None
        else {layer.name: layer for layer in select_layers(patterns, offered)}
    )
    aliases: dict[str, str] = {}
    for request in requests:
        for pattern in request.layers:
            if pattern == LAST_LINEAR:
                name = last_linear(network)
                if name is None or f"{name}:input" not in inputs_of:
                    continue
                aliases[pattern] = f"{name}:input"
                chosen[f"{name}:input"] = _input_side(inputs_of[f"{name}:input"], network)
            elif pattern != OUTPUT:
                chosen.update({layer.name: layer for layer in select_layers([pattern], offered)})
    order = {layer.name: number for number, layer in enumerate(available)}
    layers = sorted(
        chosen.values(),
        key=lambda layer: order.get(layer.name.removesuffix(":input"), 0) - 0.5 * (layer.side == "input"),
    )
    return _with_input_shapes(layers, network, example, spec), aliases


def _input_side(layer: LayerInfo, network: nn.Module) -> LayerInfo:
    return LayerInfo(f"{layer.name}:input", layer.module, layer.kind, layer.shape, layer.dims, 0, (), "input")


def _with_input_shapes(
    layers: Sequence[LayerInfo], network: nn.Module, example: Tensor, spec: ModelSpec
) -> list[LayerInfo]:
    if not any(layer.side == "input" for layer in layers):
        return list(layers)
    from stratascope.tasks.capture.layers import dimension_names

    settled = []
    with captured(network, layers) as values, torch.inference_mode():
        call_network(network, example, spec)
        for layer in layers:
            if layer.side == "input":
                shape = tuple(values[layer.name].shape[1:])
                layer = LayerInfo(
                    layer.name, layer.module, layer.kind, shape, dimension_names("", shape), 0, (), "input"
                )
            settled.append(layer)
    return settled


def rectified_layers(
    network: nn.Module, layers: Sequence[LayerInfo], example: Tensor, spec: ModelSpec
) -> dict[str, bool]:
    """For each layer whether a ReLU follows: it is one, or its output, perhaps after a norm, enters one.

    Found by watching one pass: whether the tensor that a ReLU module or function receives is the layer's
    output, or that output after normalisation. Such a layer is dead where its rectified output is 0 throughout.
    """
    owner: dict[int, set[str]] = {}
    keep: list[Tensor] = []
    hit: set[str] = set()
    originals = {name: getattr(functional, name) for name in ("relu", "relu_")}

    def note(inputs: Any) -> Any:
        if isinstance(inputs, Tensor):
            hit.update(owner.get(id(inputs), set()))
        return inputs

    def hook(module: nn.Module, inputs: Any, output: Any, name: str) -> None:
        if not isinstance(output, Tensor):
            return
        keep.append(output)
        if isinstance(module, nn.ReLU | nn.ReLU6):
            hit.update({name} | (owner.get(id(inputs[0]), set()) if isinstance(inputs[0], Tensor) else set()))
        elif isinstance(module, (*_WEIGHTED, *_NORMS)):
            owner[id(output)] = {name}

    def watched(name: str) -> Any:
        def call(inputs: Tensor, *arguments: Any, **options: Any) -> Tensor:
            note(inputs)
            return originals[name](inputs, *arguments, **options)

        return call

    handles = [
        module.register_forward_hook(lambda m, i, o, name=name: hook(m, i, o, name))
        for name, module in network.named_modules()
        if name and not list(module.children())
    ]
    torch_relu, method_relu = torch.relu, Tensor.relu
    try:
        functional.relu, functional.relu_ = watched("relu"), watched("relu_")
        torch.relu = lambda inputs: torch_relu(note(inputs))  # type: ignore[assignment]
        Tensor.relu = lambda inputs: method_relu(note(inputs))  # type: ignore[method-assign,assignment]
        with torch.inference_mode():
            call_network(network, example, spec)
    finally:
        functional.relu, functional.relu_ = originals["relu"], originals["relu_"]
        torch.relu, Tensor.relu = torch_relu, method_relu  # type: ignore[method-assign]
        for handle in handles:
            handle.remove()
    return {
        layer.name: layer.side == "output" and (layer.module in hit or is_rectifier(layer)) for layer in layers
    }


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
) -> dict[str, Any]:
    """Run `probe` through `network` once and write what `spec` keeps into `staged`.

    Returns the names of the layers in the order of execution, their facts, and the aliases. Raises
    CaptureError, ConfigurationError, ProbeError. The network is left as it was.
    """
    was_training = network.training
    network.eval()
    try:
        layers, aliases = plan_layers(network, probe, patterns, requests, model)
        example = as_tensor(probe.inputs[0:2])
        rectified = rectified_layers(network, layers, example, model) if spec.statistics else {}
        writer = _Writer(staged, probe, layers, spec, rectified, aliases)
        _run(network, probe, layers, spec, model, writer, folder)
        writer.finish()
    finally:
        network.train(was_training)
    facts = {
        layer.name: {"type": layer.kind, "shape": list(layer.shape), "dims": list(layer.dims)} for layer in layers
    }
    return {
        "layers": [layer.name for layer in layers],
        "facts": facts,
        "aliases": aliases,
        "narrowed": writer.overflow,
    }


def _run(
    network: nn.Module,
    probe: Probe,
    layers: Sequence[LayerInfo],
    spec: CaptureSpec,
    model: ModelSpec,
    writer: _Writer,
    folder: Path | None,
) -> None:
    dtype = getattr(torch, model.compute_dtype)
    size = spec.batch_size
    start = 0
    with captured(network, layers) as values:
        while start < len(probe):
            stop = min(start + size, len(probe))
            try:
                output = call_network(network, as_tensor(probe.inputs[start:stop], dtype), model, folder)
            except torch.OutOfMemoryError:
                if size == 1:
                    raise CaptureError("one sample alone does not fit into the memory.") from None
                size = size // 2
                continue
            writer.add(values, select_output(output, model.output))
            start = stop


class _Writer:
    """Sends each batch where it belongs."""

    def __init__(
        self,
        staged: StagedUnit,
        probe: Probe,
        layers: Sequence[LayerInfo],
        spec: CaptureSpec,
        rectified: Mapping[str, bool],
        aliases: Mapping[str, str],
    ) -> None:
        self.staged, self.probe, self.layers, self.spec = staged, probe, layers, spec
        self.writers: dict[tuple[str, str], Any] = {}
        self.overflow = 0
        self.aliased = set(aliases.values())
        self.projections = {
            layer.name: projection_matrix(layer.values_per_sample, spec.projection, layer.name)
            for layer in layers
            if "projection" in spec.keep
        }
        self.statistics = {
            layer.name: LayerStatistics(
                layer, spec.histogram_bins, spec.histogram_positions, rectified.get(layer.name, False)
            )
            for layer in layers
            if spec.statistics
        }

    def add(self, values: Mapping[str, Tensor], output: Tensor) -> None:
        for layer in self.layers:
            if layer.name not in values:
                raise CaptureError(
                    f"layer {layer.name!r} did not run for every batch: its calls depend on the data."
                )
            found = values[layer.name]
            keep = (
                self.spec.keep
                if layer.name not in self.aliased
                else tuple(dict.fromkeys((*self.spec.keep, "pooled")))
            )
            for reduction in keep:
                reduced = reduce(found, reduction, layer, self.projections.get(layer.name))
                self._append(layer.name, reduction, reduced, reduced_dims(reduction, layer, reduced.ndim))
            if layer.name in self.statistics:
                self.statistics[layer.name].add(found)
        dims = (
            ("sample", "class") if output.ndim == 2 else ("sample", *(f"axis_{k}" for k in range(1, output.ndim)))
        )
        self._append(OUTPUT, "full", output, dims)

    def _append(self, layer: str, reduction: str, values: Tensor, dims: tuple[str, ...]) -> None:
        array = values.float().cpu().numpy()
        dtype = np.dtype("float32" if layer == OUTPUT else self.spec.dtype)
        if dtype.itemsize < 4:
            self.overflow += int((np.abs(array) > np.finfo(dtype).max).sum())
        writer = self.writers.get((layer, reduction))
        if writer is None:
            writer = self.staged.create_array(
                join_path("activations", self.probe.name, layer, reduction),
                dims=dims,
                shape=(len(self.probe), *array.shape[1:]),
                dtype=dtype,
                attributes={"layer": layer, "reduction": reduction},
                codec=self.spec.codec,
            )
            self.writers[layer, reduction] = writer
        writer.append(array)

    def finish(self) -> None:
        for name, statistics in self.statistics.items():
            for path, array in statistics.arrays().items():
                self.staged.write_array(join_path("statistics", self.probe.name, name, path), array)
