"""Neural collapse, NC1 to NC4, after Papyan, Han and Donoho 2020 (PNAS 117, 24652). Plain functions on arrays.

Each class weighs alike, however many samples it has: the global mean is the mean of the class means. For balanced
classes, which the paper has, that is the paper's.
"""

from __future__ import annotations

import numpy as np

from stratascope.tasks.representation.class_separation import ClassMoments

_NEGLIGIBLE = 1e-12
"""Directions in which the class means differ by less than this share of their largest squared spread are left out."""


def centred_means(moments: ClassMoments) -> np.ndarray:
    """Class means (class, feature) about the mean of the class means."""
    return moments.means - moments.means.mean(0)


def within_class_variability(moments: ClassMoments) -> float:
    """NC1: tr(Σ_W Σ_B⁺) / C, with Σ_W the mean of the classes' covariances (divided by n_c), Σ_B that of their means.

    ⁺ is the pseudo-inverse over the directions in which means differ. NaN where all means coincide. Papyan et al., fig. 6.
    """
    centred = centred_means(moments)
    sizes, turns = np.linalg.eigh(centred @ centred.T)
    kept = sizes > _NEGLIGIBLE * max(sizes[-1], 0.0)
    if sizes[-1] <= 0:
        return float("nan")
    # The centred means' right singular vectors are sums of the means themselves, so no (feature, feature) matrix is
    # needed: a sample along one of them is a sum of its inner products with the means.
    overlap = moments.overlap - moments.overlap.mean(1, keepdims=True)
    along = overlap @ turns[:, kept] / np.sqrt(sizes[kept])
    own = np.stack([moments.mean_by_class(column) for column in along.T], axis=1)[moments.index]
    spread = np.array([moments.mean_by_class(column).mean() for column in ((along - own) ** 2).T])
    return float((spread / sizes[kept]).sum())


def simplex_deviations(vectors: np.ndarray) -> dict[str, float]:
    """NC2 of `vectors` (class, feature) about their common mean: how far they are from a simplex with equal sides.

    `equinorm` is the standard deviation of their norms by the mean of the norms, `equiangle` the standard deviation of
    the cosines of all pairs, `maximal_angle` the mean of |cosine + 1 / (C - 1)|. Papyan et al., figs. 2 to 4. NaN
    where a vector is zero, and angles where there are only two classes: those always lie opposite to each other.
    """
    norms = np.linalg.norm(vectors, axis=1)
    if norms.min() == 0:
        return dict.fromkeys(("equinorm", "equiangle", "maximal_angle"), float("nan"))
    cosines = cosines_of(vectors)[np.triu_indices(len(vectors), 1)]
    pairs = len(vectors) > 2
    return {
        "equinorm": float(norms.std() / norms.mean()),
        "equiangle": float(cosines.std()) if pairs else float("nan"),
        "maximal_angle": float(np.abs(cosines + 1 / (len(vectors) - 1)).mean()) if pairs else float("nan"),
    }


def cosines_of(vectors: np.ndarray) -> np.ndarray:
    """Cosines (class, class) of `vectors` (class, feature); NaN with a zero vector."""
    norms = np.linalg.norm(vectors, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.clip(vectors @ vectors.T / np.outer(norms, norms), -1.0, 1.0)


def self_duality(moments: ClassMoments, weights: np.ndarray) -> float:
    """NC3: ‖W / ‖W‖ - M / ‖M‖‖², Frobenius norms; `weights` (class, feature) are the last layer's, M the centred means.

    0 where they are proportional, 2 where they have nothing in common, 4 where they are opposite. Papyan et al., fig. 5.
    """
    centred = centred_means(moments)
    sizes = np.linalg.norm(centred), np.linalg.norm(weights)
    if min(sizes) == 0:
        return float("nan")
    return float(((weights / sizes[1] - centred / sizes[0]) ** 2).sum())


def disagreement_with_nearest_mean(moments: ClassMoments, decisions: np.ndarray) -> float:
    """NC4: the share of samples for which the nearest class mean is not what the network decides. Papyan et al., fig. 7.

    `decisions` (sample,) are places among the classes, -1 for a class that has no samples.
    """
    differs = moments.squared_distance.argmin(1) != decisions
    return float(moments.weight @ differs / moments.weight.sum())
