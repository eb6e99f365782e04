"""Telling people of changes of state: webhooks, and Prefect's events and notification blocks.

An alert that cannot be delivered never fails an audit: it is reported, and tried again by the next one.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

from stratascope.flows.artifacts import server_lasts
from stratascope.tasks.checks.alerting import (
    AlertSpec,
    Change,
    Memory,
    State,
    changes_to_tell,
    message_of,
    remember,
    updated_states,
    worth_keeping,
)

EVENTS = AlertSpec(name="prefect-events", event=True, min_severity="info")
"""Where a Prefect server lasts, its automations hear of every change, whether or not `alerts:` asks for it."""
_NO_SERVER = "it needs a Prefect server that lasts: set PREFECT_API_URL"


@dataclass
class Told:
    """What an audit told, and what the next one has to know of it."""

    states: list[State] = field(default_factory=list)
    memory: Memory = field(default_factory=dict)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    """One entry for each change that was to be told: alert, check, run, change, outcome, delivered, reason."""


def tell_changes(
    alerts: Sequence[AlertSpec],
    earlier: Mapping[str, Any],
    conditions: Sequence[Mapping[str, Any]],
    raised: Sequence[Mapping[str, Any]],
    record: Mapping[str, Any],
) -> Told:
    """Tell everybody what changed since the audit whose record is `earlier`.

    `conditions` and `raised` are what came out now; `record` has `title`, `store`, `report` and `verdict`.
    """
    told = Told(updated_states(earlier.get("states", ()), conditions), dict(earlier.get("alert_memory", {})))
    now = time.time()
    for alert in alerts if any(item.event for item in alerts) else (*alerts, EVENTS):
        memory = told.memory.get(alert.name, {})
        changes = changes_to_tell(alert, told.states, memory, now)
        silent = [item for item in changes if item.kind == "recovered" and not alert.recovered]
        spoken = [item for item in changes if item not in silent]
        if spoken and alert is EVENTS and not (_prefect_is_near() and _api_lasts()):
            continue
        reason = _deliver(alert, message_of(alert.name, spoken, record, raised)) if spoken else ""
        told.memory[alert.name] = remember(memory, silent if reason else changes, now)
        told.alerts += [_entry(alert, item, reason) for item in spoken]
    told.states = worth_keeping(told.states, told.memory, conditions)
    return told


def _entry(alert: AlertSpec, change: Change, reason: str) -> dict[str, Any]:
    return {
        "alert": alert.name, "check": change.check, "run": change.run, "change": change.kind,
        "outcome": change.outcome, "delivered": not reason, "reason": reason,
    }  # fmt: skip


def _deliver(alert: AlertSpec, message: dict[str, Any]) -> str:
    """Hand `message` over; returns what went wrong, without any secret, or ""."""
    if alert.webhook is not None:
        return post(alert.webhook, message, alert.timeout, alert.attempts)
    if not _api_lasts():
        return _NO_SERVER
    return _emit(message) if alert.event else _notify(alert.block or "", message)


def _prefect_is_near() -> bool:
    """Whether it is worth the second that importing Prefect takes where nothing else needs it."""
    return "prefect" in sys.modules or "PREFECT_API_URL" in os.environ


def _api_lasts() -> bool:
    if not server_lasts():
        return False
    from prefect.settings import get_current_settings

    return get_current_settings().api.url is not None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirected POST would arrive as a GET, perhaps elsewhere."""

    def redirect_request(self, *_: Any) -> None:
        return None


def post(address: str, message: Mapping[str, Any], timeout: float, attempts: int) -> str:
    """POST `message` as JSON, again after a pause where that may help; returns what went wrong, or "".

    The address may hold a secret: only its host is ever named.
    """
    data = json.dumps(message).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "stratascope"}
    opener = urllib.request.build_opener(_NoRedirect)
    host, reason = urlsplit(address).hostname, ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(min(2.0**attempt / 2, 10.0))
        try:
            with opener.open(urllib.request.Request(address, data, headers, method="POST"), timeout=timeout):
                return ""
        except urllib.error.HTTPError as error:
            error.close()
            reason = f"{host} answered {error.code}"
            if error.code < 500 and error.code not in (408, 425, 429):
                return reason
        except (OSError, HTTPException, ValueError) as error:
            cause = getattr(error, "reason", error)
            reason = f"{host} cannot be reached ({type(cause).__name__})"
    return reason


def _emit(message: Mapping[str, Any]) -> str:
    """One event for each change, named `stratascope.check.raised` or `stratascope.check.recovered`."""
    from prefect.events import emit_event

    try:
        for change in message["changes"]:
            check, run = change["check"], change["run"]
            resource = {
                "prefect.resource.id": f"stratascope.check.{run or 'store'}.{check}",
                "prefect.resource.name": f"{check} ({run})" if run else check,
                "stratascope.check": check,
                "stratascope.run": run,
                "stratascope.outcome": change["outcome"],
                "stratascope.store": message["store"],
            }
            payload = {**change, "report": message["report"], "verdict": message["verdict"]}
            if emit_event(f"stratascope.check.{change['change']}", resource, payload=payload) is None:
                return "Prefect took no event"
    except Exception as error:  # nothing that Prefect raises may sink an audit
        return f"Prefect took no event ({type(error).__name__})"
    return ""


def _notify(slug: str, message: Mapping[str, Any]) -> str:
    import prefect.blocks.notifications  # noqa: F401 - registers the types that a slug may name
    from prefect.blocks.abstract import NotificationBlock
    from prefect.blocks.core import Block

    try:
        block: Any = Block.load(slug)
        if not isinstance(block, NotificationBlock):
            return f"the block {slug} notifies nobody"
        notify: Any = block.notify
        with block.raise_on_failure():
            notify(message["text"], f"{message['title']}: verdict {message['verdict']}")
    except Exception as error:  # its text may hold the address, and with it a secret
        return f"the block {slug} failed ({type(error).__name__})"
    return ""
