"""What a network answers on the same samples at every checkpoint, from its stored outputs."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from stratascope.errors import DamagedStoreError, DoesNotApply, StoreError
from stratascope.storage.probes import Probe
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.representation.features import chosen_rows


@dataclass
class PredictionPath:
    """The predictions on chosen samples at each step that has any."""

    rows: np.ndarray
    """int64 (sample,): their places in the probe, in an order that depends on their ids alone."""
    steps: list[int] = field(default_factory=list)
    predicted: list[np.ndarray] = field(default_factory=list)
    """For each step int32 (sample,) classes, or float32 (sample, number) of a regression."""
    missing: dict[int, str] = field(default_factory=dict)
    """Steps without predictions, and why."""


def prediction_path(
    contexts: list[CheckpointContext], probe: Probe, task: str, max_samples: int, seed: int
) -> PredictionPath:
    """The class with the highest score, or the numbers themselves where `task` is `regression`, at each step.

    Raises DoesNotApply where the task has no such predictions, or no step has any.
    """
    if task == "none":
        raise DoesNotApply("the task is 'none': outputs are no predictions")
    if task == "tokens":
        raise DoesNotApply("the task is 'tokens': a sample has no single prediction to follow")
    path = PredictionPath(chosen_rows(probe, max_samples, seed))
    order = np.argsort(path.rows)
    for context in contexts:
        try:
            outputs = context.activations(probe.name, "@output", "full", path.rows[order])
        except DamagedStoreError:
            raise
        except StoreError:
            path.missing[context.step] = "the outputs are not stored for this step"
            continue
        reason = _unfit(outputs, task, path)
        if reason:
            path.missing[context.step] = reason
            continue
        found = outputs.astype(np.float32).reshape(len(outputs), -1) if task == "regression" else _classes(outputs)
        back = np.empty_like(found)
        back[order] = found
        path.steps.append(context.step)
        path.predicted.append(back)
    if not path.steps:
        reasons = dict.fromkeys(path.missing.values())
        raise DoesNotApply("; ".join(reasons) or "there is no checkpoint")
    return path


def _classes(scores: np.ndarray) -> np.ndarray:
    found: np.ndarray = scores.argmax(1).astype(np.int32)
    return found


def _unfit(outputs: np.ndarray, task: str, path: PredictionPath) -> str:
    if not len(outputs):
        return "the probe has no samples"
    bad = int((~np.isfinite(outputs.reshape(len(outputs), -1))).any(1).sum())
    if bad:
        return f"{bad} of {len(outputs)} outputs are not finite"
    if task != "regression" and (outputs.ndim != 2 or outputs.shape[1] < 2):
        return f"the outputs have the shape {outputs.shape}; expected scores (sample, class)"
    if task == "regression" and path.predicted and outputs[0].size != path.predicted[0].shape[1]:
        return "the outputs have another size than at earlier steps"
    return ""


def class_targets(probe: Probe, rows: np.ndarray) -> np.ndarray:
    """int64 (sample,): the true class of each of `rows`. Raises DoesNotApply where there is none."""
    targets = probe.targets
    if targets is None:
        raise DoesNotApply(f"probe {probe.name!r} has no targets")
    if targets.ndim != 1 or targets.dtype.kind not in "iub":
        raise DoesNotApply(f"the targets of probe {probe.name!r} are no classes of samples")
    if len(targets) and targets.min() < 0:
        raise DoesNotApply(f"probe {probe.name!r} has targets below 0")
    return np.asarray(targets[rows], np.int64)


def number_targets(probe: Probe, rows: np.ndarray, width: int) -> np.ndarray:
    """float64 (sample, number): what a regression is to answer for each of `rows`. Raises DoesNotApply."""
    if probe.targets is None:
        raise DoesNotApply(f"probe {probe.name!r} has no targets: their spread is the unit of change")
    found = np.asarray(probe.targets[rows], np.float64).reshape(len(rows), -1)
    if found.shape[1] != width:
        raise DoesNotApply(f"the outputs have {width} numbers a sample, the targets {found.shape[1]}")
    if not np.isfinite(found).all():
        raise DoesNotApply(f"targets of probe {probe.name!r} are not finite")
    if found.var(0).mean() == 0:
        raise DoesNotApply("the targets do not vary")
    return found
