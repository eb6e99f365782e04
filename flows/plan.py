"""What there is to do: compares identities with manifests. Neither Prefect, Dask nor torch is imported here."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stratascope.errors import ConfigurationError
from stratascope.flows.config import AuditConfig
from stratascope.flows.later_units import checkpoint_parts, lacks, later_units, subject_of
from stratascope.storage.checkpoint_files import CheckpointFile, Listing, RunSource, settle, split_runs
from stratascope.storage.digests import identity_of
from stratascope.storage.file_memory import FileMemory, file_state
from stratascope.storage.objects import local_or_url
from stratascope.storage.probes import build_probe, probe_source_files
from stratascope.storage.pruning import lost_arrays
from stratascope.storage.remote_paths import paths_of
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.tasks.analysis import CaptureRequest, Options, named
from stratascope.tasks.capture.spec import CAPTURE_VERSION
from stratascope.tasks.report.drawing import report_unit
from stratascope.tasks.units import Assignment, facts_identity, is_done

REPORT_VERSION = 3


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
    rebase: bool = False
    """Whether analyses that keep a reference are to be made anew."""


@dataclass(frozen=True)
class GoneCheckpoint:
    """A checkpoint that was audited and has no file any more; `capture` stands for it in series, where it can."""

    run: str
    step: int
    file: str
    capture: Assignment | None

    @property
    def reason(self) -> str:
        kept = "the file is gone; its results are kept"
        return kept if self.capture is not None else f"{kept}, as another configuration computed them"


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
    gone: list[GoneCheckpoint] = field(default_factory=list)
    lost: dict[Unit, frozenset[str]] = field(default_factory=dict)
    """What pruning took from captures."""

    def units(self) -> list[Assignment]:
        return [item for chain in self.chains for item in chain] + self.series


def probe_identity(config: AuditConfig, name: str) -> str:
    """Under what a probe's digest is remembered."""
    return identity_of({"probe": config.probes[name].model_dump(mode="json"), "version": 2})


def survey(config: AuditConfig, folder: Path, store: Store, rehash: bool = False, rebase: bool = False) -> Survey:
    """Find all files and recall what is known of them. Raises ConfigurationError, ProbeError."""
    with store.snapshot():
        return _survey(Survey(config, folder, store, config.chosen_analyses(), rebase=rebase), rehash)


def _survey(found: Survey, rehash: bool) -> Survey:
    config, folder, store = found.config, found.folder, found.store
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
    with found.store.snapshot():
        return _make_plan(found)


def _make_plan(found: Survey) -> Plan:
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
        for file in listing.checkpoints:
            unit = Unit("checkpoint", source.name, file.step or 0, "capture")
            if (lost := lost_arrays(found.store.manifest(unit))) and found.config.pruned == "leave":
                plan.lost[unit] = lost
            plan.chains.append(_chain(found, source, file, requests, plan.lost.get(unit, frozenset())))
        plan.gone += _gone(found, plan, source, requests)
    plan.series = later_units(found, plan, [chain[0] for chain in plan.chains])
    return plan


def _gone(
    found: Survey, plan: Plan, source: RunSource, requests: tuple[CaptureRequest, ...]
) -> Iterator[GoneCheckpoint]:
    """Checkpoints of a run that are stored and whose files are gone.

    One stands for its step in the series of the run as long as it was captured as this configuration says, and what
    reading its file told is remembered.
    """
    listing = plan.listings[source.name]
    listed = {file.step for file in (*listing.checkpoints, *listing.unselected)}
    memory = FileMemory(found.store)
    stored = {}
    for step in found.store.captured_steps(source.name):
        if step not in listed:
            manifest = found.store.manifest(Unit("checkpoint", source.name, step, "capture"))
            if manifest is not None and manifest.recorded.get("files"):
                stored[step] = manifest
    paths = paths_of(manifest.recorded["files"][0] for manifest in stored.values())
    for step, manifest in stored.items():
        unit, name = manifest.unit, manifest.recorded["files"][0]
        if not name or paths[name].exists():
            continue
        weights = manifest.identity_parts.get("weights", "")
        wanted = _capture_parts(found, source, weights, requests)
        facts = memory.recall_gone(paths[name], facts_identity(source)) or {}
        narrowed = source.select.steps is not None or source.select.last is not None
        capture = None
        if not narrowed and identity_of(wanted) == manifest.identity and facts.get("weights_digest") == weights:
            file = CheckpointFile(source.name, step, paths[name], "safetensors", ())
            capture = Assignment(unit, manifest.identity, wanted, (subject_of(found, source),), (file,))
            plan.lost |= {unit: lost} if (lost := lost_arrays(manifest)) else {}
        yield GoneCheckpoint(source.name, step, name, capture)


def requests_of(found: Survey) -> tuple[CaptureRequest, ...]:
    """What the chosen analyses want from the forward pass."""
    return tuple(named(name).request(options) for name, options in found.analyses.items())


def _capture_parts(
    found: Survey, source: RunSource, weights: str, requests: tuple[CaptureRequest, ...]
) -> dict[str, Any]:
    """What decides whether the capture of a checkpoint with these weights is still the right one."""
    config = found.config
    return {
        "weights": weights,
        "model": source.model.model_dump(mode="json"),
        "probes": found.probes,
        "capture": config.capture.model_dump(mode="json", exclude={"batch_size"}),
        "version": CAPTURE_VERSION,
        "layers": list(config.layers) if config.layers is not None else None,
        "requests": sorted([[*request.layers], [*request.keep]] for request in requests if request.layers),
    }


def _chain(
    found: Survey,
    source: RunSource,
    file: CheckpointFile,
    requests: tuple[CaptureRequest, ...],
    lost: frozenset[str],
) -> list[Assignment]:
    config = found.config
    wanted = _capture_parts(found, source, found.facts[source.name][file.path]["weights_digest"], requests)
    shared: dict[str, Any] = {
        "subjects": (subject_of(found, source),), "files": (file,), "capture": config.capture,
        "layers": config.layers, "requests": requests, "restore": config.pruned == "recompute",
    }  # fmt: skip
    step = file.step
    assert step is not None
    card = "cuda" if config.cluster.gpus_per_worker else "cpu"
    capture = Unit("checkpoint", source.name, step, "capture")
    chain = [Assignment(capture, identity_of(wanted), wanted, device=card, **shared)]
    for name, options in found.analyses.items():
        analysis = named(name)
        if analysis.scope != "checkpoint":
            continue
        chosen = options.model_dump(mode="json")
        parts = checkpoint_parts(found, name, chain[0])
        unit = Unit("checkpoint", source.name, step, name)
        device = card if analysis.needs & {"network", "gradients"} else "cpu"
        missing = ((source.name, step),) if lacks(analysis, options, lost) else ()
        chain.append(
            Assignment(unit, identity_of(parts), parts, options=chosen, device=device, pruned=missing, **shared)
        )
    return chain


def report_identity(plan: Plan, found: Survey) -> str:
    """What the report was drawn from."""
    parts = {
        "units": sorted(f"{item.unit}{item.identity}" for item in plan.units()),
        # A file that is still being written changes nothing that is drawn: it is told, and waits for its time.
        "rejected": sorted(f"{file.path}{status}" for _, file, status, _ in plan.rejected if status != "deferred"),
        "report": found.config.report.model_dump(mode="json"),
        "checks": [check.model_dump(mode="json") for check in found.config.checks or ()],
        "version": REPORT_VERSION,
    }
    if plan.gone:
        parts["gone"] = sorted(f"{item.run} {item.step}" for item in plan.gone)
    if plan.lost:
        parts["pruned"] = sorted(f"{unit}{sorted(lost)}" for unit, lost in plan.lost.items())
    return identity_of(parts)


def outstanding(plan: Plan, store: Store) -> list[Assignment]:
    """The units that are not stored under their identity."""
    with store.snapshot():
        return [item for item in plan.units() if not is_done(store, item)]


def store_folder(config: AuditConfig, folder: Path) -> Path | str:
    """Where the store of `config` lies, a folder or a URL; a relative place is relative to the file's `folder`."""
    return local_or_url(config.store, folder)


def is_up_to_date(plan: Plan, found: Survey) -> bool:
    """Whether every unit is stored and the report was drawn from exactly that."""
    identity = report_identity(plan, found)
    with found.store.snapshot():
        return found.store.is_current(report_unit(), identity) and not outstanding(plan, found.store)
