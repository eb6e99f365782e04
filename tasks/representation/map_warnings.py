"""Where a map misleads: conditions that are evaluated on the run's own numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stratascope.tasks.contexts import View

CONDITIONS = 6
"""How many warnings there are."""


def verdict(trust: float) -> str:
    """What the lowest trustworthiness of a map means, in words."""
    if trust >= 0.95:
        return "neighbourhoods are kept"
    return "neighbourhoods are mostly kept" if trust >= 0.9 else "some neighbourhoods are torn"


def found_warnings(view: View, where: Mapping[str, str]) -> list[str]:
    """The warnings that hold for the map that `where` (probe, layer, part) names, in words."""
    found = []

    def numbers(metric: str, **other: str) -> Any:
        return view.metric(metric, **{**where, **other})

    def last(metric: str, **other: str) -> float | None:
        rows = numbers(metric, **other)
        return float(rows["value"].iloc[-1]) if len(rows) else None

    drawn, known = last("knn_accuracy"), last("knn_accuracy", part="space=features")
    if drawn is not None and known is not None and drawn - known > 0.03:
        found.append(
            f"classes look purer than they are in the features (neighbours vote right {drawn:.0%}, there {known:.0%})"
        )
    if drawn is not None and known is not None and known - drawn > 0.05:
        found.append(
            f"classes look more mixed than they are in the features (neighbours vote right {drawn:.0%}, there {known:.0%})"
        )
    far = last("distance_correlation")
    if far is not None and far < 0.5:
        found.append(f"what lies far apart need not be (distances correlate by {far:.2f} with the features')")
    stable = last("seed_stability")
    if stable is not None and stable < 0.5:
        found.append(f"another start keeps only {stable:.0%} of its neighbours")
    costs = numbers("stability_cost")
    if len(costs) and costs["value"].max() > 0.05:
        worst = costs.loc[costs["value"].idxmax()]
        found.append(f"the common start costs {worst['value']:.0%} more divergence at step {int(worst['step']):,}")
    moves = numbers("map_movement")
    if len(moves) and moves["value"].max() > 0.5:
        worst = moves.loc[moves["value"].idxmax()]
        found.append(
            f"into step {int(worst['step']):,} the middle sample moves by {worst['value']:.2f} radii, so places are hard to follow"
        )
    return found


def warnings_of(view: View, where: Mapping[str, str]) -> str:
    """The warnings as a sentence, or that none of them holds."""
    found = found_warnings(view, where)
    if not found:
        return f"None of {CONDITIONS} warnings about misleading maps applies."
    return f"It misleads here: {'; '.join(found)}."
