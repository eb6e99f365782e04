"""How alike heads attend: the Jensen–Shannon distance of heads to one another, and of one head to itself at another time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stratascope.tasks.sequence.attention_scores import MaskedAttention, mean_over_queries


def jensen_shannon(first: Tensor, second: Tensor) -> Tensor:
    """float64 (…): √ of the Jensen–Shannon divergence in bit of distributions (…, key), in [0, 1] (Lin 1991; Endres and
    Schindelin 2003): 0 for equal ones, 1 for those that share no key. A metric."""
    first, second = first.double(), second.double()
    middle = (first + second) / 2
    nats = (
        torch.special.entr(middle).sum(-1) - (torch.special.entr(first) + torch.special.entr(second)).sum(-1) / 2
    )
    return (nats / np.log(2)).clamp(0, 1).sqrt()


def head_distances(attention: MaskedAttention) -> Tensor:
    """float64 (sample, head, head): the Jensen–Shannon distance of two heads, mean over the queries; symmetric, 0 on the
    diagonal."""
    weights, counted = attention.weights, attention.rows
    heads = weights.shape[1]
    found = torch.zeros(len(weights), heads, heads, dtype=torch.float64, device=weights.device)
    for head in range(heads):
        both = counted[:, head : head + 1] & counted[:, head:]
        later = mean_over_queries(jensen_shannon(weights[:, head : head + 1], weights[:, head:]), both)
        found[:, head, head:] = later
        found[:, head:, head] = later
    # Rounding leaves 1e-8 there, and a sample without a query must stay unmeasured.
    found.diagonal(0, 1, 2).copy_(torch.where(counted.any(-1), 0.0, torch.nan))
    return found


def change_between(before: MaskedAttention, after: MaskedAttention) -> Tensor:
    """float64 (sample, head): the Jensen–Shannon distance of each head to itself in other weights, mean over the queries
    that count in both."""
    counted = before.rows & after.rows
    return mean_over_queries(jensen_shannon(before.weights, after.weights), counted)
