"""What an audit found: the object that `--json` prints, the exit code, the record in the history."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stratascope.errors import ConfigurationError, UnreachableError
from stratascope.flows.alerts import tell_changes
from stratascope.flows.config import AuditConfig, load_config
from stratascope.flows.plan import Plan, Survey, is_up_to_date, make_plan, report_identity, store_folder, survey
from stratascope.storage.audits import latest_audit, newest_first, repeated, write_audit, write_repeat
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.tasks.checks.ci_output import AuditSummary
from stratascope.tasks.checks.evaluate import Outcome as CheckOutcome
from stratascope.tasks.checks.filing import Judgement
from stratascope.tasks.units import Assignment, Outcome

SCHEMA = 1
OUT_OF_TIME = "the time was up; the next audit goes on"


@dataclass
class AuditResult:
    """The outcome of one audit."""

    store: str
    report: str
    verdict: str
    checkpoints: list[dict[str, Any]]
    units: dict[str, int]
    checks: list[dict[str, Any]]
    failures: list[str] = field(default_factory=list)
    alerts: list[dict[str, Any]] = field(default_factory=list)
    """Who was to be told of which change, and whether it arrived."""
    newly_quarantined: int = 0
    conditions: list[dict[str, Any]] = field(default_factory=list)
    title: str = ""
    seconds: float = 0.0

    @property
    def exit_code(self) -> int:
        """0 done, 1 a check failed, 3 something could not be computed; 3 wins over 1."""
        if self.units.get("failed") or self.newly_quarantined or self.verdict == "error" or self.failures:
            return 3
        return 1 if self.verdict == "fail" else 0

    def as_json(self) -> dict[str, Any]:
        """The documented object; numbers that are none become null."""
        content = {"schema": SCHEMA, **asdict(self)}
        for name in ("newly_quarantined", "conditions", "title", "seconds"):
            content.pop(name)
        for check in content["checks"]:
            value = check["value"]
            check["value"] = value if value is not None and math.isfinite(value) else None
        return content

    def summary(self) -> AuditSummary:
        """What systems that run jobs are told."""
        return AuditSummary(
            self.title, self.verdict, self.report, self.conditions, self.checks, self.checkpoints, self.failures,
            bool(self.newly_quarantined), self.seconds,
        )  # fmt: skip


def conclude(
    found: Survey,
    plan: Plan,
    outcomes: Sequence[Outcome],
    newly_quarantined: int,
    seconds: float,
    postponed: Sequence[Assignment] = (),
    *,
    judged: Judgement | BaseException,
) -> AuditResult:
    """What an audit came to, written into the store's history.

    `postponed` are units that `--max-time` left for the next audit; `judged` is what the checks say, or what kept
    them from saying anything.
    """
    counts = Counter(item.status for item in outcomes)
    failed = {(item.unit.run, item.unit.step): item.reason for item in outcomes if item.status == "failed"}
    changed = {(item.unit.run, item.unit.step): item.reason for item in outcomes if item.status == "deferred"}
    computed = {(item.unit.run, item.unit.step) for item in outcomes if item.status == "computed"}
    late = {(item.unit.run, item.unit.step) for item in postponed}
    checkpoints = []
    for run, listing in plan.listings.items():
        for file in listing.checkpoints:
            key = (run, file.step or 0)
            status = "deferred" if key in late or key in changed else "computed" if key in computed else "cached"
            reason = OUT_OF_TIME if key in late else changed.get(key, "")
            if not reason and Unit("checkpoint", *key, "capture") in plan.lost:
                reason = "its arrays were pruned; `--set pruned=recompute` computes them again"
            reason = failed.get(key, reason)
            checkpoints.append(_entry(run, file.step, file.path, status, reason))
        checkpoints += [_entry(run, file.step, file.path, "duplicate", "") for file in listing.duplicates]
    checkpoints += _stepless(plan)
    checkpoints += [
        _entry(run, file.step, file.path, status, reason) for run, file, status, reason in plan.rejected
    ]
    checkpoints += [_entry(item.run, item.step, item.file, "gone", item.reason) for item in plan.gone]
    problems = [item.reason for item in outcomes if item.status == "failed"]
    plan_identity = report_identity(plan, found)
    if isinstance(judged, BaseException):
        problems.append(f"the checks could not be evaluated: {judged!r}")
        judged = Judgement("error", (), ())
        # The next audit judges anew, even where it finds nothing else to do.
        plan_identity = ""
    result = AuditResult(
        store=found.store.location,
        report=f"{found.store.location}/report/index.html",
        verdict=judged.verdict,
        checkpoints=checkpoints,
        units={name: counts.get(name, 0) for name in ("computed", "cached", "failed")},
        checks=list(judged.raised),
        failures=problems,
        newly_quarantined=newly_quarantined,
        conditions=list(judged.conditions),
        title=found.config.report.title,
        seconds=round(seconds, 3),
    )
    analyses = {name: options.model_dump(mode="json") for name, options in found.analyses.items()}
    more = {
        "plan": plan_identity, "analyses": analyses, "title": result.title, "seconds": result.seconds,
        "conditions": result.conditions, "show_inputs": found.config.report.show_inputs,
    }  # fmt: skip
    _tell_and_record(found, result, lambda record: write_audit(found.store, {**result.as_json(), **record}), more)
    return result


def to_be_judged(found: Survey, plan: Plan, outcomes: Sequence[Outcome]) -> tuple[Any, ...] | None:
    """What `judge_store` is to be called with; None where there is no checkpoint to judge."""
    if not plan.chains:
        return None
    stored = set(found.store.units()) & {item.unit for item in plan.units()}
    return found.store.location, stored, found.config.checks, fresh_checkpoints(outcomes)


def nothing_to_judge() -> Judgement:
    """Before a training has written its first checkpoint there is nothing to judge, and nothing amiss."""
    reason = "there is no checkpoint to audit: nothing was checked"
    outcome = CheckOutcome("no-checkpoint", "", "", "", -1, "info", math.nan, "", reason)
    return Judgement("info", (asdict(outcome),), ())


def _tell_and_record(
    found: Survey, result: AuditResult, write: Callable[[dict[str, Any]], Any], more: dict[str, Any]
) -> None:
    """Tell what has changed since the last audit, and write this one into the history; one audit at a time."""
    about = {"title": result.title, "store": result.store, "report": result.report, "verdict": result.verdict}
    with found.store.claim(Unit("report", "", -1, "alerts")):
        told = tell_changes(
            found.config.alerts, latest_audit(found.store), result.conditions, result.checks, about
        )
        result.alerts = told.alerts
        write({**more, "alerts": told.alerts, "states": told.states, "alert_memory": told.memory})


def fresh_checkpoints(outcomes: Sequence[Outcome]) -> frozenset[tuple[str, int]]:
    """Run and step of every checkpoint of which something was computed."""
    return frozenset((item.unit.run, item.unit.step) for item in outcomes if item.status == "computed")


def outcome_without_work(
    config: Path, overrides: Sequence[str] = (), rehash: bool = False, rebase: bool = False
) -> AuditResult | None:
    """The outcome of the audit that `config` asks for where nothing is left to do; None where there is work.

    Neither Prefect, Dask nor torch is imported for it. Raises ConfigurationError, StoreError.
    """
    started = time.time()
    settings: AuditConfig = load_config(config, overrides)
    try:
        store = Store.open(store_folder(settings, config.parent), create=True)
        with store.snapshot():
            found = survey(settings, config.parent, store, rehash, rebase)
            if found.unread or found.unknown_probes:
                return None
            plan = make_plan(found)
            earlier = _same_before(found, plan) if is_up_to_date(plan, found) else None
        # What follows must see what other audits have written meanwhile: it is no part of the snapshot.
        return repeat(found, plan, started, earlier) if earlier is not None else None
    except UnreachableError as error:  # nothing has been done yet
        raise ConfigurationError(str(error)) from None


def _same_before(found: Survey, plan: Plan) -> dict[str, Any] | None:
    """The record of the latest audit that had this plan; None without one."""
    identity = report_identity(plan, found)
    return next((item for item in newest_first(found.store) if item.get("plan") == identity), None)


def repeat(
    found: Survey, plan: Plan, started: float | None = None, earlier: dict[str, Any] | None = None
) -> AuditResult | None:
    """The outcome of an audit that found nothing to do, from the record of the one before; None without one.

    `earlier` is that record where the caller has it; `started` is when this audit began, by default now.
    """
    started = time.time() if started is None else started
    earlier = earlier or _same_before(found, plan)
    if earlier is None:
        return None
    deferred = [
        _entry(run, file.step, file.path, status, reason)
        for run, file, status, reason in plan.rejected
        if status == "deferred"
    ] + _stepless(plan)
    result = AuditResult(
        store=found.store.location,
        report=f"{found.store.location}/report/index.html",
        verdict=earlier["verdict"],
        checkpoints=[*repeated(earlier["checkpoints"]), *deferred],
        units={"computed": 0, "cached": len(plan.units()), "failed": 0},
        checks=earlier["checks"],
        # Nothing is new now, whatever was then.
        conditions=[item | {"fresh": {}} for item in earlier["conditions"]],
        title=earlier["title"],
    )
    own: dict[str, Any] = {"units": result.units, "seconds": round(time.time() - started, 3)}
    if deferred:
        own["deferred"] = deferred
    _tell_and_record(found, result, lambda record: write_repeat(found.store, earlier, **record), own)
    return result


def _stepless(plan: Plan) -> list[dict[str, Any]]:
    reason = "no step can be told from it; it is not audited"
    return [
        _entry(run, None, file.path, "deferred", reason)
        for run, listing in plan.listings.items()
        for file in listing.stepless
    ]


def _entry(run: str, step: int | None, path: Any, status: str, reason: str) -> dict[str, Any]:
    return {"run": run, "step": step, "file": str(path), "status": status, "reason": reason}
