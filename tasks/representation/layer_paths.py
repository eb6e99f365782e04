"""The path of each layer through a run: how far it moved, and whose neighbours changed, checkpoint by checkpoint.

One layer is followed at a time, and of it only the checkpoint at hand, the one before, the first and the last are held.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.representation.decomposition import (
    Decomposition,
    decomposed_layers,
    decomposed_samples,
    read_decomposition,
)
from stratascope.tasks.representation.movement import LEAST_SAMPLES, Centred, Distance, Weights, distances
from stratascope.tasks.representation.neighbour_churn import replaced_share
from stratascope.tasks.representation.resampling import permutations

_UNRELATED_ROUNDS = 10
PREVIOUS, FIRST, LAST, LAST_AUDIT = "previous", "first", "last", "last_audit"


@dataclass
class LayerPath:
    """What is known of one layer; the lists run over `steps`."""

    layer: str
    samples: int
    features: int = 0
    steps: list[int] = field(default_factory=list)
    moved: dict[str, dict[int, tuple[int, dict[str, Distance]]]] = field(default_factory=dict)
    """By what it is held against, and by step: the other step, and the distance by each measure."""
    churn: dict[int, np.ndarray] = field(default_factory=dict)
    """float32 (sample,) by step: the share of each sample's neighbours that are new since the step before."""
    neighbours: int = 0
    nearest: tuple[np.ndarray, np.ndarray] | None = None
    """int32 (sample, rank) at the last step but one, and at the last."""
    unrelated: dict[str, np.ndarray] = field(default_factory=dict)
    """By measure: what the last distance would be if the samples had nothing to do with one another."""
    missing: dict[int, str] = field(default_factory=dict)
    """Steps at which the layer cannot be followed, and why."""


def common_samples(contexts: list[CheckpointContext], probe: str) -> tuple[np.ndarray, dict[int, str]]:
    """The samples' ids (sample,) that the newest decomposition has, and the steps that have others, with the reason.

    Raises DoesNotApply where nothing is decomposed, or of too few samples.
    """
    reference: np.ndarray | None = None
    unfit: dict[int, str] = {}
    for context in reversed(contexts):
        try:
            found = decomposed_samples(context, probe)
        except DoesNotApply as reason:
            unfit[context.step] = str(reason)
            continue
        if reference is None:
            reference = found
        elif not np.array_equal(found, reference):
            unfit[context.step] = f"other samples were decomposed at step {context.step}"
    if reference is None:
        raise DoesNotApply(f"no layer was decomposed on probe {probe!r}")
    if len(reference) < LEAST_SAMPLES:
        raise DoesNotApply(f"at least {LEAST_SAMPLES} samples are needed, there are {len(reference)}")
    return reference, unfit


def layer_paths(
    contexts: list[CheckpointContext],
    probe: str,
    measures: tuple[str, ...],
    neighbours: int,
    weights: Weights,
    since: int | None,
    unfit: dict[int, str],
) -> Iterator[LayerPath]:
    """Each layer's path over `contexts`, which are in order, without the steps of `unfit`; the newest one's layers first.

    `since` is the newest step of the audit before: the last step is held against it too.
    """
    present = {
        context.step: () if context.step in unfit else tuple(decomposed_layers(context, probe))
        for context in contexts
    }
    order = dict.fromkeys(layer for context in reversed(contexts) for layer in present[context.step])
    for layer in order:
        path = LayerPath(layer, weights.bootstrap.shape[1])
        known = []
        for context in contexts:
            if layer in present[context.step]:
                known.append(context)
            else:
                reason = unfit.get(context.step, f"layer {layer!r} has no decomposition at step {context.step}")
                path.missing[context.step] = reason
        _follow(path, known, probe, measures, neighbours, weights, since)
        yield path


def _follow(
    path: LayerPath,
    contexts: list[CheckpointContext],
    probe: str,
    measures: tuple[str, ...],
    neighbours: int,
    weights: Weights,
    since: int | None,
) -> None:
    path.steps = [context.step for context in contexts]
    path.moved = {name: {} for name in (PREVIOUS, FIRST, LAST, LAST_AUDIT)}
    first_step, last_step = path.steps[0], path.steps[-1]
    ends = {
        context.step: read_decomposition(context, probe, path.layer)
        for context in contexts
        if context.step in (first_step, last_step)
    }
    path.features = ends[last_step].features
    path.neighbours = min(neighbours, ends[last_step].neighbour.shape[1])
    placed = {step: Centred(found.scores) for step, found in ends.items()}
    before: tuple[int, Centred, Decomposition] | None = None
    for context in contexts:
        step = context.step
        found = ends.get(step) or read_decomposition(context, probe, path.layer)
        here = placed[step] if step in placed else Centred(found.scores)
        if before is not None:
            moved = distances(before[1], here, measures, weights)
            path.moved[PREVIOUS][step] = (before[0], moved)
            old, new = (item.neighbour[:, : path.neighbours] for item in (before[2], found))
            path.churn[step] = replaced_share(old, new, path.samples)
            path.nearest = (old, new)
            if before[0] == first_step:
                path.moved[FIRST][step] = (first_step, moved)
            if step == last_step:
                path.moved[LAST][before[0]] = (last_step, moved)
        if step != first_step and step not in path.moved[FIRST]:
            path.moved[FIRST][step] = (first_step, distances(placed[first_step], here, measures, weights))
        if step != last_step and len(path.steps) > 1 and path.steps[-2] != step:
            path.moved[LAST][step] = (last_step, distances(here, placed[last_step], measures, weights))
        if since is not None and step == since and step != last_step:
            path.moved[LAST_AUDIT][last_step] = (since, distances(here, placed[last_step], measures, weights))
        if step == last_step and before is not None:
            path.unrelated = _unrelated(before[1], here, measures)
        before = (step, here, found)


def _unrelated(first: Centred, second: Centred, measures: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Distances (round,) to the same features with the samples in random order: as far as a layer can seem to move."""
    none = Weights(np.empty((0, len(first))), np.empty((0, len(first))))
    found: dict[str, list[float]] = {name: [] for name in measures}
    for order in permutations(len(first), _UNRELATED_ROUNDS, 0):
        for name, distance in distances(first, Centred(second.values[order]), measures, none).items():
            found[name].append(distance.value)
    return {name: np.array(values) for name, values in found.items()}
