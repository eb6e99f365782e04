"""What traditional methods answer on raw inputs, held out in the folds of the layers' probes, and which layers beat them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stratascope.tasks.comparison.paired import (
    PairedCounts,
    difference_of_shares,
    mcnemar_test,
    paired_counts,
)
from stratascope.tasks.comparison.statistics import Estimate, TestResult, corrected
from stratascope.tasks.comparison.traditional import learn
from stratascope.tasks.representation.probe_classifiers import cross_validated, prepared

Method = Literal["logistic_regression", "rbf_svm", "random_forest", "k_nearest_neighbors"]
METHODS: tuple[Method, ...] = ("logistic_regression", "rbf_svm", "random_forest", "k_nearest_neighbors")


def baseline_answers(
    method: Method,
    inputs: np.ndarray,
    places: np.ndarray,
    fold: np.ndarray,
    path: Sequence[float],
    common_scale: bool,
    seed: int,
) -> np.ndarray:
    """int64 (sample,): held-out classes that `method` gives, from raw `inputs` (sample, number) and classes `places`.

    Logistic regression is the very probe that layers get. The others are those of `compare`: their constants are chosen
    by three inner folds, every feature has mean 0 and spread 1, or, with `common_scale`, one spread for all.
    """
    if method == "logistic_regression":
        return cross_validated(prepared(inputs), places, fold, path).predicted
    found = np.empty(len(places), np.int64)
    plain = inputs.astype(np.float32)
    for held_out in np.unique(fold):
        test = fold == held_out
        known = plain[~test], places[~test]
        found[test] = learn(method, known, plain[test], common_scale=common_scale, seed=seed).predicted
    return found


@dataclass(frozen=True)
class Margin:
    """By how much one layer's probe is oftener right than a method on raw inputs, on the same samples."""

    counts: PairedCounts
    """A is the layer."""
    difference: Estimate
    test: TestResult
    corrected: float = float("nan")
    """The p-value corrected for the number of layers (Holm 1979)."""


def margins_over(right: np.ndarray, layers: Mapping[str, np.ndarray]) -> dict[str, Margin]:
    """The margin of each of `layers`, bool (sample,) by name, over a method that has `right` (sample,) right.

    McNemar's exact test, corrected over the layers for which it can be made.
    """
    counts = {name: paired_counts(own, right) for name, own in layers.items()}
    tests = {name: mcnemar_test(item) for name, item in counts.items()}
    adjusted = corrected([item.p for item in tests.values()], "holm")
    return {
        name: Margin(item, difference_of_shares(item), tests[name], float(p))
        for (name, item), p in zip(counts.items(), adjusted, strict=True)
    }


def first_beyond(margins: Mapping[str, Margin], level: float) -> str | None:
    """The first layer of `margins`, which stand in the order of execution, that is above 0 beyond chance."""
    for name, margin in margins.items():
        if margin.difference.value > 0 and margin.corrected < level:
            return name
    return None
