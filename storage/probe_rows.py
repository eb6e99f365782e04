"""The samples of a probe made ready slice by slice: taken from their source, as plain numbers, normalised."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from stratascope.errors import ProbeError
from stratascope.storage.datasets.dataset import Dataset, Kind, LazyRows, Normalization, leaves_of, take_rows

SLICE_BYTES = 16 << 20
"""So much of a large probe is in the memory at once."""
HELD_BYTES = 64 << 20
"""Inputs of at most so many bytes are made ready once and held."""


class RowSource:
    """The chosen `rows` of a data set's inputs, which are read when they are asked for."""

    def __init__(self, inputs: Any, rows: np.ndarray) -> None:
        self._inputs, self._rows = inputs, rows
        self._last: tuple[int, int] = (-1, -1)
        self._found: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def at(self, start: int, stop: int) -> Mapping[str, np.ndarray]:
        """All leaves of the chosen rows `start` to `stop`; the latest are kept, since leaves are asked for in turn."""
        if (start, stop) != self._last:
            rows = self._rows[start:stop]
            if isinstance(self._inputs, LazyRows):
                self._found = take_rows(self._inputs, rows)
            else:
                # Neighbours are a view; a list of numbers would copy, and read a mapped file at random.
                together = len(rows) > 0 and rows[-1] - rows[0] == len(rows) - 1
                chosen = slice(int(rows[0]), int(rows[-1]) + 1) if together else rows
                self._found = {
                    name: np.asarray(values)[chosen] for name, values in leaves_of(self._inputs).items()
                }
            self._last = (start, stop)
        return self._found

    def all_after(self, first: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All leaves of all chosen rows, of which the `first` one has been read: items may be costly to ask for."""
        if not isinstance(self._inputs, LazyRows):
            return take_rows(self._inputs, self._rows)
        if len(self) == 1:
            return dict(first)
        rest = take_rows(self._inputs, self._rows[1:])
        for name, values in rest.items():
            if name not in first or values.shape[1:] != first[name].shape[1:]:
                raise ProbeError(f"{name or 'inputs'}: not all samples have the same shape.")
        return {name: np.concatenate([first[name], values]) for name, values in rest.items()}


class PreparedRows:
    """One input of a probe, ready for the network, as an array of which only slices are made."""

    def __init__(
        self, source: RowSource, probe: str, part: str, normalization: Normalization | None, kind: Kind
    ) -> None:
        self._source, self._probe, self._part = source, probe, part
        self._normalization, self._kind = normalization, kind
        first = self._ready(0, 1)
        self.shape = (len(source), *first.shape[1:])
        self.dtype, self.ndim = first.dtype, first.ndim
        self.nbytes = self.dtype.itemsize * math.prod(self.shape)
        self._checked = True

    _checked = False

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, step = rows.indices(self.shape[0])
        if step < 1:
            raise IndexError(f"rows of a probe are read forwards, not {rows}")
        return self._ready(start, max(start, stop))[::step]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    @cached_property
    def digest(self) -> str:
        """Of all rows, as they are when it is first asked for."""
        return rows_digest(self)

    def _ready(self, start: int, stop: int) -> np.ndarray:
        values = plain(self._probe, self._part, self._source.at(start, stop)[self._part])
        if self._normalization is not None:
            values = normalized(self._probe, values, self._normalization, self._kind)
        if self._checked and (values.dtype != self.dtype or values.shape[1:] != self.shape[1:]):
            raise ProbeError(
                f"probe {self._probe!r}: {self._part or 'inputs'} of samples {start} to {stop} are {values.dtype} of shape "
                f"{values.shape[1:]}, those of the first are {self.dtype} of {self.shape[1:]}; expected numbers, all samples "
                "of one shape."
            )
        return values


def prepared(
    name: str, data: Dataset, rows: np.ndarray, normalization: Normalization | None
) -> dict[str, np.ndarray | PreparedRows]:
    """The inputs of `data` at the ascending `rows`, by name: arrays where they are small, else made when asked for.

    Raises ProbeError where they are no numbers or do not have one shape.
    """
    source = RowSource(data.inputs, rows)
    first = source.at(0, 1)
    found: dict[str, np.ndarray | PreparedRows] = {
        part: PreparedRows(source, name, part, normalization, data.kind) for part in first
    }
    if sum(values.nbytes for values in found.values()) > HELD_BYTES:
        return found
    return {
        part: _held(name, part, values, normalization, data.kind)
        for part, values in source.all_after(first).items()
    }


def _held(name: str, part: str, values: np.ndarray, normalization: Normalization | None, kind: Kind) -> np.ndarray:
    values = plain(name, part, values)
    return values if normalization is None else normalized(name, values, normalization, kind)


def slices_of(values: Any) -> Iterator[np.ndarray]:
    """`values` (sample, …) in order, `SLICE_BYTES` at a time; an array in the memory at once."""
    if isinstance(values, np.ndarray):
        yield values
        return
    size = max(1, SLICE_BYTES // max(1, values.dtype.itemsize * math.prod(values.shape[1:])))
    for start in range(0, len(values), size):
        yield values[start : start + size]


def rows_digest(values: Any, also: Callable[[np.ndarray], Any] | None = None) -> str:
    """What `array_digest` gives for the whole of `values`, from its slices; each of them is handed to `also`, too."""
    dtype = np.dtype(values.dtype)
    little = dtype.newbyteorder("<") if dtype.byteorder == ">" else dtype
    digest = hashlib.sha256(f"{little.str}{tuple(values.shape)}".encode())
    for block in slices_of(values):
        digest.update(np.ascontiguousarray(block, little).reshape(-1).view(np.uint8).data)
        if also is not None:
            also(block)
    return digest.hexdigest()


def plain(name: str, part: str, values: np.ndarray) -> np.ndarray:
    """`values` as a contiguous array of numbers in the machine's byte order."""
    if values.dtype.kind not in "biuf":
        raise ProbeError(
            f"probe {name!r}: {part or 'inputs'} are {values.dtype}; expected numbers, all samples of one shape."
        )
    return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))


def normalized(name: str, values: np.ndarray, by: Normalization, kind: Kind) -> np.ndarray:
    """float32 (values / scale - mean) / std, by channel: the last axis of a series, else the first one."""
    axis = values.ndim - 1 if kind == "series" else 1
    channels = values.shape[axis] if 0 < axis < values.ndim else 1
    if len(by.mean) not in (1, channels) or len(by.std) not in (1, channels):
        raise ProbeError(
            f"probe {name!r} has {channels} channels, `normalize` gives {len(by.mean)} means and {len(by.std)} "
            "spreads."
        )
    result = values.astype(np.float32)
    shape = tuple(-1 if number == axis else 1 for number in range(values.ndim))
    if by == Normalization(std=(1 / (by.scale or 1.0),), scale=by.scale):
        return result  # `none`: dividing by the scale and by its inverse would only round.
    result /= np.float32(by.scale or 1.0)
    result -= np.asarray(by.mean, np.float32).reshape(shape if len(by.mean) > 1 else (1,) * values.ndim)
    result /= np.asarray(by.std, np.float32).reshape(shape if len(by.std) > 1 else (1,) * values.ndim)
    return result
