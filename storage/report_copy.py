"""The copy of a report that is drawn on this machine, and its way to the object store and back."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from stratascope.storage.cache import cache_name
from stratascope.storage.objects import ObjectFacts, ObjectFolder, together

REPORT = "report/"
_IN_THE_MAKING = re.compile(r"\..*\.\d+\.[0-9a-f]{8}")
"""What `write_atomically` calls a file until it is whole."""


class ReportCopy:
    """A folder that is kept like the objects below `report/`.

    Beside each file stands in `notes` which object it equals: as long as size, time of change and etag are those
    noted, neither has changed.
    """

    def __init__(self, folder: Path, notes: Path, objects: ObjectFolder) -> None:
        self.folder, self._notes, self._objects = folder, notes, objects

    def bring(self, wanted: Sequence[str]) -> None:
        """Make what lies below each of `wanted` ("" for all) here as it is there."""
        for prefix in wanted:
            listed = self._listed(prefix)
            together(lambda name, listed=listed: self._download(name, listed[name]),  # type: ignore[misc]
                     [name for name, facts in listed.items() if not self._is_same(name, facts)])  # fmt: skip
            for name in self._files(prefix):
                if name not in listed:
                    (self.folder / name).unlink(missing_ok=True)

    def take(self, replaced: Sequence[str], added: Sequence[str]) -> None:
        """Write what is new or changed here below the prefixes; below `replaced`, remove there what is not here."""
        for prefix in (*replaced, *added):
            listed = self._listed(prefix)
            here = self._files(prefix)
            changed = [name for name in here if name not in listed or not self._is_same(name, listed[name])]
            together(lambda name, listed=listed: self._upload(name, listed.get(name)), changed)  # type: ignore[misc]
            if prefix in replaced:
                self._objects.delete(REPORT + name for name in listed if name not in here)

    def _listed(self, prefix: str) -> dict[str, ObjectFacts]:
        found = self._objects.list((REPORT + prefix).rstrip("/"))
        if not found and prefix and (facts := self._objects.head(REPORT + prefix)) is not None:
            found = {REPORT + prefix: facts}
        return {name[len(REPORT) :]: facts for name, facts in found.items()}

    def _files(self, prefix: str) -> list[str]:
        place = self.folder / prefix
        paths = [place] if place.is_file() else sorted(place.rglob("*"))
        return [
            path.relative_to(self.folder).as_posix()
            for path in paths
            if path.is_file() and not _IN_THE_MAKING.fullmatch(path.name)
        ]

    def _is_same(self, name: str, facts: ObjectFacts) -> bool:
        try:
            state = (self.folder / name).stat()
            known = json.loads((self._notes / cache_name(name)).read_bytes())
        except (OSError, ValueError):
            return False
        return bool(facts.etag) and known == [name, facts.etag, state.st_size, state.st_mtime_ns]

    def _note(self, name: str, etag: str, size: int, changed: int) -> None:
        place = self._notes / cache_name(name)
        temporary = place.with_name(f".{place.name}.{os.getpid()}.{os.urandom(4).hex()}")
        temporary.write_text(json.dumps([name, etag, size, changed]))
        os.replace(temporary, place)

    def _download(self, name: str, facts: ObjectFacts) -> None:
        target = self.folder / name
        if ".." in PurePosixPath(name).parts or not target.is_relative_to(self.folder):
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}")
        try:
            found = self._objects.download(REPORT + name, temporary)
            state = temporary.stat()
            os.replace(temporary, target)
        except FileNotFoundError:
            return  # removed since it was listed
        finally:
            temporary.unlink(missing_ok=True)
        self._note(name, found.etag, state.st_size, state.st_mtime_ns)

    def _upload(self, name: str, listed: ObjectFacts | None) -> None:
        try:
            with open(self.folder / name, "rb") as stream:
                state = os.fstat(stream.fileno())
                data = stream.read()
        except FileNotFoundError:
            return  # another drawing replaced it, and takes it there itself
        etag = listed.etag if listed is not None else ""
        if etag.strip('"') != hashlib.md5(data, usedforsecurity=False).hexdigest():
            etag = self._objects.write(REPORT + name, data)
        self._note(name, etag, state.st_size, state.st_mtime_ns)
