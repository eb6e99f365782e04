"""The command that puts an audit on a schedule."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from stratascope.command_line.printing import print_json

if TYPE_CHECKING:
    from stratascope.flows.deploy import Wish

# Read when Prefect is imported: what it would log of its own has no place in this command's output.
_QUIET = {"PREFECT_LOGGING_LEVEL": "CRITICAL", "PREFECT_LOGGING_TO_API_ENABLED": "false", "DO_NOT_TRACK": "1"}


def deploy(wish: Wish, undo: bool, as_json: bool) -> None:
    """Register the audit, or take its registration back, and tell what was done."""
    from stratascope.flows.deploy import register, remove

    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    done = remove(wish) if undo else register(wish)
    if as_json:
        print_json({"schema": 1, **done})
        return
    print(f"{done['action']}: deployment {done['deployment']}")
    if not undo:
        _tell(done)


def _tell(done: dict[str, Any]) -> None:
    schedule, pool = done["schedule"], done["work_pool"]
    print(f"audits: {done['parameters']['config']}")
    for override in done["parameters"]["overrides"]:
        print(f"  with {override}")
    print(f"schedule: {schedule['cron']} ({schedule['timezone']}); next due {done['next_run']}")
    print(f"work pool: {pool['name']}" + (" (made now)" if pool["created"] else ""))
    print("A worker does the audits. Start one, where the data and the network can be found, with")
    print(f"  {done['worker_command']}")
