"""What the configuration says of a run: where its checkpoints lie, how to read them, which network they fit."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator

from stratascope.errors import ConfigurationError
from stratascope.storage.model_spec import ModelSpec
from stratascope.storage.names import checked_name


class SelectSpec(BaseModel):
    """Which of the checkpoints that were found are audited."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: int = Field(default=1, ge=1)
    last: int | None = Field(default=None, ge=1)
    steps: tuple[int, ...] | None = None
    log_spaced: int | None = Field(default=None, ge=2)


class StateDictSpec(BaseModel):
    """Where the weights lie inside a file; found without help where that is unambiguous."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str | None = None
    """Key of the state dict inside the file; dots lead further down (`callbacks.EMA.weights`)."""
    strip_prefix: str | None = None
    """What the names begin with and the network's own do not, such as `module.`."""


class RunSource(BaseModel):
    """One entry of the `runs:` key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    checkpoints: str
    step: str | None = None
    """Regular expression with one group of digits, tried on the file's name, then on its path."""
    run: str | None = None
    """Regular expression with one group: every value of it in the path is a run, called `<name>-<value>`."""
    select: SelectSpec = SelectSpec()
    model: ModelSpec
    state_dict: StateDictSpec = StateDictSpec()
    trace: str | None = None
    """The trace of the training: a file of csv, jsonl or parquet, or a trainer_state.json."""
    allow_pickle: bool = False
    allow_empty: bool = False
    only: str | None = None
    """A JSON list of paths: of the checkpoints that are found, these alone are looked at. A backfill sets it."""

    @field_validator("name")
    @classmethod
    def _name_is_allowed(cls, name: str) -> str:
        try:
            return checked_name(name, "run")
        except ConfigurationError as error:
            raise ValueError(str(error)) from None

    @field_validator("step", "run")
    @classmethod
    def _has_one_group(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        try:
            groups = re.compile(pattern).groups
        except re.error as error:
            raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        if groups != 1:
            raise ValueError(f"{pattern!r} has {groups} groups; expected exactly one, around what counts")
        return pattern
