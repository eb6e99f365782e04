"""An audit in this very process: what the flow hands to its workers, one piece after the other."""

from __future__ import annotations

import sys
from pathlib import Path

from stratascope.flows.config import load_config
from stratascope.flows.plan import make_plan, outstanding, probe_identity, report_identity, store_folder, survey
from stratascope.flows.result import AuditResult, conclude, nothing_to_judge, to_be_judged
from stratascope.storage.store import Store
from stratascope.tasks import units
from stratascope.tasks.checks.filing import judge_store
from stratascope.tasks.report import build
from stratascope.tasks.report.drawing import report_unit


def audit_here(config: Path, *, draws: bool = False) -> AuditResult:
    """Audit as the file `config` says, without Prefect and Dask; the report only with `draws`."""
    settings = load_config(config)
    store = Store.open(store_folder(settings, config.parent), create=True)
    store.sweep()
    found = survey(settings, config.parent, store)
    place, folder = store.location, str(config.parent)
    for name in found.unknown_probes:
        found.probes[name] = units.keep_probe(
            place, name, settings.probes[name], folder, probe_identity(settings, name)
        )
    for source, file in found.unread:
        found.facts[source.name][file.path] = units.read_file(
            place, file, source, folder, units.facts_identity(source)
        )
    plan = make_plan(found)
    outcomes = [units.compute_unit(item) for item in outstanding(plan, store)]
    asked = to_be_judged(found, plan, outcomes)
    judged = nothing_to_judge() if asked is None else judge_store(*asked)
    result = conclude(found, plan, outcomes, 0, 0.0, judged=judged)
    store.rows()  # compacts the ledger
    if not draws:
        return result
    with store.claim(report_unit()):
        for name, options in found.analyses.items():
            scope = units.named(name).scope
            for run in [""] if scope == "cohort" else list(plan.listings):
                build.draw_analysis(place, run, name, options.model_dump(mode="json"))
        build.draw_overview(place)
        pages = build.plan_pages(place)
        for page in pages:
            build.write_page(place, page)
        build.finish_report(place, pages, report_identity(plan, found))
    return result


if __name__ == "__main__":
    audited = audit_here(Path(sys.argv[1]))
    print(audited.units, audited.failures)
    sys.exit(audited.exit_code)
