"""Where the rows of a store's units lie, each unit's in a file of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from stratascope.storage.ledger import read_table
from stratascope.storage.manifest_index import indexed_units
from stratascope.storage.units import Unit

if TYPE_CHECKING:
    import pyarrow as pa


def rows_file(root: Path, unit: Unit) -> Path:
    """Where the rows of `unit` lie in the store at `root`."""
    return root / "ledger" / f"{unit.relative_path}.parquet"


class LedgerFiles:
    """The files of rows of a store in a folder; `root` is where files that are derived from them may be kept."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def checksums(self) -> dict[Unit, str]:
        """The committed units that filed rows, each with the checksum of its file."""
        found = indexed_units(self.root)
        return {
            item.unit: item.rows_checksum
            for item in found
            if item.rows_checksum and rows_file(self.root, item.unit).exists()
        }

    def tables(self, units: Iterable[Unit]) -> list[pa.Table]:
        """The rows of each of `units`, in that order; those without any are passed over. Raises DamagedStoreError."""
        paths = (rows_file(self.root, unit) for unit in units)
        return [read_table(path) for path in paths if path.exists()]

    def bring(self, path: Path, sources: Mapping[str, str]) -> bool:
        """Put the derived file `path`, made of exactly `sources`, in its place where another machine has made it."""
        return False

    def share(self, path: Path) -> None:
        """Give the derived file `path`, which has just been made, to other machines."""
