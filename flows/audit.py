"""The audit: intake → capture → analyses → checks → report, for what is new."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect import Task, flow
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed, Failed

from stratascope.errors import ConfigurationError, StratascopeError
from stratascope.flows.cluster import task_runner
from stratascope.flows.config import load_config
from stratascope.flows.plan import (
    Plan,
    Survey,
    facts_identity,
    make_plan,
    outstanding,
    probe_identity,
    report_identity,
    series_of_stored,
    store_folder,
    survey,
)
from stratascope.flows.progress import tell
from stratascope.flows.result import AuditResult, conclude
from stratascope.storage.checkpoint_files import CheckpointFile
from stratascope.storage.store import Store
from stratascope.tasks import preview, units
from stratascope.tasks.report import build

_SETTINGS: dict[str, Any] = {"cache_policy": NO_CACHE, "retries": 0, "log_prints": False}
read_file = Task(units.read_file, name="read-checkpoint", **_SETTINGS)
keep_probe = Task(units.keep_probe, name="store-probe", **_SETTINGS)
check_network = Task(preview.complaint, name="check-network", **_SETTINGS)
compute_unit = Task(units.compute_unit, name="compute-unit", **_SETTINGS)
draw_analysis = Task(build.draw_analysis, name="draw-analysis", **_SETTINGS)
draw_overview = Task(build.draw_overview, name="draw-overview", **_SETTINGS)
write_page = Task(build.write_page, name="write-page", **_SETTINGS)

_ATTEMPTS = 3
"""A unit whose worker is lost is handed out so many times; a failure of its own is final."""


@dataclass
class Work:
    """What one audit has done so far."""

    outcomes: list[units.Outcome] = field(default_factory=list)
    newly_quarantined: int = 0
    deadline: float | None = None
    postponed: list[units.Assignment] = field(default_factory=list)

    def is_late(self) -> bool:
        return self.deadline is not None and time.time() > self.deadline


@flow(name="audit", flow_run_name="audit-{config}", validate_parameters=False)
def audit(
    config: str, overrides: list[str] | None = None, rehash: bool = False, max_seconds: float | None = None
) -> Any:
    """Audit as the file `config` says; the flow that deployments run. Its state tells the verdict."""
    result = audit_from_file(config, overrides, rehash, max_seconds)
    message = f"verdict {result.verdict}: {result.units}; report {result.report}"
    return Completed(message=message) if result.exit_code == 0 else Failed(message=message)


def audit_from_file(
    config: str, overrides: list[str] | None = None, rehash: bool = False, max_seconds: float | None = None
) -> AuditResult:
    """Choose the workers that the configuration asks for, and audit on them."""
    path = Path(config).absolute()
    runner = task_runner(load_config(path, overrides or []).cluster)
    on_workers = audit_on_workers.with_options(task_runner=runner)
    result: AuditResult = on_workers(str(path), overrides or [], rehash, max_seconds)
    return result


@flow(name="audit-on-workers", validate_parameters=False)
def audit_on_workers(config: str, overrides: list[str], rehash: bool, max_seconds: float | None) -> AuditResult:
    """The audit itself, on the task runner that the caller chose."""
    path = Path(config)
    settings = load_config(path, overrides)
    store = Store.open(store_folder(settings, path.parent), create=True)
    started = time.time()
    store.sweep()
    found = survey(settings, path.parent, store, rehash)
    work = Work(deadline=started + max_seconds if max_seconds is not None else None)
    _read_files(found, work)
    plan = make_plan(found)
    todo = {item.unit for item in outstanding(plan, store)}
    _check_networks(plan, found, todo)
    _compute_checkpoints(plan, todo, work, settings.cluster.workers)
    _compute_series(plan, found, todo, work)
    result = conclude(found, plan, work.outcomes, work.newly_quarantined, time.time() - started, work.postponed)
    _report(plan, found, result)
    return result


def _read_files(found: Survey, work: Work) -> None:
    store = str(found.store.path)
    folder = str(found.folder)
    probes: dict[str, Any] = {
        name: keep_probe.with_options(task_run_name=f"store-probe-{name}").submit(
            store, name, found.config.probes[name], folder, probe_identity(found.config, name)
        )
        for name in found.unknown_probes
    }
    reads: list[tuple[CheckpointFile, Any]] = [
        (
            file,
            read_file.with_options(task_run_name=f"read-{source.name}-{file.path.name}").submit(
                store, file, source, folder, facts_identity(source)
            ),
        )
        for source, file in found.unread
    ]
    for name, future in probes.items():
        digest = _result_of(future)
        if isinstance(digest, BaseException):
            reason = str(digest) if isinstance(digest, StratascopeError) else f"probe {name!r}: {digest!r}"
            raise ConfigurationError(reason) from None
        found.probes[name] = digest
    for number, (file, future) in enumerate(reads):
        facts = _result_of(future)
        if isinstance(facts, ConfigurationError):
            raise facts
        if isinstance(facts, BaseException):
            facts = {"status": "quarantined", "reason": f"{file.path.name}: reading it ended with {facts!r}."}
        found.facts[file.path] = facts
        work.newly_quarantined += facts["status"] == "quarantined"
        tell("reading checkpoints", number + 1, len(reads))


def _check_networks(plan: Plan, found: Survey, todo: set[Any]) -> None:
    """Refuse, before any work, layers and probes that do not fit the network of a run."""
    firsts = {chain[0].unit.run: chain[0] for chain in reversed(plan.chains) if chain[0].unit in todo}
    futures = [
        check_network.with_options(task_run_name=f"check-network-{run}").submit(
            str(found.store.path), item.subject.source.model, str(found.folder), item.subject.probes,
            item.layers, item.requests, item.capture,
        )
        for run, item in firsts.items()
    ]  # fmt: skip
    for run, future in zip(firsts, futures, strict=True):
        complaint = _result_of(future)
        if complaint:
            raise ConfigurationError(f"run {run!r}: {complaint}")


def _compute_checkpoints(plan: Plan, todo: set[Any], work: Work, workers: int) -> None:
    """All chains, a few at a time so that neither scheduler nor server drowns."""
    done = 0
    window: deque[list[tuple[units.Assignment, Any]]] = deque()
    for chain in plan.chains:
        wanted = [item for item in chain if item.unit in todo]
        work.outcomes += [units.Outcome(item.unit, "cached") for item in chain if item.unit not in todo]
        if wanted and work.is_late():
            work.postponed += wanted
            continue
        if wanted:
            window.append(_submit_chain(wanted))
        while len(window) >= 4 * workers:
            done = _collect(window.popleft(), work, done, len(todo))
    while window:
        done = _collect(window.popleft(), work, done, len(todo))


def _compute_series(plan: Plan, found: Survey, todo: set[Any], work: Work) -> None:
    if work.postponed:
        work.postponed += [item for item in plan.series if item.unit in todo]
        return
    plan.series = series_of_stored(found, plan)
    wanted = [item for item in plan.series if not found.store.is_current(item.unit, item.identity)]
    wanted_units = {item.unit for item in wanted}
    work.outcomes += [units.Outcome(item.unit, "cached") for item in plan.series if item.unit not in wanted_units]
    _collect([(item, _submit(item, [])) for item in wanted], work, len(todo) - len(wanted), len(todo))


def _submit_chain(chain: list[units.Assignment]) -> list[tuple[units.Assignment, Any]]:
    submitted: list[tuple[units.Assignment, Any]] = []
    before: list[Any] = []
    for item in chain:
        future = _submit(item, before)
        submitted.append((item, future))
        if item.unit.analysis == "capture":
            before = [future]
    return submitted


def _submit(item: units.Assignment, before: list[Any]) -> Any:
    place = f"-{item.unit.step}" if item.unit.scope == "checkpoint" else ""
    name = f"{item.unit.analysis}-{item.unit.run}{place}"
    named_task: Any = compute_unit.with_options(task_run_name=name)
    return named_task.submit(item, wait_for=before)


def _collect(submitted: list[tuple[units.Assignment, Any]], work: Work, done: int, total: int) -> int:
    for item, future in submitted:
        outcome = _result_of(future)
        attempt = 1
        while not isinstance(outcome, units.Outcome) and attempt < _ATTEMPTS:
            # The worker died, perhaps of this very unit: Prefect's own retries do not see that.
            time.sleep(2**attempt / 2)
            attempt += 1
            outcome = _result_of(_submit(item, []))
        if not isinstance(outcome, units.Outcome):
            reason = f"{item.unit}: its worker was lost {_ATTEMPTS} times ({outcome!r}); is there enough memory?"
            outcome = units.Outcome(item.unit, "failed", reason)
        work.outcomes.append(outcome)
        done += 1
        tell("computing", done, total)
    return done


def _result_of(future: Any) -> Any:
    """The result of `future`, or the exception in its place."""
    try:
        return future.result(raise_on_failure=False)
    except Exception as error:  # a lost worker shows here, whatever Prefect's state says
        return error


def _report(plan: Plan, found: Survey, result: AuditResult) -> None:
    store = str(found.store.path)
    drawn = [draw_overview.with_options(task_run_name="draw-overview").submit(store)]
    drawn += [
        draw_analysis.with_options(task_run_name=f"draw-{name}-{run}").submit(
            store, run, name, options.model_dump(mode="json")
        )
        for name, options in found.analyses.items()
        for run in plan.listings
        if plan.listings[run].checkpoints
    ]
    failures = _finished(drawn, "drawing")
    pages = build.plan_pages(store)
    written = [write_page.with_options(task_run_name=f"page-{page}").submit(store, page) for page in pages]
    failures += _finished(written, "writing pages")
    build.finish_report(store, pages, report_identity(plan, found) if not failures else "")
    result.failures += [f"report: {text}" for text in failures]


def _finished(futures: list[Any], label: str) -> list[str]:
    """Wait for all of `futures`; returns what went wrong."""
    failures = []
    for number, future in enumerate(futures):
        result = _result_of(future)
        if isinstance(result, BaseException):
            failures.append(f"{type(result).__name__}: {result}")
        tell(label, number + 1, len(futures))
    return failures
