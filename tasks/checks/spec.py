"""The `checks:` key of the configuration."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from stratascope.errors import ConfigurationError, did_you_mean
from stratascope.storage.names import checked_name

Severity = Literal["info", "warn", "fail"]


class ChangeSpec(BaseModel):
    """How far a metric may move, and against what."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    against: Literal["previous", "first"] = "previous"
    """The audited checkpoint before this one, or the run's first."""
    max_absolute: float | None = None
    max_relative: float | None = None

    @model_validator(mode="after")
    def _has_a_bound(self) -> Self:
        if self.max_absolute is None and self.max_relative is None:
            raise ValueError("a change needs `max_absolute` or `max_relative`")
        return self


class CheckSpec(BaseModel):
    """One check: either a ready-made `suite`, or a condition on one metric."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: str | None = None
    name: str | None = None
    metric: str | None = None
    run: str = "*"
    layer: str = "*"
    probe: str = "*"
    part: str = "*"
    steps: tuple[int | None, int | None] | None = None
    """First and last step that it applies to; null leaves that end open."""
    min: float | None = None
    max: float | None = None
    equals: float | None = None
    change: ChangeSpec | None = None
    severity: Severity = "fail"
    after: int = Field(default=1, ge=1)
    """Raises its outcome only after so many checkpoints in a row."""

    @field_validator("name")
    @classmethod
    def _name_is_allowed(cls, name: str | None) -> str | None:
        try:
            return name if name is None else checked_name(name, "check")
        except ConfigurationError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _is_a_suite_or_a_condition(self) -> Self:
        if self.suite is not None:
            if self.suite not in SUITES:
                raise ValueError(
                    f"there is no suite {self.suite!r}; there is {', '.join(SUITES)}."
                    + did_you_mean(self.suite, SUITES)
                )
            return self
        if self.name is None or self.metric is None:
            raise ValueError("a check needs either `suite`, or `name` and `metric`")
        if self.min is None and self.max is None and self.equals is None and self.change is None:
            raise ValueError(f"check {self.name!r} has no condition: give `min`, `max`, `equals` or `change`")
        return self


SUITES: dict[str, tuple[CheckSpec, ...]] = {}
SUITES["soundness"] = (
    CheckSpec(name="finite", metric="non_finite_count", max=0),
    CheckSpec(name="finite-loss", metric="loss", max=1e30),
    CheckSpec(name="dead-units", metric="dead_fraction", max=0.9, severity="warn"),
    CheckSpec(name="saturated-units", metric="saturated_fraction", max=0.9, severity="warn"),
    CheckSpec(name="duplicate-checkpoint", metric="duplicate_of", max=0, severity="warn"),
    CheckSpec(name="shared-tensors", metric="shared_tensors", max=0, severity="warn"),
    CheckSpec(name="misplaced-checkpoint", metric="misplaced_score", max=1, severity="warn"),
)
"""Ready-made checks. A condition of a suite that finds no row of its metric at all says nothing."""
