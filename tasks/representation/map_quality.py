"""How far a map of samples may be believed: neighbours kept, distances kept, and how far it moves from step to step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stratascope.tasks.representation.maps import voted
from stratascope.tasks.representation.resampling import (
    bootstrap_counts,
    percentile_interval,
    subsample_interval,
    subsamples,
)

NEIGHBOURS = 15
ROUNDS = 200
_DISTANCE_POINTS = 500
_DISTANCE_ROUNDS = 20
_BLOCK = 512

Estimate = tuple[float, float, float]
"""A value with the ends of its interval; NaN where there is none."""


def neighbours_for(samples: int) -> int:
    """How many neighbours are looked at among `samples`: 15, or fewer than half of the others."""
    return min(NEIGHBOURS, (samples - 1) // 2)


@dataclass
class _Tally:
    """What each sample contributes in one map."""

    torn_in: np.ndarray
    torn_out: np.ndarray
    kept: np.ndarray
    right: np.ndarray


def judged(
    values: np.ndarray, maps: Mapping[str, np.ndarray], classes: np.ndarray | None, seed: int = 0
) -> dict[str, dict[str, Estimate]]:
    """Estimates by map and measure; those of the features themselves stand under "".

    `values` (sample, feature) are the features, `maps` (sample, component) their maps, `classes` (sample,) whole
    numbers. `trustworthiness` and `continuity` after Venna and Kaski 2001, `knn_preservation` the share of neighbours
    kept, `knn_accuracy` the share of samples whose class most neighbours have. Each is a mean over samples; its
    interval is a bootstrap of the samples, whose neighbourhoods stay as they are. Samples at equal distances share
    the better rank. Needs memory for 512 rows of distances at a time.
    """
    count, near = len(values), neighbours_for(len(values))
    tallies = {name: _Tally(*(np.zeros(count) for _ in range(4))) for name in maps}
    own = np.zeros(count)
    sides = {name: (placed, (placed**2).sum(1)) for name, placed in _centred(maps).items()}
    features = values.astype(np.float64) - values.mean(0, dtype=np.float64)
    squared = (features**2).sum(1)
    for start in range(0, count, _BLOCK):
        block = slice(start, min(start + _BLOCK, count))
        distances = _distances(features, squared, block)
        nearest = _nearest(distances, near)
        if classes is not None:
            own[block] = voted(nearest, classes) == classes[block]
        for name, (placed, sizes) in sides.items():
            between = _distances(placed, sizes, block)
            drawn = _nearest(between, near)
            tally = tallies[name]
            tally.torn_in[block] = _excess(distances, drawn, near)
            tally.torn_out[block] = _excess(between, nearest, near)
            tally.kept[block] = (nearest[:, :, None] == drawn[:, None]).any(2).mean(1)
            if classes is not None:
                tally.right[block] = voted(drawn, classes) == classes[block]
    counts = bootstrap_counts(count, ROUNDS, seed)
    norm = 2.0 / (near * (2.0 * count - 3.0 * near - 1.0))
    found: dict[str, dict[str, Estimate]] = {"": {}}
    if classes is not None:
        found[""]["knn_accuracy"] = _mean(own, counts)
    for name, tally in tallies.items():
        found[name] = {
            "trustworthiness": _mean(1.0 - norm * tally.torn_in, counts),
            "continuity": _mean(1.0 - norm * tally.torn_out, counts),
            "knn_preservation": _mean(tally.kept, counts),
        }
        if classes is not None:
            found[name]["knn_accuracy"] = _mean(tally.right, counts)
    return found


def _centred(maps: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: placed.astype(np.float64) - placed.mean(0, dtype=np.float64) for name, placed in maps.items()}


def _distances(values: np.ndarray, squared: np.ndarray, block: slice) -> np.ndarray:
    """Squared distances (row of the block, sample); infinite from each sample to itself."""
    found = squared[block, None] + squared[None] - 2.0 * (values[block] @ values.T)
    rows = np.arange(len(found))
    found[rows, block.start + rows] = np.inf
    return found


def _nearest(distances: np.ndarray, count: int) -> np.ndarray:
    return np.argpartition(distances, count - 1, axis=1)[:, :count]


def _excess(distances: np.ndarray, nearest: np.ndarray, count: int) -> np.ndarray:
    """By how many ranks (row,) the `nearest` (row, neighbour) of another space lie beyond `count` here, in all."""
    found = np.zeros(len(nearest))
    reach = np.take_along_axis(distances, nearest, 1)
    for place in range(nearest.shape[1]):
        ranks = np.count_nonzero(distances < reach[:, place, None], axis=1) + 1
        found += np.maximum(ranks - count, 0)
    return found


def _mean(values: np.ndarray, counts: np.ndarray) -> Estimate:
    return (float(values.mean()), *percentile_interval(counts @ values / len(values)))


def distance_correlations(
    values: np.ndarray, maps: Mapping[str, np.ndarray], classes: np.ndarray | None, seed: int = 0
) -> dict[str, dict[str, Estimate]]:
    """Spearman's correlation of distances in features and map: of pairs of samples, and of pairs of class means.

    `distance_correlation` is over all pairs of the first 500 samples, whose order is random; its interval comes from
    halves of them. `centroid_distance_correlation` needs four classes or more.
    """
    from scipy.spatial.distance import pdist
    from scipy.stats import rankdata, spearmanr

    points = min(len(values), _DISTANCE_POINTS)
    first, second = np.triu_indices(points, 1)
    wanted = rankdata(pdist(values[:points].astype(np.float64)))
    halves = [np.isin(np.arange(points), rows) for rows in subsamples(points, _DISTANCE_ROUNDS, seed)]
    inside = [half[first] & half[second] for half in halves]
    kinds = np.unique(classes) if classes is not None else np.empty(0)
    far = pdist(_centroids(values, classes, kinds)) if classes is not None and len(kinds) >= 4 else None
    found: dict[str, dict[str, Estimate]] = {}
    for name, placed in maps.items():
        drawn = rankdata(pdist(placed[:points].astype(np.float64)))
        value = _correlation(wanted, drawn)
        rounds = np.array([_correlation(wanted[pairs], drawn[pairs]) for pairs in inside])
        found[name] = {"distance_correlation": (value, *subsample_interval(value, rounds))}
        if far is not None and classes is not None:
            between = pdist(_centroids(placed, classes, kinds))
            if np.ptp(far) > 0 and np.ptp(between) > 0:
                value = float(spearmanr(far, between).statistic)
                found[name]["centroid_distance_correlation"] = (value, np.nan, np.nan)
    return found


def _centroids(values: np.ndarray, classes: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    return np.stack([values[classes == kind].mean(0, dtype=np.float64) for kind in kinds])


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    first, second = first - first.mean(), second - second.mean()
    size = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / size) if size > 0 else float("nan")


def kept_neighbours(placed: np.ndarray, others: list[np.ndarray], seed: int = 0) -> Estimate:
    """Share of each sample's neighbours in the map `placed` (sample, component) that are its neighbours in `others`.

    The mean over the other maps; the interval is a bootstrap of the samples.
    """
    near = neighbours_for(len(placed))
    counts = bootstrap_counts(len(placed), ROUNDS, seed)
    kept = np.zeros(len(placed))
    mine = _all_nearest(placed, near)
    for other in others:
        kept += (mine[:, :, None] == _all_nearest(other, near)[:, None]).any(2).mean(1) / len(others)
    return _mean(kept, counts)


def _all_nearest(placed: np.ndarray, count: int) -> np.ndarray:
    centred = _centred({"": placed})[""]
    squared = (centred**2).sum(1)
    blocks = [slice(start, min(start + _BLOCK, len(placed))) for start in range(0, len(placed), _BLOCK)]
    return np.concatenate([_nearest(_distances(centred, squared, block), count) for block in blocks])


def movement(earlier: np.ndarray, later: np.ndarray) -> float:
    """Median way of a sample between two maps (sample, component), in units of their root mean square radius."""
    radius = np.sqrt((_centred({"": earlier})[""] ** 2).sum(1).mean() / 2 + (_centred({"": later})[""] ** 2).sum(1).mean() / 2)  # fmt: skip
    return float(np.median(np.linalg.norm(later.astype(np.float64) - earlier, axis=1)) / max(radius, 1e-300))
