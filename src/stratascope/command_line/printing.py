"""What people read on standard error, and what scripts read on standard output."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def error_console() -> Any:
    """A console on standard error; it obeys NO_COLOR and knows whether it is a terminal."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def print_json(content: Any) -> None:
    """`content` as one JSON object on standard output."""
    import json

    print(json.dumps(content, indent=1, ensure_ascii=False, default=str))


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, stderr: bool = False
) -> None:
    """A table; on standard output unless told otherwise."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    width = None if sys.stdout.isatty() else 200
    Console(stderr=stderr, highlight=False, width=width).print(table)


@contextmanager
def progress_bar() -> Iterator[Any]:
    """A listener that shows how far things are: a bar on a terminal, nothing elsewhere."""
    console = error_console()
    if not console.is_terminal:
        yield lambda what, done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<22}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        known: dict[str, Any] = {}

        def show(what: str, done: int, total: int) -> None:
            if what not in known:
                known[what] = bar.add_task(what, total=total)
            bar.update(known[what], completed=done, total=total)

        yield show


def human_bytes(count: float) -> str:
    """A number of bytes with a unit that suits it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return ""


def human_seconds(seconds: float) -> str:
    """A duration for people."""
    if seconds < 90:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def seconds_of(text: str) -> float:
    """`90`, `90s`, `30m` or `2h` in seconds. Raises ConfigurationError otherwise."""
    from stratascope.errors import ConfigurationError

    factors = {"s": 1, "m": 60, "h": 3600}
    number, factor = (text[:-1], factors[text[-1]]) if text and text[-1] in factors else (text, 1)
    try:
        return float(number) * factor
    except ValueError:
        raise ConfigurationError(f"{text!r} is no duration: write 90s, 30m or 2h.") from None
