"""What a loader returns, and how rows are taken from it without reading more than needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from stratascope.errors import ProbeError

Kind = Literal["image", "text", "array", "series"]
"""Images are (sample, channel, y, x), texts (sample, token), series (sample, time, series)."""


class Normalization(BaseModel):
    """How inputs were (or are to be) normalised: input = (raw / scale - mean) / std, by channel or for all.

    So input · std + mean runs from 0 (black) to 1 (white), and that times `scale` is the raw value. A `scale`
    that is not given is the data set's own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float | None = Field(default=None, gt=0)

    @field_validator("mean", "std", mode="before")
    @classmethod
    def _one_number_is_a_tuple(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int | float) else tuple(value) if np.ndim(value) == 1 else value

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.mean or not self.std or min(self.std) <= 0:
            raise ValueError("`mean` and `std` need one number or one for each channel, and `std` above 0")
        return self

    def undo(self, inputs: np.ndarray) -> np.ndarray:
        """Raw values float32 of `inputs` (sample, channel, …)."""
        shape = (1, -1, *(1,) * (inputs.ndim - 2))
        mean, std = (np.asarray(part, np.float32).reshape(shape) for part in (self.mean, self.std))
        return (inputs.astype(np.float32) * std + mean) * np.float32(self.scale or 1.0)


@runtime_checkable
class LazyRows(Protocol):
    """Inputs that are read when rows of them are asked for."""

    def __len__(self) -> int: ...

    def take_rows(self, rows: np.ndarray) -> Any:
        """The inputs of the ascending row numbers `rows`: an array, or a mapping of arrays."""


@dataclass(frozen=True)
class Dataset:
    """Raw data: `inputs` are an array (sample, …), a mapping of such (perhaps nested), or `LazyRows`.

    `targets` are (sample, …) or None. `mean` and `std` are those published for the training inputs divided by
    `scale`, one for each channel; without them images are centred at 0.5 with a spread of 0.25. `masks` are bool
    (sample, token), true where a token is real, by the name of their input ("" where there is only one).
    """

    inputs: Any
    targets: np.ndarray | None
    class_names: tuple[str, ...] = ()
    kind: Kind = "array"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)
    sample_id: np.ndarray | None = None
    """int64 or text (sample,); by default the row number."""
    masks: Mapping[str, np.ndarray] = field(default_factory=dict)
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What numbers stand for: words by token id, series by column, …"""
    denormalize: Normalization | None = None
    """How inputs that came normalised are undone."""

    def __len__(self) -> int:
        if isinstance(self.inputs, LazyRows):
            return len(self.inputs)
        leaves = list(leaves_of(self.inputs).values())
        return len(leaves[0]) if leaves and np.ndim(leaves[0]) else 0


def leaves_of(inputs: Any, name: str = "") -> dict[str, Any]:
    """The arrays of perhaps nested `inputs` by name: "" for a plain array, `outer/inner` where they are nested.

    Raises ProbeError for a name that is no text or that holds a slash.
    """
    if not isinstance(inputs, Mapping):
        return {name: inputs}
    found: dict[str, Any] = {}
    for key, value in inputs.items():
        if not isinstance(key, str) or not key or "/" in key:
            raise ProbeError(f"an input is named {key!r}: names of inputs are texts without slashes.")
        found |= leaves_of(value, f"{name}/{key}" if name else key)
    return found


def nested(leaves: Mapping[str, Any]) -> Any:
    """The inverse of `leaves_of`."""
    if set(leaves) == {""}:
        return leaves[""]
    tree: dict[str, Any] = {}
    for name, value in leaves.items():
        *outer, last = name.split("/")
        place = tree
        for part in outer:
            place = place.setdefault(part, {})
        place[last] = value
    return tree


def with_exchanged(inputs: Any, name: str) -> Any:
    """`inputs` with those called `name` (sample, token, …) of each sample's neighbour, or turned round where all are alike.

    What changes with that in a network depends on this input.
    """
    leaves = leaves_of(inputs)
    values = np.asarray(leaves[name])
    other = np.roll(values, 1, 0)
    leaves[name] = values[:, ::-1].copy() if np.array_equal(other, values) else other
    return nested(leaves)


def take_rows(inputs: Any, rows: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays of `inputs` at the ascending `rows`, by name; a view where all rows are wanted."""
    if isinstance(inputs, LazyRows):
        return {name: np.asarray(values) for name, values in leaves_of(inputs.take_rows(rows)).items()}
    return {name: take(np.asarray(values), rows) for name, values in leaves_of(inputs).items()}


def take(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """`values` at the ascending, distinct `rows`; a view where these are all."""
    return values if len(rows) == len(values) else values[rows]


def mask_of_lengths(lengths: np.ndarray, tokens: int) -> np.ndarray:
    """bool (sample, token): true for the first `lengths` (sample,) of `tokens` tokens."""
    return np.arange(tokens)[None, :] < np.asarray(lengths)[:, None]
