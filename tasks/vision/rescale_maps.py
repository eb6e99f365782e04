"""DeepLIFT by the rescale rule: what a sample's difference from a baseline adds to the score, passed back step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.tasks.vision.attribution_methods import Attributed, AttributionMethod, Explained, register_method

if TYPE_CHECKING:
    from torch import Tensor

_TOLERANCE = 1e-3
"""Above this share of the difference of the scores, or of 1 where that is less, a gap is warned of."""


def deep_lift(explained: Explained) -> Attributed:
    """DeepLIFT against the baseline of each sample; `completeness_gap` is what the map adds up to less what it should."""
    return _deep_lift(explained, lambda part: [part.baseline])


def deep_lift_shap(explained: Explained) -> Attributed:
    """The mean of DeepLIFT over a set of baselines. Raises DoesNotApply where there is no set."""
    if explained.baselines is None or not len(explained.baselines):
        raise DoesNotApply("DeepLIFT-SHAP takes the mean over a set of baselines, and there is none.")
    chosen = explained.baselines
    return _deep_lift(explained, lambda part: (item.expand_as(part.inputs) for item in chosen))


def _deep_lift(explained: Explained, references: Callable[[Explained], Iterable[Tensor]]) -> Attributed:
    import torch

    from stratascope.tasks.vision.rescale_rules import rescaled_differences

    size = explained.network.fixed_batch_size or explained.batch_size
    maps, differences = [], []
    with explained.network.untouched():
        for start in range(0, len(explained), size):
            part = explained.part(slice(start, start + size))
            total = torch.zeros(part.inputs.shape, dtype=torch.float64)
            difference = torch.zeros(len(part), dtype=torch.float64)
            count = 0
            for baselines in references(part):
                found, change = rescaled_differences(part, baselines)
                total, difference, count = total + found, difference + change, count + 1
            maps.append((total / count).float())
            differences.append(difference / count)
    values = torch.cat(maps)
    wanted = torch.cat(differences).numpy()
    gap = values.double().flatten(1).sum(1).numpy() - wanted
    numbers = {"completeness_gap": gap, "score_difference": wanted}
    return Attributed(values.numpy(), numbers, warnings=_incomplete(gap, wanted, explained))


def _incomplete(gap: np.ndarray, wanted: np.ndarray, explained: Explained) -> tuple[str, ...]:
    tolerance = float(explained.settings.get("tolerance", _TOLERANCE))
    share = np.abs(gap) / np.maximum(1, np.abs(wanted))
    if not (share > tolerance).any():
        return ()
    return (
        f"{int((share > tolerance).sum())} of {len(share)} maps do not add up to the difference of the scores: the gap is "
        f"up to {share.max():.2g} of it, more than {tolerance:g}. The network has a non-linear step without a rule.",
    )


register_method(
    AttributionMethod(
        name="deep_lift",
        title="DeepLIFT",
        family="rescale",
        formula="m · (x − x'), where m is the product along the network of Δout / Δin at every non-linear step",
        source="Shrikumar, Greenside and Kundaje 2017, section 3.5.1 (rescale rule)",
        lies_when=(
            "the baseline is itself a picture of something: all is relative to it. Units that push against each other "
            "inside the network cancel before they are seen (the rescale rule does not part positive from negative)."
        ),
        compute=deep_lift,
        complete=True,
        settings={"tolerance": _TOLERANCE},
    )
)
register_method(
    AttributionMethod(
        name="deep_lift_shap",
        title="DeepLIFT-SHAP",
        family="rescale",
        formula="mean over baselines x' of DeepLIFT(x, x')",
        source="Lundberg and Lee 2017, section 4.2 (Deep SHAP); Shrikumar, Greenside and Kundaje 2017",
        lies_when=(
            "the baselines are few or all of one class: the mean is then about them. It nears Shapley values only where "
            "pixels are independent and the network is close to linear."
        ),
        compute=deep_lift_shap,
        complete=True,
        settings={"tolerance": _TOLERANCE},
    )
)
