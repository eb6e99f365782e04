"""What `stratascope train` reads."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from stratascope.storage.model_spec import ModelSpec
from stratascope.storage.probes import ProbeSpec


class Part(BaseModel):
    """Base of all parts: unknown keys are refused, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OptimizerSpec(Part):
    """The step rule. `temperature` above 0 adds Langevin noise of variance 2 · rate · temperature."""

    name: Literal["sgd", "adam"] = "sgd"
    rate: float = Field(default=0.05, gt=0)
    momentum: float = Field(default=0.9, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    temperature: float = Field(default=0.0, ge=0)


class ScheduleSpec(Part):
    """How the rate changes: over all steps (`cosine`), by milestones, or as 1 / epoch."""

    name: Literal["constant", "cosine", "milestones", "inverse"] = "constant"
    warm_up_epochs: float = Field(default=0.0, ge=0)
    milestones: tuple[float, ...] = ()
    """Epochs after which the rate is multiplied by `factor`."""
    factor: float = 0.1


class CorruptionSpec(Part):
    """What is spoilt in the training data, drawn once for each sample from the run's seed."""

    labels: float = Field(default=0.0, ge=0, le=1)
    """Share of the samples whose label becomes a uniformly random one (Zhang et al. 2017)."""
    pixels: Literal["none", "shuffled", "random", "gaussian"] = "none"
    """One permutation for all images, one for each, or noise of the data's mean and spread instead."""


class AugmentationSpec(Part):
    """Random changes of each training image in each epoch."""

    crop: int = Field(default=0, ge=0)
    """Pixels of zero padding before a random crop to the old size."""
    flip: bool = False


class LossSpec(Part):
    """Cross-entropy, or a multi-class hinge with `margin`."""

    name: Literal["cross_entropy", "margin", "mse"] = "cross_entropy"
    margin: float = Field(default=1.0, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)


class StopSpec(Part):
    """Training ends after `epochs`, or `steps`, or when the epoch's training loss is below a target."""

    epochs: float = Field(default=10, gt=0)
    steps: int | None = None
    loss_below: float | None = None


class CheckpointSpec(Part):
    """When weights are written: step 0, `log_spaced` early steps, every so many epochs, and at the end."""

    log_spaced: int = Field(default=6, ge=0)
    """So many steps, evenly spaced in their logarithm, between step 1 and the end of the first epoch."""
    every_epochs: float = Field(default=1.0, gt=0)
    steps: tuple[int, ...] = ()


class TrainConfig(Part):
    """One training run."""

    name: str = "run"
    directory: str
    train: ProbeSpec
    test: ProbeSpec
    model: ModelSpec
    batch_size: int = Field(default=64, ge=1)
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    loss: LossSpec = LossSpec()
    corruption: CorruptionSpec = CorruptionSpec()
    augmentation: AugmentationSpec = AugmentationSpec()
    stop: StopSpec = StopSpec()
    checkpoints: CheckpointSpec = CheckpointSpec()
    seed: int = 0
    twin: dict[str, Any] | None = None
    """`{replace: K}`: a second run, `<directory>-twin`, with sample K replaced by the first one left out."""
    threads: int = Field(default=1, ge=1)
