"""Maps of the probe's samples in two and three dimensions, comparable over all checkpoints of a run."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Analysis, CaptureRequest, Findings, Metric, NamedArray, Options, register
from stratascope.tasks.contexts import SeriesContext
from stratascope.tasks.representation.embedding_drawing import draw


class EmbeddingOptions(Options):
    """Layers and methods to map; t-SNE in 3-D costs most."""

    layers: tuple[str, ...] = ("@last_linear:input",)
    methods: tuple[Literal["pca", "tsne"], ...] = ("pca", "tsne")
    dimensions: tuple[Literal[2, 3], ...] = (2, 3)
    max_samples: int = Field(default=2000, ge=10, le=2000)
    perplexity: float = Field(default=30.0, gt=1)
    iterations: int = Field(default=350, ge=50)
    seed: int = 0


def compute(context: SeriesContext, options: EmbeddingOptions) -> Findings:
    """Arrays `<probe>/<layer>/<method>_<2|3>d` (step, embedding_sample, component), and their quality."""
    findings = Findings()
    for probe in context.probes:
        for pattern in options.layers:
            layer = context.at(context.steps[-1]).resolve(probe, pattern) if pattern.startswith("@") else pattern
            _embed_layer(context, options, probe, layer, findings)
    return findings


def _embed_layer(
    context: SeriesContext, options: EmbeddingOptions, probe: str, layer: str, findings: Findings
) -> None:
    total = len(context.probes[probe])
    chosen = np.sort(np.random.default_rng(options.seed).permutation(total)[: options.max_samples])
    kept, features = [], []
    for step in context.steps:
        values = context.at(step).activations(probe, layer)[chosen].astype(np.float64)
        values = values.reshape(len(values), -1)
        reason = _unfit(values)
        if reason:
            findings.rows.append(Row("trustworthiness", layer=layer, probe=probe, step=step, status="does_not_apply", reason=reason))  # fmt: skip
        else:
            kept.append(step)
            features.append(values)
    if not kept:
        raise DoesNotApply(f"layer {layer!r} has no step whose features can be mapped.")
    targets = context.probes[probe].targets
    targets = targets[chosen] if targets is not None and targets.ndim == 1 else None
    place = f"{encode_path_part(probe)}/{encode_path_part(layer)}"
    sample_id = context.probes[probe].sample_id[chosen]
    findings.arrays[f"{place}/sample_id"] = NamedArray(("embedding_sample",), sample_id, {"layer": layer})
    findings.arrays[f"{place}/step"] = NamedArray(("step",), np.asarray(kept, np.int64), {"layer": layer})
    if targets is not None:
        names = {"class_names": list(context.probes[probe].class_names)}
        findings.arrays[f"{place}/target"] = NamedArray(("embedding_sample",), targets, names)
    for dimensions in options.dimensions:
        for method in options.methods:
            if method == "pca":
                maps, numbers = pca_series(features, dimensions)
                key = "explained_variance"
            else:
                maps, numbers = tsne_series(features, dimensions, options)
                key = "kl_divergence"
            name = f"{method}_{dimensions}d"
            findings.arrays[f"{place}/{name}"] = NamedArray(
                ("step", "embedding_sample", "component"),
                maps.astype(np.float32),
                {"layer": layer, "method": method},
            )
            for number, step in enumerate(kept):
                shared: dict[str, Any] = {
                    "layer": layer,
                    "probe": probe,
                    "step": step,
                    "part": f"map={name}",
                    "n": len(chosen),
                }
                findings.rows.append(Row(key, float(numbers[number]), **shared))
                findings.rows += _quality(features[number], maps[number], targets, shared)


def _unfit(values: np.ndarray) -> str:
    if not np.isfinite(values).all():
        return "the features are not finite"
    if len(values) < 10:
        return f"only {len(values)} samples"
    return "the features are constant" if np.ptp(values, axis=0).max() == 0 else ""


def pca_series(features: list[np.ndarray], dimensions: int) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of each step (step, sample, component), and the share of variance that they hold.

    Features of different steps live in different bases, so each map is turned (rotation and reflection only)
    onto the following one, from the last step backwards.
    """
    maps, shares = [], []
    for values in features:
        centred = values - values.mean(0)
        left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
        scores = left[:, :dimensions] * sizes[:dimensions]
        scores = np.pad(scores, ((0, 0), (0, dimensions - scores.shape[1])))
        # The largest entry of each component is made positive: otherwise its sign is arbitrary.
        signs = np.sign(scores[np.abs(scores).argmax(0), range(dimensions)])
        maps.append(scores * np.where(signs == 0, 1, signs))
        shares.append(float((sizes[:dimensions] ** 2).sum() / (sizes**2).sum()))
    for number in range(len(maps) - 2, -1, -1):
        left, _, right = np.linalg.svd(maps[number].T @ maps[number + 1])
        maps[number] = maps[number] @ (left @ right)
    return np.stack(maps), np.asarray(shares)


def tsne_series(
    features: list[np.ndarray], dimensions: int, options: EmbeddingOptions
) -> tuple[np.ndarray, np.ndarray]:
    """t-SNE of each step (step, sample, component) from one consensus start, and each map's KL divergence.

    The start is the map of the mean of all steps' affinities; every step then leaves it under exaggeration 4,
    so that positions mean the same from step to step without one step being bound to the one before.
    """
    from openTSNE import TSNEEmbedding
    from openTSNE.affinity import PerplexityBasedNN, PrecomputedAffinities

    count = len(features[0])
    perplexity = min(options.perplexity, max(2.0, (count - 1) / 3.5))
    affinities = [
        PerplexityBasedNN(
            _scaled(values), perplexity=perplexity, method="exact", n_jobs=1, random_state=options.seed
        )
        for values in features
    ]
    mean = sum(item.P for item in affinities[1:]) + affinities[0].P if len(affinities) > 1 else affinities[0].P
    consensus = PrecomputedAffinities(mean / mean.sum(), normalize=False)
    joint = np.concatenate([_scaled(values) for values in features], axis=1)
    start, _ = pca_series([joint], dimensions)
    method = "bh" if dimensions == 3 or count < 5000 else "fft"
    settings: dict[str, Any] = {"negative_gradient_method": method, "n_jobs": 1, "random_state": options.seed}
    first = start[0] / max(start[0][:, 0].std(), 1e-12) * 1e-4
    state = TSNEEmbedding(first, consensus, learning_rate=max(count / 12, 50), **settings)
    state = state.optimize(n_iter=250, exaggeration=12, momentum=0.5)
    state = state.optimize(n_iter=options.iterations, exaggeration=1, momentum=0.8)
    maps, divergences = [], []
    for affinity in affinities:
        current = TSNEEmbedding(np.array(state), affinity, learning_rate=max(count / 12, 50), **settings)
        current = current.optimize(n_iter=150, exaggeration=4, momentum=0.5)
        current = current.optimize(n_iter=options.iterations, exaggeration=1, momentum=0.8)
        maps.append(np.array(current))
        divergences.append(float(current.kl_divergence))
    return np.stack(maps), np.asarray(divergences)


def _scaled(values: np.ndarray) -> np.ndarray:
    """At most 50 principal components, with total variance 1, so that all steps weigh alike."""
    centred = values - values.mean(0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    reduced = left[:, :50] * sizes[:50]
    return reduced / np.sqrt((reduced**2).sum() / len(reduced))


def _quality(
    features: np.ndarray, placed: np.ndarray, targets: np.ndarray | None, shared: dict[str, Any]
) -> list[Row]:
    from sklearn.manifold import trustworthiness
    from sklearn.neighbors import KNeighborsClassifier

    neighbours = min(15, (len(placed) - 1) // 2)
    rows = [Row("trustworthiness", float(trustworthiness(features, placed, n_neighbors=neighbours)), convention=f"k={neighbours}", **shared)]  # fmt: skip
    if targets is not None and targets.dtype.kind in "iu":
        for space, points in (("map", placed), ("features", features)):
            # Leave one out: each sample is its own nearest neighbour and is dropped.
            model = KNeighborsClassifier(n_neighbors=neighbours).fit(points, targets)
            near = model.kneighbors(return_distance=False)
            votes = targets[near]
            classes = np.unique(targets)
            counts = (votes[:, :, None] == classes).sum(1)
            share = float((classes[counts.argmax(1)] == targets).mean())
            part = f"{shared['part']};space={space}"
            rows.append(Row("knn_accuracy", share, estimator="leave one out", convention=f"k={neighbours}", **{**shared, "part": part}))  # fmt: skip
    return rows


ANALYSIS = register(
    Analysis(
        name="embedding", version=1, scope="series", title="Embedding", question="Which classes does it tell apart, and since when?",
        options=EmbeddingOptions, compute=compute, draw=draw, needs=frozenset({"activations"}), default=True,
        request=lambda options: CaptureRequest(layers=tuple(options.layers), keep=("pooled",)),
        metrics=(
            Metric("trustworthiness", "1", "[0, 1]", "How far neighbours in the map are neighbours in the features.", "Venna and Kaski 2001", "isometries"),
            Metric("knn_accuracy", "fraction", "[0, 1]", "Leave-one-out accuracy of nearest neighbours in the map, or in the features.", "", "isometries"),
            Metric("kl_divergence", "nat", "[0, ∞)", "What t-SNE minimises; comparable between maps of equal n and perplexity.", "van der Maaten and Hinton 2008, eq. 2", "isometries of the features"),
            Metric("explained_variance", "fraction", "[0, 1]", "Share of the features' variance that the drawn components hold."),
        ),
    )
)  # fmt: skip
