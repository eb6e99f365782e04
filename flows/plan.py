"""What there is to do: compares identities with manifests. Neither Prefect, Dask nor torch is imported here."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Any

from stratascope.errors import ConfigurationError
from stratascope.flows.config import AuditConfig
from stratascope.storage.checkpoint_files import CheckpointFile, Listing, RunSource, settle, split_runs
from stratascope.storage.digests import identity_of
from stratascope.storage.file_memory import FileMemory, file_state
from stratascope.storage.objects import local_or_url
from stratascope.storage.probes import build_probe, probe_source_files
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.tasks.analysis import Analysis, CaptureRequest, Options, named
from stratascope.tasks.capture.spec import CAPTURE_VERSION
from stratascope.tasks.contexts import RejectedFile, Subject
from stratascope.tasks.report.drawing import report_unit
from stratascope.tasks.units import Assignment, facts_identity

REPORT_VERSION = 2


@dataclass
class Survey:
    """What is known before any work: files, what is remembered of them, and what is not known yet."""

    config: AuditConfig
    folder: Path
    store: Store
    analyses: dict[str, Options]
    sources: list[RunSource] = field(default_factory=list)
    """One for each run, after one glob has been split into many."""
    files: dict[str, list[CheckpointFile]] = field(default_factory=dict)
    facts: dict[str, dict[Path, dict[str, Any]]] = field(default_factory=dict)
    """What reading told of each file, by run: two runs may read one file with different networks."""
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
    """Series of each run, then what compares runs."""
    rejected: list[tuple[str, CheckpointFile, str, str]]
    """(run, file, status, reason) of files that are quarantined or deferred."""

    def units(self) -> list[Assignment]:
        return [item for chain in self.chains for item in chain] + self.series


def probe_identity(config: AuditConfig, name: str) -> str:
    """Under what a probe's digest is remembered."""
    return identity_of({"probe": config.probes[name].model_dump(mode="json"), "version": 2})


def survey(config: AuditConfig, folder: Path, store: Store, rehash: bool = False) -> Survey:
    """Find all files and recall what is known of them. Raises ConfigurationError, ProbeError."""
    with store.snapshot():
        return _survey(config, folder, store, rehash)


def _survey(config: AuditConfig, folder: Path, store: Store, rehash: bool) -> Survey:
    found = Survey(config, folder, store, config.chosen_analyses())
    memory = FileMemory(store)
    for name in config.probes:
        known = None if rehash else _known_probe(found, memory, name)
        if known is not None and store.is_current(Unit("probe", "", -1, name), known):
            found.probes[name] = known
        else:
            found.unknown_probes.append(name)
    for entry in config.runs:
        for source, files in split_runs(entry, folder):
            if source.name in found.files:
                raise ConfigurationError(f"two runs are called {source.name!r}: rename one.")
            found.sources.append(source)
            found.files[source.name] = files
            found.facts[source.name] = {}
            for file in files:
                _recall(found, memory, source, file, rehash)
    return found


def _known_probe(found: Survey, memory: FileMemory, name: str) -> str | None:
    """The digest of a probe without building it, where its files have not changed; one from a factory is built."""
    spec = found.config.probes[name]
    paths = probe_source_files(spec, found.folder)
    if paths is None:
        stored = found.store.manifest(Unit("probe", "", -1, name)) is not None
        return build_probe(name, spec, found.folder).digest if stored else None
    if not paths or not all(path.exists() for path in paths):
        return None
    notes = [memory.recall(path, probe_identity(found.config, name)) for path in paths]
    first = notes[0]
    return first["digest"] if first is not None and all(note == first for note in notes) else None


def _recall(found: Survey, memory: FileMemory, source: RunSource, file: CheckpointFile, rehash: bool) -> None:
    if found.config.settle and _is_fresh(file, found.config.settle):
        reason = f"{file.path.name} changed within the last {found.config.settle:g} s"
        found.facts[source.name][file.path] = {"status": "deferred", "reason": reason}
        return
    known = None if rehash else memory.recall(file.path, facts_identity(source))
    if known is None:
        found.unread.append((source, file))
    else:
        found.facts[source.name][file.path] = known


def _is_fresh(file: CheckpointFile, seconds: float) -> bool:
    newest = max((state[2] for state in file_state(file.path)), default=0)
    return time.time() - newest / 1e9 < seconds


def make_plan(found: Survey) -> Plan:
    """Every unit that this audit wants, with its identity. Raises ConfigurationError for two files of one step."""
    plan = Plan({}, [], [], [])
    requests = requests_of(found)
    for source in found.sources:
        usable = []
        for file in found.files[source.name]:
            facts = found.facts[source.name][file.path]
            if facts["status"] == "ok":
                usable.append(file)
            else:
                plan.rejected.append((source.name, file, facts["status"], facts["reason"]))
        listing = settle(source, usable, found.facts[source.name])
        plan.listings[source.name] = listing
        plan.chains += [_chain(found, source, file, requests) for file in listing.checkpoints]
    plan.series = later_units(found, plan, [chain[0] for chain in plan.chains])
    return plan


def _subject(found: Survey, source: RunSource) -> Subject:
    return Subject(
        found.store.location, source.name, tuple(sorted(found.probes)), source, str(found.folder),
        found.config.task, found.config.loss,
    )  # fmt: skip


def requests_of(found: Survey) -> tuple[CaptureRequest, ...]:
    """What the chosen analyses want from the forward pass."""
    return tuple(named(name).request(options) for name, options in found.analyses.items())


def _chain(
    found: Survey, source: RunSource, file: CheckpointFile, requests: tuple[CaptureRequest, ...]
) -> list[Assignment]:
    config = found.config
    base = {
        "weights": found.facts[source.name][file.path]["weights_digest"],
        "model": source.model.model_dump(mode="json"),
        "probes": found.probes,
    }
    wanted = {
        **base,
        "capture": config.capture.model_dump(mode="json", exclude={"batch_size"}),
        "version": CAPTURE_VERSION,
        "layers": list(config.layers) if config.layers is not None else None,
        "requests": sorted([[*request.layers], [*request.keep]] for request in requests if request.layers),
    }
    shared: dict[str, Any] = {
        "subjects": (_subject(found, source),), "files": (file,), "capture": config.capture,
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


def later_units(found: Survey, plan: Plan, captures: Sequence[Assignment]) -> list[Assignment]:
    """The series of each run and what compares runs, over the checkpoints of `captures`."""
    analyses = {name: (named(name), options.model_dump(mode="json")) for name, options in found.analyses.items()}
    assignments = []
    for source in found.sources:
        mine = [item for item in captures if item.unit.run == source.name]
        rejected = tuple(
            RejectedFile(run, file.step if file.step is not None else -1, file.path.name, reason)
            for run, file, status, reason in plan.rejected
            if run == source.name and status == "quarantined"
        )
        for name, (analysis, chosen) in analyses.items():
            if analysis.scope == "series" and (mine or "rejected" in analysis.needs):
                unit = Unit("series", source.name, -1, name)
                assignments.append(_later(unit, analysis, chosen, mine, [_subject(found, source)], rejected))
    for name, (analysis, chosen) in analyses.items():
        if analysis.scope == "cohort" and captures:
            subjects = [_subject(found, source) for source in found.sources]
            assignments.append(_later(Unit("cohort", "", -1, name), analysis, chosen, captures, subjects, ()))
    return assignments


def _later(
    unit: Unit,
    analysis: Analysis,
    chosen: dict[str, Any],
    captures: Sequence[Assignment],
    subjects: Sequence[Subject],
    rejected: tuple[RejectedFile, ...],
) -> Assignment:
    reads_layers = "activations" in analysis.needs
    parts: dict[str, Any] = {
        "analysis": unit.analysis, "version": analysis.version, "options": chosen,
        "steps": [[item.unit.run, item.unit.step] for item in captures],
        "upstream": [item.identity if reads_layers else item.parts["weights"] for item in captures],
    }  # fmt: skip
    if "rejected" in analysis.needs:
        parts["rejected"] = [list(astuple(item)) for item in rejected]
    files = tuple(item.files[0] for item in captures)
    return Assignment(unit, identity_of(parts), parts, tuple(subjects), files, rejected, chosen)


def later_units_of_stored(found: Survey, plan: Plan) -> list[Assignment]:
    """The same over those checkpoints whose capture is stored: one that failed does not sink the others."""
    captures = [chain[0] for chain in plan.chains]
    with found.store.snapshot():
        stored = [item for item in captures if found.store.is_current(item.unit, item.identity)]
    return later_units(found, plan, stored)


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
    with store.snapshot():
        return [item for item in plan.units() if not store.is_current(item.unit, item.identity)]


def store_folder(config: AuditConfig, folder: Path) -> Path | str:
    """Where the store of `config` lies, a folder or a URL; a relative place is relative to the file's `folder`."""
    return local_or_url(config.store, folder)


def is_up_to_date(plan: Plan, found: Survey) -> bool:
    """Whether every unit is stored and the report was drawn from exactly that."""
    identity = report_identity(plan, found)
    return found.store.is_current(report_unit(), identity) and not outstanding(plan, found.store)
