"""What each head attends to, in numbers: spread, distance, sinks, lags. Sums over real queries and keys only.

Every score has one value for each sample and head, NaN where the sample has nothing to measure, so that samples never
weigh on one another and batches can be streamed (`SampleMoments`). Nothing here writes into what it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MaskedAttention:
    """Attention weights with the keys that each query was allowed to look at; made by `masked_attention`."""

    weights: Tensor
    """float (sample, head, query, key), exactly 0 wherever `allowed` is false."""
    allowed: Tensor
    """bool (sample, query, key), false for padded queries and keys and for keys behind a causal mask."""

    @property
    def rows(self) -> Tensor:
        """bool (sample, head, query): the queries that count: those with a key to look at, and a weight on one."""
        return self.allowed.any(-1)[:, None] & self.weights.sum(-1).ne(0)

    @property
    def keys(self) -> Tensor:
        """bool (sample, key): the keys that any query was allowed to look at."""
        return self.allowed.any(-2)

    def without(self, keys: Tensor, queries: Tensor | None = None, renormalise: bool = True) -> MaskedAttention:
        """The same without `keys` (sample, key) and `queries` (sample, query), bool, true for what goes.

        Each row is divided by what it has left, unless not to `renormalise`. A row of a head that has nothing left does not
        count for that head.
        """
        allowed = self.allowed & ~keys[:, None, :]
        if queries is not None:
            allowed = allowed & ~queries[:, :, None]
        kept = torch.where(allowed[:, None], self.weights, 0)
        if renormalise:
            kept = kept / kept.sum(-1, keepdim=True).clamp_min(1e-30)
        return MaskedAttention(kept, allowed)

    def without_first(self) -> MaskedAttention:
        """The same without the first real key of each sample, as a key and as a query, renormalised."""
        first = first_of(self.keys)
        alike = self.allowed.shape[1] == self.allowed.shape[2]
        return self.without(first, first if alike else None)

    def cut(self, leading: int) -> MaskedAttention:
        """The same with the first `leading` tokens (a class token) taken away from both axes, renormalised."""
        kept = MaskedAttention(self.weights[:, :, leading:, leading:], self.allowed[:, leading:, leading:])
        return kept.without(torch.zeros_like(kept.keys))


def masked_attention(
    weights: Tensor, queries: Tensor | None = None, keys: Tensor | None = None, allowed: Tensor | None = None
) -> MaskedAttention:
    """`weights` (sample, head, query, key) with what may be counted of them.

    `queries` (sample, query) and `keys` (sample, key) are true for real tokens, all where they are None. `allowed`
    (sample, query, key) is the mask that the attention was given; where it is None, a sample whose real weights lie on and
    below the diagonal alone (see `is_causal`) is taken for causal, and any other for unmasked.
    """
    samples, _, query_count, key_count = weights.shape
    given = torch.ones(samples, query_count, key_count, dtype=torch.bool, device=weights.device)
    if queries is not None:
        given &= queries.to(weights.device)[:, :, None]
    if keys is not None:
        given &= keys.to(weights.device)[:, None, :]
    if allowed is not None:
        given &= allowed.to(weights.device)
    elif query_count == key_count:
        given &= ~(is_causal(weights, given)[:, None, None] & _above_diagonal(query_count, weights.device))
    return MaskedAttention(torch.where(given[:, None], weights, 0), given)


def is_causal(weights: Tensor, allowed: Tensor) -> Tensor:
    """bool (sample,): whether no head of `weights` (sample, head, token, token) looks ahead, of the `allowed` (sample,
    query, key) pairs; false for a sample without a pair that looks ahead."""
    ahead = allowed & _above_diagonal(weights.shape[-1], weights.device)
    looked = torch.where(ahead[:, None], weights, 0).ne(0).flatten(1).any(1)
    return ahead.flatten(1).any(1) & ~looked


def _above_diagonal(count: int, device: torch.device) -> Tensor:
    return torch.ones(count, count, dtype=torch.bool, device=device).triu(1)


def first_of(real: Tensor) -> Tensor:
    """bool (sample, token): the first true one of `real` (sample, token), whatever the padding side."""
    return real & (real.cumsum(1) == 1)


def mean_over_queries(values: Tensor, counted: Tensor) -> Tensor:
    """float64 (sample, head): the mean of `values` (sample, head, query) over the `counted` ones, bool of that shape; NaN
    where none is."""
    return torch.where(counted, values, 0).double().sum(-1) / counted.sum(-1)


def entropy(attention: MaskedAttention) -> Tensor:
    """(sample, head): −Σ_j a_j ln a_j in nat, mean over the queries: 0 where each looks at one key, ln K where at K alike."""
    return mean_over_queries(torch.special.entr(attention.weights).sum(-1), attention.rows)


def entropy_share(attention: MaskedAttention) -> Tensor:
    """(sample, head): the entropy of each query as a share of ln K, K the keys that it may look at; mean over the queries
    that have two or more."""
    choices = attention.allowed.sum(-1)
    most = choices.clamp_min(2).double().log()
    share = torch.special.entr(attention.weights).sum(-1) / most[:, None]
    return mean_over_queries(share, attention.rows & (choices >= 2)[:, None])


def distance(attention: MaskedAttention, distances: Tensor) -> Tensor:
    """(sample, head): Σ_j a_ij d_ij, mean over the queries, of `distances` (query, key), as from `token_distances` or
    `patch_distances` (Dosovitskiy et al. 2021, appendix D.7)."""
    far = torch.einsum("shqk,qk->shq", attention.weights, distances.to(attention.weights))
    return mean_over_queries(far, attention.rows)


def token_distances(queries: int, keys: int) -> Tensor:
    """float32 (query, key): |i − j| tokens."""
    return (torch.arange(queries)[:, None] - torch.arange(keys)[None]).abs().float()


def patch_distances(rows: int, columns: int, patch_size: float = 1.0) -> Tensor:
    """float32 (patch, patch): Euclidean distances of the centres of patches in a grid that is read row by row, in patches ×
    `patch_size` (its pixels)."""
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    return (places[:, None] - places[None]).square().sum(-1).sqrt() * patch_size


def received(attention: MaskedAttention) -> Tensor:
    """float64 (sample, head, key): the weight that each key gets, mean over all queries that count."""
    total = attention.weights.double().sum(-2)
    return total / attention.rows.sum(-1, keepdim=True)


def sink_masses(attention: MaskedAttention, leading: int = 1) -> Tensor:
    """(sample, head, place): the weight on each of the first `leading` real keys, mean over the queries; NaN where the
    sample has fewer. The first place is what is known as the sink of a causal network (Xiao et al. 2023)."""
    mass = received(attention)
    keys = attention.keys
    start = keys.int().argmax(-1)
    places = start[:, None] + torch.arange(leading, device=keys.device)
    inside = places < keys.shape[-1]
    places = places.clamp_max(keys.shape[-1] - 1)
    real = inside & keys.gather(1, places)
    found = mass.gather(2, places[:, None].expand(-1, mass.shape[1], -1))
    return torch.where(real[:, None], found, torch.nan)


def largest_sink(attention: MaskedAttention) -> tuple[Tensor, Tensor]:
    """(sample, head): the weight on the key that gets most, mean over the queries, and int64 (sample, head): which key."""
    return received(attention).max(-1)


def locality(attention: MaskedAttention, window: int) -> Tensor:
    """(sample, head): the weight on keys at most `window` tokens away, mean over the queries."""
    near = token_distances(*attention.weights.shape[-2:]) <= window
    return distance(attention, near.float())


def lag_profile(attention: MaskedAttention, lags: Sequence[int]) -> Tensor:
    """float64 (sample, head, lag): mean of a_{i, i−lag} over the queries i that may look there; NaN where none may.

    A positive lag looks back, a negative one ahead.
    """
    lines = []
    counting = attention.rows
    for lag in lags:
        weights = attention.weights.diagonal(-lag, -2, -1)
        there = attention.allowed.diagonal(-lag, -2, -1)[:, None]
        # Query i stands at place i of this diagonal for lags that look ahead, at i − lag for those that look back.
        rows = counting[..., max(lag, 0) : max(lag, 0) + weights.shape[-1]]
        lines.append(mean_over_queries(weights, there & rows))
    return torch.stack(lines, -1)


class SampleMoments:
    """Mean and standard error over samples of values that come batch by batch; NaN counts as not measured."""

    def __init__(self) -> None:
        self.count: Tensor | None = None

    def add(self, values: Tensor) -> None:
        """Take in `values` (sample, …), of one shape but for the sample."""
        values = values.detach().double().cpu()
        known = ~values.isnan()
        clean = torch.where(known, values, 0)
        sums = known.sum(0), clean.sum(0), clean.square().sum(0)
        if self.count is None:
            self.count, self.total, self.squares = sums
        else:
            self.count, self.total, self.squares = (
                self.count + sums[0],
                self.total + sums[1],
                self.squares + sums[2],
            )

    @property
    def mean(self) -> Tensor:
        """float64 (…): NaN where nothing was measured. Expects that something was added."""
        return self.total / self.measured

    @property
    def standard_error(self) -> Tensor:
        """float64 (…) of the mean; NaN below two samples."""
        variance = (self.squares - self.total.square() / self.measured).clamp_min(0) / (self.measured - 1)
        return torch.where(self.measured > 1, (variance / self.measured).sqrt(), torch.nan)

    @property
    def measured(self) -> Tensor:
        """int64 (…): samples with a value."""
        if self.count is None:
            raise ValueError("no sample was added")
        return self.count
