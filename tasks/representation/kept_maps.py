"""What a series filed of its maps the last time, as far as it still holds: so that new checkpoints join without moving the old ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stratascope.errors import StoreError
from stratascope.storage.digests import identity_of
from stratascope.tasks.contexts import SeriesContext
from stratascope.tasks.representation.features import INPUT

ANALYSIS = "embedding"
MEASURES = (
    "trustworthiness", "continuity", "knn_preservation", "knn_accuracy", "distance_correlation",
    "centroid_distance_correlation", "explained_variance", "kl_divergence", "kl_divergence_of_own_start",
    "seed_stability", "feature_count",
)  # fmt: skip
"""What is kept of each map and step beside the map, in the order of the arrays."""
BOUNDS = ("value", "low", "high")
_UNREADABLE = "what was kept of it could not be read"


@dataclass
class Kept:
    """One map of a layer by step, with its quality (measure, bound), and what all steps start from or are turned onto."""

    positions: dict[int, np.ndarray] = field(default_factory=dict)
    quality: dict[int, np.ndarray] = field(default_factory=dict)
    start: np.ndarray | None = None
    start_facts: dict[str, Any] = field(default_factory=dict)
    """From which steps it was made; where `start` is None, those from which it is to be made again."""
    anew: str = ""
    """Why what was filed before does not hold any more; empty where it does, and where there was nothing."""


def unknown_quality() -> np.ndarray:
    """float64 (measure, bound) of a map of which nothing is known yet."""
    return np.full((len(MEASURES), len(BOUNDS)), np.nan)


def step_digests(context: SeriesContext, probe: str, layer: str, steps: Sequence[int]) -> dict[int, str]:
    """What decides a layer's features at each step: weights, network and how the layer was captured. Raw inputs never change."""
    if layer == INPUT:
        return dict.fromkeys(steps, INPUT)
    model = context.subject.source.model.model_dump(mode="json")
    found = {}
    for step in steps:
        facts = context.at(step).captured.get(probe, {}).get("facts", {}).get(layer, {})
        weights = context.facts.get(step, {}).get("weights_digest")
        found[step] = identity_of({"weights": weights, "model": model, "layer": facts})
    return found


def kept_map(
    context: SeriesContext,
    place: tuple[str, str],
    name: str,
    recipe: Mapping[str, Any],
    digests: Mapping[int, str],
) -> Kept:
    """What still holds of the map `name`: all steps whose digest is the same, if it was made by the same recipe.

    What cannot be read counts as lost, not as an error: it can be made again, and to the same bytes as long as the steps
    are there from which the start was made.
    """
    try:
        facts = context.earlier_attributes(ANALYSIS, *place, f"quality_{name}")
        start_facts = context.earlier_attributes(ANALYSIS, *place, f"start_{name}") or {}
    except StoreError:
        return Kept(anew=_UNREADABLE)
    if facts is None:
        return Kept()
    before = facts.get("recipe", {})
    changed = sorted(key for key in {*before, *recipe} if before.get(key) != recipe.get(key))
    if changed:
        return Kept(anew=f"since the last time its {', '.join(changed).replace('_', ' ')} changed")
    if (facts.get("measure"), facts.get("bound")) != (list(MEASURES), list(BOUNDS)):
        return Kept(anew="the last time it was filed in another form")
    kept = Kept(start=_readable(context, *place, f"start_{name}"), start_facts=start_facts)
    if kept.start is None and not _can_start_again(start_facts, digests):
        return Kept(anew=_UNREADABLE)
    steps, quality = (_readable(context, *place, item) for item in ("step", f"quality_{name}"))
    drawn = _readable(context, *place, name)
    if steps is None or quality is None:
        return kept
    for number, (step, digest) in enumerate(zip(steps.tolist(), facts["digests"], strict=True)):
        if digests.get(step) != digest:
            continue
        kept.quality[step] = quality[number]
        if drawn is not None:
            kept.positions[step] = drawn[number]
    return kept


def _readable(context: SeriesContext, *place: str) -> np.ndarray | None:
    """The array that was filed at `place` the last time; None where there is none, or it is damaged."""
    try:
        found = context.earlier(ANALYSIS, *place)
    except StoreError:
        return None
    return None if found is None else found[0]


def _can_start_again(facts: Mapping[str, Any], digests: Mapping[int, str]) -> bool:
    """Whether the steps are still there from which a start with these attributes was made."""
    made_from = zip(facts.get("steps", ()), facts.get("digests", ()), strict=True)
    return all(digests.get(step) == digest for step, digest in made_from)


def steady_choice(steps: Sequence[int], most: int, known: frozenset[int] = frozenset()) -> list[int]:
    """At most `most` of `steps`, about evenly over their order, the first and the last among them.

    Of those within half a stride of an even place one of the `known` ones is taken, so that a series which grows does
    not have another half of its maps made anew each time.
    """
    last = len(steps) - 1
    if len(steps) <= most:
        return list(steps)
    if most == 1:
        return [steps[last]]
    stride = last / (most - 1)
    chosen = {0, last}
    for number in range(1, most - 1):
        middle = number * stride
        near = [place for place in range(last + 1) if abs(place - middle) < stride / 2 or place == round(middle)]
        best = min(near, key=lambda place: (steps[place] not in known, abs(place - middle), place))
        chosen.add(best)
    return [steps[place] for place in sorted(chosen)]
