"""The loss at each step of a sequence, or once of the whole of it, with its gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from stratascope.errors import DoesNotApply
from stratascope.tasks.given_samples import GivenSamples
from stratascope.tasks.representation.losses import IGNORED, Rows, counted_rows, losses_of
from stratascope.tasks.vision.sample_gradients import LossKind


@dataclass(frozen=True)
class StepLosses:
    """Losses of one batch, on the processor, carrying a gradient where the outputs did."""

    values: Tensor
    """(sample, time) where there is a loss at each step, (sample, 1) where there is one of the whole; 0 where none counts."""
    counts: Tensor
    """bool of that shape: where a loss counts."""
    stepwise: bool

    def whole(self) -> Tensor:
        """(sample,): the mean over what counts."""
        return (self.values * self.counts).sum(1) / self.counts.sum(1).clamp(min=1)


def step_losses(outputs: Tensor, samples: GivenSamples, kind: LossKind) -> StepLosses:
    """The losses of `outputs` (sample, …) of `samples`. Raises DoesNotApply where outputs and targets do not fit the task,
    or the loss gives a mean alone."""
    assert samples.targets is not None
    outputs, targets = outputs.cpu(), torch.as_tensor(samples.targets)
    counts = stepwise_counts(tuple(outputs.shape), targets, samples.mask, kind.task)
    if counts is None:
        rows = counted_rows(outputs, targets, samples.mask, kind.task)
        losses = _losses(rows, kind)
        counts = torch.bincount(rows.owner, minlength=len(samples)) > 0
        total = torch.zeros(len(samples), dtype=losses.dtype).index_add(0, rows.owner, losses)
        mean = total / torch.bincount(rows.owner, minlength=len(samples)).clamp(min=1)
        return StepLosses(mean[:, None], counts[:, None], False)
    if kind.task == "tokens":
        rows = counted_rows(outputs, targets, samples.mask, kind.task)
    else:
        owner = torch.arange(len(outputs))[:, None].expand(counts.shape)[counts]
        rows = Rows(outputs[counts], targets[counts].to(outputs.dtype), owner)
    losses = _losses(rows, kind)
    places = torch.nonzero(counts, as_tuple=True)
    values = torch.zeros(counts.shape, dtype=losses.dtype).index_put(places, losses)
    return StepLosses(values, counts, True)


def stepwise_counts(outputs: tuple[int, ...], targets: Tensor, mask: object, task: str) -> Tensor | None:
    """bool (sample, time): where a loss counts; None where there is one loss of the whole sequence.

    `outputs` is the shape of the network's outputs, of which the first axis, of samples, is not looked at.
    """
    if task == "tokens":
        counts = targets != IGNORED
    elif task == "regression" and len(outputs) == 3 and tuple(targets.shape[1:]) == outputs[1:]:
        counts = torch.ones(targets.shape[:2], dtype=torch.bool)
    else:
        return None
    given = None if mask is None else torch.as_tensor(mask)
    return counts & given if given is not None and given.shape == counts.shape else counts


def _losses(rows: Rows, kind: LossKind) -> Tensor:
    losses = losses_of(rows, kind.task, kind.loss, kind.folder)
    if not losses.ndim:
        raise DoesNotApply(f"loss {kind.loss!r} gives a mean alone: it must return one loss for each row.")
    return losses
