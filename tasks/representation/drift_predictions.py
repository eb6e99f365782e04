"""What `drift` files of the predictions: which changed, which samples were learned and forgotten, and when."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import Findings, NamedArray
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.representation.drift_layers import change_rows, refusals
from stratascope.tasks.representation.forgetting import (
    NEVER,
    TRANSITIONS,
    LearningHistory,
    chance_of_churn,
    learning_course,
    learning_history,
    relative_change,
    transitions,
)
from stratascope.tasks.representation.losses import mean_interval, wilson_interval
from stratascope.tasks.representation.prediction_paths import (
    PredictionPath,
    class_targets,
    number_targets,
    prediction_path,
)

if TYPE_CHECKING:
    from stratascope.tasks.representation.drift import DriftOptions

_OF_ALL = ("prediction_churn", "final_agreement")
_OF_TARGETS = (
    *(f"{name}_fraction" for name in TRANSITIONS),
    "forgetting_events", "forgotten_fraction", "never_learned_fraction", "unforgettable_fraction", "first_learned_step",
)  # fmt: skip
PLACE = "@output"
"""The predictions' arrays stand where a layer's would."""


def file_predictions(
    contexts: list[CheckpointContext],
    probe: Probe,
    task: str,
    options: DriftOptions,
    since: int | None,
    findings: Findings,
) -> None:
    """Add rows and arrays of the predictions on `probe`; rows with the reason for what the task does not have."""
    name = probe.name
    try:
        path = prediction_path(contexts, probe, task, options.max_samples, options.seed)
    except DoesNotApply as reason:
        metrics = ("prediction_change",) if task == "regression" else (*_OF_ALL, *_OF_TARGETS)
        findings.rows += refusals(metrics, str(reason), probe=name)
        return
    findings.rows += [
        Row("prediction_churn" if task != "regression" else "prediction_change", probe=name, step=step,
            status="does_not_apply", reason=reason)
        for step, reason in path.missing.items()
    ]  # fmt: skip
    place = f"{encode_path_part(name)}/{encode_path_part(PLACE)}"
    about = {"probe": name, "class_names": list(probe.class_names)}
    findings.arrays[f"{place}/step"] = NamedArray(("step",), np.asarray(path.steps, np.int64), about)
    findings.arrays[f"{place}/sample_id"] = NamedArray(("drift_sample",), probe.sample_id[path.rows], about)
    if task == "regression":
        _regression(path, probe, options, since, place, findings)
        return
    predicted = np.stack(path.predicted)
    findings.arrays[f"{place}/predicted"] = NamedArray(("step", "drift_sample"), predicted, about)
    if len(path.steps) < 2:
        reason_text = f"the outputs of one checkpoint are stored (step {path.steps[0]}); change needs two"
        findings.rows += refusals((*_OF_ALL, *_OF_TARGETS), reason_text, probe=name)
        return
    findings.rows += _churn(path, predicted, name, since)
    try:
        targets = class_targets(probe, path.rows)
    except DoesNotApply as reason:
        findings.rows += refusals(_OF_TARGETS, str(reason), probe=name)
        churn = (predicted[1:] != predicted[:-1]).mean(1)
        findings.rows += change_rows(path.steps[1:], churn, "prediction_churn", options, {"probe": name})
        return
    _learning(path, predicted, targets, name, options, since, place, findings)


def _share(metric: str, chosen: np.ndarray, **where: Any) -> Row:
    """The share of the samples for which bool `chosen` (sample,) holds."""
    low, high = wilson_interval(int(chosen.sum()), len(chosen))
    return Row(metric, float(chosen.mean()), low=low, high=high, n=len(chosen), estimator="95 % Wilson", **where)


def _pairs(steps: list[int], since: int | None) -> Iterator[tuple[int, int, str]]:
    """(earlier place, later place, part) of the checkpoints that are held against one another."""
    for later in range(1, len(steps)):
        yield later - 1, later, ""
    if since is not None and since in steps[:-1]:
        yield steps.index(since), len(steps) - 1, "against=last_audit"


def _churn(path: PredictionPath, predicted: np.ndarray, probe: str, since: int | None) -> Iterator[Row]:
    for earlier, later, part in _pairs(path.steps, since):
        before, after = predicted[earlier], predicted[later]
        where: dict[str, Any] = {"probe": probe, "step": path.steps[later], "other_step": path.steps[earlier]}
        yield _share("prediction_churn", before != after, part=part, **where)
        if not part:
            chance = chance_of_churn(before, after)
            yield Row("prediction_churn", chance, part="null=chance", n=len(before), **where)
    for place, step in enumerate(path.steps[:-1]):
        same = predicted[place] == predicted[-1]
        yield _share("final_agreement", same, probe=probe, step=step, other_step=path.steps[-1])


def _learning(
    path: PredictionPath, predicted: np.ndarray, targets: np.ndarray, probe: str, options: DriftOptions,
    since: int | None, place: str, findings: Findings,
) -> None:  # fmt: skip
    for earlier, later, part in _pairs(path.steps, since):
        where: dict[str, Any] = {
            "probe": probe,
            "step": path.steps[later],
            "other_step": path.steps[earlier],
            "part": part,
        }
        for kind, chosen in transitions(predicted[earlier], predicted[later], targets).items():
            findings.rows.append(_share(f"{kind}_fraction", chosen, **where))
    right = predicted == targets
    course, history = learning_course(right), learning_history(right)
    lost = np.zeros(right.shape, np.int64)
    lost[1:] = np.cumsum(right[:-1] & ~right[1:], axis=0)
    learned = np.logical_or.accumulate(right, axis=0)
    everyone = np.arange(len(targets))
    for number, step in enumerate(path.steps):
        where = {"probe": probe, "step": step, "part": ""}
        low, high = mean_interval(lost[number].astype(np.float64), everyone)
        findings.rows.append(
            Row("forgetting_events", float(course.events[number]), low=max(low, 0.0), high=high, n=len(targets),
                estimator="95 % normal", **where)
        )  # fmt: skip
        findings.rows += [
            _share("forgotten_fraction", lost[number] > 0, **where),
            _share("never_learned_fraction", ~learned[number], **where),
            _share("unforgettable_fraction", learned[number] & (lost[number] == 0), **where),
        ]
    findings.rows.append(_first_learned(path, history, probe))
    findings.rows += change_rows(path.steps, right.mean(1), "accuracy", options, {"probe": probe})
    steps = np.append(np.asarray(path.steps, np.int64), NEVER)
    sample = ("drift_sample",)
    arrays = {
        "target": targets,
        "forgetting_events": history.events,
        "first_learned_step": steps[history.first_learned],
        "settled_step": steps[history.settled],
    }
    for name, values in arrays.items():
        findings.arrays[f"{place}/{name}"] = NamedArray(sample, values, {"probe": probe, "never": NEVER})


def _first_learned(path: PredictionPath, history: LearningHistory, probe: str) -> Row:
    """The median over the samples that were learned, with the interval that the binomial gives its rank."""
    learned = np.sort(np.asarray(path.steps)[history.first_learned[~history.never_learned]])
    if not len(learned):
        return refusals(("first_learned_step",), "no sample was right at any checkpoint", probe=probe)[0]
    from scipy.stats import binom

    low, high = (int(place) for place in binom.ppf([0.025, 0.975], len(learned), 0.5))
    ends = learned[[max(low - 1, 0), min(high, len(learned) - 1)]]
    return Row(
        "first_learned_step", float(np.median(learned)), probe=probe, n=len(learned), low=float(ends[0]),
        high=float(ends[1]), estimator="median; 95 % binomial",
    )  # fmt: skip


def _regression(
    path: PredictionPath, probe: Probe, options: DriftOptions, since: int | None, place: str, findings: Findings
) -> None:
    name = probe.name
    findings.rows += refusals(
        (*_OF_ALL, *_OF_TARGETS), "a regression has no classes; see prediction_change", probe=name
    )
    try:
        targets = number_targets(probe, path.rows, path.predicted[0].shape[1])
    except DoesNotApply as reason:
        findings.rows += refusals(("prediction_change",), str(reason), probe=name)
        return
    if len(path.steps) < 2:
        reason_text = f"the outputs of one checkpoint are stored (step {path.steps[0]}); change needs two"
        findings.rows += refusals(("prediction_change",), reason_text, probe=name)
        return
    everyone = np.arange(len(targets))
    changed = np.full((len(path.steps), len(targets)), np.nan, np.float32)
    for earlier, later, part in _pairs(path.steps, since):
        change = relative_change(path.predicted[earlier], path.predicted[later], targets)
        low, high = mean_interval(change, everyone)
        findings.rows.append(
            Row("prediction_change", float(np.sqrt(change.mean())), probe=name, step=path.steps[later], part=part,
                low=float(np.sqrt(max(low, 0.0))), high=float(np.sqrt(high)), n=len(targets),
                estimator="95 % normal of the square", other_step=path.steps[earlier])
        )  # fmt: skip
        if not part:
            changed[later] = np.sqrt(change)
    findings.arrays[f"{place}/prediction_change"] = NamedArray(("step", "drift_sample"), changed, {"probe": name})
    curve = np.sqrt(np.nanmean(changed[1:].astype(np.float64) ** 2, axis=1))
    findings.rows += change_rows(path.steps[1:], curve, "prediction_change", options, {"probe": name})
