"""Maps of the probe's samples in two and three dimensions, comparable over all checkpoints of a run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from stratascope.errors import DamagedStoreError, DoesNotApply, StoreError
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.storage.probes import Probe, stratified_sample
from stratascope.tasks.analysis import Analysis, CaptureRequest, Findings, Metric, NamedArray, Options, register
from stratascope.tasks.contexts import SeriesContext
from stratascope.tasks.representation.embedding_drawing import draw
from stratascope.tasks.representation.maps import (
    KEPT_COMPONENTS,
    Neighbourhoods,
    Reference,
    align_backwards,
    fitting_perplexity,
    nearest_in,
    principal_components,
    scaled,
    tsne_maps,
    unfit,
    voted_accuracy,
)

_NEIGHBOURS = 15


class EmbeddingOptions(Options):
    """Which layers to map, and how. t-SNE in three dimensions costs most."""

    layers: tuple[str, ...] = ("@last_linear:input",)
    """Names, globs, `re:…` or `type:…`; `@last_linear:input` is what enters the last linear layer."""
    reduction: Literal["pooled", "max", "flat", "last", "cls", "projection", "full"] = "pooled"
    methods: tuple[Literal["pca", "tsne"], ...] = ("pca", "tsne")
    dimensions: tuple[Literal[2, 3], ...] = (2, 3)
    max_samples: int = Field(default=2000, ge=10, le=2000)
    max_steps: int = Field(default=60, ge=2)
    """Of more checkpoints than these an even choice is mapped, the first and the last among them."""
    perplexity: float = Field(default=30.0, gt=1)
    iterations: int = Field(default=175, ge=50)
    """Of t-SNE at each step, after 75 under exaggeration."""
    seed: int = Field(default=0, ge=0)

    @field_validator("layers")
    @classmethod
    def _layers_are_named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            if re.fullmatch(r"-?\d+|(-?\d+)?:(-?\d+)?", pattern):
                raise ValueError(f"{pattern!r} is a number; name the layers to map, or use a glob")
        return value


@dataclass
class _Series:
    """What is mapped of one layer: the steps that can be, and the features' leading components at each."""

    probe: str
    layer: str
    rows: np.ndarray
    steps: list[int]
    scores: list[np.ndarray]
    shares: list[np.ndarray]


def compute(context: SeriesContext, options: EmbeddingOptions) -> Findings:
    """Arrays `<probe>/<layer>/<method>_<2|3>d` (step, embedding_sample, component), and the quality of each map.

    The third dimension of the maps in space is called `component_3d`.

    A step whose layer is not stored, or whose features cannot be mapped, is left out with a row that says why.
    Raises DoesNotApply where nothing at all can be mapped.
    """
    from threadpoolctl import threadpool_limits

    findings = Findings()
    reasons: list[str] = []
    # Sums in BLAS depend on the number of threads: with one, every worker files the same bytes.
    with threadpool_limits(limits=1):
        for name, probe in context.probes.items():
            try:
                layers = list(_layers(context, options, name))
            except DoesNotApply as reason:
                reasons.append(str(reason))
                continue
            for layer in layers:
                series = _read(context, options, probe, layer, findings)
                if series.steps:
                    _embed(context, options, probe, series, findings)
                else:
                    reasons.append(f"layer {layer!r} on probe {name!r}: {findings.rows[-1].reason}.")
    if not findings.arrays:
        raise DoesNotApply(" ".join(dict.fromkeys(reasons)) or "no layer was chosen.")
    return findings


def _layers(context: SeriesContext, options: EmbeddingOptions, probe: str) -> Iterator[str]:
    """The layers that the options' patterns mean, by the newest checkpoint whose layers are stored."""
    newest = next((item for step in reversed(context.steps) if (item := context.at(step)).layers(probe)), None)
    if newest is None:
        raise DoesNotApply(f"no layer of any checkpoint is stored for probe {probe!r}.")
    found: dict[str, None] = {}
    for pattern in options.layers:
        if pattern.startswith("@"):
            found[newest.resolve(probe, pattern)] = None
            continue
        names = newest.layers(probe)
        if pattern.startswith("re:"):
            names = [name for name in names if re.fullmatch(pattern[3:], name)]
        elif pattern.startswith("type:"):
            names = [name for name in names if newest.layer_facts(probe, name)["type"] == pattern[5:]]
        else:
            names = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
        if not names:
            raise DoesNotApply(f"no stored layer matches {pattern!r}.")
        found |= dict.fromkeys(names)
    yield from found


def _read(
    context: SeriesContext, options: EmbeddingOptions, probe: Probe, layer: str, findings: Findings
) -> _Series:
    rows = stratified_sample(probe.targets, len(probe), options.max_samples, options.seed)
    series = _Series(probe.name, layer, rows, [], [], [])
    chosen = _even_choice(context.steps, options.max_steps)
    for step in context.steps:
        reason = "" if step in chosen else f"left out: the maps show {options.max_steps} checkpoints at most"
        values = np.empty((0, 0))
        if not reason:
            try:
                values = _features(context, options, series, step)
                reason = unfit(values)
            except DamagedStoreError:
                raise
            except StoreError:
                reason = f"the layer's {options.reduction!r} activations are not stored for this step"
        if reason:
            skipped = Row("trustworthiness", layer=layer, probe=probe.name, step=step, status="does_not_apply", reason=reason)  # fmt: skip
            findings.rows.append(skipped)
            continue
        scores, shares = principal_components(values, max(KEPT_COMPONENTS, *options.dimensions))
        series.steps.append(step)
        series.scores.append(scores)
        series.shares.append(shares)
    return series


def _features(context: SeriesContext, options: EmbeddingOptions, series: _Series, step: int) -> np.ndarray:
    """float64 (sample, feature) of the chosen samples."""
    checkpoint = context.at(step)
    stored = checkpoint.captured.get(series.probe, {}).get("facts", {}).get(series.layer, {}).get("kept", ())
    # What has no known axis of units is kept whole, whatever was asked for.
    reduction = "full" if stored and options.reduction not in stored and "full" in stored else options.reduction
    values = checkpoint.activations(series.probe, series.layer, reduction, series.rows)
    return values.reshape(len(values), -1).astype(np.float64)


def _even_choice(steps: tuple[int, ...], most: int) -> set[int]:
    if len(steps) <= most:
        return set(steps)
    return {steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)}


def _embed(
    context: SeriesContext, options: EmbeddingOptions, probe: Probe, series: _Series, findings: Findings
) -> None:
    perplexity = fitting_perplexity(options.perplexity, len(series.rows))
    neighbourhoods = (
        Neighbourhoods.of([scaled(item) for item in series.scores], perplexity, options.seed)
        if "tsne" in options.methods
        else None
    )
    maps: dict[str, np.ndarray] = {}
    for dimensions in options.dimensions:
        if "pca" in options.methods:
            maps[f"pca_{dimensions}d"] = align_backwards([item[:, :dimensions] for item in series.scores])
            shares = [float(item[:dimensions].sum()) for item in series.shares]
            findings.rows += _rows(series, "explained_variance", f"map=pca_{dimensions}d", shares)
        if neighbourhoods is not None:
            name = f"tsne_{dimensions}d"
            maps[name], divergences = tsne_maps(neighbourhoods, dimensions, options.iterations)
            used = f"perplexity={perplexity:g}"
            findings.rows += _rows(series, "kl_divergence", f"map={name}", list(divergences), convention=used)
    targets = probe.targets[series.rows] if probe.targets is not None and probe.targets.ndim == 1 else None
    _keep_arrays(series, probe, targets, maps, findings)
    _judge(context, options, series, targets, maps, findings)


def _rows(series: _Series, metric: str, part: str, values: list[float], **more: Any) -> list[Row]:
    shared: dict[str, Any] = {"layer": series.layer, "probe": series.probe, "part": part, "n": len(series.rows)}
    return [
        Row(metric, float(value), step=step, **shared, **more)
        for step, value in zip(series.steps, values, strict=True)
    ]


def _keep_arrays(
    series: _Series, probe: Probe, targets: np.ndarray | None, maps: dict[str, np.ndarray], findings: Findings
) -> None:
    place = f"{encode_path_part(series.probe)}/{encode_path_part(series.layer)}"
    about = {"layer": series.layer, "probe": series.probe}
    identities = probe.sample_id[series.rows]
    findings.arrays[f"{place}/sample_id"] = NamedArray(("embedding_sample",), identities, about)
    findings.arrays[f"{place}/step"] = NamedArray(("step",), np.asarray(series.steps, np.int64), about)
    if targets is not None:
        names = {"class_names": list(probe.class_names)}
        findings.arrays[f"{place}/target"] = NamedArray(("embedding_sample",), targets, names)
    for name, placed in maps.items():
        # In one group xarray wants one length for each name of a dimension.
        dims = ("step", "embedding_sample", "component" if name.endswith("_2d") else "component_3d")
        method = {**about, "method": name.split("_")[0]}
        findings.arrays[f"{place}/{name}"] = NamedArray(dims, placed.astype(np.float32), method)


def _judge(
    context: SeriesContext,
    options: EmbeddingOptions,
    series: _Series,
    targets: np.ndarray | None,
    maps: dict[str, np.ndarray],
    findings: Findings,
) -> None:
    """File how well each map keeps neighbours, and how well they tell the class in map and features."""
    neighbours = min(_NEIGHBOURS, (len(series.rows) - 1) // 2)
    classes = targets is not None and targets.dtype.kind in "iub"
    used = f"k={neighbours}"
    trust: dict[str, list[float]] = {f"map={name}": [] for name in maps}
    votes: dict[str, list[float]] = {part: [] for part in ("space=features", *trust)}
    for number, step in enumerate(series.steps):
        # Read again rather than kept: the features of all steps together may not fit into the memory.
        reference = Reference(_features(context, options, series, step), neighbours)
        near = {f"map={name}": nearest_in(placed[number], neighbours) for name, placed in maps.items()}
        for part, found in near.items():
            trust[part].append(reference.trustworthiness(found))
        if classes and targets is not None:
            for part, found in ({"space=features": reference.nearest} | near).items():
                votes[part].append(voted_accuracy(found, targets))
    for part, values in trust.items():
        findings.rows += _rows(series, "trustworthiness", part, values, convention=used)
    for part, values in votes.items() if classes else ():
        findings.rows += _rows(series, "knn_accuracy", part, values, convention=used, estimator="leave one out")


ANALYSIS = register(
    Analysis(
        name="embedding", version=1, scope="series", title="Embedding", question="Which classes does it tell apart, and since when?",
        options=EmbeddingOptions, compute=compute, draw=draw, needs=frozenset({"activations"}), default=True,
        request=lambda options: CaptureRequest(layers=tuple(options.layers), keep=(options.reduction,)),
        metrics=(
            Metric("trustworthiness", "1", "[0, 1]", "How far the nearest neighbours in a map (`part`) are neighbours in the layer's features too; about 0.5 for a random map.", "Venna and Kaski 2001", "rotation, reflection, translation and uniform scaling of features and map"),
            Metric("knn_accuracy", "fraction", "[0, 1]", "Share of samples whose class most of their nearest neighbours have, in a map or in the layer's features (`part`); each sample is left out of its own vote.", "Cover and Hart 1967", "rotation, reflection, translation and uniform scaling"),
            Metric("kl_divergence", "nat", "[0, ∞)", "What t-SNE minimises: the divergence of the map's affinities from the features'. Comparable between maps of equal n and perplexity.", "van der Maaten and Hinton 2008, eq. 2", "rotation, reflection, translation and uniform scaling of the features"),
            Metric("explained_variance", "fraction", "[0, 1]", "Share of the features' variance that lies along the drawn principal components.", "Hotelling 1933", "rotation, reflection, translation and uniform scaling of the features"),
        ),
    )
)  # fmt: skip
