"""The audit: intake → capture → analyses → checks → report, for what is new."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prefect import Task, flow
from prefect.states import Completed, Failed

from stratascope.errors import AnalysisError, ConfigurationError, StoreError, StratascopeError
from stratascope.flows.arrivals import Arrivals
from stratascope.flows.artifacts import progress_listener, publish, server_lasts
from stratascope.flows.cluster import (
    GIB,
    await_workers,
    check_workers,
    on_workers,
    placed,
    worker_limits,
)
from stratascope.flows.config import deployed, load_config
from stratascope.flows.futures import ATTEMPTS, SETTINGS, finished, insist, result_of
from stratascope.flows.later_units import later_units_of_stored
from stratascope.flows.plan import (
    Plan,
    Survey,
    make_plan,
    outstanding,
    probe_identity,
    report_identity,
    store_folder,
    survey,
)
from stratascope.flows.progress import listen, tell
from stratascope.flows.result import AuditResult, conclude, nothing_to_judge, outcome_without_work, to_be_judged
from stratascope.storage.attempts import forget_deaths
from stratascope.storage.checkpoint_files import CheckpointFile, RunSource
from stratascope.storage.pruning import finish_pruning
from stratascope.storage.store import Store
from stratascope.tasks import preview, units
from stratascope.tasks.analysis import named
from stratascope.tasks.checks.filing import Judgement, judge_store
from stratascope.tasks.limits import Limits
from stratascope.tasks.report import build
from stratascope.tasks.report.drawing import report_unit
from stratascope.tasks.units import is_done

read_file = Task(units.read_file, name="read-checkpoint", **SETTINGS)
keep_probe = Task(units.keep_probe, name="store-probe", **SETTINGS)
check_network = Task(preview.estimate, name="check-network", **SETTINGS)
compute_unit = Task(units.compute_unit, name="compute-unit", **SETTINGS)
draw_analysis = Task(build.draw_analysis, name="draw-analysis", **SETTINGS)
draw_overview = Task(build.draw_overview, name="draw-overview", **SETTINGS)
judge = Task(judge_store, name="judge-checks", task_run_name="judge-checks", **SETTINGS)
plan_pages = Task(build.plan_pages, name="plan-pages", **SETTINGS)
write_page = Task(build.write_page, name="write-page", **SETTINGS)

_AT_ONCE = 4
"""So many pieces of work are handed out for each worker: more would drown scheduler and server."""


@dataclass
class Work:
    """What one audit has done so far."""

    at_once: int
    """So many pieces of work are in hand at a time."""
    outcomes: list[units.Outcome] = field(default_factory=list)
    newly_quarantined: int = 0
    deadline: float | None = None
    limits: Limits | None = None
    postponed: list[units.Assignment] = field(default_factory=list)

    def is_late(self) -> bool:
        return self.deadline is not None and time.time() > self.deadline


@flow(name="audit", flow_run_name="audit-{config}", validate_parameters=False)
def audit(
    config: str,
    overrides: list[str] | None = None,
    rehash: bool = False,
    max_seconds: float | None = None,
    rebase: bool = False,
) -> Any:
    """Audit as the file `config` says; the flow that deployments run. Its state tells the verdict."""
    try:
        result = outcome_without_work(deployed(config), overrides or [], rehash, rebase)
        if result is None:
            result = audit_from_file(config, overrides, rehash, max_seconds, rebase)
    except StratascopeError as error:
        return Failed(message=str(error))
    message = f"verdict {result.verdict}: {result.units}; report {result.report}"
    return Completed(message=message) if result.exit_code == 0 else Failed(message=message)


def audit_from_file(
    config: str,
    overrides: list[str] | None = None,
    rehash: bool = False,
    max_seconds: float | None = None,
    rebase: bool = False,
) -> AuditResult:
    """Choose the workers that the configuration asks for, and audit on them."""
    path = Path(config).absolute()
    cluster = load_config(path, overrides or []).cluster
    result: AuditResult = on_workers(audit_on_workers, cluster)(
        str(path), overrides or [], rehash, max_seconds, rebase
    )
    return result


@flow(name="audit-on-workers", flow_run_name="audit-on-workers-{config}", validate_parameters=False)
def audit_on_workers(
    config: str, overrides: list[str], rehash: bool, max_seconds: float | None, rebase: bool = False
) -> AuditResult:
    """The audit itself, on the task runner that the caller chose."""
    path = Path(config)
    settings = load_config(path, overrides)
    if server_lasts():
        listen(progress_listener())
    store = Store.open(store_folder(settings, path.parent), create=True)
    started = time.time()
    store.sweep()
    forget_deaths(store)
    finish_pruning(store)
    found = survey(settings, path.parent, store, rehash, rebase)
    at_once = _AT_ONCE * await_workers(settings.cluster)
    # A network that asks for a card would wait for ever where none is offered.
    check_workers(settings.cluster, 0)
    work = Work(
        at_once,
        deadline=started + max_seconds if max_seconds is not None else None,
        limits=worker_limits(settings.limits),
    )
    _read_files(found, work)
    plan = make_plan(found)
    todo = {item.unit for item in outstanding(plan, store)}
    _check_networks(plan, found, todo)
    _compute_checkpoints(plan, todo, work)
    _compute_series(plan, found, todo, work)
    judged = _judge(found, plan, work)
    seconds = time.time() - started
    result = conclude(found, plan, work.outcomes, work.newly_quarantined, seconds, work.postponed, judged=judged)
    # Two audits of one store would tear each other's pages: one at a time draws.
    with found.store.claim(report_unit()):
        _report(plan, found, result)
    if server_lasts():
        publish(result, settings.report.title)
    return result


def _read_files(found: Survey, work: Work) -> None:
    store = found.store.location
    folder = str(found.folder)
    probes: dict[str, Any] = {
        name: keep_probe.with_options(task_run_name=f"store-probe-{name}").submit(
            store, name, found.config.probes[name], folder, probe_identity(found.config, name)
        )
        for name in found.unknown_probes
    }
    for name, future in probes.items():
        digest = result_of(future)
        if isinstance(digest, BaseException):
            reason = str(digest) if isinstance(digest, StratascopeError) else f"probe {name!r}: {digest!r}."
            raise ConfigurationError(reason) from None
        found.probes[name] = digest
    under_way: Arrivals[tuple[RunSource, CheckpointFile, Any]] = Arrivals()
    for number, (source, file) in enumerate(found.unread):
        future = _submit_read(found, source, file, work.limits)
        under_way.expect((source, file, future), [future])
        if len(under_way) >= work.at_once:
            _take_facts(found, work, *under_way.next())
        tell("reading checkpoints", number + 1 - len(under_way), len(found.unread))
    while under_way:
        _take_facts(found, work, *under_way.next())
        tell("reading checkpoints", len(found.unread) - len(under_way), len(found.unread))


def _submit_read(found: Survey, source: RunSource, file: CheckpointFile, limits: Limits | None) -> Any:
    named = read_file.with_options(task_run_name=f"read-{source.name}-{file.path.name}")
    return named.submit(
        found.store.location, file, source, str(found.folder), units.facts_identity(source), limits
    )


def _take_facts(found: Survey, work: Work, source: RunSource, file: CheckpointFile, future: Any) -> None:
    facts = insist(future, lambda: _submit_read(found, source, file, work.limits))
    if isinstance(facts, ConfigurationError):
        raise facts
    if isinstance(facts, BaseException):
        ending = str(facts) if isinstance(facts, StratascopeError) else f"reading it ended with {facts!r}."
        facts = {"status": "quarantined", "reason": f"{file.path.name}: {ending}"}
    found.facts[source.name][file.path] = facts
    work.newly_quarantined += facts["status"] == "quarantined"


def _check_networks(plan: Plan, found: Survey, todo: set[Any]) -> None:
    """Refuse, before any work, layers and probes that do not fit a run's network, and work that has no room."""
    fresh = [chain[0] for chain in plan.chains if chain[0].unit in todo]
    firsts = {item.unit.run: item for item in reversed(fresh)}
    futures = []
    for run, item in firsts.items():
        with placed(item.device):
            futures.append(
                check_network.with_options(task_run_name=f"check-network-{run}").submit(
                    found.store.location, item.subject.source, item.files, str(found.folder), item.subject.probes,
                    item.layers, item.requests, item.capture, item.device,
                )
            )  # fmt: skip
    total, memory = 0, 0
    for run, future in zip(firsts, futures, strict=True):
        estimate = result_of(future)
        if isinstance(estimate, BaseException):
            raise AnalysisError(f"run {run!r}: its network could not be looked at: {estimate!r}.")
        if estimate.complaint:
            raise ConfigurationError(f"run {run!r}: {estimate.complaint}")
        total += estimate.bytes * sum(item.unit.run == run for item in fresh)
        memory = max(memory, estimate.memory)
    check_workers(found.config.cluster, memory)
    free = found.store.free_bytes()
    if free is not None and total > free:
        raise StoreError(
            f"this audit may write {total / GIB:.1f} GiB, and {found.store.location} has {free / GIB:.1f} GiB free: make room, "
            "keep less (`capture.keep`), or put the store elsewhere."
        )


def _compute_checkpoints(plan: Plan, todo: set[Any], work: Work) -> None:
    """All chains, a few at a time so that neither scheduler nor server drowns."""
    done = 0
    under_way: Arrivals[list[tuple[units.Assignment, Any]]] = Arrivals()
    for chain in plan.chains:
        wanted = [item for item in chain if item.unit in todo]
        work.outcomes += [units.Outcome(item.unit, "cached") for item in chain if item.unit not in todo]
        if wanted and work.is_late():
            work.postponed += wanted
            continue
        if wanted:
            submitted = _submit_chain(wanted, work.limits)
            under_way.expect(submitted, [future for _, future in submitted])
        while len(under_way) >= work.at_once:
            done = _collect(under_way.next(), work, done, len(todo))
    while under_way:
        done = _collect(under_way.next(), work, done, len(todo))
    # What is told of an audit does not depend on which worker was quicker.
    places = {item.unit: place for place, item in enumerate(plan.units())}
    work.outcomes.sort(key=lambda outcome: places[outcome.unit])


def _compute_series(plan: Plan, found: Survey, todo: set[Any], work: Work) -> None:
    if work.postponed:
        work.postponed += [item for item in plan.series if item.unit in todo]
        return
    plan.series = later_units_of_stored(found, plan)
    with found.store.snapshot():
        wanted = [item for item in plan.series if not is_done(found.store, item)]
    wanted_units = {item.unit for item in wanted}
    work.outcomes += [units.Outcome(item.unit, "cached") for item in plan.series if item.unit not in wanted_units]
    _collect([(item, _submit(item, [], work.limits)) for item in wanted], work, len(todo) - len(wanted), len(todo))


def _submit_chain(chain: list[units.Assignment], limits: Limits | None) -> list[tuple[units.Assignment, Any]]:
    submitted: list[tuple[units.Assignment, Any]] = []
    before: list[Any] = []
    for item in chain:
        future = _submit(item, before, limits)
        submitted.append((item, future))
        if item.unit.analysis == "capture":
            before = [future]
    return submitted


def _submit(item: units.Assignment, before: list[Any], limits: Limits | None) -> Any:
    place = f"-{item.unit.step}" if item.unit.scope == "checkpoint" else ""
    name = f"{item.unit.analysis}-{item.unit.run}{place}"
    named_task: Any = compute_unit.with_options(task_run_name=name)
    with placed(item.device):
        return named_task.submit(replace(item, limits=limits), wait_for=before)


def _collect(submitted: list[tuple[units.Assignment, Any]], work: Work, done: int, total: int) -> int:
    for item, future in submitted:
        outcome = insist(future, lambda item=item: _submit(item, [], work.limits))  # type: ignore[misc]
        if not isinstance(outcome, units.Outcome):
            reason = f"{item.unit}: its worker was lost {ATTEMPTS} times ({outcome!r}); is there enough memory?"
            outcome = units.Outcome(item.unit, "failed", reason)
        work.outcomes.append(outcome)
        done += 1
        tell("computing", done, total)
    return done


def _judge(found: Survey, plan: Plan, work: Work) -> Judgement | BaseException:
    asked = to_be_judged(found, plan, work.outcomes)
    if asked is None:
        return nothing_to_judge()
    judged: Judgement | BaseException = insist(judge.submit(*asked), lambda: judge.submit(*asked))
    return judged


def _report(plan: Plan, found: Survey, result: AuditResult) -> None:
    store = found.store.location
    drawn = [draw_overview.with_options(task_run_name="draw-overview").submit(store)]
    drawn += [
        draw_analysis.with_options(task_run_name=f"draw-{name}-{run}").submit(
            store, run, name, options.model_dump(mode="json"), found.config.report.show_inputs
        )
        for name, options in found.analyses.items()
        for run in _drawn_runs(plan, name)
    ]
    failures = finished(drawn, "drawing")
    pages = insist(plan_pages.submit(store), lambda: plan_pages.submit(store))
    if isinstance(pages, BaseException):
        result.failures.append(f"report: its pages could not be planned: {pages}")
        return
    written = [write_page.with_options(task_run_name=f"page-{page}").submit(store, page) for page in pages]
    failures += finished(written, "writing pages")
    build.finish_report(store, pages, report_identity(plan, found) if not failures else "")
    result.failures += [f"report: {text}" for text in failures]


def _drawn_runs(plan: Plan, name: str) -> list[str]:
    if named(name).scope == "cohort":
        return [""]
    return [run for run, listing in plan.listings.items() if listing.checkpoints]
