"""What `stratascope train` reads."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from stratascope.errors import ConfigurationError
from stratascope.storage.model_spec import ModelSpec
from stratascope.storage.names import checked_name
from stratascope.storage.probes import ProbeSpec


class Part(BaseModel):
    """Base of all parts: unknown keys are refused, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class OptimizerSpec(Part):
    """The step rule: SGD with momentum, Adam, or Adam with decoupled weight decay."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    rate: float = Field(default=0.05, gt=0)
    momentum: float = Field(default=0.9, ge=0)
    """Of `sgd` only."""
    nesterov: bool = False
    betas: tuple[float, float] = (0.9, 0.999)
    """Of `adam` and `adamw` only."""
    weight_decay: float = Field(default=0.0, ge=0)
    clip_norm: float | None = Field(default=None, gt=0)
    """The batch gradient is scaled down to at most this norm."""


class ScheduleSpec(Part):
    """How a value changes over the run: a factor that multiplies it, 1 at the start (`schedules.factor`)."""

    name: Literal["constant", "cosine", "linear", "milestones", "exponential", "inverse", "inverse_step"] = (
        "constant"
    )
    warm_up_epochs: float = Field(default=0.0, ge=0)
    """So long the value rises in equal steps to its full size."""
    milestones: tuple[float, ...] = ()
    """`milestones`: epochs after which the value is multiplied by `factor`."""
    factor: float = Field(default=0.1, gt=0)
    """`milestones` and `exponential`: what the value is multiplied by each time."""
    every_epochs: float = Field(default=1.0, gt=0)
    """`exponential`: how often."""


class NoiseSpec(Part):
    """Langevin noise: normal noise of a variance v is added to each trained weight after each step.

    Either `temperature` T, the inverse of the usual β: v = 2 · rate · T at the step's own rate; or `variance`
    times its own `schedule`.
    """

    temperature: float | None = Field(default=None, ge=0)
    variance: float | None = Field(default=None, ge=0)
    schedule: ScheduleSpec = ScheduleSpec()

    @model_validator(mode="after")
    def _has_one_size(self) -> Self:
        if (self.temperature is None) == (self.variance is None):
            raise ValueError("noise needs either `temperature` or `variance`")
        if self.temperature is not None and self.schedule != ScheduleSpec():
            raise ValueError("noise by `temperature` follows the rate; a `schedule` needs `variance`")
        return self


class CorruptionSpec(Part):
    """What is spoilt in the data, drawn once for each sample from its id and the seed (Zhang et al. 2017)."""

    labels: float = Field(default=0.0, ge=0, le=1)
    """Share of the training samples whose label becomes a uniformly random one (which may be the right one)."""
    pixels: Literal["none", "shuffled", "random", "gaussian"] = "none"
    """Training and test images alike: one permutation for all, one for each, or normal noise of the training
    data's mean and spread in their place."""


class AugmentationSpec(Part):
    """Random changes of each training image, new in each step."""

    crop: int = Field(default=0, ge=0)
    """Pixels of zero padding before a random crop to the old size."""
    flip: bool = False
    """Left and right are exchanged in half of the images."""
    cutout: int = Field(default=0, ge=0)
    """Side in pixels of a square of zeros at a random place, cut off at the border (DeVries and Taylor 2017)."""

    @property
    def is_active(self) -> bool:
        """Whether anything is changed at all."""
        return bool(self.crop or self.flip or self.cutout)


class PenaltySpec(Part):
    """A margin penalty that is added to the cross-entropy (Sun et al. 2016).

    With p the softmax output: `nearest` adds weight · (1 − (p_y − max p_k))², `all` adds the mean over the other
    classes k of weight · (1 − (p_y − p_k))².
    """

    kind: Literal["nearest", "all"]
    weight: float = Field(ge=0)


class LossSpec(Part):
    """Cross-entropy, a multi-class hinge with `margin` (Crammer and Singer 2001), squared or absolute error.

    For class targets `mse` compares the scores with the one-hot vector, `mae` needs targets that are numbers.
    """

    name: Literal["cross_entropy", "margin", "mse", "mae"] = "cross_entropy"
    margin: float = Field(default=1.0, gt=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    penalty: PenaltySpec | None = None
    ignore_index: int | None = None
    """Targets of this class (padding) count in no loss and no accuracy."""

    @model_validator(mode="after")
    def _options_belong_to_cross_entropy(self) -> Self:
        if self.name != "cross_entropy" and (self.penalty is not None or self.label_smoothing):
            raise ValueError("`penalty` and `label_smoothing` go with the loss cross_entropy only")
        return self


class StopSpec(Part):
    """Training ends after `steps` (or, without it, `epochs`), or at an evaluation that meets the target."""

    epochs: float = Field(default=10, gt=0)
    steps: int | None = Field(default=None, ge=1)
    cross_entropy_below: float | None = Field(default=None, gt=0)
    """Target for the mean cross-entropy of the evaluated training samples."""


class CheckpointSpec(Part):
    """When weights are written: at step 0, at the end, and where any of these says so."""

    log_spaced: int = Field(default=6, ge=0)
    """So many steps, evenly spaced in their logarithm, from step 1 towards the end of the first epoch."""
    every_epochs: float | None = Field(default=1.0, gt=0)
    epochs: tuple[float, ...] = ()
    steps: tuple[int, ...] = ()


class TraceSpec(Part):
    """How much of the way is recorded in `trace.parquet`."""

    every: int = Field(default=1, ge=1)
    """One row for every so many steps; steps that are evaluated always have one."""
    example_gradients_every: int | None = Field(default=None, ge=1)
    """Every so many steps the gradient norms of the single samples of the batch are recorded too."""


class EvaluationSpec(Part):
    """When and on what loss, cross-entropy and accuracy are measured; always at the start and the end."""

    every_epochs: float = Field(default=1.0, gt=0)
    at_checkpoints: bool = True
    train_samples: int | None = Field(default=None, ge=1)
    """Only the first so many training samples."""
    test_samples: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=500, ge=1)


class SeedSpec(Part):
    """Seeds that differ from the run's own `seed`; each drives a stream of its own (`seeds.stream`)."""

    weights: int | None = Field(default=None, ge=0)
    samples: int | None = Field(default=None, ge=0)
    order: int | None = Field(default=None, ge=0)
    corruption: int | None = Field(default=None, ge=0)
    augmentation: int | None = Field(default=None, ge=0)
    dropout: int | None = Field(default=None, ge=0)
    noise: int | None = Field(default=None, ge=0)


class TwinSpec(Part):
    """A second run, `<directory>-twin-<replace>`, that differs from the first in one training sample.

    It starts from the same weights and sees the same places in the same order; the sample at place `replace` is
    exchanged for sample `index` of those that `samples` leaves out (`held_out`) or of the test set (`test`).
    `same` exchanges nothing: the two runs must then be equal to the bit.
    """

    replace: int = Field(default=0, ge=0)
    source: Literal["held_out", "test", "same"] = "held_out"
    index: int = Field(default=0, ge=0)


class TrainConfig(Part):
    """One training run."""

    name: str = "run"
    directory: str
    train: ProbeSpec
    test: ProbeSpec
    samples: int | None = Field(default=None, ge=1)
    """So many training samples, a seeded draw; a smaller draw is part of a larger one."""
    model: ModelSpec
    frozen: tuple[str, ...] = ()
    """Patterns (`fc2*`) of the weights that are not trained."""
    initial_scale: float = Field(default=1.0, ge=0)
    """All initial weights are multiplied by this; 0 starts a linear model at the origin."""
    batch_size: int | Literal["full"] = 64
    optimizer: OptimizerSpec = OptimizerSpec()
    schedule: ScheduleSpec = ScheduleSpec()
    noise: NoiseSpec | None = None
    loss: LossSpec = LossSpec()
    corruption: CorruptionSpec = CorruptionSpec()
    augmentation: AugmentationSpec = AugmentationSpec()
    stop: StopSpec = StopSpec()
    checkpoints: CheckpointSpec = CheckpointSpec()
    evaluation: EvaluationSpec = EvaluationSpec()
    trace: TraceSpec = TraceSpec()
    seed: int = Field(default=0, ge=0)
    seeds: SeedSpec = SeedSpec()
    twin: TwinSpec | None = None
    threads: int = Field(default=1, ge=1)
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    """How images lie in memory; `channels_last` makes convolutions on a CPU about a fifth faster."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """`bfloat16` computes layers that bear it in 16 bits in training (weights and evaluation stay float32)."""

    @field_validator("name")
    @classmethod
    def _name_is_allowed(cls, name: str) -> str:
        try:
            return checked_name(name, "run")
        except ConfigurationError as error:
            raise ValueError(str(error)) from None

    @field_validator("batch_size")
    @classmethod
    def _batch_has_samples(cls, size: int | str) -> int | str:
        if isinstance(size, int) and size < 1:
            raise ValueError("a batch needs at least one sample")
        return size
