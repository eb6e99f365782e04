"""Which pieces of a picture are shown together, and what each is worth by how the score goes: LIME and Shapley values."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import numpy as np

Surrogate = Literal["ridge", "lasso"]


def lime_weights(present: np.ndarray, width: float) -> np.ndarray:
    """float64 (perturbation,): exp(−d²/width²) with d the cosine distance of `present` (perturbation, piece) to all pieces.

    Ribeiro, Singh and Guestrin 2016, section 3.4.
    """
    distance = 1 - np.sqrt(present.mean(1))
    return np.exp(-(distance**2) / width**2)


def linear_surrogate(
    present: np.ndarray, scores: np.ndarray, weights: np.ndarray, surrogate: Surrogate, regularisation: float
) -> tuple[np.ndarray, float]:
    """What each piece adds, float64 (piece,), and the weighted R² of the line that says so.

    `regularisation` is the α of scikit-learn's `Ridge` (in units of the weights' sum) or `Lasso` (in units of the score).
    """
    from sklearn.linear_model import Lasso, Ridge

    model = (
        Ridge(alpha=regularisation * float(weights.sum()))
        if surrogate == "ridge"
        else Lasso(alpha=regularisation, max_iter=10_000)
    )
    inputs = present.astype(np.float64)
    model.fit(inputs, scores, sample_weight=weights)
    predicted = model.predict(inputs)
    mean = np.average(scores, weights=weights)
    spread = float(np.sum(weights * (scores - mean) ** 2))
    left = float(np.sum(weights * (scores - predicted) ** 2))
    # A score that nothing changes is told in full by a line that says so.
    return np.asarray(model.coef_), 1 - left / spread if spread > 0 else 1.0


def shapley_coalitions(
    pieces: int, evaluations: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Coalitions bool (coalition, piece), none empty or whole, and their weights float64 in the regression.

    All 2^pieces − 2 of them where `evaluations` suffice. Otherwise the smallest and largest sizes whole, as far as
    their share of the weight pays for them, and from the rest random pairs of a coalition and its complement
    (Lundberg and Lee 2017, theorem 2; Covert and Lee 2021, section 4.2).
    """
    if pieces < 2:
        return np.zeros((0, pieces), bool), np.zeros(0)
    if 2**pieces - 2 <= evaluations:
        every = np.array(list(itertools.product([False, True], repeat=pieces)))[1:-1]
        size = every.sum(1)
        return every, (pieces - 1) / (_binomial(pieces, size) * size * (pieces - size))
    found: list[np.ndarray] = []
    weights: list[np.ndarray] = []
    sizes = np.arange(1, pieces // 2 + 1)
    share = (pieces - 1) / (sizes * (pieces - sizes)) * np.where(2 * sizes == pieces, 1, 2)
    left, first = evaluations, 0
    for place, size in enumerate(sizes.tolist()):
        members = math.comb(pieces, size) * (1 if 2 * size == pieces else 2)
        if left * share[place] / share[place:].sum() < members:
            break
        level = np.zeros((math.comb(pieces, size), pieces), bool)
        for row, chosen in enumerate(itertools.combinations(range(pieces), size)):
            level[row, list(chosen)] = True
        level = level if 2 * size == pieces else np.concatenate([level, ~level])
        found.append(level)
        weights.append(np.full(len(level), share[place] / members))
        left, first = left - members, place + 1
    pairs = left // 2
    if first < len(sizes) and pairs:
        drawn = np.zeros((pairs, pieces), bool)
        for row, size in enumerate(generator.choice(sizes[first:], pairs, p=share[first:] / share[first:].sum())):
            drawn[row, generator.permutation(pieces)[:size]] = True
        both, often = np.unique(np.concatenate([drawn, ~drawn]), axis=0, return_counts=True)
        found.append(both)
        weights.append(often * share[first:].sum() / often.sum())
    return np.concatenate(found), np.concatenate(weights)


def _binomial(total: int, chosen: np.ndarray) -> np.ndarray:
    return np.array([math.comb(total, int(item)) for item in chosen], np.float64)


def shapley_values(
    present: np.ndarray, scores: np.ndarray, weights: np.ndarray, empty: float, whole: float
) -> np.ndarray:
    """float64 (piece,): the weighted least-squares values that add up to `whole` − `empty`, the scores with all and with none.

    The constraint is put in by leaving out the last piece (Lundberg and Lee 2017, theorem 2).
    """
    change = whole - empty
    if present.shape[1] < 2:
        return np.full(present.shape[1], change)
    values = present.astype(np.float64)
    last = values[:, -1]
    root = np.sqrt(weights)
    design = (values[:, :-1] - last[:, None]) * root[:, None]
    wanted = (scores - empty - last * change) * root
    others = np.linalg.lstsq(design, wanted, rcond=None)[0]
    return np.append(others, change - others.sum())
