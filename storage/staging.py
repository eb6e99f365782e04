"""A unit in the making: private until its commit, gone if it fails."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from stratascope.errors import StoreError
from stratascope.storage.archive import ArrayWriter, create_array, ensure_group, write_text_array
from stratascope.storage.damage import damage_note
from stratascope.storage.digests import file_checksum
from stratascope.storage.ledger import Row, write_rows
from stratascope.storage.manifests import Manifest, manifest_bytes, manifest_path, sync_directory
from stratascope.storage.store import this_machine
from stratascope.storage.units import Unit


class StagedUnit:
    """Everything that one worker writes for one unit, in a tree that only it knows."""

    def __init__(self, root: Path, unit: Unit, identity: str, identity_parts: dict[str, Any]) -> None:
        self.unit = unit
        self.identity = identity
        self.identity_parts = identity_parts
        self.summary: dict[str, Any] = {}
        self.recorded: dict[str, Any] = {}
        self._root = root
        self.path = root / ".staging" / f"{os.getpid()}-{this_machine()}-{os.urandom(6).hex()}"
        self._archive = self.path / "archive.zarr"
        self._writers: dict[str, ArrayWriter] = {}
        self._rows: list[Row] | None = None
        self._archive.mkdir(parents=True)
        for group in unit.array_roots:
            ensure_group(self._archive / group, durably=False)

    def create_array(
        self,
        path: str,
        *,
        dims: Sequence[str],
        shape: Sequence[int],
        dtype: Any,
        attributes: Mapping[str, Any] | None = None,
        codec: str = "zstd",
    ) -> ArrayWriter:
        """A writer for the array `path`, below the unit's own group (for `capture`: below the step's)."""
        target = self._place(path)
        writer = create_array(target, dims=dims, shape=shape, dtype=dtype, attributes=attributes, codec=codec)
        self._writers[path] = writer
        return writer

    def write_array(self, path: str, named_array: Any, codec: str = "zstd") -> None:
        """Write a whole array at once; `named_array` has `dims`, `values` and `attributes`."""
        values = named_array.values
        if values.dtype.kind in "UT":
            write_text_array(self._place(path), named_array.dims[0], list(values), named_array.attributes)
            return
        writer = self.create_array(
            path,
            dims=named_array.dims,
            shape=values.shape,
            dtype=values.dtype,
            attributes=named_array.attributes,
            codec=codec,
        )
        if values.ndim:
            writer.append(values)
        else:
            writer.write_scalar(values)

    def write_rows(self, rows: Sequence[Row]) -> None:
        """Set the unit's rows of the ledger; run, step and analysis are filled in."""
        unit = self.unit
        self._rows = [
            replace(
                row,
                run=row.run or unit.run,
                step=unit.step if unit.scope == "checkpoint" else row.step,
                analysis=unit.analysis,
            )
            for row in rows
        ]

    def commit(self) -> Manifest:
        """Make the unit exist: data to the disk, digests, old out, new in, manifest last."""
        for path, writer in self._writers.items():
            writer.close()
            if not writer.is_complete:
                raise StoreError(f"{self.unit}: array {path!r} is incomplete, {writer.rows} rows written.")
        ledger = self.path / "rows.parquet"
        if self._rows is not None:
            write_rows(ledger, self._rows)
        files = self._digest(ledger)
        manifest = Manifest(
            self.unit, self.identity, self.identity_parts, files, dict(self.summary), dict(self.recorded)
        )
        return self._publish(manifest, ledger)

    def _publish(self, manifest: Manifest, ledger: Path) -> Manifest:
        """Put data, ledger and at last the manifest where readers look for them."""
        written = self.path / "manifest.json"
        written.write_bytes(manifest_bytes(manifest))
        target = manifest_path(self._root, self.unit)
        ledger_target = self._root / "ledger" / f"{self.unit.relative_path}.parquet"
        # Everything that can fail for want of room comes before the old result is touched.
        self._make_parents(target.parent, ledger_target.parent)
        bring_to_disk(self.path)
        target.unlink(missing_ok=True)
        for top in self.unit.array_roots:
            self._swap(top)
        if self._rows is not None:
            os.replace(ledger, ledger_target)
        os.replace(written, target)
        sync_directory(target.parent)
        (self._root / damage_note(self.unit)).unlink(missing_ok=True)
        return manifest

    def discard(self) -> None:
        """Remove the staging tree."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _base(self) -> PurePosixPath:
        roots = self.unit.array_roots
        if not roots:
            raise StoreError(f"{self.unit} owns no arrays.")
        return roots[0].parent if self.unit.analysis == "capture" else roots[0]

    def _place(self, path: str) -> Path:
        place = self._base() / path
        if ".." in place.parts or not any(place.is_relative_to(top) for top in self.unit.array_roots):
            raise StoreError(f"{self.unit} may not write {path!r}: it owns {self.unit.array_roots}.")
        for parent in reversed(place.parents[:-1]):
            ensure_group(self._archive / parent, durably=False)
        return self._archive / place

    def _digest(self, ledger: Path) -> dict[str, dict[str, Any]]:
        """Bytes and checksum of every file by its path below the store."""
        known = {
            writer.folder / name: facts
            for writer in self._writers.values()
            for name, facts in writer.checksums.items()
        }
        files = {}
        for path in sorted(self._archive.rglob("*")):
            inside = PurePosixPath(path.relative_to(self._archive).as_posix())
            if path.is_file() and any(inside.is_relative_to(top) for top in self.unit.array_roots):
                size, checksum = known.get(path) or (path.stat().st_size, file_checksum(path))
                files[f"archive.zarr/{inside}"] = {"bytes": size, "xxh3": checksum}
        if ledger.exists():
            facts = {"bytes": ledger.stat().st_size, "xxh3": file_checksum(ledger)}
            files[f"ledger/{self.unit.relative_path}.parquet"] = facts
        return files

    def _make_parents(self, *folders: Path) -> None:
        for top in self.unit.array_roots:
            for parent in reversed(top.parents[:-1]):
                ensure_group(self._root / "archive.zarr" / parent)
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)

    def _swap(self, top: PurePosixPath) -> None:
        target = self._root / "archive.zarr" / top
        if target.exists():
            os.replace(target, self.path / f"superseded-{os.urandom(4).hex()}")
        os.replace(self._archive / top, target)


def bring_to_disk(folder: Path) -> None:
    """Wait until every file below `folder` is on the disk.

    One `syncfs` costs a fraction of an fsync for each of hundreds of small files (`benchmarks/archive.py`); where
    the system has none, each file is synced by itself.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        syncfs = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
        if syncfs is not None:
            if syncfs(handle) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), str(folder))
            return
    finally:
        os.close(handle)
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as stream:
                os.fsync(stream.fileno())
