"""Losses and accuracies of scores, for single labels and for tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from stratascope.errors import ConfigurationError
from stratascope.tasks.training.config import LossSpec, PenaltySpec


def check_targets(outputs: Tensor, targets: Tensor, spec: LossSpec) -> None:
    """Raise ConfigurationError where `loss_of` cannot compare `outputs` with `targets`."""
    if targets.is_floating_point():
        if spec.name not in ("mse", "mae"):
            raise ConfigurationError(f"loss {spec.name!r} needs targets that are classes, but these are numbers.")
        if outputs.shape != targets.shape:
            raise ConfigurationError(
                f"outputs of shape {tuple(outputs.shape)} do not fit targets of shape {tuple(targets.shape)}."
            )
        return
    if spec.name == "mae":
        raise ConfigurationError("loss 'mae' needs targets that are numbers, but these are classes: use 'mse'.")
    if outputs.shape[:-1] != targets.shape:
        raise ConfigurationError(
            f"scores of shape {tuple(outputs.shape)} do not fit targets of shape {tuple(targets.shape)}: expected "
            "one row of class scores for each target; `model: {output: …}` names the part of the output to use."
        )
    counted = targets[targets != spec.ignore_index] if spec.ignore_index is not None else targets
    if counted.numel() and not 0 <= int(counted.min()) <= int(counted.max()) < outputs.shape[-1]:
        raise ConfigurationError(
            f"targets run from {int(counted.min())} to {int(counted.max())}, but the network gives scores for the "
            f"classes 0 to {outputs.shape[-1] - 1}: give it as many outputs as there are classes."
        )


def loss_of(outputs: Tensor, targets: Tensor, spec: LossSpec) -> Tensor:
    """Mean loss (scalar) of scores (sample, …, class) for classes (sample, …), or of numbers for numbers."""
    if targets.is_floating_point():
        return (
            functional.mse_loss(outputs, targets) if spec.name == "mse" else functional.l1_loss(outputs, targets)
        )
    scores, wanted, counted = _flat(outputs, targets, spec)
    if spec.name == "mse":
        losses = ((scores - _own(scores, wanted).to(scores.dtype)) ** 2).mean(-1)
    elif spec.name == "margin":
        losses = functional.relu(spec.margin - margins(scores, wanted))
    else:
        smoothing = spec.label_smoothing
        losses = functional.cross_entropy(scores, wanted, reduction="none", label_smoothing=smoothing)
        if spec.penalty is not None and spec.penalty.weight:
            losses = losses + margin_penalties(scores, wanted, spec.penalty)
    return _mean(losses, counted)


def margins(scores: Tensor, wanted: Tensor) -> Tensor:
    """Score of the wanted class minus the best other one: (sample, class), (sample,) → (sample,)."""
    own = _own(scores, wanted)
    return scores.gather(-1, wanted[:, None])[:, 0] - scores.masked_fill(own, -math.inf).amax(-1)


def margin_penalties(scores: Tensor, wanted: Tensor, spec: PenaltySpec) -> Tensor:
    """Penalties (sample,) on the margins of the softmax outputs (Sun et al. 2016); see PenaltySpec."""
    chances = scores.softmax(-1)
    if spec.kind == "nearest":
        return spec.weight * (1 - margins(chances, wanted)) ** 2
    own = _own(scores, wanted)
    gaps = 1 - (chances.gather(-1, wanted[:, None]) - chances)
    return spec.weight * (gaps**2).masked_fill(own, 0.0).sum(-1) / (scores.shape[-1] - 1)


def cross_entropy_of(outputs: Tensor, targets: Tensor, spec: LossSpec) -> Tensor:
    """Mean cross-entropy (scalar) in nats, whatever the loss is; NaN for targets that are numbers."""
    if targets.is_floating_point():
        return torch.tensor(math.nan)
    scores, wanted, counted = _flat(outputs, targets, spec)
    return _mean(functional.cross_entropy(scores, wanted, reduction="none"), counted)


def accuracy_of(outputs: Tensor, targets: Tensor, spec: LossSpec) -> Tensor:
    """Share (scalar) of targets whose class has the highest score; NaN for targets that are numbers."""
    if targets.is_floating_point():
        return torch.tensor(math.nan)
    scores, wanted, counted = _flat(outputs, targets, spec)
    return _mean((scores.argmax(-1) == wanted).double(), counted)


def target_count(targets: Tensor, spec: LossSpec) -> int:
    """How many targets a mean over these stands for."""
    if targets.is_floating_point() or spec.ignore_index is None:
        return targets.numel()
    return int((targets != spec.ignore_index).sum())


def _flat(outputs: Tensor, targets: Tensor, spec: LossSpec) -> tuple[Tensor, Tensor, Tensor | None]:
    """Scores (target, class), classes (target,), and which of them count (None: all)."""
    scores, wanted = outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1)
    if spec.ignore_index is None:
        return scores, wanted, None
    counted = wanted != spec.ignore_index
    return scores, wanted.masked_fill(~counted, 0), counted


def _own(scores: Tensor, wanted: Tensor) -> Tensor:
    """The one-hot rows of `wanted`, bool (target, class), by a comparison that torch.func.vmap can do."""
    return torch.arange(scores.shape[-1], device=scores.device) == wanted[:, None]


def _mean(values: Tensor, counted: Tensor | None) -> Tensor:
    # Weights and no boolean index: the number of targets is then known to torch.func.vmap.
    return values.mean() if counted is None else (values * counted).sum() / counted.sum()
