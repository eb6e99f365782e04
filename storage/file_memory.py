"""What is already known of a file, as long as the file has not changed."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from stratascope.storage.digests import sealed, unsealed
from stratascope.storage.store import Store


def file_state(path: Path) -> list[list[Any]]:
    """Name, size, mtime and ctime in nanoseconds and inode of `path`, or of each file in that folder.

    The ctime is what catches a file that was replaced and had its mtime restored. Of what lies behind a URL: the URL,
    size, time of change in nanoseconds and etag of each object, as they were listed.
    """
    if not isinstance(path, Path):
        return path.state()
    files = sorted(item for item in path.rglob("*") if item.is_file()) if path.is_dir() else [path]
    state = []
    for item in files:
        facts = item.stat()
        state.append([str(item.absolute()), facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino])
    return state


class FileMemory:
    """Facts about files, one JSON file each below `manifests/_files/`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def recall(self, path: Path, identity: str) -> dict[str, Any] | None:
        """The facts remembered of `path` under `identity`; None where it changed or is unknown."""
        try:
            content = unsealed(self._store.read_bytes(self._name(path, identity)))
            return content["facts"] if content["state"] == file_state(path) else None
        except (OSError, ValueError, KeyError):
            return None

    def recall_gone(self, path: Path, identity: str) -> dict[str, Any] | None:
        """The facts remembered of `path` under `identity` although it is gone; None where it is there, or unknown."""
        try:
            if path.exists():
                return None
            facts: dict[str, Any] = unsealed(self._store.read_bytes(self._name(path, identity)))["facts"]
            return facts
        except (OSError, ValueError, KeyError):
            return None

    def remember(
        self, path: Path, identity: str, facts: dict[str, Any], state: list[list[Any]] | None = None
    ) -> None:
        """Remember `facts` of `path`; `state` is its `file_state` from before it was read."""
        content = {"state": state if state is not None else file_state(path), "facts": facts}
        self._store.write_bytes(self._name(path, identity), sealed(content))

    def _name(self, path: Path, identity: str) -> str:
        name = hashlib.sha256(f"{path.absolute()}\n{identity}".encode()).hexdigest()[:40]
        return f"manifests/_files/{name}.json"
