"""One traditional method on every kind of features, and what a network's features add to it."""

from __future__ import annotations

from typing import Any

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.storage.archive import LOGICAL_DTYPE, join_path, widened
from stratascope.storage.ledger import Row
from stratascope.storage.names import step_directory
from stratascope.storage.probes import Probe, read_probe
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.tasks.analysis import Findings, NamedArray
from stratascope.tasks.comparison import paired, traditional
from stratascope.tasks.comparison.samples import class_targets
from stratascope.tasks.comparison.work import ComparisonAssignment, plain

LAST_LAYER = "@last_linear:input"


def methods_compared(store: Store, assignment: ComparisonAssignment) -> tuple[Findings, dict[str, Any]]:
    """Rows and arrays of the method that the unit is called after: accuracy by features and run, gain by group."""
    method = assignment.unit.analysis.rpartition(":")[2]
    wanted, findings = assignment.traditional, Findings()
    try:
        train, test = _probes(store, assignment)
        rows = traditional.chosen_rows(train, wanted.max_samples, assignment.spec.seed)
        test_rows = traditional.chosen_rows(test, wanted.max_test_samples, assignment.spec.seed)
    except DoesNotApply as reason:
        findings.rows.append(_missing("traditional_accuracy", f"method={method}", assignment.probe, str(reason)))
        return findings, {"method": method, "reason": str(reason), "results": [], "gains": []}
    targets = class_targets(test)[test_rows]
    results: list[dict[str, Any]] = []
    right: dict[tuple[str, str], np.ndarray] = {}
    for features, run, step in _features(assignment):
        entry: dict[str, Any] = {"method": method, "features": features, "run": run, "step": step if run else None}
        try:
            inputs, asked = _inputs(store, assignment, features, run, step, (train, rows), (test, test_rows))
            learned = traditional.learn(
                method, (inputs, class_targets(train)[rows]), asked,
                components=wanted.pca_components if features == "pca" else None,
                common_scale=train.kind == "image", folds=wanted.folds, seed=assignment.spec.seed,
            )  # fmt: skip
        except DoesNotApply as reason:
            results.append({**entry, "reason": str(reason)})
            findings.rows.append(
                _missing("traditional_accuracy", _part(entry), assignment.probe, str(reason), run)
            )
            continue
        good = right[features, run] = learned.predicted == targets
        low, high = paired.wilson(int(good.sum()), len(good), assignment.spec.confidence)
        entry |= {"accuracy": float(good.mean()), "low": low, "high": high, "n": len(good), "reason": "", "constants": learned.constants, "dimensions": learned.dimensions, "note": learned.note}  # fmt: skip
        results.append(entry)
        findings.rows.append(_accuracy_row(entry, assignment))
        place = f"{features}/{run}" if run else features
        findings.arrays[f"{place}/predicted"] = NamedArray(("test_sample",), learned.predicted)
    findings.arrays["test_row"] = NamedArray(("test_sample",), test_rows)
    gains = _gains(assignment, method, right, findings)
    return findings, plain(
        {"method": method, "reason": "", "train_probe": train.name, "train_samples": len(rows), "test_samples": len(test_rows), "results": results, "gains": gains}
    )  # fmt: skip


def _probes(store: Store, assignment: ComparisonAssignment) -> tuple[Probe, Probe]:
    task = next(iter(assignment.subjects.values())).task
    if task != "classification":
        raise DoesNotApply(f"the task is {task!r}; the traditional methods are classifiers.")
    name = assignment.traditional.train_probe
    if name is None:
        raise DoesNotApply(
            "no probe has the role `train`, so that nothing can be learned: add one to the audit's `probes`."
        )
    train, test = read_probe(store, name), read_probe(store, assignment.probe)
    class_targets(train)
    return train, test


def _features(assignment: ComparisonAssignment) -> list[tuple[str, str, int]]:
    """(features, run, step): run "" for what is the same for all networks."""
    wanted = assignment.traditional.features
    found: list[tuple[str, str, int]] = [(features, "", -1) for features in wanted if features != "network"]
    if "network" in wanted:
        found += [("network", run, step) for group in assignment.groups for run, step in group.runs]
    return found


def _inputs(
    store: Store, assignment: ComparisonAssignment, features: str, run: str, step: int,
    train: tuple[Probe, np.ndarray], test: tuple[Probe, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """float32 (sample, feature) of the training and of the test samples."""
    if features != "network":
        return traditional.raw_inputs(*train), traditional.raw_inputs(*test)
    return tuple(_last_layer(store, assignment, run, step, probe, rows) for probe, rows in (train, test))  # type: ignore[return-value]


def _last_layer(
    store: Store, assignment: ComparisonAssignment, run: str, step: int, probe: Probe, rows: np.ndarray
) -> np.ndarray:
    context = assignment.context(store, run, step)
    known = context.captured.get(probe.name, {})
    layer = known.get("aliases", {}).get(LAST_LAYER)
    if layer is None:
        heads = [name for name in known.get("layers", ()) if name.endswith(":input")]
        if len(heads) != 1:
            raise DoesNotApply(
                f"what enters the last linear layer of run {run!r} is not in the archive: let the audit run the "
                "analysis `embedding`, which keeps it."
            )
        (layer,) = heads
    folder = join_path("runs", run, step_directory(step), "activations", probe.name, layer)
    places = [path for path in store.list_arrays(folder) if path.rsplit("/", 1)[1] in ("pooled", "full", "cls")]
    if not places:
        raise DoesNotApply(f"layer {layer!r} of run {run!r} is stored neither pooled nor full.")
    place = min(places, key=lambda path: ("pooled", "full", "cls").index(path.rsplit("/", 1)[1]))
    _, shape, _, facts = store.array_info(place)
    if int(np.prod(shape[1:], dtype=np.int64)) > traditional.MOST_FEATURES:
        raise DoesNotApply(f"layer {layer!r} has more than {traditional.MOST_FEATURES:,} numbers a sample.")
    values = traditional.rows_of(_Stored(store, place, shape[0]), rows)
    found = np.asarray(widened(values, facts.get(LOGICAL_DTYPE)), np.float32).reshape(len(rows), -1)
    if not np.isfinite(found).all():
        raise DoesNotApply(f"layer {layer!r} of run {run!r} has values that are not finite.")
    return found


class _Stored:
    """An array of the archive that is read slice by slice."""

    def __init__(self, store: Store, place: str, length: int) -> None:
        self._store, self._place, self._length = store, place, length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self._store.read_slice(self._place, rows.start, rows.stop)


def _part(entry: dict[str, Any]) -> str:
    return f"features={entry['features']};method={entry['method']}"


def _accuracy_row(entry: dict[str, Any], assignment: ComparisonAssignment) -> Row:
    return Row(
        "traditional_accuracy", entry["accuracy"], low=entry["low"], high=entry["high"], n=entry["n"],
        part=_part(entry), probe=assignment.probe, unit="fraction", run=entry["run"], other_step=entry["step"],
        estimator=f"{assignment.spec.confidence * 100:g} % Wilson", reason=entry["note"],
        convention=", ".join(f"{name}={value}" for name, value in entry["constants"].items()),
    )  # fmt: skip


def _missing(metric: str, part: str, probe: str, reason: str, run: str = "") -> Row:
    return Row(metric, part=part, probe=probe, run=run, unit="fraction", status="does_not_apply", reason=reason)


def _gains(
    assignment: ComparisonAssignment, method: str, right: dict[tuple[str, str], np.ndarray], findings: Findings
) -> list[dict[str, Any]]:
    """For each group: the method on the network's features against the better of raw inputs and components."""
    spec = assignment.spec
    plain_ones = {features: right[features, ""] for features in ("raw", "pca") if (features, "") in right}
    entries = []
    for group in assignment.groups:
        mine = [right["network", run] for run, _ in group.runs if ("network", run) in right]
        part = f"group={group.name};method={method}"
        if not mine or not plain_ones:
            reason = "the method has no result on the network's features, or none without them."
            findings.rows.append(_missing("feature_gain", part, assignment.probe, reason))
            continue
        better = max(plain_ones, key=lambda name: float(plain_ones[name].mean()))
        gain = paired.bootstrap_mean(
            traditional.gain(np.stack(mine), plain_ones[better]), spec.confidence, spec.resamples, spec.seed
        )
        findings.rows.append(
            Row("feature_gain", gain.value, low=gain.low, high=gain.high, n=len(plain_ones[better]), part=part, probe=assignment.probe, unit="fraction", estimator=f"{spec.confidence * 100:g} % bootstrap over samples", convention=f"over {better}", reason=gain.reason)
        )  # fmt: skip
        entries.append({"group": group.name, "over": better, "runs": len(mine), "gain": gain})
    return entries


def unit_is_traditional(unit: Unit, name: str) -> bool:
    """Whether `unit` holds a traditional method of the comparison called `name`."""
    return unit.scope == "cohort" and unit.analysis.startswith(f"traditional:{name}:")
