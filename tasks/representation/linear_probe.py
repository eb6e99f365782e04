"""What a linear probe reads from each layer: held-out scores, penalties, controls, description length."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from pydantic import Field, field_validator

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.tasks.analysis import Analysis, Findings, Metric, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.representation.description_length import FRACTIONS
from stratascope.tasks.representation.features import (
    FeatureOptions,
    Features,
    chosen_rows,
    degenerate,
    each_layer,
    request_of,
    without_enough_classes,
)
from stratascope.tasks.representation.linear_probe_drawing import draw
from stratascope.tasks.representation.probe_controls import control_labels, inputs_in_order
from stratascope.tasks.representation.probe_findings import (
    ACCURACY,
    R2,
    LayerProbe,
    ProbeSamples,
    ProbeWork,
    keep_samples,
)
from stratascope.tasks.representation.probe_folds import Folds, copies_of, plain_folds, stratified_folds
from stratascope.tasks.representation.resampling import bootstrap_counts
from stratascope.tasks.representation.scored import P_VALUE


class LinearProbeOptions(FeatureOptions):
    """Which layers are probed, with which penalties, and against which controls."""

    regularization: tuple[float, ...] = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0, 1000.0)
    """Values of C, the inverse of the L2 penalty, for features of mean variance 1; inner folds choose among them."""
    folds: int = Field(default=5, ge=3, le=20)
    """So many parts are held out in turn; a class with fewer different samples is left out."""
    bootstrap: int = Field(default=200, ge=0)
    """Rounds of resampling behind each interval; 0 leaves the intervals out."""
    permutations: int = Field(default=9, ge=0)
    """Rounds of shuffled labels, each with all folds; 0 leaves that control out."""
    control_groups: int = Field(default=50, ge=0)
    """So many clusters of raw inputs get a random label each in the control task; 0 leaves selectivity out."""
    block_fractions: tuple[float, ...] = FRACTIONS
    """Up to which share of the samples each block of the online code reaches; none leaves description length out."""
    class_limit: int = Field(default=100, ge=2)
    """With more classes than these, no matrix of confusions."""

    @field_validator("regularization")
    @classmethod
    def _penalties_are_positive(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or not all(0 < item < np.inf for item in value):
            raise ValueError("values of C are positive numbers, one at least")
        return tuple(sorted(set(value)))

    @field_validator("block_fractions")
    @classmethod
    def _fractions_are_shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 < item <= 1 for item in value):
            raise ValueError("shares of the samples lie above 0 and are 1 at most")
        return tuple(sorted(set(value)))

    @property
    def work(self) -> ProbeWork:
        """What is asked of each layer."""
        return ProbeWork(self.regularization, self.permutations, self.block_fractions, self.class_limit, self.seed)


def compute(context: CheckpointContext, options: LinearProbeOptions) -> Findings:
    """Rows by layer; arrays `<probe>/sample_id|target|fold|class` and `<probe>/<layer>/predicted|path|confusion`.

    A layer of which nothing can be said has rows with the reason.
    """
    from threadpoolctl import threadpool_limits

    findings = Findings()
    is_regression = context.subject.task == "regression"
    metrics = _REFUSED[is_regression]
    chosen = {name: _Chosen(context, options, name) for name in context.probes}
    # Sums in BLAS depend on the number of threads: with one, every worker files the same bytes.
    with threadpool_limits(limits=1):
        for item in each_layer(context, options, metrics[0]):
            if isinstance(item, Row):
                findings.rows.append(item)
                continue
            try:
                samples = chosen[item.probe].of(item)
                probe = LayerProbe(item, samples, options.work)
                found = Findings()
                probe.file_amounts(found) if is_regression else probe.file_classes(found)
            except DoesNotApply as reason:
                findings.rows += [item.refusal(metric, str(reason)) for metric in metrics]
                continue
            keep_samples(item, samples, findings)
            findings.rows += found.rows
            findings.arrays |= found.arrays
    return findings


@dataclass
class _Chosen:
    """The samples of one probe, their folds and control labels: found once, for all layers."""

    context: CheckpointContext
    options: LinearProbeOptions
    probe: str

    def of(self, features: Features) -> ProbeSamples:
        """The samples for `features`. Raises DoesNotApply where the layer, or the targets, give a probe nothing to do."""
        if self.context.subject.task == "regression":
            if features.targets is None or features.targets.dtype.kind not in "iuf":
                raise DoesNotApply("the probe's targets are not one amount a sample")
            if not np.isfinite(features.targets).all():
                raise DoesNotApply("some targets are not finite")
            if np.ptp(features.targets) == 0:
                raise DoesNotApply("the targets are constant: there is nothing to predict")
        elif reason := without_enough_classes(features.classes, each=1):
            raise DoesNotApply(reason)
        least = 2 * self.options.folds
        if reason := degenerate(features.values[self.folds.kept], least=least):
            raise DoesNotApply(reason)
        return self.samples

    @cached_property
    def rows(self) -> np.ndarray:
        return chosen_rows(self.context.probes[self.probe], self.options.max_samples, self.options.seed)

    @cached_property
    def folds(self) -> Folds:
        shown = self.context.probes[self.probe]
        assert shown.targets is not None
        copies = copies_of(shown, self.rows)
        if self.context.subject.task == "regression":
            return plain_folds(copies, self.options.folds)
        classes = shown.targets[self.rows].astype(np.int64)
        found = stratified_folds(classes, copies, self.options.folds)
        if len(np.unique(classes[found.kept])) < 2:
            raise DoesNotApply(
                f"fewer than two classes have {self.options.folds} different samples, one for each fold"
            )
        return found

    @cached_property
    def samples(self) -> ProbeSamples:
        targets = self.context.probes[self.probe].targets
        assert targets is not None
        kept = targets[self.rows][self.folds.kept]
        counts = bootstrap_counts(len(kept), self.options.bootstrap, self.options.seed)
        return ProbeSamples(self.folds, kept, counts, self._control(kept))

    def _control(self, kept: np.ndarray) -> np.ndarray | str:
        if self.context.subject.task == "regression" or not self.options.control_groups:
            return ""
        try:
            inputs = inputs_in_order(self.context.probes[self.probe], self.rows[self.folds.kept])
        except DoesNotApply as reason:
            return f"the control task needs clusters of raw inputs: {reason}"
        places = np.unique(kept, return_inverse=True)[1]
        labels = control_labels(inputs, places, self.options.control_groups, self.options.seed)
        if len(np.unique(labels)) < 2:
            return "the control task drew one class for all clusters: more of them are needed"
        return labels


_REFUSED = (
    (ACCURACY, "linear_probe_balanced_accuracy", "selectivity", "description_length"),
    (R2,),
)
"""What has a row with the reason where nothing can be said, for classes and for amounts."""
_SIMILAR = "rotation, reflection, translation and uniform scaling of the features; order of the samples"
ACCURACY_METRIC = Metric(ACCURACY, "fraction", "[0, 1]", "Share of held-out samples whose class a multinomial logistic regression on the layer's features gives, its penalty chosen by inner folds. Parts: `null=shuffled_labels` with shuffled labels, `null=control_task` for random labels of look-alikes, `null=random_features` on untrained features as wide as the layer, `baseline=…` a traditional method on raw inputs.", "Alain and Bengio 2017; nested cross-validation: Varma and Simon 2006", _SIMILAR)  # fmt: skip

ANALYSIS = register(
    Analysis(
        name="linear_probe", version=1, scope="checkpoint", title="Linear probes", question="What can a linear classifier read from each layer?",
        options=LinearProbeOptions, compute=compute, draw=draw, needs=frozenset({"activations"}), request=request_of,
        metrics=(
            ACCURACY_METRIC,
            Metric("linear_probe_balanced_accuracy", "fraction", "[0, 1]", "The same, first within each class, then over classes alike: classes that are rare weigh as much as others.", "Brodersen et al. 2010", _SIMILAR),
            Metric(R2, "1", "(-∞, 1]", "Share of the targets' variance that a ridge regression on the layer's features explains on held-out samples; below 0 it is worse than the mean. Part `null=shuffled_labels`: with shuffled targets.", "Hoerl and Kennard 1970", _SIMILAR),
            Metric("linear_probe_regularization", "1", "(0, ∞)", "C, the inverse of the L2 penalty on coefficients of features with mean variance 1, that the inner folds chose.", "", _SIMILAR),
            Metric("linear_probe_overfit", "1", "[-1, ∞)", "By how much accuracy, or R², is higher on a probe's training samples than on those held out. Vacuous where features are as many as training samples.", "Cover 1965", _SIMILAR),
            Metric(P_VALUE, "1", "(0, 1]", "Share of rounds with permuted labels that reach the score that `part` names, the score itself counted in.", "Phipson and Smyth 2010", _SIMILAR),
            Metric("selectivity", "1", "[-1, 1]", "Accuracy of the probe less that of the same probe on a control task, in which clusters of raw inputs get random classes.", "Hewitt and Liang 2019, section 2", _SIMILAR),
            Metric("description_length", "bit per sample", "[0, ∞)", "Bits it takes to tell a sample's class given the layer's features, by a probe that is trained on all blocks told before; `code=uniform` is log2 of the number of classes.", "Voita and Titov 2020, eq. 3", _SIMILAR),
            Metric("compression", "1", "[0, ∞)", "Length of the uniform code by that of the online code: above 1 the layer's features help to tell the classes.", "Voita and Titov 2020, section 3.2", _SIMILAR),
        ),
    )
)  # fmt: skip
