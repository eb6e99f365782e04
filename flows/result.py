"""What an audit found: the object that `--json` prints, the exit code, the record in the history."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from stratascope.errors import ConfigurationError, UnreachableError
from stratascope.flows.config import AuditConfig, load_config
from stratascope.flows.plan import Plan, Survey, is_up_to_date, make_plan, report_identity, store_folder, survey
from stratascope.storage.audits import read_audits, write_audit
from stratascope.storage.remote_paths import still_there
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.tasks.checks.evaluate import Outcome as CheckOutcome
from stratascope.tasks.checks.evaluate import bound, evaluate, expand, verdict
from stratascope.tasks.units import Assignment, Outcome

SCHEMA = 1


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
    newly_quarantined: int = 0

    @property
    def exit_code(self) -> int:
        """0 done, 1 a check failed, 3 something could not be computed; 3 wins over 1."""
        if self.units.get("failed") or self.newly_quarantined or self.verdict == "error" or self.failures:
            return 3
        return 1 if self.verdict == "fail" else 0

    def as_json(self) -> dict[str, Any]:
        """The documented object; numbers that are none become null."""
        content = {"schema": SCHEMA, **asdict(self)}
        content.pop("newly_quarantined")
        for check in content["checks"]:
            value = check["value"]
            check["value"] = value if value is not None and math.isfinite(value) else None
        return content


def conclude(
    found: Survey,
    plan: Plan,
    outcomes: Sequence[Outcome],
    newly_quarantined: int,
    seconds: float,
    postponed: Sequence[Assignment] = (),
) -> AuditResult:
    """Judge the ledger, and write the audit into the store's history.

    `postponed` are units that `--max-time` left for the next audit.
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
            reason = "the time was up; the next audit goes on" if key in late else changed.get(key, "")
            reason = failed.get(key, reason)
            checkpoints.append(_entry(run, file.step, file.path, status, reason))
        checkpoints += [_entry(run, file.step, file.path, "duplicate", "") for file in listing.duplicates]
        checkpoints += [
            _entry(run, None, file.path, "deferred", "no step can be told from it; it is not audited")
            for file in listing.stepless
        ]
    checkpoints += [
        _entry(run, file.step, file.path, status, reason) for run, file, status, reason in plan.rejected
    ]
    checkpoints += gone(found, plan)
    with found.store.snapshot():
        stored = [item.unit for item in plan.units() if found.store.manifest(item.unit) is not None]
        judged: list[CheckOutcome] = evaluate(found.store.rows(stored), found.config.checks)
    result = AuditResult(
        store=found.store.location,
        report=f"{found.store.location}/report/index.html",
        verdict=verdict(judged),
        checkpoints=checkpoints,
        units={name: counts.get(name, 0) for name in ("computed", "cached", "failed")},
        checks=[asdict(item) for item in judged if item.outcome != "pass"],
        failures=[item.reason for item in outcomes if item.status == "failed"],
        newly_quarantined=newly_quarantined,
    )
    record = {
        **result.as_json(),
        "seconds": round(seconds, 3),
        "plan": report_identity(plan, found),
        "title": found.config.report.title,
        "conditions": _conditions(found, judged),
        "analyses": {name: options.model_dump(mode="json") for name, options in found.analyses.items()},
    }
    write_audit(found.store, record)
    return result


def _conditions(found: Survey, judged: Sequence[CheckOutcome]) -> list[dict[str, Any]]:
    """Each condition that was put, with how often it came out how."""
    return [
        {
            "name": check.name,
            "metric": check.metric,
            "bound": bound(check),
            "severity": check.severity,
            "counts": dict(sorted(Counter(item.outcome for item in judged if item.name == check.name).items())),
        }
        for check, _ in expand(found.config.checks)
    ]


def outcome_without_work(config: Path, overrides: Sequence[str] = (), rehash: bool = False) -> AuditResult | None:
    """The outcome of the audit that `config` asks for where nothing is left to do; None where there is work.

    Neither Prefect, Dask nor torch is imported for it. Raises ConfigurationError, StoreError.
    """
    settings: AuditConfig = load_config(config, overrides)
    try:
        store = Store.open(store_folder(settings, config.parent), create=True)
        with store.snapshot():
            found = survey(settings, config.parent, store, rehash)
            if found.unread or found.unknown_probes:
                return None
            plan = make_plan(found)
            return repeat(found, plan) if is_up_to_date(plan, found) else None
    except UnreachableError as error:  # nothing has been done yet
        raise ConfigurationError(str(error)) from None


def repeat(found: Survey, plan: Plan) -> AuditResult | None:
    """The outcome of an audit that found nothing to do, from the record of the one before; None without one."""
    identity = report_identity(plan, found)
    earlier = next((item for item in reversed(read_audits(found.store)) if item.get("plan") == identity), None)
    if earlier is None:
        return None
    checkpoints = [
        item | {"status": "cached"} if item["status"] == "computed" else item for item in earlier["checkpoints"]
    ]
    result = AuditResult(
        store=found.store.location,
        report=f"{found.store.location}/report/index.html",
        verdict=earlier["verdict"],
        checkpoints=checkpoints,
        units={"computed": 0, "cached": len(plan.units()), "failed": 0},
        checks=earlier["checks"],
    )
    kept = {key: earlier[key] for key in ("plan", "title", "conditions", "analyses")}
    write_audit(found.store, {**result.as_json(), **kept, "seconds": 0.0})
    return result


def gone(found: Survey, plan: Plan) -> list[dict[str, Any]]:
    """What is stored of the configured runs and has no file any more: its results stay."""
    known = {item.unit for chain in plan.chains for item in chain} | {
        Unit("checkpoint", run, file.step, "capture")
        for run, listing in plan.listings.items()
        for file in listing.unselected
        if file.step is not None
    }
    entries = []
    for unit, manifest in found.store.manifests().items():
        if unit.analysis == "capture" and unit.run in plan.listings and unit not in known:
            file = next(iter(manifest.recorded.get("files", ())), "")
            if not still_there(file):
                entries.append(_entry(unit.run, unit.step, file, "gone", "the file is gone; its results are kept"))
    return entries


def _entry(run: str, step: int | None, path: Any, status: str, reason: str) -> dict[str, Any]:
    return {"run": run, "step": step, "file": str(path), "status": status, "reason": reason}
