"""What each past audit brought, in a few words: derived from the records, and kept so that many answer at once."""

from __future__ import annotations

import calendar
import json
import time
from pathlib import Path
from typing import Any

from stratascope.storage.audits import REPEATS, AuditReader, audit_names
from stratascope.storage.manifests import write_atomically
from stratascope.storage.store import Store

VERSION = 1
NOTABLE = ("quarantined", "deferred", "duplicate", "gone")
_SHARED = ("verdict", "verdict_before", "units", "checkpoints", "raised")
_FEW = 200
"""So many records that are not summed up yet are read each time, before the sums are written again."""


def read_history(store: Store, last: int | None = None) -> list[dict[str, Any]]:
    """A summary of each past audit, oldest first, or of the `last` ones; damaged records are passed over.

    Keys: ``id``, ``started`` and ``finished`` (UTC), ``seconds``, ``verdict``, ``verdict_before``, ``units``,
    ``checkpoints`` (how many of each status), ``new`` (run and step of what was computed), ``newly`` (files that came
    to be quarantined, deferred, duplicate or gone, with the reason), ``raised`` (names of checks), ``newly_raised``
    and ``cleared`` (check and place), ``failures``, ``nothing_new``.
    """
    with store.snapshot():
        entries = _history(store)
    sound = [entry for entry in entries if "damaged" not in entry]
    return sound if last is None else sound[len(sound) - min(last, len(sound)) :]


def _history(store: Store) -> list[dict[str, Any]]:
    names = audit_names(store)
    known = _kept(store)
    common = 0
    while common < min(len(names), len(known)) and known[common]["id"] == names[common]:
        common += 1
    reader = AuditReader(store)
    entries = known[:common]
    before = _last_sound(reader, entries)
    for name in names[common:]:
        record = reader.read(name)
        if record is None:
            entries.append({"id": name, "damaged": True})
            continue
        entries.append(_repeated(record, before, entries) or summary(record, before))
        before = record
    if len(names) - common > _FEW:
        _keep(store, entries)
    return entries


def summary(record: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """What the audit of `record` brought, compared with the one `before`."""
    entries = record.get("checkpoints", [])
    same = before is not None and REPEATS in record and before.get(REPEATS, before["id"]) == record[REPEATS]
    raised, was_raised = (set(), set()) if same else (_places(record), _places(before))
    counts: dict[str, int] = {}
    for item in entries:
        counts[item["status"]] = counts.get(item["status"], 0) + 1
    found: dict[str, Any] = {
        "id": record["id"],
        "finished": record["finished"],
        "started": _earlier(record["finished"], record.get("seconds", 0.0)),
        "seconds": record.get("seconds", 0.0),
        "verdict": record["verdict"],
        "verdict_before": before["verdict"] if before is not None else None,
        "units": record.get("units", {}),
        "checkpoints": dict(sorted(counts.items())),
        "new": [f"{item['run']} step {item['step']}" for item in entries if item["status"] == "computed"],
        "newly": _newly(entries, before),
        "raised": sorted({item["name"] for item in record.get("checks", ()) if item["outcome"] != "info"}),
        "newly_raised": sorted(raised - was_raised),
        "cleared": sorted(was_raised - raised),
        "failures": record.get("failures", []),
    }
    changed = found["verdict_before"] != found["verdict"] or any(
        found[key] for key in ("new", "newly", "newly_raised", "cleared", "failures")
    )
    return {**found, "nothing_new": not changed}


_OF_NOTHING: dict[str, Any] = {
    "new": [], "newly": {}, "newly_raised": [], "cleared": [], "failures": [], "nothing_new": True,
}  # fmt: skip


def _repeated(
    record: dict[str, Any], before: dict[str, Any] | None, entries: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """The summary of a record that repeats what the one `before` repeats, without a look at the checkpoints."""
    if before is None or record.get(REPEATS) is None or record[REPEATS] != before.get(REPEATS):
        return None
    if "damaged" in entries[-1] or "deferred" in record or "deferred" in before:
        return None
    units, started = record.get("units", {}), _earlier(record["finished"], record.get("seconds", 0.0))
    own = {"id": record["id"], "finished": record["finished"], "seconds": record.get("seconds", 0.0)}
    return {**entries[-1], **_OF_NOTHING, **own, "started": started, "units": units}


def _newly(entries: list[dict[str, Any]], before: dict[str, Any] | None) -> dict[str, list[dict[str, str]]]:
    known = {(item["file"], item["status"]) for item in (before or {}).get("checkpoints", ())}
    found: dict[str, list[dict[str, str]]] = {}
    for item in entries:
        if item["status"] in NOTABLE and (item["file"], item["status"]) not in known:
            entry = {"run": item["run"], "file": Path(item["file"]).name, "reason": item["reason"]}
            found.setdefault(item["status"], []).append(entry)
    return found


def _places(record: dict[str, Any] | None) -> set[str]:
    """Which check was raised where, whatever the step."""
    found = set()
    for item in (record or {}).get("checks", ()):
        where = " ".join(part for part in (item["run"], item["layer"]) if part)
        found.add(f"{item['name']} ({where})" if where else item["name"])
    return found


def _earlier(stamp: str, seconds: float) -> str:
    """The moment `seconds` before the UTC moment `stamp`."""
    moment = calendar.timegm(time.strptime(stamp, "%Y-%m-%dT%H:%M:%SZ"))
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment - seconds))


def _last_sound(reader: AuditReader, entries: list[dict[str, Any]]) -> dict[str, Any] | None:
    for entry in reversed(entries):
        if "damaged" not in entry and (record := reader.read(entry["id"])) is not None:
            return record
    return None


def _place(store: Store) -> Path:
    return store.path / "audits" / "_summaries.jsonl"


def _kept(store: Store) -> list[dict[str, Any]]:
    """The summaries that are kept; none where they are damaged or of another version."""
    try:
        head, *lines = _place(store).read_text(encoding="utf-8").splitlines()
        if json.loads(head) != {"version": VERSION}:
            return []
        entries: list[dict[str, Any]] = json.loads(f"[{','.join(lines)}]")
        for place, entry in enumerate(entries):
            if "started" not in entry and "damaged" not in entry:
                started = _earlier(entry["finished"], entry["seconds"])
                entries[place] = {**entries[place - 1], **_OF_NOTHING, **entry, "started": started}
        return entries
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _keep(store: Store, entries: list[dict[str, Any]]) -> None:
    """Write the summaries down; of one that says the same as the one before only what differs."""
    lines: list[dict[str, Any]] = [{"version": VERSION}]
    for place, entry in enumerate(entries):
        before = entries[place - 1] if place else {}
        same = entry.get("nothing_new") and all(before.get(key) == entry[key] for key in _SHARED)
        lines.append({key: entry[key] for key in ("id", "finished", "seconds")} if same else entry)
    try:
        write_atomically(
            _place(store), "\n".join(json.dumps(line, separators=(",", ":")) for line in lines).encode()
        )
    except OSError:  # a store that may only be read is summed up anew each time
        return
