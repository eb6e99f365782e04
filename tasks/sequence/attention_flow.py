"""How much of each input token can reach each token of the last layer through the attention of all layers (maximum flow)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

SCALE = 2**30
"""Capacities are whole numbers of 1 / SCALE; a row sums to 1, so that no flow goes beyond 32 bits."""


def attention_flow(layers: Sequence[np.ndarray], queries: Sequence[int] | None = None) -> np.ndarray:
    """float64 (query, key): the maximum flow from each of `queries` (all where None) at the top to each input token.

    `layers`, from the first to the last, are (token, token) with rows that sum to 1, the residual connection mixed in (as
    from `with_residual`); their entries are the capacities of the edges (Abnar and Zuidema 2020, section 4). Exact to
    about edges / 2^30. Takes tokens × queries solves of a graph with layers × tokens² edges.

    With dense attention the flow saturates: from about four layers on, each row is min(1, column sum of the first layer),
    whatever the query. Print `row_spread` beside it.
    """
    depth, tokens = len(layers), len(layers[0])
    graph = _graph(layers)
    asked = range(tokens) if queries is None else queries
    found = np.empty((len(asked), tokens))
    for row, query in enumerate(asked):
        for key in range(tokens):
            found[row, key] = maximum_flow(graph, depth * tokens + query, key).flow_value
    return found / SCALE


def _graph(layers: Sequence[np.ndarray]) -> csr_array:
    """Edges from token i of level l to token j of level l − 1; level 0 are the inputs."""
    depth, tokens = len(layers), len(layers[0])
    weights = np.stack(layers).astype(np.float64)
    level, query, key = np.nonzero(weights > 0)
    capacity = np.rint(weights[level, query, key] * SCALE).astype(np.int32)
    rows, columns = (level + 1) * tokens + query, level * tokens + key
    size = (depth + 1) * tokens
    return csr_array((capacity, (rows.astype(np.int32), columns.astype(np.int32))), shape=(size, size))


def row_spread(matrix: np.ndarray) -> float:
    """How much the rows of `matrix` (query, key) differ: the standard deviation over queries, mean over keys. Near 0 all
    queries are told the same."""
    return float(np.asarray(matrix, np.float64).std(0).mean())
