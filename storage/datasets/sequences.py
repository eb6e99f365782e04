"""Sequences: text by character, and series of numbers in CSV files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stratascope.errors import ProbeError
from stratascope.storage.datasets.dataset import Dataset


def load_text(path: Path, split: str, length: int = 64) -> Dataset:
    """Windows of `length` characters int64 (sample, token), and the characters that follow each.

    Codes are ranks in the alphabet of the whole text. The first 90 % of the text are `train`, the rest `test`. A
    window's id is the place of its first character in the text.
    """
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ProbeError(f"text {path} cannot be read: {error}.") from None
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    alphabet, codes = np.unique(points, return_inverse=True)
    start, stop = _part(len(codes), split, 0.9)
    chosen = codes[start:stop].astype(np.int64)
    windows = (len(chosen) - 1) // length
    if windows < 1:
        raise ProbeError(f"text {path}: split {split!r} is shorter than one window of {length}.")
    inputs = chosen[: windows * length].reshape(windows, length)
    targets = chosen[1 : windows * length + 1].reshape(windows, length)
    names = tuple(chr(int(point)) for point in alphabet)
    return Dataset(inputs, targets, names, "text", sample_id=start + length * np.arange(windows))


def load_series(
    path: Path, split: str, history: int = 12, horizon: int = 12, stride: int = 1, header: bool = True
) -> Dataset:
    """Windows float32 (sample, time, series) of `history` rows, and the `horizon` rows after each.

    A window begins every `stride` rows; its id is its first row. The first 80 % of the rows are `train`, the rest
    `test`, and no window reaches over the border. The first line names the series, unless `header` is off.
    """
    try:
        with open(path, encoding="utf-8") as stream:
            names = tuple(part.strip().strip('"') for part in stream.readline().split(",")) if header else ()
            values = np.loadtxt(stream, delimiter=",", dtype=np.float32, ndmin=2)
    except (OSError, ValueError) as error:
        raise ProbeError(f"series {path} cannot be read: {error}.") from None
    if names and values.shape[1] != len(names):
        raise ProbeError(f"series {path}: its first line names {len(names)} series, rows have {values.shape[1]}.")
    start, stop = _part(len(values), split, 0.8)
    chosen = values[start:stop]
    if len(chosen) < history + horizon:
        raise ProbeError(f"series {path}: split {split!r} is shorter than {history + horizon} rows.")
    windows = np.lib.stride_tricks.sliding_window_view(chosen, history + horizon, axis=0)[::stride]
    windows = windows.transpose(0, 2, 1)
    return Dataset(
        windows[:, :history],
        windows[:, history:],
        kind="series",
        sample_id=start + stride * np.arange(len(windows)),
        names={"series": names} if names else {},
    )


def _part(count: int, split: str, share: float) -> tuple[int, int]:
    border = int(share * count)
    return {"train": (0, border), "test": (border, count), "all": (0, count)}[split]
