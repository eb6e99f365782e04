"""The sentence that stands with every figure of attention weights: a weight is not importance, and what this run's ablation says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from stratascope.tasks.contexts import View

FILED_BY = "head_importance"
METRIC = "head_importance_ablation"


def ablation_effects(view: View, probe: str) -> dict[tuple[str, int], float]:
    """What the loss loses by each head at the last checkpoint of this run where heads were ablated, by (layer, head)."""
    rows = view.newest_of(FILED_BY)
    if rows is None:
        return {}
    rows = rows[(rows["metric"] == METRIC) & (rows["probe"] == probe) & (rows["status"] == "ok")]
    rows = rows[rows["part"].str.fullmatch(r"head=\d+")]
    return {
        (layer, int(part.removeprefix("head="))): float(value)
        for layer, part, value in zip(rows["layer"], rows["part"], rows["value"], strict=True)
    }


def importance_note(view: View, probe: str, scores: Mapping[tuple[str, int], float]) -> str:
    """One or two sentences; with Spearman's correlation of `scores` and what ablation says, where there are three heads
    or more. Of all heads where there are no scores."""
    effects = ablation_effects(view, probe)
    known = scores or dict.fromkeys(effects, float("nan"))
    both = [head for head in known if head in effects and (not scores or np.isfinite(scores[head]))]
    if not both:
        return "A weight says where a head looks, not whether the answer depends on it, which was not measured in this run."
    layer, head = max(both, key=lambda one: effects[one])
    said = f"taking away one of these heads raises the loss by at most {effects[layer, head]:.3g} (head {head} of {layer})"
    told = f"A weight says where a head looks, not whether the answer depends on it: {said}."
    if len(both) < 3 or not scores:
        return told
    from scipy.stats import spearmanr

    first, second = [scores[one] for one in both], [effects[one] for one in both]
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return told
    order = float(spearmanr(first, second).statistic)
    return f"{told} Over {len(both)} heads the rank correlation of the score with that is {order:.2f}."


def told_residual(residual: float) -> str:
    """How well captured weights reproduce an output, in words."""
    if not np.isfinite(residual):
        return "in a way that could not be checked"
    return "exactly" if residual == 0 else f"to {residual:.1g} of its largest value"
