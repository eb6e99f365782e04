"""From the ledger to two lists of numbers: which steps of which runs are compared, and what they have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from stratascope.errors import AnalysisError, ConfigurationError
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.tasks.comparison.spec import PREFIX, TRADITIONAL_PREFIX, ComparisonSpec

if TYPE_CHECKING:
    import pandas as pd

KEY = ("analysis", "metric", "probe", "layer", "part")


@dataclass(frozen=True)
class Group:
    """The runs of one side, each at the step that is compared."""

    name: str
    label: str
    runs: tuple[tuple[str, int], ...]


@dataclass
class Compared:
    """One number of the ledger, of every run that has it, in the order of the runs."""

    analysis: str
    metric: str
    probe: str
    layer: str
    part: str
    unit: str
    values: dict[str, list[float]] = field(default_factory=dict)
    """By group; NaN where a run has no sound value."""
    reasons: tuple[str, ...] = ()


def stored_steps(store: Store, runs: Sequence[str]) -> dict[str, list[int]]:
    """The audited steps of each of `runs`, ascending; runs without any are left out."""
    found: dict[str, list[int]] = {}
    for unit in store.manifests():
        if unit.analysis == "capture" and unit.run in runs:
            found.setdefault(unit.run, []).append(unit.step)
    return {run: sorted(found[run]) for run in runs if run in found}


def chosen_steps(store: Store, runs: Sequence[str], step: int | str, probe: str) -> dict[str, int]:
    """The step of each of `runs` that is compared: `last`, a number, or `best` on `probe`.

    `best` is the step of highest accuracy (the earliest of equals), or of lowest loss where no accuracy is filed.
    Raises ConfigurationError for a step that a run lacks, AnalysisError where nothing tells the best one.
    """
    steps = stored_steps(store, runs)
    if step == "last":
        return {run: listed[-1] for run, listed in steps.items()}
    if step == "best":
        return _best_steps(store, steps, probe)
    wanted = int(step)
    for run, listed in steps.items():
        if wanted not in listed:
            shown = ", ".join(map(str, listed[:12])) + (" …" if len(listed) > 12 else "")
            raise ConfigurationError(f"step: run {run!r} has no audited step {wanted}; it has {shown}.")
    return dict.fromkeys(steps, wanted)


def _best_steps(store: Store, steps: Mapping[str, list[int]], probe: str) -> dict[str, int]:
    rows = store.rows(Unit("checkpoint", run, step, "outputs") for run, listed in steps.items() for step in listed)
    rows = rows[(rows["probe"] == probe) & (rows["part"] == "") & (rows["layer"] == "") & (rows["status"] == "ok")]
    chosen = {}
    for run in steps:
        mine = rows[rows["run"] == run]
        for metric, sign in (("accuracy", -1.0), ("loss", 1.0)):
            found = mine[mine["metric"] == metric].sort_values("step")
            if len(found):
                chosen[run] = int(found["step"].iloc[int((sign * found["value"]).argmin())])
                break
        else:
            raise AnalysisError(
                f"step: best: run {run!r} has neither accuracy nor loss on probe {probe!r}; use `step: last`."
            )
    return chosen


def units_of(store: Store, groups: Sequence[Group]) -> dict[Unit, str]:
    """Every committed unit of the runs of `groups`, with its identity: what a comparison is made from."""
    runs = {run for group in groups for run, _ in group.runs}
    return {unit: manifest.identity for unit, manifest in store.manifests().items() if unit.run in runs}


def compared_metrics(
    rows: pd.DataFrame, groups: Sequence[Group], spec: ComparisonSpec, aliases: Mapping[str, Mapping[str, str]]
) -> list[Compared]:
    """What the runs of `groups` have in common, from the ledger's `rows`.

    A number is taken at the compared step, or, where it is about the whole run, without one. Findings about two
    checkpoints, and what other comparisons filed, are left out. `aliases` tells for each run which layer stands for
    an alias. A number that one group lacks altogether is left out; a run that lacks it counts as NaN.
    """
    places = {run: (group.name, number, step) for group in groups for number, (run, step) in enumerate(group.runs)}
    rows = rows[rows["run"].isin(list(places)) & (rows["other_run"] == "") & (rows["other_layer"] == "")]
    rows = rows[rows["other_step"].isna() & ~rows["analysis"].str.startswith((PREFIX, TRADITIONAL_PREFIX))]
    found: dict[tuple[str, ...], Compared] = {}
    reasons: dict[tuple[str, ...], dict[str, None]] = {}
    for row in rows.sort_values(list(KEY)).to_dict("records"):
        group, number, step = places[row["run"]]
        if row["step"] not in (step, -1) or not _is_wanted(row, spec):
            continue
        layer = _layer_name(row["layer"], spec, aliases.get(row["run"], {}))
        if layer is None:
            continue
        key: tuple[str, ...] = (row["analysis"], row["metric"], row["probe"], layer, row["part"])
        if key not in found:
            empty = {item.name: [math.nan] * len(item.runs) for item in groups}
            found[key] = Compared(
                row["analysis"], row["metric"], row["probe"], layer, row["part"], unit=row["unit"], values=empty
            )
        if row["status"] == "ok" and math.isfinite(row["value"]):
            found[key].values[group][number] = float(row["value"])
        elif row["reason"]:
            reasons.setdefault(key, {})[f"{row['run']}: {row['reason']}"] = None
    for key, texts in reasons.items():
        found[key].reasons = tuple(texts)
    return [item for _, item in sorted(found.items(), key=_order) if _is_common(item)]


def _order(entry: tuple[tuple[str, ...], Compared]) -> Any:
    """The whole network before its layers, accuracy and loss first."""
    analysis, metric, probe, layer, part = entry[0]
    leading = ("accuracy", "loss")
    place = leading.index(metric) if metric in leading else len(leading)
    return layer != "", part != "", place, analysis, metric, probe, layer, part


def _is_common(item: Compared) -> bool:
    return all(any(math.isfinite(value) for value in values) for values in item.values.values()) and (
        item.layer == "" or all(math.isfinite(value) for values in item.values.values() for value in values)
    )


def _is_wanted(row: Mapping[str, Any], spec: ComparisonSpec) -> bool:
    if spec.metrics is not None and not any(fnmatchcase(row["metric"], pattern) for pattern in spec.metrics):
        return False
    return row["part"] == "" or any(fnmatchcase(row["part"], pattern) for pattern in spec.parts)


def _layer_name(layer: str, spec: ComparisonSpec, aliases: Mapping[str, str]) -> str | None:
    """The name under which `layer` is compared; None where it is not."""
    if layer == "":
        return ""
    for pattern in spec.layers:
        if pattern.startswith("@"):
            if aliases.get(pattern) == layer:
                return pattern
        elif fnmatchcase(layer, pattern):
            return layer
    return None
