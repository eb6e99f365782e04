"""The ledger's rows arranged for judging: one table a metric, names as codes, sorted by series and step."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

KEYS = ("run", "probe", "layer", "part", "other_run", "other_layer")
"""What makes a series: the findings of one metric that differ in nothing else but the step."""
OK, FAILED, DOES_NOT_APPLY = 0, 1, 2


@dataclass(frozen=True)
class MetricTable:
    """All rows of one metric, sorted by `KEYS` and then by step. Every array has one entry a row."""

    codes: dict[str, np.ndarray]
    names: dict[str, np.ndarray]
    """The sorted names of each key, which the codes number."""
    step: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    status: np.ndarray
    """`OK`, `FAILED` or `DOES_NOT_APPLY`."""
    subject: np.ndarray
    """Whether the row is to be judged."""
    spoilt: np.ndarray
    """Whether numbers that are not finite are on file for the same checkpoint."""
    reasons: np.ndarray
    frame: pd.DataFrame

    def name(self, key: str, row: Any) -> str:
        """The name that `row` has for `key`."""
        return str(self.names[key][self.codes[key][row]])

    @cached_property
    def series(self) -> np.ndarray:
        """The number of each row's series, whatever its run is included."""
        return np.cumsum(self._new_series(KEYS)) - 1

    @cached_property
    def place(self) -> np.ndarray:
        """A number for each row that series of different runs share where they differ in the run alone."""
        keys = [self.codes[key].astype(np.int64) for key in KEYS if key != "run"]
        mixed = np.zeros(len(self.step), dtype=np.int64)
        for column, names in zip(keys, (self.names[key] for key in KEYS if key != "run"), strict=True):
            mixed = np.unique(mixed * len(names) + column, return_inverse=True)[1]
        return mixed

    @cached_property
    def start(self) -> np.ndarray:
        """The number of the first row of each row's series."""
        borders = np.flatnonzero(self._new_series(KEYS))
        return np.repeat(borders, np.diff(np.append(borders, len(self.step))))

    def _new_series(self, keys: Iterable[str]) -> np.ndarray:
        fresh = np.zeros(len(self.step), dtype=bool)
        fresh[:1] = True
        for key in keys:
            column = self.codes[key]
            fresh[1:] |= column[1:] != column[:-1]
        return fresh

    def matches(self, key: str, pattern: str) -> np.ndarray:
        """The rows whose `key` a glob, or `re:` and a regular expression, matches as a whole."""
        if pattern == "*":
            return np.ones(len(self.step), dtype=bool)
        if pattern.startswith("re:"):
            fits = [re.fullmatch(pattern[3:], str(name)) is not None for name in self.names[key]]
        else:
            fits = [fnmatchcase(str(name), pattern) for name in self.names[key]]
        return np.asarray(fits, dtype=bool)[self.codes[key]]

    def reduced_to(self, rows: np.ndarray) -> MetricTable:
        """The table of those rows alone; `rows` is a mask."""
        if rows.all():
            return self
        columns = ("step", "value", "low", "high", "status", "subject", "spoilt", "reasons")
        return MetricTable(
            {key: column[rows] for key, column in self.codes.items()}, self.names,
            **{name: getattr(self, name)[rows] for name in columns}, frame=self.frame,
        )  # fmt: skip


def metric_tables(
    rows: pd.DataFrame, metrics: set[str], subject: np.ndarray | None = None
) -> dict[str, MetricTable]:
    """A table for each of `metrics` that has rows at all; `subject` marks the rows that are to be judged."""
    import pandas as pd

    metric_code, metric_names = pd.factorize(rows["metric"])
    wanted = np.isin(np.asarray(metric_names, dtype=object), sorted(metrics | {"non_finite_count"}))
    if not len(metric_names) or not wanted.any():
        return {}
    kept = np.flatnonzero(wanted[metric_code])
    frame = rows.iloc[kept]
    codes, names = _coded(frame)
    step = frame["step"].to_numpy(dtype=np.int64)
    value = frame["value"].to_numpy(dtype=np.float64)
    metric = metric_code[kept]
    status = _statuses(frame)
    spoilt = _spoilt(codes["run"], step, (np.asarray(metric_names)[metric] == "non_finite_count") & (value > 0))
    judged = np.ones(len(frame), dtype=bool) if subject is None else np.asarray(subject, dtype=bool)[kept]
    order = np.lexsort((step, *(codes[key] for key in reversed(KEYS)), metric))
    borders = np.searchsorted(metric[order], np.arange(len(metric_names) + 1))
    columns = {
        "step": step, "value": value, "status": status, "subject": judged, "spoilt": spoilt,
        **{name: _floats(frame, name) for name in ("low", "high")},
    }  # fmt: skip
    tables = {}
    for code, name in enumerate(metric_names):
        mine = order[borders[code] : borders[code + 1]]
        if name in metrics and len(mine):
            tables[str(name)] = MetricTable(
                {key: column[mine] for key, column in codes.items()}, names,
                **{key: column[mine] for key, column in columns.items()}, reasons=mine, frame=frame,
            )  # fmt: skip
    return tables


def _coded(frame: pd.DataFrame) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    import pandas as pd

    codes, names = {}, {}
    for key in KEYS:
        if key in frame:
            code, name = pd.factorize(frame[key], sort=True)
            codes[key], names[key] = code.astype(np.int32), np.asarray(name, dtype=object)
        else:
            codes[key], names[key] = np.zeros(len(frame), dtype=np.int32), np.asarray([""], dtype=object)
    return codes, names


def _floats(frame: pd.DataFrame, name: str) -> np.ndarray:
    return frame[name].to_numpy(dtype=np.float64) if name in frame else np.full(len(frame), np.nan)


def _statuses(frame: pd.DataFrame) -> np.ndarray:
    import pandas as pd

    code, known = pd.factorize(frame["status"])
    meaning = {"failed": FAILED, "does_not_apply": DOES_NOT_APPLY}
    return np.asarray([meaning.get(str(name), OK) for name in known], dtype=np.int8)[code]


def _spoilt(run: np.ndarray, step: np.ndarray, bad: np.ndarray) -> np.ndarray:
    if not bad.any():
        return np.zeros(len(run), dtype=bool)
    ranks, rank = np.unique(step, return_inverse=True)
    key = run.astype(np.int64) * len(ranks) + rank
    found: np.ndarray = np.isin(key, np.unique(key[bad]))
    return found
