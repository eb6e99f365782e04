"""Runs side by side: how far back the gradient reaches in each, and when each of them solves the task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import Field

from stratascope.errors import DamagedStoreError, DoesNotApply, StoreError
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Analysis, CaptureRequest, Findings, Metric, NamedArray, Options, register
from stratascope.tasks.contexts import CheckpointContext, CohortContext, SeriesContext
from stratascope.tasks.representation.outputs import gather
from stratascope.tasks.sequence.lags import marked_lags
from stratascope.tasks.sequence.memory_comparison_drawing import draw

_METRICS = ("gradient_share_at_lag", "solved_step")


class MemoryComparisonOptions(Options):
    """What counts as solved."""

    solved_above: float = Field(default=0.9, gt=0, le=1)
    """A run has solved the task from the first checkpoint on from which its accuracy stays at or above this; for numbers,
    its coefficient of determination."""


@dataclass(frozen=True)
class RunMemory:
    """One run on one probe."""

    run: str
    layer: str
    state: str
    cell: str
    steps: list[int]
    profiles: np.ndarray
    """float64 (step, lag): mean gradient norms."""
    band: np.ndarray
    """float64 (band, lag): mean, low and high of the newest step."""
    window: int
    quality: np.ndarray
    """float64 (step,): accuracy, or the coefficient of determination; NaN where it is not known."""
    measure: str


def compute(context: CohortContext, options: MemoryComparisonOptions) -> Findings:
    """Rows by probe, run and step; below `<probe>/<run>/` arrays `gradient` (step, lag), `newest` (band, lag) and `quality`
    (step,). Of each run the last recurrent layer speaks, by its cell state where it has one.

    Raises DoesNotApply where no two runs have gradients through time on one probe.
    """
    findings = Findings()
    for probe in context.probes:
        found = [run_memory(series, probe) for series in context.runs.values()]
        runs = [item for item in found if item is not None]
        if len(runs) < 2:
            continue
        for item in runs:
            findings.rows += list(_rows(probe, item, options))
            findings.arrays |= _arrays(probe, item)
    if not findings.arrays:
        raise DoesNotApply(
            "fewer than two runs have gradients through time on one probe: nothing to lay side by side."
        )
    return findings


def run_memory(series: SeriesContext, probe: str) -> RunMemory | None:
    """What one run filed; None where it filed no gradients through time."""
    steps, profiles = [], []
    band: np.ndarray | None = None
    about: Mapping[str, Any] = {}
    place: list[str] = []
    for step in sorted(series.steps):
        checkpoint = series.at(step)
        place = _leading(checkpoint, probe) or []
        values = checkpoint.found("gradient_through_time", probe, *place, "profile") if place else None
        if values is None:
            continue
        band, about = values, checkpoint.found_attributes("gradient_through_time", probe, *place, "profile")
        steps.append(step)
        profiles.append(values[0].astype(np.float64))
    if band is None:
        return None
    width = max(len(line) for line in profiles)
    stacked = np.stack([np.pad(line, (0, width - len(line)), constant_values=np.nan) for line in profiles])
    quality = np.array([_quality(series.at(step), probe) for step in steps])
    measure = "coefficient of determination" if series.subject.task == "regression" else "accuracy"
    *layer, state = _leading(series.at(steps[-1]), probe) or ["", ""]
    return RunMemory(
        series.run, "/".join(layer), state, about["cell"], steps, stacked, band.astype(np.float64), about["window"],
        quality, measure,
    )  # fmt: skip


def _leading(checkpoint: CheckpointContext, probe: str) -> list[str] | None:
    """Where the last layer's profile lies, of its cell state where it has one."""
    ends = [path.split("/")[:-1] for path in checkpoint.found_arrays("gradient_through_time", probe) if path.endswith("/profile")]  # fmt: skip
    if not ends:
        return None
    last = max(end[:-1] for end in ends)
    return min(end for end in ends if end[:-1] == last)  # "cell" comes before "hidden"


def _quality(checkpoint: CheckpointContext, name: str) -> float:
    """The share of right answers, or the coefficient of determination; NaN where outputs or targets say nothing."""
    probe = checkpoint.probes[name]
    if checkpoint.subject.task == "none" or probe.targets is None:
        return float("nan")
    try:
        answers = gather(checkpoint, name, probe)
    except DamagedStoreError:
        raise
    except (DoesNotApply, StoreError):
        return float("nan")
    if answers.bad:
        return float("nan")
    if answers.predicted is None or answers.targets is None:
        return answers.r_squared
    return float((answers.predicted == answers.targets).mean())


def _rows(probe: str, found: RunMemory, options: MemoryComparisonOptions) -> Iterator[Row]:
    about: dict[str, Any] = {"probe": probe, "run": found.run, "layer": found.layer}
    convention = f"cell={found.cell};state={found.state};window={found.window}"
    for step, line in zip(found.steps, found.profiles, strict=True):
        known = np.flatnonzero(np.isfinite(line))
        if not len(known) or not line[0] > 0:
            reason = "there is no gradient at lag 0"
            yield Row("gradient_share_at_lag", step=step, status="does_not_apply", reason=reason, **about)
            continue
        for lag in marked_lags(int(known[-1]) + 1)[1:]:
            yield Row("gradient_share_at_lag", float(line[lag] / line[0]), step=step, part=f"lag={lag}", convention=convention, **about)  # fmt: skip
    solved = solved_from(found.steps, found.quality, options.solved_above)
    convention = f"{found.measure} at least {options.solved_above:g}"
    if solved is not None:
        yield Row("solved_step", float(solved), convention=convention, **about)
        return
    known = np.flatnonzero(np.isfinite(found.quality))
    reason = f"{found.measure} ends at {found.quality[known[-1]]:.2f}" if len(known) else "there are no answers to judge"  # fmt: skip
    yield Row("solved_step", status="does_not_apply", reason=reason, convention=convention, **about)


def solved_from(steps: list[int], quality: np.ndarray, above: float) -> int | None:
    """The first step from which on `quality` (step,) stays at or above `above`; None where it does not at the end."""
    below = np.flatnonzero(~(quality >= above))
    if not len(below):
        return steps[0]
    return None if below[-1] == len(steps) - 1 else steps[int(below[-1]) + 1]


def _arrays(probe: str, found: RunMemory) -> dict[str, NamedArray]:
    about = {
        "step": found.steps, "layer": found.layer, "state": found.state, "cell": found.cell, "window": found.window,
        "measure": found.measure,
    }  # fmt: skip
    place = f"{probe}/{encode_path_part(found.run)}"
    missing = found.profiles.shape[1] - found.band.shape[1]
    newest = np.pad(found.band, ((0, 0), (0, missing)), constant_values=np.nan).astype(np.float32)
    return {
        f"{place}/gradient": NamedArray(("step", "lag"), found.profiles.astype(np.float32), about),
        f"{place}/newest": NamedArray(("band", "lag"), newest, about | {"band": ["mean", "low", "high"]}),
        f"{place}/quality": NamedArray(("step",), found.quality.astype(np.float32), about),
    }  # fmt: skip


ANALYSIS = register(
    Analysis(
        name="memory_comparison", version=1, scope="cohort", title="Memory of several runs",
        question="Which of these networks can learn from far back, and which of them did?",
        options=MemoryComparisonOptions, compute=compute, draw=draw, builds_on=("gradient_through_time",),
        request=lambda options: CaptureRequest(layers=("@output",)),
        metrics=(
            Metric("gradient_share_at_lag", "fraction", "[0, ∞)", "Mean gradient norm of the loss by the last recurrent layer's state (c of an LSTM, else h) `lag` steps back, by that at lag 0: so that runs, states and checkpoints of different scale can be laid side by side.", "Bengio et al. 1994; Pascanu et al. 2013", "permutation of units and samples; scale of the loss and of the state"),
            Metric("solved_step", "training steps", "[0, ∞)", "The first checkpoint from which on the accuracy stays at or above `solved_above`; for numbers the coefficient of determination. `does_not_apply` where it is below at the last checkpoint.", "", "order of the samples"),
        ),
    )
)  # fmt: skip
