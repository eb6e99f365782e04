"""What a comparison has to do: compares identities with manifests. Neither Prefect, Dask nor torch is imported here."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stratascope.errors import AnalysisError
from stratascope.flows.compare_config import (
    CompareConfig,
    chosen_probe,
    load_comparison,
    sides,
    training_probe,
)
from stratascope.flows.config import AuditConfig
from stratascope.flows.plan import REPORT_VERSION, store_folder
from stratascope.flows.result import AuditResult, outcome_without_work
from stratascope.storage.checkpoint_files import split_runs
from stratascope.storage.digests import identity_of
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.tasks.comparison.gathering import Group, chosen_steps, units_of
from stratascope.tasks.comparison.page import comparison_page, drawn_unit, summaries
from stratascope.tasks.comparison.spec import COMPARISON_VERSION, TRADITIONAL_VERSION, TraditionalSpec
from stratascope.tasks.comparison.work import ComparisonAssignment, comparison_unit, traditional_unit
from stratascope.tasks.contexts import Subject

SCHEMA = 1


@dataclass
class ComparisonPlan:
    """The units of one comparison, and under what its figures are remembered."""

    settings: CompareConfig
    audit: AuditConfig
    store: Store
    assignments: list[ComparisonAssignment]
    drawn_identity: str

    @property
    def page(self) -> str:
        """Where the page of this comparison lies below the store."""
        return f"report/{comparison_page(self.settings.name)}"

    def outstanding(self) -> list[ComparisonAssignment]:
        """The units that are not stored under their identity."""
        with self.store.snapshot():
            return [item for item in self.assignments if not self.store.is_current(item.unit, item.identity)]

    def is_up_to_date(self) -> bool:
        """Whether everything is stored, and the page was drawn from exactly that."""
        drawn = self.store.is_current(drawn_unit(self.settings.name), self.drawn_identity)
        return drawn and not self.outstanding() and self.store.has_file(self.page)


def check_groups(settings: CompareConfig, audit_file: Path, audit: AuditConfig) -> None:
    """Refuse, before any work, groups that do not fit the audit's runs. Raises ConfigurationError."""
    names = [source.name for entry in audit.runs for source, _ in split_runs(entry, audit_file.parent)]
    sides(settings, names)


def make_comparison_plan(config: Path, overrides: list[str]) -> ComparisonPlan:
    """All units with their identities, over what the audit has stored.

    Raises ConfigurationError, and AnalysisError where a group has no audited checkpoint.
    """
    settings, audit_file, audit = load_comparison(config, overrides)
    store = Store.open(store_folder(audit, audit_file.parent))
    sources = {source.name: source for entry in audit.runs for source, _ in split_runs(entry, audit_file.parent)}
    wanted = sides(settings, list(sources))
    probe, train = chosen_probe(settings, audit), training_probe(settings, audit)
    steps = chosen_steps(store, [run for runs in wanted.values() for run in runs], settings.step, probe)
    groups = []
    for name, runs in wanted.items():
        pairs = tuple((run, steps[run]) for run in runs if run in steps)
        if not pairs:
            raise AnalysisError(f"group {name!r}: none of its runs has an audited checkpoint: {', '.join(runs)}.")
        groups.append(Group(name, settings.groups[name].label or name, pairs))
    digests = {
        name: manifest.identity
        for name in audit.probes
        if (manifest := store.manifest(Unit("probe", "", -1, name)))
    }
    subjects = {
        run: Subject(
            store.location, run, tuple(sorted(audit.probes)), sources[run], str(audit_file.parent), audit.task, audit.loss
        )
        for group in groups for run, _ in group.runs
    }  # fmt: skip
    shared: dict[str, Any] = {
        "store_path": store.location, "groups": tuple(groups), "subjects": subjects, "probe": probe,
        "spec": settings.spec(),
    }  # fmt: skip
    upstream = units_of(store, groups)
    base: dict[str, Any] = {"groups": [asdict(group) for group in groups], "probe": probe, "probes": digests}
    base |= {"task": audit.task, "loss": audit.loss}
    parts = {
        **base, "version": COMPARISON_VERSION, "spec": settings.spec().model_dump(mode="json"),
        "title": settings.title, "units": sorted(f"{unit}{identity}" for unit, identity in upstream.items()),
    }  # fmt: skip
    title = settings.title or " against ".join(group.label for group in groups)
    assignments = [
        ComparisonAssignment(comparison_unit(settings.name), identity_of(parts), parts, title=title, **shared)
    ]
    if settings.traditional is not None:
        assignments += _traditional(settings, base, train, upstream, groups, shared)
    drawn = {
        "units": [item.identity for item in assignments], "version": REPORT_VERSION,
        "show_inputs": audit.report.show_inputs,
    }  # fmt: skip
    return ComparisonPlan(settings, audit, store, assignments, identity_of(drawn))


def _traditional(
    settings: CompareConfig, base: dict[str, Any], train: str | None, upstream: dict[Unit, str],
    groups: list[Group], shared: dict[str, Any],
) -> list[ComparisonAssignment]:  # fmt: skip
    """One unit for each method: they lean on the probes and, for a network's features, on its capture."""
    assert settings.traditional is not None
    wanted: TraditionalSpec = settings.traditional.model_copy(update={"train_probe": train})
    captures = [
        upstream.get(Unit("checkpoint", run, step, "capture")) for group in groups for run, step in group.runs
    ]
    assignments = []
    for method in wanted.methods:
        parts = {
            **base, "version": TRADITIONAL_VERSION, "method": method, "seed": settings.seed,
            "confidence": settings.confidence, "resamples": settings.resamples,
            "traditional": wanted.model_dump(mode="json", exclude={"methods"}), "captures": captures,
        }  # fmt: skip
        unit = traditional_unit(settings.name, method)
        assignments.append(ComparisonAssignment(unit, identity_of(parts), parts, traditional=wanted, **shared))
    return assignments


def outcome(
    plan: ComparisonPlan, audited: AuditResult, failures: list[str], counts: dict[str, int]
) -> dict[str, Any]:
    """The object that `compare --json` prints; see docs/comparison.md."""
    comparison, methods = summaries(plan.store, plan.settings.name)
    wanted = {item.unit for item in plan.assignments}
    listed = [found for unit, found in methods.items() if unit in wanted]
    return {
        "schema": SCHEMA,
        "store": plan.store.location,
        "page": f"{plan.store.location}/{plan.page}",
        **comparison,
        "traditional": listed,
        "audit": {"verdict": audited.verdict, "units": audited.units, "failures": audited.failures},
        "units": counts,
        "failures": failures,
    }


def comparison_without_work(config: Path, overrides: list[str]) -> dict[str, Any] | None:
    """The outcome of the comparison where nothing is left to do; None where there is work.

    Neither Prefect, Dask nor torch is imported for it. Raises ConfigurationError.
    """
    settings, audit_file, audit = load_comparison(config, overrides)
    check_groups(settings, audit_file, audit)
    audited = outcome_without_work(audit_file)
    if audited is None:
        return None
    plan = make_comparison_plan(config, overrides)
    if not plan.is_up_to_date():
        return None
    counts = {"computed": 0, "cached": len(plan.assignments), "failed": 0}
    return outcome(plan, audited, [], counts)
