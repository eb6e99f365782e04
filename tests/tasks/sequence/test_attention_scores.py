"""Scores of attention against what is known of uniform, one-hot, diagonal and shifted heads (reference A.5)."""

import math

import pytest
import torch

from stratascope.tasks.sequence.attention_scores import (
    SampleMoments,
    distance,
    entropy,
    entropy_share,
    is_causal,
    lag_profile,
    largest_sink,
    locality,
    masked_attention,
    patch_distances,
    sink_masses,
    token_distances,
)


def random_weights(samples=3, heads=2, tokens=6, causal=False, seed=0) -> torch.Tensor:
    logits = torch.randn(samples, heads, tokens, tokens, generator=torch.Generator().manual_seed(seed)) * 2
    if causal:
        logits = logits.masked_fill(torch.ones(tokens, tokens, dtype=torch.bool).triu(1), -torch.inf)
    return logits.softmax(-1)


def looking_at(places: list[int], keys: int) -> torch.Tensor:
    """(1, 1, query, key): all the weight of each query on one place."""
    return torch.nn.functional.one_hot(torch.tensor(places), keys).float()[None, None]


def every_score(attention) -> dict[str, torch.Tensor]:
    tokens = attention.weights.shape[-1]
    return {
        "entropy": entropy(attention),
        "entropy_share": entropy_share(attention),
        "distance": distance(attention, token_distances(tokens, tokens)),
        "sink": sink_masses(attention, 2),
        "largest": largest_sink(attention)[0],
        "locality": locality(attention, 1),
        "lags": lag_profile(attention, range(-2, 3)),
    }


@pytest.mark.parametrize("tokens", [2, 7, 50])
def test_entropy_is_0_for_one_key_and_log_of_the_keys_for_all_alike(tokens):
    uniform = masked_attention(torch.full((1, 1, tokens, tokens), 1 / tokens))
    assert entropy(uniform).item() == pytest.approx(math.log(tokens), abs=1e-6)
    assert entropy_share(uniform).item() == pytest.approx(1, abs=1e-6)
    single = masked_attention(
        looking_at([0] * tokens, tokens), allowed=torch.ones(1, tokens, tokens, dtype=torch.bool)
    )
    assert entropy(single).item() == 0
    assert entropy_share(single).item() == 0


def test_entropy_share_counts_the_keys_that_a_causal_query_may_look_at():
    tokens = 5
    uniform = torch.ones(tokens, tokens).tril() / torch.arange(1, tokens + 1)[:, None]
    attention = masked_attention(uniform[None, None])
    assert entropy_share(attention).item() == pytest.approx(1, abs=1e-6)
    assert entropy(attention).item() == pytest.approx(sum(math.log(k) for k in range(1, 6)) / 5, abs=1e-6)


def test_entropy_lies_between_0_and_log_of_the_keys():
    found = entropy(masked_attention(random_weights(tokens=9)))
    assert ((found > 0) & (found < math.log(9))).all()


@pytest.mark.parametrize("tokens", [3, 10, 33])
def test_distance_of_diagonal_previous_token_and_uniform_attention(tokens):
    away = token_distances(tokens, tokens)
    assert distance(masked_attention(torch.eye(tokens)[None, None]), away).item() == 0
    previous = looking_at([0, *range(tokens - 1)], tokens)
    later = torch.arange(tokens)[None] > 0
    assert distance(masked_attention(previous, queries=later), away).item() == 1
    uniform = masked_attention(torch.full((1, 1, tokens, tokens), 1 / tokens))
    assert distance(uniform, away).item() == pytest.approx((tokens**2 - 1) / (3 * tokens), rel=1e-6)


def test_distance_of_patches_is_that_of_their_centres_without_the_class_token():
    away = patch_distances(2, 3, patch_size=16)
    assert away[0, 1] == 16
    assert away[0, 5].item() == pytest.approx(16 * math.sqrt(5))
    weights = torch.zeros(1, 1, 7, 7)
    weights[..., 0] = 0.5
    weights[0, 0, 1:, 1:] = 0.5 * torch.eye(6).roll(1, 1)
    weights[0, 0, 0, 1] = 0.5
    attention = masked_attention(weights).cut(1)
    torch.testing.assert_close(attention.weights.sum(-1), torch.ones(1, 1, 6))
    expected = sum(away[i, (i + 1) % 6].item() for i in range(6)) / 6
    assert distance(attention, away).item() == pytest.approx(expected, rel=1e-6)


def test_padding_on_either_side_never_counts():
    short = random_weights(tokens=4)
    expected = every_score(masked_attention(short))
    for before, after in ((0, 3), (2, 1)):
        # What stands in padded rows and columns is wild, as it is where nested tensors are off.
        wide = torch.full((3, 2, 7, 7), torch.nan)
        wide[:, :, before : before + 4, before : before + 4] = short
        real = torch.zeros(3, 7, dtype=torch.bool)
        real[:, before : before + 4] = True
        assert after == 7 - 4 - before
        for name, values in every_score(masked_attention(wide, real, real)).items():
            torch.testing.assert_close(values, expected[name], equal_nan=True, msg=name)


def test_causal_attention_is_known_by_its_upper_triangle():
    causal, free = random_weights(causal=True), random_weights()
    everything = torch.ones(3, 6, 6, dtype=torch.bool)
    assert is_causal(causal, everything).all()
    assert not is_causal(free, everything).any()
    mixed = masked_attention(torch.cat([causal[:1], free[:1]]))
    assert mixed.allowed[0].equal(torch.ones(6, 6, dtype=torch.bool).tril())
    assert mixed.allowed[1].all()


def test_sink_mass_is_the_mean_weight_on_the_first_real_keys():
    weights = torch.zeros(1, 1, 5, 5)
    weights[..., 1:, 1] = 0.75
    weights[..., 1:, 3] = 0.25
    real = torch.tensor([[False, True, True, True, True]])
    attention = masked_attention(weights, real, real)
    torch.testing.assert_close(
        sink_masses(attention, 6)[0, 0],
        torch.tensor([0.75, 0, 0.25, 0, torch.nan, torch.nan]).double(),
        equal_nan=True,
    )
    mass, key = largest_sink(attention)
    assert (mass.item(), key.item()) == (0.75, 1)


def test_lags_of_a_head_that_looks_two_back():
    weights = looking_at([0, 0, 0, 1, 2, 3], 6)
    found = lag_profile(masked_attention(weights), [0, 1, 2, 3, 6, -1])[0, 0]
    torch.testing.assert_close(
        found, torch.tensor([1 / 6, 1 / 5, 1, 0, torch.nan, torch.nan]).double(), equal_nan=True
    )


def test_lag_profile_and_locality_against_loops():
    weights = random_weights(samples=1, heads=1, tokens=5)
    attention = masked_attention(weights)
    for lag in range(-4, 5):
        pairs = [weights[0, 0, i, i - lag].item() for i in range(5) if 0 <= i - lag < 5]
        assert lag_profile(attention, [lag]).item() == pytest.approx(sum(pairs) / len(pairs), rel=1e-6)
    near = sum(weights[0, 0, i, j].item() for i in range(5) for j in range(5) if abs(i - j) <= 2) / 5
    assert locality(attention, 2).item() == pytest.approx(near, rel=1e-6)


def test_without_the_first_key_rows_are_divided_by_what_is_left():
    weights = random_weights(causal=True)
    attention = masked_attention(weights)
    kept = attention.without_first()
    torch.testing.assert_close(kept.weights.sum(-1)[:, :, 1:], torch.ones(3, 2, 5))
    assert not kept.allowed[:, 0].any()
    expected = weights[:, :, 1:, 1:] / weights[:, :, 1:, 1:].sum(-1, keepdim=True)
    torch.testing.assert_close(kept.weights[:, :, 1:, 1:], expected)


def test_a_head_with_nothing_but_the_sink_leaves_the_others_measured():
    weights = random_weights(samples=1)
    weights[0, 0] = looking_at([0] * 6, 6)[0, 0]
    found = entropy(masked_attention(weights).without_first())
    assert found[0, 0].isnan()
    assert found[0, 1] > 0


def test_nothing_writes_into_the_weights():
    weights = random_weights(causal=True)
    before = weights.clone()
    real = torch.tensor([[True] * 4 + [False] * 2] * 3)
    attention = masked_attention(weights, real, real)
    every_score(attention)
    attention.without_first()
    attention.cut(1)
    assert weights.equal(before)


def test_order_and_batches_change_nothing():
    weights = random_weights(samples=6)
    whole = every_score(masked_attention(weights))
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    for name, values in every_score(masked_attention(weights[order])).items():
        torch.testing.assert_close(values, whole[name][order], rtol=0, atol=1e-12, equal_nan=True, msg=name)
    halves = [every_score(masked_attention(part)) for part in weights.split(3)]
    for name, values in whole.items():
        mean = (halves[0][name].mean(0) + halves[1][name].mean(0)) / 2
        torch.testing.assert_close(values.mean(0), mean, msg=name)


def test_moments_of_batches_are_those_of_all_samples():
    values = torch.randn(20, 3, generator=torch.Generator().manual_seed(1)).double()
    values[4, 0] = torch.nan
    values[1:, 2] = torch.nan
    moments = SampleMoments()
    for batch in values.split([7, 1, 12]):
        moments.add(batch)
    assert moments.measured.tolist() == [19, 20, 1]
    torch.testing.assert_close(moments.mean, values.nanmean(0))
    spread = values[:, 1].std() / math.sqrt(20)
    assert moments.standard_error[1].item() == pytest.approx(spread.item())
    assert moments.standard_error[2].isnan()
