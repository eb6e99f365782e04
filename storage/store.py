"""The store: archive, ledger, manifests and report in one folder.

Importing this module brings in neither Zarr nor PyArrow, so that planning stays quick.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratascope.errors import NewerStoreError, StoreError
from stratascope.storage.archive import describe_array, ensure_group, read_array
from stratascope.storage.damage import is_damaged
from stratascope.storage.manifests import (
    Manifest,
    manifest_bytes,
    manifest_files,
    manifest_name,
    manifest_path,
    read_manifest,
    write_atomically,
)
from stratascope.storage.objects import is_url
from stratascope.storage.units import Unit

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from stratascope.storage.ledger_files import LedgerFiles
    from stratascope.storage.staging import StagedUnit

SCHEMA_VERSION = 1
_FEW_UNITS = 50
"""The rows of so many units are read sooner one by one than from the rows of all."""
_ABANDONED_SECONDS = 7 * 24 * 3600
_FOLDERS = ("ledger", "manifests", "audits", "report", ".staging", ".locks")


class Store:
    """A store in a folder. Open it with `Store.open`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: str | Path, *, create: bool = False) -> Store:
        """Open the store at `path`, a folder or a URL, making it where `create` is set.

        Raises StoreError where there is none, NewerStoreError where a newer version wrote it, UnreachableError.
        """
        if isinstance(path, str) and is_url(path):
            from stratascope.storage.remote_store import RemoteStore

            return RemoteStore.open_url(path, create)
        path = Path(str(path).removeprefix("file://")).absolute()
        root = path / "archive.zarr" / "zarr.json"
        if not root.exists():
            if not create:
                raise StoreError(f"there is no store at {path}: no archive.zarr in it. Check the path.")
            try:
                for name in _FOLDERS:
                    (path / name).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StoreError(f"the store {path} cannot be made: {error.strerror}.") from None
            ensure_group(path / "archive.zarr", {"schema_version": SCHEMA_VERSION})
        check_version(root.read_bytes(), str(path))
        for name in _FOLDERS:
            (path / name).mkdir(exist_ok=True)
        return cls(path)

    @property
    def location(self) -> str:
        """What opens this store again, here or on another machine: its folder, or its URL."""
        return str(self.path)

    # -- files -------------------------------------------------------------------------------------------

    def names(self, folder: str) -> list[str]:
        """The JSON files below `folder`, by their names below the store, sorted."""
        paths = sorted((self.path / folder).rglob("*.json"))
        return [path.relative_to(self.path).as_posix() for path in paths if not path.name.startswith(".")]

    def read_bytes(self, name: str) -> bytes:
        """The small file `name` below the store. Raises FileNotFoundError."""
        return (self.path / name).read_bytes()

    def write_bytes(self, name: str, data: bytes) -> None:
        """Write the small file `name` below the store: whole, or not at all."""
        write_atomically(self.path / name, data)

    def has_file(self, name: str) -> bool:
        """Whether the file `name` is there below the store."""
        return (self.path / name).exists()

    def delete_files(self, names: Iterable[str]) -> None:
        """Remove the files `names` below the store, and folders of the archive that are empty then."""
        folders = set()
        for name in names:
            path = self.path / name
            path.unlink(missing_ok=True)
            folders |= set(path.parents)
        archive = self.path / "archive.zarr"
        for folder in sorted(folders, key=lambda path: len(path.parts), reverse=True):
            if folder.is_relative_to(archive) and folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def write_manifest(self, manifest: Manifest) -> None:
        """Write `manifest` durably; from then on its unit exists."""
        self.write_bytes(manifest_name(manifest.unit), manifest_bytes(manifest))

    def replace_manifest(self, known: Manifest, manifest: Manifest) -> bool:
        """Write `manifest` in place of `known`, which the caller, who holds the unit, has read; whether it was still it."""
        self.write_manifest(manifest)
        return True

    def damage_of(self, files: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        """What is wrong with those of `files` (names below the store, with bytes and xxh3) that are damaged."""
        from stratascope.storage.digests import file_checksum

        found = {}
        for name, facts in files.items():
            path = self.path / name
            size = path.stat().st_size if path.exists() else None
            reason = size_damage(size, facts)
            if not reason and file_checksum(path) != facts["xxh3"]:
                reason = DIFFERS
            if reason:
                found[name] = reason
        return found

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """While it is open, what was stored may be told as it was at the beginning: one look for many questions.

        A folder is looked at anew each time; behind a URL each look would be a request.
        """
        yield

    @contextmanager
    def report_folder(
        self, *, wants: Sequence[str] = (), replaces: Sequence[str] = (), adds: Sequence[str] = ()
    ) -> Iterator[Path]:
        """The folder of the report to read and write in.

        Behind a URL it is a copy: what lies below the folders `wants` is brought here first; afterwards what lies
        below `replaces` is made the same there, and what is new or changed below `adds` is written there.
        """
        yield self.path / "report"

    def free_bytes(self) -> int | None:
        """Room that is left; None where the store has no limit of its own."""
        return shutil.disk_usage(self.path).free

    def zarr_place(self, path: str) -> Any:
        """What zarr-python and xarray open to read the group at `path` below the archive."""
        return str(self.path / "archive.zarr" / path)

    # -- units -------------------------------------------------------------------------------------------

    def manifest(self, unit: Unit) -> Manifest | None:
        """The manifest of `unit`; None where the unit does not exist."""
        return read_manifest(manifest_path(self.path, unit))

    def manifests(self) -> dict[Unit, Manifest]:
        """All committed units, in the order of their paths."""
        found = {}
        for path in manifest_files(self.path):
            if (manifest := read_manifest(path)) is not None:
                found[manifest.unit] = manifest
        return found

    def committed(self, run: str, analysis: str) -> list[Unit]:
        """The committed units called `analysis` of `run`, or of no run: a long series has thousands of others."""
        pattern = f"{run}/*/{analysis}.json" if run else f"_cohort/{analysis}.json"
        found = (read_manifest(path) for path in sorted((self.path / "manifests").glob(pattern)))
        return [manifest.unit for manifest in found if manifest is not None]

    def units(self) -> list[Unit]:
        """All committed units, in the order of their manifests' paths; quicker than `manifests`."""
        from stratascope.storage.manifest_index import indexed_units

        return [item.unit for item in indexed_units(self.path)]

    def captured_steps(self, run: str) -> list[int]:
        """The steps of `run` that have a capture, ascending, without a look into their manifests."""
        found = (self.path / "manifests" / run).glob("*/capture.json")
        return sorted(int(path.parent.name) for path in found)

    def is_current(self, unit: Unit, identity: str) -> bool:
        """Whether `unit` is stored with this identity, its files are there with their sizes, and no damage is known."""
        manifest = self.manifest(unit)
        return (
            manifest is not None
            and manifest.identity == identity
            and self._files_are_there(manifest)
            and not is_damaged(self, unit)
        )

    def _files_are_there(self, manifest: Manifest) -> bool:
        try:
            return all(
                (self.path / name).stat().st_size == facts["bytes"] for name, facts in manifest.files.items()
            )
        except OSError:
            return False

    @contextmanager
    def claim(self, unit: Unit, *, wait: bool = True) -> Iterator[bool]:
        """Hold `unit` against other processes; the lock ends with its owner, however that dies.

        Yields whether it was got; with `wait` it always is.
        """
        name = hashlib.sha256(f"{unit.scope}/{unit.relative_path}".encode()).hexdigest()[:32]
        with open(self.path / ".locks" / name, "w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if wait:
                        time.sleep(0.1)
                        continue
                    yield False
                    return
                break
            yield True

    @contextmanager
    def stage(self, unit: Unit, identity: str, identity_parts: dict[str, Any]) -> Iterator[StagedUnit]:
        """A private place to build `unit` in. It is removed at the end; what was committed stays."""
        staged = self._staged(unit, identity, identity_parts)
        try:
            yield staged
        except OSError as error:
            raise StoreError(
                f"{unit} cannot be written: {error.strerror or error}. What was stored before is untouched; "
                "make room or repair the disk, then audit again."
            ) from error
        finally:
            staged.discard()

    def _staged(self, unit: Unit, identity: str, identity_parts: dict[str, Any]) -> StagedUnit:
        from stratascope.storage.staging import StagedUnit

        return StagedUnit(self.path, unit, identity, identity_parts)

    def sweep(self) -> list[str]:
        """Remove staging of processes that are gone, and data that no manifest vouches for."""
        removed = self._sweep_staging()
        archive = self.path / "archive.zarr"
        known = {archive / top for unit in self.units() for top in unit.array_roots}
        for pattern in ("runs/*/*/*", "series/*/*", "cohort/*", "probes/*"):
            for path in archive.glob(pattern):
                if path.is_dir() and path not in known:
                    removed += self._sweep_orphan(path)
        return removed

    def _sweep_staging(self) -> list[str]:
        removed = []
        for path in (self.path / ".staging").iterdir():
            if _is_abandoned(path):
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path.name)
        return removed

    def _sweep_orphan(self, path: Path) -> list[str]:
        unit = unit_at(path.relative_to(self.path / "archive.zarr").parts)
        with self.claim(unit, wait=False) as mine:
            if mine and self.manifest(unit) is None:
                shutil.rmtree(path, ignore_errors=True)
                return [str(path)]
        return []

    # -- reading -----------------------------------------------------------------------------------------

    def ledger_files(self) -> LedgerFiles:
        """The files of rows of the units; use it while a `snapshot` is open."""
        from stratascope.storage.ledger_files import LedgerFiles

        return LedgerFiles(self.path)

    def rows(self, units: Iterable[Unit] | None = None, metrics: Collection[str] | None = None) -> pd.DataFrame:
        """The ledger's rows of `units` (default: of every committed unit), or of some `metrics`, as a data frame.

        Sorted by analysis, metric, layer, probe, part, run and step. They are read from `ledger/_compacted/`, one file
        a run, which is rebuilt where it is stale; a few units, or a store that may only be read, file by file.
        """
        from stratascope.storage.compaction import in_order, read_rows, with_metrics
        from stratascope.storage.ledger import joined

        ledger = self.ledger_files()
        chosen = None if units is None else frozenset(units)
        if chosen is None or len(chosen) > _FEW_UNITS:
            try:
                return read_rows(ledger, chosen, metrics).to_pandas()
            except OSError:
                chosen = frozenset(self.units()) if chosen is None else chosen
        tables = (with_metrics(table, metrics) for table in ledger.tables(sorted(chosen)))
        return in_order(joined(tables)).to_pandas()

    def array(self, path: str) -> np.ndarray:
        """The whole array at `path` below the archive."""
        return read_array(self.path / "archive.zarr" / path)

    def read_slice(self, path: str, start: int, stop: int) -> np.ndarray:
        """Rows `start` to `stop` of the array at `path` below the archive."""
        return read_array(self.path / "archive.zarr" / path, start, stop)

    def array_info(self, path: str) -> tuple[tuple[str, ...], tuple[int, ...], str, dict[str, Any]]:
        """Dimension names, shape, dtype and attributes of the array at `path`."""
        return describe_array(self.path / "archive.zarr" / path)

    def has_array(self, path: str) -> bool:
        """Whether there is an array at `path`."""
        try:
            content = json.loads((self.path / "archive.zarr" / path / "zarr.json").read_bytes())
        except OSError:
            return False
        return content["node_type"] == "array"

    def list_arrays(self, prefix: str) -> list[str]:
        """Paths of all arrays below the group `prefix`, sorted."""
        archive = self.path / "archive.zarr"
        found = (path.parent for path in (archive / prefix).rglob("zarr.json"))
        names = sorted(path.relative_to(archive).as_posix() for path in found)
        return [name for name in names if self.has_array(name)]


def this_machine() -> str:
    """A few characters that stand for this machine in the names of staging folders, which machines may share."""
    return hashlib.sha256(os.uname().nodename.encode()).hexdigest()[:8]


def _is_abandoned(staging: Path) -> bool:
    """Whether who staged here is gone. Of another machine's processes only time tells."""
    owner, machine, *_ = [*staging.name.split("-"), ""]
    if not owner.isdigit():
        return False
    if machine == this_machine():
        return not Path(f"/proc/{owner}").exists()
    try:
        return time.time() - staging.stat().st_mtime > _ABANDONED_SECONDS
    except FileNotFoundError:
        return False


def unit_at(parts: tuple[str, ...]) -> Unit:
    """The unit that owns the group `parts` below the archive."""
    if parts[0] == "runs":
        analysis = "capture" if parts[3] in ("activations", "statistics") else parts[3]
        return Unit("checkpoint", parts[1], int(parts[2]), analysis)
    if parts[0] == "series":
        return Unit("series", parts[1], -1, parts[2])
    return Unit("cohort" if parts[0] == "cohort" else "probe", "", -1, parts[1])


DIFFERS = "the bytes differ from their checksum"


def size_damage(size: int | None, facts: Mapping[str, Any]) -> str:
    """What is wrong with a file of `size` bytes (None: it is not there), as far as that tells; "" for nothing."""
    if size is None:
        return "the file is missing"
    return "" if size == facts["bytes"] else f"the file has {size} bytes instead of {facts['bytes']}"


def check_version(root: bytes, place: str) -> None:
    """Raise StoreError where the archive's `zarr.json` is damaged, NewerStoreError where its schema is not known here."""
    try:
        version = json.loads(root)["attributes"]["schema_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(f"{place}/archive.zarr/zarr.json is damaged ({error!r}); restore that file.") from None
    if version > SCHEMA_VERSION:
        raise NewerStoreError(
            f"the store {place} has schema {version}, this version of Stratascope knows up to "
            f"{SCHEMA_VERSION}: update Stratascope, or use another store."
        )


def process_facts() -> dict[str, Any]:
    """Who is at work, for `recorded` in a manifest."""
    return {"pid": os.getpid(), "host": os.uname().nodename, "finished": time.time()}
