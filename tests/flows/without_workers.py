"""An audit in this process, unit by unit, with neither Prefect nor workers: what is decided and stored is the same."""

from __future__ import annotations

from pathlib import Path

from stratascope.flows.config import load_config
from stratascope.flows.later_units import later_units_of_stored
from stratascope.flows.plan import (
    Plan,
    Survey,
    make_plan,
    probe_identity,
    store_folder,
    survey,
)
from stratascope.flows.result import AuditResult, conclude, nothing_to_judge, to_be_judged
from stratascope.storage.pruning import finish_pruning
from stratascope.storage.store import Store
from stratascope.tasks import units
from stratascope.tasks.checks.filing import judge_store


def surveyed(config: Path, *overrides: str) -> Survey:
    settings = load_config(config, overrides)
    store = Store.open(store_folder(settings, config.parent), create=True)
    return survey(settings, config.parent, store)


def audit_here(config: Path, *overrides: str) -> tuple[AuditResult, list[units.Outcome], Plan]:
    """Audit as `config` says; returns the result, what became of each unit, and the plan."""
    found = surveyed(config, *overrides)
    found.store.sweep()
    finish_pruning(found.store)
    store, folder = found.store.location, str(found.folder)
    for name in found.unknown_probes:
        identity = probe_identity(found.config, name)
        found.probes[name] = units.keep_probe(store, name, found.config.probes[name], folder, identity)
    quarantined = 0
    for source, file in found.unread:
        facts = units.read_file(store, file, source, folder, units.facts_identity(source))
        found.facts[source.name][file.path] = facts
        quarantined += facts["status"] == "quarantined"
    plan = make_plan(found)
    outcomes = [units.compute_unit(item) for chain in plan.chains for item in chain]
    plan.series = later_units_of_stored(found, plan)
    outcomes += [units.compute_unit(item) for item in plan.series]
    asked = to_be_judged(found, plan, outcomes)
    judged = nothing_to_judge() if asked is None else judge_store(*asked)
    return conclude(found, plan, outcomes, quarantined, 1.0, judged=judged), outcomes, plan
