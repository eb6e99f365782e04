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
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratascope.errors import NewerStoreError, StoreError
from stratascope.storage.archive import describe_array, ensure_group, read_array
from stratascope.storage.damage import is_damaged
from stratascope.storage.manifests import Manifest, manifest_files, manifest_path, read_manifest
from stratascope.storage.units import Unit

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from stratascope.storage.staging import StagedUnit

SCHEMA_VERSION = 1
_FEW_UNITS = 50
"""The rows of so many units are read sooner one by one than from the rows of all."""
_FOLDERS = ("ledger", "manifests", "audits", "report", ".staging", ".locks")


class Store:
    """A store in a folder. Open it with `Store.open`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: str | Path, *, create: bool = False) -> Store:
        """Open the store at `path`, making it where `create` is set.

        Raises StoreError where there is none, NewerStoreError where a newer version wrote it.
        """
        path = Path(path).absolute()
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
        try:
            version = json.loads(root.read_bytes())["attributes"]["schema_version"]
        except (ValueError, KeyError) as error:
            raise StoreError(f"{root} is damaged ({error!r}); restore that file.") from None
        if version > SCHEMA_VERSION:
            raise NewerStoreError(
                f"the store {path} has schema {version}, this version of Stratascope knows up to "
                f"{SCHEMA_VERSION}: update Stratascope, or use another store."
            )
        for name in _FOLDERS:
            (path / name).mkdir(exist_ok=True)
        return cls(path)

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
            and not is_damaged(self.path, unit)
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
        from stratascope.storage.staging import StagedUnit

        staged = StagedUnit(self.path, unit, identity, identity_parts)
        try:
            yield staged
        except OSError as error:
            raise StoreError(
                f"{unit} cannot be written: {error.strerror or error}. What was stored before is untouched; "
                "make room or repair the disk, then audit again."
            ) from error
        finally:
            staged.discard()

    def sweep(self) -> list[str]:
        """Remove staging of processes that are gone, and data that no manifest vouches for."""
        removed = []
        for path in (self.path / ".staging").iterdir():
            owner = path.name.split("-")[0]
            if owner.isdigit() and not Path(f"/proc/{owner}").exists():
                shutil.rmtree(path, ignore_errors=True)
                removed.append(path.name)
        archive = self.path / "archive.zarr"
        known = {archive / top for unit in self.units() for top in unit.array_roots}
        for pattern in ("runs/*/*/*", "series/*/*", "cohort/*", "probes/*"):
            for path in archive.glob(pattern):
                if path.is_dir() and path not in known:
                    removed += self._sweep_orphan(path)
        return removed

    def _sweep_orphan(self, path: Path) -> list[str]:
        unit = _unit_at(path.relative_to(self.path / "archive.zarr").parts)
        with self.claim(unit, wait=False) as mine:
            if mine and self.manifest(unit) is None:
                shutil.rmtree(path, ignore_errors=True)
                return [str(path)]
        return []

    # -- reading -----------------------------------------------------------------------------------------

    def rows(self, units: Iterable[Unit] | None = None, metrics: Collection[str] | None = None) -> pd.DataFrame:
        """The ledger's rows of `units` (default: of every committed unit), or of some `metrics`, as a data frame.

        Sorted by analysis, metric, layer, probe, part, run and step. They are read from `ledger/_compacted/`, one file
        a run, which is rebuilt where it is stale; a few units, or a store that may only be read, file by file.
        """
        from stratascope.storage.compaction import in_order, read_rows, rows_file, with_metrics
        from stratascope.storage.ledger import joined, read_table

        chosen = None if units is None else frozenset(units)
        if chosen is None or len(chosen) > _FEW_UNITS:
            try:
                return read_rows(self.path, chosen, metrics).to_pandas()
            except OSError:
                chosen = frozenset(self.units()) if chosen is None else chosen
        paths = [rows_file(self.path, unit) for unit in sorted(chosen)]
        tables = (with_metrics(read_table(path), metrics) for path in paths if path.exists())
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


def _unit_at(parts: tuple[str, ...]) -> Unit:
    """The unit that owns the group `parts` below the archive."""
    if parts[0] == "runs":
        analysis = "capture" if parts[3] in ("activations", "statistics") else parts[3]
        return Unit("checkpoint", parts[1], int(parts[2]), analysis)
    if parts[0] == "series":
        return Unit("series", parts[1], -1, parts[2])
    return Unit("cohort" if parts[0] == "cohort" else "probe", "", -1, parts[1])


def process_facts() -> dict[str, Any]:
    """Who is at work, for `recorded` in a manifest."""
    return {"pid": os.getpid(), "host": os.uname().nodename, "finished": time.time()}
