"""Frees arrays of checkpoints that no rule keeps. Ledger, manifests and identities stay.

The manifest comes first: it tells which files are to go, and from then on nobody counts on them; then they go, and
the list with them. Whoever is killed in between leaves a list that `finish_pruning` works off.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import PurePosixPath
from typing import Any

from stratascope.errors import ConfigurationError
from stratascope.storage.checkpoint_files import selected_steps
from stratascope.storage.manifests import Manifest
from stratascope.storage.run_source import SelectSpec
from stratascope.storage.store import Store
from stratascope.storage.units import Unit

PRUNED = "pruned"
"""The key below `recorded` in the manifest of a unit that has lost arrays."""
STATISTICS = "statistics"
_LEFT = "left"
_SECONDS = {"h": 3600, "d": 86400, "w": 604800}
_RULES = (
    "last:N, first:N, every:N, log_spaced:N, steps:A,B,C, newer:30d (or 12h, 4w), runs:PATTERN, reduction:NAME, "
    "arrays:PATTERN"
)
_REPORT = Unit("report", "", -1, "report")


@dataclass(frozen=True)
class Rule:
    """What is kept. `steps` chooses among the steps of a run, `arrays` among the arrays of every checkpoint."""

    text: str
    steps: Callable[[str, dict[int, float]], set[int]] = lambda run, finished: set()
    """Given the run and, by step, when its capture was finished (seconds since 1970)."""
    arrays: Callable[[str], bool] = lambda path: False
    """Given an array's path below its checkpoint, such as `activations/test/conv1/pooled`."""


@dataclass
class Pruned:
    """What was freed, or would be: steps by run, and how many units, files and bytes."""

    steps: dict[str, list[int]] = field(default_factory=dict)
    kept: dict[str, list[int]] = field(default_factory=dict)
    units: int = 0
    files: int = 0
    bytes: int = 0


def parse_rule(text: str) -> Rule:
    """The rule that `text` stands for. Raises ConfigurationError that lists all rules."""
    kind, _, value = text.partition(":")
    try:
        if kind == "steps":
            wanted = {int(part) for part in value.split(",")}
            return Rule(text, steps=lambda run, finished: wanted & set(finished))
        if kind == "runs" and value:
            return Rule(text, steps=lambda run, finished: set(finished) if fnmatchcase(run, value) else set())
        if kind == "reduction" and value:
            return Rule(text, arrays=lambda path: fnmatchcase(path, f"activations/*/{value}"))
        if kind == "arrays" and value:
            return Rule(text, arrays=lambda path: fnmatchcase(path, value))
        if kind == "newer":
            return _newer(text, value)
        if kind in ("last", "first", "every", "log_spaced"):
            return _counting(text, kind, int(value))
    except ValueError:
        pass
    raise ConfigurationError(f"--keep {text!r} is no rule: there are {_RULES}.")


def _newer(text: str, value: str) -> Rule:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", value)
    if match is None:
        raise ValueError(value)
    since = time.time() - float(match[1]) * _SECONDS[match[2]]
    return Rule(text, steps=lambda run, finished: {step for step, when in finished.items() if when >= since})


def _counting(text: str, kind: str, count: int) -> Rule:
    if count < (0 if kind in ("last", "first") else 1 if kind == "every" else 2):
        raise ValueError(count)

    def chosen(run: str, finished: dict[int, float]) -> set[int]:
        steps = sorted(finished)
        if kind == "last":
            return set(steps[len(steps) - min(count, len(steps)) :])
        if kind == "first":
            return set(steps[:count])
        return selected_steps(steps, SelectSpec.model_validate({kind: count}))

    return Rule(text, steps=chosen)


def prune(store: Store, rules: Sequence[Rule], dry_run: bool = False) -> Pruned:
    """Free the arrays of every checkpoint that none of `rules` keeps; with `dry_run` only tell what would go.

    A unit that somebody is at work on is waited for; a report that is being drawn too. Raises ConfigurationError
    without a rule.
    """
    if not rules:
        raise ConfigurationError(f"prune frees all that no rule keeps: give --keep at least once ({_RULES}).")
    if not dry_run:
        finish_pruning(store)
    units = {unit: item for unit, item in store.manifests().items() if unit.scope == "checkpoint"}
    result = Pruned()
    for run in sorted({unit.run for unit in units}):
        finished: dict[int, float] = {}
        for unit, item in units.items():
            if unit.run == run:
                finished[unit.step] = max(finished.get(unit.step, 0.0), float(item.recorded.get("finished", 0.0)))
        kept = set().union(*(rule.steps(run, finished) for rule in rules))
        result.kept[run] = sorted(kept)
        for unit in sorted(unit for unit in units if unit.run == run and unit.step not in kept):
            _prune_unit(store, unit, rules, dry_run, result)
    return result


def _prune_unit(store: Store, unit: Unit, rules: Sequence[Rule], dry_run: bool, result: Pruned) -> None:
    if dry_run:
        manifest = store.manifest(unit)
        doomed = _doomed(store, manifest, rules) if manifest is not None else []
        _count(result, unit, manifest, doomed)
        return
    with store.claim(_REPORT), store.claim(unit):
        manifest = store.manifest(unit)
        doomed = _doomed(store, manifest, rules) if manifest is not None else []
        if manifest is None or not doomed:
            return
        if store.replace_manifest(manifest, _without(manifest, doomed, rules)):
            _count(result, unit, manifest, doomed)
            _finish(store, unit)


def _count(result: Pruned, unit: Unit, manifest: Manifest | None, doomed: Sequence[str]) -> None:
    if manifest is None or not doomed:
        return
    result.units += 1
    result.files += len(doomed)
    result.bytes += sum(manifest.files[name]["bytes"] for name in doomed)
    steps = result.steps.setdefault(unit.run, [])
    if unit.step not in steps:
        steps.append(unit.step)


def _doomed(store: Store, manifest: Manifest, rules: Sequence[Rule]) -> list[str]:
    """The files of `manifest`, by their paths below the store, that belong to no array that is kept."""
    tops = [PurePosixPath("archive.zarr") / top for top in manifest.unit.array_roots]
    inside = {
        path: next(folder for folder in path.parents if f"{folder}/zarr.json" in manifest.files)
        for path in map(PurePosixPath, manifest.files)
        if path.is_relative_to("archive.zarr")
    }
    folders = set(inside.values())
    kept = {
        folder
        for folder in folders
        if any(rule.arrays(_below_step(folder)) for rule in rules)
        and store.has_array(folder.relative_to("archive.zarr").as_posix())
    }
    needed = set(tops) | kept | {parent for folder in kept for parent in folder.parents}
    return sorted(path.as_posix() for path, folder in inside.items() if folder not in needed)


def _below_step(folder: PurePosixPath) -> str:
    """`archive.zarr/runs/<run>/<step>/activations/…` as `activations/…`."""
    return PurePosixPath(*folder.parts[4:]).as_posix()


def _without(manifest: Manifest, doomed: Sequence[str], rules: Iterable[Rule]) -> Manifest:
    """`manifest` without the files `doomed`, which it names as still to be removed."""
    gone = set(doomed)
    earlier = manifest.recorded.get(PRUNED, {})
    mark = {
        "finished": time.time(),
        "files": earlier.get("files", 0) + len(gone),
        "bytes": earlier.get("bytes", 0) + sum(manifest.files[name]["bytes"] for name in gone),
        "lost": sorted({*earlier.get("lost", ()), *_lost_names(doomed)}),
        "keep": [rule.text for rule in rules],
        _LEFT: sorted(gone),
    }
    files = {name: facts for name, facts in manifest.files.items() if name not in gone}
    return replace(manifest, files=files, recorded={**manifest.recorded, PRUNED: mark})


def _lost_names(doomed: Iterable[str]) -> set[str]:
    """The reductions that are lost, and `statistics` where any of those are."""
    names = set()
    for path in map(PurePosixPath, doomed):
        kind = path.parts[4]
        # The metadata of a group ends where that of an array ends too; a chunk tells an array.
        if kind == "activations" and path.name != "zarr.json":
            names.add(path.parts[7])
        elif kind == STATISTICS:
            names.add(STATISTICS)
    return names


def finish_pruning(store: Store) -> int:
    """Remove what a pruning that was interrupted left behind; returns how many units that concerned."""
    waiting = [
        unit for unit, manifest in store.manifests().items() if manifest.recorded.get(PRUNED, {}).get(_LEFT)
    ]
    for unit in waiting:
        with store.claim(unit):
            _finish(store, unit)
    return len(waiting)


def _finish(store: Store, unit: Unit) -> None:
    """Remove the files that the unit's manifest names as still to go, then the names."""
    manifest = store.manifest(unit)
    mark: dict[str, Any] = manifest.recorded.get(PRUNED, {}) if manifest is not None else {}
    if manifest is None or _LEFT not in mark:
        return
    store.delete_files(name for name in mark[_LEFT] if name not in manifest.files)
    done = {key: value for key, value in mark.items() if key != _LEFT}
    store.replace_manifest(manifest, replace(manifest, recorded={**manifest.recorded, PRUNED: done}))


def lost_arrays(manifest: Manifest | None) -> frozenset[str]:
    """The reductions, and `statistics`, that pruning took from a capture; empty where it took nothing."""
    return frozenset(manifest.recorded.get(PRUNED, {}).get("lost", ())) if manifest is not None else frozenset()


def is_pruned(manifest: Manifest | None) -> bool:
    """Whether the unit of `manifest` has lost arrays, or could not be computed since a capture had."""
    return manifest is not None and PRUNED in manifest.recorded
