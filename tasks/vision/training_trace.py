"""What the training itself recorded, beside what the audit finds of the same steps: batch losses, gradients, step sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from stratascope.errors import ConfigurationError, DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.storage.objects import local_or_url
from stratascope.storage.recorded_traces import recorded_trace
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, Options, register
from stratascope.tasks.contexts import SeriesContext, Subject
from stratascope.tasks.vision.training_trace_drawing import draw

_COLUMNS = {"loss": "recorded_loss", "gradient_norm": "recorded_gradient_norm", "rate": "recorded_rate"}


class TrainingTraceOptions(Options):
    """The trace is thinned for the picture; rows of the ledger are medians between checkpoints."""

    points: int = Field(default=240, ge=2)
    """The picture shows the trace in so many stretches at most, early ones shorter than late ones."""


def trace_of(subject: Subject) -> dict[str, np.ndarray]:
    """The run's recorded trace, as from `recorded_trace`. Raises DoesNotApply where there is none, or it cannot be read."""
    if subject.source.trace is None:
        raise DoesNotApply(f"run {subject.run!r} has no `trace`: name the file that its training recorded.")
    place = local_or_url(subject.source.trace, Path(subject.folder))
    if not isinstance(place, Path):
        raise DoesNotApply(f"the trace {place} is behind a URL: give a file.")
    try:
        return recorded_trace(place)
    except ConfigurationError as error:
        raise DoesNotApply(str(error)) from None


def compute(context: SeriesContext, options: TrainingTraceOptions) -> Findings:
    """A row for each checkpoint and column; arrays `step` and `<column>` with their quartiles (stretch, quartile), and
    `<probe>/mean_norm`, `<probe>/median_norm` (step,) of the probes' gradients at the checkpoints.
    """
    findings = Findings()
    trace = trace_of(context.subject)
    steps = sorted(context.steps)
    for column, metric in _COLUMNS.items():
        if column not in trace:
            reason = f"the trace has no column for it; it has {', '.join(trace)}"
            findings.rows.append(Row(metric, status="does_not_apply", reason=reason))
            continue
        findings.rows += list(window_rows(metric, trace["step"], trace[column], steps))
    edges = stretches(len(trace["step"]), options.points)
    middles = [trace["step"][(first + last - 1) // 2] for first, last in pairwise(edges)]
    findings.arrays["stretch_step"] = NamedArray(("stretch",), np.array(middles, np.int64))
    for column in _COLUMNS:
        if column in trace and np.isfinite(trace[column]).any():
            values = _quartiles(trace[column], edges)
            findings.arrays[column] = NamedArray(("stretch", "quartile"), values, {"quantile": [0.25, 0.5, 0.75]})
    findings.arrays |= _of_probes(context, steps)
    return findings


def window_rows(metric: str, recorded: np.ndarray, values: np.ndarray, steps: Sequence[int]) -> list[Row]:
    """For each of the ascending `steps` the median of the finite `values` recorded after the step before it, up to it.

    Steps before which nothing was recorded since the one before have no row.
    """
    rows = []
    before = -math.inf
    for step in steps:
        inside = values[(recorded > before) & (recorded <= step)]
        inside = inside[np.isfinite(inside)]
        if len(inside):
            rows.append(Row(metric, float(np.median(inside)), step=step, n=len(inside), estimator="median"))
        before = step
    return rows


def stretches(count: int, most: int) -> list[int]:
    """Edges that cut `count` rows into at most `most` stretches, whose lengths grow in proportion to their place."""
    if count <= most:
        return list(range(count + 1))
    edges = np.unique(np.round(np.geomspace(1, count + 1, most + 1)).astype(np.int64) - 1)
    return [int(edge) for edge in edges]


def _quartiles(values: np.ndarray, edges: Sequence[int]) -> np.ndarray:
    found = np.full((len(edges) - 1, 3), np.nan)
    for place, (first, last) in enumerate(pairwise(edges)):
        inside = values[first:last]
        inside = inside[np.isfinite(inside)]
        if len(inside):
            found[place] = np.quantile(inside, (0.25, 0.5, 0.75))
    return found


def _of_probes(context: SeriesContext, steps: Sequence[int]) -> Mapping[str, NamedArray]:
    """Norms of the mean gradient, and medians of the single samples' norms, that `gradient_flow` filed for the whole network."""
    arrays: dict[str, NamedArray] = {"step": NamedArray(("step",), np.array(steps, np.int64))}
    for name in context.probes:
        found: dict[str, list[Any]] = {"mean_norm": [], "median_norm": []}
        for step in steps:
            at = context.at(step)
            mean, quantiles = (at.found("gradient_flow", name, item) for item in ("mean_norm", "norm_quantiles"))
            found["mean_norm"].append(math.nan if mean is None else float(mean[0]))
            found["median_norm"].append(
                math.nan if quantiles is None else float(quantiles[0, quantiles.shape[1] // 2])
            )
        for item, values in found.items():
            if np.isfinite(values).any():
                arrays[f"{name}/{item}"] = NamedArray(("step",), np.array(values))
    return arrays


_WINDOW = "median over the updates recorded since the checkpoint before"
ANALYSIS = register(
    Analysis(
        name="training_trace", version=1, scope="series", title="Training trace",
        question="What did the training record, and does the audit see the same?", options=TrainingTraceOptions,
        compute=compute, draw=draw, needs=frozenset({"trace"}), builds_on=("gradient_flow",),
        metrics=(
            Metric("recorded_loss", "as recorded", "(-∞, ∞)", f"Loss of the batches in training, {_WINDOW}.", "", "none"),
            Metric("recorded_gradient_norm", "as recorded", "[0, ∞)", f"Norm of the batches' gradients in training, {_WINDOW}.", "", "none"),
            Metric("recorded_rate", "as recorded", "[0, ∞)", f"Step size of the updates, {_WINDOW}.", "", "none"),
        ),
    )
)  # fmt: skip
