"""Re-reads everything that is stored against the digests in the manifests, and notes what is damaged."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from stratascope.storage.damage import forget_damage, note_damage
from stratascope.storage.digests import file_checksum, unsealed
from stratascope.storage.manifests import Manifest, manifest_files, read_manifest
from stratascope.storage.store import Store


@dataclass(frozen=True)
class Damage:
    """One damaged or missing file, by its path below the store."""

    path: str
    reason: str


def verify(store: Store) -> list[Damage]:
    """All damage in `store`, sorted by path. An empty list means that every byte is as it was written.

    Damaged units are noted, where the store may be written to, and the next audit computes them again.
    """
    damage = []
    for path in manifest_files(store.path):
        manifest = read_manifest(path)
        if manifest is None:
            reason = "the manifest cannot be read: its unit counts as not stored"
            damage.append(Damage(path.relative_to(store.path).as_posix(), reason))
        else:
            damage += verify_units(store, [manifest])
    for path in sorted((store.path / "manifests" / "_files").glob("*.json")):
        try:
            unsealed(path.read_bytes())
        except ValueError:
            reason = "this note about a checkpoint file cannot be read: the file will be read again"
            damage.append(Damage(path.relative_to(store.path).as_posix(), reason))
    return sorted(damage, key=lambda item: item.path)


def verify_units(store: Store, manifests: Iterable[Manifest]) -> list[Damage]:
    """The damage in the units of `manifests`; each is noted, or an earlier note of it taken away."""
    damage = []
    for manifest in manifests:
        found = _damage_of(store, manifest)
        with suppress(OSError):  # a store that may only be read keeps no notes
            if found:
                note_damage(store.path, manifest.unit, [item.path for item in found])
            else:
                forget_damage(store.path, manifest.unit)
        damage += found
    return damage


def _damage_of(store: Store, manifest: Manifest) -> list[Damage]:
    damage = []
    for name, facts in manifest.files.items():
        file = store.path / name
        if not file.exists():
            damage.append(Damage(name, "the file is missing"))
        elif file.stat().st_size != facts["bytes"]:
            damage.append(Damage(name, f"the file has {file.stat().st_size} bytes instead of {facts['bytes']}"))
        elif file_checksum(file) != facts["xxh3"]:
            damage.append(Damage(name, "the bytes differ from their checksum"))
    return damage
