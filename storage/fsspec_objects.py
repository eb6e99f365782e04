"""Objects of any file system that fsspec knows."""

from __future__ import annotations

from typing import Any

from stratascope.errors import ConfigurationError
from stratascope.storage.object_errors import ObjectChangedError, explained
from stratascope.storage.objects import ObjectFacts, ObjectFolder


class FsspecFolder(ObjectFolder):
    """Objects behind fsspec. It has no conditional writes: between look and write another one may write too."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        import fsspec

        try:
            self._system, root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise ConfigurationError(f"{url} cannot be opened: {error}.") from None
        except Exception as error:
            raise explained(self.url, "open", error) from None
        self._root = str(root).rstrip("/")

    def _list(self, prefix: str) -> dict[str, ObjectFacts]:
        place = f"{self._root}/{prefix}".rstrip("/")
        self._system.invalidate_cache()
        try:
            found = self._system.find(place, detail=True)
        except FileNotFoundError:
            return {}
        return {
            str(path)[len(self._root) :].lstrip("/"): self._facts_of(info)
            for path, info in found.items()
            if str(path) != self._root
        }

    def _head(self, name: str) -> ObjectFacts:
        info = self._system.info(self._place(name))
        if info["type"] == "directory":
            raise FileNotFoundError(name)
        return self._facts_of(info)

    def _read(self, name: str, etag: str, span: tuple[int, int] | None) -> tuple[bytes, ObjectFacts]:
        facts = self._head(name)
        start, end = span if span is not None else (None, None)
        data = self._system.cat_file(self._place(name), start=start, end=end)
        after = self._head(name)
        if after != facts or (etag and facts.etag != etag):
            raise ObjectChangedError(f"{self.url}/{name} has changed")
        expected = facts.size if span is None else min(span[1], facts.size) - span[0]
        if len(data) != expected:
            raise OSError(f"the answer was cut short: {len(data):,} of {expected:,} bytes")
        return bytes(data), facts

    def _write(self, name: str, data: bytes, only_new: bool, replacing: str) -> str:
        place = self._place(name)
        if only_new and self._system.exists(place):
            raise FileExistsError(place)
        if replacing and self._head(name).etag != replacing:
            raise ObjectChangedError(f"{self.url}/{name} has changed")
        self._system.makedirs(place.rsplit("/", 1)[0], exist_ok=True)
        self._system.pipe_file(place, data)
        return self._head(name).etag

    def _delete(self, names: list[str]) -> None:
        for name in names:
            if self._system.exists(self._place(name)):
                self._system.rm_file(self._place(name))

    def _place(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _facts_of(self, info: dict[str, Any]) -> ObjectFacts:
        known = next((info[key] for key in ("ETag", "etag", "e_tag", "md5") if info.get(key)), None)
        moment = next(
            (info[key] for key in ("mtime", "LastModified", "last_modified", "modified", "created") if info.get(key)),
            0.0,
        )  # fmt: skip
        seconds = moment.timestamp() if hasattr(moment, "timestamp") else float(moment or 0.0)
        return ObjectFacts(int(info["size"] or 0), str(known or f"{seconds:.6f}"), int(seconds * 1e9))
