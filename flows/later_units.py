"""Units that wait for others: analyses of captured checkpoints, series of a run, comparisons of runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stratascope.storage.digests import identity_of
from stratascope.storage.objects import local_or_url
from stratascope.storage.run_source import RunSource
from stratascope.storage.units import Unit
from stratascope.tasks.analysis import Analysis, Options, named
from stratascope.tasks.contexts import RejectedFile, Subject
from stratascope.tasks.units import Assignment

if TYPE_CHECKING:
    from stratascope.flows.plan import Plan, Survey


def subject_of(found: Survey, source: RunSource) -> Subject:
    return Subject(
        found.store.location, source.name, tuple(sorted(found.probes)), source, str(found.folder),
        found.config.task, found.config.loss,
    )  # fmt: skip


def lacks(analysis: Analysis, options: Options, lost: frozenset[str]) -> bool:
    """Whether an analysis reads of captured layers what was pruned."""
    if "activations" not in analysis.needs or not lost:
        return False
    kept = analysis.request(options).keep
    return not kept or bool(lost & set(kept))


def checkpoint_parts(found: Survey, name: str, capture: Assignment) -> dict[str, Any]:
    """What decides whether the checkpoint analysis `name` of a captured checkpoint is still the right one."""
    analysis = named(name)
    parts: dict[str, Any] = {
        "analysis": name, "version": analysis.version, "options": found.analyses[name].model_dump(mode="json"),
        "task": found.config.task, "loss": found.config.loss,
        **{part: capture.parts[part] for part in ("weights", "model", "probes")},
    }  # fmt: skip
    if "activations" in analysis.needs:
        parts["capture"] = capture.identity
    return parts


def later_units(
    found: Survey, plan: Plan, captures: Sequence[Assignment], only_stored: bool = False
) -> list[Assignment]:
    """The series of each run and what compares runs, over the checkpoints of `captures`.

    Where one builds on checkpoint analyses, `only_stored` leaves out the checkpoints for which those are not stored.
    """
    analyses = {name: (named(name), options) for name, options in found.analyses.items()}
    captures = [*captures, *(item.capture for item in plan.gone if item.capture is not None)]
    assignments = []
    for source in found.sources:
        mine = sorted((item for item in captures if item.unit.run == source.name), key=lambda item: item.unit)
        rejected = tuple(
            RejectedFile(run, file.step if file.step is not None else -1, file.path.name, reason)
            for run, file, status, reason in plan.rejected
            if run == source.name and status == "quarantined"
        ) + tuple(
            RejectedFile(item.run, item.step, Path(item.file).name, item.reason, "gone")
            for item in plan.gone
            if item.run == source.name
        )
        for name, (analysis, options) in analyses.items():
            if analysis.scope == "series" and (mine or "rejected" in analysis.needs):
                unit = Unit("series", source.name, -1, name)
                subjects = [subject_of(found, source)]
                ready = _built(found, analysis, mine) if only_stored else mine
                assignments.append(_with_what_is_left(found, plan, unit, options, ready, subjects, rejected))
    for name, (analysis, options) in analyses.items():
        if analysis.scope == "cohort" and captures:
            subjects = [subject_of(found, source) for source in found.sources]
            order = {source.name: place for place, source in enumerate(found.sources)}
            every = sorted(captures, key=lambda item: (order[item.unit.run], item.unit))
            unit = Unit("cohort", "", -1, name)
            ready = _built(found, analysis, every) if only_stored else every
            assignments.append(_with_what_is_left(found, plan, unit, options, ready, subjects, ()))
    return assignments


def _built(found: Survey, analysis: Analysis, captures: Sequence[Assignment]) -> list[Assignment]:
    """Those of `captures` for which all that `analysis` builds on is stored."""

    def is_there(name: str, capture: Assignment) -> bool:
        unit = Unit("checkpoint", capture.unit.run, capture.unit.step, name)
        return found.store.is_current(unit, identity_of(checkpoint_parts(found, name, capture)))

    return [item for item in captures if all(is_there(name, item) for name in analysis.builds_on)]


def _with_what_is_left(
    found: Survey,
    plan: Plan,
    unit: Unit,
    options: Options,
    captures: Sequence[Assignment],
    subjects: Sequence[Subject],
    rejected: tuple[RejectedFile, ...],
) -> Assignment:
    """The unit over all `captures`, or, where some were pruned since and it is not stored so, over the others."""
    analysis, chosen = named(unit.analysis), options.model_dump(mode="json")
    whole = _later(found, unit, chosen, captures, subjects, rejected)
    lacking = {item.unit for item in captures if lacks(analysis, options, plan.lost.get(item.unit, frozenset()))}
    if not lacking or found.store.is_current(unit, whole.identity):
        return whole
    rest = [item for item in captures if item.unit not in lacking]
    missing = tuple(sorted((item.run, item.step) for item in lacking))
    return replace(_later(found, unit, chosen, rest, subjects, rejected), pruned=missing)


def _later(
    found: Survey,
    unit: Unit,
    chosen: dict[str, Any],
    captures: Sequence[Assignment],
    subjects: Sequence[Subject],
    rejected: tuple[RejectedFile, ...],
) -> Assignment:
    analysis = named(unit.analysis)
    reads_layers = bool(analysis.needs & {"activations"} or analysis.builds_on)
    parts: dict[str, Any] = {
        "analysis": unit.analysis, "version": analysis.version, "options": chosen,
        "steps": [[item.unit.run, item.unit.step] for item in captures],
        "upstream": [item.identity if reads_layers else item.parts["weights"] for item in captures],
    }  # fmt: skip
    if "rejected" in analysis.needs:
        parts["rejected"] = [list(astuple(item)) for item in rejected]
    if analysis.builds_on:
        parts["builds_on"] = {
            name: {"version": named(name).version, "options": found.analyses[name].model_dump(mode="json")}
            for name in analysis.builds_on
        }
    if "trace" in analysis.needs:
        parts["trace"] = [_trace_digest(subject) for subject in subjects]
    files = tuple(item.files[0] for item in captures)
    rebase = found.rebase and analysis.keeps_reference
    return Assignment(unit, identity_of(parts), parts, tuple(subjects), files, rejected, chosen, rebase=rebase)


def _trace_digest(subject: Subject) -> str:
    """Of the run's recorded trace, which grows as the training goes on; "" where there is none."""
    if subject.source.trace is None:
        return ""
    place = local_or_url(subject.source.trace, Path(subject.folder))
    try:
        return hashlib.sha256(place.read_bytes()).hexdigest() if isinstance(place, Path) else str(place)
    except OSError:
        return ""


def later_units_of_stored(found: Survey, plan: Plan) -> list[Assignment]:
    """The same over those checkpoints whose capture is stored: one that failed does not sink the others."""
    captures = [chain[0] for chain in plan.chains]
    with found.store.snapshot():
        stored = [item for item in captures if found.store.is_current(item.unit, item.identity)]
        return later_units(found, plan, stored, only_stored=True)
