"""When the cells came to be that follow a feature at the end of the training."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, Options, register
from stratascope.tasks.contexts import SeriesContext
from stratascope.tasks.sequence.found_cells import FoundCells, inputs_of
from stratascope.tasks.sequence.interpretable_cells_over_training_drawing import draw


class InterpretableCellsOverTrainingOptions(Options):
    """Which features and samples says `interpretable_cells`."""

    level: float = Field(default=0.001, gt=0, lt=1)
    """Only cells with a corrected p-value below, at the last checkpoint, have a step of formation."""
    share: float = Field(default=0.5, gt=0, le=1)
    """A cell is formed where its score is at least so much of its last one, and stays so."""


def formed_at(scores: np.ndarray, share: float) -> int:
    """The place in `scores` (step,) from which on all are at least `share` of the last, which is above 0."""
    below = np.flatnonzero(~(scores >= share * scores[-1]))
    return int(below[-1]) + 1 if len(below) else 0


def compute(context: SeriesContext, options: InterpretableCellsOverTrainingOptions) -> Findings:
    """Rows by feature, and arrays `<probe>/<input>/{followed, best, best_unit}` (step, feature).

    Raises DoesNotApply where the run has one checkpoint only.
    """
    steps = sorted(context.steps)
    if len(steps) < 2:
        raise DoesNotApply("a history needs two checkpoints or more; the run has one.")
    findings = Findings()
    for probe in context.probes:
        names = inputs_of(context.store, context.run, steps[-1], probe)
        for name in names:
            found = [FoundCells(context.store, context.run, step, probe, name) for step in steps]
            _follow([one for one in found if one.facts], options, findings)
        if not names:
            reason = "`interpretable_cells` found nothing on this probe at the last checkpoint; its rows say why"
            findings.rows += [Row(metric.name, probe=probe, status="does_not_apply", reason=reason) for metric in ANALYSIS.metrics]  # fmt: skip
    return findings


def _follow(found: list[FoundCells], options: InterpretableCellsOverTrainingOptions, findings: Findings) -> None:
    last = found[-1]
    features = last.facts["features"]
    steps = np.array([one.step for one in found], np.int64)
    followed = np.full((len(found), len(features)), np.nan)
    best, best_unit = followed.copy(), np.full(followed.shape, -1, np.int64)
    for row, one in enumerate(found):
        matrices = one.matrices("correlation")
        for column, feature in enumerate(features):
            followed[row, column] = _score(matrices, last, column)
            place = one.place_of(feature)
            if place is not None:
                best[row, column] = one.numbers["score"][place]
                best_unit[row, column] = one.numbers["unit"][place]
    for column, feature in enumerate(features):
        findings.rows += _rows(last, column, feature, steps, followed[:, column], options)
    facts = {"features": features, "titles": last.facts["titles"], "layers": last.facts["layers"], "kinds": last.facts["kinds"]}  # fmt: skip
    root = f"{encode_path_part(last.probe)}/{encode_path_part(last.name)}"
    findings.arrays[f"{root}/step"] = NamedArray(("step",), steps)
    for key, values in (("followed", followed), ("best", best)):
        findings.arrays[f"{root}/{key}"] = NamedArray(("step", "feature"), values.astype(np.float32), facts)
    findings.arrays[f"{root}/best_unit"] = NamedArray(("step", "feature"), best_unit, facts)


def _score(matrices: dict[tuple[str, str], tuple[np.ndarray, list[str]]], last: FoundCells, column: int) -> float:
    """The oriented correlation at one step of the unit that is best at the last one; NaN where it is not there."""
    values, names = matrices.get(
        (last.facts["layers"][column], last.facts["kinds"][column]), (np.empty((0, 0)), [])
    )
    unit, feature = int(last.numbers["unit"][column]), last.facts["features"][column]
    if feature not in names or unit >= len(values):
        return float("nan")
    return float(values[unit, names.index(feature)] * last.numbers["sign"][column])


def _rows(
    last: FoundCells, column: int, feature: str, steps: np.ndarray, scores: np.ndarray, options: InterpretableCellsOverTrainingOptions
) -> list[Row]:  # fmt: skip
    unit, kind = int(last.numbers["unit"][column]), last.facts["kinds"][column]
    shared: dict[str, Any] = {
        "probe": last.probe, "layer": last.facts["layers"][column], "part": f"feature={feature};state={kind};unit={unit}",
    }  # fmt: skip
    rows = [
        Row("followed_cell_score", float(score), step=int(step), **shared) for step, score in zip(steps, scores, strict=True) if np.isfinite(score)
    ]  # fmt: skip
    if not np.isfinite(scores).all():
        reason = "the unit is not there, or constant, at some checkpoints"
    elif not last.numbers["corrected"][column] < options.level:
        reason = f"the feature is not tracked at the last checkpoint (corrected p {last.numbers['corrected'][column]:.2g})"
    elif scores[-1] <= 0:
        reason = "its score at the last checkpoint is not above 0"
    else:
        place = formed_at(scores, options.share)
        convention = f"from then on at least {options.share:g} of the last score" + ("; so at the first checkpoint already" if place == 0 else "")  # fmt: skip
        rows.append(Row("cell_formation_step", float(steps[place]), n=len(steps), convention=convention, **shared))
        reason = ""
    if reason:
        rows.append(Row("cell_formation_step", status="does_not_apply", reason=reason, **shared))
    if np.isfinite(scores[[0, -1]]).all():
        rows.append(
            Row(
                "cell_feature_gain",
                float(scores[-1] - scores[0]),
                n=len(steps),
                other_step=int(steps[0]),
                **shared,
            )
        )
    return rows


ANALYSIS = register(
    Analysis(
        name="interpretable_cells_over_training", version=1, scope="series", title="Interpretable cells over training",
        question="When did the cell form that follows a feature?",
        options=InterpretableCellsOverTrainingOptions, compute=compute, draw=draw, builds_on=("interpretable_cells",),
        metrics=(
            Metric("followed_cell_score", "1", "[-1, 1]", "At each checkpoint, the `cell_feature_score` of the unit that is best for the feature at the last checkpoint.", "", "order of the samples"),
            Metric("cell_formation_step", "step", "[0, ∞)", "The first checkpoint from which on that score is never less than `share` of its last value; for features that are tracked at the last checkpoint.", "", "order of the samples"),
            Metric("cell_feature_gain", "1", "[-2, 2]", "That score at the last checkpoint less that at the first one.", "", "order of the samples"),
        ),
    )
)  # fmt: skip
