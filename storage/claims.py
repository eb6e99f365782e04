"""Claims on an object store: who is at work on a unit, for as long as it shows signs of life.

A claim only saves work. Results are the same whoever computes them, and a commit looks itself whether another one came
in between, so nothing breaks where two hold the same claim.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from stratascope.errors import UnreachableError
from stratascope.storage.object_errors import ObjectChangedError
from stratascope.storage.objects import ObjectFolder, number_from_environment

_CLAIM_SECONDS = 60.0
_FORGOTTEN_SECONDS = 3600.0
"""Who does not wait takes a claim only where it is so old by the service's clock, which may differ from ours."""


def claim_seconds() -> float:
    """`STRATASCOPE_CLAIM_SECONDS`, by default a minute: a claim that has not changed for so long is free.

    Its owner writes it anew four times as often; all machines that share a store must agree on it.
    """
    return max(1.0, number_from_environment("STRATASCOPE_CLAIM_SECONDS", _CLAIM_SECONDS))


@contextmanager
def held_claim(objects: ObjectFolder, name: str, machine: str, *, wait: bool = True) -> Iterator[bool]:
    """Hold the object `name` as a claim; yields whether it was got, which with `wait` it always is.

    `machine` is the same for processes that exclude each other by a lock that is held already: a claim of the same
    machine belongs to a process that is gone, and is taken over at once.
    """
    owner = f"{os.getpid()}-{os.urandom(8).hex()}"
    etag = _take(objects, name, machine, owner, wait)
    if etag is None:
        yield False
        return
    heart = _Heart(objects, name, machine, owner, etag)
    heart.start()
    try:
        yield True
    finally:
        heart.stop()


def _content(machine: str, owner: str, beat: int) -> bytes:
    return json.dumps({"machine": machine, "owner": owner, "beat": beat}, sort_keys=True).encode()


def _take(objects: ObjectFolder, name: str, machine: str, owner: str, wait: bool) -> str | None:
    seen, since = "", time.monotonic()
    while True:
        try:
            return objects.write(name, _content(machine, owner, 0), only_new=True)
        except FileExistsError:
            pass
        except ObjectChangedError:  # freed while we looked
            continue
        try:
            data, facts = objects.read(name)
        except FileNotFoundError:
            continue
        if facts.etag != seen:
            seen, since = facts.etag, time.monotonic()
        is_free = _machine_of(data) == machine or time.monotonic() - since > claim_seconds()
        if is_free or time.time() - facts.modified_ns / 1e9 > _FORGOTTEN_SECONDS:
            try:
                return objects.write(name, _content(machine, owner, 0), replacing=facts.etag)
            except ObjectChangedError:
                continue
        if not wait:
            return None
        time.sleep(0.5)


def _machine_of(data: bytes) -> str:
    try:
        return str(json.loads(data)["machine"])
    except (ValueError, KeyError, TypeError):
        return ""


class _Heart:
    """Writes the claim anew while its owner works, and removes it at the end if it is still its own."""

    def __init__(self, objects: ObjectFolder, name: str, machine: str, owner: str, etag: str) -> None:
        self._objects, self._name, self._machine, self._owner, self._etag = objects, name, machine, owner, etag
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"claim {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _beat(self) -> None:
        beat = 0
        while not self._ended.wait(claim_seconds() / 4):
            beat += 1
            try:
                content = _content(self._machine, self._owner, beat)
                self._etag = self._objects.write(self._name, content, replacing=self._etag)
            except ObjectChangedError:
                self._etag = ""
                return
            except UnreachableError:
                continue

    def stop(self) -> None:
        self._ended.set()
        self._thread.join()
        if not self._etag:
            return
        try:
            facts = self._objects.head(self._name)
            if facts is not None and facts.etag == self._etag:
                self._objects.delete([self._name])
        except UnreachableError:
            pass  # it expires by itself
