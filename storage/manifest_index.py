"""What the manifests say of units and rows, remembered in one file: thousands of small ones take a second to read.

The manifests stay the record. An entry counts only as long as its manifest's size, times and inode are the same, so
the file can be deleted at any time, and whoever finds entries missing reads those manifests and writes it anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path

from stratascope.storage.manifests import NOTES, read_manifest, write_atomically
from stratascope.storage.units import Unit

INDEX = ".derived/units.json"
_SCHEMA = 1


@dataclass(frozen=True)
class IndexedUnit:
    """A committed unit, and the checksum of its file of rows; "" where it filed none."""

    unit: Unit
    rows_checksum: str


def indexed_units(root: Path) -> list[IndexedUnit]:
    """All committed units of the store at `root`, in the order of their manifests' paths."""
    known = _read(root / INDEX)
    entries: dict[str, list[object]] = {}
    fresh = 0
    for path, state in sorted(_manifest_files(root / "manifests")):
        entry = known.get(path)
        if entry is None or entry[:4] != state:
            fresh += 1
            manifest = read_manifest(root / "manifests" / path)
            if manifest is None:
                continue
            rows = manifest.files.get(f"ledger/{manifest.unit.relative_path}.parquet")
            entry = [*state, *astuple(manifest.unit), rows["xxh3"] if rows is not None else ""]
        entries[path] = entry
    if fresh or len(entries) != len(known):
        _write(root / INDEX, entries)
    return [IndexedUnit(Unit(*entry[4:8]), str(entry[8])) for entry in entries.values()]  # type: ignore[arg-type]


def _manifest_files(folder: Path) -> Iterator[tuple[str, list[object]]]:
    """Each manifest by its path below `folder`, with what changes when it is replaced."""
    waiting = [("", str(folder))]
    while waiting:
        prefix, place = waiting.pop()
        try:
            listed = list(os.scandir(place))
        except FileNotFoundError:
            continue
        for item in listed:
            name = f"{prefix}{item.name}"
            if item.is_dir(follow_symlinks=False):
                if item.name not in NOTES:
                    waiting.append((f"{name}/", item.path))
            elif item.name.endswith(".json") and not item.name.startswith("."):
                try:
                    facts = item.stat()
                except FileNotFoundError:  # a unit that is being replaced right now
                    continue
                yield name, [facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino]


def _read(path: Path) -> dict[str, list[object]]:
    try:
        content = json.loads(path.read_bytes())
        entries = content["manifests"] if content["schema"] == _SCHEMA else {}
        return {name: entry for name, entry in entries.items() if len(entry) == 9}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write(path: Path, entries: dict[str, list[object]]) -> None:
    try:
        write_atomically(path, json.dumps({"schema": _SCHEMA, "manifests": entries}).encode())
    except OSError:  # a store that may only be read, or a full disk: it is derived, and nobody needs it
        return
