"""How the gradients of single samples go through the layers in training: their sizes, their noise, their agreement."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, Options, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.given_samples import GivenSamples, given_samples, with_targets
from stratascope.tasks.representation.features import chosen_rows
from stratascope.tasks.representation.outputs import class_part
from stratascope.tasks.vision.gradient_flow_drawing import QUANTILES, draw
from stratascope.tasks.vision.gradient_noise import (
    GROUPS,
    GradientSums,
    class_cosines,
    depth_slope,
    gradient_noise,
    noise_interval,
    off_diagonal,
)
from stratascope.tasks.vision.sample_gradients import LossKind, layer_of, sample_gradients, trained_parameters

if TYPE_CHECKING:
    from torch import nn

_FILED = (0.05, 0.5, 0.95)
_MOST_BYTES = 1 << 30
_BY_LAYER = (
    "sample_gradient_norm", "gradient_noise_scale", "gradient_signal_to_noise", "gradient_alignment",
    "gradient_conflict_fraction",
)  # fmt: skip
_OF_DEPTH = ("vanishing_gradient", "exploding_gradient", "gradient_depth_slope")


class GradientFlowOptions(Options):
    """Each sample's own gradient is taken; of it, norms and inner products are kept."""

    max_samples: int = Field(default=128, ge=2)
    """So many samples of a probe at most, the classes in proportion."""
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=32, ge=1)
    """So many samples go through the network at once, fewer where their gradients need more memory."""
    vanishing_below: float = Field(default=1e-3, gt=0)
    """A gradient vanishes where the first weighted layer's median norm is less than this share of the last one's."""
    exploding_above: float = Field(default=1e3, gt=0)
    """It explodes where the first layer's median norm is more than so many times the last one's."""
    class_limit: int = Field(default=30, ge=0)
    """Up to so many classes are held against one another."""


def compute(context: CheckpointContext, options: GradientFlowOptions) -> Findings:
    """Rows by layer and for the whole network; arrays `<probe>/norm` (layer, sample), `<probe>/norm_quantiles` (layer,
    quantile), `<probe>/mean_norm` (layer,), `<probe>/alignment` (layer, class, other_class), `<probe>/layer` (layer,).
    """
    from stratascope.tasks.vision.image_network import ImageNetwork

    findings = Findings()
    subject = context.subject
    kind = LossKind.of(subject)
    try:
        network = ImageNetwork.of(context)
        parameters = trained_parameters(network.network)
    except DoesNotApply as reason:
        findings.rows += _unknown("", "does_not_apply", str(reason))
        return findings
    order = weighted_layers(network.network)
    with network.untouched():
        for name, probe in context.probes.items():
            try:
                samples = with_targets(given_samples(probe, chosen_rows(probe, options.max_samples, options.seed)), subject.task)  # fmt: skip
                sums = _sums(samples, probe, options, sum(item.numel() for item in parameters.values()))
                for rows, found in sample_gradients(network, samples, kind, parameters, options.batch_size):
                    sums.add(rows, found)
            except DoesNotApply as reason:
                findings.rows += _unknown(name, "does_not_apply", str(reason))
                continue
            layers = _in_order(sums.squared, context.layers(name))
            labels = class_labels(samples)
            findings.rows += list(flow_rows(name, sums, layers, order, options, labels))
            findings.arrays |= _arrays(name, samples, sums, layers, labels)
    return findings


def weighted_layers(network: nn.Module) -> list[str]:
    """Layers with a matrix of trained weights, in the order of registration; norm layers have none."""
    matrices = [name for name, item in network.named_parameters() if item.requires_grad and item.ndim > 1]
    return list(dict.fromkeys(layer_of(name) for name in matrices))


def class_labels(samples: GivenSamples) -> list[str]:
    """The names of the classes that are present, in the order of their numbers."""
    if samples.classes is None:
        return []
    names = samples.class_names
    return [str(names[value]) if 0 <= value < len(names) else str(value) for value in np.unique(samples.classes)]


def _sums(samples: GivenSamples, probe: Probe, options: GradientFlowOptions, weights: int) -> GradientSums:
    groups = np.arange(len(samples)) % min(GROUPS, len(samples))
    if (len(np.unique(groups)) + 1) * weights * 8 > _MOST_BYTES:
        groups = np.zeros(len(samples), np.int64)
    classes = samples.classes
    present = np.unique(classes) if classes is not None else np.array([])
    fits = 2 <= len(present) <= options.class_limit and len(present) * weights * 8 <= _MOST_BYTES
    if classes is None or not fits:
        return GradientSums(groups)
    return GradientSums(groups, np.searchsorted(present, classes), len(present))


def _in_order(found: Mapping[str, Any], captured: Sequence[str]) -> list[str]:
    """Layers in the order of execution, where that is known of all; the whole network, "", comes first."""
    names = [layer for layer in found if layer not in ("*", "")]
    places = {layer: place for place, layer in enumerate(captured)}
    if all(name in places for name in names):
        names.sort(key=lambda name: places[name])
    return ["", *names]


def flow_rows(
    probe: str,
    sums: GradientSums,
    layers: Sequence[str],
    weighted: Sequence[str],
    options: GradientFlowOptions,
    labels: Sequence[str] = (),
) -> Iterator[Row]:
    """All rows of one probe; `labels` name the classes that are told apart."""
    count = len(sums.groups)
    if sums.non_finite:
        reason = f"the gradients of {sums.non_finite} of {count} samples are not finite"
        yield from (row for row in _unknown(probe, "failed", reason) if row.metric != "exploding_gradient")
        yield Row("exploding_gradient", 1.0, probe=probe, n=count, reason=reason)
        return
    norms = sums.norms()
    for layer in layers:
        for share in _FILED:
            value = float(np.quantile(norms[layer], share))
            yield Row("sample_gradient_norm", value, layer, probe, f"quantile={share:g}", n=count)
    yield from _noise_rows(probe, sums, layers, norms)
    yield from _alignment_rows(probe, sums, layers, labels)
    ordered = [layer for layer in layers if layer in weighted]
    yield from _depth_rows(probe, {layer: float(np.median(norms[layer])) for layer in ordered}, count, options)


def _noise_rows(
    probe: str, sums: GradientSums, layers: Sequence[str], norms: Mapping[str, np.ndarray]
) -> Iterator[Row]:
    products, signals = sums.group_products(), sums.signal_to_noise()
    count = len(sums.groups)
    for layer in layers:
        about: dict[str, Any] = {"layer": layer, "probe": probe, "n": count}
        squared = norms[layer] ** 2
        noise = gradient_noise(count, float(squared.mean()), float(products[layer].sum()) / count**2)
        if noise.scale > 0:
            low, high = noise_interval(squared, sums.groups, products[layer])
            yield Row(
                "gradient_noise_scale", noise.scale, low=low, high=high, estimator="jackknife over groups", **about
            )
        else:
            reason = (
                "the gradients of all samples are alike"
                if noise.variance == 0
                else f"the mean gradient of {count} samples is not told from zero by its noise: more samples are needed"
            )
            yield Row("gradient_noise_scale", status="does_not_apply", reason=reason, **about)
        ratio, weights = signals[layer]
        if math.isfinite(ratio):
            yield Row("gradient_signal_to_noise", ratio, convention=f"weights={weights}", **about)
        else:
            yield Row("gradient_signal_to_noise", status="does_not_apply", reason="no weight's gradient differs between samples", **about)  # fmt: skip


def _alignment_rows(probe: str, sums: GradientSums, layers: Sequence[str], labels: Sequence[str]) -> Iterator[Row]:
    if sums.classes is None:
        reason = "the probe's targets are no classes, or one only, or more than `class_limit` or the memory allows"
        for metric in ("gradient_alignment", "gradient_conflict_fraction"):
            yield Row(metric, probe=probe, status="does_not_apply", reason=reason)
        return
    sizes = np.bincount(sums.classes, minlength=sums.class_count)
    for layer, products in sums.class_products().items():
        if layer not in layers:
            continue
        cosines = class_cosines(products)
        pairs = off_diagonal(cosines)
        about: dict[str, Any] = {
            "layer": layer, "probe": probe, "n": len(pairs), "convention": f"smallest class={sizes.min()}",
        }  # fmt: skip
        if not len(pairs):
            for metric in ("gradient_alignment", "gradient_conflict_fraction"):
                yield Row(
                    metric,
                    status="does_not_apply",
                    reason="the mean gradients of all classes but one are zero",
                    **about,
                )
            continue
        yield Row("gradient_alignment", float(pairs.mean()), **about)
        yield Row("gradient_conflict_fraction", float((pairs < 0).mean()), **about)
        if layer == "":
            np.fill_diagonal(cosines, np.nan)
            for name, line in zip(labels, cosines, strict=False):
                if np.isfinite(line).any():
                    part = class_part(0, (name,))
                    yield Row("gradient_alignment", float(np.nanmean(line)), part=part, **about)


def _depth_rows(
    probe: str, medians: Mapping[str, float], count: int, options: GradientFlowOptions
) -> Iterator[Row]:
    about: dict[str, Any] = {"probe": probe, "n": count}
    if len(medians) < 2:
        reason = "the network has fewer than two layers with a matrix of weights"
        yield from (Row(metric, status="does_not_apply", reason=reason, **about) for metric in _OF_DEPTH)
        return
    first, last = next(iter(medians)), list(medians)[-1]
    start, end = medians[first], medians[last]
    if start == 0 and end == 0:
        reason = f"more than half of the samples give neither {first} nor {last} any gradient"
        yield from (Row(metric, status="does_not_apply", reason=reason, **about) for metric in _OF_DEPTH)
        return
    ratio = start / end if end > 0 else math.inf
    said = f"median norm {start:.3g} in {first}, {end:.3g} in {last}: a ratio of {ratio:.3g}"
    vanishes, explodes = ratio < options.vanishing_below, ratio > options.exploding_above
    yield Row("vanishing_gradient", float(vanishes), reason=f"{said}, {'below' if vanishes else 'not below'} {options.vanishing_below:g}", **about)  # fmt: skip
    yield Row("exploding_gradient", float(explodes), reason=f"{said}, {'above' if explodes else 'not above'} {options.exploding_above:g}", **about)  # fmt: skip
    positive = np.array([value for value in medians.values() if value > 0])
    slope = depth_slope(positive)
    about["n"] = len(positive)
    if math.isfinite(slope):
        yield Row("gradient_depth_slope", slope, **about)
    else:
        reason = "fewer than three layers with a matrix of weights get a gradient"
        yield Row("gradient_depth_slope", status="does_not_apply", reason=reason, **about)


def _unknown(probe: str, status: Any, reason: str) -> list[Row]:
    return [Row(metric, probe=probe, status=status, reason=reason) for metric in (*_BY_LAYER, *_OF_DEPTH)]


def _arrays(
    probe: str, samples: GivenSamples, sums: GradientSums, layers: Sequence[str], labels: Sequence[str]
) -> dict[str, NamedArray]:
    norms = sums.norms()
    stacked = np.stack([norms[layer] for layer in layers])
    count = len(sums.groups)
    products = sums.group_products()
    means = np.array([math.sqrt(max(0.0, float(products[layer].sum()))) / count for layer in layers])
    layer, sample = "gradient_flow_layer", "gradient_flow_sample"
    found = {
        "layer": NamedArray((layer,), np.array(layers)),
        "sample_id": NamedArray((sample,), samples.sample_id),
        "norm": NamedArray((layer, sample), stacked.astype(np.float32)),
        "norm_quantiles": NamedArray(
            (layer, "quantile"), np.quantile(stacked, QUANTILES, axis=1).T.astype(np.float32), {"quantile": list(QUANTILES)}
        ),
        "mean_norm": NamedArray((layer,), means.astype(np.float32)),
    }  # fmt: skip
    if sums.classes is not None and not sums.non_finite:
        cosines = sums.class_products()
        found["alignment"] = NamedArray(
            (layer, "class", "other_class"),
            np.stack([class_cosines(cosines[name]) for name in layers]).astype(np.float32),
            {"class": list(labels)},
        )
    return {f"{probe}/{name}": array for name, array in found.items()}


_INVARIANT = "permutation of units and samples"

ANALYSIS = register(
    Analysis(
        name="gradient_flow", version=1, scope="checkpoint", title="Gradients in training",
        question="Do gradients reach every layer, how noisy are they, and do the classes pull the same way?",
        options=GradientFlowOptions, compute=compute, draw=draw, needs=frozenset({"network", "gradients"}),
        metrics=(
            Metric("sample_gradient_norm", "loss per weight", "[0, ∞)", "Quantile over the samples (`quantile=…`) of the norm of the gradient of a sample's own loss, by layer and for the whole network (no layer).", "", _INVARIANT),
            Metric("gradient_noise_scale", "samples", "[0, ∞)", "Total variance of a single sample's gradient by the squared norm of the true gradient, both unbiased: about the batch size at which noise and signal are equal.", "McCandlish et al. 2018, eq. 2.9 and appendix A.1; interval: jackknife over ten groups, on the logarithm", f"{_INVARIANT}; scale of the loss"),
            Metric("gradient_signal_to_noise", "1", "(-∞, ∞)", "Mean over the weights of the squared mean of the gradient over samples by its variance, less what noise alone gives (1/n); weights whose gradient never differs are left out.", "Liu et al. 2020, definition of GSNR", f"{_INVARIANT}; scale of the loss and of any weight"),
            Metric("gradient_alignment", "1", "[-1, 1]", "Mean cosine between the mean gradients of two classes, over all pairs; by class (`class=…`) over its pairs.", "", f"{_INVARIANT}; scale of the loss"),
            Metric("gradient_conflict_fraction", "fraction", "[0, 1]", "Share of pairs of classes whose mean gradients point against each other (negative cosine).", "Yu et al. 2020, definition 1", f"{_INVARIANT}; scale of the loss"),
            Metric("vanishing_gradient", "1", "{0, 1}", "1 where the first weighted layer's median gradient norm is less than `vanishing_below` times the last one's; the reason gives the numbers.", "Glorot and Bengio 2010", f"{_INVARIANT}; scale of the loss"),
            Metric("exploding_gradient", "1", "{0, 1}", "1 where the first weighted layer's median gradient norm is more than `exploding_above` times the last one's, or a gradient is not finite.", "Pascanu et al. 2013", f"{_INVARIANT}; scale of the loss"),
            Metric("gradient_depth_slope", "powers of ten per layer", "(-∞, ∞)", "Slope of the power of ten of the median gradient norm over the layers with a matrix of weights, from the input on; positive where gradients shrink on their way back.", "", f"{_INVARIANT}; scale of the loss"),
        ),
    )
)  # fmt: skip
