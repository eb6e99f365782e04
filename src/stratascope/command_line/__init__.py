"""The command `stratascope`: what is typed, what is printed, and the exit codes."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from stratascope.errors import (
    ConfigurationError,
    NewerStoreError,
    ProbeError,
    StratascopeError,
)

_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and leave with its exit code (design, section 5)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    received = _listen()
    for number in _CODES:
        signal.signal(number, _stop)
    sys.exit(_run(words, received))


def _listen() -> socket.socket:
    """Where the number of each signal arrives, whoever handles it: inside a flow Prefect puts its handler over ours."""
    receiving, sending = socket.socketpair()
    receiving.setblocking(False)
    sending.setblocking(False)
    signal.set_wakeup_fd(sending.detach(), warn_on_full_buffer=False)
    return receiving


def _stop(number: int, frame: FrameType | None) -> None:
    """What is in flight is safe by itself: nothing counts before its manifest is written."""
    raise KeyboardInterrupt


def _first(received: socket.socket) -> int | None:
    """The first signal to stop that has arrived."""
    try:
        numbers = received.recv(4096)
    except BlockingIOError:
        return None
    return next((number for number in numbers if number in _CODES), None)


def _run(words: list[str], received: socket.socket) -> int:
    import typer
    from typer.exceptions import TyperException

    from stratascope.command_line.application import application

    debug = "--debug" in words or bool(os.environ.get("STRATASCOPE_DEBUG"))
    try:
        outcome: Any = application(words, standalone_mode=False)
        code = outcome if isinstance(outcome, int) else 0
    except typer.Exit as leaving:
        code = leaving.exit_code
    except TyperException as error:
        # Wrong words; without any, the list of commands.
        show = getattr(error, "show", None)
        if show is not None:
            show()
        else:
            _say(f"error: {error}")
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except StratascopeError as error:
        if debug:
            raise
        code = _explain(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except BaseException as error:
        # Whatever a signal was turned into on its way here, it is no fault of the command's.
        stopped_by = _first(received)
        if stopped_by is not None:
            return _say_stopped(stopped_by)
        if debug or not isinstance(error, Exception):
            raise
        _say(f"error: {type(error).__name__}: {error}\nThis should not happen. --debug shows where it did.")
        code = 3
    stopped_by = _first(received)
    return code if stopped_by is None else _say_stopped(stopped_by)


def _say_stopped(number: int) -> int:
    _say("stopped; what is stored is whole, and the next audit goes on from here.")
    return _CODES[signal.Signals(number)]


def _explain(error: StratascopeError) -> int:
    _say(f"error: {error}")
    return 2 if isinstance(error, ConfigurationError | NewerStoreError | ProbeError) else 3


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
