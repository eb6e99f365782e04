"""The influence of training samples summed over a run's own checkpoints (TracIn): proponents, opponents, and what is learned alone."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import Field

from stratascope.errors import DamagedStoreError, DoesNotApply, StoreError
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.storage.recorded_traces import rates_after
from stratascope.tasks.analysis import Analysis, CaptureRequest, Findings, Metric, NamedArray, Options, register
from stratascope.tasks.contexts import SeriesContext
from stratascope.tasks.representation.drift_mosaics import probe_rows
from stratascope.tasks.representation.losses import wilson_interval
from stratascope.tasks.vision.influence_over_training_drawing import draw
from stratascope.tasks.vision.influence_scores import same_class_share
from stratascope.tasks.vision.training_trace import trace_of

_METRICS = (
    "summed_self_influence", "summed_proponent_same_class_fraction", "wrong_among_self_influential",
)  # fmt: skip


class InfluenceOverTrainingOptions(Options):
    """How the checkpoints are weighed, and how much is shown."""

    rate: Literal["trace", "one"] = "trace"
    """The step size by which each checkpoint counts: that of the first recorded update from it on, or 1 for all. Without a
    trace it is 1, and the convention says so."""
    interval: bool = False
    """Whether a checkpoint counts besides for the number of steps until the next one, as for checkpoints that lie unevenly."""
    proponents: int = Field(default=5, ge=1)
    """So many training samples of highest influence are asked for their class."""
    self_influential: float = Field(default=0.05, gt=0, le=1)
    """This share of the training samples, those of highest self-influence, is held against what the last checkpoint answers."""
    pictures: int = Field(default=8, ge=1)
    """So many test samples are shown, and so many training samples of highest self-influence."""


def step_weights(
    context: SeriesContext, options: InfluenceOverTrainingOptions, steps: list[int]
) -> tuple[np.ndarray, str]:
    """float64 (step,): what each checkpoint counts, and how that came about, in the form of a convention."""
    weights, said = np.ones(len(steps)), "rate=1"
    if options.rate == "trace":
        try:
            rates = rates_after(trace_of(context.subject), steps)
        except DoesNotApply:
            rates = np.full(len(steps), np.nan)
        if np.isfinite(rates).all():
            weights, said = rates, "rate=trace"
    if options.interval and len(steps) > 1:
        gaps = np.diff(np.array(steps, np.float64))
        weights = weights * np.append(gaps, 0.0)
        said += ";times=steps to the next checkpoint"
    return weights, said


def compute(context: SeriesContext, options: InfluenceOverTrainingOptions) -> Findings:
    """Rows for each pair of probes; arrays `<probe>/<train probe>/influence` (influence_sample, train_sample), `strength`
    (step, influence_sample), `<train probe>/self_influence` (train_sample,), `step` and `weight` (step,).
    """
    findings = Findings()
    steps = sorted(context.steps)
    weights, said = step_weights(context, options, steps)
    findings.arrays["step"] = NamedArray(("step",), np.array(steps, np.int64))
    findings.arrays["weight"] = NamedArray(("step",), weights, {"convention": said})
    last = context.at(steps[-1])
    for train_name, train_probe in context.probes.items():
        if train_probe.role != "train" or last.found("influence", train_name, "own_product") is None:
            continue
        own = _summed(context, weights, steps, train_name, "own_product")
        if own is None:
            findings.rows += _unknown(train_name, "influence has no finite numbers for all of its checkpoints")
            continue
        ids = last.found("influence", train_name, "train_sample_id")
        classes = last.found("influence", train_name, "train_target")
        assert ids is not None
        place = encode_path_part(train_name)
        findings.arrays[f"{place}/self_influence"] = NamedArray(("train_sample",), own[0].astype(np.float32))
        findings.arrays[f"{place}/train_sample_id"] = NamedArray(("train_sample",), ids)
        if classes is not None:
            findings.arrays[f"{place}/train_target"] = NamedArray(("train_sample",), classes)
        findings.rows.append(
            Row("summed_self_influence", float(own[0].mean()), probe=train_name, n=len(own[0]), convention=said)
        )
        predicted = _last_answers(context, train_name, ids) if classes is not None else None
        findings.rows += _wrong_rows(train_name, own[0], classes, predicted, options)
        if predicted is not None:
            findings.arrays[f"{place}/train_predicted"] = NamedArray(("train_sample",), predicted)
        for probe, shown in context.probes.items():
            if shown.role != "train":
                _one_pair(context, options, (weights, said, steps), probe, train_name, findings)
    if not findings.rows:
        findings.rows += _unknown("", "`influence` filed nothing to sum: it needs a probe with role `train` and a loss")  # fmt: skip
    return findings


def _one_pair(
    context: SeriesContext,
    options: InfluenceOverTrainingOptions,
    weighing: tuple[np.ndarray, str, list[int]],
    probe: str,
    train_name: str,
    findings: Findings,
) -> None:
    weights, said, steps = weighing
    summed = _summed(context, weights, steps, probe, train_name, "inner_product")
    about: dict[str, Any] = {"probe": probe, "part": f"train={train_name}", "convention": said}
    if summed is None:
        reason = "influence has no finite numbers for all of its checkpoints"
        findings.rows.append(
            Row("summed_proponent_same_class_fraction", status="does_not_apply", reason=reason, **about)
        )
        return
    influence, strength = summed
    last = context.at(steps[-1])
    place = f"{encode_path_part(probe)}/{encode_path_part(train_name)}"
    findings.arrays[f"{place}/influence"] = NamedArray(
        ("influence_sample", "train_sample"), influence.astype(np.float32)
    )
    findings.arrays[f"{place}/strength"] = NamedArray(("step", "influence_sample"), strength.astype(np.float32))
    for name in ("sample_id", "target"):
        values = last.found("influence", probe, name)
        if values is not None:
            findings.arrays[f"{encode_path_part(probe)}/{name}"] = NamedArray(("influence_sample",), values)
    target, train_target = (
        last.found("influence", probe, "target"),
        last.found("influence", train_name, "train_target"),
    )
    if target is None or train_target is None:
        reason = "the probes' targets are no classes"
        row = Row("summed_proponent_same_class_fraction", status="does_not_apply", reason=reason, **about)
    else:
        shares = same_class_share(influence, target, train_target, options.proponents)
        row = Row("summed_proponent_same_class_fraction", float(shares.mean()), n=len(shares), **about)
    findings.rows.append(row)


def _summed(
    context: SeriesContext, weights: np.ndarray, steps: list[int], *place: str
) -> tuple[np.ndarray, np.ndarray] | None:
    """The weighed sum over the steps, float64, and the summed sizes of each step's part (step, …); None if any is missing."""
    total: np.ndarray | None = None
    strength = []
    for weight, step in zip(weights, steps, strict=True):
        values = context.at(step).found("influence", *place)
        if values is None or not np.isfinite(values).all() or (total is not None and values.shape != total.shape):
            return None
        part = weight * values.astype(np.float64)
        total = part if total is None else total + part
        strength.append(np.abs(part).sum(-1))
    return None if total is None else (total, np.array(strength))


def _last_answers(context: SeriesContext, probe: str, ids: np.ndarray) -> np.ndarray | None:
    """int64 (sample,): the class that the last checkpoint gives; None where outputs are no scores of classes."""
    try:
        outputs = context.at(max(context.steps)).outputs(probe)
    except DamagedStoreError:
        raise
    except StoreError:
        return None
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return None
    return outputs.argmax(1)[probe_rows(context.probes[probe], ids)].astype(np.int64)


def _wrong_rows(
    probe: str,
    own: np.ndarray,
    classes: np.ndarray | None,
    predicted: np.ndarray | None,
    options: InfluenceOverTrainingOptions,
) -> list[Row]:
    """Of the training samples of highest self-influence, the share that the last checkpoint gets wrong; and of all."""
    if classes is None or predicted is None:
        reason = "the training samples have no classes, or the outputs of the last checkpoint are not stored"
        return [Row("wrong_among_self_influential", probe=probe, status="does_not_apply", reason=reason)]
    wrong = predicted != classes
    count = max(1, round(options.self_influential * len(own)))
    top = np.argsort(-own, kind="stable")[:count]
    rows = []
    for part, inside in (("", wrong[top]), ("null=all", wrong)):
        low, high = wilson_interval(int(inside.sum()), len(inside))
        rows.append(
            Row("wrong_among_self_influential", float(inside.mean()), probe=probe, part=part, n=len(inside), low=low, high=high, estimator="95 % Wilson")
        )  # fmt: skip
    return rows


def _unknown(probe: str, reason: str) -> list[Row]:
    return [Row(metric, probe=probe, status="does_not_apply", reason=reason) for metric in _METRICS]


_ORDER = "order of the samples"
ANALYSIS = register(
    Analysis(
        name="influence_over_training", version=1, scope="series", title="Influence over the training",
        question="Which training samples made the network answer as it does, and which did it learn alone?",
        options=InfluenceOverTrainingOptions, compute=compute, draw=draw, needs=frozenset({"trace"}), builds_on=("influence",),
        request=lambda options: CaptureRequest(layers=("@output",)),
        metrics=(
            Metric("summed_self_influence", "loss", "[0, ∞)", "Self-influence of the training samples summed over the checkpoints, each times its step size (1 without a trace, see the convention); mean over the samples.", "Pruthi et al. 2020, section 3", _ORDER),
            Metric("summed_proponent_same_class_fraction", "fraction", "[0, 1]", "Share of the training samples of highest summed influence on a test sample that have its class, mean over the test samples.", "Pruthi et al. 2020, section 3.2", _ORDER),
            Metric("wrong_among_self_influential", "fraction", "[0, 1]", "Share of the training samples of highest summed self-influence that the last checkpoint gets wrong; `null=all` is that of all of them. Wrong labels and rare cases gather there.", "Pruthi et al. 2020, section 4.1; interval: Wilson 1927, eq. 4", _ORDER),
        ),
    )
)  # fmt: skip
