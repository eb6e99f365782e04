"""Do two runs share checkpoints? The same weights under two names are one result, not two."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from stratascope.storage.ledger import Row
from stratascope.tasks.analysis import Analysis, Figure, Findings, Metric, Options, register
from stratascope.tasks.contexts import CohortContext, View


class CopiesOptions(Options):
    """Nothing to choose."""


def compute(context: CohortContext, options: CopiesOptions) -> Findings:
    """A row for each checkpoint and each other run that has its weights, or one of 0; none where there is one run only."""
    if len(context.runs) < 2:
        return Findings()
    holders: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for run, series in sorted(context.runs.items()):
        for step in series.steps:
            holders[series.facts[step]["weights_digest"]].append((run, step))
    rows = []
    for run, series in sorted(context.runs.items()):
        for step in series.steps:
            facts = series.facts[step]
            others: dict[str, int] = {}
            # Twins that share their start meet at the same step: name that one where there are several.
            for other, place in sorted(holders[facts["weights_digest"]], key=lambda item: (item[1] != step, item)):
                if other != run:
                    others.setdefault(other, place)
            shared: dict[str, Any] = {
                "run": run, "step": step, "n": len(facts["tensors"]), "estimator": "SHA-256 of tensors",
            }  # fmt: skip
            for other, place in others.items():
                reason = f"the same weights as {other} step {place}"
                rows.append(Row("duplicate_in_other_run", 1.0, other_run=other, other_step=place, reason=reason, **shared))  # fmt: skip
            if not others:
                rows.append(Row("duplicate_in_other_run", 0.0, **shared))
    return Findings(rows)


def draw(view: View, options: CopiesOptions) -> list[Figure]:
    """How many checkpoints of one run stand in another too."""
    from stratascope.tasks.report.style import heatmap

    rows = view.metric("duplicate_in_other_run")
    shared = rows[rows["value"] > 0]
    if not len(shared):
        return []
    runs = sorted(set(rows["run"]))
    counts = np.zeros((len(runs), len(runs)))
    np.fill_diagonal(counts, np.nan)
    for run, other in zip(shared["run"], shared["other_run"], strict=True):
        counts[runs.index(run), runs.index(other)] += 1
    checkpoints = len(rows[["run", "step"]].drop_duplicates())
    doubles = shared[["run", "step"]].drop_duplicates()
    starts = int((doubles["step"] == 0).sum())
    first = shared.iloc[0]
    return [
        Figure(
            key="shared",
            title="Checkpoints that stand in two runs",
            svg=heatmap(counts, runs, runs, "checkpoints with the same weights", "run", "the other run"),
            shows="For each pair of runs, how many checkpoints of the one have exactly the weights of one of the other.",
            reading="Only the start should be shared, and only where runs were meant to begin alike. Anything later is a file in the wrong folder, or one run published under two names.",
            caution=f"{len(doubles)} of {checkpoints} checkpoints in {len(runs)} runs have a double in another run, {starts} of them at step 0; the first is {first['run']} step {int(first['step'])} ({first['reason']}).",
            audience="For those who compare seeds, or average over them.",
            practitioner="Count such runs once, and check where they were copied: an average over seeds that are one run has no spread.",
            researcher="Equality is of all tensors byte by byte, running statistics included; runs that differ in the last bit do not show here, and the distances in their triage tell how near they are.",
            table={name: shared[name].tolist() for name in ("run", "step", "other_run", "other_step")},
        )
    ]  # fmt: skip


ANALYSIS = register(
    Analysis(
        name="copies", version=1, scope="cohort", title="Copies across runs", question="Do two runs share checkpoints?",
        options=CopiesOptions, compute=compute, draw=draw, needs=frozenset({"weights"}), always=True,
        metrics=(
            Metric("duplicate_in_other_run", "copies", "{0, 1}", "1 where another run (`other_run`, `other_step`) has a checkpoint with the same tensors; twins that share their start have it at step 0.", "", "file format, prefixes of names"),
        ),
    )
)  # fmt: skip
