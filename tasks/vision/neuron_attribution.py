"""What in a picture excites a unit inside the network: any attribution method, asked about a channel instead of an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, field_validator

from stratascope.errors import ConfigurationError, DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.representation.features import sound_patterns
from stratascope.tasks.vision.attribution_methods import Explained, known_methods, method_named
from stratascope.tasks.vision.baselines import Baseline, baseline_of
from stratascope.tasks.vision.chosen_samples import ImageSamples, SampleOptions, chosen_samples, sample_arrays
from stratascope.tasks.vision.neuron_attribution_drawing import draw
from stratascope.tasks.vision.targets import Target

if TYPE_CHECKING:
    from stratascope.tasks.vision.image_network import ImageNetwork
    from stratascope.tasks.vision.inner_units import Place
    from stratascope.tasks.vision.spatial_layers import SpatialLayer

DIMENSION = "neuron_attribution_sample"


class NeuronAttributionOptions(SampleOptions):
    """Which channels of which layers, by which methods."""

    samples: int = Field(default=5, ge=1)
    layers: tuple[str, ...] = ("@last_spatial",)
    """Names, globs, `re:…` or `type:…`; `@convolutions` are all of them, `@last_spatial` is the last layer with places."""
    channels: tuple[int, ...] = ()
    """Numbers of channels, the same in every layer; none means `most_channels` of them, evenly over their numbers."""
    most_channels: int = Field(default=4, ge=1)
    place: str = "max"
    """What a channel says in one number: the `max` of its places, their `mean`, or the one in the `centre`."""
    methods: tuple[str, ...] = ("gradient", "guided_backpropagation", "integrated_gradients")
    """Any method that `attribution` knows, with its own default settings; paths have at most 64 steps."""
    baseline: Baseline = "black"

    @field_validator("layers")
    @classmethod
    def _layers_are_named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return sound_patterns(value)

    @field_validator("place")
    @classmethod
    def _place_is_known(cls, value: str) -> str:
        if value not in ("max", "mean", "centre"):
            raise ValueError(f"there is no place {value!r}; there are max, mean, centre")
        return value

    @field_validator("methods")
    @classmethod
    def _methods_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return known_methods(value)


def compute(context: CheckpointContext, options: NeuronAttributionOptions) -> Findings:
    """Arrays `<probe>/<layer>/<channel>/<method>/map` (neuron_attribution_sample, channel, y, x), float32, raw and signed, and
    `<probe>/<layer>/<channel>/value` (neuron_attribution_sample,): what the channel says; rows by probe and layer.
    """
    from stratascope.tasks.vision.image_network import ImageNetwork
    from stratascope.tasks.vision.spatial_layers import chosen_spatial_layers, observed

    findings = Findings()
    network = ImageNetwork.of(context)
    with network.untouched():
        for name, probe in context.probes.items():
            try:
                samples = chosen_samples(probe, options)
                baseline = baseline_of(options.baseline, samples.inputs, probe)
                shape = probe.inputs.shape
                layers = chosen_spatial_layers(
                    options.layers, observed(network, probe).layers, (shape[2], shape[3])
                )
            except (DoesNotApply, ConfigurationError) as reason:
                findings.rows += [
                    Row(metric.name, probe=name, status="does_not_apply", reason=str(reason))
                    for metric in ANALYSIS.metrics
                ]
                continue
            findings.arrays |= sample_arrays(samples, DIMENSION)
            for layer in layers:
                _explain(findings, network, layer, samples, baseline, _set_of(probe, options), options)
    return findings


def _set_of(probe: Probe, options: NeuronAttributionOptions) -> np.ndarray:
    """float32 (sample, channel, y, x): baselines for the methods that take the mean over several."""
    return chosen_samples(probe, SampleOptions(samples=16, seed=options.seed)).inputs


def chosen_channels(count: int, options: NeuronAttributionOptions) -> list[int]:
    """The channels that `options` mean of `count`. Raises DoesNotApply for one that is not there."""
    for number in options.channels:
        if not 0 <= number < count:
            raise DoesNotApply(f"there is no channel {number}: the layer has {count}, 0 to {count - 1}.")
    if options.channels:
        return list(dict.fromkeys(options.channels))
    most = min(options.most_channels, count)
    return [round(place * (count - 1) / max(1, most - 1)) for place in range(most)]


def _explain(
    findings: Findings,
    network: ImageNetwork,
    layer: SpatialLayer,
    samples: ImageSamples,
    baseline: np.ndarray,
    several: np.ndarray,
    options: NeuronAttributionOptions,
) -> None:
    import torch

    from stratascope.tasks.vision.inner_units import inner_network

    place: Place = options.place  # type: ignore[assignment]
    about: dict[str, Any] = {"probe": samples.probe, "layer": layer.name}
    try:
        channels = chosen_channels(layer.channels, options)
        inner = inner_network(network, layer, place)
    except DoesNotApply as reason:
        findings.rows.append(Row("unit_value", status="does_not_apply", reason=str(reason), **about))
        return
    inputs = torch.from_numpy(samples.inputs)
    values = inner.outputs_in_batches(inputs, options.batch_size).double().numpy()
    for channel in channels:
        where = f"{samples.probe}/{encode_path_part(layer.name)}/{channel}"
        low, high = values[:, channel].min(), values[:, channel].max()
        findings.arrays[f"{where}/value"] = NamedArray((DIMENSION,), values[:, channel].astype(np.float32))
        findings.rows.append(
            Row("unit_value", float(values[:, channel].mean()), low=float(low), high=float(high), n=len(samples), part=f"channel={channel}", estimator="mean, least and most of the samples", convention=f"place={place}", **about)
        )  # fmt: skip
        indices = torch.full((len(samples),), channel)
        asked = Explained(
            inner, inputs, indices, Target(channel), samples.sample_id, torch.from_numpy(baseline),
            torch.from_numpy(several), options.seed, inner.fixed_batch_size or options.batch_size,
        )  # fmt: skip
        for name in options.methods:
            findings.rows += _one_method(
                findings, asked, name, f"{where}/{encode_path_part(name)}", channel, about
            )


def _one_method(
    findings: Findings, asked: Explained, name: str, place: str, channel: int, about: dict[str, Any]
) -> list[Row]:
    from dataclasses import replace

    method = method_named(name)
    part = f"channel={channel};method={name}"
    try:
        settings = {
            key: min(value, 64) if key == "most_steps" else value for key, value in method.settings.items()
        }
        found = method.compute(replace(asked, settings=settings, shared={}))
    except DoesNotApply as reason:
        return [Row("unit_attribution_size", part=part, status="does_not_apply", reason=str(reason), **about)]
    maps = np.asarray(found.maps, np.float32)
    if not np.isfinite(maps).all():
        broken = "the maps are not finite"
        return [Row("unit_attribution_size", part=part, status="failed", reason=broken, **about)]
    facts = {"method": name, "formula": method.formula, "warnings": list(found.warnings), "channel": channel}
    findings.arrays[f"{place}/map"] = NamedArray((DIMENSION, "channel", "y", "x"), maps, about | facts)
    sizes = np.abs(maps).sum((1, 2, 3), dtype=np.float64)
    return [
        Row("unit_attribution_size", float(np.median(sizes)), low=float(sizes.min()), high=float(sizes.max()), n=len(maps), part=part, estimator="median, least and most of the samples", convention="; ".join(found.warnings), **about)
    ]  # fmt: skip


ANALYSIS = register(
    Analysis(
        name="neuron_attribution", version=1, scope="checkpoint", title="Neuron attribution",
        question="What in a picture excites a channel inside the network?", options=NeuronAttributionOptions,
        compute=compute, draw=draw, needs=frozenset({"network", "gradients"}),
        metrics=(
            Metric("unit_value", "activation", "(-∞, ∞)", "What a channel says of the chosen samples (`part`: channel): the largest, the mean or the central place of its map.", "", "permutation of samples"),
            Metric("unit_attribution_size", "activation", "[0, ∞)", "Sum of the sizes of a channel's map over the picture (`part`: channel and method).", "", "permutation of samples"),
        ),
    )
)  # fmt: skip
