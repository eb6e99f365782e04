"""Attention against a known alignment of target tokens with places of the source."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stratascope.tasks.sequence.attention_scores import MaskedAttention

COUNTS = ("tokens", "hits", "mass", "chance", "sure", "sure_hits")
"""What is summed over the target tokens of each sample."""


def alignment_counts(attention: MaskedAttention, first: Tensor, last: Tensor) -> Tensor:
    """float64 (count, sample, head, target token): for each target token that has a reference, and 0 for any other, by `COUNTS`:
    1; whether the strongest key lies within the reference; the weight there; the reference's share of the real keys;
    whether the reference is a single place; whether the strongest key is that one.

    `first` and `last` int64 (sample, target token) are the reference's first and last source place, −1 for none. Of equally
    strong keys the first counts.
    """
    first, last = first.to(attention.weights.device), last.to(attention.weights.device)
    keys = torch.arange(attention.weights.shape[-1], device=first.device)
    inside = (keys >= first[..., None]) & (keys <= last[..., None]) & (first >= 0)[..., None]
    counted = (first >= 0)[:, None] & attention.rows
    strongest = attention.weights.argmax(-1)
    hit = (strongest >= first[:, None]) & (strongest <= last[:, None])
    mass = torch.where(inside[:, None], attention.weights, 0).double().sum(-1)
    alike = attention.allowed.double() / attention.allowed.sum(-1, keepdim=True).clamp_min(1)
    chance = torch.where(inside, alike, 0).sum(-1)[:, None].expand_as(mass)
    sure = (first == last)[:, None].expand_as(mass)
    found = torch.stack([torch.ones_like(mass), hit.double(), mass, chance, sure.double(), (hit & sure).double()])
    return torch.where(counted, found, 0)


@dataclass(frozen=True)
class AlignmentScores:
    """Shares over all target tokens with a reference."""

    accuracy: float
    mass: float
    error_rate: float
    chance: float
    tokens: int


def alignment_scores(sums: np.ndarray) -> AlignmentScores:
    """The scores of one head from `sums` (count,) by `COUNTS`. NaN where no token has a reference."""
    accuracy, mass, error, chance = (float(values[0]) for values in shares_of(sums[:, None]))
    return AlignmentScores(accuracy, mass, error, chance, int(sums[0]))


def shares_of(sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Accuracy, mass, error rate and chance (…,) from `sums` (count, …).

    The error rate is 1 − (|A ∩ S| + |A ∩ P|) / (|A| + |S|) (Och and Ney 2003, eq. 5): A are the strongest keys, one for each
    token; P all places of the references, S those of references with a single place.
    """
    tokens, hits, mass, chance, sure, sure_hits = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        error = 1 - (sure_hits + hits) / (tokens + sure)
        return hits / tokens, mass / tokens, error, chance / tokens


def resampled_shares(by_sample: np.ndarray, rounds: int, seed: int) -> np.ndarray:
    """float64 (share, end): the 95 % interval of accuracy, mass and error rate, by drawing samples anew, from `by_sample`
    (count, sample)."""
    from stratascope.tasks.representation.resampling import bootstrap_counts, percentile_interval

    sums = by_sample @ bootstrap_counts(by_sample.shape[1], rounds, seed).T
    return np.array([percentile_interval(values) for values in shares_of(sums)[:3]])
