"""Re-reads everything that is stored against the digests in the manifests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from stratascope.storage.manifests import parse_manifest
from stratascope.storage.store import Store


@dataclass(frozen=True)
class Damage:
    """One damaged or missing file, by its path below the store."""

    path: str
    reason: str


def verify(store: Store) -> list[Damage]:
    """All damage in `store`, sorted by path. An empty list means that every byte is as it was written."""
    damage = []
    files: dict[str, dict[str, Any]] = {}
    for name in store.names("manifests"):
        data = store.read_bytes(name)
        if "_files" in name.split("/"):
            try:
                json.loads(data)
            except ValueError:
                damage.append(Damage(name, "this note about a checkpoint file cannot be read"))
            continue
        manifest = parse_manifest(data)
        if manifest is None:
            damage.append(Damage(name, "the manifest cannot be read: its unit counts as not stored"))
        else:
            files |= manifest.files
    damage += [Damage(name, reason) for name, reason in store.damage_of(files).items()]
    return sorted(damage, key=lambda item: item.path)
