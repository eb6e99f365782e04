"""The recorded trace of a training, whatever wrote it: a table of steps with losses, step sizes and gradient norms."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stratascope.errors import ConfigurationError
from stratascope.storage.traces import read_trace

_NAMES: dict[str, tuple[str, ...]] = {
    "step": ("step", "global_step", "iteration", "iter", "update"),
    "loss": ("batch_loss", "loss", "train_loss", "train/loss", "training_loss"),
    "rate": ("rate", "learning_rate", "lr", "train/learning_rate"),
    "gradient_norm": ("gradient_norm", "grad_norm", "train/grad_norm", "total_grad_norm"),
    "gradient_norm_squared": ("gradient_norm_squared",),
}
"""Under which names a column may stand, the first that is there counts."""


def recorded_trace(path: Path) -> dict[str, np.ndarray]:
    """`step` int64 and those of `loss`, `rate`, `gradient_norm` that the file has, float64 (row,), NaN where not recorded.

    Rows are in the order of their steps. `path` is csv, jsonl, parquet, or a trainer_state.json (its `log_history`);
    columns go by their usual names. `rate` is the step size of the update that led to a row's step. Raises ConfigurationError that
    names the file where it is missing, cannot be read, or has no column of steps.
    """
    rows = _rows(path)
    found: dict[str, np.ndarray] = {}
    for name, spellings in _NAMES.items():
        column = next((item for item in spellings if item in rows), None)
        if column is not None:
            found[name] = np.array([_number(value) for value in rows[column]], np.float64)
    if "step" not in found:
        raise ConfigurationError(
            f"trace: {path.name} has no column of steps ({', '.join(_NAMES['step'])}); it has {', '.join(list(rows)[:12]) or 'none'}."
        )
    squared = found.pop("gradient_norm_squared", None)
    if squared is not None and "gradient_norm" not in found:
        found["gradient_norm"] = np.sqrt(np.maximum(squared, 0))
    sound = np.isfinite(found["step"])
    order = np.argsort(found["step"][sound], kind="stable")
    found = {name: values[sound][order] for name, values in found.items()}
    return {**found, "step": found["step"].astype(np.int64)}


def _rows(path: Path) -> Mapping[str, Sequence[Any]]:
    if not path.is_file():
        raise ConfigurationError(
            f"trace: {path} is not there; give the file's path relative to the configuration."
        )
    try:
        if path.suffix == ".parquet":
            table = read_trace(path)
            return {str(name): table[name].tolist() for name in table.columns}
        if path.suffix == ".csv":
            with path.open(newline="", encoding="utf-8") as file:
                return _columns(list(csv.DictReader(file)))
        text = path.read_text(encoding="utf-8")
        if path.suffix in (".jsonl", ".ndjson"):
            return _columns([json.loads(line) for line in text.splitlines() if line.strip()])
        if path.suffix == ".json":
            content = json.loads(text)
            return _columns(content["log_history"] if isinstance(content, dict) else content)
    except Exception as error:
        raise ConfigurationError(
            f"trace: {path.name} cannot be read as {path.suffix[1:]}: {type(error).__name__}: {error}."
        ) from None
    raise ConfigurationError(
        f"trace: {path.name} is of no known kind; expected .csv, .jsonl, .parquet or a trainer_state.json."
    )


def _columns(entries: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(str(name) for entry in entries for name in entry if name is not None)
    return {name: [entry.get(name) for entry in entries] for name in names}


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def rates_after(trace: Mapping[str, np.ndarray], steps: Sequence[int]) -> np.ndarray:
    """float64 (step,): the step size of the first recorded update that starts from each of `steps` or later.

    After the last update, that one's. NaN where the trace records no step size.
    """
    rates = trace.get("rate")
    if rates is None or not np.isfinite(rates).any():
        return np.full(len(steps), np.nan)
    known = np.isfinite(rates)
    places = np.searchsorted(trace["step"][known], np.asarray(steps), side="right")
    return rates[known][np.minimum(places, known.sum() - 1)]
