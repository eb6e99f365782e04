"""The history of audits: one JSON file each, only ever added to."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from stratascope.storage.store import Store


def write_audit(store: Store, record: dict[str, Any]) -> str:
    """Add `record` (JSON-like) to the history; returns its name below the store."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    identity = f"{stamp}-{time.time_ns() % 10**9:09d}-{os.getpid()}"
    content = {"id": identity, "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **record}
    name = f"audits/{identity}.json"
    store.write_bytes(name, json.dumps(content, sort_keys=True, indent=1).encode())
    return name


def read_audits(store: Store) -> list[dict[str, Any]]:
    """All past audits, oldest first; a damaged record is passed over."""
    records = []
    with store.snapshot():
        for name in store.names("audits"):
            try:
                records.append(json.loads(store.read_bytes(name)))
            except ValueError:
                continue
    return records
