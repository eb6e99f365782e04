"""The trace of a training run and the samples it was trained on, as Parquet."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.storage.manifests import write_atomically

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

INTEGER_COLUMNS = frozenset({"step", "batch_seed"})
TRACE_COLUMNS: dict[str, str] = {
    "step": "updates done; 0 is the initial network",
    "epoch": "updates done, in passes over the training set",
    "rate": "step size of this update",
    "noise_variance": "variance of the Langevin noise that this update added to each weight",
    "batch_seed": "seed of the epoch's batch order, see stratascope.tasks.training.seeds.batch_order",
    "batch_loss": "training loss of the batch before this update, in training mode",
    "batch_accuracy": "accuracy of the batch before this update, in training mode",
    "gradient_norm_squared": "squared norm of the gradient of batch_loss, before clipping, without weight decay",
    "example_gradient_norm_mean": "mean of the gradient norms of the batch's single samples before this update",
    "example_gradient_norm_squared_mean": "mean of the squares of those norms",
    "example_gradient_norm_max": "largest of those norms",
    "train_loss": "training loss of the evaluated training samples after this update, in evaluation mode",
    "train_cross_entropy": "their mean cross-entropy in nats",
    "train_accuracy": "their accuracy",
    "test_loss": "training loss of the evaluated test samples after this update, in evaluation mode",
    "test_cross_entropy": "their mean cross-entropy in nats",
    "test_accuracy": "their accuracy",
}
"""One row for each recorded step t. The columns from `rate` to `example_gradient_norm_max` belong to the update
from the weights after t − 1 updates to those after t (losses and gradients at the former); the columns from
`train_loss` on belong to the weights after t updates. What was not measured at a step, or does not apply, is null.
All columns are float64 but `step` and `batch_seed`, which are int64."""


def write_trace(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows` (keys of TRACE_COLUMNS; what is missing, None or NaN becomes null) whole or not at all."""
    import pyarrow as pa

    columns = {
        name: pa.array(
            [_or_null(row.get(name)) for row in rows], pa.int64() if name in INTEGER_COLUMNS else pa.float64()
        )
        for name in TRACE_COLUMNS
    }
    fields = [
        pa.field(name, column.type, metadata={"definition": TRACE_COLUMNS[name]})
        for name, column in columns.items()
    ]
    _write(path, pa.table(list(columns.values()), schema=pa.schema(fields)))


def read_trace(path: Path) -> pd.DataFrame:
    """The trace at `path` as a data frame; nulls are NaN."""
    return _read(path)


def write_samples(path: Path, columns: Mapping[str, np.ndarray]) -> None:
    """Write the columns (sample,) of what is known of each training sample, whole or not at all."""
    import pyarrow as pa

    _write(path, pa.table({name: pa.array(values) for name, values in columns.items()}))


def read_samples(path: Path) -> pd.DataFrame:
    """The table that `write_samples` wrote."""
    return _read(path)


def _or_null(value: Any) -> Any:
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _write(path: Path, table: pa.Table) -> None:
    import pyarrow.parquet as parquet

    buffer = io.BytesIO()
    parquet.write_table(table, buffer, compression="zstd")
    write_atomically(path, buffer.getvalue())


def _read(path: Path) -> pd.DataFrame:
    import pyarrow.parquet as parquet

    return parquet.ParquetFile(path).read().to_pandas()
