"""The history of audits: one JSON file each, only ever added to."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from stratascope.storage.manifests import write_atomically
from stratascope.storage.store import Store


def write_audit(store: Store, record: dict[str, Any]) -> Path:
    """Add `record` (JSON-like) to the history; returns its file."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    path = store.path / "audits" / f"{stamp}-{time.time_ns() % 10**9:09d}-{os.getpid()}.json"
    content = {"id": path.stem, "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **record}
    write_atomically(path, json.dumps(content, sort_keys=True, indent=1).encode())
    return path


def read_audits(store: Store) -> list[dict[str, Any]]:
    """All past audits, oldest first; a damaged record is passed over."""
    records = []
    for path in sorted((store.path / "audits").glob("*.json")):
        try:
            records.append(json.loads(path.read_bytes()))
        except ValueError:
            continue
    return records


def latest_audit(store: Store) -> dict[str, Any]:
    """The record of the last audit that can be read; empty where there is none."""
    for path in sorted((store.path / "audits").glob("*.json"), reverse=True):
        try:
            record: dict[str, Any] = json.loads(path.read_bytes())
        except ValueError:
            continue
        return record
    return {}
