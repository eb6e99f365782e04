"""The Jensen–Shannon distance of heads: against scipy, its bounds, padding, and a head against itself."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import jensenshannon

from stratascope.tasks.sequence.attention_agreement import change_between, head_distances, jensen_shannon
from stratascope.tasks.sequence.attention_scores import masked_attention


def random_weights(samples=2, heads=3, tokens=5, seed=0) -> torch.Tensor:
    return torch.randn(samples, heads, tokens, tokens, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def test_distance_is_that_of_scipy_in_bit():
    weights = random_weights()
    expected = np.stack(
        [[[jensenshannon(weights[s, a], weights[s, b], base=2, axis=-1).mean() for b in range(3)] for a in range(3)] for s in range(2)]
    )  # fmt: skip
    np.testing.assert_allclose(head_distances(masked_attention(weights)), expected, atol=1e-6)


def test_equal_heads_have_distance_0_and_heads_without_a_common_key_1():
    one, other = torch.tensor([[0.5, 0.5, 0, 0], [0, 0, 0.1, 0.9]], dtype=torch.float64)
    assert jensen_shannon(one, one).item() == 0
    assert jensen_shannon(one, other).item() == pytest.approx(1, abs=1e-12)


def test_change_of_a_head_is_measured_over_real_queries():
    before, after = random_weights(), random_weights(seed=1)
    after[:, 1] = before[:, 1]
    expected = change_between(masked_attention(before), masked_attention(after))
    assert (expected[:, 1] == 0).all()
    assert (expected[:, 0] > 0.05).all()
    wide = [torch.nn.functional.pad(item, (0, 2, 0, 2)) for item in (before, after)]
    wide[0][:, :, 5:, 0] = 1
    wide[1][:, :, 5:, 1] = 1
    real = torch.arange(7)[None].expand(2, -1) < 5
    found = change_between(*(masked_attention(item, real, real) for item in wide))
    torch.testing.assert_close(found, expected)


def test_a_sample_without_a_query_is_not_measured():
    real = torch.tensor([[False] * 5, [True] * 5])
    found = head_distances(masked_attention(random_weights(), real, real))
    assert found[0].isnan().all()
    assert not found[1].isnan().any()
