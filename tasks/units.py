"""What a worker does for one unit: look, claim, compute, stage, commit. Plain functions, bound by the flows."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stratascope.errors import (
    AnalysisError,
    DamagedStoreError,
    DeferredCheckpointError,
    DoesNotApply,
    LimitError,
    StratascopeError,
)
from stratascope.storage.checkpoint_files import CheckpointFile, RunSource
from stratascope.storage.digests import identity_of
from stratascope.storage.file_memory import FileMemory, file_state
from stratascope.storage.ledger import Row
from stratascope.storage.probes import ProbeSpec, build_probe, probe_source_files, store_probe
from stratascope.storage.pruning import PRUNED, is_pruned
from stratascope.storage.store import Store, process_facts
from stratascope.storage.units import Unit
from stratascope.tasks.analysis import CaptureRequest, Findings, Options, named
from stratascope.tasks.capture.spec import CaptureSpec
from stratascope.tasks.contexts import CheckpointContext, CohortContext, RejectedFile, SeriesContext, Subject
from stratascope.tasks.device import device_of
from stratascope.tasks.limits import Limits, limited
from stratascope.tasks.memory import is_memory_shortage, returning_memory

FACTS_VERSION = 2
"""Of what is remembered of a checkpoint file."""


@dataclass(frozen=True)
class Assignment:
    """One unit of work, small enough to travel: what, under which identity, from which files."""

    unit: Unit
    identity: str
    parts: dict[str, Any]
    subjects: tuple[Subject, ...]
    """The run that the unit belongs to; all runs for a cohort."""
    files: tuple[CheckpointFile, ...] = ()
    rejected: tuple[RejectedFile, ...] = ()
    options: dict[str, Any] = field(default_factory=dict)
    capture: CaptureSpec = field(default_factory=CaptureSpec)
    layers: tuple[str, ...] | None = None
    requests: tuple[CaptureRequest, ...] = ()
    limits: Limits | None = None
    device: str = "cpu"
    """Where its network runs; no part of the identity, no more than the size of a batch."""
    pruned: tuple[tuple[str, int], ...] = ()
    """(run, step) of what it would read too, had its arrays not been pruned."""
    restore: bool = False
    """Whether what pruning took from this unit is computed again."""
    rebase: bool = False
    """Whether it is made anew, forgetting what it filed before, even where it is stored."""

    @property
    def subject(self) -> Subject:
        return self.subjects[0]


def facts_identity(source: RunSource) -> str:
    """Under what the facts of a run's files are remembered."""
    kept = source.model_dump(mode="json", include={"model", "state_dict", "allow_pickle"})
    return identity_of({"facts": FACTS_VERSION, **kept})


@dataclass(frozen=True)
class Outcome:
    """What became of a unit: `computed`, `cached`, `deferred` or `failed`, and why."""

    unit: Unit
    status: str
    reason: str = ""


@returning_memory
def read_file(
    store_path: str,
    file: CheckpointFile,
    source: RunSource,
    folder: str,
    identity: str,
    limits: Limits | None = None,
) -> dict[str, Any]:
    """Read a checkpoint once, remember its facts, and return those that planning needs."""
    _one_thread()
    store = Store.open(store_path)
    memory = FileMemory(store)
    known = memory.recall(file.path, identity)
    if known is None:
        from stratascope.tasks.intake.facts import checkpoint_facts

        try:
            state = file_state(file.path)
            with limited(store, f"read {file.path} {identity}", limits):
                known = checkpoint_facts(file, source, Path(folder))
            memory.remember(file.path, identity, known, state)
        except DeferredCheckpointError as error:
            return {"status": "deferred", "reason": str(error)}
        except LimitError as error:
            return {"status": "quarantined", "reason": f"{file.path.name}: {error}"}
        except OSError as error:
            return {"status": "quarantined", "reason": f"{file.path.name} cannot be read: {error.strerror}."}
    return {name: known.get(name) for name in ("status", "reason", "weights_digest", "inner_step")}


@returning_memory
def keep_probe(store_path: str, name: str, spec: ProbeSpec, folder: str, identity: str) -> str:
    """Build the probe, store it where it is not stored yet, and return its digest. Raises ProbeError."""
    store = Store.open(store_path)
    probe = build_probe(name, spec, Path(folder))
    unit = Unit("probe", "", -1, name)
    with store.claim(unit):
        if not store.is_current(unit, probe.digest):
            with store.stage(unit, probe.digest, {"spec": spec.model_dump(mode="json")}) as staged:
                store_probe(staged, probe)
                staged.summary = {"samples": len(probe), "role": probe.role}
                staged.recorded = process_facts()
                staged.commit()
    for path in probe_source_files(spec, Path(folder)) or ():
        FileMemory(store).remember(path, identity, {"digest": probe.digest})
    return probe.digest


@returning_memory
def compute_unit(assignment: Assignment) -> Outcome:
    """Do one unit of work, unless it is stored already. Failures come back as outcomes, never as exceptions."""
    _one_thread()
    unit = assignment.unit
    try:
        store = Store.open(assignment.subject.store_path)
        with store.claim(unit):
            if is_done(store, assignment):
                return Outcome(unit, "cached")
            started = time.time()
            work = f"{unit} {assignment.identity}"
            with (
                limited(store, work, assignment.limits),
                store.stage(unit, assignment.identity, assignment.parts) as staged,
            ):
                if unit.analysis == "capture":
                    staged.summary = _capture(store, assignment, staged)
                else:
                    _analyse(store, assignment, staged)
                if assignment.device != "cpu":
                    staged.recorded["device"] = str(device_of(assignment.device))
                files = [str(file.path) for file in assignment.files] if unit.scope == "checkpoint" else []
                staged.recorded |= {**process_facts(), "seconds": time.time() - started, "files": files}
                staged.commit()
        return Outcome(unit, "computed")
    except DeferredCheckpointError as error:
        return Outcome(unit, "deferred", str(error))
    except DamagedStoreError as error:
        _note_damage(store, assignment)
        return Outcome(unit, "failed", f"{unit}: {error}")
    except StratascopeError as error:
        return Outcome(unit, "failed", f"{unit}: {error}")
    except Exception as error:
        return Outcome(unit, "failed", f"{unit}: {type(error).__name__}: {error}")


def _note_damage(store: Store, assignment: Assignment) -> None:
    """Find what is damaged of that which the unit reads, so that the next audit computes it again."""
    from stratascope.storage.verification import verify_units

    runs = {subject.run for subject in assignment.subjects}
    read = [
        manifest
        for unit, manifest in store.manifests().items()
        if unit.scope == "probe"
        or (unit.run in runs and (assignment.unit.scope != "checkpoint" or unit.step == assignment.unit.step))
    ]
    verify_units(store, read)


def is_done(store: Store, assignment: Assignment) -> bool:
    """Whether the unit is stored under its identity, and nothing is missing from it that is to be restored."""
    if assignment.rebase or not store.is_current(assignment.unit, assignment.identity):
        return False
    return not (assignment.restore and is_pruned(store.manifest(assignment.unit)))


def _capture(store: Store, assignment: Assignment, staged: Any) -> dict[str, Any]:
    from stratascope.tasks.capture.extract import extract
    from stratascope.tasks.intake.facts import open_network

    subject = assignment.subject
    folder = Path(subject.folder)
    loaded = open_network(
        assignment.files[0], subject.source, folder, assignment.parts["weights"], assignment.device
    )
    return {
        name: extract(
            loaded.module, probe, assignment.layers, assignment.requests, assignment.capture, subject.source.model,
            staged, folder, loaded.traits,
        )
        for name, probe in subject.probes_of(store).items()
    }  # fmt: skip


def _findings(store: Store, assignment: Assignment, options: Options) -> Findings:
    """What the analysis finds; where memory runs out, with half as many samples at once, and half of those again."""
    while True:
        try:
            return named(assignment.unit.analysis).compute(_context(store, assignment), options)
        except Exception as error:
            size = getattr(options, "batch_size", None)
            if not isinstance(size, int) or size == 1 or not is_memory_shortage(error):
                raise
            options = options.model_copy(update={"batch_size": size // 2})


def _analyse(store: Store, assignment: Assignment, staged: Any) -> None:
    unit = assignment.unit
    analysis = named(unit.analysis)
    reads_layers = unit.scope == "checkpoint" and "activations" in analysis.needs
    if reads_layers and store.manifest(Unit("checkpoint", unit.run, unit.step, "capture")) is None:
        raise AnalysisError("the layers that it reads could not be captured.")
    options = analysis.options.model_validate(assignment.options)
    if assignment.pruned:
        # With this mark, `pruned: recompute` computes the unit too.
        staged.recorded[PRUNED] = {"lost": [], "left_out": [list(place) for place in assignment.pruned]}
    try:
        if assignment.pruned and (unit.scope == "checkpoint" or not assignment.files):
            raise DoesNotApply(_pruned_reason(assignment))
        findings = _findings(store, assignment, options)
    except DoesNotApply as reason:
        rows = [Row(metric.name, status="does_not_apply", reason=str(reason)) for metric in analysis.metrics]
        staged.write_rows(rows)
        return
    units = {metric.name: metric.unit for metric in analysis.metrics}
    rows = [row if row.unit else replace(row, unit=units.get(row.metric, "")) for row in findings.rows]
    left_out = [
        Row(
            analysis.metrics[0].name,
            run=run,
            step=step,
            status="does_not_apply",
            reason=_pruned_reason(assignment),
        )
        for run, step in assignment.pruned
    ]
    staged.write_rows(rows + left_out)
    for path, array in findings.arrays.items():
        staged.write_array(path, array)


def _pruned_reason(assignment: Assignment) -> str:
    steps = [str(step) for _, step in assignment.pruned]
    named_steps = f"step {steps[0]}" if len(steps) == 1 else f"steps {', '.join(steps[:8])}"
    more = f" and {len(steps) - 8} more" if len(steps) > 8 else ""
    return (
        f"the layers of {assignment.unit.run} at {named_steps}{more} were pruned; `stratascope audit CONFIG --set "
        "pruned=recompute` captures them again as long as the checkpoints are there."
    )


def _context(store: Store, assignment: Assignment) -> CheckpointContext | SeriesContext | CohortContext:
    unit, memory = assignment.unit, FileMemory(store)

    def facts(subject: Subject, file: CheckpointFile) -> dict[str, Any]:
        identity = facts_identity(subject.source)
        known = memory.recall(file.path, identity) or memory.recall_gone(file.path, identity)
        if known is None:
            raise DeferredCheckpointError(
                f"{file.path.name} has changed since this audit began: it is left for the next one."
            )
        return known

    if unit.scope == "checkpoint":
        (file,), subject = assignment.files, assignment.subject
        return CheckpointContext(store, subject, unit.step, facts(subject, file), file, assignment.device)
    series = {}
    for subject in assignment.subjects:
        mine = {file.step: facts(subject, file) for file in assignment.files if file.run == subject.run}
        known = {step: found for step, found in mine.items() if step is not None}
        series[subject.run] = SeriesContext(
            store, subject, tuple(known), known, assignment.rejected, assignment.rebase
        )
    return CohortContext(store, series) if unit.scope == "cohort" else series[unit.run]


def _one_thread() -> None:
    import torch

    # Two libraries that spin on the same cores cost far more than the second thread brings.
    torch.set_num_threads(1)
