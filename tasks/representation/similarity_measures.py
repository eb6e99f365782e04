"""The measures of similarity between two layers, each with what it is blind to; `MEASURES` holds them by name.

`compare` takes two sides that saw the same samples. What a measure is declared blind to, its invariances, is proved by
the tests, and so is that it is not blind to the rest of `INVARIANCES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.tasks.representation.gram_products import Kernel, cka_matrix
from stratascope.tasks.representation.resampling import percentile_interval
from stratascope.tasks.representation.similarity_resampling import (
    Compare,
    Interval,
    cka_interval,
    drawn,
    permuted,
    permuted_cka,
    permuted_procrustes,
    procrustes_rounds,
    subsampled,
)
from stratascope.tasks.representation.similarity_sides import Side
from stratascope.tasks.representation.symmetric_matrices import left_singular, singular_values

INVARIANCES = {
    "feature_permutation": "permutation of the features",
    "rotation": "rotation and reflection of the features",
    "isotropic_scaling": "scaling of all features by one number",
    "translation": "translation of the features",
    "invertible_linear_map": "invertible linear maps of the features",
    "sample_scaling": "scaling of each sample's pattern by a number of its own",
    "sample_order": "order of the samples, the same on both sides",
}
"""What a measure can be blind to, applied to either side; the order of samples to both at once."""

_ORDER = frozenset({"feature_permutation", "sample_order"})
_RIGID = _ORDER | {"rotation", "translation"}
_SIMILAR = _RIGID | {"isotropic_scaling"}
_LINEAR = _SIMILAR | {"invertible_linear_map"}

NEIGHBOURS = 10
"""The `k` of Huh et al. 2024."""
SVCCA_SHARE = 0.99
RIDGE = 1e-3
"""The penalty of linear predictivity, relative to the variance along the first component."""


@dataclass(frozen=True)
class Measure:
    """One measure of similarity, or of distance, between the layers of two sides."""

    name: str
    metric: str
    """Under which name it is filed in the ledger."""
    kind: Literal["similarity", "distance"]
    symmetric: bool
    range: str
    source: str
    estimator: str
    definition: str
    invariances: frozenset[str]
    compare: Compare
    interval: Callable[[Side, Side, float, int, int], Interval]
    """Of two sides, their value, a number of rounds and a seed."""
    null: Callable[[Side, Side, int, int], np.ndarray]
    """The values (round,) where the samples of one side are shuffled, for a number of rounds and a seed."""
    second_side: frozenset[str] = frozenset()
    """What it is blind to on its second side beyond that, where it is not symmetric."""
    part: str = ""
    kernel: Literal["", "linear", "rbf"] = ""
    """Where it compares kernel matrices: whole matrices of pairs are found at once."""
    debiased: bool = True
    chance: Callable[[Side, Side], float] | None = None
    """What unrelated layers would have, where that is known beforehand."""

    def checked(self, first: Side, second: Side) -> float:
        """`compare`, once both sides are known to fit. Raises DoesNotApply with the reason."""
        if first.n != second.n:
            raise DoesNotApply(f"the sides have {first.n} and {second.n} samples: they must have seen the same")
        value = self.compare(first, second)
        if not np.isfinite(value):
            raise DoesNotApply(f"{self.name} is not finite")
        return value


# -- centred kernel alignment ----------------------------------------------------------------------------


def cka(first: Side, second: Side, kind: Literal["linear", "rbf"] = "linear", debiased: bool = True) -> float:
    """Centred kernel alignment. Kornblith et al. 2019, eq. 4; debiased: Song et al. 2012; Murphy et al. 2024."""
    matrix = cka_matrix([Kernel(first, kind), Kernel(second, kind)], debiased)
    if np.isnan(matrix[0, 1]):
        raise DoesNotApply(NOISE.format(n=first.n))
    return float(matrix[0, 1])


NOISE = (
    "among {n} samples the features of a side are no more alike than noise: its debiased criterion is not above 0"
)


def _cka_measure(kind: Literal["linear", "rbf"], debiased: bool) -> Measure:
    name = "_".join(filter(None, ("cka", "" if kind == "linear" else "rbf", "" if debiased else "biased")))
    kernel = "linear kernel" if kind == "linear" else "Gaussian kernel, as wide as the median distance"

    def interval(first: Side, second: Side, value: float, rounds: int, seed: int) -> Interval:
        return cka_interval((Kernel(first, kind), Kernel(second, kind)), debiased, rounds, seed)

    def null(first: Side, second: Side, rounds: int, seed: int) -> np.ndarray:
        kernels = (Kernel(first, kind), Kernel(second, kind))
        return permuted_cka((first, second), kernels, debiased, rounds, seed)

    lead = "How alike two layers hold the probe's samples: the alignment of their centred Gram matrices"
    bias = (
        "without the bias that few samples of many features bring; about 0 for unrelated layers, 1 for equal ones"
        if debiased
        else "with its bias: unrelated layers come near 1 where features outnumber samples"
    )
    return Measure(
        name=name, metric=name, kind="similarity", symmetric=True, range="[-1, 1]" if debiased else "[0, 1]",
        source="Kornblith et al. 2019, eq. 4; " + ("Song et al. 2012" if debiased else "Gretton et al. 2005, eq. 9"),
        estimator="debiased" if debiased else "biased", definition=f"{lead} ({kernel}), {bias}.",
        invariances=_SIMILAR, compare=lambda first, second: cka(first, second, kind, debiased),
        interval=interval, null=null, kernel=kind, debiased=debiased,
    )  # fmt: skip


# -- alignment by rotation -------------------------------------------------------------------------------


def nuclear_cosine(first: Side, second: Side) -> float:
    """|X'Y|_* / (|X| |Y|) of the kept scores: the largest cosine that a rotation of one side can bring about."""
    from scipy.linalg import svdvals

    return min(1.0, float(svdvals(first.scores.T @ second.scores).sum()) / (first.size * second.size))


def procrustes_distance(first: Side, second: Side) -> float:
    """min over rotations Q of |X/|X| - Y/|Y| Q|, Frobenius norms, centred X and Y: between 0 and √2.

    Schönemann 1966; the root of the normalised form of Ding et al. 2021, which makes it a metric.
    """
    return float(np.sqrt(max(0.0, 2.0 - 2.0 * nuclear_cosine(first, second))))


def _procrustes_interval(first: Side, second: Side, value: float, rounds: int, seed: int) -> Interval:
    if rounds < 2:
        return float("nan"), float("nan")
    cosines = procrustes_rounds(first, second, drawn(first.n, rounds, seed))
    return percentile_interval(np.sqrt(2.0 - 2.0 * cosines))


def shape_distance(first: Side, second: Side, alpha: float) -> float:
    """The angle, in radians, between X^φ and the best rotation of Y^φ, with X^φ = X (α I + (1 - α) (X'X)^(-1/2)).

    Williams et al. 2021. α = 1 aligns the layers as they are, 0 whitens them first (the angle of
    canonical correlations); between them the result depends on the features' scale, as published.
    """
    if alpha < 1:
        _canonical_or_not(first.rank, second.rank, first.n)
    weights = [alpha * side.spread + (1 - alpha) for side in (first, second)]
    nuclear = float(singular_values(weights[0][:, None] * first.cosines(second) * weights[1][None]).sum())
    sizes = [float(np.linalg.norm(item)) for item in weights]
    return float(np.arccos(np.clip(nuclear / (sizes[0] * sizes[1]), -1.0, 1.0)))


def shape_measure(alpha: float) -> Measure:
    """The shape metric of one `alpha` in [0, 1]."""
    blind = _SIMILAR if alpha == 1 else _LINEAR if alpha == 0 else _RIGID
    return _measure(
        f"shape_distance_{alpha:g}", "distance", "[0, π/2]", "Williams et al. 2021", "all kept components",
        "The angle in radians between two layers, partly whitened (`alpha`), that no rotation can take away; a metric.",
        blind, lambda first, second: shape_distance(first, second, alpha), metric="shape_distance",
        part=f"alpha={alpha:g}",
    )  # fmt: skip


# -- canonical correlations ------------------------------------------------------------------------------


def _canonical_or_not(first: int, second: int, n: int) -> None:
    if first + second >= n - 1:
        raise DoesNotApply(
            f"{first} and {second} components of {n} samples: subspaces so large meet whatever they hold; take more "
            "samples than both sides have components"
        )


def svcca(first: Side, second: Side, share: float = SVCCA_SHARE) -> float:
    """Mean canonical correlation of the leading components with `share` of each side's variance. Raghu et al. 2017."""
    kept = first.leading(share), second.leading(share)
    _canonical_or_not(*kept, first.n)
    correlations = singular_values(first.cosines(second, kept))
    return float(np.clip(correlations, 0.0, 1.0).mean())


def pwcca(first: Side, second: Side) -> float:
    """Canonical correlations weighted by how much of the first side each stands for. Morcos et al. 2018.

    The weights sum |<h, z>| over the first side's axes z: its principal components in place of its neurons, so that a
    rotation changes nothing.
    """
    _canonical_or_not(first.rank, second.dimension, first.n)
    left, correlations = left_singular(first.cosines(second, turned=True))
    weights = np.abs(left * first.spread[:, None]).sum(0)
    return float((weights * np.clip(correlations, 0.0, 1.0)).sum() / weights.sum())


# -- dissimilarities, neighbours, prediction --------------------------------------------------------------


def rsa(
    first: Side,
    second: Side,
    distance: Literal["correlation", "euclidean"] = "correlation",
    compared: Literal["spearman", "pearson", "cosine"] = "spearman",
) -> float:
    """How alike the dissimilarities of all pairs of samples are. Kriegeskorte et al. 2008."""
    found = []
    for side in (first, second):
        values = side.ranks(distance) if compared == "spearman" else side.dissimilarities(distance)
        values = values.astype(np.float64)
        values = values - (values.mean() if compared != "cosine" else 0.0)
        size = float(np.linalg.norm(values))
        if size == 0:
            raise DoesNotApply("all samples are equally far from each other")
        found.append(values / size)
    return float(np.clip(found[0] @ found[1], -1.0, 1.0))


def rsa_measure(
    distance: Literal["correlation", "euclidean"], compared: Literal["spearman", "pearson", "cosine"]
) -> Measure:
    """Representational similarity analysis with one kind of dissimilarity and one of comparison."""
    blind = _ORDER | {"isotropic_scaling", "sample_scaling"} if distance == "correlation" else _SIMILAR
    return _measure(
        f"rsa_{distance}_{compared}", "similarity", "[-1, 1]", "Kriegeskorte et al. 2008",
        f"{distance} distance, {compared}",
        "How alike two layers find the same pairs of samples: the agreement of their matrices of dissimilarity.",
        frozenset(blind), lambda first, second: rsa(first, second, distance, compared), metric="rsa",
        part=f"dissimilarity={distance};compared={compared}",
    )  # fmt: skip


def shared_neighbours(first: Side, second: Side, k: int = NEIGHBOURS) -> np.ndarray:
    """float64 (sample,): the share of its `k` nearest samples that each sample has on both sides."""
    held = min(side.found.neighbour.shape[1] for side in (first, second))
    if k > held:
        raise DoesNotApply(f"{k} neighbours are asked for, {held} are kept: see the options of `decomposition`")
    n, rows = first.n, np.arange(first.n)[:, None]
    near = np.zeros((n, n), bool)
    near[rows, first.found.neighbour[:, :k]] = True
    shared: np.ndarray = near[rows, second.found.neighbour[:, :k]].mean(1)
    return shared


def _neighbours_interval(first: Side, second: Side, value: float, rounds: int, seed: int) -> Interval:
    """The neighbours stay those among all samples: only over whom the mean is taken is drawn anew."""
    if rounds < 2:
        return float("nan"), float("nan")
    counts = drawn(first.n, rounds, seed)
    return percentile_interval(counts @ shared_neighbours(first, second) / first.n)


def linear_predictivity(first: Side, second: Side, ridge: float = RIDGE) -> float:
    """Share of the second side's variance that a ridge regression from the first one predicts, each sample left out.

    Exact without refitting (Allen 1974): the residual of a sample left out is its residual divided by 1 less its
    leverage, which the penalty keeps below 1. `ridge` is relative to the largest variance, so that scale does not matter.
    Below 0 where the prediction is worse than the mean.
    """
    residuals, amounts = _left_out(first, second, ridge)
    return float(1.0 - residuals.sum() / amounts.sum())


def _left_out(first: Side, second: Side, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Each sample's squared error (sample,) by the regression and by the mean of all the others."""
    basis, spread = first.basis, first.spread
    shrunk = spread**2 / (spread**2 + ridge * spread[0] ** 2)
    leverage = 1.0 / first.n + (basis**2 * shrunk).sum(1)
    residual = second.scores - basis @ (shrunk[:, None] * (basis.T @ second.scores))
    amounts: np.ndarray = (second.scores**2).sum(1) * (first.n / (first.n - 1)) ** 2
    return ((residual / (1.0 - leverage)[:, None]) ** 2).sum(1), amounts


def _predictivity_interval(first: Side, second: Side, value: float, rounds: int, seed: int) -> Interval:
    """The regression stays as it is: only whose errors are averaged is drawn anew."""
    if rounds < 2:
        return float("nan"), float("nan")
    counts = drawn(first.n, rounds, seed)
    residuals, amounts = _left_out(first, second, RIDGE)
    return percentile_interval(1.0 - (counts @ residuals) / (counts @ amounts))


# -- the register ----------------------------------------------------------------------------------------


def _measure(
    name: str, kind: Literal["similarity", "distance"], values: str, source: str, estimator: str, definition: str,
    invariances: frozenset[str], compare: Compare, metric: str = "", part: str = "", symmetric: bool = True,
    interval: Callable[[Side, Side, float, int, int], Interval] | None = None,
    null: Callable[[Side, Side, int, int], np.ndarray] | None = None, second_side: frozenset[str] = frozenset(),
    chance: Callable[[Side, Side], float] | None = None,
) -> Measure:  # fmt: skip
    """A measure whose interval, unless given, comes from halves of the samples, and whose null from shuffling them."""

    def halves(first: Side, second: Side, value: float, rounds: int, seed: int) -> Interval:
        return subsampled(compare, first, second, value, rounds, seed)

    def shuffled(first: Side, second: Side, rounds: int, seed: int) -> np.ndarray:
        return permuted(compare, first, second, rounds, seed)

    return Measure(
        name, metric or name, kind, symmetric, values, source, estimator, definition, invariances, compare,
        interval or halves, null or shuffled, second_side, part, chance=chance,
    )  # fmt: skip


_EVERY = (
    *(_cka_measure(kind, debiased) for kind in ("linear", "rbf") for debiased in (True, False)),
    _measure(
        "svcca", "similarity", "[0, 1]", "Raghu et al. 2017", f"components with {SVCCA_SHARE:.0%} of the variance",
        "Mean canonical correlation of the two layers' leading principal components.",
        _SIMILAR, svcca,
    ),
    _measure(
        "pwcca", "similarity", "[0, 1]", "Morcos et al. 2018", "weights from the first side's principal components",
        "Canonical correlations weighted by how much of the first layer each stands for.",
        _SIMILAR, pwcca, symmetric=False, second_side=frozenset({"invertible_linear_map"}),
    ),
    _measure(
        "procrustes_distance", "distance", "[0, √2]", "Schönemann 1966; Ding et al. 2021", "all kept components",
        "What is left between two layers, each of norm 1, after the best rotation of the one onto the other.",
        _SIMILAR, procrustes_distance, interval=_procrustes_interval, null=permuted_procrustes,
    ),
    *(shape_measure(alpha) for alpha in (0.0, 0.5, 1.0)),
    *(rsa_measure(distance, compared) for distance in ("correlation", "euclidean") for compared in ("spearman", "pearson", "cosine")),
    _measure(
        "mutual_knn", "similarity", "[0, 1]", "Huh et al. 2024", f"k={NEIGHBOURS}",
        "Share of a sample's nearest neighbours in one layer that are its nearest in the other too.",
        _SIMILAR, lambda first, second: float(shared_neighbours(first, second).mean()), interval=_neighbours_interval,
        chance=lambda first, second: NEIGHBOURS / (first.n - 1),
    ),
    _measure(
        "linear_predictivity", "similarity", "(-∞, 1]", "Yamins et al. 2014; Allen 1974", f"ridge={RIDGE:g}, leave one out",
        "Share of the variance of a layer (the other) that a linear map from this layer predicts, each sample left out.",
        _SIMILAR, linear_predictivity, symmetric=False, interval=_predictivity_interval,
    ),
)  # fmt: skip

MEASURES: dict[str, Measure] = {item.name: item for item in _EVERY}
