"""The command `stratascope`: what is typed, what is printed, and the exit codes."""

from __future__ import annotations

import os
import signal
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

_received: list[int] = []


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command and leave with its exit code (design, section 5)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stop)
    sys.exit(_run(words))


def _stop(number: int, frame: FrameType | None) -> None:
    """What is in flight is safe by itself: nothing counts before its manifest is written."""
    _received.append(number)
    raise KeyboardInterrupt


def _run(words: list[str]) -> int:
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
        if _is_termination(error):
            _received.append(signal.SIGTERM)
        elif debug or not isinstance(error, Exception):
            raise
        code = 3
        if not _received:
            _say(f"error: {type(error).__name__}: {error}\nThis should not happen. --debug shows where it did.")
    if _received:
        code = 143 if _received[0] == signal.SIGTERM else 130
        _say("stopped; what is stored is whole, and the next audit goes on from here.")
    return code


def _is_termination(error: BaseException | None) -> bool:
    """Whether SIGTERM lies behind `error`: inside a flow Prefect takes the signal and raises an error of its own."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        # Pydantic, when it is interrupted, keeps no more of the error than its name.
        if type(error).__name__ == "TerminationSignal" or "TerminationSignal" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _explain(error: StratascopeError) -> int:
    _say(f"error: {error}")
    return 2 if isinstance(error, ConfigurationError | NewerStoreError | ProbeError) else 3


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
