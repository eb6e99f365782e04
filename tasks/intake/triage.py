"""Does every checkpoint belong where it stands? Copies, gaps, changes of type, and steps out of line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stratascope.storage.checkpoint_files import missing_steps
from stratascope.storage.ledger import Row
from stratascope.tasks.analysis import Analysis, Figure, Findings, Metric, NamedArray, Options, register
from stratascope.tasks.contexts import SeriesContext, View
from stratascope.tasks.intake.placement import FEWEST, distances, misplaced_scores
from stratascope.tasks.intake.sharing import wrongly_shared

_ESTIMATOR = "count sketch of 1024"


class TriageOptions(Options):
    """Nothing to choose."""


def compute(context: SeriesContext, options: TriageOptions) -> Findings:
    """Rows at each step, and one for the run's gaps, from digests and sketches; no file is read."""
    steps = context.steps
    facts = [context.facts[step] for step in steps]
    sketches = np.array([item["sketch"] for item in facts])
    matrices = np.array([item["matrix_sketch"] for item in facts])
    apart = distances(sketches)
    rows = _gap_rows(steps) + _copy_rows(context, steps, facts) + _type_rows(steps, facts)
    rows += _placement_rows(steps, facts, misplaced_scores(matrices))
    for number, (other, names, count) in enumerate(wrongly_shared(facts)):
        reason = f"{', '.join(names[:3])}{' and more' * (len(names) > 3)}: the same bytes as at step {steps[other]}, though training moved on" if names else ""  # fmt: skip
        rows.append(Row("shared_tensors", len(names), step=steps[number], n=count, reason=reason, other_step=steps[other] if names else None, estimator="SHA-256 of tensors"))  # fmt: skip
    for number, step in enumerate(steps):
        weights = facts[number]["parameter_count"]
        rows.append(Row("distance_to_first", float(apart[number, 0]), step=step, n=weights, estimator=_ESTIMATOR, other_step=steps[0]))  # fmt: skip
        if number:
            rows.append(Row("distance_to_previous", float(apart[number, number - 1]), step=step, n=weights, estimator=_ESTIMATOR, other_step=steps[number - 1]))  # fmt: skip
    about: dict[str, Any] = {
        "step": list(steps),
        "metric": "Euclidean distance of all parameters",
        "estimator": _ESTIMATOR,
    }
    return Findings(rows, {"distances": NamedArray(("step", "other_step"), apart, about)})


def _gap_rows(steps: Sequence[int]) -> list[Row]:
    gaps = missing_steps(steps)
    shown = ", ".join(map(str, gaps[:8])) + (f" and {len(gaps) - 8} more" if len(gaps) > 8 else "")
    reason = f"the series is regular but for step {shown}" if gaps else ""
    return [Row("missing_steps", len(gaps), n=len(steps), reason=reason, estimator="commonest stride")]


def _copy_rows(context: SeriesContext, steps: Sequence[int], facts: Sequence[Mapping[str, Any]]) -> list[Row]:
    rows = []
    seen: dict[str, int] = {}
    for step, item in zip(steps, facts, strict=True):
        digest = item["weights_digest"]
        shared: dict[str, Any] = {"step": step, "n": len(item["tensors"]), "estimator": "SHA-256 of tensors"}
        earlier = seen.setdefault(digest, step)
        copy = earlier != step
        rows.append(Row("duplicate_of", float(copy), other_step=earlier if copy else None, other_run=context.run if copy else "", reason=f"the same weights as step {earlier}" if copy else "", **shared))  # fmt: skip
    return rows


def _type_rows(steps: Sequence[int], facts: Sequence[Mapping[str, Any]]) -> list[Row]:
    rows = []
    before: dict[str, str] = {}
    for number, step in enumerate(steps):
        types = {name: item["dtype"] for name, item in facts[number]["tensors"].items()}
        changed = sorted(name for name in types.keys() & before.keys() if types[name] != before[name])
        reason = "; ".join(f"{name}: {before[name]} to {types[name]}" for name in changed[:3])
        reason += f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        earlier = steps[number - 1] if number else None
        rows.append(Row("dtype_drift", len(changed), step=step, n=len(types), reason=reason, other_step=earlier, estimator="types in the file"))  # fmt: skip
        before = types
    return rows


def _placement_rows(steps: Sequence[int], facts: Sequence[Mapping[str, Any]], scores: np.ndarray) -> list[Row]:
    shared: dict[str, Any] = {"n": len(steps), "estimator": f"{_ESTIMATOR}, weights of two or more dimensions"}
    if len(steps) < FEWEST:
        reason = f"the run has {len(steps)} checkpoints; {FEWEST} are needed to have a curve of its own"
        return [
            Row("misplaced_score", status="does_not_apply", step=step, reason=reason, **shared) for step in steps
        ]
    apart = distances(np.array([item["matrix_sketch"] for item in facts]))
    rows = []
    for number, step in enumerate(steps):
        near = None
        if scores[number] > 1:
            to_others = np.where(np.arange(len(steps)) == number, np.inf, apart[number])
            near = steps[int(to_others.argmin())]
        reason = f"its weights lie nearest to those of step {near}, and do not fit between its neighbours" if near is not None else ""  # fmt: skip
        rows.append(Row("misplaced_score", float(scores[number]), step=step, reason=reason, other_step=near, **shared))  # fmt: skip
    return rows


def draw(view: View, options: TriageOptions) -> list[Figure]:
    """The path of the weights with its suspects, and the distances between all checkpoints."""
    from stratascope.tasks.intake.triage_drawing import matrix_figure, path_figure

    return [figure for figure in (path_figure(view), matrix_figure(view)) if figure is not None]


ANALYSIS = register(
    Analysis(
        name="triage", version=2, scope="series", title="Triage", question="Does every checkpoint belong where it stands?",
        options=TriageOptions, compute=compute, draw=draw, needs=frozenset({"weights"}), always=True,
        metrics=(
            Metric("duplicate_of", "copies", "{0, 1}", "1 where an earlier step (`other_step`) of the run has the same tensors.", "", "file format, prefixes of names"),
            Metric("misplaced_score", "1", "[0, ∞)", "How badly a checkpoint fits between its neighbours: the largest of how little it has in common with the run, its detour against the run's own, and what a better place would save; above 1 it does not belong.", "", "scale of the weights, spacing of the steps"),
            Metric("shared_tensors", "tensors", "[0, ∞)", "Weights of two or more dimensions whose bytes return from another step (`other_step`), though they or most others moved in between; a wrongly copied shard."),
            Metric("missing_steps", "steps", "[0, ∞)", "Steps that a regular series leaves out, by its commonest stride; one number a run."),
            Metric("distance_to_previous", "weight", "[0, ∞)", "Euclidean distance of all parameters to the checkpoint before.", "count sketch: Charikar et al. 2002"),
            Metric("distance_to_first", "weight", "[0, ∞)", "Euclidean distance of all parameters to the run's first checkpoint.", "count sketch: Charikar et al. 2002"),
            Metric("dtype_drift", "tensors", "[0, ∞)", "Tensors whose type differs from the checkpoint before."),
        ),
    )
)  # fmt: skip
