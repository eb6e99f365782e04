"""The `checks:` key of the configuration."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from stratascope.errors import ConfigurationError, did_you_mean
from stratascope.storage.names import checked_name

Severity = Literal["info", "warn", "fail"]
SUITE_NAMES = ("soundness", "progress", "drift", "generalization")
_PATTERNS = ("run", "layer", "probe", "part")


class ReferenceSpec(BaseModel):
    """The checkpoint that others are held against: of this run at `step`, or of another `run`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str | None = None
    """Another run of the store; without `step`, at the same step or else the nearest one."""
    step: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if self.run is None and self.step is None:
            raise ValueError("a reference needs `run`, `step` or both")
        return self


class ChangeSpec(BaseModel):
    """How far a metric may move, and against what. Each bound speaks for itself; the tolerances hold for all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    against: Literal["previous", "first", "reference", "history"] = "previous"
    """The audited checkpoint before this one, the run's first, another checkpoint, or what the run did before."""
    reference: ReferenceSpec | None = None
    max_absolute: float | None = Field(default=None, ge=0)
    max_relative: float | None = Field(default=None, ge=0)
    """As a share of what it is held against."""
    min_relative: float | None = Field(default=None, gt=0)
    """It must have moved by at least this share, in `direction`."""
    max_robust_z: float | None = Field(default=None, gt=0)
    """Distance from the median of the earlier values in robust standard deviations."""
    max_growth: float | None = Field(default=None, gt=0)
    """The move since the checkpoint before, as a multiple of the largest earlier move."""
    change_point: float | None = Field(default=None, gt=0, lt=1)
    """The level of Pettitt's test for a shift within the window."""
    window: int = Field(default=20, ge=3, le=1000)
    """So many earlier checkpoints are the history."""
    min_points: int = Field(default=8, ge=3)
    """A history of fewer values judges nothing."""
    direction: Literal["either", "up", "down"] = "either"
    """Which moves count."""
    tolerance: float = Field(default=0.0, ge=0)
    """A move of at most this size never counts."""
    relative_tolerance: float = Field(default=0.0, ge=0)
    """A move of at most this share of what it is held against never counts."""
    beyond_interval: bool = False
    """A move that the two findings' intervals can explain never counts."""

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        of_history = {"max_robust_z", "max_growth", "change_point"}
        bounds = {"max_absolute", "max_relative", "min_relative", *of_history}
        given = {name for name in bounds if getattr(self, name) is not None}
        if not given:
            raise ValueError(f"a change needs one of {', '.join(sorted(bounds))}")
        if self.against != "history" and (misplaced := sorted(given & of_history)):
            raise ValueError(f"`{misplaced[0]}` needs `against: history`")
        if (self.against == "reference") != (self.reference is not None):
            raise ValueError("`against: reference` and `reference: {run, step}` go together")
        if self.min_points > self.window:
            raise ValueError(f"`min_points` {self.min_points} never fit into a `window` of {self.window}")
        if self.change_point is not None and self.change_point < (least := least_pettitt_p(self.window + 1)):
            raise ValueError(
                f"a `window` of {self.window} cannot give a p-value below {least:.2g}: widen it, or raise `change_point`"
            )
        return self


def least_pettitt_p(count: int) -> float:
    """The smallest p-value that Pettitt's approximation gives for `count` values: all of one half above the other."""
    largest = (count // 2) * (count - count // 2)
    return min(1.0, 2.0 * math.exp(-6.0 * largest**2 / (count**3 + count**2)))


class CheckSpec(BaseModel):
    """One check: either a ready-made `suite`, or a condition on one metric."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: str | None = None
    name: str | None = None
    metric: str | None = None
    run: str = "*"
    layer: str = "*"
    """A glob, or `re:` and a regular expression that matches the whole name; so for run, probe and part."""
    probe: str = "*"
    part: str = "*"
    steps: tuple[int | None, int | None] | None = None
    """First and last step that it judges; null leaves that end open. What is held against may lie outside."""
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

    @field_validator(*_PATTERNS)
    @classmethod
    def _pattern_is_sound(cls, pattern: str) -> str:
        if pattern.startswith("re:"):
            try:
                re.compile(pattern[3:])
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _is_a_suite_or_a_condition(self) -> Self:
        if self.suite is not None:
            if self.suite not in SUITE_NAMES:
                raise ValueError(
                    f"there is no suite {self.suite!r}; there is {', '.join(SUITE_NAMES)}."
                    + did_you_mean(self.suite, SUITE_NAMES)
                )
            if more := sorted(self.model_fields_set - {"suite"}):
                raise ValueError(f"a suite takes no `{more[0]}`: write the condition out under its own name")
            return self
        if self.name is None or self.metric is None:
            raise ValueError("a check needs either `suite`, or `name` and `metric`")
        if self.min is None and self.max is None and self.equals is None and self.change is None:
            raise ValueError(f"check {self.name!r} has no condition: give `min`, `max`, `equals` or `change`")
        return self


def refuse_equal_names(checks: Iterable[CheckSpec] | None) -> None:
    """Raises ValueError where two conditions have one name."""
    counts = Counter(check.name for check in checks or () if check.name is not None)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"two checks are called {twice[0]!r}: rename one")
