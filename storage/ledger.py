"""The ledger: the long table of scalar findings, one Parquet file for each committed unit."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Status = Literal["ok", "does_not_apply", "failed", "vacuous"]


@dataclass(frozen=True)
class Row:
    """One scalar finding. `value` must be NaN unless `status` is ``ok`` or ``vacuous``.

    `step` -1 means: fill in the unit's own step (a series or cohort finding about the whole stays at -1).
    `part` is "" or ``key=value`` joined by ``;`` (``class=7``).
    """

    metric: str
    value: float = math.nan
    layer: str = ""
    probe: str = ""
    part: str = ""
    unit: str = ""
    n: int = 0
    low: float = math.nan
    high: float = math.nan
    estimator: str = ""
    convention: str = ""
    status: Status = "ok"
    reason: str = ""
    step: int = -1
    run: str = ""
    analysis: str = ""
    other_run: str = ""
    other_layer: str = ""
    other_step: int | None = None


COLUMNS = (
    "run", "step", "probe", "layer", "part", "analysis", "metric", "value", "low", "high", "n", "unit",
    "estimator", "convention", "status", "reason", "other_run", "other_layer", "other_step",
)  # fmt: skip
"""The public columns, in order (design, section 7)."""

_SOURCES = b"stratascope_sources"
assert set(COLUMNS) == {item.name for item in fields(Row)}


def _schema() -> pa.Schema:
    import pyarrow as pa

    kinds = {"step": pa.int64(), "n": pa.int64(), "other_step": pa.int64(),
             "value": pa.float64(), "low": pa.float64(), "high": pa.float64()}  # fmt: skip
    return pa.schema([pa.field(name, kinds.get(name, pa.string())) for name in COLUMNS])


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write `rows` to the Parquet file `path`, sorted, so that equal findings give equal bytes."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    table = sorted(
        (asdict(row) for row in rows),
        key=lambda row: (
            tuple(str(row[name]) if name != "step" else f"{row[name]:020d}" for name in COLUMNS[:7])
            + (str(row["other_run"]), str(row["other_layer"]), str(row["other_step"]))
        ),
    )
    for row in table:
        if row["status"] not in ("ok", "vacuous"):
            row["value"] = math.nan
    parquet.write_table(pa.Table.from_pylist(table, schema=_schema()), path, compression="zstd")


def write_compacted(path: Path, sources: Iterable[Path], identity: str) -> None:
    """Join the rows of `sources` into one file that remembers their `identity`; by temporary name and rename."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    tables = [parquet.ParquetFile(source).read() for source in sources]
    table = pa.concat_tables(tables) if tables else _schema().empty_table()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    parquet.write_table(table.replace_schema_metadata({_SOURCES: identity}), temporary, compression="zstd")
    os.replace(temporary, path)


def compacted_identity(path: Path) -> str | None:
    """What `write_compacted` was told of the file `path`; None where there is none or it is damaged."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        found = parquet.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException):
        return None
    return found[_SOURCES].decode() if _SOURCES in found else None


def read_files(paths: Iterable[Path]) -> pd.DataFrame:
    """The rows of all `paths` as one data frame with `COLUMNS`; empty where there are none."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    tables = [parquet.ParquetFile(path).read() for path in paths]
    tables = [table.replace_schema_metadata(None) for table in tables]
    return (pa.concat_tables(tables) if tables else _schema().empty_table()).to_pandas()
