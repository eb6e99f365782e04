"""A unit that is built on the local disk and committed to an object store."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from stratascope.errors import StoreError
from stratascope.storage.archive import group_bytes
from stratascope.storage.damage import damage_note
from stratascope.storage.manifests import Manifest, manifest_bytes, manifest_name, parse_manifest
from stratascope.storage.object_errors import ObjectChangedError
from stratascope.storage.objects import ObjectFacts, ObjectFolder, together
from stratascope.storage.staging import StagedUnit
from stratascope.storage.unit_copies import UnitCopies
from stratascope.storage.units import Unit

LARGE_BYTES = 4 << 20
LARGE_AT_ONCE = 4
"""So many files of more than `LARGE_BYTES` are in memory at a time on their way out."""
ROUNDS = 5
ETAGS = "etags"
"""Under `recorded` in a manifest: the etag of each of the unit's objects, so that a listing shows a change."""
_groups_seen: set[tuple[str, str]] = set()


class RemoteStagedUnit(StagedUnit):
    """What one worker writes for one unit: local until its commit, which puts the manifest last."""

    def __init__(
        self,
        root: Path,
        unit: Unit,
        identity: str,
        identity_parts: dict[str, Any],
        objects: ObjectFolder,
        copies: UnitCopies,
    ) -> None:
        super().__init__(root, unit, identity, identity_parts)
        self._objects, self._copies = objects, copies

    def _publish(self, manifest: Manifest, ledger: Path) -> Manifest:
        """Old manifest out, data in, then the new manifest by a conditional write.

        A commit in which another one got mixed up is seen in two ways: what lies there is not what was written, or
        there is a manifest already. Then everything is written again, unless that manifest names the very same bytes.
        """
        staged = {name: self.path / name for name in manifest.files}
        staged |= {name: ledger for name in manifest.files if name.startswith("ledger/")}
        self._make_groups()
        name = manifest_name(self.unit)
        for attempt in range(ROUNDS):
            self._objects.delete([name])
            etags = self._upload(staged)
            if self._lies_as_written(manifest.files, etags):
                done = replace(manifest, recorded={**manifest.recorded, ETAGS: etags})
                try:
                    self._objects.write(name, manifest_bytes(done), only_new=True)
                except (FileExistsError, ObjectChangedError):
                    other = self._manifest_of_another(name)
                    if other is not None and (other.identity, other.files) == (manifest.identity, manifest.files):
                        self._keep(other, ledger)
                        return other
                else:
                    self._keep(done, ledger)
                    return done
            time.sleep(random.uniform(0.2, 1.0) * 2**attempt)
        raise StoreError(
            f"{self.unit} in {self._objects.url} is being written by another audit with other settings, again and again: "
            "let one of them end, then audit again."
        )

    def _manifest_of_another(self, name: str) -> Manifest | None:
        """What another machine committed; None where it is whole no longer, or was taken out for the next commit."""
        try:
            return parse_manifest(self._objects.read(name)[0])
        except FileNotFoundError:
            return None

    def _make_groups(self) -> None:
        """The groups above the unit's own; many workers may do it at once."""
        above = {parent.as_posix() for top in self.unit.array_roots for parent in top.parents[:-1]}
        fresh = sorted(place for place in above if (self._objects.url, place) not in _groups_seen)

        def make(place: str) -> None:
            with suppress(FileExistsError):  # somebody gave it attributes
                self._objects.write(f"archive.zarr/{place}/zarr.json", group_bytes(), only_new=True)
            _groups_seen.add((self._objects.url, place))

        together(make, fresh)

    def _upload(self, staged: Mapping[str, Path]) -> dict[str, str]:
        """Write all files; returns their etags."""

        def send(name: str) -> tuple[str, str]:
            return name, self._objects.write(name, staged[name].read_bytes())

        large = [name for name in staged if staged[name].stat().st_size > LARGE_BYTES]
        etags = dict(together(send, [name for name in staged if name not in large]))
        etags |= dict(together(send, large, LARGE_AT_ONCE))
        return dict(sorted(etags.items()))

    def _lies_as_written(self, files: Mapping[str, Mapping[str, Any]], etags: Mapping[str, str]) -> bool:
        """Whether exactly what was written lies below the unit's groups; what a commit before left is removed."""
        roots = [f"archive.zarr/{top}" for top in self.unit.array_roots]
        found: dict[str, ObjectFacts] = {}
        for listed in together(self._objects.list, roots):
            found |= listed
        stale = [name for name in found if name not in files]
        self._objects.delete(stale)
        own = [name for name in files if name.startswith("archive.zarr/")]
        return all(
            name in found and found[name].size == files[name]["bytes"] and found[name].etag == etags[name]
            for name in own
        )

    def _keep(self, manifest: Manifest, ledger: Path) -> None:
        self._objects.delete([damage_note(self.unit)])
        target = self.path / "ledger" / f"{self.unit.relative_path}.parquet"
        if ledger.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            ledger.rename(target)
        self._copies.adopt(manifest, self.path)
