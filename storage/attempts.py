"""Work that never came back: a note is laid down before a piece of work and taken away after it.

What is still there when the same work is begun again tells that its process died, and perhaps of what.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stratascope.storage.store import Store


@dataclass(frozen=True)
class Death:
    """How earlier attempts at a piece of work ended: how many, and what the last one left."""

    count: int
    reason: str
    """What its own watch wrote before it ended the process; empty where nothing did."""
    stack: str
    """Where it stood when its time was up; empty where that was not the reason."""


class Attempt:
    """The note about one piece of work."""

    def __init__(self, store: Store, work: str) -> None:
        name = hashlib.sha256(work.encode()).hexdigest()[:40]
        self._note = _folder(store) / f"{name}.json"
        self.stack_file = self._note.with_suffix(".stack")
        """Where a watch that cannot run Python any more leaves the stack of its process."""

    def death(self) -> Death | None:
        """What is known of attempts that died; None where there was none, or where one is still at work."""
        known = _read(self._note)
        if known is None or _is_alive(known):
            return None
        return Death(int(known["count"]), str(known["reason"]), self._stack())

    def begin(self) -> None:
        """Lay down the note, or count one more on it."""
        known = _read(self._note)
        self._note.parent.mkdir(parents=True, exist_ok=True)
        self._write(1 if known is None else int(known["count"]) + 1, "")

    def give_up(self, reason: str) -> None:
        """Write why the process is about to end itself."""
        known = _read(self._note)
        self._write(1 if known is None else int(known["count"]), reason)

    def end(self) -> None:
        """Take the note away: the work came back, well or not."""
        self._note.unlink(missing_ok=True)
        self.stack_file.unlink(missing_ok=True)

    def _write(self, count: int, reason: str) -> None:
        content = {"count": count, "reason": reason, "pid": os.getpid(), "host": os.uname().nodename}
        temporary = self._note.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(content))
        os.replace(temporary, self._note)

    def _stack(self) -> str:
        try:
            return self.stack_file.read_text(errors="replace").strip()
        except OSError:
            return ""


def forget_deaths(store: Store) -> None:
    """Give work whose process died another chance: the next audit begins it anew."""
    for path in _folder(store).glob("*.json"):
        known = _read(path)
        if known is None or not _is_alive(known):
            path.unlink(missing_ok=True)
            path.with_suffix(".stack").unlink(missing_ok=True)


def _read(note: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(note.read_bytes())
        return content if {"count", "reason", "pid", "host"} <= content.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _is_alive(known: dict[str, Any]) -> bool:
    """Whether the process that wrote the note still runs, as far as can be told from this machine."""
    return known["host"] != os.uname().nodename or Path(f"/proc/{known['pid']}").exists()


def _folder(store: Store) -> Path:
    return store.path / ".staging" / "attempts"
