"""The compacted ledger: the rows of all units of a run in one file, derived from the units' own files.

Rows are sorted by what they are of, so that a run of neighbours is one metric of one layer over the steps, and come in
row groups that a reader can pass over. Where few units are new, the old file is read and only they are put in. A file
can be deleted at any time, and is rebuilt where it is stale or damaged.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from stratascope.errors import DamagedStoreError
from stratascope.storage.ledger import COLUMNS, PARQUET, joined, read_table, reading
from stratascope.storage.ledger_files import LedgerFiles
from stratascope.storage.units import CHECKS, Unit

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "ledger/_compacted"
ROWS_PER_GROUP = 1 << 15
ORDER = (
    "analysis", "metric", "layer", "probe", "part", "run", "step", "other_run", "other_layer", "other_step",
)  # fmt: skip
"""By what rows are sorted. Rows that agree in all of it belong to one unit, and keep its order."""
_SOURCES = b"stratascope_sources"
_LAYOUT = 2


def compacted(ledger: LedgerFiles) -> dict[Path, dict[Unit, str]]:
    """The up-to-date compacted files of a store's `ledger`, each with the units whose rows it holds.

    Raises OSError where the store may not be written, DamagedStoreError where a unit's own rows are damaged.
    """
    groups: dict[str, dict[Unit, str]] = {}
    for unit, checksum in ledger.checksums().items():
        name = unit.run or "_cohort"
        if unit.analysis == CHECKS:  # judged anew with every audit, which must not make a long run's file stale
            name = f"_checks-{unit.run}"
        groups.setdefault(name, {})[unit] = checksum
    found = {}
    for name, sources in sorted(groups.items()):
        path = ledger.root / FOLDER / f"{name}.parquet"
        _bring_up_to_date(ledger, path, sources)
        found[path] = sources
    return found


def _bring_up_to_date(
    ledger: LedgerFiles, path: Path, sources: Mapping[Unit, str], *, from_units: bool = False
) -> None:
    """With `from_units` it is made of the units' own files, whatever else there is."""
    wanted = {unit.relative_path.as_posix(): checksum for unit, checksum in sources.items()}
    known = sources_of(path)
    if known == wanted or (not from_units and ledger.bring(path, wanted)):
        return
    units = {unit.relative_path.as_posix(): unit for unit in sources}
    fresh = [units[name] for name, checksum in wanted.items() if known.get(name) != checksum]
    kept = [units[name] for name, checksum in wanted.items() if known.get(name) == checksum]
    tables = []
    if len(kept) > len(fresh):
        try:
            old = read_table(path)
            tables = [old.filter(rows_of(old, kept))]
        except (DamagedStoreError, FileNotFoundError):
            fresh = list(sources)
    else:
        fresh = list(sources)
    tables += ledger.tables(sorted(fresh))
    _write(path, in_order(joined(tables)), wanted)
    ledger.share(path)


def rows_of(table: pa.Table, units: Iterable[Unit]) -> pa.Array:
    """bool for each row of `table`, rows of one run: whether it belongs to one of `units`.

    An analysis has one scope, so a row of a checkpoint's unit is known by analysis and step, any other by analysis.
    """
    import pyarrow as pa
    import pyarrow.compute as compute

    wanted: dict[str, set[int] | None] = {}
    for unit in units:
        steps = wanted.setdefault(unit.analysis, set() if unit.scope == "checkpoint" else None)
        if steps is not None:
            steps.add(unit.step)
    mask = pa.array(np.zeros(len(table), bool))
    for analysis, steps in wanted.items():
        mine = compute.equal(table["analysis"], analysis)
        if steps is not None:
            mine = compute.and_(mine, compute.is_in(table["step"], value_set=pa.array(sorted(steps), pa.int64())))
        mask = compute.or_(mask, mine)
    return mask


def in_order(table: pa.Table) -> pa.Table:
    """The rows of `table`, sorted by `ORDER`."""
    keys = [_ranks(table[name]) for name in reversed(ORDER)]
    return table.take(np.lexsort(keys)) if len(table) else table


def _ranks(column: pa.ChunkedArray) -> np.ndarray:
    """Small numbers that sort as the values do; what is null comes first."""
    import pyarrow.compute as compute

    encoded = column.dictionary_encode().combine_chunks()
    codes = compute.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
    places = np.empty(len(encoded.dictionary) + 1, np.int64)
    places[compute.array_sort_indices(encoded.dictionary).to_numpy()] = np.arange(len(encoded.dictionary)) + 1
    places[-1] = 0
    # Sixteen bits are sorted by radix, in a tenth of the time.
    return places[codes].astype(np.int16 if len(places) < 2**15 else np.int64)


def sources_of(path: Path) -> dict[str, str]:
    """Of which units, with which checksums, the compacted file `path` was made; empty where it is no such file."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        found = json.loads((parquet.read_schema(path).metadata or {})[_SOURCES])
        return dict(found["units"]) if found["layout"] == _LAYOUT else {}
    except (OSError, pa.ArrowException, KeyError, ValueError, TypeError):
        return {}


def _write(path: Path, table: pa.Table, sources: Mapping[str, str]) -> None:
    import pyarrow.parquet as parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    told = json.dumps({"layout": _LAYOUT, "units": dict(sorted(sources.items()))})
    try:
        parquet.write_table(
            table.replace_schema_metadata({_SOURCES: told}), temporary, row_group_size=ROWS_PER_GROUP, **PARQUET
        )
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_rows(
    ledger: LedgerFiles, units: frozenset[Unit] | None = None, metrics: Collection[str] | None = None
) -> pa.Table:
    """The rows of `units` (default: of every committed one) of a store's `ledger`, sorted by `ORDER`.

    With `metrics`, only the rows of these.

    Raises OSError where the compacted files may not be written, DamagedStoreError where a unit's own rows are damaged.
    """
    tables = []
    for path, sources in compacted(ledger).items():
        mine = sources.keys() if units is None else units & sources.keys()
        if mine:
            try:
                tables.append(_read(path, sources, mine, metrics))
            except (DamagedStoreError, FileNotFoundError):  # derived, so it can be made again
                path.unlink(missing_ok=True)
                _bring_up_to_date(ledger, path, sources, from_units=True)
                tables.append(_read(path, sources, mine, metrics))
    return tables[0] if len(tables) == 1 else in_order(joined(tables))


def _read(path: Path, sources: Mapping[Unit, str], units: Set[Unit], metrics: Collection[str] | None) -> pa.Table:
    is_whole = len(units) == len(sources)
    with reading(path) as file:
        groups = set(range(file.num_row_groups))
        if not is_whole:
            groups &= groups_with(file, "analysis", {unit.analysis for unit in units})
        if metrics is not None:
            groups &= groups_with(file, "metric", metrics)
        table = file.read_row_groups(sorted(groups), columns=list(COLUMNS)).replace_schema_metadata(None)
    table = with_metrics(table, metrics)
    return table if is_whole else table.filter(rows_of(table, units))


def with_metrics(table: pa.Table, metrics: Collection[str] | None) -> pa.Table:
    """The rows of `table` that are of one of `metrics`; all where that is None."""
    import pyarrow as pa
    import pyarrow.compute as compute

    if metrics is None:
        return table
    return table.filter(compute.is_in(table["metric"], value_set=pa.array(sorted(metrics), pa.string())))


def groups_with(file: pa.parquet.ParquetFile, column: str, values: Collection[str]) -> set[int]:
    """The row groups of `file` that may hold any of `values` in `column`, by their least and largest value."""
    place = file.schema_arrow.get_field_index(column)
    found = set()
    for number in range(file.num_row_groups):
        facts = file.metadata.row_group(number).column(place).statistics
        if facts is None or not facts.has_min_max or any(facts.min <= value <= facts.max for value in values):
            found.add(number)
    return found
