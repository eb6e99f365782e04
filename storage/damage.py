"""Notes of damage: a unit with one counts as not stored, so that the next audit computes it again.

Its files stay until then, since what is whole among them may still be read.
"""

from __future__ import annotations

from pathlib import Path

from stratascope.storage.digests import sealed
from stratascope.storage.manifests import write_atomically
from stratascope.storage.units import Unit


def _note(root: Path, unit: Unit) -> Path:
    return root / "manifests" / "_damaged" / f"{unit.relative_path}.json"


def is_damaged(root: Path, unit: Unit) -> bool:
    """Whether damage of `unit` is known in the store at `root`."""
    return _note(root, unit).exists()


def note_damage(root: Path, unit: Unit, paths: list[str]) -> None:
    """Note that the files `paths` (below the store at `root`) of `unit` are damaged."""
    write_atomically(_note(root, unit), sealed({"paths": paths}))


def forget_damage(root: Path, unit: Unit) -> None:
    """Take the note away: `unit` has been written anew, or was found whole."""
    _note(root, unit).unlink(missing_ok=True)
