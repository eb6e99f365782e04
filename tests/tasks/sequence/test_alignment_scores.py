"""Alignment scores: perfect, shifted and uniform attention, spans, padding, and the error rate of Och and Ney by hand."""

import numpy as np
import pytest
import torch

from stratascope.tasks.sequence.alignment_scores import (
    COUNTS,
    alignment_counts,
    alignment_scores,
    resampled_shares,
)
from stratascope.tasks.sequence.attention_scores import masked_attention

FIRST = torch.tensor([[0, 2, -1, 3]])
LAST = torch.tensor([[0, 2, -1, 5]])


def looking_at(places: list[int], keys=6) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.tensor(places), keys).float()[None, None]


def scores_of(weights: torch.Tensor, keys=None):
    counts = alignment_counts(masked_attention(weights, keys=keys), FIRST, LAST)
    return alignment_scores(counts.sum(-1)[:, 0, 0].numpy())


def test_a_head_that_follows_the_reference_is_right_and_without_error():
    found = scores_of(looking_at([0, 2, 1, 5]))
    assert (found.accuracy, found.mass, found.error_rate, found.tokens) == (1, 1, 0, 3)


def test_the_error_rate_counts_sure_and_possible_links():
    # Right on a sure link, wrong on a sure link, right within a span: A = 3, S = 2, A∩S = 1, A∩P = 2.
    found = scores_of(looking_at([0, 1, 1, 4]))
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.error_rate == pytest.approx(1 - (1 + 2) / (3 + 2))


def test_uniform_weights_have_the_mass_of_chance():
    found = scores_of(torch.full((1, 1, 4, 6), 1 / 6))
    assert found.mass == pytest.approx((1 + 1 + 3) / 18)
    assert found.chance == pytest.approx(found.mass)
    # Of equally strong places the first counts, which is right for the first token alone.
    assert found.accuracy == pytest.approx(1 / 3)


def test_padded_source_places_are_no_chance():
    real = torch.tensor([[True, True, True, True, False, False]])
    weights = torch.tensor([0.25, 0.25, 0.25, 0.25, torch.nan, torch.nan]).expand(1, 1, 4, 6)
    found = scores_of(weights, keys=real)
    assert found.chance == pytest.approx((1 + 1 + 1) / 12)
    assert found.mass == pytest.approx(found.chance)


def test_tokens_without_a_reference_leave_no_trace():
    counts = alignment_counts(masked_attention(torch.full((1, 2, 4, 6), 1 / 6)), FIRST, LAST)
    assert counts.shape == (len(COUNTS), 1, 2, 4)
    assert (counts[..., 2] == 0).all()


def test_intervals_hold_the_share_and_close_where_samples_are_alike():
    generator = np.random.default_rng(0)
    tokens = np.full(200, 10.0)
    hits = generator.binomial(10, 0.7, 200).astype(float)
    by_sample = np.stack([tokens, hits, hits * 0.9, tokens * 0.1, tokens, hits])
    (low, high), *_ = resampled_shares(by_sample, 200, 0)
    expected = 1.96 * np.sqrt(0.7 * 0.3 / 2000)
    assert low < hits.sum() / 2000 < high
    assert (high - low) / 2 == pytest.approx(expected, rel=0.3)
    same = np.stack([tokens, tokens * 0.5, tokens * 0.4, tokens * 0.1, tokens, tokens * 0.5])
    np.testing.assert_allclose(resampled_shares(same, 50, 0), [[0.5, 0.5], [0.4, 0.4], [0.5, 0.5]])
