"""The comparison: the audit first, then two groups of runs and the traditional methods from what it has stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import Task, flow
from prefect.states import Completed, Failed

from stratascope.errors import StratascopeError
from stratascope.flows.audit import audit_from_file, plan_pages, write_page
from stratascope.flows.cluster import await_workers, on_workers
from stratascope.flows.compare_config import load_comparison
from stratascope.flows.compare_plan import (
    ComparisonPlan,
    check_groups,
    comparison_without_work,
    make_comparison_plan,
    outcome,
)
from stratascope.flows.config import deployed
from stratascope.flows.futures import SETTINGS, insist
from stratascope.flows.progress import tell
from stratascope.flows.result import outcome_without_work
from stratascope.storage.manifests import Manifest
from stratascope.tasks.comparison import drawing, work
from stratascope.tasks.comparison.page import comparison_page, drawn_unit
from stratascope.tasks.report import build
from stratascope.tasks.report.drawing import report_unit
from stratascope.tasks.units import Outcome

compare_runs = Task(work.compare_runs, name="compare-runs", **SETTINGS)
fit_method = Task(work.fit_method, name="fit-traditional-method", **SETTINGS)
draw_comparison = Task(drawing.draw_comparison, name="draw-comparison", **SETTINGS)
write_pages = Task(build.write_pages, name="write-pages", **SETTINGS)


@flow(name="compare", flow_run_name="compare-{config}", validate_parameters=False)
def compare(config: str, overrides: list[str] | None = None) -> Any:
    """Compare as the file `config` says; the flow that deployments run. Its state tells whether all was computed."""
    try:
        found = comparison_without_work(deployed(config), overrides or [])
        if found is None:
            found = compare_from_file(config, overrides)
    except StratascopeError as error:
        return Failed(message=str(error))
    message = f"page {found['page']}; {found['units']}"
    return Completed(message=message) if not found["failures"] else Failed(message=message)


def compare_from_file(config: str, overrides: list[str] | None = None) -> dict[str, Any]:
    """Audit what is not stored yet, then compare on the workers that the audit's configuration asks for."""
    path = Path(config).absolute()
    settings, audit_file, audit = load_comparison(path, overrides or [])
    check_groups(settings, audit_file, audit)
    audited = outcome_without_work(audit_file)
    if audited is None:
        audited = audit_from_file(str(audit_file))
    failures, counts = on_workers(compare_on_workers, audit.cluster)(str(path), overrides or [])
    return outcome(make_comparison_plan(path, overrides or []), audited, failures, counts)


@flow(name="compare-on-workers", flow_run_name="compare-on-workers-{config}", validate_parameters=False)
def compare_on_workers(config: str, overrides: list[str]) -> tuple[list[str], dict[str, int]]:
    """The comparison itself, on the task runner that the caller chose, from archive and ledger alone.

    Returns what failed, and how many units were computed, cached and failed.
    """
    plan = make_comparison_plan(Path(config), overrides)
    await_workers(plan.audit.cluster)
    todo = plan.outstanding()
    futures = [(item, _submit(item)) for item in todo]
    counts = {"computed": 0, "cached": len(plan.assignments) - len(todo), "failed": 0}
    failures = []
    for done, (item, future) in enumerate(futures):
        result = insist(future, lambda item=item: _submit(item))  # type: ignore[misc]
        if not isinstance(result, Outcome):
            result = Outcome(
                item.unit, "failed", f"{item.unit}: its worker was lost ({result!r}); is there enough memory?"
            )
        counts[result.status] += 1
        if result.reason:
            failures.append(result.reason)
        tell("comparing", done + 1, len(futures))
    with plan.store.claim(report_unit()):
        failures += _report(plan, failures)
    return failures, counts


def _submit(item: work.ComparisonAssignment) -> Any:
    if item.unit == work.comparison_unit(item.unit.analysis.partition(":")[2]):
        return compare_runs.with_options(task_run_name=item.unit.analysis.replace(":", "-")).submit(item)
    return fit_method.with_options(task_run_name=item.unit.analysis.replace(":", "-")).submit(item)


def _report(plan: ComparisonPlan, failures: list[str]) -> list[str]:
    """Draw the comparison, and write all pages anew, since each links to it; returns what went wrong."""
    store, name = plan.store.location, plan.settings.name
    page = comparison_page(name)

    def drawn() -> Any:
        named: Any = draw_comparison.with_options(task_run_name=f"draw-comparison-{name}")
        return named.submit(store, name, plan.audit.report.show_inputs)

    count = insist(drawn(), drawn)
    if isinstance(count, BaseException):
        return [f"comparison {name!r} could not be drawn: {count}"]
    pages = insist(plan_pages.submit(store), lambda: plan_pages.submit(store))
    if isinstance(pages, BaseException):
        return [f"report: its pages could not be planned: {pages}"]
    others = [item for item in pages if item != page]

    def written() -> Any:
        return write_page.with_options(task_run_name=f"page-{page}").submit(store, page)

    def others_written() -> Any:
        named: Any = write_pages.with_options(task_run_name="other-pages")
        return named.submit(store, others)

    results = [
        insist(future, again) for future, again in ((written(), written), (others_written(), others_written))
    ]
    lost = [result for result in results if isinstance(result, BaseException)]
    known = plan.store.manifest(report_unit())
    build.finish_report(store, pages, known.identity if known is not None and not lost else "")
    if lost:
        return [f"report: {error}" for error in lost]
    if not failures:
        shown = {"show_inputs": plan.audit.report.show_inputs}
        plan.store.write_manifest(Manifest(drawn_unit(name), plan.drawn_identity, {}, {}, shown))
    return []
