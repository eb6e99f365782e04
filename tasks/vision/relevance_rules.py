"""How a linear step of a network hands relevance back to what entered it: the rules of layer-wise relevance propagation.

A step is a sum of contributions, activation times weight, plus a bias. All rules are one: relevance goes to
contributions in proportion; they differ in which contributions count and how much.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Rule = Literal["epsilon", "gamma", "alpha1beta0", "flat"]
Operation = Callable[[Sequence[Tensor], Tensor], Tensor]
"""(activations, weight) → sum of contributions, linear in either, without a bias."""


@dataclass(frozen=True)
class LinearStep:
    """Activations → Σ activation · weight + bias."""

    operation: Operation
    weight: Tensor
    """A single 1 where the operation itself has weights that are never negative, such as a mean or a sum of two."""
    bias: Tensor | None = None
    """Of a shape that is added to the output."""
    outputs_first: bool = False
    """Whether the first axis of the weight are the output's channels, and those the output's second axis."""
    backwards: Callable[[Tensor, Tensor, Sequence[Tensor]], list[Tensor]] | None = None
    """(numbers of the output's shape, weight, activations) → their gradients, where these cost no way forward first."""


@dataclass(frozen=True)
class Shared:
    """What a step made of the relevance of its output."""

    to_activations: list[Tensor]
    to_bias: Tensor | None
    """Of the output's shape."""


def share(
    rule: Rule,
    step: LinearStep,
    activations: Sequence[Tensor],
    output: Tensor,
    relevance: Tensor,
    epsilon: float,
    gamma: float,
) -> Shared:
    """Relevance of a step's output (of its shape), shared among what entered.

    `epsilon` R_i = a_i w_i R / (z + ε sign z), z the output (Bach et al. 2015, equation 58). `gamma`: contributions of
    the output's own sign count 1 + γ times (Montavon et al. 2019, section 10.2.2, generalised to negative activations
    and outputs). `alpha1beta0`: only positive contributions count (Bach et al. 2015, equation 60; z⁺ of
    Montavon et al. 2017). `flat`: all inputs that a position looks at get the same (Lapuschkin et al. 2019).
    """
    weight, bias = step.weight, step.bias
    if rule == "flat":
        alike = [torch.ones_like(values) for values in activations]
        return _in_proportion([(alike, torch.ones_like(weight))], None, step.operation, relevance, epsilon)
    if rule == "epsilon" and step.backwards is not None:
        ratio = relevance / _away_from_zero(output, epsilon)
        slopes = step.backwards(ratio, weight, activations)
        shares = [values * slope for values, slope in zip(activations, slopes, strict=True)]
        return Shared(shares, None if bias is None else ratio * bias)
    if rule == "epsilon":
        return _in_proportion([(activations, weight)], bias, step.operation, relevance, epsilon)
    raised = [values.clamp(min=0) for values in activations]
    lowered = [values.clamp(max=0) for values in activations]
    positive, negative = weight.clamp(min=0), weight.clamp(max=0)
    above = None if bias is None else bias.clamp(min=0)
    if rule == "alpha1beta0":
        terms = [(raised, positive), (lowered, negative)]
        return _in_proportion(terms, above, step.operation, relevance, epsilon)
    below = output < 0
    found: Shared | None = None
    for part, own, other, bias_part in (
        (relevance * ~below, positive, negative, above),
        (relevance * below, negative, positive, None if bias is None else bias.clamp(max=0)),
    ):
        if not bool(part.any()):
            continue
        terms = [(raised, weight + gamma * own), (lowered, weight + gamma * other)]
        shift = None if bias is None or bias_part is None else bias + gamma * bias_part
        found = _sum(found, _in_proportion(terms, shift, step.operation, part, epsilon))
    return found or Shared([torch.zeros_like(values) for values in activations], None)


def _away_from_zero(output: Tensor, epsilon: float) -> Tensor:
    return output + torch.where(output < 0, -epsilon, epsilon)


def _in_proportion(
    terms: Sequence[tuple[Sequence[Tensor], Tensor]],
    bias: Tensor | None,
    operation: Operation,
    relevance: Tensor,
    epsilon: float,
) -> Shared:
    """Relevance in proportion to contributions, which are given as a sum of terms (activations, weight)."""
    # A term of nothing but zeros, such as the negative part of what comes out of a ReLU, costs nothing.
    kept = [
        (activations, weight)
        for activations, weight in terms
        if bool(weight.any()) and any(bool(values.any()) for values in activations)
    ]
    leaves = [[values.detach().requires_grad_() for values in activations] for activations, _ in kept]
    with torch.enable_grad():
        parts = [operation(own, weight) for own, (_, weight) in zip(leaves, kept, strict=True)]
        total = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0] if parts else torch.zeros_like(relevance)
    output = total.detach() if bias is None else total.detach() + bias
    ratio = relevance / _away_from_zero(output, epsilon)
    shares = [torch.zeros_like(values) for values in terms[0][0]]
    slopes = torch.autograd.grad(total, [leaf for own in leaves for leaf in own], ratio) if kept else ()
    for place, (leaf, slope) in enumerate(zip((leaf for own in leaves for leaf in own), slopes, strict=True)):
        shares[place % len(shares)] += leaf.detach() * slope
    return Shared(shares, None if bias is None else ratio * bias)


def _sum(first: Shared | None, second: Shared) -> Shared:
    if first is None:
        return second
    biases = [item.to_bias for item in (first, second) if item.to_bias is not None]
    return Shared(
        [one + other for one, other in zip(first.to_activations, second.to_activations, strict=True)],
        torch.stack(biases).sum(0) if biases else None,
    )
