"""Manifests: one JSON file for each unit, written last; the only mark of completion."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stratascope.storage.digests import sealed, unsealed
from stratascope.storage.units import Unit

MANIFEST_SCHEMA = 2


@dataclass(frozen=True)
class Manifest:
    """What a committed unit is made of.

    `files` maps paths below the store to ``{"bytes", "xxh3"}``; `summary` is what planning needs to know;
    `recorded` holds what differs from run to run (time, host, seconds) and is no part of any result.
    """

    unit: Unit
    identity: str
    identity_parts: dict[str, Any]
    files: dict[str, dict[str, Any]]
    summary: dict[str, Any] = field(default_factory=dict)
    recorded: dict[str, Any] = field(default_factory=dict)


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` by temporary name, fsync and rename: whole, or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Bring the entries of the directory `path` to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def manifest_name(unit: Unit) -> str:
    """Where the manifest of `unit` lies below the store."""
    return f"manifests/{unit.relative_path}.json"


def manifest_path(root: Path, unit: Unit) -> Path:
    """Where the manifest of `unit` lies in the store at `root`."""
    return root / manifest_name(unit)


def write_manifest(root: Path, manifest: Manifest) -> None:
    """Write `manifest` durably; from then on its unit exists."""
    write_atomically(manifest_path(root, manifest.unit), manifest_bytes(manifest))


def manifest_bytes(manifest: Manifest) -> bytes:
    """The content of the file that `read_manifest` reads."""
    return sealed({"schema": MANIFEST_SCHEMA, **asdict(manifest)})


NOTES = ("_files", "_damaged")
"""Folders beside the manifests that hold notes of another kind."""


def manifest_files(root: Path) -> list[Path]:
    """The files of all manifests of the store at `root`, sorted."""
    return [path for path in sorted((root / "manifests").rglob("*.json")) if not set(NOTES) & set(path.parts)]


def read_manifest(path: Path) -> Manifest | None:
    """The manifest in the file `path`; None where there is none or it is damaged."""
    try:
        return parse_manifest(path.read_bytes())
    except OSError:
        return None


def parse_manifest(data: bytes) -> Manifest | None:
    """The manifest that `manifest_bytes` wrote; None where it is damaged."""
    try:
        content = unsealed(data)
        return Manifest(
            unit=Unit(**content["unit"]),
            identity=content["identity"],
            identity_parts=content["identity_parts"],
            files=content["files"],
            summary=content["summary"],
            recorded=content["recorded"],
        )
    except (ValueError, KeyError, TypeError):
        return None
