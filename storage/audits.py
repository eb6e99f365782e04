"""The history of audits: one JSON file each, only ever added to.

An audit that found nothing new leaves a short record that names the one it repeats: a schedule of every five minutes
would otherwise write the same list of checkpoints 288 times a day.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from stratascope.storage.store import Store

REPEATS = "same_as"
"""The key of a short record that holds the identifier of the record it repeats."""


def write_audit(store: Store, record: dict[str, Any]) -> str:
    """Add `record` (JSON-like) to the history; returns its name below the store."""
    # One reading of the clock: with two, a second could pass in between, and the name would sort before its time.
    seconds, nanoseconds = divmod(time.time_ns(), 10**9)
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(seconds))
    identity = f"{stamp}-{nanoseconds:09d}-{os.getpid()}"
    content = {"id": identity, "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **record}
    name = f"audits/{identity}.json"
    store.write_bytes(name, json.dumps(content, sort_keys=True, indent=1).encode())
    return name


def write_repeat(store: Store, earlier: dict[str, Any], **own: Any) -> str:
    """Add the record of an audit that found what the record `earlier` tells; `own` is what differs."""
    return write_audit(store, {REPEATS: earlier.get(REPEATS, earlier["id"]), "verdict": earlier["verdict"], **own})


def audit_names(store: Store) -> list[str]:
    """The identifiers of all past audits, oldest first."""
    return sorted(PurePosixPath(name).stem for name in store.names("audits"))


def read_audits(store: Store, last: int | None = None) -> list[dict[str, Any]]:
    """Past audits, oldest first, or the `last` of them; a damaged record is passed over."""
    with store.snapshot():
        names = audit_names(store)
        reader = AuditReader(store)
        records = (reader.read(name) for name in (names if last is None else names[len(names) - last :]))
        return [record for record in records if record is not None]


def newest_first(store: Store) -> Iterator[dict[str, Any]]:
    """Past audits from the latest back, read as they are asked for."""
    reader = AuditReader(store)
    found = (reader.read(name) for name in reversed(audit_names(store)))
    return (record for record in found if record is not None)


def latest_audit(store: Store) -> dict[str, Any]:
    """The record of the last audit that can be read; empty where there is none."""
    return next(newest_first(store), {})


class AuditReader:
    """Reads records; a short one is made whole from the one that it repeats, of which few are kept at hand."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._whole: dict[str, dict[str, Any] | None] = {}

    def read(self, name: str) -> dict[str, Any] | None:
        """The whole record called `name`; None where it is damaged, or repeats one that is."""
        record = self._load(name)
        if record is None or REPEATS not in record:
            return record
        base = self._repeated(str(record[REPEATS]))
        if base is None:
            return None
        postponed = record.get("deferred")
        whole = {**base, **record}
        if postponed:
            whole["checkpoints"] = [*base["checkpoints"], *postponed]
        return whole

    def _repeated(self, name: str) -> dict[str, Any] | None:
        """What a record that repeats `name` says: nothing was computed, and what is deferred is told anew."""
        if name not in self._whole:
            if len(self._whole) > 8:
                self._whole.clear()
            record = self._load(name)
            if record is not None:
                record = {**record, "checkpoints": repeated(record["checkpoints"]), "failures": [], "alerts": []}
                # Nothing is new at a repetition, whatever was then.
                record["conditions"] = [item | {"fresh": {}} for item in record.get("conditions", ())]
            self._whole[name] = record
        return self._whole[name]

    def _load(self, name: str) -> dict[str, Any] | None:
        try:
            record = json.loads(self._store.read_bytes(f"audits/{name}.json"))
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) and "verdict" in record else None


def repeated(checkpoints: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of an audit as the next one tells them that finds the same, but for what is deferred."""
    return [
        item | {"status": "cached"} if item["status"] == "computed" else item
        for item in checkpoints
        if item["status"] != "deferred"
    ]
