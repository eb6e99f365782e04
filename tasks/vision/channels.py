"""What each channel contributes: what it answers to, which classes it serves, what it adds to a score, what is redundant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.tasks.analysis import Analysis, Findings, Metric, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.vision.channels_drawing import draw
from stratascope.tasks.vision.chosen_samples import SampleOptions, chosen_samples, sample_arrays

if TYPE_CHECKING:
    from stratascope.storage.probes import Probe
    from stratascope.tasks.vision.image_network import ImageNetwork

SAMPLE = "channels_sample"
"""The dimension of the samples that are looked at."""


class ChannelsOptions(SampleOptions):
    """Which layers, and how closely; what a channel adds to a score is estimated for the samples in three ways."""

    samples: int = Field(default=512, ge=2)
    """So many of each probe at most, the classes in proportion, chosen by their ids and `seed`."""
    layers: tuple[str, ...] = Field(default=("@convolutions", "@last_spatial"), min_length=1)
    """Names, globs, `re:…`, `type:…`; `@convolutions`, and `@last_spatial`, the last layer with positions."""
    target: str | int = "label"
    """The score: `label`, `predicted`, the number of an output, or a callable `module:name`."""
    top: int = Field(default=4, ge=1, le=64)
    """So many samples that excite a channel most are kept."""
    mass_share: float = Field(default=0.25, gt=0, le=1)
    """A sample counts for the fewest channels that hold this share of its mass (Summit takes 0.03 of wide layers)."""
    contributed: int = Field(default=8, ge=1)
    """For so many of the samples the path and the ablations are computed; gradient × activation is for all."""
    path_steps: int = Field(default=8, ge=1, le=256)
    """Nodes of the quadrature between the silent and the full layer."""
    ablations: tuple[Literal["zero", "mean"], ...] = ("zero", "mean")
    """What takes a channel's place: zero, or its mean over samples and positions."""
    most_ablated: int = Field(default=64, ge=1)
    """In a layer with more channels only those with the largest gradient × activation are taken away."""
    reported: int = Field(default=3, ge=0)
    """The ledger names so many channels of a layer, those that contribute most; the arrays have all."""
    bins: int = Field(default=32, ge=2)
    """Of the histogram of each channel."""


def compute(context: CheckpointContext, options: ChannelsOptions) -> Findings:
    """Rows by layer, and arrays `<probe>/<layer>/…`; a probe or a layer of which nothing can be said has rows that say why."""
    from stratascope.tasks.vision.image_network import ImageNetwork

    findings = Findings()
    network = ImageNetwork.of(context)
    with network.untouched():
        for name, probe in context.probes.items():
            try:
                _probe(context, options, network, probe, findings)
            except DoesNotApply as reason:
                findings.rows += [
                    Row(metric.name, probe=name, status="does_not_apply", reason=str(reason))
                    for metric in ANALYSIS.metrics
                ]
    return findings


def _probe(
    context: CheckpointContext, options: ChannelsOptions, network: ImageNetwork, probe: Probe, findings: Findings
) -> None:
    from pathlib import Path

    import torch

    from stratascope.tasks.vision.channel_contributions import ScoredImages
    from stratascope.tasks.vision.channel_findings import LayerSubject, file_layer
    from stratascope.tasks.vision.channel_places import channel_places, channel_records, first_look
    from stratascope.tasks.vision.receptive_fields import receptive_fields
    from stratascope.tasks.vision.spatial_layers import chosen_spatial_layers, observed
    from stratascope.tasks.vision.targets import Target

    samples = chosen_samples(probe, options)
    observation = observed(network, probe)
    picture = samples.inputs.shape[2], samples.inputs.shape[3]
    places = channel_places(
        chosen_spatial_layers(options.layers, observation.layers, picture), observation, picture
    )
    target = Target.of(options.target, Path(context.subject.folder))
    inputs = torch.from_numpy(samples.inputs)
    outputs, ranges = first_look(network, inputs, places, options.batch_size)
    indices = target.indices(outputs, samples.classes)
    sound = [place for place in places if np.isfinite(ranges[place.at.info]).all()]
    for place in places:
        if place not in sound:
            reason = "activations of the layer are not finite"
            findings.rows += [
                Row(metric.name, layer=place.layer.name, probe=probe.name, status="failed", reason=reason)
                for metric in ANALYSIS.metrics
            ]
    if not sound:
        return
    records = channel_records(network, inputs, indices, target, sound, ranges, options.batch_size, options.bins)
    fields = receptive_fields(network, inputs[0], [place.at for place in sound], options.batch_size)
    closely = np.unique(
        np.linspace(0, len(samples) - 1, min(options.contributed, len(samples))).round().astype(int)
    )
    images = ScoredImages(network, inputs[closely], indices[closely], target, options.batch_size)
    findings.arrays |= sample_arrays(samples, SAMPLE)
    for place in sound:
        subject = LayerSubject(
            samples, place, records[place.at.info], fields[place.at.name], images, closely,
            context.statistics(probe.name, place.at.name) if place.at.name in context.layers(probe.name) else {},
            context.statistics(probe.name, place.layer.name) if place.layer.name in context.layers(probe.name) else {},
        )  # fmt: skip
        file_layer(subject, options, findings)


_ORDER = "order of the samples and of the channels"
_SCALE = f"{_ORDER}; positive rescaling of a channel"

ANALYSIS = register(
    Analysis(
        name="channels", version=1, scope="checkpoint", title="Channels", question="What does each channel answer to, and what does it add?",
        options=ChannelsOptions, compute=compute, draw=draw, needs=frozenset({"activations", "network", "gradients"}),
        metrics=(
            Metric("channel_contribution", "score", "(-∞, ∞)", "What a channel adds to the score of a sample, mean over the samples, for the channels that add most (`channel`), by `method`: `gradient_times_activation`, the sum over positions; `path`, the same with the gradient's mean along the line from the silent layer; `zero_ablation` and `mean_ablation`, the score less the score with the channel replaced by 0 or by its mean.", "Olah et al. 2018; Sundararajan et al. 2017", "order of the samples; a constant added to all scores"),
            Metric("contribution_agreement", "1", "[-1, 1]", "Spearman's rank correlation, over the channels, of two methods' mean contributions (`between`).", "", _ORDER),
            Metric("channel_completeness_gap", "fraction", "[0, ∞)", "Mean distance of the path contributions' sum from the score less the score with the layer at zero, by the mean size of that difference.", "Sundararajan et al. 2017, proposition 1", _ORDER),
            Metric("channel_redundancy", "fraction", "[0, 1]", "Share of a layer's channels whose mean over positions correlates over the samples with another channel's by more than 0.95 in size.", "", _SCALE),
            Metric("effective_channels", "channels", "[0, ∞)", "Participation ratio (Σ λ)² / Σ λ² of the eigenvalues of the correlations between the channels that vary.", "Gao et al. 2017", _SCALE),
            Metric("dead_channel_fraction", "fraction", "[0, 1]", "Share of channels that are at most 0 after the ReLU that follows on every sample and position; of the whole probe where the capture streamed it, else of the chosen samples (`convention`).", "", _SCALE),
            Metric("channel_selectivity", "1", "[0, 1]", "Class selectivity index of the channels that are not silent, mean: (μ_max - μ_rest) / (μ_max + μ_rest) of the class means of what is above 0.", "Morcos et al. 2018, section 2.3", _SCALE),
        ),
    )
)  # fmt: skip
