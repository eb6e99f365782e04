"""Which samples of a probe are read as sequences, how long each is, and what its tokens are called."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from stratascope.errors import DoesNotApply
from stratascope.storage.datasets.dataset import leaves_of
from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import NamedArray, Options
from stratascope.tasks.given_samples import GivenSamples, given_samples
from stratascope.tasks.representation.features import chosen_rows
from stratascope.tasks.vision.chosen_samples import rows_of_ids

SHOWN = "shown_sample"
"""The dimension of what is stored of each shown sample."""


class SequenceOptions(Options):
    """Which samples of each probe are measured, and which of them are shown."""

    max_samples: int = Field(default=256, ge=1)
    """So many are measured at most, the classes in proportion; which, depends on their ids and on `seed` alone."""
    shown: int = Field(default=4, ge=0)
    """Of so many of these, everything is stored and drawn."""
    sample_ids: tuple[str | int, ...] = ()
    """Show these and no others, by the ids that the probe gives them."""
    seed: int = Field(default=0, ge=0)
    batch_size: int = Field(default=64, ge=1)
    """So many samples go through the network at once; no part of the result beyond rounding."""


@dataclass(frozen=True)
class SequenceSamples:
    """The samples of a probe that are measured, in an order of their ids, those that are shown first."""

    probe: Probe
    given: GivenSamples
    shown: int
    """The first so many are shown."""

    def __len__(self) -> int:
        return len(self.given)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs that are sequences of tokens or time steps, "" for the only one, in their order."""
        return tuple(name for name, values in leaves_of(self.given.inputs).items() if _is_sequence(values))

    def real(self, name: str = "") -> np.ndarray:
        """bool (sample, token): the real tokens of input `name`."""
        values = leaves_of(self.given.inputs)[name]
        mask = self.probe.masks.get(name)
        if mask is None:
            return np.ones((len(values), token_count(values)), bool)
        return np.stack([np.asarray(mask[int(row) : int(row) + 1])[0] for row in self.given.rows])

    def words(self, place: int, name: str = "") -> list[str]:
        """What the tokens of input `name` of the sample at `place` are called, the padding included."""
        values = np.asarray(leaves_of(self.given.inputs)[name][place])
        return token_words(values, names_of(self.probe, name))

    def shown_arrays(self) -> dict[str, NamedArray]:
        """`<probe>/sample_id` and `<probe>/tokens/<input>` (sample, token) of the shown samples, as an analysis files
        them; the words that codes stand for lie with the stored probe."""
        found = {f"{self.probe.name}/sample_id": NamedArray((SHOWN,), self.given.sample_id[: self.shown])}
        for name in self.inputs:
            values = np.asarray(leaves_of(self.given.inputs)[name][: self.shown])
            if values.dtype.kind in "iu" and values.ndim == 2:
                path = f"{self.probe.name}/tokens/{name or 'input'}"
                found[path] = NamedArray((SHOWN, f"{name or 'input'}_token"), values)
        return found


def sequence_samples(probe: Probe, options: SequenceOptions) -> SequenceSamples:
    """The samples that `options` mean. Raises DoesNotApply where no input is a sequence, or an id is not there."""
    rows, shown = sample_rows(probe, options)
    return SequenceSamples(probe, given_samples(probe, rows), shown)


def sequence_blocks(probe: Probe, options: SequenceOptions, size: int = 2048) -> Iterator[SequenceSamples]:
    """The same samples, at most `size` at once, so that no more is held of many than of few: in the first block all that
    are shown, in their order, then the others as they lie in the probe, which is read once from end to end.

    Raises DoesNotApply as `sequence_samples` does.
    """
    rows, shown = sample_rows(probe, options)
    rows[shown:].sort()
    first = max(size, shown)
    for start, stop in [(0, first), *((begin, begin + size) for begin in range(first, len(rows), size))]:
        yield SequenceSamples(probe, given_samples(probe, rows[start:stop]), 0 if start else shown)


def sample_rows(probe: Probe, options: SequenceOptions) -> tuple[np.ndarray, int]:
    """int64 (sample,): the places in the probe of those samples, and how many of them, the first, are shown."""
    if not any(_is_sequence(values) for values in leaves_of(probe.inputs).values()):
        raise DoesNotApply(f"no input of probe {probe.name!r} is a sequence of tokens, time steps or image rows.")
    measured = chosen_rows(probe, options.max_samples, options.seed)
    named = rows_of_ids(probe, options.sample_ids) if options.sample_ids else measured[: options.shown]
    rest = measured[~np.isin(measured, named)]
    rows = np.concatenate([named, rest]).astype(np.int64)
    if not len(rows):
        raise DoesNotApply(f"probe {probe.name!r} has no samples.")
    return rows, len(named)


def _is_sequence(values: np.ndarray) -> bool:
    return len(values.shape) >= 2


def token_count(values: np.ndarray) -> int:
    """Tokens, time steps, or rows of an image (sample, channel, y, x)."""
    return int(values.shape[2] if len(values.shape) == 4 else values.shape[1])


def names_of(probe: Probe, name: str = "") -> tuple[str, ...]:
    """What the codes of input `name` stand for: its own words, or the class names where a text predicts itself."""
    if name in probe.names:
        return probe.names[name]
    return probe.class_names if probe.kind == "text" else ()


def token_words(values: np.ndarray, names: tuple[str, ...]) -> list[str]:
    """A word for each token of one sample: that of its code, else the code, else the number of the step or row."""
    if values.ndim == 1 and values.dtype.kind in "iu":
        return [names[code] if 0 <= code < len(names) else str(code) for code in values.tolist()]
    what = "row" if values.ndim == 3 else "step"
    return [f"{what} {number}" for number in range(token_count(values[None]))]
