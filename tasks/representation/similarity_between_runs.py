"""How alike the layers of different runs are, whatever their architectures, on the same probe."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from pydantic import Field

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Analysis, Findings, NamedArray, register
from stratascope.tasks.contexts import CheckpointContext, CohortContext, SeriesContext
from stratascope.tasks.representation.decomposition import decomposed_samples
from stratascope.tasks.representation.pictures import even_choice
from stratascope.tasks.representation.similarity import PairOptions, metrics
from stratascope.tasks.representation.similarity_between_runs_drawing import draw
from stratascope.tasks.representation.similarity_measures import MEASURES
from stratascope.tasks.representation.similarity_pairs import Item, Pairs, chosen_layers, read_item


class BetweenRunsOptions(PairOptions):
    """What is compared across runs: the newest checkpoint of each, and layers of one name at steps that both have."""

    common_steps: int = Field(default=12, ge=0)
    """At so many of the steps that two runs share, evenly chosen, layers of the same name are compared."""


def compute(context: CohortContext, options: BetweenRunsOptions) -> Findings:
    """Arrays `<probe>/<measure>/<run>/<other run>/layer_by_layer` (layer, other_layer) at the newest step of both runs.

    In the ledger `against=run` holds every layer of one run against every layer of the other, with an interval where
    they have one name or are nearest to each other; `against=same_step` layers of one name at one step. Raises
    DoesNotApply where there are no two runs that saw the same samples.
    """
    from threadpoolctl import threadpool_limits

    findings = Findings()
    reasons = [] if len(context.runs) > 1 else ["there is one run only: nothing to compare it with."]
    # Sums in BLAS depend on the number of threads: with one, every worker files the same bytes.
    with threadpool_limits(limits=1):
        for probe in context.probes:
            for one, other in combinations(context.runs.values(), 2):
                try:
                    _compare(one, other, options, probe, findings)
                except DoesNotApply as reason:
                    reasons.append(f"{one.run} and {other.run} on probe {probe!r}: {reason}.")
                    about: dict[str, Any] = {"probe": probe, "run": one.run, "other_run": other.run}
                    findings.rows += [
                        Row(MEASURES[name].metric, part="against=run", status="does_not_apply", reason=str(reason), **about)
                        for name in options.measures
                    ]  # fmt: skip
    if not findings.arrays:
        raise DoesNotApply(" ".join(dict.fromkeys(reasons)) or "there is no probe.")
    return findings


def _compare(
    one: SeriesContext, other: SeriesContext, options: BetweenRunsOptions, probe: str, findings: Findings
) -> None:
    newest = _newest(one, probe), _newest(other, probe)
    if not _same_samples(*newest, probe):
        raise DoesNotApply("their layers were decomposed on different samples")
    layers = [chosen_layers([item], probe, options.layers) for item in newest]
    if not all(layers):
        raise DoesNotApply(f"no layer that is kept matches {', '.join(options.layers)} in one of them")
    first, second = ([read_item(item, probe, layer) for layer in names] for item, names in zip(newest, layers, strict=True))  # fmt: skip
    _check_memory([*first, *second], options)
    for measure in options.every_measure:
        pairs = Pairs(measure, options.bootstrap, options.permutations, options.seed)
        block = _block(pairs, first, second)
        if measure.name in options.matrices:
            path = "/".join(map(encode_path_part, (probe, measure.name, one.run, other.run)))
            about = {
                "probe": probe, "measure": measure.name, "run": one.run, "other_run": other.run, "step": newest[0].step,
                "other_step": newest[1].step, "layers": layers[0], "other_layers": layers[1],
            }  # fmt: skip
            findings.arrays[f"{path}/layer_by_layer"] = NamedArray(("layer", "other_layer"), block, about)
        if measure.name in options.measures:
            findings.rows += _rows(pairs, first, second, block)
            if not measure.symmetric:
                findings.rows += _rows(
                    pairs, first, second, _block(pairs, second, first).T, "direction=from_other"
                )
            findings.rows += _at_common_steps(pairs, one, other, options, probe)


def _newest(series: SeriesContext, probe: str) -> CheckpointContext:
    """The last checkpoint of which layers are kept."""
    reason = f"run {series.run!r} has no checkpoint"
    for step in reversed(series.steps):
        try:
            decomposed_samples(series.at(step), probe)
        except DoesNotApply as error:
            reason = str(error)
            continue
        return series.at(step)
    raise DoesNotApply(reason)


def _same_samples(one: CheckpointContext, other: CheckpointContext, probe: str) -> bool:
    return np.array_equal(decomposed_samples(one, probe), decomposed_samples(other, probe))


def _check_memory(items: list[Item], options: BetweenRunsOptions) -> None:
    if sum(item.bytes for item in items) > options.memory << 20:
        raise DoesNotApply(
            f"the layers of both runs take more than {options.memory} MiB: allow more (`memory`), or compare fewer layers"
        )


def _block(pairs: Pairs, first: list[Item], second: list[Item]) -> np.ndarray:
    """float64 (layer, other_layer)."""
    count = len(first)
    needed = np.zeros((count + len(second),) * 2, bool)
    needed[:count, count:] = True
    return pairs.matrix([*first, *second], needed)[:count, count:]


def _rows(pairs: Pairs, first: list[Item], second: list[Item], block: np.ndarray, way: str = "") -> list[Row]:
    """Every pair; with an interval and a null those of one name, and each layer's nearest."""
    distance = -block if pairs.measure.kind == "similarity" else block
    distance = np.where(np.isfinite(distance), distance, np.inf)
    rows = []
    for place, one in enumerate(first):
        for number, other in enumerate(second):
            nearest = number == distance[place].argmin() or place == distance[:, number].argmin()
            close = nearest or one.layer == other.layer
            # What predicts and what is predicted change places; the row stays that of the first run's layer.
            given = (other, one) if way else (one, other)
            value = float(block[place, number])
            ends = pairs.interval(*given, value) if close else (float("nan"), float("nan"))
            part = ";".join(filter(None, ("against=run", way)))
            rows += pairs.rows(
                *given, value, ends, part, null=close, layer=one.layer, run=one.context.run, step=one.context.step,
                other_run=other.context.run, other_step=other.context.step, other_layer=other.layer,
            )  # fmt: skip
    return rows


def _at_common_steps(
    pairs: Pairs, one: SeriesContext, other: SeriesContext, options: BetweenRunsOptions, probe: str
) -> list[Row]:
    """Layers of one name, at steps that both runs have; those that cannot be compared there are left out."""
    common = sorted(set(one.steps) & set(other.steps))
    rows = []
    for step in even_choice(common, options.common_steps) if options.common_steps > 1 else ():
        here, there = one.at(step), other.at(step)
        try:
            if not _same_samples(here, there, probe):
                continue
        except DoesNotApply:
            continue
        shared = [name for name in chosen_layers([here], probe, options.layers) if name in chosen_layers([there], probe, options.layers)]  # fmt: skip
        for layer in shared:
            first, second = read_item(here, probe, layer), read_item(there, probe, layer)
            value = float(_block(pairs, [first], [second])[0, 0])
            rows += pairs.rows(
                first, second, value, pairs.interval(first, second, value), "against=same_step", run=one.run,
                other_run=other.run, other_step=step, other_layer=layer,
            )  # fmt: skip
    return rows


ANALYSIS = register(
    Analysis(
        name="similarity_between_runs", version=1, scope="cohort", title="Similarity between runs", question="Which layers of two runs do the same?",
        options=BetweenRunsOptions, compute=compute, draw=draw, metrics=metrics(), builds_on=("decomposition",),
    )
)  # fmt: skip
