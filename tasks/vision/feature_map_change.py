"""How much the feature maps of the same samples change from checkpoint to checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.tasks.analysis import Analysis, Figure, Findings, Metric, Options, register
from stratascope.tasks.contexts import CheckpointContext, SeriesContext, View
from stratascope.tasks.representation.pictures import figure_key, grid_of, leading_probe, table_of, worded

MAPS = "feature_maps"
_METRIC = "feature_map_change"
_COLUMNS = ("step", "other_step", "probe", "layer", "part", "value", "low", "high", "n", "convention")


class FeatureMapChangeOptions(Options):
    """Which samples, layers and channels are followed is said by `feature_maps`."""


def compute(context: SeriesContext, options: FeatureMapChangeOptions) -> Findings:
    """Rows by probe, layer and step, against the checkpoint before and against the first.

    Raises DoesNotApply where the run has one checkpoint only.
    """
    steps = sorted(context.steps)
    if len(steps) < 2:
        raise DoesNotApply("a change needs two checkpoints or more.")
    findings = Findings()
    for probe in context.probes:
        contexts = [context.at(step) for step in steps]
        followed = {
            found.step: {path.rpartition("/")[0] for path in found.found_arrays(MAPS, probe) if path.endswith("/maps")}
            for found in contexts
        }  # fmt: skip
        for layer in sorted(set().union(*followed.values())):
            known = [found for found in contexts if layer in followed[found.step]]
            findings.rows += _of_layer(known, probe, layer)
        if not any(followed.values()):
            reason = f"no feature maps of probe {probe!r} are stored."
            findings.rows.append(Row(_METRIC, probe=probe, status="does_not_apply", reason=reason))
    return findings


def _of_layer(contexts: list[CheckpointContext], probe: str, layer: str) -> Iterator[Row]:
    """Only the first checkpoint, the one at hand and the one before are held."""
    first = before = None
    for context in contexts:
        maps = _read(context, probe, layer)
        if before is not None and first is not None:
            yield _row("against=previous", probe, layer, before, maps)
            yield _row("against=first", probe, layer, first, maps)
        first = first or maps
        before = maps


_Maps = tuple[int, np.ndarray, np.ndarray]
"""A step, the maps float32 (sample, channel, y, x), and the samples' ids followed by the channels' numbers."""


def _read(context: CheckpointContext, probe: str, layer: str) -> _Maps:
    values, channels = (context.found(MAPS, probe, layer, name) for name in ("maps", "channel"))
    identities = context.found(MAPS, probe, "sample_id")
    assert values is not None
    assert channels is not None
    assert identities is not None
    return context.step, values.astype(np.float32), np.array([*identities.tolist(), *channels.tolist()], dtype=str)


def _row(part: str, probe: str, layer: str, before: _Maps, after: _Maps) -> Row:
    from stratascope.tasks.vision.layer_maps import relative_change

    about: dict[str, Any] = {
        "probe": probe, "layer": layer, "part": part, "step": after[0], "other_step": before[0], "n": len(after[1]),
    }  # fmt: skip
    if before[1].shape != after[1].shape or not np.array_equal(before[2], after[2]):
        reason = f"other samples or channels were stored at step {before[0]}."
        return Row(_METRIC, status="does_not_apply", reason=reason, **about)
    found = relative_change(before[1], after[1])
    if not np.isfinite(found).all():
        return Row(_METRIC, status="failed", reason="the maps are not finite.", **about)
    channels = after[1].shape[1]
    convention = (
        f"{channels} channel{'s' if channels > 1 else ''}; smallest {found.min():.3g}, largest {found.max():.3g}"
    )
    return Row(
        _METRIC, math.fsum(found) / len(found), estimator="mean over samples", convention=convention, **about
    )


def draw(view: View, options: FeatureMapChangeOptions) -> Iterator[Figure]:
    """A heat-map of layer by step for each way of comparing."""
    from stratascope.tasks.report.style import heatmap

    every = view.metric(_METRIC)
    if not len(every):
        return
    probe = leading_probe(view, every["probe"].unique())
    layers = _in_order(view, probe, set(every.loc[every["probe"] == probe, "layer"]))
    for part in ("against=previous", "against=first"):
        rows = view.metric(_METRIC, probe=probe, part=part)
        if not len(rows):
            continue
        grid, steps = grid_of(rows, "layer", layers)
        high = np.unravel_index(int(np.nanargmax(grid)), grid.shape)
        last = grid[:, -1]
        gaps = (rows["step"] - rows["other_step"]).astype(int)
        numbers = {
            "layer": layers[high[0]], "value": float(grid[high]), "step": steps[high[1]], "n": int(rows["n"].max()),
            "probe": probe, "last": steps[-1], "still": layers[int(np.nanargmax(last))],
            "still_value": float(np.nanmax(last)), "shortest": int(gaps.min()), "longest": int(gaps.max()),
            "first": int(rows["other_step"].min()),
        }  # fmt: skip
        kind = part.partition("=")[2]
        yield worded(
            _WORDS[kind], numbers, key=figure_key("change", kind, probe), title=f"{_TITLES[kind]}, probe {probe}",
            svg=heatmap(grid, layers, [str(step) for step in steps], "relative change of the maps", "layer", "training step"),
            run=view.run, probe=probe, table=table_of(rows, _COLUMNS),
        )  # fmt: skip


def _in_order(view: View, probe: str, present: set[str]) -> list[str]:
    """`present` in the order in which the layers are executed, as the maps were stored."""
    from dataclasses import replace

    from stratascope.tasks.vision.stored_maps import stored_layers

    order = stored_layers(replace(view, analysis=MAPS), probe, view.steps) if view.steps else []
    return [layer for layer in order if layer in present] + sorted(present - set(order))


_TITLES = {
    "previous": "Change of the feature maps since the checkpoint before",
    "first": "Change of the feature maps since the first checkpoint",
}
_WORDS: dict[str, dict[str, str]] = {
    "previous": {
        "shows": "How far the maps of the same samples moved from each checkpoint to the next, by layer.",
        "reading": "0 is no change, 1 a change as large as the maps themselves, 2 maps turned into their opposite. Rows that go dark have settled.",
        "caution": "The largest change is {value:.2f}, in {layer} at step {step}; it is a mean over {n} samples of probe {probe}. Checkpoints are {shortest} to {longest} steps apart, and a longer way allows a larger change. At step {last} {still} still moves most, {still_value:.2f}.",
        "audience": "For those who ask which layers still learn.",
        "practitioner": "Layers that have been dark for long can be frozen; one that lights up late deserves a look at what changed then.",
        "researcher": "‖b − a‖ / ((‖a‖ + ‖b‖)/2) for each sample over the stored channels and all positions, then the mean. Unlike CKA it sees rotations and scale: a layer may move here without changing what it tells.",
    },
    "first": {
        "shows": "How far the maps of the same samples are from those of the first checkpoint, by layer.",
        "reading": "0 is no change, √2 is what unrelated maps of equal size give, 2 is the opposite. Along a row a layer leaves its start.",
        "caution": "The farthest is {layer} at step {step}, {value:.2f} from step {first}, as a mean over {n} samples of probe {probe}. A common offset of all places counts as much as a change of the pattern. At step {last} {still} is farthest, {still_value:.2f}.",
        "audience": "For readers who ask how much of the start is left.",
        "practitioner": "A layer that stays near its start does little that a random one would not do.",
        "researcher": "Maps of a fixed channel are comparable within a run only. Where scale grows by a factor s and nothing else changes the measure is 2(s − 1)/(s + 1).",
    },
}

ANALYSIS = register(
    Analysis(
        name="feature_map_change", version=1, scope="series", title="Change of feature maps",
        question="Which layers still change what they make of the same picture?",
        options=FeatureMapChangeOptions, compute=compute, draw=draw, builds_on=(MAPS,),
        metrics=(
            Metric(_METRIC, "1", "[0, 2]", "How far a layer's feature maps of the same samples moved since the checkpoint before (`against=previous`) or the first (`against=first`): ‖b − a‖ by the mean of both norms, for each sample over the stored channels and all positions, then the mean over samples. 0 where both are zero.", "", "one common scale; order of samples, channels and positions"),
        ),
    )
)  # fmt: skip
