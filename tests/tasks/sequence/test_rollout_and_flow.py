"""Rollout and flow: identities, uniform attention, padding, feasibility, and how both lose the query with depth."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from stratascope.tasks.sequence.attention_flow import attention_flow, row_spread
from stratascope.tasks.sequence.rollout import rollout, with_residual


def random_layers(depth: int, tokens=8, heads=1, samples=1, seed=0, causal=False) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(depth, samples, heads, tokens, tokens, generator=generator)
    if causal:
        logits = logits.masked_fill(torch.ones(tokens, tokens, dtype=torch.bool).triu(1), -torch.inf)
    return list(logits.softmax(-1))


def test_rollout_of_identity_attention_is_the_identity():
    layers = [with_residual(torch.eye(5).expand(2, 3, 5, 5))] * 4
    for matrix in rollout(layers):
        torch.testing.assert_close(matrix, torch.eye(5).double().expand(2, 5, 5))


@pytest.mark.parametrize("fusion", ["mean", "max", "min"])
def test_rollout_rows_sum_to_1_and_causal_ones_stay_causal(fusion):
    free = rollout([with_residual(layer, fusion=fusion) for layer in random_layers(4, heads=3, samples=2)])
    causal = rollout(
        [with_residual(layer, fusion=fusion) for layer in random_layers(4, heads=3, samples=2, causal=True)]
    )
    for matrix in (*free, *causal):
        torch.testing.assert_close(matrix.sum(-1), torch.ones(2, 8).double())
    for matrix in causal:
        assert (matrix.triu(1) == 0).all()


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_rollout_of_uniform_attention(depth):
    tokens = 6
    uniform = torch.full((1, 2, tokens, tokens), 1 / tokens)
    bare = rollout([with_residual(uniform, share=0)] * depth)[-1]
    torch.testing.assert_close(bare, torch.full((1, tokens, tokens), 1 / tokens).double())
    found = rollout([with_residual(uniform)] * depth)[-1][0]
    expected = (
        torch.full((tokens, tokens), (1 - 0.5**depth) / tokens).double() + 0.5**depth * torch.eye(tokens).double()
    )
    torch.testing.assert_close(found, expected)


def test_padded_tokens_take_no_part_in_the_rollout():
    short = random_layers(3, tokens=5, heads=2)
    expected = rollout([with_residual(layer) for layer in short])[-1]
    wide = [torch.rand(1, 2, 8, 8) for _ in short]
    for layer, inner in zip(wide, short, strict=True):
        layer[:, :, :5, :5] = inner
        layer[:, :, :5, 5:] = 0
    real = torch.arange(8)[None] < 5
    found = rollout([with_residual(layer, real) for layer in wide])[-1]
    torch.testing.assert_close(found[:, :5, :5], expected)
    torch.testing.assert_close(found[:, 5:], torch.eye(8).double()[None, 5:])


def test_rollout_washes_out_with_depth():
    spreads = [
        row_spread(matrix[0].numpy()) for matrix in rollout([with_residual(item) for item in random_layers(6)])
    ]
    assert all(later < earlier for earlier, later in pairwise(spreads))
    assert 0.15 < spreads[0] < 0.21
    assert spreads[-1] < 0.01


def flow_of(layers, **options) -> np.ndarray:
    return attention_flow([layer[0].numpy() for layer in layers], **options)


def test_flow_of_one_layer_is_that_layer_and_a_row_can_be_asked_for_alone():
    layers = [with_residual(item) for item in random_layers(1)]
    found = flow_of(layers)
    np.testing.assert_allclose(found, layers[0][0].numpy(), atol=1e-8)
    np.testing.assert_array_equal(flow_of(layers, queries=[3]), found[3:4])


@pytest.mark.parametrize("depth", [2, 3])
def test_flow_is_nowhere_below_the_rollout(depth):
    layers = [with_residual(item) for item in random_layers(depth, tokens=6)]
    flow, rolled = flow_of(layers), rollout(layers)[-1][0].numpy()
    assert (flow >= rolled - 1e-7).all()
    assert (flow <= np.minimum(1, layers[0][0].numpy().sum(0)) + 1e-7).all()


def test_flow_against_linear_programming():
    from scipy.optimize import linprog

    layers = [with_residual(item)[0].numpy() for item in random_layers(2, tokens=3)]
    edges = [(level, i, j) for level in (1, 0) for i in range(3) for j in range(3)]
    capacity = [layers[level][i, j] for level, i, j in edges]
    found = attention_flow(layers)
    for query in range(3):
        for key in range(3):
            # What enters a token of the middle layer leaves it; only the query sends, only the key is reached.
            balance = [
                [(level == 1) * (j == m) - (level == 0) * (i == m) for level, i, j in edges] for m in range(3)
            ]
            bounds = [
                (0, c if (level == 0 or i == query) and (level == 1 or j == key) else 0)
                for c, (level, i, j) in zip(capacity, edges, strict=True)
            ]
            best = linprog(
                [-float(level == 1) for level, _, _ in edges], A_eq=balance, b_eq=[0] * 3, bounds=bounds
            )
            assert found[query, key] == pytest.approx(-best.fun, abs=1e-7)


@pytest.mark.parametrize(("share", "depth"), [(0.5, 4), (0.05, 6)])
def test_flow_saturates_with_depth_whatever_the_query(share, depth):
    layers = [with_residual(item, share=share) for item in random_layers(depth, heads=2)]
    expected = np.minimum(1, layers[0][0].numpy().sum(0))
    found = flow_of(layers)
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1e-7)
    assert row_spread(found) < 1e-7
    assert row_spread(flow_of(layers[:1])) > 0.04
