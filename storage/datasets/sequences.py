"""Sequences: text by character, and series of numbers in CSV files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stratascope.errors import ProbeError


def load_text(path: Path, split: str, length: int = 64) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Windows of characters int64 (sample, token), the characters that follow each, and the alphabet.

    The first 90 % of the text are `train`, the rest `test`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProbeError(f"text {path} cannot be read: {error}.") from None
    alphabet, codes = np.unique(np.array(list(text)), return_inverse=True)
    chosen = _part(codes.astype(np.int64), split)
    windows = (len(chosen) - 1) // length
    if windows < 1:
        raise ProbeError(f"text {path}: split {split!r} is shorter than one window of {length}.")
    inputs = chosen[: windows * length].reshape(windows, length)
    targets = chosen[1 : windows * length + 1].reshape(windows, length)
    return inputs, targets, tuple(str(character) for character in alphabet)


def load_series(
    path: Path, split: str, history: int = 12, horizon: int = 12
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Windows float32 (sample, time, series), the `horizon` steps after each, and the series' names.

    The first 80 % of the rows are `train`, the rest `test`. The first line holds the names.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            names = tuple(stream.readline().strip().split(","))
            values = np.loadtxt(stream, delimiter=",", dtype=np.float32, ndmin=2)
    except (OSError, ValueError) as error:
        raise ProbeError(f"series {path} cannot be read: {error}.") from None
    chosen = _part(values, split, 0.8)
    if len(chosen) < history + horizon:
        raise ProbeError(f"series {path}: split {split!r} is shorter than {history + horizon} rows.")
    windows = np.lib.stride_tricks.sliding_window_view(chosen, history + horizon, axis=0)
    windows = windows.transpose(0, 2, 1)
    return windows[:, :history].copy(), windows[:, history:].copy(), names


def _part(values: np.ndarray, split: str, share: float = 0.9) -> np.ndarray:
    border = int(share * len(values))
    if split not in ("train", "test"):
        raise ProbeError(f"there is no split {split!r}; there are train and test.")
    return values[:border] if split == "train" else values[border:]
