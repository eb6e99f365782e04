"""What the network answers on the probe: loss, accuracy, confidence and confusion, over all and by class."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from stratascope.errors import DoesNotApply
from stratascope.storage.archive import join_path
from stratascope.storage.ledger import Row
from stratascope.storage.names import step_directory
from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import Analysis, CaptureRequest, Findings, Metric, NamedArray, Options, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.representation.gaps import gap_rows
from stratascope.tasks.representation.losses import (
    counted_rows,
    losses_of,
    mean_interval,
    name_of,
    wilson_interval,
)
from stratascope.tasks.representation.outputs_drawing import draw

_SLICE_BYTES = 32 << 20
"""So much of the stored outputs is read at once."""
_CONFUSION_LIMIT = 200


class OutputsOptions(Options):
    """How finely calibration is judged, and up to how many classes each gets rows of its own."""

    bins: int = Field(default=15, ge=2)
    class_limit: int = Field(default=200, ge=0)


@dataclass
class Answers:
    """One number for each row that counts: a sample, or a real token."""

    losses: np.ndarray | None
    """float64 (row,); None where the loss gives its mean alone."""
    loss: float
    owner: np.ndarray
    """The probe's sample that each row belongs to."""
    bad: int = 0
    """Rows with an output that is not finite; nothing else is known then."""
    targets: np.ndarray | None = None
    predicted: np.ndarray | None = None
    confidence: np.ndarray | None = None
    among_five: np.ndarray | None = None
    classes: int = 0
    r_squared: float = float("nan")
    wrong_targets: int = 0

    def __len__(self) -> int:
        return len(self.owner)


def calibration_bins(confidence: np.ndarray, right: np.ndarray, bins: int) -> tuple[np.ndarray, ...]:
    """Rows, mean confidence and accuracy in each of `bins` equal-width bins; NaN where a bin is empty."""
    place = np.minimum((confidence * bins).astype(np.int64), bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        sure = np.bincount(place, confidence, bins) / count
        correct = np.bincount(place, right.astype(np.float64), bins) / count
    return count, sure, correct


def calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int) -> float:
    """Expected calibration error with equal-width bins (Guo et al. 2017, eq. 3)."""
    count, sure, correct = calibration_bins(confidence, right, bins)
    return float(np.nansum(count * np.abs(correct - sure)) / count.sum())


def compute(context: CheckpointContext, options: OutputsOptions) -> Findings:
    """Rows for every probe with targets; arrays `<probe>/confusion` (target, predicted) and `<probe>/calibration_…`.

    The stored outputs are read slice by slice. An output that is not finite makes all metrics `failed`.
    """
    findings = Findings()
    subject = context.subject
    for name, probe in context.probes.items():
        try:
            if subject.task == "none":
                raise DoesNotApply("the task is 'none': outputs are not held against targets.")
            if probe.targets is None:
                raise DoesNotApply(f"probe {name!r} has no targets.")
            answers = gather(context, name, probe)
        except DoesNotApply as reason:
            findings.rows += _unknown(name, "does_not_apply", str(reason))
            continue
        classes = subject.task != "regression"
        unit = "tokens" if subject.task == "tokens" else "samples"
        findings.rows.append(
            Row("non_finite_count", answers.bad, probe=name, part="of=outputs", unit=unit, n=len(answers))
        )
        if answers.bad or answers.wrong_targets:
            what = (
                f"{answers.bad} of {len(answers)} outputs" if answers.bad else f"{answers.wrong_targets} targets"
            )
            findings.rows += _unknown(name, "failed", f"{what} are not finite", classes)
            continue
        findings.rows += _whole(name, answers, subject.task, subject.loss, options)
        if classes:
            findings.rows += _by_class(name, answers, probe.class_names, subject, options)
            findings.arrays |= _arrays(name, answers, probe.class_names, options)
    findings.rows += gap_rows(findings.rows, context.probes)
    return findings


def gather(context: CheckpointContext, name: str, probe: Probe) -> Answers:
    """Hold the stored outputs of one probe against its targets. Raises DoesNotApply, AnalysisError."""
    import torch

    subject = context.subject
    parts: list[dict[str, Any]] = []
    fits = _Fit()
    for rows, stored in _slices(context, name):
        mask = getattr(probe, "target_mask_at", lambda rows: None)(rows)
        assert probe.targets is not None
        counted = counted_rows(torch.from_numpy(stored), torch.from_numpy(probe.targets[rows]), mask, subject.task)
        if not len(counted.owner):
            continue
        finite = torch.isfinite(
            counted.outputs.flatten(1) if counted.outputs.ndim > 1 else counted.outputs[:, None]
        )
        part: dict[str, Any] = {"owner": counted.owner.numpy() + rows.start, "bad": int((~finite.all(1)).sum())}
        part["wrong_targets"] = int((~torch.isfinite(counted.targets)).sum())
        if not part["bad"] and not part["wrong_targets"]:
            exact = type(counted)(counted.outputs.double(), counted.targets, counted.owner)
            if subject.task == "regression":
                exact = type(counted)(exact.outputs, exact.targets.double(), exact.owner)
                fits.add(exact.outputs.numpy(), exact.targets.numpy())
            else:
                part |= _class_answers(exact.outputs, exact.targets)
            losses = losses_of(exact, subject.task, subject.loss, Path(subject.folder))
            part["losses"] = losses.detach().double().numpy()
        parts.append(part)
    if not parts:
        raise DoesNotApply(f"no target of probe {name!r} counts: all are padding.")
    return _joined(parts, fits)


def _slices(context: CheckpointContext, name: str) -> Iterator[tuple[slice, np.ndarray]]:
    place = join_path("runs", context.run, step_directory(context.step), "activations", name, "@output", "full")
    _, shape, dtype, _ = context.store.array_info(place)
    size = max(1, _SLICE_BYTES // max(1, np.dtype(dtype).itemsize * int(np.prod(shape[1:], dtype=np.int64))))
    for start in range(0, shape[0], size):
        rows = slice(start, min(start + size, shape[0]))
        yield rows, context.store.read_slice(place, rows.start, rows.stop)


def _class_answers(scores: Any, targets: Any) -> dict[str, Any]:
    import torch

    own = scores.gather(1, targets[:, None])
    # Of equal scores that of the smaller class counts as higher, here as in argmax.
    earlier = torch.arange(scores.shape[1]) < targets[:, None]
    before = ((scores > own) | ((scores == own) & earlier)).sum(1)
    return {
        "targets": targets.numpy(),
        "predicted": scores.argmax(1).numpy(),
        "confidence": scores.softmax(1).amax(1).numpy(),
        "among_five": (before < 5).numpy(),
        "classes": scores.shape[1],
    }


class _Fit:
    """Sums for the coefficient of determination, by column of the targets."""

    def __init__(self) -> None:
        self.count, self.error = 0, 0.0
        self.shift: np.ndarray | None = None

    def add(self, outputs: np.ndarray, targets: np.ndarray) -> None:
        targets = targets.reshape(len(targets), -1)
        if self.shift is None:
            self.shift = targets.mean(0)
            self.total, self.squares = np.zeros_like(self.shift), np.zeros_like(self.shift)
        self.count += len(targets)
        self.error += float(((outputs.reshape(targets.shape) - targets) ** 2).sum())
        self.total += (targets - self.shift).sum(0)
        self.squares += ((targets - self.shift) ** 2).sum(0)

    def value(self) -> float:
        if not self.count:
            return float("nan")
        spread = float((self.squares - self.total**2 / self.count).sum())
        return 1.0 - self.error / spread if spread > 0 else float("nan")


def _joined(parts: list[dict[str, Any]], fits: _Fit) -> Answers:
    owner = np.concatenate([part["owner"] for part in parts])
    bad = sum(part["bad"] for part in parts)
    wrong = sum(part["wrong_targets"] for part in parts)
    if bad or wrong:
        return Answers(None, float("nan"), owner, bad, wrong_targets=wrong)
    by_row = all(part["losses"].ndim == 1 for part in parts)
    losses = np.concatenate([part["losses"] for part in parts]) if by_row else None
    mean = sum(float(part["losses"].mean()) * len(part["owner"]) for part in parts) / len(owner)
    answers = Answers(losses, mean, owner, r_squared=fits.value())
    if "targets" in parts[0]:
        for field in ("targets", "predicted", "confidence", "among_five"):
            setattr(answers, field, np.concatenate([part[field] for part in parts]))
        answers.classes = parts[0]["classes"]
    return answers


def _unknown(probe: str, status: Any, reason: str, classes: bool = True) -> list[Row]:
    metrics = ("loss", "accuracy", "confidence", "calibration_error") if classes else ("loss", "r_squared")
    return [Row(metric, probe=probe, status=status, reason=reason) for metric in metrics]


def _loss_row(probe: str, losses: np.ndarray | None, mean: float, owner: np.ndarray, kind: tuple[str, str], part: str) -> Row:  # fmt: skip
    shared: dict[str, Any] = {
        "probe": probe,
        "part": part,
        "n": len(owner),
        "convention": kind[0],
        "unit": kind[1],
    }
    if not np.isfinite(mean):
        count = int((~np.isfinite(losses)).sum()) if losses is not None else len(owner)
        return Row(
            "loss", status="failed", reason=f"the loss of {count} of {len(owner)} rows is not finite", **shared
        )
    low, high = mean_interval(losses, owner) if losses is not None else (np.nan, np.nan)
    return Row("loss", mean, low=low, high=high, estimator="95 % normal" if losses is not None else "", **shared)


def _whole(probe: str, answers: Answers, task: str, loss: str, options: OutputsOptions) -> list[Row]:
    rows = [_loss_row(probe, answers.losses, answers.loss, answers.owner, name_of(task, loss), "")]
    shared: dict[str, Any] = {"probe": probe, "n": len(answers)}
    if answers.predicted is None or answers.confidence is None:
        reason = "" if np.isfinite(answers.r_squared) else "the targets do not vary"
        status: Literal["ok", "does_not_apply"] = "does_not_apply" if reason else "ok"
        return [*rows, Row("r_squared", answers.r_squared, status=status, reason=reason, **shared)]
    right = answers.predicted == answers.targets
    rows.append(_share("accuracy", right, answers.owner, probe))
    if answers.classes > 10 and answers.among_five is not None:
        rows.append(_share("top5_accuracy", answers.among_five, answers.owner, probe))
    rows.append(Row("confidence", float(answers.confidence.mean()), **shared))
    error = calibration_error(answers.confidence, right, options.bins)
    return [*rows, Row("calibration_error", error, convention=f"{options.bins} equal bins", **shared)]


def _share(metric: str, right: np.ndarray, owner: np.ndarray, probe: str, part: str = "") -> Row:
    independent = len(np.unique(owner)) == len(owner)
    if independent:
        low, high = wilson_interval(int(right.sum()), len(right))
    else:
        low, high = (float(np.clip(end, 0.0, 1.0)) for end in mean_interval(right.astype(np.float64), owner))
    return Row(
        metric, float(right.mean()), probe=probe, part=part, n=len(right), low=low, high=high,
        estimator="95 % Wilson" if independent else "95 % normal over samples",
    )  # fmt: skip


def class_part(value: int, names: tuple[str, ...]) -> str:
    """How the ledger's `part` names a class: what would break its form is percent-encoded."""
    name = names[value] if value < len(names) and names.count(names[value]) == 1 else str(value)
    for sign in "%;=":
        name = name.replace(sign, f"%{ord(sign):02X}")
    return f"class={name}"


def _by_class(
    probe: str, answers: Answers, names: tuple[str, ...], subject: Any, options: OutputsOptions
) -> list[Row]:
    assert answers.targets is not None
    present = np.unique(answers.targets)
    if len(present) > options.class_limit:
        return []
    rows = []
    right = np.asarray(answers.predicted == answers.targets)
    kind = name_of(subject.task, subject.loss)
    for value in present:
        members = answers.targets == value
        part = class_part(int(value), names)
        owner = answers.owner[members]
        rows.append(_share("accuracy", right[members], owner, probe, part))
        if answers.losses is not None:
            losses = answers.losses[members]
            rows.append(_loss_row(probe, losses, float(losses.mean()), owner, kind, part))
    return rows


def _arrays(
    probe: str, answers: Answers, names: tuple[str, ...], options: OutputsOptions
) -> dict[str, NamedArray]:
    assert answers.targets is not None
    assert answers.predicted is not None
    assert answers.confidence is not None
    arrays = {}
    classes = answers.classes
    if classes <= _CONFUSION_LIMIT:
        pairs = np.bincount(answers.targets * classes + answers.predicted, minlength=classes**2)
        confusion = pairs.reshape(classes, classes).astype(np.int64)
        about = {"class_names": list(names)}
        arrays[f"{probe}/confusion"] = NamedArray(("target", "predicted"), confusion, about)
    found = calibration_bins(answers.confidence, answers.predicted == answers.targets, options.bins)
    for name, values in zip(("count", "confidence", "accuracy"), found, strict=True):
        arrays[f"{probe}/calibration_{name}"] = NamedArray(("bin",), values, {"bins": options.bins})
    return arrays


ANALYSIS = register(
    Analysis(
        name="outputs", version=2, scope="checkpoint", title="Outputs", question="How well does it answer?",
        options=OutputsOptions, compute=compute, draw=draw, needs=frozenset({"activations"}), default=True,
        request=lambda options: CaptureRequest(layers=("@output",)),
        metrics=(
            Metric("loss", "nat", "[0, ∞)", "Mean loss over the probe's samples, or over its real tokens: cross-entropy in nats, squared or absolute error in the target's units, or a loss of one's own; `convention` says which.", "interval over samples: Liang and Zeger 1986", "cross-entropy: adding a constant to all scores of a sample"),
            Metric("accuracy", "fraction", "[0, 1]", "Share of samples, or real tokens, whose highest score is that of the target; `part` gives it by class.", "interval: Wilson 1927, eq. 4; for tokens over samples", "increasing maps of a sample's scores"),
            Metric("top5_accuracy", "fraction", "[0, 1]", "Share whose target is among the five highest scores; only with more than ten classes.", "interval as for accuracy", "increasing maps of a sample's scores"),
            Metric("confidence", "probability", "[0, 1]", "Mean softmax probability of the predicted class.", "", "adding a constant to all scores of a sample"),
            Metric("calibration_error", "fraction", "[0, 1]", "Expected calibration error: mean distance of confidence and accuracy over bins of confidence, weighted by their rows.", "Guo et al. 2017, eq. 3", "adding a constant to all scores of a sample"),
            Metric("r_squared", "1", "(-∞, 1]", "Share of the targets' variance that the outputs explain, over all columns of the targets together; regression only.", "", "one shift and scale of outputs and targets alike"),
            Metric("generalization_gap", "fraction", "(-∞, ∞)", "How much worse a test probe does than a training probe: the difference in accuracy (part `of=accuracy;against=…`), or in loss and then in its unit (`of=loss;against=…`); above 0 where the test probe does worse.", "interval: Newcombe 1998, method 10; Zou and Donner 2008, eq. 4", "as for accuracy and loss"),
            Metric("non_finite_count", "samples", "[0, ∞)", "Samples, or real tokens, with an output that is NaN or infinite (part `of=outputs`).", "", "permutation of samples"),
        ),
    )
)  # fmt: skip
