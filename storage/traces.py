"""The trace of a training run: one row for each recorded moment, as Parquet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd


def write_trace(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write `rows` (equal keys) to `path` by temporary name and rename."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    parquet.write_table(pa.Table.from_pylist(list(rows)), temporary, compression="zstd")
    os.replace(temporary, path)


def read_trace(path: Path) -> pd.DataFrame:
    """The trace at `path` as a data frame."""
    import pyarrow.parquet as parquet

    return parquet.ParquetFile(path).read().to_pandas()
