"""Which classes each layer's features set apart, how far, and whether the class means form the shape of neural collapse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import Field

from stratascope.errors import DamagedStoreError, DoesNotApply, StoreError
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Analysis, CaptureRequest, Findings, Metric, NamedArray, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.representation.class_separation import (
    ClassMoments,
    Grouping,
    confusion,
    davies_bouldin,
    fisher_ratio,
    mean_distances,
    silhouettes,
    votes,
    with_company,
)
from stratascope.tasks.representation.distances import Neighbours, centred_values, distance_matrix, reserve
from stratascope.tasks.representation.features import (
    INPUT,
    FeatureOptions,
    Features,
    chosen_rows,
    degenerate,
    each_layer,
    request_of,
    without_enough_classes,
)
from stratascope.tasks.representation.neural_collapse import (
    centred_means,
    cosines_of,
    disagreement_with_nearest_mean,
    self_duality,
    simplex_deviations,
    within_class_variability,
)
from stratascope.tasks.representation.outputs import class_part
from stratascope.tasks.representation.resampling import permutations, stratified_counts, subsamples
from stratascope.tasks.representation.scored import (
    NOT_NEGATIVE,
    P_VALUE,
    bootstrap_interval,
    halves_interval,
    null_rows,
    scored_row,
)
from stratascope.tasks.representation.separation_drawing import draw

_LAST_LINEAR = "@last_linear:input"
_SPACE = "space=features"
_PERMUTED = ("silhouette", "fisher_ratio", "knn_accuracy")
_REFUSED = ("silhouette", "fisher_ratio", "davies_bouldin", "knn_accuracy", "class_mean_norm", "nc1", "nc2", "nc4")

Key = tuple[str, str]
"""Metric and part."""


class SeparationOptions(FeatureOptions):
    """Which layers are judged, and how sure the numbers are made."""

    layers: tuple[str, ...] = (INPUT, "*")
    neighbours: int = Field(default=15, ge=1)
    """So many vote on a sample's class; at most half of all samples."""
    bootstrap: int = Field(default=100, ge=0)
    """Rounds of resampling behind each interval; 0 leaves the intervals out."""
    permutations: int = Field(default=100, ge=0)
    """Rounds of permuted labels: what chance alone gives; 0 leaves that out."""
    class_limit: int = Field(default=100, ge=2)
    """With more classes than these, no numbers and pictures by class."""


def request(options: SeparationOptions) -> CaptureRequest:
    """The layers asked for; what enters the last linear layer and the outputs, which neural collapse is about."""
    asked = request_of(options)
    return CaptureRequest((*asked.layers, _LAST_LINEAR, "@output"), (options.reduction,))


def compute(context: CheckpointContext, options: SeparationOptions) -> Findings:
    """Rows by layer; arrays `<probe>/<layer>/confusion|class_mean_cosine|class_mean_distance` and `<probe>/class`.

    Classes with a single sample are left out. A layer of which nothing can be said has rows with the reason.
    """
    from threadpoolctl import threadpool_limits

    findings = Findings()
    networks = {name: _Network(context, options, name) for name in context.probes}
    # Sums in BLAS depend on the number of threads: with one, every worker files the same bytes.
    with threadpool_limits(limits=1):
        for item in each_layer(context, options, "silhouette"):
            if isinstance(item, Row):
                findings.rows.append(item)
            elif reason := _unfit(context, item):
                findings.rows += [item.refusal(metric, reason) for metric in _REFUSED]
            else:
                network = networks[item.probe]
                LayerScores(item, options, network.decisions, network.weights_after(item.layer)).file(findings)
    for name, network in networks.items():
        if network.last_layer is None:
            reason = "the network has no linear layer, or what enters it is not stored"
            findings.rows.append(Row("nc3", probe=name, status="does_not_apply", reason=reason))
    return findings


def _unfit(context: CheckpointContext, features: Features) -> str:
    if context.subject.task == "regression":
        return "the task is regression: the targets are amounts, no classes"
    if features.classes is None:
        return without_enough_classes(None)
    kept = with_company(features.classes)
    if not kept.any():
        return without_enough_classes(features.classes)
    return without_enough_classes(features.classes[kept]) or degenerate(features.values[kept], least=4)


@dataclass
class _Network:
    """What the network itself makes of the samples of one probe: read once, for all layers."""

    context: CheckpointContext
    options: SeparationOptions
    probe: str
    outputs: int = 0
    """How many there are, once they have been read."""

    @cached_property
    def decisions(self) -> np.ndarray | str:
        """int64 (sample,): the class with the highest output, in the order of the features; or why there is none."""
        shown = self.context.probes[self.probe]
        rows = chosen_rows(shown, self.options.max_samples, self.options.seed)
        try:
            outputs = self.context.outputs(self.probe)[rows]
        except DamagedStoreError:
            raise
        except StoreError:
            return "the network's outputs are not stored"
        assert shown.targets is not None
        classes = shown.targets.min(), shown.targets.max()
        if outputs.ndim != 2 or classes[0] < 0 or outputs.shape[1] <= classes[1]:
            return "the network has no output for each class"
        if not np.isfinite(outputs).all():
            return "some outputs of the network are not finite"
        self.outputs = outputs.shape[1]
        return outputs.argmax(1).astype(np.int64)

    @cached_property
    def last_layer(self) -> str | None:
        """The name under which the features that enter the last linear layer are stored."""
        try:
            return self.context.resolve(self.probe, _LAST_LINEAR)
        except DoesNotApply:
            return None

    def weights_after(self, layer: str) -> np.ndarray | str | None:
        """float64 (class, feature): the last linear layer's weights where the features of `layer` enter it.

        None for every other layer; the reason where they do not belong to the classes.
        """
        if layer != self.last_layer or self.last_layer is None:
            return None
        if isinstance(self.decisions, str):
            return self.decisions
        module = self.context.network().get_submodule(layer.removesuffix(":input").partition("#")[0])
        weights: np.ndarray = module.weight.detach().cpu().double().numpy()  # type: ignore[operator, union-attr]
        if len(weights) != self.outputs:
            return f"the last linear layer has {len(weights)} units, the network {self.outputs} outputs"
        return weights


class LayerScores:
    """The scores of one layer: distances, neighbours and class moments are found once and shared by all.

    `decisions` (sample,) are the classes that the network decides for, `weights` (class, feature) those that these
    features meet in the last linear layer; a text in place of either says why there are none. Raises nothing; the
    features must be finite and have two or more classes of two samples.
    """

    def __init__(
        self,
        features: Features,
        options: SeparationOptions,
        decisions: np.ndarray | str,
        weights: np.ndarray | str | None,
    ) -> None:
        assert features.classes is not None
        kept = with_company(features.classes)
        self.features = replace(
            features,
            values=features.values[kept],
            targets=features.classes[kept],
            sample_id=features.sample_id[kept],
        )
        self.options = options
        self.grouping = Grouping.of(features.classes[kept])
        self.centred = centred_values(self.features.values)
        self.squared = np.einsum("ij,ij->i", self.centred, self.centred)
        self.distances = distance_matrix(self.centred)
        count = len(self.centred)
        self.k = min(options.neighbours, (count - 1) // 2)
        self.neighbours = Neighbours.among(self.distances, reserve(self.k, count))
        self.by_class = len(self.grouping.values) <= options.class_limit
        self.parts = [class_part(int(value), features.class_names) for value in self.grouping.values]
        left_out = len(np.unique(features.classes)) - len(self.grouping.values)
        self.about = f"classes={len(self.parts)}" + (f";left_out={left_out} with one sample" if left_out else "")
        self.decisions: np.ndarray | None = None
        self.no_decisions = decisions if isinstance(decisions, str) else ""
        if not isinstance(decisions, str):
            self.decisions = self._places(decisions[kept])
        self.weights: np.ndarray | None = None
        self.no_weights = weights if isinstance(weights, str) else ""
        if isinstance(weights, np.ndarray) and weights.shape[1] != self.centred.shape[1]:
            self.no_weights = (
                f"the last linear layer takes {weights.shape[1]} features, here are {self.centred.shape[1]}"
            )
        elif isinstance(weights, np.ndarray):
            self.weights = weights[self.grouping.values]

    def _places(self, decided: np.ndarray) -> np.ndarray:
        """The places (sample,) of classes `decided` (sample,) among those that have samples, -1 for one that has none."""
        places = np.full(int(max(decided.max(), self.grouping.values.max())) + 1, -1)
        places[self.grouping.values] = np.arange(len(self.grouping.values))
        found: np.ndarray = places[decided]
        return found

    def file(self, findings: Findings) -> None:
        """Add all rows and arrays of the layer."""
        moments = ClassMoments.of(self.centred, self.squared, self.grouping)
        values = {**self._neighbour_scores(None), **self._moment_scores(moments)}
        halves = [self._neighbour_scores(rows) for rows in subsamples(len(self.centred), self.options.bootstrap, self.options.seed)]  # fmt: skip
        counts = stratified_counts(self.grouping.index, self.options.bootstrap, self.options.seed)
        drawn = [
            self._moment_scores(ClassMoments.of(self.centred, self.squared, self.grouping, weight))
            for weight in counts
        ]
        for key, value in values.items():
            ends = _ENDS.get(key[0], NOT_NEGATIVE)
            interval = (
                halves_interval(value, [item[key] for item in halves], ends)
                if key[0] in ("silhouette", "knn_accuracy")
                else bootstrap_interval(value, [item[key] for item in drawn], ends)
            )
            findings.rows.append(self._row(key, value, interval))
        findings.rows += self._chance(values)
        if self.no_decisions:
            findings.rows.append(self.features.refusal("nc4", self.no_decisions))
        if self.no_weights:
            findings.rows.append(self.features.refusal("nc3", self.no_weights))
        self._keep(moments, findings)

    def _neighbour_scores(self, rows: np.ndarray | None) -> dict[Key, float]:
        """Silhouettes and votes of all samples, or within a subset (`rows`) as if there were no others."""
        found = silhouettes(self.distances, self.grouping, rows)
        own = self.grouping.index if rows is None else self.grouping.index[rows]
        right = self._votes(rows) == own
        scores = {("silhouette", ""): float(np.nanmean(found)), ("knn_accuracy", _SPACE): float(right.mean())}
        for place, part in enumerate(self.parts if self.by_class else ()):
            members = own == place
            sound = found[members][np.isfinite(found[members])]
            scores["silhouette", part] = float(sound.mean()) if len(sound) else float("nan")
            scores["knn_accuracy", f"{_SPACE};{part}"] = (
                float(right[members].mean()) if members.any() else float("nan")
            )
        return scores

    def _votes(self, rows: np.ndarray | None, index: np.ndarray | None = None) -> np.ndarray:
        near = Neighbours(self.neighbours.order[:, : self.k], self.neighbours.distance[:, : self.k])
        if rows is not None:
            near = self.neighbours.within(rows, min(self.k, len(rows) - 1))
        return votes(near, self.grouping.index if index is None else index, len(self.parts))

    def _moment_scores(self, moments: ClassMoments) -> dict[Key, float]:
        """All that follows from weights, class means and spreads."""
        centred = centred_means(moments)
        scores = {
            ("fisher_ratio", ""): fisher_ratio(moments),
            ("davies_bouldin", ""): davies_bouldin(moments),
            ("nc1", ""): within_class_variability(moments),
        }
        for aspect, value in simplex_deviations(centred).items():
            scores["nc2", f"aspect={aspect}"] = value
        if self.weights is not None:
            scores["nc3", ""] = self_duality(moments, self.weights)
        if self.decisions is not None:
            scores["nc4", ""] = disagreement_with_nearest_mean(moments, self.decisions)
        if self.by_class:
            norms = np.linalg.norm(centred, axis=1)
            scores |= {
                ("class_mean_norm", part): float(norm) for part, norm in zip(self.parts, norms, strict=True)
            }
        return scores

    def _row(self, key: Key, value: float, interval: Any) -> Row:
        metric, part = key
        convention, undefined = _CONVENTIONS[metric]
        if part in ("aspect=equiangle", "aspect=maximal_angle") and len(self.parts) == 2:
            undefined = "there are two classes only: their means always lie opposite to each other"
        more: dict[str, Any] = {"part": part}
        if members := [place for place, name in enumerate(self.parts) if part.endswith(name)]:
            more["n"] = int(self.grouping.sizes[members[0]])
        text = ";".join(filter(None, (self.about, convention.format(k=self.k))))
        return scored_row(
            self.features, metric, value, interval, _ESTIMATORS.get(metric, "plug-in"), undefined, convention=text, **more
        )  # fmt: skip

    def _chance(self, values: Mapping[Key, float]) -> list[Row]:
        """What permuted labels give, for the scores that labels alone decide."""
        null: dict[str, list[float]] = {metric: [] for metric in _PERMUTED}
        for order in permutations(len(self.centred), self.options.permutations, self.options.seed):
            index = self.grouping.index[order]
            moments = ClassMoments.of(self.centred, self.squared, self.grouping, index=index)
            null["silhouette"].append(float(np.nanmean(silhouettes(self.distances, self.grouping, index=index))))
            null["fisher_ratio"].append(fisher_ratio(moments))
            null["knn_accuracy"].append(float((self._votes(None, index) == index).mean()))
        rows = []
        for metric, found in null.items():
            part = _SPACE if metric == "knn_accuracy" else ""
            convention = ";".join(filter(None, (self.about, _CONVENTIONS[metric][0].format(k=self.k))))
            rows += null_rows(self.features, metric, values[metric, part], found, part, convention)
        return rows

    def _keep(self, moments: ClassMoments, findings: Findings) -> None:
        if not self.by_class:
            return
        probe = encode_path_part(self.features.probe)
        place = f"{probe}/{encode_path_part(self.features.layer)}"
        about = {"layer": self.features.layer, "probe": self.features.probe}
        counts = confusion(self.grouping.index, self._votes(None), len(self.parts))
        centred = centred_means(moments)
        pair = ("class", "other_class")
        findings.arrays |= {
            f"{probe}/class": NamedArray(
                ("class",), self.grouping.values, {"class_names": list(self.features.class_names)}
            ),
            f"{place}/confusion": NamedArray(("class", "voted_class"), counts, {**about, "neighbours": self.k}),
            f"{place}/class_mean_cosine": NamedArray(pair, cosines_of(centred), about),
            f"{place}/class_mean_distance": NamedArray(pair, mean_distances(moments.means), about),
        }


_ENDS = {"silhouette": (-1.0, 1.0), "knn_accuracy": (0.0, 1.0), "nc3": (0.0, 4.0), "nc4": (0.0, 1.0)}
_ESTIMATORS = {"knn_accuracy": "leave one out", "silhouette": "mean over samples"}
_CONVENTIONS = {
    "silhouette": ("Euclidean", "no class has two samples"),
    "fisher_ratio": ("trace form, no degrees of freedom", "the samples of each class are all alike"),
    "davies_bouldin": ("Euclidean, mean distance to the mean", "the means of two classes coincide"),
    "knn_accuracy": ("k={k}", "the class has no samples"),
    "class_mean_norm": ("about the mean of class means", "the mean is not finite"),
    "nc1": ("tr(S_W pinv(S_B))/C, classes weigh alike", "the means of all classes coincide"),
    "nc2": ("about the mean of class means", "the mean of a class is the mean of all"),
    "nc3": ("squared Frobenius distance of unit-norm matrices, weights as they are", "weights or means are all zero"),
    "nc4": ("share that differ; nearest mean of the same samples", "the network's outputs are not stored"),
}  # fmt: skip
"""By metric what exactly is meant, and why it is undefined where it is."""

_RIGID = "rotation, reflection and translation of the features; order of the samples"
_SIMILAR = "rotation, reflection, translation and uniform scaling of the features; order of the samples"

ANALYSIS = register(
    Analysis(
        name="separation", version=1, scope="checkpoint", title="Separation", question="Which classes does each layer tell apart?",
        options=SeparationOptions, compute=compute, draw=draw, needs=frozenset({"activations", "weights"}), request=request,
        metrics=(
            Metric("silhouette", "1", "[-1, 1]", "Mean over samples, or over those of a class (`part`), of (b - a) / max(a, b): a is the mean distance to the own class, b that to the nearest other class. Part `null=permuted`: with permuted labels.", "Rousseeuw 1987", _SIMILAR),
            Metric("fisher_ratio", "1", "[0, ∞)", "Trace of the scatter of class means by the trace of the scatter within classes, tr(S_B) / tr(S_W), summed over samples. Part `null=permuted`: with permuted labels.", "Fisher 1936; trace form: Fukunaga 1990, section 10.2", _SIMILAR),
            Metric("davies_bouldin", "1", "[0, ∞)", "Mean over classes of the worst ratio of two classes' mean distances to their means, added up, to the distance of the two means; lower is better.", "Davies and Bouldin 1979", _SIMILAR),
            Metric("knn_accuracy", "fraction", "[0, 1]", "Share of samples whose class most of their nearest neighbours have, in a map or in the layer's features (`part`); each sample is left out of its own vote.", "Cover and Hart 1967", "rotation, reflection, translation and uniform scaling"),
            Metric(P_VALUE, "1", "(0, 1]", "Share of rounds with permuted labels that reach the score that `part` names, the score itself counted in.", "Phipson and Smyth 2010", _SIMILAR),
            Metric("class_mean_norm", "activation", "[0, ∞)", "Distance of a class's mean (`part`) from the mean of all class means.", "", _RIGID),
            Metric("nc1", "1", "[0, ∞)", "Variability collapse, tr(Σ_W Σ_B⁺) / C: spread within classes relative to that of the class means; 0 where each class is a point.", "Papyan, Han and Donoho 2020, fig. 6", _SIMILAR),
            Metric("nc2", "1", "[0, ∞)", "How far the class means, about their common mean, are from a simplex with equal sides: spread of their norms by the mean norm (`aspect=equinorm`), spread of their cosines (`aspect=equiangle`), mean distance of the cosines from -1 / (C - 1) (`aspect=maximal_angle`); 0 at the simplex.", "Papyan, Han and Donoho 2020, figs. 2 to 4", _SIMILAR),
            Metric("nc3", "1", "[0, 4]", "Squared Frobenius distance of the last linear layer's weights and the class means of what enters it, each scaled to norm 1; 0 where they are proportional.", "Papyan, Han and Donoho 2020, fig. 5", "translation and uniform scaling of the features; rotation of features and weights together; order of the samples"),
            Metric("nc4", "fraction", "[0, 1]", "Share of samples for which the class with the nearest mean is not the one that the network decides for; 0 where both always agree.", "Papyan, Han and Donoho 2020, fig. 7", _SIMILAR),
        ),
    )
)  # fmt: skip
