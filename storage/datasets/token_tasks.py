"""Made-up sequences with a known solution: a repeat to be continued, a symbol to be kept, two numbers to be added."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np

from stratascope.storage.datasets.dataset import Dataset

IGNORED = -100
"""Targets of this value count in no loss."""
_LETTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits
_SPLITS = {"train": 0, "test": 1}
_APART = 10**9
"""Ids of the two splits lie so far apart."""


def repeated_tokens(
    split: str, count: int, tokens: int, period: tuple[int, int], length: int, seed: int
) -> Dataset:
    """A begin mark, random tokens, and then a block of random tokens twice, `length` places in all.

    `inputs` are codes int64 (sample, token): 0 the begin mark, then `tokens` others. The block's length is drawn from `period`
    (least and most), and no token stands twice before the repeat, so that each one there has one earlier occurrence. `targets`
    are the tokens that follow; those before the repeat, which nobody can know, are `IGNORED`. At the last place the block
    would begin anew. With one `period` and `length` 1 + twice that, there is nothing before the block.
    """
    periods = _stream(seed, split, 0).integers(period[0], period[1] + 1, count)
    codes = _stream(seed, split, 1).random((count, tokens)).argsort(1, kind="stable")[:, : length - 1] + 1
    places, starts = np.arange(length), length - periods[:, None]
    unrepeated = np.where(places < starts, places, places - periods[:, None])
    inputs = np.concatenate([np.zeros((count, 1), np.int64), codes], 1)
    inputs = np.take_along_axis(inputs, unrepeated, 1)
    following = np.concatenate([inputs[:, 1:], np.take_along_axis(inputs, starts, 1)], 1)
    targets = np.where(places >= starts, following, IGNORED)
    return Dataset(inputs, targets, ("<bos>", *letters(tokens)), kind="text", sample_id=_identities(split, count))


def delayed_recall(split: str, count: int, length: int, symbols: int, distractors: int, seed: int) -> Dataset:
    """A symbol first, then distractors, a question mark last: at it, and there alone, the symbol is to be said.

    `inputs` are codes int64 (sample, token): `symbols` capital letters, `distractors` others, the question mark. `targets`
    (sample, token) are `IGNORED` but at the last place.
    """
    asked = _stream(seed, split, 0).integers(0, symbols, count)
    inputs = _stream(seed, split, 1).integers(symbols, symbols + distractors, (count, length))
    inputs[:, 0], inputs[:, -1] = asked, symbols + distractors
    targets = np.full((count, length), IGNORED, np.int64)
    targets[:, -1] = asked
    names = letters(symbols + distractors) if distractors > 1 else (*letters(symbols), "·")
    return Dataset(inputs, targets, (*names, "?"), kind="text", sample_id=_identities(split, count))


def adding_problem(split: str, count: int, length: int, seed: int) -> Dataset:
    """Numbers of which two are marked, and the sum of these two (Hochreiter and Schmidhuber 1997, section 5.4).

    `inputs` are float32 (sample, time, 2): a value from 0 to 1, and 1 at the marked steps, one in each half, else 0. `targets`
    are float32 (sample, 1). Always saying 1 gives a mean squared error of 1/6.
    """
    values = _stream(seed, split, 0).random((count, length), np.float32)
    chosen = _stream(seed, split, 1).random((count, 2))
    half = length // 2
    marked = np.stack([chosen[:, 0] * half, half + chosen[:, 1] * (length - half)], 1).astype(np.int64)
    marks = np.zeros_like(values)
    np.put_along_axis(marks, marked, 1, 1)
    sums = np.take_along_axis(values, marked, 1).sum(1, keepdims=True)
    return Dataset(
        np.stack([values, marks], 2),
        sums,
        kind="series",
        sample_id=_identities(split, count),
        names={"series": ("value", "mark")},
    )


def letters(count: int) -> tuple[str, ...]:
    """Names of so many tokens: letters and digits, then numbers."""
    return tuple(_LETTERS[:count]) + tuple(f"t{number}" for number in range(len(_LETTERS), count))


def source_files() -> list[Path]:
    """What the content depends on: this module."""
    return [Path(__file__)]


def _stream(seed: int, split: str, part: int) -> np.random.Generator:
    """Random numbers of their own for each split and part, so that more samples leave the first ones as they are."""
    return np.random.default_rng([seed, _SPLITS[split], part])


def _identities(split: str, count: int) -> np.ndarray:
    return _APART * _SPLITS[split] + np.arange(count, dtype=np.int64)
