"""Which channels and which places of a layer an answer rests on, by five methods, for the same samples at every checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, field_validator

from stratascope.errors import ConfigurationError, DoesNotApply, did_you_mean
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.representation.features import sound_patterns
from stratascope.tasks.vision.baselines import Baseline, baseline_of
from stratascope.tasks.vision.chosen_samples import ImageSamples, SampleOptions, chosen_samples, sample_arrays
from stratascope.tasks.vision.layer_attribution_drawing import draw
from stratascope.tasks.vision.targets import Target

if TYPE_CHECKING:
    from stratascope.tasks.vision.image_network import ImageNetwork
    from stratascope.tasks.vision.layer_attributions import LayerAttribution
    from stratascope.tasks.vision.spatial_layers import SpatialLayer

DIMENSION = "layer_attribution_sample"
_METHODS = ("activation", "gradient_times_activation", "internal_influence", "conductance", "integrated_gradients")
_REFERENCE = "conductance"
_COMPLETE = ("conductance", "integrated_gradients")


class LayerAttributionOptions(SampleOptions):
    """Which layers, by which methods, against which baseline."""

    samples: int = Field(default=16, ge=1)
    layers: tuple[str, ...] = ("@convolutions",)
    """Names, globs, `re:…` or `type:…`; `@convolutions` are all of them, `@last_spatial` is the last layer with places."""
    most_layers: int = Field(default=8, ge=1)
    """Of more layers than these so many are taken, evenly over the depth."""
    methods: tuple[str, ...] = _METHODS
    target: str | int = "label"
    """`label`, `predicted`, the number of an output, or a callable `module:name`."""
    baseline: Baseline = "black"
    steps: int = Field(default=24, ge=2)
    """So many steps on the way from the baseline to the sample."""

    @field_validator("layers")
    @classmethod
    def _layers_are_named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return sound_patterns(value)

    @field_validator("methods")
    @classmethod
    def _methods_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in _METHODS:
                raise ValueError(
                    f"there is no {name!r}; there are {', '.join(_METHODS)}." + did_you_mean(name, _METHODS)
                )
        return value


def compute(context: CheckpointContext, options: LayerAttributionOptions) -> Findings:
    """Arrays `<probe>/<layer>/<method>/channel` (sample, channel): sums over the places, and `spatial` (sample, y, x): sums
    over the channels; float32, raw and signed. Rows by probe, layer and method.
    """
    from stratascope.tasks.vision.image_network import ImageNetwork

    findings = Findings()
    network = ImageNetwork.of(context)
    with network.untouched():
        for name, probe in context.probes.items():
            try:
                samples = chosen_samples(probe, options)
                baseline = baseline_of(options.baseline, samples.inputs, probe)
                target = Target.of(options.target, Path(context.subject.folder))
                layers = _layers(network, probe, options)
                found = _attributions(network, samples, baseline, target, layers, options)
            except (DoesNotApply, ConfigurationError) as reason:
                findings.rows += [
                    Row(metric.name, probe=name, status="does_not_apply", reason=str(reason))
                    for metric in ANALYSIS.metrics
                ]
                continue
            findings.arrays |= sample_arrays(samples, DIMENSION)
            for layer in layers:
                _file(findings, samples, layer, found[layer.name], options)
    return findings


def _layers(network: ImageNetwork, probe: Any, options: LayerAttributionOptions) -> list[SpatialLayer]:
    from stratascope.tasks.representation.pictures import even_choice
    from stratascope.tasks.vision.spatial_layers import chosen_spatial_layers, observed

    shape = probe.inputs.shape
    every = chosen_spatial_layers(options.layers, observed(network, probe).layers, (shape[2], shape[3]))
    return [every[place] for place in even_choice(range(len(every)), options.most_layers)]


def _attributions(
    network: ImageNetwork,
    samples: ImageSamples,
    baseline: np.ndarray,
    target: Target,
    layers: Sequence[SpatialLayer],
    options: LayerAttributionOptions,
) -> dict[str, dict[str, LayerAttribution]]:
    """By layer and method, for all samples; at most `batch_size` of them are in the network at once."""
    import torch

    from stratascope.tasks.vision.layer_attributions import (
        ON_INPUT_PATH,
        LayerAttribution,
        along_inputs,
        along_layer,
    )

    inputs, start = torch.from_numpy(samples.inputs), torch.from_numpy(baseline)
    outputs = network.outputs_in_batches(inputs, options.batch_size)
    indices = target.indices(outputs, samples.classes)
    size = network.fixed_batch_size or options.batch_size
    infos = [layer.info for layer in layers]
    parts: dict[str, dict[str, list[LayerAttribution]]] = {layer.name: {} for layer in layers}
    for first in range(0, len(samples), size):
        rows = slice(first, first + size)
        here = (network, inputs[rows], start[rows], indices[rows], target)
        if set(options.methods) & set(ON_INPUT_PATH):
            for name, found in along_inputs(*here, infos, options.steps).items():
                for method, item in found.items():
                    parts[name].setdefault(method, []).append(item)
        if "integrated_gradients" in options.methods:
            for info in infos:
                item = along_layer(*here, info, options.steps)
                parts[info.name].setdefault("integrated_gradients", []).append(item)

    def joined(items: list[LayerAttribution]) -> LayerAttribution:
        if items[0].gap is None:
            return LayerAttribution(torch.cat([item.values for item in items]))
        gap, difference = (torch.cat([getattr(item, name) for item in items]) for name in ("gap", "difference"))
        return LayerAttribution(torch.cat([item.values for item in items]), gap, difference)

    return {
        name: {method: joined(items) for method, items in found.items() if method in options.methods}
        for name, found in parts.items()
    }


def _file(
    findings: Findings,
    samples: ImageSamples,
    layer: SpatialLayer,
    found: dict[str, LayerAttribution],
    options: LayerAttributionOptions,
) -> None:
    place = f"{samples.probe}/{encode_path_part(layer.name)}"
    sums: dict[str, np.ndarray] = {}
    for method, item in found.items():
        grid = layer.on_grid(item.values)
        sums[method] = grid.sum((2, 3)).numpy()
        about = {"layer": layer.name, "method": method, "baseline": options.baseline, "steps": options.steps, "target": str(options.target)}  # fmt: skip
        findings.arrays[f"{place}/{method}/channel"] = NamedArray(
            (DIMENSION, "channel"), sums[method].astype(np.float32), about
        )
        findings.arrays[f"{place}/{method}/spatial"] = NamedArray(
            (DIMENSION, "y", "x"), grid.sum(1).numpy().astype(np.float32), about
        )
    findings.rows += list(layer_rows(samples.probe, layer.name, found, sums))


def layer_rows(
    probe: str, layer: str, found: dict[str, LayerAttribution], sums: dict[str, np.ndarray]
) -> Iterator[Row]:
    """Gap, concentration and agreement of each method in one layer; `low` and `high` are those of the samples' quartiles.

    `sums` (sample, channel) are the values summed over the places. What is not finite is `failed`, with its method.
    """
    from scipy.stats import spearmanr

    for method, item in found.items():
        shared: dict[str, Any] = {"probe": probe, "layer": layer, "n": len(item.values), "estimator": "median and quartiles of the samples"}  # fmt: skip
        part = f"method={method}"
        if not np.isfinite(sums[method]).all():
            reason = f"the attributions of {method} are not finite"
            for metric in ("attributed_channels", "layer_attribution_agreement"):
                yield Row(metric, probe=probe, layer=layer, part=part, status="failed", reason=reason)
            continue
        if item.gap is not None and item.difference is not None:
            gap, difference = item.gap.numpy(), item.difference.numpy()
            yield _quartiles("layer_attribution_gap", np.abs(gap), part=f"{part};kind=absolute", **shared)
            usable = difference != 0
            if usable.any():
                share = np.abs(gap[usable] / difference[usable])
                yield _quartiles("layer_attribution_gap", share, part=f"{part};kind=relative", **(shared | {"n": int(usable.sum())}))  # fmt: skip
        sizes = np.abs(sums[method])
        squares = (sizes**2).sum(1)
        alive = squares > 0
        if alive.any():
            effective = sizes[alive].sum(1) ** 2 / squares[alive]
            yield _quartiles("attributed_channels", effective, part=part, **(shared | {"n": int(alive.sum())}))
        else:
            reason = "every attribution is zero: nothing in this layer moves the answers"
            yield Row("attributed_channels", probe=probe, layer=layer, part=part, status="does_not_apply", reason=reason)  # fmt: skip
        if method == _REFERENCE or _REFERENCE not in sums or sums[method].shape[1] < 3:
            continue
        pairs = [
            float(spearmanr(mine, other).statistic)
            for mine, other in zip(sums[method], sums[_REFERENCE], strict=True)
            if np.ptp(mine) > 0 and np.ptp(other) > 0
        ]
        if pairs:
            yield _quartiles("layer_attribution_agreement", np.array(pairs), part=f"{part};against={_REFERENCE}", **(shared | {"n": len(pairs)}))  # fmt: skip


def _quartiles(metric: str, values: np.ndarray, **more: Any) -> Row:
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75))
    return Row(metric, float(middle), low=float(low), high=float(high), **more)


ANALYSIS = register(
    Analysis(
        name="layer_attribution", version=1, scope="checkpoint", title="Layer attribution",
        question="Which channels inside the network does an answer rest on?", options=LayerAttributionOptions,
        compute=compute, draw=draw, needs=frozenset({"network", "gradients"}),
        metrics=(
            Metric("layer_attribution_gap", "score", "[0, ∞)", "How far the attributions of a layer are from adding up to the difference of the scores that they explain (`part`: method, and whether absolute or relative to that difference).", "Dhamdhere et al. 2019; Sundararajan et al. 2017", "permutation of samples and units"),
            Metric("attributed_channels", "channels", "[1, channels]", "Over how many channels an answer is spread: the square of the sum of the sizes of the attributions by channel, divided by the sum of their squares (`part`: method).", "", "scaling of the scores; permutation of channels"),
            Metric("layer_attribution_agreement", "1", "[-1, 1]", "Spearman correlation between the channels' attributions by a method and by conductance (`part`).", "", "permutation of channels"),
        ),
    )
)  # fmt: skip
