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
        return _in_proportion(step, [(alike, torch.ones_like(weight))], None, relevance, epsilon)
    if rule == "epsilon":
        return _in_proportion(step, [(activations, weight)], bias, relevance, epsilon, output)
    above, below = (None, None) if bias is None else (bias.clamp(min=0), bias.clamp(max=0))
    positive, negative = weight.clamp(min=0), weight.clamp(max=0)
    raised, lowered = _parts(activations)
    if rule == "alpha1beta0":
        return _in_proportion(step, [(raised, positive), (lowered, negative)], above, relevance, epsilon)
    found: Shared | None = None
    for inside, own, other, bias_part in (
        (output >= 0, positive, negative, above),
        (output < 0, negative, positive, below),
    ):
        part = relevance * inside
        if not _has_values(part):
            continue
        terms = [(raised, weight + gamma * own), (lowered, weight + gamma * other)]
        shift = None if bias is None or bias_part is None else bias + gamma * bias_part
        found = _sum(found, _in_proportion(step, terms, shift, part, epsilon))
    return found or Shared([torch.zeros_like(values) for values in activations], None)


def _parts(activations: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Their positive and their negative parts; the second is empty where there is none, as after a ReLU."""
    if all(bool(values.amin() >= 0) for values in activations):
        return activations, ()
    return [values.clamp(min=0) for values in activations], [values.clamp(max=0) for values in activations]


def _has_values(values: Tensor) -> bool:
    low, high = values.aminmax()
    return bool(low != 0) or bool(high != 0)


def _in_proportion(
    step: LinearStep,
    terms: Sequence[tuple[Sequence[Tensor], Tensor]],
    bias: Tensor | None,
    relevance: Tensor,
    epsilon: float,
    output: Tensor | None = None,
) -> Shared:
    """Relevance in proportion to contributions, which are given as terms (activations, weight) of a sum.

    `output` is that sum with the bias, where it is known already.
    """
    # A weight of zeros is that of a sum or a mean, which has no negative part.
    kept = [(values, weight) for values, weight in terms if values and (weight.ndim or bool(weight))]
    with torch.no_grad():
        if output is None:
            output = torch.zeros_like(relevance) if bias is None else bias.expand_as(relevance)
            for values, weight in kept:
                output = output + step.operation(values, weight)
        # Away from zero: a position of which nothing comes has nothing to share.
        ratio = relevance / (output + torch.full_like(output, epsilon).copysign_(output))
    shares = [torch.zeros_like(values) for values in terms[0][0]]
    for values, weight in kept:
        for share_of, value, slope in zip(shares, values, _slopes(step, ratio, weight, values), strict=True):
            share_of.addcmul_(value, slope)
    return Shared(shares, None if bias is None else ratio * bias)


def _slopes(step: LinearStep, ratio: Tensor, weight: Tensor, values: Sequence[Tensor]) -> Sequence[Tensor]:
    if step.backwards is not None:
        return step.backwards(ratio, weight, values)
    with torch.enable_grad():
        leaves = [value.detach().requires_grad_() for value in values]
        return torch.autograd.grad(step.operation(leaves, weight), leaves, ratio)


def _sum(first: Shared | None, second: Shared) -> Shared:
    if first is None:
        return second
    biases = [item.to_bias for item in (first, second) if item.to_bias is not None]
    return Shared(
        [one + other for one, other in zip(first.to_activations, second.to_activations, strict=True)],
        torch.stack(biases).sum(0) if biases else None,
    )
