"""The rows of a store behind a URL: verified copies of the units' files, and compacted files that machines share."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from stratascope.errors import DamagedStoreError, UnreachableError
from stratascope.storage.compaction import FOLDER, sources_of
from stratascope.storage.ledger import read_table
from stratascope.storage.ledger_files import LedgerFiles
from stratascope.storage.object_errors import ObjectChangedError
from stratascope.storage.unit_copies import Generation
from stratascope.storage.units import Unit

if TYPE_CHECKING:
    import pyarrow as pa

    from stratascope.storage.remote_store import RemoteStore


class RemoteLedger(LedgerFiles):
    """Use it while a snapshot of `store` is open: one listing serves all questions."""

    def __init__(self, store: RemoteStore) -> None:
        super().__init__(store.path)
        self._store = store

    def checksums(self) -> dict[Unit, str]:
        named = ((unit, item.files.get(_name(unit))) for unit, item in self._store.manifests().items())
        return {unit: facts["xxh3"] for unit, facts in named if facts is not None}

    def tables(self, units: Iterable[Unit]) -> list[pa.Table]:
        manifests = ((unit, self._store.manifest(unit)) for unit in units)
        wanted = [
            (Generation(item), _name(unit))
            for unit, item in manifests
            if item is not None and _name(unit) in item.files
        ]
        copies = self._store.copies
        for attempt in range(3):
            try:
                copies.fetch(wanted, whole=False)
                return [read_table(copies.place(item, name)) for item, name in wanted]
            except ObjectChangedError as error:
                raise DamagedStoreError(f"{error}; run `stratascope verify`, then audit again.") from None
            except FileNotFoundError:  # a copy was thrown out in between; thousands of locks would be too many
                if attempt == 2:
                    raise
        raise AssertionError("unreachable")

    def bring(self, path: Path, sources: Mapping[str, str]) -> bool:
        name = f"{FOLDER}/{path.name}"
        if not self._store.has_file(name):
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
        try:
            self._store.objects.download(name, temporary)
            if sources_of(temporary) != sources:
                return False
            os.replace(temporary, path)
        except FileNotFoundError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def share(self, path: Path) -> None:
        with suppress(UnreachableError):  # a store that may only be read; what readers need is here
            self._store.objects.write(f"{FOLDER}/{path.name}", path.read_bytes())


def _name(unit: Unit) -> str:
    return f"ledger/{unit.relative_path}.parquet"
