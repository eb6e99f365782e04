"""Notes of damage: a unit with one counts as not stored, so that the next audit computes it again.

Its files stay until then, since what is whole among them may still be read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stratascope.storage.digests import sealed
from stratascope.storage.units import Unit

if TYPE_CHECKING:
    from stratascope.storage.store import Store


def damage_note(unit: Unit) -> str:
    """Where the note about `unit` lies below the store."""
    return f"manifests/_damaged/{unit.relative_path}.json"


def is_damaged(store: Store, unit: Unit) -> bool:
    """Whether damage of `unit` is known in `store`."""
    return store.has_file(damage_note(unit))


def note_damage(store: Store, unit: Unit, paths: list[str]) -> None:
    """Note that the files `paths` (below `store`) of `unit` are damaged."""
    store.write_bytes(damage_note(unit), sealed({"paths": paths}))


def forget_damage(store: Store, unit: Unit) -> None:
    """Take the note away: `unit` was found whole."""
    store.delete_files([damage_note(unit)])
