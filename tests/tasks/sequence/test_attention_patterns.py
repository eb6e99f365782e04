"""Pattern scores: heads of known kinds, and TransformerLens' rule written out with loops."""

import pytest
import torch

from stratascope.errors import ConfigurationError
from stratascope.tasks.sequence.attention_patterns import (
    DUPLICATE_TOKEN,
    INDUCTION,
    PREVIOUS_TOKEN,
    AttentionPattern,
    chance_score,
    pattern_keys,
    pattern_score,
)
from stratascope.tasks.sequence.attention_scores import masked_attention

PERIOD = 8


def repeated_tokens(samples=2) -> torch.Tensor:
    """Different tokens, twice."""
    generator = torch.Generator().manual_seed(0)
    half = torch.stack([torch.randperm(50, generator=generator)[:PERIOD] for _ in range(samples)])
    return torch.cat([half, half], 1)


def causal_weights(samples=2, heads=3, tokens=2 * PERIOD) -> torch.Tensor:
    logits = torch.randn(samples, heads, tokens, tokens, generator=torch.Generator().manual_seed(2))
    return logits.masked_fill(torch.ones(tokens, tokens, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)


def induction_head() -> torch.Tensor:
    weights = torch.zeros(2, 1, 2 * PERIOD, 2 * PERIOD)
    for query in range(2 * PERIOD):
        weights[:, 0, query, query - PERIOD + 1 if query >= PERIOD else 0] = 1
    return weights


def test_an_induction_head_scores_1_on_the_repeat_and_a_uniform_one_by_chance():
    tokens = repeated_tokens()
    attention = masked_attention(induction_head())
    wanted = pattern_keys(INDUCTION, attention, tokens)
    assert wanted.any(-1)[:, PERIOD:].all()
    assert not wanted.any(-1)[:, :PERIOD].any()
    torch.testing.assert_close(pattern_score(attention, wanted), torch.ones(2, 1).double())
    torch.testing.assert_close(pattern_score(attention, wanted, "abs"), torch.ones(2, 1).double())
    uniform = torch.ones(2 * PERIOD, 2 * PERIOD).tril() / torch.arange(1, 2 * PERIOD + 1)[:, None]
    flat = masked_attention(uniform.expand(2, 1, -1, -1))
    expected = sum(1 / (query + 1) for query in range(PERIOD, 2 * PERIOD)) / PERIOD
    torch.testing.assert_close(pattern_score(flat, wanted), torch.full((2, 1), expected).double())
    torch.testing.assert_close(chance_score(flat, wanted), torch.full((2,), expected).double())


def test_a_previous_token_and_a_duplicate_token_head_score_1():
    tokens = repeated_tokens()
    count = tokens.shape[1]
    previous = torch.eye(count).roll(-1, 1)
    previous[0], previous[:, count - 1] = 0, 0
    previous = torch.zeros(count, count)
    previous[0, 0] = 1
    previous[torch.arange(1, count), torch.arange(count - 1)] = 1
    attention = masked_attention(previous.expand(2, 1, -1, -1))
    wanted = pattern_keys(PREVIOUS_TOKEN, attention)
    torch.testing.assert_close(pattern_score(attention, wanted), torch.ones(2, 1).double())
    every = pattern_score(attention, wanted, every_query=True)
    torch.testing.assert_close(every, torch.full((2, 1), (count - 1) / count).double())
    duplicate = torch.zeros(count, count)
    duplicate[torch.arange(count), torch.arange(count) % PERIOD] = 1
    attention = masked_attention(duplicate.expand(2, 1, -1, -1))
    wanted = pattern_keys(DUPLICATE_TOKEN, attention, tokens)
    torch.testing.assert_close(pattern_score(attention, wanted), torch.ones(2, 1).double())


def detection_pattern(kind: str, tokens: list[int]) -> list[list[int]]:
    """What TransformerLens' `head_detector` looks for, 1 or 0 by query and key."""
    count = len(tokens)
    found = [[0] * count for _ in range(count)]
    for i in range(count):
        for j in range(i + 1):
            if kind == "previous":
                found[i][j] = int(j == i - 1)
            elif kind == "duplicate":
                found[i][j] = int(j < i and tokens[j] == tokens[i])
            else:
                found[i][j] = int(j >= 1 and j - 1 < i and tokens[j - 1] == tokens[i])
    return found


@pytest.mark.parametrize(
    ("kind", "pattern"), [("previous", PREVIOUS_TOKEN), ("duplicate", DUPLICATE_TOKEN), ("induction", INDUCTION)]
)
@pytest.mark.parametrize("measure", ["mul", "abs"])
@pytest.mark.parametrize("without_first", [False, True])
def test_scores_over_every_query_are_those_of_transformer_lens(kind, pattern, measure, without_first):
    tokens = torch.randint(0, 4, (2, 10), generator=torch.Generator().manual_seed(3))
    weights = causal_weights(tokens=10)
    attention = masked_attention(weights)
    wanted = pattern_keys(pattern, attention, tokens)
    if without_first:
        first = torch.zeros(2, 10, dtype=torch.bool)
        first[:, 0] = True
        attention = attention.without(first, renormalise=False)
        wanted = wanted & attention.allowed
    found = pattern_score(attention, wanted, measure, every_query=True)
    for sample in range(2):
        looked = torch.tensor(detection_pattern(kind, tokens[sample].tolist()))
        for head in range(3):
            a, difference = weights[sample, head].clone(), (weights[sample, head] - looked).abs()
            if without_first:
                a[:, 0], difference[:, 0] = 0, 0
            # Without its only key the first row of all has no weight left, and is no row of ours.
            rows = 9 if without_first else 10
            expected = (a * looked).sum() / a.sum() if measure == "mul" else 1 - difference.sum() / rows
            assert found[sample, head].item() == pytest.approx(expected.item(), abs=1e-6)


def test_padding_is_no_duplicate_of_padding():
    tokens = torch.tensor([[5, 6, 5, 0, 0, 0]])
    real = tokens != 0
    uniform = torch.full((1, 1, 6, 6), 1 / 6)
    attention = masked_attention(uniform, real, real, torch.ones(6, 6, dtype=torch.bool).tril()[None])
    wanted = pattern_keys(DUPLICATE_TOKEN, attention, tokens)
    assert wanted.nonzero().tolist() == [[0, 2, 0]]
    assert pattern_keys(INDUCTION, attention, tokens).nonzero().tolist() == [[0, 2, 1]]


def test_own_patterns_by_offset_matrix_match_and_tokens():
    tokens = torch.tensor([[7, 8, 9, 7, 8]])
    attention = masked_attention(torch.full((1, 1, 5, 5), 0.2))
    by_offset = pattern_keys(AttentionPattern(offsets=(-2, 1)), attention)[0]
    assert by_offset.nonzero().tolist() == [[0, 1], [1, 2], [2, 0], [2, 3], [3, 1], [3, 4], [4, 2]]
    matrix = tuple(tuple(int(i + j == 4) for j in range(5)) for i in range(5))
    assert pattern_keys(AttentionPattern(matrix=matrix), attention)[0].equal(torch.eye(5).bool().flip(0))
    assert pattern_keys(AttentionPattern(match=2), attention, tokens)[0].nonzero().tolist() == [[3, 2], [4, 3]]
    back = AttentionPattern(match=-1, ahead=True)
    assert pattern_keys(back, attention, tokens)[0].nonzero().tolist() == [[0, 2], [1, 3], [4, 0]]
    assert pattern_keys(AttentionPattern(tokens=(9,)), attention, tokens)[0].nonzero().tolist() == [
        [2, 2],
        [3, 2],
        [4, 2],
    ]


def test_bad_patterns_say_what_is_wrong():
    with pytest.raises(ConfigurationError, match="given: offsets and match"):
        AttentionPattern(offsets=(1,), match=0)
    with pytest.raises(ConfigurationError, match="given: none"):
        AttentionPattern()
    with pytest.raises(ConfigurationError, match="one length"):
        AttentionPattern(matrix=((1, 0), (1,)))
    attention = masked_attention(torch.full((1, 1, 5, 5), 0.2))
    with pytest.raises(ConfigurationError, match="2 x 2 entries, the attention 5 queries x 5 keys"):
        pattern_keys(AttentionPattern(matrix=((1, 0), (1, 0))), attention)


def test_scores_leave_weights_and_patterns_alone():
    weights, tokens = causal_weights(), repeated_tokens()
    attention = masked_attention(weights)
    wanted = pattern_keys(INDUCTION, attention, tokens)
    before = attention.weights.clone(), wanted.clone()
    first = pattern_score(attention, wanted)
    pattern_score(attention, wanted, "abs")
    assert attention.weights.equal(before[0])
    assert wanted.equal(before[1])
    torch.testing.assert_close(pattern_score(attention, wanted), first, rtol=0, atol=0)
