"""What there is to do: compares identities with manifests. Neither Prefect, Dask nor torch is imported here."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stratascope.flows.config import AuditConfig
from stratascope.storage.checkpoint_files import CheckpointFile, Listing, RunSource, find_checkpoints, settle
from stratascope.storage.digests import identity_of
from stratascope.storage.file_memory import FileMemory, file_state
from stratascope.storage.probes import probe_source_files
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.tasks.analysis import Options, named
from stratascope.tasks.capture.spec import CAPTURE_VERSION
from stratascope.tasks.contexts import Subject
from stratascope.tasks.report.drawing import report_unit
from stratascope.tasks.units import Assignment

REPORT_VERSION = 1


@dataclass
class Survey:
    """What is known before any work: files, what is remembered of them, and what is not known yet."""

    config: AuditConfig
    folder: Path
    store: Store
    analyses: dict[str, Options]
    files: dict[str, list[CheckpointFile]] = field(default_factory=dict)
    facts: dict[Path, dict[str, Any]] = field(default_factory=dict)
    unread: list[tuple[RunSource, CheckpointFile]] = field(default_factory=list)
    probes: dict[str, str] = field(default_factory=dict)
    unknown_probes: list[str] = field(default_factory=list)


@dataclass
class Plan:
    """All units in their order of dependence, and where every file went."""

    listings: dict[str, Listing]
    chains: list[list[Assignment]]
    """One for each checkpoint: the capture first, then what leans on it."""
    series: list[Assignment]
    rejected: list[tuple[str, CheckpointFile, str, str]]
    """(run, file, status, reason) of files that are quarantined or deferred."""

    def units(self) -> list[Assignment]:
        return [item for chain in self.chains for item in chain] + self.series


def facts_identity(source: RunSource) -> str:
    """Under what the facts of a run's files are remembered."""
    kept = source.model_dump(mode="json", include={"model", "state_dict", "allow_pickle"})
    return identity_of({"facts": 1, **kept})


def probe_identity(config: AuditConfig, name: str) -> str:
    """Under what a probe's digest is remembered."""
    return identity_of({"probe": config.probes[name].model_dump(mode="json"), "version": 1})


def survey(config: AuditConfig, folder: Path, store: Store, rehash: bool = False) -> Survey:
    """Find all files and recall what is known of them. Raises ConfigurationError."""
    found = Survey(config, folder, store, config.chosen_analyses())
    memory = FileMemory(store)
    for name, spec in config.probes.items():
        paths = probe_source_files(spec, folder)
        known = None
        if paths and all(path.exists() for path in paths) and not rehash:
            notes = [memory.recall(path, probe_identity(config, name)) for path in paths]
            known = notes[0]["digest"] if notes[0] and all(note == notes[0] for note in notes) else None
        if known is not None and store.is_current(Unit("probe", "", -1, name), known):
            found.probes[name] = known
        else:
            found.unknown_probes.append(name)
    for source in config.runs:
        files = find_checkpoints(source, folder)
        found.files[source.name] = files
        for file in files:
            if config.settle and _is_fresh(file, config.settle):
                reason = f"{file.path.name} changed within the last {config.settle:g} s"
                found.facts[file.path] = {"status": "deferred", "reason": reason}
                continue
            known = None if rehash else memory.recall(file.path, facts_identity(source))
            if known is None:
                found.unread.append((source, file))
            else:
                found.facts[file.path] = known
    return found


def _is_fresh(file: CheckpointFile, seconds: float) -> bool:
    newest = max(state[2] for state in file_state(file.path))
    return time.time() - newest / 1e9 < seconds


def make_plan(found: Survey) -> Plan:
    """Every unit that this audit wants, with its identity. Raises ConfigurationError for two files of one step."""
    plan = Plan({}, [], [], [])
    for source in found.config.runs:
        usable = []
        for file in found.files[source.name]:
            facts = found.facts[file.path]
            if facts["status"] == "ok":
                usable.append(file)
            else:
                plan.rejected.append((source.name, file, facts["status"], facts["reason"]))
        listing = settle(source, usable, found.facts)
        plan.listings[source.name] = listing
        subject = Subject(
            str(found.store.path), source.name, tuple(sorted(found.probes)), source, str(found.folder),
            found.config.task, found.config.loss,
        )  # fmt: skip
        captures = []
        for file in listing.checkpoints:
            chain = _chain(found, source, subject, file)
            plan.chains.append(chain)
            captures.append(chain[0].identity)
        if listing.checkpoints:
            plan.series += _series(found, source, subject, listing.checkpoints, captures)
    return plan


def _chain(found: Survey, source: RunSource, subject: Subject, file: CheckpointFile) -> list[Assignment]:
    config = found.config
    requests = tuple(named(name).request(options) for name, options in found.analyses.items())
    base = {
        "weights": found.facts[file.path]["weights_digest"],
        "model": source.model.model_dump(mode="json"),
        "probes": found.probes,
    }
    spec = config.capture.model_dump(mode="json", exclude={"batch_size"})
    wanted = {
        **base,
        "capture": spec,
        "version": CAPTURE_VERSION,
        "layers": list(config.layers) if config.layers is not None else None,
        "requests": sorted({pattern for request in requests for pattern in request.layers}),
    }
    shared: dict[str, Any] = {
        "subject": subject, "files": (file,), "facts_identity": facts_identity(source), "capture": config.capture,
        "layers": config.layers, "requests": requests,
    }  # fmt: skip
    step = file.step
    assert step is not None
    chain = [Assignment(Unit("checkpoint", source.name, step, "capture"), identity_of(wanted), wanted, **shared)]
    for name, options in found.analyses.items():
        analysis = named(name)
        if analysis.scope != "checkpoint":
            continue
        chosen = options.model_dump(mode="json")
        parts: dict[str, Any] = {"analysis": name, "version": analysis.version, "options": chosen, **base}
        parts |= {"task": config.task, "loss": config.loss}
        if "activations" in analysis.needs:
            parts["capture"] = chain[0].identity
        unit = Unit("checkpoint", source.name, step, name)
        chain.append(Assignment(unit, identity_of(parts), parts, options=chosen, **shared))
    return chain


def _series(
    found: Survey, source: RunSource, subject: Subject, files: list[CheckpointFile], captures: list[str]
) -> list[Assignment]:
    assignments = []
    for name, options in found.analyses.items():
        analysis = named(name)
        if analysis.scope != "series":
            continue
        chosen = options.model_dump(mode="json")
        weights = [found.facts[file.path]["weights_digest"] for file in files]
        parts = {
            "analysis": name, "version": analysis.version, "options": chosen, "steps": [file.step for file in files],
            "upstream": captures if "activations" in analysis.needs else weights,
        }  # fmt: skip
        unit = Unit("series", source.name, -1, name)
        assignments.append(
            Assignment(unit, identity_of(parts), parts, subject, tuple(files), facts_identity(source), chosen)
        )
    return assignments


def series_of_stored(found: Survey, plan: Plan) -> list[Assignment]:
    """The series units over those checkpoints whose capture is stored: one that failed does not sink them."""
    assignments = []
    for source in found.config.runs:
        captures = [chain[0] for chain in plan.chains if chain[0].unit.run == source.name]
        stored = [item for item in captures if found.store.is_current(item.unit, item.identity)]
        if stored:
            files = [item.files[0] for item in stored]
            identities = [item.identity for item in stored]
            assignments += _series(found, source, stored[0].subject, files, identities)
    return assignments


def report_identity(plan: Plan, found: Survey) -> str:
    """What the report was drawn from."""
    parts = {
        "units": sorted(f"{item.unit}{item.identity}" for item in plan.units()),
        "rejected": sorted(f"{file.path}{status}" for _, file, status, _ in plan.rejected),
        "report": found.config.report.model_dump(mode="json"),
        "checks": [check.model_dump(mode="json") for check in found.config.checks or ()],
        "version": REPORT_VERSION,
    }
    return identity_of(parts)


def outstanding(plan: Plan, store: Store) -> list[Assignment]:
    """The units that are not stored under their identity."""
    return [item for item in plan.units() if not store.is_current(item.unit, item.identity)]


def store_folder(config: AuditConfig, folder: Path) -> Path:
    """Where the store of `config` lies; a relative place is relative to the file's `folder`."""
    return Path(config.store) if Path(config.store).is_absolute() else folder / config.store


def is_up_to_date(plan: Plan, found: Survey) -> bool:
    """Whether every unit is stored and the report was drawn from exactly that."""
    identity = report_identity(plan, found)
    return found.store.is_current(report_unit(), identity) and not outstanding(plan, found.store)
