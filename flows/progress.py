"""How far an audit is: told to whoever listens in this process."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

Listener = Callable[[str, int, int], None]
_listeners: ContextVar[tuple[Listener, ...]] = ContextVar("listeners", default=())


def listen(listener: Listener) -> None:
    """From now on call `listener` with (what, done, total), beside those that listen already."""
    _listeners.set((*_listeners.get(), listener))


def tell(what: str, done: int, total: int) -> None:
    """Tell all listeners."""
    for listener in _listeners.get():
        listener(what, done, total)
