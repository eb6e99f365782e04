"""Questions to the ledger: only the rows and columns that match are read, and they leave as a stream."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

import numpy as np

from stratascope.errors import ConfigurationError, DamagedStoreError, did_you_mean
from stratascope.storage.compaction import compacted, in_order, read_rows
from stratascope.storage.ledger import COLUMNS, PARQUET, TEXTS, joined, reading
from stratascope.storage.store import Store

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 1 << 14


@dataclass(frozen=True)
class Selection:
    """The rows that match, sorted by analysis, metric, layer, probe, part, run and step."""

    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def write_csv(self, stream: BinaryIO) -> None:
        """All columns, with a header; numbers that are none stay empty."""
        import pyarrow.csv as csv

        stream.write((",".join(COLUMNS) + "\n").encode())
        style = "needed" if _needs_quotes(self.table) else "none"
        options = csv.WriteOptions(include_header=False, quoting_style=style, batch_size=_BATCH)
        csv.write_csv(_without_nan(_plain(self.table)), stream, options)

    def write_json(self, stream: TextIO) -> None:
        """One array of objects, one object a line; numbers that are none are null."""
        stream.write("[")
        separator = "\n"
        for record in self.records():
            stream.write(separator + json.dumps(record, ensure_ascii=False))
            separator = ",\n"
        stream.write("\n]\n")

    def write_parquet(self, stream: BinaryIO) -> None:
        """One Parquet file."""
        import pyarrow.parquet as parquet

        # Without Arrow's own schema the file has plain texts, whatever they are in memory.
        parquet.write_table(self.table, stream, store_schema=False, **PARQUET)

    def records(self, columns: Sequence[str] = COLUMNS, most: int | None = None) -> Iterator[dict[str, Any]]:
        """The rows (at most `most`) as mappings of `columns`; numbers that are none are None."""
        table = _without_nan(_plain(self.table.select(list(columns)).slice(0, most)))
        for batch in table.to_batches(max_chunksize=_BATCH):
            yield from batch.to_pylist()


def select(store: Store, wanted: Mapping[str, str], step: int | None = None) -> Selection:
    """The rows whose columns match the globs `wanted`, and of this `step`.

    Raises ConfigurationError where a glob matches nothing, with the nearest name that there is.
    """
    with store.snapshot():
        return _select(store, wanted, step)


def _select(store: Store, wanted: Mapping[str, str], step: int | None) -> Selection:
    patterns = {column: pattern for column, pattern in wanted.items() if pattern != "*"}
    ledger = store.ledger_files()
    try:
        parts = [_Part.of_file(path, [*patterns, "step"]) for path in compacted(ledger)]
        return _selected(parts, patterns, step)
    except DamagedStoreError:  # of a compacted file, which is made again, or of a unit, which is told of
        table = read_rows(ledger)
    except OSError:  # a store that may only be read, and is not compacted
        table = joined(ledger.tables(sorted(store.units())))
    return _selected([_Part(table, np.ones(len(table), bool))], patterns, step)


@dataclass
class _Part:
    """Rows, or as much of the file `path` as tells which of its rows are wanted; and whether each still is."""

    table: pa.Table
    wanted: np.ndarray
    path: Path | None = None

    @classmethod
    def of_file(cls, path: Path, columns: Sequence[str]) -> _Part:
        with reading(path, [name for name in columns if name != "step"]) as file:
            table = file.read(columns=list(columns))
        return cls(table, np.ones(len(table), bool), path)

    def names(self, column: str) -> set[str]:
        """The values of `column` in the rows that are still wanted."""
        import pyarrow as pa

        return set(self.table[column].filter(pa.array(self.wanted)).unique().to_pylist())

    def narrow(self, column: str, values: Sequence[Any]) -> None:
        import pyarrow as pa
        import pyarrow.compute as compute

        kind = self.table.schema.field(column).type
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        found = compute.is_in(self.table[column], value_set=pa.array(values, plain))
        self.wanted &= found.to_numpy(zero_copy_only=False)

    def rows(self) -> pa.Table:
        import pyarrow as pa

        if self.path is None:
            return self.table.filter(pa.array(self.wanted))
        with reading(self.path, TEXTS) as file:
            sizes = [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)]
            ends = np.cumsum([0, *sizes])
            inside = [bool(self.wanted[ends[n] : ends[n + 1]].any()) for n in range(len(sizes))]
            table = file.read_row_groups([n for n, some in enumerate(inside) if some], columns=list(COLUMNS))
        mask = self.wanted[np.repeat(inside, sizes)]
        table = table.replace_schema_metadata(None)
        return table if mask.all() else table.filter(pa.array(mask))


def _selected(parts: Sequence[_Part], patterns: Mapping[str, str], step: int | None) -> Selection:
    for column, pattern in patterns.items():
        known: set[str] = set().union(*(part.names(column) for part in parts)) if parts else set()
        matching = sorted(name for name in known if fnmatchcase(name, pattern))
        if not matching:
            raise ConfigurationError(
                f"no finding has {column} {pattern!r}." + did_you_mean(pattern, sorted(known))
            )
        for part in parts:
            part.narrow(column, matching)
    if step is not None:
        for part in parts:
            part.narrow("step", [step])
    tables = [part.rows() for part in parts]
    in_one_file = len(tables) == 1 and parts[0].path is not None
    return Selection(tables[0] if in_one_file else in_order(joined(tables).unify_dictionaries()))


def _needs_quotes(table: pa.Table) -> bool:
    import pyarrow as pa
    import pyarrow.compute as compute

    texts = (table[name].unique().cast(pa.string()) for name in TEXTS)
    return any(compute.any(compute.match_substring_regex(names, '[",\r\n]')).as_py() for names in texts)


def _plain(table: pa.Table) -> pa.Table:
    """`table` with its texts written out: rows are made of them ten times as fast as of dictionaries."""
    import pyarrow as pa

    def plain(field: pa.Field) -> pa.Field:
        return field.with_type(pa.string()) if pa.types.is_dictionary(field.type) else field

    return table.cast(pa.schema([plain(field) for field in table.schema]))


def _without_nan(table: pa.Table) -> pa.Table:
    """`table` with nothing in place of each number that is none."""
    import pyarrow as pa
    import pyarrow.compute as compute

    for place, field in enumerate(table.schema):
        if pa.types.is_floating(field.type):
            column = table[field.name]
            table = table.set_column(
                place, field, compute.if_else(compute.is_nan(column), pa.scalar(None, field.type), column)
            )
    return table
