"""How far the filters have turned since the first checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.tasks.analysis import Analysis, Figure, Findings, Metric, Options, register
from stratascope.tasks.contexts import CheckpointContext, SeriesContext, View
from stratascope.tasks.representation.pictures import grid_of, table_of, worded

_FILTERS = "filters"
_METRIC = "filter_cosine"
_COLUMNS = ("step", "other_step", "layer", "part", "value", "n", "convention")


class FilterChangeOptions(Options):
    """Which filters are followed is said by `filters`."""


def compute(context: SeriesContext, options: FilterChangeOptions) -> Findings:
    """Rows by layer and step. Raises DoesNotApply where the run has one checkpoint, or no kernels are stored."""
    steps = sorted(context.steps)
    if len(steps) < 2:
        raise DoesNotApply("a change needs two checkpoints or more.")
    contexts = [context.at(step) for step in steps]
    stored = {
        found.step: {path.rpartition("/")[0] for path in found.found_arrays(_FILTERS, _FILTERS) if path.endswith("/weights")}
        for found in contexts
    }  # fmt: skip
    layers = sorted(set().union(*stored.values()))
    if not layers:
        raise DoesNotApply("no kernels of convolutions are stored.")
    findings = Findings()
    for layer in layers:
        first = before = None
        for found in contexts:
            if layer not in stored[found.step]:
                continue
            here = _read(found, layer)
            if first is not None and before is not None:
                findings.rows += [
                    _row("against=first", layer, first, here),
                    _row("against=previous", layer, before, here),
                ]
            first, before = first or here, here
    return findings


_Kernels = tuple[int, np.ndarray, np.ndarray]


def _read(context: CheckpointContext, layer: str) -> _Kernels:
    weights, channels = (context.found(_FILTERS, _FILTERS, layer, name) for name in ("weights", "channel"))
    assert weights is not None
    assert channels is not None
    return context.step, weights, channels


def _row(part: str, layer: str, before: _Kernels, after: _Kernels) -> Row:
    from stratascope.tasks.vision.filter_statistics import cosines_between

    about: dict[str, Any] = {
        "layer": layer, "part": part, "step": after[0], "other_step": before[0], "n": len(after[1]),
    }  # fmt: skip
    if before[1].shape != after[1].shape or not np.array_equal(before[2], after[2]):
        reason = f"other filters were stored at step {before[0]}."
        return Row(_METRIC, status="does_not_apply", reason=reason, **about)
    if not (np.isfinite(before[1]).all() and np.isfinite(after[1]).all()):
        return Row(_METRIC, status="failed", reason="the weights are not finite.", **about)
    found = cosines_between(before[1], after[1])
    sound = found[np.isfinite(found)]
    if not len(sound):
        return Row(_METRIC, status="does_not_apply", reason="all filters are zero at one of the steps.", **about)
    convention = f"smallest {sound.min():.3g}, largest {sound.max():.3g}"
    return Row(
        _METRIC, float(sound.mean()), estimator="mean over filters", convention=convention, **(about | {"n": len(sound)})
    )  # fmt: skip


def draw(view: View, options: FilterChangeOptions) -> Iterator[Figure]:
    """A heat-map of layer by step: the cosine to the first checkpoint."""
    from stratascope.tasks.report.style import heatmap
    from stratascope.tasks.vision.stored_kernels import stored_kernels

    rows = view.metric(_METRIC, part="against=first")
    if not len(rows):
        return
    order = stored_kernels(replace(view, analysis=_FILTERS), view.steps[-1], _FILTERS) if view.steps else []
    present = set(rows["layer"])
    layers = [layer for layer in order if layer in present] + sorted(present - set(order))
    grid, steps = grid_of(rows, "layer", layers)
    last = grid[:, -1]
    low, high = layers[int(np.nanargmin(last))], layers[int(np.nanargmax(last))]
    size = int(rows["n"].max())
    numbers = {
        "first": int(rows["other_step"].min()), "last": steps[-1], "low": low, "low_value": float(np.nanmin(last)),
        "high": high, "high_value": float(np.nanmax(last)), "n": size,
    }  # fmt: skip
    yield worded(
        _WORDS, numbers, key="cosine-to-first", title="How much of the first checkpoint's filters is left",
        svg=heatmap(grid, layers, [str(step) for step in steps], "mean cosine to the first checkpoint", "layer", "training step"),
        run=view.run, table=table_of(rows, _COLUMNS),
    )  # fmt: skip


_WORDS: dict[str, str] = {
    "shows": "The cosine of each layer's filters with the same filters at step {first}, mean over filters.",
    "reading": "1 is the same direction as at the start, 0 a direction that has nothing to do with it. Rows that go dark were learned anew.",
    "caution": "At step {last} {low} has turned farthest ({low_value:.2f}) and {high} least ({high_value:.2f}). A mean hides single filters, and up to {n} go into one; the table has the smallest and the largest. If the first file is not the start of the training, nothing is said about the start.",
    "audience": "For those who ask what training made of a layer's random start.",
    "practitioner": "A layer that stays near 1 is hardly trained: its learning rate may be too small, or it may be wider than it need be.",
    "researcher": "Blind to the length of a filter, which weight decay and batch norm change without effect. Random directions in d dimensions have cosines of about 1/√d, so wide layers can keep a high cosine while they change what they compute.",
}

ANALYSIS = register(
    Analysis(
        name="filter_change", version=1, scope="series", title="Change of filters",
        question="How much of the first filters is left?",
        options=FilterChangeOptions, compute=compute, draw=draw, builds_on=(_FILTERS,),
        metrics=(
            Metric(_METRIC, "cosine", "[-1, 1]", "Cosine of a convolution's filters with the same filters at the first checkpoint (`against=first`) or at the one before (`against=previous`), mean over the stored filters that are not zero.", "", "scaling of single filters; order of the filters and of the input channels"),
        ),
    )
)  # fmt: skip
