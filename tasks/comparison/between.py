"""The comparison of two groups of runs: every metric of the ledger, then sample by sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.storage.probes import Probe, read_probe
from stratascope.storage.store import Store
from stratascope.tasks.analysis import Findings, NamedArray
from stratascope.tasks.comparison import paired, statistics
from stratascope.tasks.comparison.gathering import Compared, compared_metrics, units_of
from stratascope.tasks.comparison.samples import (
    GroupAnswers,
    answers_of,
    class_targets,
    disagreement,
    shown_samples,
)
from stratascope.tasks.comparison.spec import ComparisonSpec
from stratascope.tasks.comparison.work import ComparisonAssignment, plain

if TYPE_CHECKING:
    from stratascope.tasks.comparison.statistics import Estimate


def between_runs(store: Store, assignment: ComparisonAssignment) -> tuple[Findings, dict[str, Any]]:
    """Rows, arrays, and the summary that `compare --json` prints: see docs/comparison.md."""
    spec, groups = assignment.spec, assignment.groups
    findings = Findings()
    aliases = _aliases(store, assignment)
    compared = compared_metrics(store.rows(units_of(store, groups)), groups, spec, aliases)
    metrics = [_judged(item, spec) for item in compared]
    replicated = all(len(group.runs) >= 2 for group in groups)
    family = _correct(metrics, spec) if replicated else 0
    for item in metrics:
        findings.rows += _metric_rows(item, spec, family)
    samples = _samples(store, assignment, findings)
    summary = {
        "name": assignment.unit.analysis.partition(":")[2],
        "title": assignment.title,
        "probe": assignment.probe,
        "groups": [
            {
                "name": group.name,
                "label": group.label,
                "runs": [{"run": run, "step": step} for run, step in group.runs],
            }
            for group in groups
        ],
        "replicated": replicated,
        "test": _test_name(spec),
        "correction": spec.correction,
        "confidence": spec.confidence,
        "paired": spec.pair,
        "family": family,
        "metrics": metrics,
        "samples": samples,
    }
    return findings, plain(summary)


def _aliases(store: Store, assignment: ComparisonAssignment) -> dict[str, dict[str, str]]:
    wanted = [pattern for pattern in assignment.spec.layers if pattern.startswith("@")]
    found: dict[str, dict[str, str]] = {}
    for group in assignment.groups:
        for run, step in group.runs:
            context = assignment.context(store, run, step)
            for probe in context.captured:
                for alias in wanted:
                    try:
                        found.setdefault(run, {})[alias] = context.resolve(probe, alias)
                    except DoesNotApply:
                        continue
    return found


def _test_name(spec: ComparisonSpec) -> str:
    if spec.test == "permutation":
        return "paired permutation test" if spec.pair else "permutation test"
    return "paired t test" if spec.pair else "Welch's t test"


def _judged(item: Compared, spec: ComparisonSpec) -> dict[str, Any]:
    """One metric side by side, with its difference, effect and tests."""
    a, b = (np.array(values, np.float64) for values in item.values.values())
    entry: dict[str, Any] = {
        "analysis": item.analysis, "metric": item.metric, "probe": item.probe, "layer": item.layer,
        "part": item.part, "unit": item.unit,
    }  # fmt: skip
    if spec.pair and len(a) == len(b):
        both = np.isfinite(a) & np.isfinite(b)
        a, b = a[both], b[both]
    else:
        a, b = a[np.isfinite(a)], b[np.isfinite(b)]
    for name, values in (("a", a), ("b", b)):
        spread = float(values.std(ddof=1)) if len(values) > 1 else math.nan
        entry[name] = {"mean": float(values.mean()) if len(values) else math.nan, "std": spread, "n": len(values), "values": values.tolist()}  # fmt: skip
    if not len(a) or not len(b):
        nothing = statistics.Estimate(reason="no pair of runs has this number on both sides.")
        entry |= {"difference": nothing, "effect": nothing, "t_test": statistics.TestResult(reason=nothing.reason), "permutation": statistics.TestResult(reason=nothing.reason)}  # fmt: skip
    else:
        entry["difference"] = statistics.mean_difference(a, b, spec.confidence, spec.pair)
        entry["effect"] = statistics.hedges_g(a, b, spec.confidence, spec.pair)
        entry["t_test"] = statistics.t_test(a, b, spec.pair)
        entry["permutation"] = statistics.permutation_test(a, b, spec.pair, spec.seed, spec.resamples)
    deciding = entry["permutation" if spec.test == "permutation" else "t_test"]
    entry |= {"p": deciding.p, "adjusted_p": math.nan, "differs": None, "reason": deciding.reason, "notes": list(item.reasons)}  # fmt: skip
    return entry


def _correct(metrics: Sequence[dict[str, Any]], spec: ComparisonSpec) -> int:
    """Fill in the corrected p-values of one family; returns its size."""
    adjusted = statistics.corrected([item["p"] for item in metrics], spec.correction)
    for item, value in zip(metrics, adjusted, strict=True):
        if math.isfinite(value):
            item["adjusted_p"] = float(value)
            item["differs"] = bool(value <= 1 - spec.confidence)
    return int(np.isfinite(adjusted).sum())


def _metric_rows(item: dict[str, Any], spec: ComparisonSpec, family: int) -> list[Row]:
    about = f"of={item['metric']}" + (f";{item['part']}" if item["part"] else "")
    shared: dict[str, Any] = {"probe": item["probe"], "layer": item["layer"], "n": item["a"]["n"] + item["b"]["n"]}
    level = f"{spec.confidence * 100:g} %"
    rows = []
    for metric, estimate, unit, how in (
        ("mean_difference", item["difference"], item["unit"], "paired t" if spec.pair else "Welch"),
        ("hedges_g", item["effect"], "standard deviation", "noncentral t"),
    ):
        rows.append(_row(metric, estimate, part=about, unit=unit, estimator=f"{level} {how}", convention="A − B", **shared))  # fmt: skip
    for name, test in (("t_test", item["t_test"]), ("permutation", item["permutation"])):
        how = "exact" if test.is_exact else f"{test.assignments} draws"
        rows.append(_p_row("p_value", test.p, test.reason, f"{about};test={name}", how, **shared))
    reason = item["reason"] or "it was not tested with the others."
    rows.append(_p_row("adjusted_p_value", item["adjusted_p"], reason, about, f"{spec.correction}, {family} tests", **shared))  # fmt: skip
    return rows


def _row(metric: str, estimate: Estimate, **columns: Any) -> Row:
    if not math.isfinite(estimate.value):
        return Row(metric, status="does_not_apply", reason=estimate.reason, **columns)
    return Row(metric, estimate.value, low=estimate.low, high=estimate.high, reason=estimate.reason, **columns)


def _p_row(metric: str, p: float, reason: str, part: str, convention: str, **columns: Any) -> Row:
    known = math.isfinite(p)
    return Row(
        metric, p, part=part, unit="probability", convention=convention, reason="" if known else reason,
        status="ok" if known else "does_not_apply", **columns,
    )  # fmt: skip


# -- sample by sample ------------------------------------------------------------------------------------


def _samples(store: Store, assignment: ComparisonAssignment, findings: Findings) -> dict[str, Any]:
    """What the two groups answer to the same samples; `reason` says why nothing is known."""
    try:
        task = next(iter(assignment.subjects.values())).task
        if task != "classification":
            raise DoesNotApply(f"the task is {task!r}: there is no answer for each sample to compare.")
        probe = read_probe(store, assignment.probe)
        targets = class_targets(probe)
        a, b = (answers_of(store, group.runs, probe) for group in assignment.groups)
    except DoesNotApply as reason:
        missing = ("share_difference", "loss_difference", "disagreement", "only_one_right")
        findings.rows += [
            Row(name, probe=assignment.probe, status="does_not_apply", reason=str(reason)) for name in missing
        ]
        return {"reason": str(reason)}
    reason_for_loss = _add_losses(store, assignment, probe, (a, b))
    entry = _sample_numbers(assignment.spec, a, b, targets, reason_for_loss)
    findings.rows += _sample_rows(assignment, entry)
    findings.arrays |= _sample_arrays(a, b, shown_samples(a, b, targets, assignment.spec.pictures))
    return entry


def _add_losses(
    store: Store, assignment: ComparisonAssignment, probe: Probe, answers: tuple[GroupAnswers, GroupAnswers]
) -> str:
    """Give both groups the mean loss of each sample; returns why there is none, or an empty string."""
    from stratascope.tasks.representation.outputs import gather

    for group, found in zip(assignment.groups, answers, strict=True):
        total = np.zeros(len(probe))
        for run, step in group.runs:
            try:
                known = gather(assignment.context(store, run, step), probe.name, probe)
            except DoesNotApply as reason:
                return str(reason)
            if known.losses is None or len(known.losses) != len(probe):
                return "the loss gives its mean alone."
            total += known.losses
        found.losses = total / len(group.runs)
    return ""


def _sample_numbers(
    spec: ComparisonSpec, a: GroupAnswers, b: GroupAnswers, targets: np.ndarray, reason_for_loss: str
) -> dict[str, Any]:
    counts = paired.paired_counts(a.answer == targets, b.answer == targets)
    differ = a.answer != b.answer
    apart = disagreement(a.predicted, b.predicted)
    mcnemar = paired.mcnemar_test(counts)
    entry: dict[str, Any] = {
        "reason": "",
        "n": counts.n,
        "both_right": counts.both,
        "only_a_right": counts.only_a,
        "only_b_right": counts.only_b,
        "both_wrong": counts.neither,
        "both_wrong_differently": int((differ & (a.answer != targets) & (b.answer != targets)).sum()),
        "agreement": float(1 - differ.mean()),
        "disagreement": {"within_a": apart.within_a, "within_b": apart.within_b, "between": apart.between},
        "accuracy": {
            "a": float((a.answer == targets).mean()),
            "b": float((b.answer == targets).mean()),
            "difference": paired.difference_of_shares(counts, spec.confidence),
            "mcnemar": mcnemar,
        },
    }
    if reason_for_loss:
        loss, flips = statistics.Estimate(reason=reason_for_loss), statistics.TestResult(reason=reason_for_loss)
        entry["loss"] = {"a": math.nan, "b": math.nan, "difference": loss, "sign_flip": flips}
    else:
        gap = a.losses - b.losses
        loss = paired.bootstrap_mean(gap, spec.confidence, spec.resamples, spec.seed)
        flips = paired.sign_flip_test(gap, spec.resamples, spec.seed)
        entry["loss"] = {"a": a.losses.mean(), "b": b.losses.mean(), "difference": loss, "sign_flip": flips}
    adjusted = statistics.corrected([mcnemar.p, flips.p], spec.correction)
    entry["accuracy"]["adjusted_p"], entry["loss"]["adjusted_p"] = (float(value) for value in adjusted)
    entry["family"] = int(np.isfinite(adjusted).sum())
    return entry


def _sample_rows(assignment: ComparisonAssignment, entry: dict[str, Any]) -> list[Row]:
    spec = assignment.spec
    level = f"{spec.confidence * 100:g} %"
    shared: dict[str, Any] = {"probe": assignment.probe, "n": entry["n"]}
    accuracy, loss = entry["accuracy"], entry["loss"]
    rows = [
        _row("share_difference", accuracy["difference"], unit="fraction", estimator=f"{level} Newcombe", convention="A − B", **shared),
        _row("loss_difference", loss["difference"], estimator=f"{level} bootstrap", convention="A − B", **shared),
        _p_row("p_value", accuracy["mcnemar"].p, accuracy["mcnemar"].reason, "of=accuracy;test=mcnemar", "exact", **shared),
        _p_row("p_value", loss["sign_flip"].p, loss["sign_flip"].reason, "of=loss;test=sign_flip", f"{spec.resamples} draws", **shared),
        _p_row("adjusted_p_value", accuracy["adjusted_p"], accuracy["mcnemar"].reason, "of=accuracy;over=samples", f"{spec.correction}, {entry['family']} tests", **shared),
        _p_row("adjusted_p_value", loss["adjusted_p"], loss["sign_flip"].reason, "of=loss;over=samples", f"{spec.correction}, {entry['family']} tests", **shared),
    ]  # fmt: skip
    for name, value in entry["disagreement"].items():
        alone = statistics.Estimate(
            value, reason="" if math.isfinite(value) else "a group of one run has no pair."
        )
        rows.append(_row("disagreement", alone, part=f"pairs={name}", unit="fraction", **shared))
    for name in ("a", "b"):
        rows.append(
            Row("only_one_right", entry[f"only_{name}_right"], part=f"right={name}", unit="samples", **shared)
        )
    return rows


def _sample_arrays(a: GroupAnswers, b: GroupAnswers, shown: dict[str, np.ndarray]) -> dict[str, NamedArray]:
    arrays = {}
    for name, found in (("a", a), ("b", b)):
        arrays[f"samples/predicted_{name}"] = NamedArray((f"run_{name}", "sample"), found.predicted)
        for part in ("answer", "votes", "probability", "target_probability"):
            arrays[f"samples/{part}_{name}"] = NamedArray(("sample",), getattr(found, part))
        if len(found.losses):
            arrays[f"samples/loss_{name}"] = NamedArray(("sample",), found.losses)
    for kind, places in shown.items():
        arrays[f"shown/{kind}"] = NamedArray((f"shown_{kind}",), places.astype(np.int64))
    return arrays
