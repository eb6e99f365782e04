"""Which keys a head of a known kind looks at, and how much of each head's weight lies there.

Patterns as in TransformerLens' detector of heads: previous token, duplicate token, induction, and the user's own.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor

from stratascope.errors import ConfigurationError
from stratascope.tasks.analysis import Options
from stratascope.tasks.sequence.attention_scores import MaskedAttention

Measure = Literal["mul", "abs"]


class AttentionPattern(Options):
    """The keys that a query of a head should look at; one of `offsets`, `matrix`, `match` and `tokens`."""

    offsets: tuple[int, ...] = ()
    """Keys so many tokens from the query: −1 is the one before."""
    matrix: tuple[tuple[Literal[0, 1], ...], ...] = ()
    """A row for each query, a column for each key, 1 where it should look; the samples must have that many tokens."""
    match: int | None = None
    """Keys that come so many tokens after an earlier occurrence of the query's own token: 0 the duplicate itself, 1 what
    followed it (induction)."""
    tokens: tuple[int, ...] = ()
    """Keys with these codes."""
    ahead: bool = False
    """Whether keys after the query count too, with `match` and `tokens`."""

    @model_validator(mode="after")
    def _one_rule(self) -> AttentionPattern:
        given = [
            name for name in ("offsets", "matrix", "match", "tokens") if getattr(self, name) not in ((), None)
        ]
        if len(given) != 1:
            told = " and ".join(given) or "none"
            raise ConfigurationError(
                f"a pattern of attention has one of offsets, matrix, match, tokens; given: {told}."
            )
        if len({len(row) for row in self.matrix}) > 1:
            raise ConfigurationError("the rows of a pattern's matrix must have one length.")
        return self

    @property
    def needs_tokens(self) -> bool:
        """Whether the keys follow from the codes of the tokens."""
        return self.match is not None or bool(self.tokens)


PREVIOUS_TOKEN = AttentionPattern(offsets=(-1,))
DUPLICATE_TOKEN = AttentionPattern(match=0)
INDUCTION = AttentionPattern(match=1)
KNOWN_PATTERNS = {"previous_token": PREVIOUS_TOKEN, "duplicate_token": DUPLICATE_TOKEN, "induction": INDUCTION}


def pattern_keys(pattern: AttentionPattern, attention: MaskedAttention, tokens: Tensor | None = None) -> Tensor:
    """bool (sample, query, key): where `pattern` says that a query should look, of what it was allowed to.

    `tokens` are the codes, int (sample, token), of queries and keys. Raises ConfigurationError for a matrix of another
    size, ValueError where a rule about tokens has none.
    """
    queries, keys = attention.allowed.shape[-2:]
    device = attention.allowed.device
    lag = torch.arange(queries, device=device)[:, None] - torch.arange(keys, device=device)[None]
    if pattern.offsets:
        wanted = torch.stack([-lag == offset for offset in pattern.offsets]).any(0)[None]
    elif pattern.matrix:
        wanted = torch.tensor(pattern.matrix, dtype=torch.bool, device=device)[None]
        if wanted.shape[1:] != (queries, keys):
            given = f"{wanted.shape[1]} x {wanted.shape[2]}"
            raise ConfigurationError(
                f"a pattern's matrix has {given} entries, the attention {queries} queries x {keys} keys."
            )
    else:
        if tokens is None or queries != keys:
            raise ValueError("a rule about tokens needs their codes, and queries and keys of one input")
        wanted = _token_keys(pattern, tokens.to(device), attention.keys)
        if not pattern.ahead:
            wanted = wanted & (lag >= 0)
    return wanted & attention.allowed


def _token_keys(pattern: AttentionPattern, tokens: Tensor, real: Tensor) -> Tensor:
    if pattern.match is None:
        listed = torch.isin(tokens, torch.tensor(pattern.tokens, device=tokens.device))
        return listed[:, None, :].expand(-1, tokens.shape[1], -1)
    same = (tokens[:, :, None] == tokens[:, None, :]) & real[:, None, :]
    earlier = torch.ones_like(same[0]).tril(-1)
    itself = torch.eye(len(earlier), dtype=torch.bool, device=tokens.device)
    same = same & (~itself if pattern.ahead else earlier)
    shifted = same.roll(pattern.match, -1)
    # What left one end must not come in again at the other.
    outside = slice(None, pattern.match) if pattern.match >= 0 else slice(pattern.match, None)
    shifted[..., outside] = False
    return shifted


def pattern_score(
    attention: MaskedAttention, wanted: Tensor, measure: Measure = "mul", every_query: bool = False
) -> Tensor:
    """float64 (sample, head): how far each head looks where `wanted` (sample, query, key) says; NaN where no query counts.

    `mul`: Σ A P / Σ A, the share of the weight on the pattern, in [0, 1]. `abs`: 1 − Σ |A − P| / queries, in [−1, 1] where
    a query has at most one wanted key, lower where it has many. Over the queries for which there is a wanted key, so that
    a perfect head has 1; over all of them for `every_query`, as TransformerLens does it.
    """
    counted = attention.rows if every_query else attention.rows & wanted.any(-1)[:, None]
    weights = torch.where(counted[..., None], attention.weights, 0).double()
    pattern = wanted[:, None] & counted[..., None]
    if measure == "mul":
        return torch.where(pattern, weights, 0).sum((-2, -1)) / weights.sum((-2, -1))
    return 1 - (weights - pattern.double()).abs().sum((-2, -1)) / counted.sum(-1)


def chance_score(attention: MaskedAttention, wanted: Tensor, every_query: bool = False) -> Tensor:
    """float64 (sample,): the `mul` score of a head that looks at all its keys alike."""
    alike = attention.allowed.double() / attention.allowed.sum(-1, keepdim=True).clamp_min(1)
    return pattern_score(MaskedAttention(alike[:, None], attention.allowed), wanted, "mul", every_query)[:, 0]
