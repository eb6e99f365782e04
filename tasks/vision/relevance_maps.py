"""Layer-wise relevance propagation: the score handed back from step to step until it lies on the pixels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.tasks.vision.attribution_methods import Attributed, AttributionMethod, Explained, register_method

if TYPE_CHECKING:
    from stratascope.tasks.vision.relevance_propagation import RuleOf
    from stratascope.tasks.vision.relevance_rules import Rule

_TOLERANCE = 1e-3
"""Above this share of the score, or of 1 where that is less, what is lost is warned of."""
_EPSILON = 1e-9
"""It only keeps from dividing by zero: a larger one takes relevance away."""
_GAMMA = 0.25


def relevance(explained: Explained, rule_of: RuleOf) -> Attributed:
    """The score of each sample on its pixels.

    `conservation_gap` is what the map adds up to less the score, `conservation_gap_with_biases` the same with what
    biases have taken added to the map; the second is left out where samples are not the first axis all through the
    network. Raises DoesNotApply at an operation without a rule, by name.
    """
    import torch

    from stratascope.tasks.vision.relevance_propagation import propagated

    network, settings = explained.network, explained.settings
    epsilon, gamma = float(settings.get("epsilon", _EPSILON)), float(settings.get("gamma", _GAMMA))
    if epsilon <= 0 or gamma < 0:
        raise DoesNotApply(f"`epsilon` {epsilon:g} must be above 0 and `gamma` {gamma:g} not below it.")
    size = network.fixed_batch_size or explained.batch_size
    with network.untouched():
        parts = [
            propagated(explained.part(slice(start, start + size)), rule_of, epsilon, gamma)
            for start in range(0, len(explained), size)
        ]
    values = torch.cat([maps for maps, _, _ in parts])
    scores = torch.cat([score for _, score, _ in parts]).numpy()
    gap = values.double().flatten(1).sum(1).numpy() - scores
    numbers = {"conservation_gap": gap}
    taken = [item for _, _, item in parts if item is not None]
    if len(taken) < len(parts):
        return Attributed(values.numpy(), numbers)
    numbers["conservation_gap_with_biases"] = gap + torch.cat(taken).numpy()
    warnings = _lost(numbers["conservation_gap_with_biases"], scores, explained)
    return Attributed(values.numpy(), numbers, warnings=warnings)


def _lost(gap: np.ndarray, score: np.ndarray, explained: Explained) -> tuple[str, ...]:
    tolerance = float(explained.settings.get("tolerance", _TOLERANCE))
    share_lost = np.abs(gap) / np.maximum(1, np.abs(score))
    if not (share_lost > tolerance).any():
        return ()
    return (
        f"{int((share_lost > tolerance).sum())} of {len(share_lost)} maps do not hand on the whole score, biases counted: "
        f"up to {share_lost.max():.2g} of it is lost, more than {tolerance:g}.",
    )


def _chosen(rules: Callable[[str], Rule]) -> Callable[[Explained], Attributed]:
    """A method that takes `rules` by operation, and for the first step with weights what `first_layer` says."""

    def compute(explained: Explained) -> Attributed:
        first_rule = explained.settings.get("first_layer", "same")
        if first_rule not in ("same", "flat"):
            raise DoesNotApply(f"`first_layer` {first_rule!r} is not known; it is `same` or `flat`.")
        return relevance(explained, lambda name, first: "flat" if first and first_rule == "flat" else rules(name))

    return compute


def _composite(operation: str) -> Rule:
    return "epsilon" if operation in ("linear", "matmul", "mm", "bmm") else "gamma"


_SETTINGS: dict[str, Any] = {"epsilon": _EPSILON, "first_layer": "same", "tolerance": _TOLERANCE}
_SHARED_CAUTION = (
    " Biases take relevance that no pixel then shows: see how far the map is from adding up to the score. Batch norm right after "
    "a convolution or a linear layer counts as one step with it."
)
_METHODS: tuple[tuple[str, str, Callable[[str], Rule], dict[str, Any], str, str, str], ...] = (
    (
        "lrp_epsilon", "LRP-ε", lambda operation: "epsilon", {},
        "R_i = Σ_k a_i w_ik / (z_k + ε sign z_k) · R_k, z_k = Σ_i a_i w_ik + b_k",
        "Bach et al. 2015, equation 58",
        "the network is deep: with ReLUs and a small ε it is gradient × input, with the same noise.",
    ),
    (
        "lrp_gamma", "LRP-γ", lambda operation: "gamma", {"gamma": _GAMMA},
        "R_i = Σ_k a_i (w_ik + γ max(0, w_ik)) / Σ_i a_i (w_ik + γ max(0, w_ik)) · R_k",
        "Montavon et al. 2019, section 10.2.2, with both signs of a and z",
        "evidence against the class matters: what has the sign of the output is preferred at every step.",
    ),
    (
        "lrp_alpha1beta0", "LRP-α1β0 (z⁺)", lambda operation: "alpha1beta0", {},
        "R_i = Σ_k max(0, a_i w_ik) / Σ_i max(0, a_i w_ik) · R_k",
        "Bach et al. 2015, equation 60 with α = 1; Montavon et al. 2017",
        "another class is asked: the map hardly depends on the class, since what speaks against one is never counted "
        "(Sixt, Granz and Landgraf 2020).",
    ),
    (
        "lrp_composite", "LRP composite (γ in convolutions, ε in linear layers)", _composite, {"gamma": _GAMMA},
        "LRP-γ in convolutions, sums and poolings; LRP-ε in linear layers",
        "Montavon et al. 2019, section 10.3; Kohlbrenner et al. 2020",
        "convolutions see much evidence against the class: there what has the sign of the output is preferred.",
    ),
)  # fmt: skip
for _name, _title, _rules, _own, _formula, _source, _lies in _METHODS:
    register_method(
        AttributionMethod(
            name=_name,
            title=_title,
            family="relevance",
            formula=_formula,
            source=_source,
            lies_when=_lies + _SHARED_CAUTION,
            compute=_chosen(_rules),
            settings=_SETTINGS | _own,
        )
    )
