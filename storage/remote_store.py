"""A store behind a URL: manifests, archive and ledger are objects there; this machine keeps verified copies."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, TypeVar

from stratascope.errors import DamagedStoreError, StoreError
from stratascope.storage.archive import Fetch, describe_array, group_bytes, read_array
from stratascope.storage.cache import cache_folder, cache_name, trim
from stratascope.storage.claims import held_claim
from stratascope.storage.manifests import NOTES, Manifest, manifest_bytes, manifest_name, parse_manifest
from stratascope.storage.object_errors import ObjectChangedError
from stratascope.storage.objects import ObjectFacts, ObjectFolder, endpoint_of, open_folder, together
from stratascope.storage.report_copy import ReportCopy
from stratascope.storage.store import DIFFERS, SCHEMA_VERSION, Store, check_version, size_damage, unit_at
from stratascope.storage.unit_copies import Generation, SmallObjects, UnitCopies
from stratascope.storage.units import Unit

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from stratascope.storage.ledger_files import LedgerFiles
    from stratascope.storage.staging import StagedUnit

Value = TypeVar("Value")
ROOT = "archive.zarr/zarr.json"
KNOWN_SECONDS = 10.0
"""So long an open store goes by a manifest that it has read, when it reads arrays."""
_FOLDERS = ("units", "small", "report", "report-notes", ".staging", ".locks")
_CONTENT_ETAG = re.compile(r'"?[0-9a-f]{32}(-\d+)?"?')
"""An etag that is a digest of the content: equal bytes have equal ones."""


class RemoteStore(Store):
    """A store behind a URL. Open it with `Store.open`.

    `path` is the folder of this machine where units are staged and copies are kept; it may be removed at any time.
    """

    def __init__(self, url: str, folder: Path, objects: ObjectFolder) -> None:
        super().__init__(folder)
        self.url, self.objects = url, objects
        self.copies = UnitCopies(folder / "units", objects)
        self._small = SmallObjects(folder / "small", objects)
        self._seen: dict[str, ObjectFacts] | None = None
        self._known: dict[Unit, tuple[float, Generation]] = {}

    @classmethod
    def open_url(cls, url: str, create: bool) -> RemoteStore:
        """Open the store at `url`, making it where `create` is set. Raises as `Store.open` does."""
        url = url.rstrip("/")
        objects = open_folder(url)
        try:
            root = objects.read(ROOT)[0]
        except FileNotFoundError:
            if not create:
                raise StoreError(f"there is no store at {url}: no archive.zarr in it. Check the URL.") from None
            root = group_bytes({"schema_version": SCHEMA_VERSION})
            try:
                objects.write(ROOT, root, only_new=True)
            except FileExistsError:
                root = objects.read(ROOT)[0]
        check_version(root, url)
        folder = cache_folder() / "stores" / cache_name(endpoint_of(url), url)
        try:
            for name in _FOLDERS:
                (folder / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{folder} cannot be made ({error.strerror}): set STRATASCOPE_CACHE.") from None
        return cls(url, folder, objects)

    @property
    def location(self) -> str:
        return self.url

    # -- files -------------------------------------------------------------------------------------------

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        if self._seen is not None:
            yield
            return
        self._seen = self.objects.list()
        try:
            small = {
                name: facts for name, facts in self._seen.items() if name.startswith(("manifests/", "audits/"))
            }
            self._small.bring(small)
            yield
        finally:
            self._seen = None

    def names(self, folder: str) -> list[str]:
        listed = self._seen if self._seen is not None else self.objects.list(folder)
        found = [name for name in listed if name.startswith(f"{folder}/") and name.endswith(".json")]
        return sorted(found, key=PurePosixPath)

    def read_bytes(self, name: str) -> bytes:
        if self._seen is not None:
            if name not in self._seen:
                raise FileNotFoundError(2, "no such object", f"{self.url}/{name}")
            return self._small.read(name, self._seen[name])
        data, facts = self.objects.read(name)
        self._small.keep(name, facts.etag, data)
        return data

    def write_bytes(self, name: str, data: bytes) -> None:
        self._note(name, data, self.objects.write(name, data))

    def _note(self, name: str, data: bytes, etag: str) -> None:
        """Remember what has just been written."""
        self._small.keep(name, etag, data)
        if self._seen is not None:
            self._seen[name] = ObjectFacts(len(data), etag, time.time_ns())

    def has_file(self, name: str) -> bool:
        return name in self._seen if self._seen is not None else self.objects.head(name) is not None

    def delete_files(self, names: Iterable[str]) -> None:
        if self._seen is None:
            self.objects.delete(names)
            return
        there = [name for name in names if name in self._seen]
        self.objects.delete(there)
        for name in there:
            self._seen.pop(name, None)

    def replace_manifest(self, known: Manifest, manifest: Manifest) -> bool:
        """On the condition that nobody has written another one since."""
        name = manifest_name(known.unit)
        try:
            data, facts = self.objects.read(name)
            if parse_manifest(data) != known:
                return False
            data = manifest_bytes(manifest)
            self._note(name, data, self.objects.write(name, data, replacing=facts.etag))
        except (FileNotFoundError, ObjectChangedError):
            return False
        self._known.pop(known.unit, None)
        return True

    def damage_of(self, files: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
        import xxhash

        listed = self._seen if self._seen is not None else self.objects.list()

        def reason(name: str) -> str:
            facts = listed.get(name)
            known = size_damage(facts.size if facts is not None else None, files[name])
            if known or facts is None:
                return known
            try:
                data = self.objects.read(name)[0]
            except FileNotFoundError:
                return size_damage(None, files[name])
            return "" if xxhash.xxh3_128_hexdigest(data) == files[name]["xxh3"] else DIFFERS

        found = zip(files, together(reason, files), strict=True)
        return {name: text for name, text in found if text}

    @contextmanager
    def report_folder(
        self, *, wants: Sequence[str] = (), replaces: Sequence[str] = (), adds: Sequence[str] = ()
    ) -> Iterator[Path]:
        copy = ReportCopy(self.path / "report", self.path / "report-notes", self.objects)
        copy.bring(wants)
        yield copy.folder
        copy.take(replaces, adds)

    def free_bytes(self) -> int | None:
        return None

    def zarr_place(self, path: str) -> Any:
        from stratascope.storage.zarr_stores import zarr_store

        return zarr_store(f"{self.url}/archive.zarr/{path}")

    # -- units -------------------------------------------------------------------------------------------

    def manifest(self, unit: Unit) -> Manifest | None:
        try:
            return parse_manifest(self.read_bytes(manifest_name(unit)))
        except FileNotFoundError:
            return None

    def manifests(self) -> dict[Unit, Manifest]:
        with self.snapshot():
            found = (self._manifest_at(name) for name in self.names("manifests"))
            return {manifest.unit: manifest for manifest in found if manifest is not None}

    def _manifest_at(self, name: str) -> Manifest | None:
        if name.split("/")[1] in NOTES:
            return None
        try:
            return parse_manifest(self.read_bytes(name))
        except FileNotFoundError:
            return None

    def committed(self, run: str, analysis: str) -> list[Unit]:
        with self.snapshot():
            names = [
                name for name in self.names(f"manifests/{run or '_cohort'}") if name.endswith(f"/{analysis}.json")
            ]
            return [manifest.unit for name in names if (manifest := self._manifest_at(name)) is not None]

    def units(self) -> list[Unit]:
        return list(self.manifests())

    def captured_steps(self, run: str) -> list[int]:
        found = (PurePosixPath(name) for name in self.names(f"manifests/{run}"))
        return sorted(int(path.parent.name) for path in found if path.name == "capture.json")

    def _files_are_there(self, manifest: Manifest) -> bool:
        listed = self._seen if self._seen is not None else self._listed_for(manifest)
        etags = manifest.recorded.get("etags", {})
        for name, facts in manifest.files.items():
            found = listed.get(name)
            if found is None or found.size != facts["bytes"]:
                return False
            wanted = etags.get(name, "")
            by_content = _CONTENT_ETAG.fullmatch(wanted) and _CONTENT_ETAG.fullmatch(found.etag)
            if by_content and wanted != found.etag:
                return False
        return True

    def _listed_for(self, manifest: Manifest) -> dict[str, ObjectFacts]:
        roots = [f"archive.zarr/{top}" for top in manifest.unit.array_roots]
        single = [name for name in manifest.files if not name.startswith(tuple(f"{root}/" for root in roots))]
        if len(single) > 4:
            roots += sorted({name.split("/")[0] for name in single})
            single = []
        found: dict[str, ObjectFacts] = {}
        for listed in together(self.objects.list, roots):
            found |= listed
        heads = zip(single, together(self.objects.head, single), strict=True)
        return found | {name: facts for name, facts in heads if facts is not None}

    @contextmanager
    def claim(self, unit: Unit, *, wait: bool = True) -> Iterator[bool]:
        """Hold `unit` against others: those of this machine by a lock, all others by an object that they look for."""
        with super().claim(unit, wait=wait) as mine:
            if not mine:
                yield False
                return
            digest = hashlib.sha256(f"{unit.scope}/{unit.relative_path}".encode()).hexdigest()[:32]
            with held_claim(self.objects, f"claims/{digest}.json", self._machine(), wait=wait) as held:
                yield held

    def _machine(self) -> str:
        """The same for all processes that share this folder, and so the locks in it."""
        place = self.path / "machine"
        if not place.exists():
            own = place.with_name(f".machine.{os.getpid()}.{os.urandom(4).hex()}")
            own.write_text(os.urandom(16).hex())
            with suppress(FileExistsError):
                os.link(own, place)
            own.unlink()
        return place.read_text()

    def _staged(self, unit: Unit, identity: str, identity_parts: dict[str, Any]) -> StagedUnit:
        from stratascope.storage.remote_staging import RemoteStagedUnit

        self._known.pop(unit, None)
        return RemoteStagedUnit(self.path, unit, identity, identity_parts, self.objects, self.copies)

    def sweep(self) -> list[str]:
        removed = self._sweep_staging()
        trim(self.path / "units")
        with self.snapshot():
            known = {top for unit in self.manifests() for top in unit.array_roots}
            found = {top for name in self._seen or () if (top := _top_of(name)) is not None}
        for top in sorted(found - known):
            with self.claim(unit_at(top.parts), wait=False) as mine:
                if mine and self.manifest(unit_at(top.parts)) is None:
                    self.objects.delete(self.objects.list(f"archive.zarr/{top}"))
                    removed.append(f"{self.url}/archive.zarr/{top}")
        return removed

    # -- reading -----------------------------------------------------------------------------------------

    def _generation(self, unit: Unit, *, anew: bool = False) -> Generation | None:
        moment, known = self._known.get(unit, (0.0, None))
        if known is not None and not anew and time.monotonic() - moment < KNOWN_SECONDS:
            return known
        manifest = self.manifest(unit)
        if manifest is None:
            self._known.pop(unit, None)
            return None
        if known is None or known.manifest != manifest:
            known = Generation(manifest)
        self._known[unit] = (time.monotonic(), known)
        return known

    def _reading(self, path: str, read: Callable[[Path, Fetch], Value]) -> Value:
        """What `read` makes of the array at `path`, all of it from one generation of its unit."""
        unit = _unit_of(path)
        before: Generation | None = None
        for attempt in range(3):
            generation = self._generation(unit, anew=attempt > 0) if unit is not None else None
            if generation is None or path not in generation.nodes:
                raise StoreError(f"there is no array {self.url}/archive.zarr/{path}.")
            inside = [name for name in generation.manifest.files if name.startswith(f"archive.zarr/{path}/")]

            def fetch(
                names: Iterable[str] | None, item: Generation = generation, inside: list[str] = inside
            ) -> None:
                wanted = inside if names is None else [f"archive.zarr/{path}/{name}" for name in names]
                self.copies.fetch((item, name) for name in wanted if name in item.manifest.files)

            try:
                with self.copies.holding(generation) as folder:
                    return read(folder / "archive.zarr" / path, fetch)
            except ObjectChangedError as error:
                if before is not None and before.key == generation.key:
                    raise DamagedStoreError(f"{error}; run `stratascope verify`, then audit again.") from None
                before = generation
        raise StoreError(f"{self.url}/archive.zarr/{path} is being replaced again and again: try again later.")

    def array(self, path: str) -> np.ndarray:
        return self._reading(path, lambda folder, fetch: read_array(folder, fetch=fetch))

    def read_slice(self, path: str, start: int, stop: int) -> np.ndarray:
        return self._reading(path, lambda folder, fetch: read_array(folder, start, stop, fetch))

    def array_info(self, path: str) -> tuple[tuple[str, ...], tuple[int, ...], str, dict[str, Any]]:
        return self._reading(path, describe_array)

    def has_array(self, path: str) -> bool:
        unit = _unit_of(path)
        generation = self._generation(unit) if unit is not None else None
        if generation is None or path not in generation.nodes:
            return False
        if generation.has_chunks(path):
            return True

        def node_type(folder: Path, fetch: Fetch) -> str:
            fetch(["zarr.json"])
            return str(json.loads((folder / "zarr.json").read_bytes())["node_type"])

        return self._reading(path, node_type) == "array"

    def list_arrays(self, prefix: str) -> list[str]:
        unit = _unit_of(prefix)
        if unit is None:  # a group above units
            with self.snapshot():
                items = [self._generation(unit) for unit in self.manifests()]
        else:
            items = [self._generation(unit)]
        nodes = sorted(node for item in items if item is not None for node in item.nodes)
        below = [node for node in nodes if node == prefix or node.startswith(f"{prefix.rstrip('/')}/")]
        return [node for node in (below if prefix else nodes) if self.has_array(node)]

    def ledger_files(self) -> LedgerFiles:
        from stratascope.storage.remote_ledger import RemoteLedger

        return RemoteLedger(self)

    def rows(self, units: Iterable[Unit] | None = None, metrics: Collection[str] | None = None) -> pd.DataFrame:
        with self.snapshot():
            return super().rows(units, metrics)


def _unit_of(path: str) -> Unit | None:
    """The unit that owns what lies at `path` below the archive; None where that is above all units."""
    try:
        return unit_at(PurePosixPath(path).parts)
    except (IndexError, ValueError):
        return None


def _top_of(name: str) -> PurePosixPath | None:
    """The group of a unit that the object `name` lies in; None where it lies in none."""
    parts = PurePosixPath(name).parts
    depth = {"runs": 4, "series": 3, "cohort": 2, "probes": 2}.get(parts[1] if len(parts) > 1 else "", 0)
    inside = parts[0] == "archive.zarr" and depth and len(parts) > depth + 1
    return PurePosixPath(*parts[1 : depth + 1]) if inside else None
