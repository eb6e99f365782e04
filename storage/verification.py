"""Re-reads everything that is stored against the digests in the manifests."""

from __future__ import annotations

import json
from dataclasses import dataclass

from stratascope.storage.digests import file_checksum
from stratascope.storage.manifests import read_manifest
from stratascope.storage.store import Store


@dataclass(frozen=True)
class Damage:
    """One damaged or missing file, by its path below the store."""

    path: str
    reason: str


def verify(store: Store) -> list[Damage]:
    """All damage in `store`, sorted by path. An empty list means that every byte is as it was written."""
    damage = []
    for path in sorted((store.path / "manifests").rglob("*.json")):
        name = path.relative_to(store.path).as_posix()
        if "_files" in path.parts:
            try:
                json.loads(path.read_bytes())
            except ValueError:
                damage.append(Damage(name, "this note about a checkpoint file cannot be read"))
            continue
        manifest = read_manifest(path)
        if manifest is None:
            damage.append(Damage(name, "the manifest cannot be read: its unit counts as not stored"))
            continue
        for file_name, facts in manifest.files.items():
            file = store.path / file_name
            if not file.exists():
                damage.append(Damage(file_name, "the file is missing"))
            elif file.stat().st_size != facts["bytes"]:
                reason = f"the file has {file.stat().st_size} bytes instead of {facts['bytes']}"
                damage.append(Damage(file_name, reason))
            elif file_checksum(file) != facts["xxh3"]:
                damage.append(Damage(file_name, "the bytes differ from their checksum"))
    return damage
