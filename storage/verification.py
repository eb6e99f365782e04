"""Re-reads everything that is stored against the digests in the manifests, and notes what is damaged."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath

from stratascope.errors import UnreachableError
from stratascope.storage.damage import forget_damage, note_damage
from stratascope.storage.digests import unsealed
from stratascope.storage.manifests import NOTES, Manifest, parse_manifest
from stratascope.storage.store import Store

_AT_ONCE = 64
"""So many units are looked through together."""


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
    with store.snapshot():
        manifests: list[Manifest] = []
        for name in store.names("manifests"):
            kind = next((part for part in PurePosixPath(name).parts if part in NOTES), "")
            try:
                data = store.read_bytes(name) if kind != "_damaged" else b""
            except FileNotFoundError:  # a unit that is being replaced right now
                continue
            if kind == "_files" and not _is_sealed(data):
                reason = "this note about a checkpoint file cannot be read: the file will be read again"
                damage.append(Damage(name, reason))
                with suppress(OSError, UnreachableError):  # it is no more than a memory, and this one is lost
                    store.delete_files([name])
            elif not kind and (manifest := parse_manifest(data)) is not None:
                manifests.append(manifest)
            elif not kind:
                damage.append(Damage(name, "the manifest cannot be read: its unit counts as not stored"))
            if len(manifests) == _AT_ONCE:
                damage += verify_units(store, manifests)
                manifests = []
        damage += verify_units(store, manifests)
    return sorted(damage, key=lambda item: item.path)


def _is_sealed(data: bytes) -> bool:
    try:
        unsealed(data)
    except ValueError:
        return False
    return True


def verify_units(store: Store, manifests: Iterable[Manifest]) -> list[Damage]:
    """The damage in the units of `manifests`; each is noted, or an earlier note of it taken away."""
    manifests = list(manifests)
    with store.snapshot():
        known = store.damage_of({name: facts for item in manifests for name, facts in item.files.items()})
        for manifest in manifests:
            found = [name for name in manifest.files if name in known]
            with suppress(OSError, UnreachableError):  # a store that may only be read keeps no notes
                if found:
                    note_damage(store, manifest.unit, found)
                else:
                    forget_damage(store, manifest.unit)
    return [Damage(name, reason) for name, reason in known.items()]
