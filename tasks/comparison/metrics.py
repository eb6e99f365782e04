"""The numbers that a comparison files in the ledger, and what they mean (see docs/comparison.md)."""

from __future__ import annotations

from stratascope.tasks.analysis import Metric

COMPARISON_METRICS = (
    Metric("mean_difference", "that of the metric", "(-∞, ∞)", "Mean over the runs of A less mean over the runs of B, of the metric that `part` names.", "interval: Welch 1947"),
    Metric("hedges_g", "standard deviation", "(-∞, ∞)", "The same difference in pooled standard deviations of the runs, less its small-sample bias.", "Hedges 1981; interval: Steiger and Fouladi 1997", "one shift and scale of both groups"),
    Metric("p_value", "probability", "[0, 1]", "Chance of a difference at least as large if A and B do not differ; `part` tells the test.", "Welch 1947; Fisher 1935; McNemar 1947"),
    Metric("adjusted_p_value", "probability", "[0, 1]", "The deciding p-value corrected for the size of its family; `convention` tells how.", "Holm 1979; Benjamini and Hochberg 1995"),
    Metric("share_difference", "fraction", "[-1, 1]", "Share of the probe's samples that A has right less that of B, by majority of each group's runs.", "interval: Newcombe 1998, method 10"),
    Metric("loss_difference", "that of the loss", "(-∞, ∞)", "Mean over samples of A's loss less B's, each the mean over a group's runs.", "interval: percentile bootstrap over samples"),
    Metric("disagreement", "fraction", "[0, 1]", "Share of samples on which two runs answer differently, mean over the pairs within A, within B, and between.", "Fort et al. 2019"),
    Metric("only_one_right", "samples", "[0, ∞)", "Samples that one group has right and the other has not; `part` tells which.", "", "permutation of samples"),
)  # fmt: skip
TRADITIONAL_METRICS = (
    Metric("traditional_accuracy", "fraction", "[0, 1]", "Share of test samples that a traditional method has right, learned on raw inputs, principal components, or a network's features.", "interval: Wilson 1927"),
    Metric("feature_gain", "fraction", "[-1, 1]", "How much more accurate the same method is on a group's network features than on the better of raw inputs and principal components; mean over the runs.", "interval: percentile bootstrap over samples"),
)  # fmt: skip
