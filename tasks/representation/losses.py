"""How outputs are held against targets: which rows count, what each of them loses, and how sure a mean is.

Shared by the analyses that need the loss. A loss of the user's own, `module:name`, is called as
`loss(outputs, targets)` with torch tensors of the rows that count, padding left out: (row, …) each. It returns
either one loss for each row (row,), or their mean as a single number; batches are then weighted by their rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stratascope.errors import AnalysisError, DoesNotApply
from stratascope.storage.factories import load_object

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""A class target of this value does not count, as in torch."""
_NORMAL = 1.959964


@dataclass(frozen=True)
class Rows:
    """What counts of a batch: samples, or the real tokens of all samples one after the other."""

    outputs: Tensor
    """(row, class) for class targets, (row, …) for numbers."""
    targets: Tensor
    """int64 (row,), or numbers of the shape of `outputs`."""
    owner: Tensor
    """int64 (row,): the sample within the batch that each row belongs to."""


def name_of(task: str, loss: str) -> tuple[str, str]:
    """The convention and the unit under which the ledger files a loss."""
    against = "" if task == "regression" else " against one-hot targets"
    if loss == "mae":
        return f"mean absolute error{against}", "target unit"
    if loss == "mse" or (loss == "cross_entropy" and task == "regression"):
        return f"mean squared error{against}", "squared target unit"
    return ("cross-entropy", "nat") if loss == "cross_entropy" else (loss, "as defined by the loss")


def counted_rows(outputs: Tensor, targets: Tensor, mask: np.ndarray | None, task: str) -> Rows:
    """The rows of a batch that count; `mask` is bool (sample, token), true for real tokens.

    Raises DoesNotApply where outputs and targets do not fit the task.
    """
    import torch

    if task == "regression":
        return _numbers(outputs, targets, mask)
    wanted = 3 if task == "tokens" else 2
    if outputs.ndim != wanted or targets.is_floating_point() or outputs.shape[:-1] != targets.shape:
        what = (
            "(sample, token, class) and (sample, token)" if task == "tokens" else "(sample, class) and (sample,)"
        )
        raise DoesNotApply(
            f"task {task!r} needs outputs and whole-number targets of shape {what}; they are "
            f"{tuple(outputs.shape)} and {tuple(targets.shape)}. Set `task`, or `model: {{output: …}}`."
        )
    classes = outputs.shape[-1]
    counts = targets != IGNORED
    if task == "tokens" and mask is not None:
        counts = counts & torch.from_numpy(np.ascontiguousarray(mask))
    owner = torch.arange(len(outputs)).reshape(-1, *[1] * (targets.ndim - 1)).expand(targets.shape)[counts]
    rows = Rows(outputs[counts], targets[counts].long(), owner)
    if len(owner) and (int(rows.targets.min()) < 0 or int(rows.targets.max()) >= classes):
        raise DoesNotApply(
            f"the targets run from {int(rows.targets.min())} to {int(rows.targets.max())}, but the network's outputs "
            f"are scores of {classes} classes."
        )
    return rows


def _numbers(outputs: Tensor, targets: Tensor, mask: np.ndarray | None) -> Rows:
    import torch

    if outputs.shape != targets.shape:
        if outputs[0].numel() != targets[0].numel() or max(outputs.ndim, targets.ndim) > 2:
            raise DoesNotApply(
                f"task 'regression' needs outputs and targets of one shape; they are {tuple(outputs.shape)} and "
                f"{tuple(targets.shape)}."
            )
        outputs = outputs.reshape(targets.shape)
    owner = torch.arange(len(outputs))
    if mask is not None and outputs.ndim >= 2 and outputs.shape[:2] == mask.shape:
        real = torch.from_numpy(np.ascontiguousarray(mask))
        return Rows(outputs[real], targets[real].to(outputs.dtype), owner[:, None].expand(real.shape)[real])
    return Rows(outputs, targets.to(outputs.dtype), owner)


def losses_of(rows: Rows, task: str, loss: str, folder: Path | None = None) -> Tensor:
    """The loss of each row (row,), or the mean (scalar) where a loss of the user's own gives no more.

    Squared and absolute errors are means over a row's numbers; of classes, against one-hot targets. Task
    `regression` with `cross_entropy`, the default, means squared errors. Raises AnalysisError where the user's
    own loss fails.
    """
    import torch
    from torch.nn import functional

    if ":" in loss:
        return _own_loss(rows, loss, folder)
    if loss == "cross_entropy" and task != "regression":
        return functional.cross_entropy(rows.outputs, rows.targets, reduction="none")
    targets = rows.targets
    if task != "regression":
        targets = functional.one_hot(targets, rows.outputs.shape[-1]).to(rows.outputs.dtype)
    error = rows.outputs - targets
    error = error.abs() if loss == "mae" else torch.square(error)
    return error.flatten(1).mean(1) if error.ndim > 1 else error


def _own_loss(rows: Rows, loss: str, folder: Path | None) -> Tensor:
    import torch

    try:
        found = torch.as_tensor(load_object(loss, folder)(rows.outputs, rows.targets))
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError) as error:
        raise AnalysisError(
            f"loss {loss!r} failed on outputs {tuple(rows.outputs.shape)} and targets {tuple(rows.targets.shape)}: "
            f"{type(error).__name__}: {error}."
        ) from error
    if found.numel() == 1:
        return found.reshape(()) if len(rows.owner) != 1 else found.reshape(1)
    if found.shape != (len(rows.owner),):
        raise AnalysisError(
            f"loss {loss!r} returned shape {tuple(found.shape)}; expected one loss for each of the "
            f"{len(rows.owner)} rows, or their mean."
        )
    return found


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a share of independent trials (Wilson 1927, eq. 4)."""
    share = right / count
    spread = _NORMAL**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = _NORMAL / (1 + spread) * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def mean_interval(values: np.ndarray, owner: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean of `values` (row,), whose rows of one `owner` (row,) may depend on one another.

    Normal, from the sums of each owner's deviations (Liang and Zeger 1986); with one row an owner it is the mean
    ± 1.96 standard errors. NaN for fewer than two owners.
    """
    mean = float(values.mean())
    _, place = np.unique(owner, return_inverse=True)
    sums = np.bincount(place, values - mean)
    if len(sums) < 2:
        return math.nan, math.nan
    half = _NORMAL * math.sqrt(len(sums) / (len(sums) - 1) * float((sums**2).sum())) / len(values)
    return mean - half, mean + half
