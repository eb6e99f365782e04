"""What every convolution puts out for a few pictures: raw, signed, the same channels of the same samples at every checkpoint."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from stratascope.errors import ConfigurationError, DoesNotApply, did_you_mean
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.vision.chosen_samples import SampleOptions, chosen_samples, sample_arrays
from stratascope.tasks.vision.feature_maps_drawing import draw

if TYPE_CHECKING:
    from stratascope.tasks.vision.image_network import ImageNetwork
    from stratascope.tasks.vision.spatial_layers import SpatialLayer

SAMPLE = "feature_maps_sample"
_REAL_NUMBER_BYTES = 4


class FeatureMapsOptions(SampleOptions):
    """Which layers' maps are kept, of which samples, and in how many bytes."""

    samples: int = Field(default=4, ge=1)
    """So many at most, the classes in proportion; the choice depends on the samples' ids and on `seed` alone."""
    layers: tuple[str, ...] = Field(default=("@convolutions",), min_length=1)
    """Names, globs, `re:…` or `type:…`; `@convolutions` is what each convolution puts out, before any activation. Name
    the activations (`relu*`, `type:ReLU`) for what goes on from there."""
    max_bytes: int = Field(default=32 << 20, ge=1)
    """Of maps, by checkpoint and probe, reckoned at four bytes a number; where that is too few, channels evenly spread over
    their numbers are kept, the same ones at every checkpoint."""
    drawn_layers: tuple[str, ...] = ()
    """The layers of which all channels are drawn, by their names; the first, the middle and the last where none are named."""


def compute(context: CheckpointContext, options: FeatureMapsOptions) -> Findings:
    """Rows by probe and layer; arrays `<probe>/<layer>/maps` and `<probe>/<layer>/channel`."""
    from stratascope.tasks.vision.image_network import ImageNetwork

    findings = Findings()
    network = ImageNetwork.of(context)
    with network.untouched():
        for name, probe in context.probes.items():
            try:
                _of_probe(network, probe, options, findings)
            except DoesNotApply as reason:
                findings.rows += [
                    Row(metric.name, probe=name, status="does_not_apply", reason=str(reason))
                    for metric in ANALYSIS.metrics
                ]
    return findings


def _of_probe(network: ImageNetwork, probe: Probe, options: FeatureMapsOptions, findings: Findings) -> None:
    from stratascope.tasks.vision.layer_maps import kept_channels, layer_maps
    from stratascope.tasks.vision.spatial_layers import chosen_spatial_layers, observed

    samples = chosen_samples(probe, options)
    picture = samples.inputs.shape[2], samples.inputs.shape[3]
    layers = chosen_spatial_layers(options.layers, observed(network, probe).layers, picture)
    order = {layer.name: place for place, layer in enumerate(layers)}
    unknown = [name for name in options.drawn_layers if name not in order]
    if unknown:
        raise ConfigurationError(
            f"drawn_layers: {unknown[0]!r} is none of the {len(order)} layers whose maps are kept."
            + did_you_mean(unknown[0], order)
        )
    count = len(samples)
    sizes = {
        layer.name: (layer.channels, layer.height * layer.width * count * _REAL_NUMBER_BYTES) for layer in layers
    }
    kept = kept_channels(sizes, options.max_bytes)
    findings.arrays |= sample_arrays(samples, SAMPLE)
    # One layer at a time would repeat the forward pass; all at once would hold every channel of a large network.
    for group in _groups(layers, sizes, options.max_bytes):
        maps = layer_maps(network, samples.inputs, group, options.batch_size)
        for layer in group:
            facts = {"place": order[layer.name], "kind": layer.info.kind}
            _file_layer(probe.name, layer, maps.pop(layer.name), kept[layer.name], facts, findings)


def _groups(
    layers: list[SpatialLayer], sizes: dict[str, tuple[int, int]], budget: int
) -> list[list[SpatialLayer]]:
    """`layers` in runs that together take at most four budgets (one layer at least): each run is a pass forward."""
    groups: list[list[SpatialLayer]] = []
    held = 0
    for layer in layers:
        channels, each = sizes[layer.name]
        if not groups or held + channels * each > 4 * budget:
            groups.append([])
            held = 0
        groups[-1].append(layer)
        held += channels * each
    return groups


def _file_layer(
    probe: str,
    layer: SpatialLayer,
    values: np.ndarray,
    kept: np.ndarray,
    facts: dict[str, Any],
    findings: Findings,
) -> None:
    from stratascope.tasks.vision.layer_maps import map_scale, narrowed, zero_channels

    about: dict[str, Any] = {"probe": probe, "layer": layer.name, "n": len(values)}
    place = f"{encode_path_part(probe)}/{encode_path_part(layer.name)}"
    wrong = int((~np.isfinite(values)).sum())
    scale = map_scale(values)
    stored = narrowed(values[:, kept], scale) if not wrong else values[:, kept]
    facts = {**facts, "channels": values.shape[1]}
    findings.arrays[f"{place}/maps"] = NamedArray((SAMPLE, "channel", "y", "x"), stored, facts)
    findings.arrays[f"{place}/channel"] = NamedArray(("channel",), kept)
    if wrong:
        reason = f"{wrong:,} of {values.size:,} values of the maps are not finite."
        metrics = ("feature_map_scale", "feature_map_zero_channel_fraction")
        findings.rows += [Row(metric, status="failed", reason=reason, **about) for metric in metrics]
        return
    zero = zero_channels(values)
    convention = f"{values.shape[1]} channels of {values.shape[2]} × {values.shape[3]}"
    findings.rows += [
        Row("feature_map_scale", scale, estimator="99th percentile", convention=convention, **about),
        Row("feature_map_zero_channel_fraction", float(zero.mean()), convention=convention, **about),
    ]


_ORDER = "order of the samples and of the channels"
ANALYSIS = register(
    Analysis(
        name="feature_maps", version=1, scope="checkpoint", title="Feature maps",
        question="What does each layer make of a picture?",
        options=FeatureMapsOptions, compute=compute, draw=draw, needs=frozenset({"network"}),
        metrics=(
            Metric("feature_map_scale", "activation", "[0, ∞)", "The size that 99 % of a layer's values stay below, over all channels and positions of the chosen samples; what colours are scaled by.", "", _ORDER),
            Metric("feature_map_zero_channel_fraction", "fraction", "[0, 1]", "Share of a layer's channels that are zero everywhere on all chosen samples. Of what a convolution puts out this is rare; ask for the layer that rectifies it (`layers`) to see channels that never fire on these samples.", "", f"{_ORDER}; scaling"),
        ),
    )
)  # fmt: skip
