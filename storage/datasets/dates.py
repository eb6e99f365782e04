"""Dates as people write them, the same dates in ISO 8601, and which characters each digit comes from."""

from __future__ import annotations

import datetime
import string
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from stratascope.errors import ProbeError
from stratascope.storage.datasets.dataset import Dataset

PADDING, UNKNOWN, BEGIN, END = range(4)
MARKS = ("<pad>", "<unk>", "<bos>", "<eos>")
MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
SOURCE_NAMES = (*MARKS, *" ,./", *string.digits, *string.ascii_uppercase, *string.ascii_lowercase)
TARGET_NAMES = (*MARKS, "-", *string.digits)
NOWHERE = -1
_TEST_SHARE = 10
"""One day in so many belongs to the test split."""


def _ordinal(day: int) -> str:
    return "th" if 10 < day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")


_PARTS: dict[str, Callable[[datetime.date], str]] = {
    "D": lambda date: str(date.day),
    "DD": lambda date: f"{date.day:02}",
    "M": lambda date: str(date.month),
    "MM": lambda date: f"{date.month:02}",
    "name": lambda date: MONTHS[date.month - 1],
    "short": lambda date: MONTHS[date.month - 1][:3],
    "weekday": lambda date: WEEKDAYS[date.weekday()],
    "th": lambda date: _ordinal(date.day),
    "Y": lambda date: str(date.year),
}
FORMATS: tuple[tuple[str, ...], ...] = (
    ("D", " ", "name", " ", "Y"),
    ("name", " ", "D", ", ", "Y"),
    ("weekday", ", ", "D", " ", "name", " ", "Y"),
    ("weekday", ", ", "name", " ", "D", ", ", "Y"),
    ("D", "th", " of ", "name", ", ", "Y"),
    ("DD", " ", "short", " ", "Y"),
    ("short", " ", "D", ", ", "Y"),
    ("Y", " ", "short", " ", "D"),
    ("D", ".", "M", ".", "Y"),
    ("DD", ".", "MM", ".", "Y"),
    ("M", "/", "D", "/", "Y"),
    ("MM", "/", "DD", "/", "Y"),
)
"""What a date is written as: parts by their name in `_PARTS`, and what stands between them. Full stops say that the day
comes first, slashes that the month does."""
SOURCE_LENGTH = len("Wednesday, September 30, 2000") + 1
TARGET_LENGTH = len("2000-09-30") + 1


@dataclass(frozen=True)
class WrittenDate:
    """A date as text, and for each ISO character the first and the last place in it that tells it (`NOWHERE`: none)."""

    text: str
    iso: str
    first: tuple[int, ...]
    last: tuple[int, ...]


def written_date(date: datetime.date, form: int) -> WrittenDate:
    """`date` in `FORMATS[form]`.

    A digit that is written comes from its own place. A month's name tells both digits of the month, with all its letters; a
    day or month of one digit tells both of its ISO digits. The dashes come from nowhere.
    """
    pieces = [_PARTS[part](date) if part in _PARTS else part for part in FORMATS[form]]
    starts = [0, *accumulate(len(piece) for piece in pieces)]
    places = {part: (start, piece) for part, start, piece in zip(FORMATS[form], starts, pieces, strict=False)}
    spans: list[tuple[int, int]] = []
    for kinds in (("Y",), ("name", "short", "M", "MM"), ("D", "DD")):
        start, piece = next(places[kind] for kind in kinds if kind in places)
        if piece.isdigit() and len(piece) > 1:
            spans += [(place, place) for place in range(start, start + len(piece))]
        else:
            spans += [(start, start + len(piece) - 1)] * 2
        spans.append((NOWHERE, NOWHERE))
    first, last = zip(*spans[:-1], strict=True)
    return WrittenDate("".join(pieces), date.isoformat(), first, last)


def load(split: str, count: int, years: tuple[int, int], seed: int) -> Dataset:
    """`count` days of `years` (first and last), each written in one of `FORMATS`, and its ISO date.

    `inputs` are `source` int64 (sample, token) of characters, end and padding, `target` (begin, then characters: what a
    decoder is shown), and `alignment` and `alignment_end` int64 (sample, target token): the first and the last place in the
    source that target i comes from, −1 for none. `targets` are the characters of the ISO date and the end. A day belongs to
    one split only, whatever the format; its id is 100 times its number in the calendar, and the format. More samples are the
    same ones and others after them. Raises ProbeError where there are fewer days.
    """
    first, last = datetime.date(years[0], 1, 1).toordinal(), datetime.date(years[1], 12, 31).toordinal()
    days = np.random.default_rng([seed, 0]).permutation(np.arange(first, last + 1))
    border = max(1, len(days) // _TEST_SHARE)
    days = days[:border] if split == "test" else days[border:]
    if count > len(days):
        raise ProbeError(
            f"data set 'dates': {years[0]} to {years[1]} have {len(days)} days for {split!r}, not {count}."
        )
    days, forms = days[:count], np.random.default_rng([seed, 1, split == "test"]).integers(0, len(FORMATS), count)
    source = np.full((count, SOURCE_LENGTH), PADDING, np.int64)
    spans = np.full((2, count, TARGET_LENGTH), NOWHERE, np.int64)
    targets = np.empty((count, TARGET_LENGTH), np.int64)
    for row, (day, form) in enumerate(zip(days.tolist(), forms.tolist(), strict=True)):
        written = written_date(datetime.date.fromordinal(day), form)
        source[row, : len(written.text) + 1] = [*map(SOURCE_NAMES.index, written.text), END]
        targets[row] = [*map(TARGET_NAMES.index, written.iso), END]
        spans[:, row, :-1] = written.first, written.last
    target = np.concatenate([np.full((count, 1), BEGIN), targets[:, :-1]], 1)
    # The target stands last: it is what a decoder is shown, and has the places of `targets`.
    inputs = {"alignment": spans[0], "alignment_end": spans[1], "source": source, "target": target}
    return Dataset(
        inputs,
        targets,
        TARGET_NAMES,
        kind="text",
        sample_id=100 * days + forms,
        masks={"source": source != PADDING, "target": np.ones_like(target, bool)},
        names={"source": SOURCE_NAMES, "target": TARGET_NAMES},
    )


def source_files() -> list[Path]:
    """What the content depends on: this module."""
    return [Path(__file__)]
