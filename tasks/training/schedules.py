"""When things change and when weights are written: pure functions of the step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from stratascope.tasks.training.config import CheckpointSpec, EvaluationSpec, NoiseSpec, ScheduleSpec


def factor(spec: ScheduleSpec, step: int, steps_per_epoch: int, last_step: int) -> float:
    """What the scheduled value is multiplied by in the update that follows `step` updates.

    With e = step / steps_per_epoch: `cosine` (1 + cos(π step / last_step)) / 2; `linear` 1 − step / last_step;
    `milestones` factor to the number of milestones ≤ e; `exponential` factor to the number of whole
    `every_epochs` in e; `inverse` 1 / (1 + whole epochs); `inverse_step` 1 / (1 + step). In the warm-up:
    (step + 1) / (steps of the warm-up), at most 1.
    """
    epoch = step / steps_per_epoch
    if epoch < spec.warm_up_epochs:
        return min(1.0, (step + 1) / (spec.warm_up_epochs * steps_per_epoch))
    if spec.name == "cosine":
        return 0.5 * (1 + math.cos(math.pi * step / last_step))
    if spec.name == "linear":
        return 1 - step / last_step
    if spec.name == "milestones":
        return spec.factor ** sum(epoch >= milestone for milestone in spec.milestones)
    if spec.name == "exponential":
        # A sum of rounded steps may fall just short of a whole number.
        return spec.factor ** math.floor(epoch / spec.every_epochs + 1e-9)
    if spec.name == "inverse":
        return 1 / (1 + math.floor(epoch))
    if spec.name == "inverse_step":
        return 1 / (1 + step)
    return 1.0


def noise_variance(spec: NoiseSpec | None, rate: float, step: int, steps_per_epoch: int, last_step: int) -> float:
    """Variance of the Langevin noise in the update that follows `step` updates; 2 · rate · temperature, or its own."""
    if spec is None:
        return 0.0
    if spec.temperature is not None:
        return 2 * rate * spec.temperature
    return float(spec.variance or 0.0) * factor(spec.schedule, step, steps_per_epoch, last_step)


def checkpoint_steps(spec: CheckpointSpec, steps_per_epoch: int, last_step: int) -> frozenset[int]:
    """The steps, 0 and `last_step` among them, after which weights are written."""
    early: Any = np.geomspace(1, max(1, steps_per_epoch), spec.log_spaced + 1)[:-1] if spec.log_spaced else []
    wanted = {0, last_step, *spec.steps}
    wanted |= {round(float(step)) for step in early}
    wanted |= {round(epoch * steps_per_epoch) for epoch in spec.epochs}
    if spec.every_epochs is not None:
        wanted |= regular_steps(spec.every_epochs, steps_per_epoch, last_step)
    return frozenset(step for step in wanted if 0 <= step <= last_step)


def evaluation_steps(
    spec: EvaluationSpec, checkpoints: frozenset[int], steps_per_epoch: int, last_step: int
) -> frozenset[int]:
    """The steps, 0 and `last_step` among them, after which losses and accuracies are measured."""
    regular = regular_steps(spec.every_epochs, steps_per_epoch, last_step)
    return frozenset({0, last_step} | regular | (checkpoints if spec.at_checkpoints else frozenset()))


def regular_steps(every_epochs: float, steps_per_epoch: int, last_step: int) -> set[int]:
    """Steps 1 to `last_step` that end a whole number of `every_epochs`, rounded, each at most once."""
    apart = every_epochs * steps_per_epoch
    return {max(1, round(number * apart)) for number in range(1, math.floor(last_step / apart + 1e-9) + 1)}
