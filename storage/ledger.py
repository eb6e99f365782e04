"""The ledger: the long table of scalar findings, one Parquet file for each committed unit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stratascope.errors import DamagedStoreError

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

TEXTS = tuple(name for name in COLUMNS if name not in ("step", "n", "other_step", "value", "low", "high"))
"""Those of them that hold text."""

PARQUET: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
"""How every file of rows is written: a flipped byte is found by reading."""
assert set(COLUMNS) == {item.name for item in fields(Row)}


def schema() -> pa.Schema:
    """The columns with their types."""
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
    parquet.write_table(pa.Table.from_pylist(table, schema=schema()), path, **PARQUET)


@contextmanager
def reading(path: Path, encoded: Sequence[str] = ()) -> Iterator[pa.parquet.ParquetFile]:
    """The open file of rows `path`, whose checksums are tested; `encoded` columns come as dictionaries.

    Raises DamagedStoreError where a checksum does not hold, FileNotFoundError where there is no file.
    """
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path, page_checksum_verification=True, read_dictionary=list(encoded)) as file:
            yield file
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise DamagedStoreError(
            f"the rows in {path} cannot be read ({str(error).strip()}); run `stratascope verify`, then audit again."
        ) from None


def read_table(path: Path) -> pa.Table:
    """All rows of the file `path`, in the public columns. Raises DamagedStoreError, FileNotFoundError."""
    with reading(path) as file:
        return file.read(columns=list(COLUMNS)).replace_schema_metadata(None)


def joined(tables: Iterable[pa.Table]) -> pa.Table:
    """All `tables` one after the other; an empty one with the public columns where there are none."""
    import pyarrow as pa

    found = list(tables)
    return pa.concat_tables(found) if found else schema().empty_table()


def read_files(paths: Iterable[Path]) -> pd.DataFrame:
    """The rows of all `paths` as one data frame with `COLUMNS`; empty where there are none."""
    return joined(read_table(path) for path in paths).to_pandas()
