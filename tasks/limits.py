"""How long a piece of work may take and how much memory its process may hold, and the watch that sees to it.

Work that hangs cannot be stopped from Python: it may stand inside a library. So the process ends itself, and whoever is
given the work next finds the note and says what happened instead of dying too.
"""

from __future__ import annotations

import faulthandler
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from stratascope.errors import LimitError

if TYPE_CHECKING:
    from stratascope.storage.attempts import Attempt
    from stratascope.storage.store import Store

_DEATHS = 2
"""Of so many unexplained deaths a piece of work is taken to be the cause."""
_POLL_SECONDS = 0.2
_LEFT_BY_WATCH = 70
GIB = 2**30


class Limits(BaseModel):
    """The `limits:` key of the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seconds: float | None = Field(default=3600.0, gt=0)
    """A unit that takes longer is given up, and its worker replaced; null waits for ever."""
    memory_gib: float | None = Field(default=None, gt=0)
    """A worker that holds more is replaced, and its unit given up; null: its share of the machine's memory."""


@contextmanager
def limited(store: Store, work: str, limits: Limits | None) -> Iterator[None]:
    """Do `work` within `limits`; without any, nothing is watched. One piece of work at a time for each process.

    Raises LimitError, before anything is done, where an earlier attempt went beyond its limits or twice took its
    process with it.
    """
    if limits is None:
        yield
        return
    from stratascope.storage.attempts import Attempt

    attempt = Attempt(store, work)
    death = attempt.death()
    if death is not None:
        if death.stack:
            raise LimitError(
                f"it did not end within {limits.seconds:g} s (`limits.seconds`){_place(death.stack)}. "
                "The next audit tries again."
            )
        if death.reason or death.count >= _DEATHS:
            reason = death.reason or f"its worker died {death.count} times while it was at work on this"
            raise LimitError(f"{reason}. The next audit tries again.")
    attempt.begin()
    finished = threading.Event()
    if limits.memory_gib is not None:
        threading.Thread(target=_watch_memory, args=(limits.memory_gib, attempt, finished), daemon=True).start()
    with open(attempt.stack_file, "w") as stack:
        if limits.seconds is not None:
            # Its clock runs outside Python: it works where a library holds the interpreter's lock for ever.
            faulthandler.dump_traceback_later(limits.seconds, exit=True, file=stack)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
            finished.set()
            attempt.end()


def _watch_memory(most_gib: float, attempt: Attempt, finished: threading.Event) -> None:
    import psutil

    process = psutil.Process()
    while not finished.wait(_POLL_SECONDS):
        held = process.memory_info().rss / GIB
        if held > most_gib:
            attempt.give_up(
                f"its process held {held:.1f} GiB, more than the {most_gib:.1f} GiB that it may (`limits.memory_gib`)"
            )
            os._exit(_LEFT_BY_WATCH)


def _place(stack: str) -> str:
    """Where the work stood, from the stack that `faulthandler` left: the innermost line outside libraries."""
    frames = re.findall(r'File "([^"]+)", line (\d+) in (\S+)', stack)
    elsewhere = ("site-packages", "/lib/python", __file__)
    own = [frame for frame in frames if not any(place in frame[0] for place in elsewhere)]
    if not own:
        return ""
    file, line, function = own[0]
    return f"; it stood in {function}, line {line} of {os.path.basename(file)}"
