"""Local copies of what a manifest names: each file verified by its digest, each generation of a unit by itself."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path, PurePosixPath

from stratascope.errors import StoreError
from stratascope.storage.cache import cache_limit, cache_name, trim
from stratascope.storage.digests import canonical_json, file_checksum
from stratascope.storage.manifests import Manifest
from stratascope.storage.object_errors import ObjectChangedError
from stratascope.storage.objects import ObjectFacts, ObjectFolder, together

WHOLE_BYTES = 8 << 20
"""A unit up to this size is fetched whole when its first file is: one wait instead of many."""


class Generation:
    """A unit as one manifest describes it."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.key = cache_name(str(manifest.unit.relative_path), canonical_json(manifest.files))

    @cached_property
    def nodes(self) -> list[str]:
        """Groups and arrays below the archive, sorted."""
        start, end = "archive.zarr/", "/zarr.json"
        names = [name for name in self.manifest.files if name.startswith(start) and name.endswith(end)]
        return sorted(name[len(start) : -len(end)] for name in names)

    def has_chunks(self, node: str) -> bool:
        """Whether `node` is an array for sure; one without any rows has no chunks either."""
        start = f"archive.zarr/{node}/c"
        return any(name == start or name.startswith((f"{start}.", f"{start}/")) for name in self.manifest.files)


class UnitCopies:
    """The copies of one store's units on this machine."""

    def __init__(self, folder: Path, objects: ObjectFolder) -> None:
        self._folder, self._objects = folder, objects
        self._fetched = 0

    @contextmanager
    def holding(self, generation: Generation) -> Iterator[Path]:
        """The folder of `generation`, which is not thrown out while it is held."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with open(self._folder / f"{generation.key}.lock", "w") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH)
                place = self._folder / generation.key
                place.mkdir(exist_ok=True)
                os.utime(place)
                yield place
        except OSError as error:
            if error.errno is None or isinstance(error, FileNotFoundError):
                raise
            raise StoreError(
                f"{self._folder} cannot be written ({error.strerror}): make room, or set STRATASCOPE_CACHE."
            ) from error

    def fetch(self, wanted: Iterable[tuple[Generation, str]], *, whole: bool = True) -> None:
        """Bring files, by their names below the store, into the folders of their generations.

        With `whole` a small unit comes as a whole.

        Raises ObjectChangedError where one has gone or does not have the bytes that its manifest names.
        """
        needed = {(item.key, name): item for item, name in wanted if not self._is_here(item, name)}
        for item in {item.key: item for item in needed.values()}.values():
            files = item.manifest.files
            if whole and sum(facts["bytes"] for facts in files.values()) <= WHOLE_BYTES:
                needed |= {(item.key, name): item for name in files if not self._is_here(item, name)}
        missing = [(item, name) for (_, name), item in needed.items()]
        if not missing:
            return
        together(lambda entry: self._fetch(*entry), missing)
        self._fetched += sum(item.manifest.files[name]["bytes"] for item, name in missing)
        if self._fetched > cache_limit() // 8:
            self._fetched = 0
            trim(self._folder)

    def place(self, generation: Generation, name: str) -> Path:
        """Where the copy of `name` lies while it is kept."""
        return self._folder / generation.key / _checked(name)

    def _is_here(self, generation: Generation, name: str) -> bool:
        return self.place(generation, name).exists()

    def _fetch(self, generation: Generation, name: str) -> None:
        facts = generation.manifest.files[name]
        target = self.place(generation, name)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}")
        try:
            self._objects.download(name, temporary, ObjectFacts(facts["bytes"], "", 0))
            if file_checksum(temporary) != facts["xxh3"]:
                raise ObjectChangedError(f"{self._objects.url}/{name}: the bytes differ from their checksum")
            os.replace(temporary, target)
        except FileNotFoundError:
            raise ObjectChangedError(f"{self._objects.url}/{name} is missing") from None
        finally:
            temporary.unlink(missing_ok=True)

    def adopt(self, manifest: Manifest, staged: Path) -> None:
        """Keep what was staged in the folder `staged` as the copy of `manifest`: nobody here has to fetch it."""
        generation = Generation(manifest)
        with self.holding(generation) as place:
            for name in manifest.files:
                source, target = staged / name, place / _checked(name)
                if source.exists() and not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(source, target)


def _checked(name: str) -> str:
    """`name`, which came from a manifest, if it stays below the folder that it is put in."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or path.parts[:1] not in (("archive.zarr",), ("ledger",)):
        raise StoreError(f"a manifest names the file {name!r}; expected one below archive.zarr/ or ledger/.")
    return name


class SmallObjects:
    """Copies of manifests and other small objects, each as long as its etag stays the same."""

    def __init__(self, folder: Path, objects: ObjectFolder) -> None:
        self._folder, self._objects = folder, objects

    def read(self, name: str, facts: ObjectFacts) -> bytes:
        """The bytes of `name`, which a listing described with `facts`. Raises FileNotFoundError."""
        known = self._known(name, facts)
        if known is not None:
            return known
        data, found = self._objects.read(name)
        self.keep(name, found.etag, data)
        return data

    def bring(self, listed: dict[str, ObjectFacts]) -> None:
        """Fetch those of `listed` that are not here, several at a time."""

        def fetch(name: str) -> None:
            with suppress(FileNotFoundError):  # removed since it was listed
                self.read(name, listed[name])

        together(fetch, [name for name in listed if self._known(name, listed[name]) is None])

    def keep(self, name: str, etag: str, data: bytes) -> None:
        """Remember that `name` has these bytes while its etag is `etag`."""
        import xxhash

        if not etag:
            return
        head = json.dumps({"name": name, "etag": etag, "xxh3": xxhash.xxh3_128_hexdigest(data)}).encode()
        target = self._folder / cache_name(name)
        temporary = self._folder / f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}"
        try:
            temporary.write_bytes(head + b"\n" + data)
            os.replace(temporary, target)
        except OSError:
            temporary.unlink(missing_ok=True)  # a copy less is no loss

    def _known(self, name: str, facts: ObjectFacts) -> bytes | None:
        import xxhash

        try:
            head, _, data = (self._folder / cache_name(name)).read_bytes().partition(b"\n")
            known = json.loads(head)
        except (OSError, ValueError):
            return None
        sound = (known["name"], known["etag"]) == (name, facts.etag) and len(data) == facts.size
        return data if sound and known["xxh3"] == xxhash.xxh3_128_hexdigest(data) else None
