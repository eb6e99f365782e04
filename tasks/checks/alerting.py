"""Who is to be told of which change: the `alerts:` key, and the decision, which needs nothing but the audits' own records."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from stratascope.errors import ConfigurationError
from stratascope.storage.names import checked_name
from stratascope.tasks.checks.evaluate import NOT_JUDGED, ORDER

MOST_IN_A_ROW = 20
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class AlertSpec(BaseModel):
    """Who is told when a check's state changes: a plain webhook, a notification block of Prefect, or an event."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    webhook: str | None = Field(default=None, repr=False)
    """An http or https address that gets a JSON object by POST. It may hold a secret, and is never recorded."""
    block: str | None = None
    """A notification block of Prefect, `type/name`, such as `slack-webhook/team`."""
    event: bool = False
    """An event of Prefect for each change, for automations."""
    checks: str = "*"
    """Which checks, by a glob or `re:` and a regular expression; so for `runs`."""
    runs: str = "*"
    min_severity: Literal["info", "warn", "fail"] = "warn"
    """From which outcome on a check counts as raised. `error` always does."""
    after: int = Field(default=1, ge=1, le=MOST_IN_A_ROW)
    """Told only after so many audits in a row that judged something new."""
    cooldown: float = Field(default=0.0, ge=0)
    """Seconds, or 90s, 30m, 6h, 2d: of one check and run nothing more is told for so long."""
    recovered: bool = True
    """Whether the end of it is told too."""
    timeout: float = Field(default=10.0, gt=0, le=120)
    attempts: int = Field(default=3, ge=1, le=10)

    @field_validator("cooldown", mode="before")
    @classmethod
    def _in_seconds(cls, value: Any) -> Any:
        if isinstance(value, str) and (found := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", value.strip())):
            return float(found[1]) * _SECONDS[found[2]]
        return value

    @field_validator("name")
    @classmethod
    def _name_is_allowed(cls, name: str) -> str:
        try:
            return checked_name(name, "alert")
        except ConfigurationError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _has_one_target(self) -> Self:
        if (self.webhook is not None) + (self.block is not None) + self.event != 1:
            raise ValueError(f"alert {self.name!r} needs one of `webhook`, `block` and `event: true`")
        if self.webhook is not None:
            address = urlsplit(self.webhook)
            if address.scheme not in ("http", "https") or not address.hostname:
                raise ValueError(f"the `webhook` of alert {self.name!r} is no http or https address")
        if self.block is not None and not re.fullmatch(r"[a-z0-9-]+/[a-z0-9-]+", self.block):
            raise ValueError(f"the `block` of alert {self.name!r} is not of the form type/name")
        for pattern in (self.checks, self.runs):
            if pattern.startswith("re:"):
                try:
                    re.compile(pattern[3:])
                except re.error as error:
                    raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return self


@dataclass(frozen=True)
class Change:
    """A change of state that somebody is to be told."""

    check: str
    run: str
    kind: Literal["raised", "recovered"]
    outcome: str
    before: str
    """What was told last; `pass` where nothing was."""
    in_a_row: int


State = dict[str, Any]
"""`check`, `run`, `wanted` (metric and bound), `levels` (the last outcomes of that check and run, latest last) and `worst`,
the worst over all checkpoints."""
Memory = dict[str, dict[str, dict[str, Any]]]
"""By alert, and by check and run, what was told last and when."""


def updated_states(known: Iterable[Mapping[str, Any]], conditions: Iterable[Mapping[str, Any]]) -> list[State]:
    """The state of each check and run after an audit, from those after the audit before and what came out now.

    A state gets one more outcome where something new was judged: the worst over the checkpoints that are new, or over all
    where that is worse than it was. Where nothing is new it stays, unless nothing at all is raised any more. A check that is new, or wants something else than
    before, begins with the worst over all checkpoints. What this audit did not judge stays as it was.
    """
    states = {(item["check"], item["run"]): dict(item) for item in known}
    for condition in conditions:
        name, fresh = condition["name"], condition["fresh"]
        wanted = f"{condition['metric']} {condition['bound']}"
        if "" not in condition["by_run"] and (name, "") in states and condition["by_run"]:
            _add(states[name, ""], "pass", "pass")
        for run, counts in condition["by_run"].items():
            worst = max((level for level in counts if level != NOT_JUDGED), key=ORDER.index, default=None)
            state = states.get((name, run))
            if worst is None:
                continue
            if state is None or state["wanted"] != wanted:
                state = states[name, run] = {"check": name, "run": run, "wanted": wanted, "levels": []}
                _add(state, worst, worst)
            elif ORDER.index(worst) > ORDER.index(state["worst"]):
                _add(state, worst, worst)
            elif run == "" or run in fresh:
                _add(state, fresh.get(run, worst), worst)
            elif worst == "pass" and state["levels"][-1] != "pass":
                _add(state, "pass", worst)
    return [states[key] for key in sorted(states)]


def _add(state: State, level: str, worst: str) -> None:
    state["levels"] = [*state["levels"], level][-MOST_IN_A_ROW:]
    state["worst"] = worst


def changes_to_tell(
    alert: AlertSpec, states: Sequence[State], told: Mapping[str, Mapping[str, Any]], now: float
) -> list[Change]:
    """The changes that `alert` is about and has not told yet; `now` in seconds as `told` has them.

    A change is ok → raised, raised → ok, or raised → raised more severely than told.
    """
    least = ORDER.index(alert.min_severity)
    found = []
    for state in states:
        if not (_fits(state["check"], alert.checks) and _fits(state["run"], alert.runs)):
            continue
        ranks = [ORDER.index(level) for level in state["levels"]]
        in_a_row = next((n for n, rank in enumerate(reversed(ranks)) if rank < least), len(ranks))
        last = told.get(key_of(state["check"], state["run"]), {"outcome": "pass", "at": -float("inf")})
        before = ORDER.index(last["outcome"])
        is_raised = in_a_row >= alert.after and (before < least or ranks[-1] > before)
        is_over = in_a_row == 0 and before >= least
        if (is_raised or is_over) and now - last["at"] >= alert.cooldown:
            kind: Literal["raised", "recovered"] = "raised" if is_raised else "recovered"
            found.append(
                Change(state["check"], state["run"], kind, state["levels"][-1], last["outcome"], in_a_row)
            )
    return found


def worth_keeping(states: Iterable[State], memory: Memory, conditions: Iterable[Mapping[str, Any]]) -> list[State]:
    """The states that the next audit has to know.

    One that was raised neither of late nor now at any checkpoint, and of which nobody was told so, begins anew with what
    the check then says of all checkpoints, which is the same.
    """
    told = {key for by_key in memory.values() for key, last in by_key.items() if last["outcome"] != "pass"}
    sound = {
        key_of(condition["name"], run)
        for condition in conditions
        for run, counts in condition["by_run"].items()
        if not set(counts) - {"pass", NOT_JUDGED}
    }
    return [
        state
        for state in states
        if (key := key_of(state["check"], state["run"])) in told
        or key not in sound
        or any(level != "pass" for level in state["levels"])
    ]


def key_of(check: str, run: str) -> str:
    """Under what a check and run are remembered; neither name may hold a slash."""
    return f"{check}/{run}"


def remember(told: Mapping[str, Mapping[str, Any]], changes: Iterable[Change], now: float) -> dict[str, Any]:
    """What was told before, with `changes` told at `now`."""
    return {**told, **{key_of(item.check, item.run): {"outcome": item.outcome, "at": now} for item in changes}}


def _fits(name: str, pattern: str) -> bool:
    if pattern.startswith("re:"):
        return re.fullmatch(pattern[3:], name) is not None
    return fnmatchcase(name, pattern)


def message_of(
    alert: str, changes: Sequence[Change], record: Mapping[str, Any], raised: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """The JSON object that a webhook gets; `text` says it all in words, as Slack and Mattermost want it."""
    first: dict[tuple[str, str], tuple[int, Mapping[str, Any]]] = {}
    for item in raised:
        key = (item["name"], item["run"])
        count, known = first.get(key, (0, item))
        worse = ORDER.index(item["outcome"]) > ORDER.index(known["outcome"])
        first[key] = (count + 1, item if worse else known)
    entries = []
    for change in changes:
        count, finding = first.get((change.check, change.run), (0, {}))
        told = finding if change.kind == "raised" else {}
        entries.append(
            {"check": change.check, "run": change.run, "change": change.kind, "outcome": change.outcome,
             "before": change.before, "in_a_row": change.in_a_row, "findings": count if told else 0,
             "step": told.get("step"), "layer": told.get("layer", ""), "reason": told.get("reason", "")}
        )  # fmt: skip
    lines = [
        f"{record['title']}: verdict {record['verdict']}",
        *map(_sentence, entries),
        f"report: {record['report']}",
    ]
    return {"schema": 1, "alert": alert, **record, "changes": entries, "text": "\n".join(lines)}


def _sentence(entry: Mapping[str, Any]) -> str:
    place = f"{entry['check']} ({entry['run']})" if entry["run"] else entry["check"]
    if entry["change"] == "recovered":
        return f"{place}: recovered, it was {entry['before']}"
    where = " ".join(filter(None, (entry["layer"], f"step {entry['step']}" if (entry["step"] or -1) >= 0 else "")))
    return f"{place}: {entry['outcome']}{' at ' + where if where else ''}: {entry['reason']}"
