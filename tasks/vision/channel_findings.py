"""What is filed of one layer's channels: rows for the ledger, arrays for the archive."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Findings, NamedArray
from stratascope.tasks.vision import channel_measures as measures
from stratascope.tasks.vision.channel_contributions import (
    ScoredImages,
    ablation_contribution,
    path_contribution,
)
from stratascope.tasks.vision.channel_places import ChannelPlace, ChannelRecord
from stratascope.tasks.vision.chosen_samples import ImageSamples
from stratascope.tasks.vision.receptive_fields import ReceptiveField

if TYPE_CHECKING:
    from stratascope.tasks.vision.channels import ChannelsOptions

LINEAR, PATH = "gradient_times_activation", "path"
BY_CHANNEL = ("mean", "std", "max", "zero_fraction", "dead", "selectivity", "preferred_class", LINEAR)
"""The rows of the array `by_channel`."""
_MOST_CORRELATED = 1024


@dataclass(frozen=True)
class LayerSubject:
    """One layer on one probe, as far as the passes over all layers got."""

    samples: ImageSamples
    place: ChannelPlace
    record: ChannelRecord
    field: ReceptiveField
    images: ScoredImages
    """The samples for which path and ablations are computed."""
    closely: np.ndarray
    """int (sample,): which of the samples those are."""
    streamed: Mapping[str, np.ndarray]
    """What the capture streamed of the place where the channels are read; empty where it is not captured."""
    streamed_layer: Mapping[str, np.ndarray]
    """The same of the layer itself."""

    @property
    def classes(self) -> int:
        known = self.samples.classes
        return max(len(self.samples.class_names), 0 if known is None else int(known.max()) + 1)


def file_layer(subject: LayerSubject, options: ChannelsOptions, findings: Findings) -> None:
    """Everything about one layer; what cannot be said of it has a row with the reason."""
    place, samples = subject.place, subject.samples
    arrays: dict[str, NamedArray] = {}
    about: dict[str, Any] = {"probe": samples.probe, "layer": place.layer.name}
    shared = {**about, "n": place.channels, "convention": _convention(place)}
    by_channel = _summary(subject)
    _file_examples(subject, options, arrays)
    findings.rows += _dead_rows(subject, by_channel["dead"], shared)
    findings.rows += _class_rows(subject, options, arrays, by_channel, shared)
    findings.rows += _redundancy_rows(subject, arrays, shared)
    linear = subject.record.joined("linear")
    by_channel[LINEAR] = linear.mean(0, dtype=np.float64)
    arrays["linear"] = NamedArray(("channels_sample", "channel"), linear)
    try:
        findings.rows += _contribution_rows(subject, options, arrays, linear, shared)
    except DoesNotApply as reason:
        names = ("channel_contribution", "contribution_agreement", "channel_completeness_gap")
        findings.rows += [Row(name, status="does_not_apply", reason=str(reason), **shared) for name in names]
    values = np.stack([by_channel[name] for name in BY_CHANNEL])
    attributes = {
        "channel_statistic": list(BY_CHANNEL), "layer": place.layer.name, "read_at": place.at.name,
        "rectified": place.rectified, "moments_of": "the whole probe" if _is_streamed(subject) else "the chosen samples",
    }  # fmt: skip
    arrays["by_channel"] = NamedArray(("channel_statistic", "channel"), values, attributes)
    root = f"{encode_path_part(samples.probe)}/{encode_path_part(place.layer.name)}"
    findings.arrays |= {f"{root}/{name}": array for name, array in arrays.items()}


def _convention(place: ChannelPlace) -> str:
    read = "" if place.at is place.layer or place.at.name == place.layer.name else f"read_at={place.at.name};"
    return f"{read}relu_follows={'yes' if place.rectified else 'no'}"


def _is_streamed(subject: LayerSubject) -> bool:
    return all(name in subject.streamed for name in ("mean", "std", "max"))


def _summary(subject: LayerSubject) -> dict[str, np.ndarray]:
    """Numbers by channel: the capture's own, over the whole probe, where it streamed them."""
    record, place = subject.record, subject.place
    assert record.sums is not None
    nothing = np.full(place.channels, np.nan)
    peaks = record.joined("peak")
    found: dict[str, np.ndarray] = dict.fromkeys(BY_CHANNEL, nothing)
    if _is_streamed(subject):
        found |= {name: subject.streamed[name].astype(np.float64) for name in ("mean", "std", "max")}
    else:
        mean: np.ndarray = np.asarray(record.sums[0] / record.positions)
        spread = np.sqrt(np.maximum(record.sums[1] / record.positions - mean**2, 0.0))
        found |= {"mean": mean, "std": spread, "max": np.asarray(peaks.max(0), np.float64)}
    if place.rectified:
        found["zero_fraction"] = np.asarray(record.sums[2] / record.positions)
        dead = subject.streamed_layer.get("dead", subject.streamed.get("dead"))
        found["dead"] = np.asarray((peaks <= 0).all(0) if dead is None else dead, np.float64)
    return found


def _file_examples(subject: LayerSubject, options: ChannelsOptions, arrays: dict[str, NamedArray]) -> None:
    record = subject.record
    peaks, where = record.joined("peak"), record.joined("place")
    index = measures.top_examples(peaks, options.top)
    channel = np.arange(index.shape[0])[:, None]
    places = where[index, channel]
    dims = ("channel", "rank")
    arrays["top_index"] = NamedArray(dims, index, {"indexes": "channels_sample"})
    arrays["top_value"] = NamedArray(dims, peaks[index, channel])
    arrays["top_place"] = NamedArray((*dims, "axis"), places, {"axis": ["y", "x"]})
    sides = {"side": ["first row", "row after the last", "first column", "column after the last"], "of": "pixels"}
    arrays["box"] = NamedArray((*dims, "side"), subject.field.boxes(places), sides)
    assert record.histogram is not None
    edges = np.linspace(record.low, record.high if record.high > record.low else record.low + 1, options.bins + 1)
    arrays["histogram"] = NamedArray(("channel", "bin"), record.histogram, {"edges": edges.tolist()})


def _dead_rows(subject: LayerSubject, dead: np.ndarray, shared: dict[str, Any]) -> list[Row]:
    if not subject.place.rectified:
        reason = "no ReLU takes the layer's output alone: none of its channels can be called dead"
        return [Row("dead_channel_fraction", status="does_not_apply", reason=reason, **shared)]
    streamed = "dead" in subject.streamed_layer or "dead" in subject.streamed
    convention = f"{shared['convention']};over={'probe' if streamed else f'{len(subject.samples)} samples'}"
    return [Row("dead_channel_fraction", float(dead.mean()), **{**shared, "convention": convention})]


def _class_rows(
    subject: LayerSubject,
    options: ChannelsOptions,
    arrays: dict[str, NamedArray],
    by_channel: dict[str, np.ndarray],
    shared: dict[str, Any],
) -> list[Row]:
    classes, record = subject.samples.classes, subject.record
    if classes is None or classes.min() < 0 or len(np.unique(classes)) < 2:
        reason = "the probe's targets are no classes" if classes is None else "two classes or more are needed"
        return [Row("channel_selectivity", status="does_not_apply", reason=reason, **shared)]
    count, dims = subject.classes, ("class", "channel")
    means = measures.class_means(record.joined("positive"), classes, count)
    members = measures.strongest_by_mass(record.joined("peak"), options.mass_share)
    arrays["class_mean"] = NamedArray(dims, means.astype(np.float32), {"of": "what is above 0"})
    counts = measures.class_counts(members, classes, count)
    arrays["class_count"] = NamedArray(dims, counts, {"mass_share": options.mass_share})
    added = measures.class_means(record.joined("linear"), classes, count)
    arrays["class_contribution"] = NamedArray(dims, added.astype(np.float32), {"method": LINEAR})
    by_channel["selectivity"] = measures.class_selectivity(means)
    by_channel["preferred_class"] = measures.preferred_class(means).astype(np.float64)
    known = by_channel["selectivity"][np.isfinite(by_channel["selectivity"])]
    if not len(known):
        return [Row("channel_selectivity", status="does_not_apply", reason="every channel is silent", **shared)]
    return [Row("channel_selectivity", float(known.mean()), **{**shared, "n": len(known)})]


def _redundancy_rows(subject: LayerSubject, arrays: dict[str, NamedArray], shared: dict[str, Any]) -> list[Row]:
    names = ("channel_redundancy", "effective_channels")
    means = subject.record.joined("mean")
    reason = ""
    if len(means) < 3:
        reason = f"correlations need three samples, there are {len(means)}"
    elif subject.place.channels > _MOST_CORRELATED:
        reason = f"the layer has {subject.place.channels} channels; correlations are taken of {_MOST_CORRELATED} at most"
    if reason:
        return [Row(name, status="does_not_apply", reason=reason, **shared) for name in names]
    found = measures.correlation(means)
    arrays["correlation"] = NamedArray(("channel", "other_channel"), found.astype(np.float32))
    if not np.isfinite(np.diag(found)).any():
        reason = "no channel varies over the samples"
        return [Row(name, status="does_not_apply", reason=reason, **shared) for name in names]
    share = float(measures.redundant_channels(found).mean())
    return [Row(names[0], share, **shared), Row(names[1], measures.effective_number(found), **shared)]


def _contribution_rows(
    subject: LayerSubject,
    options: ChannelsOptions,
    arrays: dict[str, NamedArray],
    linear: np.ndarray,
    shared: dict[str, Any],
) -> list[Row]:
    place = subject.place
    path = path_contribution(subject.images, place, options.path_steps)
    found = {LINEAR: linear[subject.closely], PATH: path.channels}
    strongest = np.argsort(-np.abs(linear.mean(0, dtype=np.float64)), kind="stable")
    ablated = np.sort(strongest[: options.most_ablated])
    for kind in options.ablations:
        fill = (
            subject.record.joined("mean").mean(0, dtype=np.float64) if kind == "mean" else np.zeros(place.channels)
        )
        found[f"{kind}_ablation"] = ablation_contribution(subject.images, place, ablated, fill)
    stacked = np.stack(list(found.values())).astype(np.float32)
    arrays["contribution"] = NamedArray(
        ("method", "contributed_sample", "channel"), stacked,
        {"method": list(found), "sample_id": [str(item) for item in subject.samples.sample_id[subject.closely]]},
    )  # fmt: skip
    if not np.isfinite(stacked[:2]).all():
        names = ("channel_contribution", "contribution_agreement", "channel_completeness_gap")
        reason = "contributions of the layer's channels are not finite"
        return [Row(name, status="failed", reason=reason, **shared) for name in names]
    means = {name: values.mean(0, dtype=np.float64) for name, values in found.items()}
    rows = _named_channels(means, subject, options, shared)
    for one, other in combinations(means, 2):
        agreement = measures.rank_agreement(means[one], means[other])
        reason = "" if math.isfinite(agreement) else "fewer than three channels contribute differently"
        rows.append(
            Row(
                "contribution_agreement", agreement, part=f"between={one},{other}", reason=reason,
                status="does_not_apply" if reason else "ok", **shared,
            )
        )  # fmt: skip
    size = float(np.abs(path.difference).mean())
    gap = float(np.abs(path.gap).mean())
    row = {**shared, "n": len(subject.closely), "estimator": f"{options.path_steps} nodes of Gauss and Legendre"}
    if size > 0:
        rows.append(Row("channel_completeness_gap", gap / size, **row))
    else:
        reason = "the scores do not change when the layer is silent"
        rows.append(Row("channel_completeness_gap", status="does_not_apply", reason=reason, **row))
    return rows


def _named_channels(
    means: dict[str, np.ndarray], subject: LayerSubject, options: ChannelsOptions, shared: dict[str, Any]
) -> list[Row]:
    """The contributions of the few channels that add most along the path, by every method."""
    order = np.argsort(-np.abs(means[PATH]), kind="stable")[: options.reported]
    rows = []
    for channel in order.tolist():
        for method, values in means.items():
            if np.isfinite(values[channel]):
                about = {**shared, "n": len(subject.closely), "part": f"channel={channel};method={method}"}
                rows.append(Row("channel_contribution", float(values[channel]), **about))
    return rows
