"""What a linear probe says of one layer, as rows and arrays: scores, controls, path of penalties, description length."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Findings, NamedArray
from stratascope.tasks.comparison.paired import wilson
from stratascope.tasks.representation.class_separation import confusion
from stratascope.tasks.representation.description_length import online_code
from stratascope.tasks.representation.distances import different_rows
from stratascope.tasks.representation.features import Features
from stratascope.tasks.representation.probe_classifiers import (
    CrossValidated,
    cross_validated,
    held_out_answers,
    prepared,
)
from stratascope.tasks.representation.probe_folds import Folds
from stratascope.tasks.representation.probe_regressors import cross_validated_ridge, explained, permuted_r2
from stratascope.tasks.representation.resampling import percentile_interval, permutation_p, permutations
from stratascope.tasks.representation.scored import P_VALUE, Interval, bootstrap_interval, scored_row

ACCURACY, R2 = "linear_probe_accuracy", "linear_probe_r2"
SHUFFLED, CONTROL, RANDOM = "null=shuffled_labels", "null=control_task", "null=random_features"
SAMPLE = "linear_probe_sample"
QUANTITIES = ("train_score", "held_out_score", "held_out_loss", "weight_norm")
"""The lines of the array `path`."""
_NULL_TOLERANCE, _NULL_ITERATIONS = 1e-3, 50
"""Shuffled labels take long to learn by heart, and what is learned so is of no use on other samples."""
_NUMBER = "the score is not finite"


@dataclass(frozen=True)
class ProbeSamples:
    """What is the same for all layers of a probe."""

    folds: Folds
    targets: np.ndarray
    """(kept sample,): classes or amounts."""
    counts: np.ndarray
    """int64 (round, kept sample): how often the bootstrap draws each."""
    control: np.ndarray | str
    """int64 (kept sample,): the place of the class that the control task gives; or why there is none."""


@dataclass(frozen=True)
class ProbeWork:
    """What is asked of each layer."""

    path: tuple[float, ...]
    permutations: int
    fractions: tuple[float, ...]
    class_limit: int
    seed: int


def right_interval(right: np.ndarray, counts: np.ndarray) -> Interval:
    """The interval of the share of `right` (sample,) by the bootstrap `counts` (round, sample).

    Where all samples or none are right, resampling says nothing, and Wilson's interval stands in.
    """
    if not len(counts):
        return Interval()
    if right.all() or not right.any():
        low, high = wilson(int(right.sum()), len(right))
        return Interval(low, high, "95 % Wilson, for the bootstrap of equal answers has no width")
    return bootstrap_interval(float(right.mean()), counts @ right / len(right), (0.0, 1.0))


class LayerProbe:
    """The probe of one layer. Raises DoesNotApply where a training set has one class only."""

    def __init__(self, features: Features, samples: ProbeSamples, work: ProbeWork) -> None:
        kept = samples.folds.kept
        self.features = replace(
            features, values=features.values[kept], targets=samples.targets, sample_id=features.sample_id[kept]
        )
        self.samples, self.work = samples, work
        self.fold = samples.folds.fold
        self.values = prepared(self.features.values)
        rows = len(self.values)
        training = rows - int(np.bincount(self.fold).max())
        self.fits_anything = self.values.shape[1] >= training - 1
        alike = rows - len(different_rows(self.features.values)) - samples.folds.copies
        width = self.features.values.shape[1]
        self.about = ";".join(filter(None, (
            samples.folds.about, f"n<=d: {rows} samples" if rows <= width else "",
            f"different samples with equal features={alike}" if alike > 0 else "",
        )))  # fmt: skip

    # -- classes ---------------------------------------------------------------------------------------------

    def file_classes(self, findings: Findings) -> None:
        """All rows and arrays where targets are classes."""
        values, places = np.unique(self.samples.targets, return_inverse=True)
        found = cross_validated(self.values, places, self.fold, self.work.path)
        right = found.predicted == places
        about = f"{self.about};classes={len(values)}" + self._unfinished(found)
        estimator = "held out, C by inner folds"
        interval = right_interval(right, self.samples.counts)
        score = float(right.mean())
        rows = [self._row(ACCURACY, score, interval, estimator, about)]
        rows.append(self._balanced(places, right, len(values), estimator, about))
        rows += self._penalty(found, about)
        strength = self.work.path[found.main_choice]
        rows += self._shuffled_labels(places, strength, score, about)
        rows += self._selectivity(right, strength, about)
        rows += self._description(places, strength, about)
        findings.rows += rows
        self._keep(found, values[found.predicted], findings)
        if len(values) <= self.work.class_limit:
            self._keep_confusion(values, confusion(places, found.predicted, len(values)), findings)

    def _balanced(self, places: np.ndarray, right: np.ndarray, classes: int, estimator: str, about: str) -> Row:
        """The mean over classes of the share that is right of each."""
        member = np.eye(classes)[places]
        value = float(((member * right[:, None]).sum(0) / member.sum(0)).mean())
        counts = self.samples.counts
        with np.errstate(invalid="ignore"):
            rounds = (
                np.nanmean((counts @ (member * right[:, None])) / (counts @ member), axis=1) if len(counts) else []
            )
        interval = bootstrap_interval(value, rounds, (0.0, 1.0))
        if right.all() or not right.any():
            interval = right_interval(right, counts)
        return self._row("linear_probe_balanced_accuracy", value, interval, estimator, about)

    def _shuffled_labels(self, places: np.ndarray, strength: float, score: float, about: str) -> list[Row]:
        """Two halves of the folds in place of all of them: how much is learned from says nothing of labels that say nothing."""
        halves = self.fold % 2
        null = []
        for order in permutations(len(places), self.work.permutations, self.work.seed):
            drawn = places[order]
            try:
                answers = held_out_answers(self.values, drawn, halves, strength, _NULL_TOLERANCE, _NULL_ITERATIONS)
            except DoesNotApply as reason:
                return [self.features.refusal(ACCURACY, f"with shuffled labels, {reason}", part=SHUFFLED)]
            null.append(float((answers == drawn).mean()))
        return self._null_rows(ACCURACY, score, null, f"{about};C={strength:g};halves")

    def _null_rows(self, metric: str, score: float, null: Sequence[float], about: str) -> list[Row]:
        found = np.asarray(null, np.float64)
        if not len(found) or not math.isfinite(score):
            return []
        low, high = percentile_interval(found)
        how = f"labels shuffled, {len(found)} rounds"
        return [
            self.features.row(
                metric, float(found.mean()), low=low, high=high, part=SHUFFLED, estimator=how, convention=about
            ),
            self.features.row(
                P_VALUE, permutation_p(score, found), part=f"of={metric}", estimator=how, convention=about
            ),
        ]  # fmt: skip

    def _selectivity(self, right: np.ndarray, strength: float, about: str) -> list[Row]:
        control = self.samples.control
        if isinstance(control, str):
            return [self.features.refusal("selectivity", control)] if control else []
        used = np.unique(control, return_inverse=True)[1]
        try:
            learned = held_out_answers(self.values, used, self.fold, strength) == used
        except DoesNotApply as reason:
            return [self.features.refusal("selectivity", f"in the control task, {reason}")]
        where = f"{about};C={strength:g}"
        how = "held out, one draw of labels for clusters of raw inputs"
        counts = self.samples.counts
        gain = right.astype(np.float64) - learned
        interval = bootstrap_interval(
            float(gain.mean()), counts @ gain / len(gain) if len(counts) else [], (-1.0, 1.0)
        )
        return [
            self._row(ACCURACY, float(learned.mean()), right_interval(learned, counts), how, where, part=CONTROL),
            self._row("selectivity", float(gain.mean()), interval, how, where),
        ]

    def _description(self, places: np.ndarray, strength: float, about: str) -> list[Row]:
        if not self.work.fractions:
            return []
        code = online_code(self.values, places, strength, len(self.work.path), self.work.fractions)
        counts = self.samples.counts
        rounds = (counts @ code.bits + code.model_bits) / len(code.bits) if len(counts) else np.empty(0)
        where = f"{about};C={strength:g};blocks={len(self.work.fractions)}"
        lengths = bootstrap_interval(code.length, rounds, (0.0, math.inf))
        uniform = code.uniform_length
        ratios = Interval(uniform / lengths.high, uniform / lengths.low if lengths.low else math.inf, lengths.how)
        how = "online code"
        return [
            self._row("description_length", code.length, lengths, how, where),
            self._row("description_length", uniform, Interval(), "log2 of the number of classes", where, part="code=uniform"),
            self._row("compression", uniform / code.length, ratios, how, where),
        ]  # fmt: skip

    # -- amounts ---------------------------------------------------------------------------------------------

    def file_amounts(self, findings: Findings) -> None:
        """All rows and arrays where targets are amounts."""
        targets = np.asarray(self.samples.targets, np.float64)
        found = cross_validated_ridge(self.values, targets, self.fold, self.work.path)
        score = explained(targets, found.predicted)
        rounds = [_weighted_r2(targets, found.predicted, counts) for counts in self.samples.counts]
        interval = bootstrap_interval(score, rounds, (-math.inf, 1.0))
        findings.rows.append(self._row(R2, score, interval, "held out, ridge, C by inner folds", self.about))
        findings.rows += self._penalty(found, self.about)
        orders = list(permutations(len(targets), self.work.permutations, self.work.seed))
        strength = self.work.path[found.main_choice]
        if orders:
            null = permuted_r2(self.values, orders, targets, self.fold, strength)
            findings.rows += self._null_rows(R2, score, null.tolist(), f"{self.about};C={strength:g}")
        self._keep(found, found.predicted, findings)

    # -- both ------------------------------------------------------------------------------------------------

    def _row(self, metric: str, value: float, interval: Interval, estimator: str, about: str, **more: Any) -> Row:
        return scored_row(self.features, metric, value, interval, estimator, _NUMBER, convention=about, **more)

    def _penalty(self, found: CrossValidated, about: str) -> list[Row]:
        """Which C the folds chose, and by how much the training samples flatter."""
        path = self.work.path
        chosen = [path[place] for place in found.chosen]
        edge = ";at the end of the path" if found.main_choice in (0, len(path) - 1) and len(path) > 1 else ""
        gaps = (found.train_score - found.held_out_score)[np.arange(len(chosen)), found.chosen]
        vacuous = (
            {"status": "vacuous", "reason": "features are as many as training samples: any labels could be fitted"}
            if self.fits_anything
            else {}
        )
        return [
            self.features.row(
                "linear_probe_regularization", path[found.main_choice], low=min(chosen), high=max(chosen),
                estimator="median over folds, with the least and the largest", convention=about + edge,
            ),
            self.features.row(
                "linear_probe_overfit", found.overfit, low=float(gaps.min()), high=float(gaps.max()),
                estimator="mean over folds, with the least and the largest", convention=about, **vacuous,
            ),
        ]  # fmt: skip

    def _unfinished(self, found: CrossValidated) -> str:
        return f";fits stopped at the limit of iterations={found.unfinished}" if found.unfinished else ""

    @property
    def _place(self) -> str:
        return f"{encode_path_part(self.features.probe)}/{encode_path_part(self.features.layer)}"

    def _keep(self, found: CrossValidated, answers: np.ndarray, findings: Findings) -> None:
        lines = (found.train_score, found.held_out_score, found.held_out_loss, found.weight_norm)
        path = np.stack([item.mean(0) for item in lines])
        about = {
            "layer": self.features.layer,
            "probe": self.features.probe,
            "features": self.features.values.shape[1],
        }
        findings.arrays |= {
            f"{self._place}/predicted": NamedArray((SAMPLE,), answers, about),
            f"{self._place}/path": NamedArray(
                ("path_quantity", "regularization"), path,
                about | {"quantity": list(QUANTITIES), "C": list(self.work.path), "chosen": self.work.path[found.main_choice]},
            ),
        }  # fmt: skip

    def _keep_confusion(self, values: np.ndarray, counts: np.ndarray, findings: Findings) -> None:
        probe = encode_path_part(self.features.probe)
        about = {"layer": self.features.layer, "probe": self.features.probe}
        names = {"class_names": list(self.features.class_names)}
        findings.arrays[f"{probe}/class"] = NamedArray(("class",), values, names)
        findings.arrays[f"{self._place}/confusion"] = NamedArray(("class", "predicted_class"), counts, about)


def keep_samples(features: Features, samples: ProbeSamples, findings: Findings) -> None:
    """Arrays `<probe>/sample_id|target|fold`: which samples were held out when, for all layers alike."""
    probe = encode_path_part(features.probe)
    about = {"probe": features.probe, "folds": samples.folds.count}
    for name, values in (
        ("sample_id", features.sample_id[samples.folds.kept]),
        ("target", samples.targets),
        ("fold", samples.folds.fold),
    ):
        findings.arrays[f"{probe}/{name}"] = NamedArray((SAMPLE,), values, about)


def _weighted_r2(targets: np.ndarray, predicted: np.ndarray, counts: np.ndarray) -> float:
    mean = counts @ targets / counts.sum()
    spread = counts @ (targets - mean) ** 2
    return float(1.0 - counts @ (targets - predicted) ** 2 / spread) if spread > 0 else math.nan
