"""Does every checkpoint belong where it stands? Copies, changes of type, and steps out of line."""

from __future__ import annotations

from typing import Any

import numpy as np

from stratascope.storage.ledger import Row
from stratascope.tasks.analysis import Analysis, Figure, Findings, Metric, Options, register
from stratascope.tasks.contexts import SeriesContext, View


class TriageOptions(Options):
    """Nothing to choose."""


def misplaced_scores(sketches: np.ndarray) -> np.ndarray:
    """For each checkpoint (checkpoint, sketch) how much its neighbours lie nearer to each other than to it.

    The score of an inner checkpoint is log2 of its mean distance to both neighbours over theirs to each other, less
    the median of that over the run, in units of two: above 1 it does not belong. On a straight path the quotient
    is 1/2, on a random walk 1/sqrt(2); a foreign checkpoint makes it large. Ends, and runs of fewer than five, get 0.
    """
    count = len(sketches)
    scores = np.zeros(count)
    if count < 5:
        return scores
    quotients = np.full(count, np.nan)
    for place in range(1, count - 1):
        before, here, after = sketches[place - 1 : place + 2]
        around = float(np.linalg.norm(after - before))
        aside = float(np.linalg.norm(here - before) + np.linalg.norm(after - here)) / 2
        quotients[place] = np.log2(max(aside, 1e-300) / around) if around > 0 else (0.0 if aside == 0 else 60.0)
    typical = np.nanmedian(quotients)
    scores[1:-1] = np.maximum(0.0, (quotients[1:-1] - typical) / 2)
    return scores


def compute(context: SeriesContext, options: TriageOptions) -> Findings:
    """Rows at each step, from sketches and digests; distances carry about 3 % of sketching error."""
    rows: list[Row] = []
    steps = context.steps
    sketches = np.array([context.facts[step]["sketch"] for step in steps])
    scores = misplaced_scores(sketches)
    seen: dict[str, int] = {}
    types = None
    for number, step in enumerate(steps):
        facts = context.facts[step]
        shared: dict[str, Any] = {"step": step, "n": facts["parameter_count"]}
        earlier = seen.setdefault(facts["weights_digest"], step)
        copy = earlier != step
        rows.append(Row("duplicate_of", float(copy), unit="copies", other_step=earlier if copy else None, other_run=context.run if copy else "", reason=f"the same weights as step {earlier}" if copy else "", **shared))  # fmt: skip
        rows.append(Row("misplaced_score", float(scores[number]), estimator="count sketch", **shared))
        rows.append(Row("distance_to_first", float(np.linalg.norm(sketches[number] - sketches[0])), estimator="count sketch", **shared))  # fmt: skip
        if number:
            moved = float(np.linalg.norm(sketches[number] - sketches[number - 1]))
            rows.append(Row("distance_to_previous", moved, estimator="count sketch", other_step=steps[number - 1], **shared))  # fmt: skip
        kinds = {name: item["dtype"] for name, item in facts["tensors"].items()}
        changed = sorted(name for name in kinds if types is not None and types.get(name) != kinds[name])
        rows.append(Row("dtype_drift", len(changed), unit="tensors", reason=", ".join(changed[:3]), **shared))
        types = kinds
    return Findings(rows)


def draw(view: View, options: TriageOptions) -> list[Figure]:
    """The path of the weights: how far from the start, and how far in each stride."""
    from stratascope.tasks.report.style import lines

    series = {
        label: (list(rows["step"]), list(rows["value"]))
        for label, metric in (("from the first checkpoint", "distance_to_first"), ("from the previous one", "distance_to_previous"))
        if len(rows := view.metric(metric))
    }  # fmt: skip
    if not series:
        return []
    scores = view.metric("misplaced_score")
    worst = scores.loc[scores["value"].idxmax()]
    copies = int(view.metric("duplicate_of")["value"].sum())
    rows = view.rows
    return [
        Figure(
            key="path", title="How far the weights have moved", svg=lines(series, "Euclidean distance"), run=view.run,
            shows="The distance of each checkpoint's weights from the first checkpoint and from the one before.",
            reading="The upper line rises and bends as training settles. A single peak of the lower line is a checkpoint that does not belong, or a jump in training.",
            caution=f"{len(scores)} checkpoints, {copies} of them copies of an earlier one; the most suspicious step is {int(worst['step'])} with a score of {worst['value']:.2f}, where above 1 counts as misplaced. Strides grow with the spacing of the checkpoints.",
            audience="For whoever has to trust that the files are in order.",
            practitioner="If a step stands out here, compare its file with the training log before you believe any other page.",
            researcher="Distances come from a seeded count sketch of 1,024 numbers, about 3 % relative error; buffers of norm layers are in it, hence it is not the distance of trainable weights alone.",
            table={k: rows[k].tolist() for k in ("step", "metric", "value")},
        )
    ]  # fmt: skip


ANALYSIS = register(
    Analysis(
        name="triage", version=1, scope="series", title="Triage", question="Does every checkpoint belong where it stands?",
        options=TriageOptions, compute=compute, draw=draw, needs=frozenset({"weights"}), always=True,
        metrics=(
            Metric("duplicate_of", "copies", "{0, 1}", "1 where an earlier step (`other_step`) has the same tensors."),
            Metric("misplaced_score", "1", "[0, ∞)", "How far a checkpoint stands out against its neighbours' distance; above 1 it does not belong."),
            Metric("distance_to_previous", "weight", "[0, ∞)", "Euclidean distance to the checkpoint before.", "count sketch: Charikar et al. 2002"),
            Metric("distance_to_first", "weight", "[0, ∞)", "Euclidean distance to the run's first checkpoint.", "count sketch: Charikar et al. 2002"),
            Metric("dtype_drift", "tensors", "[0, ∞)", "Tensors whose type differs from the checkpoint before."),
        ),
    )
)  # fmt: skip
