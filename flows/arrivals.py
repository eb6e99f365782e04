"""Work that is handed out and comes back in the order in which it ends: one slow piece keeps no worker waiting."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

Piece = TypeVar("Piece")
_LOOK_AGAIN_SECONDS = 5.0
"""So often all pieces are looked at, should a scheduler that died have told nobody."""


class Arrivals(Generic[Piece]):
    """Pieces of work of one or more futures each, which arrive when all of these have ended."""

    def __init__(self) -> None:
        self._done: SimpleQueue[int] = SimpleQueue()
        self._under_way: dict[int, tuple[Piece, Sequence[Any]]] = {}
        self._count = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._under_way)

    def expect(self, piece: Piece, futures: Sequence[Any]) -> None:
        """Take in `piece`, which has arrived when all `futures` of Prefect have ended, well or not."""
        number = self._count
        self._count += 1
        self._under_way[number] = (piece, futures)
        open_ones = len(futures)

        def ended(future: Any) -> None:
            nonlocal open_ones
            with self._lock:
                open_ones -= 1
                last = open_ones == 0
            if last:
                self._done.put(number)

        for future in futures:
            future.add_done_callback(ended)

    def next(self) -> Piece:
        """Wait for the next piece that arrives. Raises LookupError where none is under way."""
        if not self._under_way:
            raise LookupError("nothing is under way")
        while True:
            try:
                number = self._done.get(timeout=_LOOK_AGAIN_SECONDS)
            except Empty:
                ended = (n for n, (_, futures) in self._under_way.items() if all(map(_has_ended, futures)))
                number = next(ended, -1)
            if number in self._under_way:  # looked at and told of, it is done twice
                return self._under_way.pop(number)[0]


def _has_ended(future: Any) -> bool:
    return bool(future.wrapped_future.done())
