"""What `drift` files of the layers: how far each moved, in which order, when, and whose neighbours changed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Findings, NamedArray
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.representation.change_points import changes, unsuited
from stratascope.tasks.representation.layer_paths import (
    FIRST,
    LAST_AUDIT,
    PREVIOUS,
    LayerPath,
    common_samples,
    layer_paths,
)
from stratascope.tasks.representation.movement import Distance, Weights, doublings, ranks
from stratascope.tasks.representation.neighbour_churn import chance_of_replacement
from stratascope.tasks.representation.resampling import percentile_interval

if TYPE_CHECKING:
    from stratascope.tasks.representation.drift import DriftOptions

_ESTIMATORS = {"cka": "debiased; 95 % bootstrap", "procrustes": "95 % bootstrap"}
_FLOOR = 0.95
_DIGITS = 9


def file_layers(
    contexts: list[CheckpointContext], probe: str, options: DriftOptions, since: int | None, findings: Findings
) -> None:
    """Add rows and arrays of all layers on `probe`; a row with the reason where nothing is decomposed."""
    try:
        samples, unfit = common_samples(contexts, probe)
    except DoesNotApply as reason:
        findings.rows += refusals(("layer_movement", "neighbour_churn"), str(reason), probe=probe)
        return
    weights = Weights.of(len(samples), options.rounds, options.seed)
    ranked: dict[str, dict[int, dict[str, Distance]]] = {PREVIOUS: {}, LAST_AUDIT: {}}
    others: dict[tuple[str, int], int] = {}
    for path in layer_paths(contexts, probe, options.measures, options.neighbours, weights, since, unfit):
        findings.rows += [
            Row("layer_movement", layer=path.layer, probe=probe, step=step, status="does_not_apply", reason=why)
            for step, why in path.missing.items()
        ]
        if len(path.steps) < 2:
            alone = f"one checkpoint has this layer; movement needs two (step {path.steps[0]} stands alone)"
            findings.rows += refusals(("layer_movement", "neighbour_churn"), alone, layer=path.layer, probe=probe)
            continue
        findings.rows += _movement_rows(path, probe)
        findings.rows += _churn_rows(path, probe, weights)
        findings.rows += _when(path, probe, options)
        findings.arrays |= _arrays(path, probe, samples)
        for against, steps in ranked.items():
            for step, (other, found) in path.moved[against].items():
                steps.setdefault(step, {})[path.layer] = found[options.measures[0]]
                others[against, step] = other
    findings.rows += _rank_rows(ranked, others, probe, options.measures[0], len(samples))


def refusals(metrics: tuple[str, ...], reason: str, **where: Any) -> list[Row]:
    """A row of each metric that says why it is not known."""
    return [Row(metric, status="does_not_apply", reason=reason, **where) for metric in metrics]


def _about(path: LayerPath, probe: str) -> dict[str, Any]:
    return {"layer": path.layer, "probe": probe, "n": path.samples, "convention": f"d={path.features}"}


def _movement_rows(path: LayerPath, probe: str) -> Iterator[Row]:
    for against, steps in path.moved.items():
        for step, (other, found) in steps.items():
            for measure, distance in found.items():
                part = f"measure={measure};against={against}"
                about = {**_about(path, probe), "step": step, "other_step": other}
                if not np.isfinite(distance.value):
                    reason = (
                        "the debiased self-similarity is not positive: the features are noise at this many samples"
                    )
                    yield Row("layer_movement", part=part, status="does_not_apply", reason=reason, **about)
                    continue
                low, high = percentile_interval(distance.rounds)
                sure: dict[str, Any] = {"estimator": _ESTIMATORS[measure], **about}
                yield Row("layer_movement", distance.value, part=part, low=low, high=high, **sure)
                if against != PREVIOUS:
                    continue
                scale = 1.0 / doublings(other, step)
                yield Row(
                    "layer_movement", distance.value * scale, part=f"{part};per=doubling", low=low * scale,
                    high=high * scale, **sure,
                )  # fmt: skip
                floor = float(np.quantile(distance.halves, _FLOOR))
                yield Row("layer_movement", floor, part=f"{part};null=split_half", **about)
    for measure, values in path.unrelated.items():
        low, high = percentile_interval(values)
        part = f"measure={measure};against={PREVIOUS};null=permuted"
        about = {**_about(path, probe), "step": path.steps[-1], "other_step": path.steps[-2]}
        if np.isfinite(values).all():
            yield Row("layer_movement", float(values.mean()), part=part, low=low, high=high, **about)


def _churn_rows(path: LayerPath, probe: str, weights: Weights) -> Iterator[Row]:
    about = _about(path, probe)
    about["convention"] += f";k={path.neighbours}"
    chance = chance_of_replacement(path.neighbours, path.samples)
    for step, before in zip(path.steps[1:], path.steps, strict=False):
        low, high = percentile_interval(weights.bootstrap @ path.churn[step])
        where = {**about, "step": step, "other_step": before}
        value = float(path.churn[step].mean(dtype=np.float64))
        yield Row("neighbour_churn", value, low=low, high=high, estimator="95 % bootstrap", **where)
        yield Row("neighbour_churn", chance, part="null=chance", **where)


def _rank_rows(
    ranked: dict[str, dict[int, dict[str, Distance]]],
    others: dict[tuple[str, int], int],
    probe: str,
    measure: str,
    samples: int,
) -> Iterator[Row]:
    """Ranks of the layers at each step, with the interval of each over the same bootstrap rounds for all layers."""
    for against, steps in ranked.items():
        for step, found in sorted(steps.items()):
            sound = {layer: item for layer, item in found.items() if np.isfinite(item.value)}
            if len(sound) < 2:
                continue
            # Layers that stand still differ by rounding, which gives them no order.
            values = ranks(np.round([item.value for item in sound.values()], _DIGITS))
            rounds = ranks(np.round([item.rounds for item in sound.values()], _DIGITS))
            for place, layer in enumerate(sound):
                low, high = percentile_interval(rounds[place].astype(np.float64))
                yield Row(
                    "movement_rank", float(values[place]), layer=layer, probe=probe, step=step, low=low, high=high,
                    part=f"measure={measure};against={against}", n=samples, estimator="95 % bootstrap",
                    convention=f"layers={len(sound)}", other_step=others[against, step],
                )  # fmt: skip


def _when(path: LayerPath, probe: str, options: DriftOptions) -> Iterator[Row]:
    for against in (PREVIOUS, FIRST):
        steps = sorted(path.moved[against])
        values = np.array([path.moved[against][step][1][options.measures[0]].value for step in steps])
        of = f"layer_movement;measure={options.measures[0]};against={against}"
        yield from change_rows(steps, values, of, options, {"layer": path.layer, "probe": probe})


def change_rows(
    steps: list[int], values: np.ndarray, of: str, options: DriftOptions, where: dict[str, Any]
) -> Iterator[Row]:
    """The changes of level of the curve called `of`, `values` (step,) at `steps`: where, how far, and how sure."""
    curve = {**where, "part": f"of={of}", "n": len(values)}
    if reason := unsuited(values):
        yield Row("change_point_count", status="does_not_apply", reason=reason, **curve)
        return
    found = changes(values, options.penalty, options.level, options.permutations, options.seed)
    yield Row("change_point_count", len(found), **curve)
    used = f"penalty={options.penalty:g} log n;least segment 2"
    for number, change in enumerate(found, 1):
        about: dict[str, Any] = {**where, "part": f"of={of};number={number}", "n": len(values), "convention": used}
        step, before = steps[change.place], steps[change.place - 1]
        yield Row("change_point_step", step, low=before, high=step, estimator="optimal partitioning", **about)
        yield Row("change_point_size", change.size, **about)
        tested = f"{options.permutations} permutations"
        yield Row("change_point_p_value", change.p_value, estimator=tested, **about)


def _arrays(path: LayerPath, probe: str, samples: np.ndarray) -> dict[str, NamedArray]:
    place = f"{encode_path_part(probe)}/{encode_path_part(path.layer)}"
    about = {"layer": path.layer, "probe": probe, "neighbours": path.neighbours}
    churn = np.full((len(path.steps), path.samples), np.nan, np.float32)
    for number, step in enumerate(path.steps[1:], 1):
        churn[number] = path.churn[step]
    found = {
        "step": NamedArray(("step",), np.asarray(path.steps, np.int64), about),
        "sample_id": NamedArray(("drift_sample",), samples, about),
        "churn": NamedArray(("step", "drift_sample"), churn, about),
    }
    assert path.nearest is not None
    for name, nearest in zip(("nearest_before", "nearest_after"), path.nearest, strict=True):
        found[name] = NamedArray(("drift_sample", "rank"), nearest.astype(np.int32), about)
    return {f"{place}/{name}": array for name, array in found.items()}
