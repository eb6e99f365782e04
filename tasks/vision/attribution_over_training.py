"""How much the maps of the same samples change from checkpoint to checkpoint, by method."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
from pydantic import Field

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, Options, register
from stratascope.tasks.contexts import CheckpointContext, SeriesContext
from stratascope.tasks.representation.resampling import percentile_interval
from stratascope.tasks.vision.attribution_over_training_drawing import draw
from stratascope.tasks.vision.map_similarity import cosines, rank_correlations, structural_similarities

Measure = Callable[[np.ndarray, np.ndarray], np.ndarray]
MEASURES: dict[str, Measure] = {
    "cosine": cosines, "spearman": rank_correlations,
    "ssim": lambda first, second: structural_similarities(np.abs(first).sum(1), np.abs(second).sum(1)),
}  # fmt: skip
"""Of maps (sample, channel, y, x); the structure is that of the sizes, added over channels, without the sign."""


class AttributionOverTrainingOptions(Options):
    """Which samples and methods are followed says `attribution`."""

    rounds: int = Field(default=200, ge=20)
    """Of the bootstrap."""
    seed: int = Field(default=0, ge=0)


def compute(context: SeriesContext, options: AttributionOverTrainingOptions) -> Findings:
    """Rows by probe, method, measure and step; arrays `<probe>/<method>/<measure>` (step, attribution_sample): each map
    against the one at the checkpoint before. Raises DoesNotApply where the run has one checkpoint only.
    """
    if len(context.steps) < 2:
        count = "one checkpoint" if context.steps else "no checkpoint"
        raise DoesNotApply(f"a change of maps needs two checkpoints or more; the run has {count}.")
    findings = Findings()
    contexts = [context.at(step) for step in sorted(context.steps)]
    for probe in context.probes:
        methods = _methods(contexts, probe)
        if not methods:
            reason = f"no maps are filed for probe {probe!r} at two checkpoints; `attribution` says why."
            findings.rows.append(
                Row("attribution_similarity", probe=probe, status="does_not_apply", reason=reason)
            )
        for method in methods:
            _follow(contexts, probe, method, options, findings)
    return findings


def _methods(contexts: list[CheckpointContext], probe: str) -> list[str]:
    """Methods with maps at two checkpoints or more, by name."""
    counts: dict[str, int] = {}
    for context in contexts:
        for path in context.found_arrays("attribution", probe):
            method, _, name = path.rpartition("/")
            if name == "map":
                counts[method] = counts.get(method, 0) + 1
    return sorted(method for method, count in counts.items() if count > 1)


def _follow(
    contexts: list[CheckpointContext], probe: str, method: str, options: AttributionOverTrainingOptions, findings: Findings
) -> None:  # fmt: skip
    last = next(maps for _, maps in _maps(reversed(contexts), probe, method))
    before: tuple[int, np.ndarray] | None = None
    steps: list[int] = []
    kept: dict[str, list[np.ndarray]] = {name: [] for name in MEASURES}
    for step, maps in _maps(contexts, probe, method):
        comparisons: list[tuple[str, np.ndarray, int | None]] = [("against=last", last, None)]
        if before is not None and before[1].shape == maps.shape:
            comparisons += [
                ("against=previous", before[1], before[0]),
                # What two maps have in common that the sample has no part in.
                ("against=previous;null=other_sample", np.roll(before[1], 1, axis=0), before[0]),
            ]
            steps.append(step)
        for name, measure in MEASURES.items():
            for part, other, other_step in comparisons:
                values = _compared(measure, maps, other)
                if part == "against=previous":
                    kept[name].append(values)
                fields = f"method={method};measure={name};{part}"
                findings.rows.append(_row(values, fields, probe, step, other_step, options))
        before = step, maps
    if steps:
        findings.arrays[f"{probe}/{method}/step"] = NamedArray(("step",), np.array(steps, np.int64))
        for name, lines in kept.items():
            values = np.stack(lines).astype(np.float32)
            findings.arrays[f"{probe}/{method}/{name}"] = NamedArray(("step", "attribution_sample"), values)


def _maps(contexts: Iterable[CheckpointContext], probe: str, method: str) -> Iterator[tuple[int, np.ndarray]]:
    for context in contexts:
        maps = context.found("attribution", probe, method, "map")
        if maps is not None:
            yield context.step, maps


def _compared(measure: Measure, maps: np.ndarray, other: np.ndarray) -> np.ndarray:
    """float64 (sample,): NaN where a map is not finite."""
    sound = np.isfinite(maps).all((1, 2, 3)) & np.isfinite(other).all((1, 2, 3))
    found = np.full(len(maps), np.nan)
    if sound.any():
        found[sound] = measure(maps[sound], other[sound])
    return found


def _row(
    values: np.ndarray, part: str, probe: str, step: int, other_step: int | None, options: AttributionOverTrainingOptions
) -> Row:  # fmt: skip
    known = values[np.isfinite(values)]
    if not len(known):
        reason = "the maps are zero everywhere, or not finite"
        return Row("attribution_similarity", probe=probe, part=part, step=step, other_step=other_step, status="does_not_apply", reason=reason)  # fmt: skip
    low, high = float("nan"), float("nan")
    if len(known) > 1:
        drawn = np.random.default_rng([options.seed, len(known)]).integers(
            len(known), size=(options.rounds, len(known))
        )
        low, high = percentile_interval(np.median(known[drawn], axis=1))
    return Row(
        "attribution_similarity", float(np.median(known)), probe=probe, part=part, n=len(known), low=low, high=high,
        step=step, other_step=other_step, estimator="median over samples, interval by bootstrap",
    )  # fmt: skip


ANALYSIS = register(
    Analysis(
        name="attribution_over_training", version=1, scope="series", title="Attribution over training",
        question="When do the maps of the same pictures settle?",
        options=AttributionOverTrainingOptions, compute=compute, draw=draw, builds_on=("attribution",),
        metrics=(
            Metric("attribution_similarity", "1", "[-1, 1]", "How alike the maps of the same samples by one `method` are at two checkpoints, this one and that before (`against=previous`) or the last: cosine, Spearman's rank correlation (both over channels and pixels), or structural similarity of their sizes, added over channels and divided by their largest (`measure`). Median over the samples, interval by bootstrap over them; `null=other_sample` compares each map with another sample's.", "Adebayo et al. 2018, section 4; Wang et al. 2004", "a factor on all maps of a checkpoint; order of the samples"),
        ),
    )
)  # fmt: skip
