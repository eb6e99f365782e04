"""The shape of each layer's cloud of features: how many directions it uses, how curved, how lopsided, how wide its classes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pydantic import Field

from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.representation.class_separation import NEGLIGIBLE, Grouping, with_company
from stratascope.tasks.representation.dimensionality import (
    LEAST_RANKS,
    Spectrum,
    class_radius,
    effective_rank,
    fitted_ranks,
    mean_cosine,
    participation_ratio,
    power_law,
)
from stratascope.tasks.representation.distances import Neighbours, centred_values, different_rows, reserve
from stratascope.tasks.representation.features import (
    INPUT,
    FeatureOptions,
    Features,
    degenerate,
    each_layer,
    request_of,
    without_enough_classes,
)
from stratascope.tasks.representation.geometry_drawing import draw
from stratascope.tasks.representation.hubness import hub_share, occurrences, orphan_share, skewness
from stratascope.tasks.representation.intrinsic_dimension import DISCARDED, maximum_likelihood, two_nearest
from stratascope.tasks.representation.outputs import class_part
from stratascope.tasks.representation.resampling import bootstrap_counts, stratified_counts, subsamples
from stratascope.tasks.representation.scored import (
    ANYWHERE,
    NOT_NEGATIVE,
    bootstrap_interval,
    halves_interval,
    scored_row,
)

_LEAST_DIFFERENT = 20
"""So many different samples an intrinsic dimension needs."""
_REFUSED = (
    "effective_rank", "participation_ratio", "spectrum_decay", "intrinsic_dimension", "anisotropy",
    "class_manifold_radius", "class_manifold_dimension", "hubness",
)  # fmt: skip
_HUBS = ("hubness", "hub_share", "orphan_share")
_RADIUS, _DIMENSION = "class_manifold_radius", "class_manifold_dimension"


class GeometryOptions(FeatureOptions):
    """Which layers are measured, and how sure the numbers are made."""

    layers: tuple[str, ...] = (INPUT, "*")
    neighbours: int = Field(default=10, ge=2)
    """Of each sample, for the maximum-likelihood dimension and for hubness; at most half of all samples."""
    bootstrap: int = Field(default=100, ge=0)
    """Rounds of resampling behind each interval; 0 leaves the intervals out."""
    class_limit: int = Field(default=100, ge=2)
    """With more classes than these, no numbers by class."""


def compute(context: CheckpointContext, options: GeometryOptions) -> Findings:
    """Rows by layer; arrays `<probe>/<layer>/variance`, by component, and `<probe>/<layer>/occurrence`, by sample.

    A layer of which nothing can be said has rows with the reason.
    """
    from threadpoolctl import threadpool_limits

    findings = Findings()
    # Sums in BLAS depend on the number of threads: with one, every worker files the same bytes.
    with threadpool_limits(limits=1):
        for item in each_layer(context, options, "effective_rank"):
            if isinstance(item, Row):
                findings.rows.append(item)
            elif reason := degenerate(item.values, least=4):
                findings.rows += [item.refusal(metric, reason) for metric in _REFUSED]
            else:
                measure(item, options, context.subject.task, findings)
    return findings


def measure(features: Features, options: GeometryOptions, task: str, findings: Findings) -> None:
    """Add all rows and arrays of one layer, whose features are finite and not constant."""
    centred = centred_values(features.values)
    spectrum = Spectrum.of(centred)
    variances = spectrum.variances[: min(centred.shape[1], len(centred) - 1)]
    counts = bootstrap_counts(len(centred), options.bootstrap, options.seed)
    drawn = spectrum.resampled(counts)[:, : len(variances)]
    findings.rows += _spectral_rows(features, variances, drawn)
    findings.rows += _alike(features, counts)
    findings.rows += _class_rows(features, centred, options, task)
    k = min(options.neighbours, (len(centred) - 1) // 2)
    known = Neighbours.of(centred, reserve(k, len(centred)))
    findings.rows += _dimension_rows(features, centred, known, options)
    occurrence = occurrences(known.order[:, :k], len(centred))
    findings.rows += _hub_rows(features, known, occurrence, k, options)
    probe = encode_path_part(features.probe)
    place = f"{probe}/{encode_path_part(features.layer)}"
    about = {"layer": features.layer, "probe": features.probe}
    findings.arrays |= {
        f"{probe}/sample_id": NamedArray(("geometry_sample",), features.sample_id, {"probe": features.probe}),
        f"{place}/variance": NamedArray(("component",), variances, about),
        f"{place}/occurrence": NamedArray(("geometry_sample",), occurrence, about),
    }


# -- the spectrum --------------------------------------------------------------------------------------------


def _bounded(features: Features) -> str:
    """What bounds a dimension from above besides the features, where the samples do."""
    count, width = features.values.shape
    return f"at most n-1={count - 1}" if count <= width else ""


def _spectral_rows(features: Features, variances: np.ndarray, drawn: np.ndarray) -> list[Row]:
    measures: tuple[tuple[str, str, Callable[[np.ndarray], np.ndarray], str], ...] = (
        ("effective_rank", "", effective_rank, "shares of singular values; centred"),
        ("participation_ratio", "", participation_ratio, "centred"),
        ("anisotropy", "aspect=top_component", lambda found: found[..., 0] / found.sum(-1), "share of the variance; centred"),
    )  # fmt: skip
    rows = []
    for metric, part, measure, convention in measures:
        value = float(measure(variances))
        interval = bootstrap_interval(value, measure(drawn) if len(drawn) else [], NOT_NEGATIVE)
        text = ";".join(filter(None, (convention, _bounded(features))))
        rows.append(scored_row(features, metric, value, interval, "plug-in", "", part=part, convention=text))
    return rows + _decay_rows(features, variances, drawn)


def _decay_rows(features: Features, variances: np.ndarray, drawn: np.ndarray) -> list[Row]:
    first, last = fitted_ranks(variances, len(features.values))
    if not last:
        reason = (
            f"a power law needs {LEAST_RANKS} eigenvalues, each with ten samples: there are {len(variances)} "
            f"eigenvalues and {len(features.values)} samples"
        )
        return [features.refusal(metric, reason) for metric in ("spectrum_decay", "spectrum_decay_fit")]
    law = power_law(variances, first, last)
    found = [power_law(np.maximum(item, 1e-300), first, last).exponent for item in drawn]
    text = f"ranks={first}-{last};weights 1/rank"
    row = scored_row(
        features, "spectrum_decay", law.exponent, bootstrap_interval(law.exponent, found), "least squares", "", convention=text,
        **({"status": "vacuous", "reason": law.doubt} if law.doubt else {}),
    )  # fmt: skip
    return [row, features.row("spectrum_decay_fit", law.fit, estimator="R² of the line", convention=text)]


def _alike(features: Features, counts: np.ndarray) -> list[Row]:
    values = features.values.astype(np.float64)
    sound = np.linalg.norm(values, axis=1) > 0
    left_out = int((~sound).sum())
    part = "aspect=mean_cosine"
    if sound.sum() < 2:
        reason = f"{left_out} of {len(values)} samples have zeros only: they point nowhere"
        return [features.refusal("anisotropy", reason, part=part)]
    value = float(mean_cosine(values[sound], np.ones((1, int(sound.sum())), np.int64))[0])
    interval = bootstrap_interval(value, mean_cosine(values[sound], counts[:, sound]), (-1.0, 1.0))
    text = "about the origin" + (f";left_out={left_out} zero vectors" if left_out else "")
    return [scored_row(features, "anisotropy", value, interval, "all pairs", "", part=part, convention=text)]


# -- classes -------------------------------------------------------------------------------------------------


def _class_rows(features: Features, centred: np.ndarray, options: GeometryOptions, task: str) -> list[Row]:
    """Radius and dimension of each class's cloud, and their means over classes; classes of one sample are left out."""
    if task == "regression":
        reason = "the task is regression: the targets are amounts, no classes"
        return [features.refusal(metric, reason) for metric in (_RADIUS, _DIMENSION)]
    kept = np.zeros(0, bool) if features.classes is None else with_company(features.classes)
    classes = features.classes[kept] if features.classes is not None and kept.any() else features.classes
    if classes is None or (reason := without_enough_classes(classes)):
        reason = without_enough_classes(classes)
        return [features.refusal(metric, reason) for metric in (_RADIUS, _DIMENSION)]
    grouping, values = Grouping.of(classes), centred[kept]
    weights = stratified_counts(grouping.index, options.bootstrap, options.seed)

    def centres(weight: np.ndarray | None = None) -> np.ndarray:
        found: np.ndarray = grouping.membership(weight) @ values / grouping.sizes[:, None]
        return found

    means = centres()
    members = [grouping.index == place for place in range(len(means))]
    clouds = [Spectrum.of(values[inside] - mean) for inside, mean in zip(members, means, strict=True)]
    drawn = [cloud.resampled(weights[:, inside]) for cloud, inside in zip(clouds, members, strict=True)]
    spread = np.array([cloud.variances.sum() for cloud in clouds])
    spreads = np.array([found.sum(1) for found in drawn]).T  # (round, class)
    radii = np.array(
        [class_radius(found, centres(weight)) for found, weight in zip(spreads, weights, strict=True)]
    )
    with np.errstate(invalid="ignore"):
        dimension = np.array([participation_ratio(cloud.variances) for cloud in clouds])
        # A class whose samples are all alike has no dimension, whatever rounding leaves of its spread.
        dimension[spread <= NEGLIGIBLE * (values**2).sum(1).mean()] = np.nan
        dimensions = np.array([participation_ratio(found) for found in drawn]).T
    rows = []
    for metric, value, found, convention, undefined in (
        (_RADIUS, class_radius(spread, means), radii, "centres about their mean", "the centre lies in the middle of all classes"),
        (_DIMENSION, dimension, dimensions, "participation ratio; at most n-1 of the class", "the samples of the class are all alike"),
    ):  # fmt: skip
        rows += _by_class(features, grouping, metric, value, found, convention, undefined, options)
    return rows


def _by_class(
    features: Features,
    grouping: Grouping,
    metric: str,
    values: np.ndarray,
    drawn: np.ndarray,
    convention: str,
    undefined: str,
    options: GeometryOptions,
) -> list[Row]:
    """Rows of each class, and of the mean over classes, of `values` (class,) and `drawn` (round, class)."""
    rounds = drawn if len(drawn) else np.empty((0, len(values)))
    text = f"classes={len(values)};{convention}"
    mean = float(values.mean())
    whole = bootstrap_interval(mean, rounds.mean(1), NOT_NEGATIVE)
    rows = [scored_row(features, metric, mean, whole, "mean over classes", f"of a class: {undefined}", convention=text)]  # fmt: skip
    for place in range(len(values)) if len(values) <= options.class_limit else ():
        value = float(values[place])
        part = class_part(int(grouping.values[place]), features.class_names)
        interval = bootstrap_interval(value, rounds[:, place], NOT_NEGATIVE)
        count = int(grouping.sizes[place])
        rows.append(scored_row(features, metric, value, interval, "plug-in", undefined, part=part, n=count, convention=text))  # fmt: skip
    return rows


# -- neighbours ----------------------------------------------------------------------------------------------


def _dimension_rows(
    features: Features, centred: np.ndarray, known: Neighbours, options: GeometryOptions
) -> list[Row]:
    """Both estimates of the intrinsic dimension, among samples that differ."""
    metric = "intrinsic_dimension"
    parts = ("estimator=two_nn", "estimator=mle")
    rows = different_rows(features.values)
    removed = len(centred) - len(rows)
    if len(rows) < _LEAST_DIFFERENT:
        reason = f"at least {_LEAST_DIFFERENT} different samples are needed; of {len(centred)} are {removed} copies of others"
        return [features.refusal(metric, reason, part=part) for part in parts]
    k = min(options.neighbours, (len(rows) - 1) // 2)
    if removed:
        known = Neighbours.of(centred[rows], reserve(k, len(rows)))
    halves = list(subsamples(len(rows), options.bootstrap, options.seed))
    found: list[Row] = []
    for part, count, measure, name, convention in (
        (parts[0], 2, two_nearest, "TwoNN", f"largest {DISCARDED:.0%} of the ratios discarded"),
        (parts[1], k, maximum_likelihood, "Levina-Bickel, inverses averaged", f"k={k}"),
    ):
        value = measure(known.distance[:, :count])
        drawn = [measure(known.within(half, min(count, len(half) - 1)).distance) for half in halves]
        found.append(
            scored_row(
                features, metric, value, halves_interval(value, drawn, NOT_NEGATIVE), name,
                "all samples are equally far from their neighbours", part=part, n=len(rows),
                convention=f"{convention};duplicates removed={removed}",
            )
        )  # fmt: skip
    return found


def _hub_rows(
    features: Features, known: Neighbours, occurrence: np.ndarray, k: int, options: GeometryOptions
) -> list[Row]:
    def scores(counts: np.ndarray, neighbours: int) -> tuple[float, float, float]:
        return skewness(counts), hub_share(counts, neighbours), orphan_share(counts)

    count = len(occurrence)
    drawn = []
    for half in subsamples(count, options.bootstrap, options.seed):
        within = min(k, len(half) - 1)
        drawn.append(scores(occurrences(known.within(half, within).order, count)[half], within))
    undefined = "every sample is as often a neighbour as every other"
    rows = []
    for place, (metric, value) in enumerate(zip(_HUBS, scores(occurrence, k), strict=True)):
        interval = halves_interval(value, [item[place] for item in drawn], (0.0, 1.0) if place else ANYWHERE)
        rows.append(
            scored_row(features, metric, value, interval, "plug-in", undefined, convention=f"k={k};Euclidean")
        )
    return rows


_RIGID = "rotation, reflection, translation and uniform scaling of the features; order of the samples"

ANALYSIS = register(
    Analysis(
        name="geometry", version=1, scope="checkpoint", title="Geometry", question="What shape do each layer's features have?",
        options=GeometryOptions, compute=compute, draw=draw, needs=frozenset({"activations"}), request=request_of,
        metrics=(
            Metric("effective_rank", "1", "[1, ∞)", "exp of the entropy of the shares of the centred features' singular values: how many directions are used; at most the smaller of d and n - 1.", "Roy and Vetterli 2007", _RIGID),
            Metric("participation_ratio", "1", "[1, ∞)", "(Σλ)² / Σλ² of the covariance's eigenvalues: how many directions carry the variance; large directions weigh more than in the effective rank.", "Gao et al. 2017", _RIGID),
            Metric("spectrum_decay", "1", "(-∞, ∞)", "Exponent a of the power law variance ∝ rank^-a over the last decade of ranks with ten samples each; status `vacuous` with the reason where no power law fits.", "Stringer et al. 2019, for the law; range and weights: docs/geometry.md", _RIGID),
            Metric("spectrum_decay_fit", "1", "(-∞, 1]", "R² of that line in logarithms.", "", _RIGID),
            Metric("intrinsic_dimension", "1", "(0, ∞)", "Dimension of the manifold that the samples lie on, from distances to the two nearest neighbours (`estimator=two_nn`) or to some (`estimator=mle`); equal samples are removed first.", "Facco et al. 2017; Levina and Bickel 2004 with MacKay and Ghahramani 2005", _RIGID),
            Metric("anisotropy", "1", "[-1, 1]", "How lopsided the features lie: mean cosine of all pairs about the origin (`aspect=mean_cosine`; 0 where all directions occur alike), and the leading component's share of the variance (`aspect=top_component`).", "Ethayarajh 2019", "rotation, reflection and uniform scaling of the features; order of the samples; the leading component's share also translation"),
            Metric(_RADIUS, "1", "[0, ∞)", "Root mean square distance of a class's samples from their centre by the centre's distance from the mean of all centres (`part`), and its mean over classes.", "moments of the manifold radius of Chung, Lee and Sompolinsky 2018, without its anchor points", _RIGID),
            Metric(_DIMENSION, "1", "[1, ∞)", "Participation ratio of the covariance within a class (`part`), and its mean over classes.", "moments of the manifold dimension of Chung, Lee and Sompolinsky 2018, without its anchor points", _RIGID),
            Metric("hubness", "1", "(-∞, ∞)", "Skewness of how often a sample is among the k nearest of others; above 1 a few samples are near to everything.", "Radovanović, Nanopoulos and Ivanović 2010", _RIGID),
            Metric("hub_share", "fraction", "[0, 1]", "Share of all neighbours' places that are held by samples which hold more than 2k.", "Radovanović, Nanopoulos and Ivanović 2010", _RIGID),
            Metric("orphan_share", "fraction", "[0, 1]", "Share of samples that are among no other's k nearest.", "Radovanović, Nanopoulos and Ivanović 2010", _RIGID),
        ),
    )
)  # fmt: skip
