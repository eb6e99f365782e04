"""Maps of the same samples at many steps: principal components, t-SNE from a common start, and their quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

KEPT_COMPONENTS = 50
"""t-SNE sees at most so many principal components of the features."""
SMALLEST = 10
"""With fewer samples, or fewer different ones, there is nothing to map."""
_BLOCK = 512
_START_ITERATIONS = (150, 200)
"""Of the common start: under early exaggeration 12, and after it."""
_LOOSENING = 75
"""Iterations of each step under exaggeration 4, in which groups can still change places."""


def unfit(values: np.ndarray) -> str:
    """Why features (sample, feature) cannot be mapped; empty where they can."""
    bad = int((~np.isfinite(values)).any(1).sum())
    if bad:
        return f"the features of {bad} of {len(values)} samples are not finite"
    if len(values) < SMALLEST:
        return f"a map needs at least {SMALLEST} samples, there are {len(values)}"
    if np.ptp(values, axis=0).max(initial=0.0) == 0:
        return "the features are constant: all samples look alike to this layer"
    different = len({row.tobytes() for row in np.ascontiguousarray(values)})
    if different < SMALLEST:
        return f"only {different} of {len(values)} samples differ in their features"
    return ""


def principal_components(values: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores (sample, count) and shares of the variance (count,), float64, largest first.

    Exact, from the smaller of the two Gram matrices of the centred `values` (sample, feature): scikit-learn's exact
    solvers decompose the whole matrix, which costs ten times as much where features are many. Where the data has
    fewer dimensions, zeros follow. Each component's sign is such that its entry of largest size is positive.
    """
    from scipy.linalg import eigh

    centred = values.astype(np.float64) - values.mean(0, dtype=np.float64)
    samples, features = centred.shape
    wanted = min(count, samples, features)
    gram = centred.T @ centred if features <= samples else centred @ centred.T
    sizes, vectors = eigh(gram, subset_by_index=(len(gram) - wanted, len(gram) - 1))
    sizes, vectors = np.clip(sizes[::-1], 0, None), vectors[:, ::-1]
    scores = centred @ vectors if features <= samples else vectors * np.sqrt(sizes)
    signs = np.sign(scores[np.abs(scores).argmax(0), range(wanted)])
    scores = np.pad(scores * np.where(signs == 0, 1, signs), ((0, 0), (0, count - wanted)))
    return scores, np.pad(sizes / np.trace(gram), (0, count - wanted))


def align_backwards(maps: Sequence[np.ndarray]) -> np.ndarray:
    """`maps` (sample, component) of consecutive steps, stacked; each is turned onto the following one.

    Rotation and reflection only (orthogonal Procrustes: Schönemann 1966), without scaling, so that growth stays
    visible. The last map stays as it is.
    """
    from scipy.linalg import orthogonal_procrustes

    aligned = [np.asarray(maps[-1], np.float64)]
    for placed in reversed(maps[:-1]):
        turn, _ = orthogonal_procrustes(placed, aligned[0])
        aligned.insert(0, placed @ turn)
    return np.stack(aligned)


def scaled(scores: np.ndarray) -> np.ndarray:
    """At most KEPT_COMPONENTS principal components with total variance 1, so that all steps weigh alike."""
    kept = scores[:, :KEPT_COMPONENTS]
    return kept / np.sqrt((kept**2).sum() / len(kept))


def fitting_perplexity(wish: float, count: int) -> float:
    """The perplexity that `count` samples allow: at least three neighbours for each unit of it."""
    return min(wish, max(2.0, (count - 1) / 3.5))


@dataclass(frozen=True)
class Neighbourhoods:
    """t-SNE's affinities of each step, and where all steps' maps start from."""

    affinities: tuple[Any, ...]
    consensus: Any
    start: np.ndarray
    """(sample, 3): principal components of all steps' features side by side."""
    seed: int

    @classmethod
    def of(cls, reduced: Sequence[np.ndarray], perplexity: float, seed: int) -> Neighbourhoods:
        """Affinities of each of `reduced` (sample, component), and the mean of them as the consensus."""
        from openTSNE.affinity import PerplexityBasedNN, PrecomputedAffinities

        affinities = tuple(
            PerplexityBasedNN(values, perplexity=perplexity, method="exact", n_jobs=1, random_state=seed)
            for values in reduced
        )
        mean = affinities[0].P
        for item in affinities[1:]:
            mean = mean + item.P
        consensus = PrecomputedAffinities(mean / mean.sum(), normalize=False)
        start, _ = principal_components(np.concatenate(reduced, axis=1), 3)
        return cls(affinities, consensus, start, seed)


def tsne_maps(neighbourhoods: Neighbourhoods, dimensions: int, iterations: int) -> tuple[np.ndarray, np.ndarray]:
    """t-SNE of each step (step, sample, component), and each map's Kullback–Leibler divergence in nats.

    One map of the mean affinities is the start of every step, which then leaves it under exaggeration 4. So
    positions mean the same from step to step, no step is bound to the one before, and a group that forms late
    can still part from the others. Learning rates after Belkina et al. 2019 (samples over exaggeration); gradients
    by Barnes–Hut with angle 0.8. Equal input gives equal bytes: one thread, no random start.
    """
    from openTSNE import TSNEEmbedding

    def begin(start: np.ndarray, affinities: Any) -> Any:
        return TSNEEmbedding(
            start, affinities, negative_gradient_method="bh", theta=0.8, n_jobs=1, learning_rate="auto",
            random_state=neighbourhoods.seed,
        )  # fmt: skip

    first = neighbourhoods.start[:, :dimensions]
    state = begin(first / max(float(first[:, 0].std()), 1e-12) * 1e-4, neighbourhoods.consensus)
    state = state.optimize(n_iter=_START_ITERATIONS[0], exaggeration=12, momentum=0.5)
    state = state.optimize(n_iter=_START_ITERATIONS[1], momentum=0.8)
    maps, divergences = [], []
    for affinities in neighbourhoods.affinities:
        current = begin(np.array(state), affinities)
        current = current.optimize(n_iter=_LOOSENING, exaggeration=4, momentum=0.5)
        current = current.optimize(n_iter=iterations, momentum=0.8)
        maps.append(np.array(current))
        divergences.append(float(current.kl_divergence))
    return np.stack(maps), np.asarray(divergences)


def neighbours_among(values: np.ndarray, count: int) -> np.ndarray:
    """int64 (sample, count): each sample's nearest others among `values` (sample, feature), nearest first.

    Exact, from the Gram matrix in blocks; the smaller row number comes first where distances are equal.
    """
    centred = values.astype(np.float64) - values.mean(0, dtype=np.float64)
    squared = (centred**2).sum(1)
    found = np.empty((len(values), count), np.int64)
    for start in range(0, len(values), _BLOCK):
        block = slice(start, start + _BLOCK)
        distances = squared[block, None] + squared[None] - 2.0 * (centred[block] @ centred.T)
        rows = np.arange(len(distances))
        distances[rows, start + rows] = np.inf
        near = np.argpartition(distances, count - 1, axis=1)[:, :count]
        near.sort(1)
        order = np.take_along_axis(distances, near, 1).argsort(1, kind="stable")
        found[block] = np.take_along_axis(near, order, 1)
    return found


class Reference:
    """Who is near whom among features (sample, feature): what the maps of one step are judged by."""

    def __init__(self, features: np.ndarray, neighbours: int) -> None:
        from sklearn.metrics import pairwise_distances

        distances = pairwise_distances(features)
        np.fill_diagonal(distances, np.inf)
        order = distances.argsort(1, kind="stable")
        self.neighbours = neighbours
        self.nearest = order[:, :neighbours]
        self._ranks = np.empty_like(order)
        np.put_along_axis(self._ranks, order, np.arange(1, len(order) + 1)[None], 1)

    def trustworthiness(self, nearest: np.ndarray) -> float:
        """Of a map in which each sample's neighbours are `nearest` (sample, neighbour). Venna and Kaski 2001.

        As scikit-learn's, but the ranks among the features are found once for all maps.
        """
        count, kept = len(self._ranks), self.neighbours
        beyond = np.take_along_axis(self._ranks, nearest, 1) - kept
        penalty = float(beyond[beyond > 0].sum())
        return 1.0 - penalty * 2.0 / (count * kept * (2.0 * count - 3.0 * kept - 1.0))


def nearest_in(placed: np.ndarray, neighbours: int) -> np.ndarray:
    """Row numbers (sample, neighbour) of each sample's nearest others in a map (sample, component)."""
    from sklearn.neighbors import NearestNeighbors

    found: np.ndarray = NearestNeighbors(n_neighbors=neighbours).fit(placed).kneighbors(return_distance=False)
    return found


def voted_accuracy(nearest: np.ndarray, targets: np.ndarray) -> float:
    """Share of samples whose class `targets` (sample,) most of their neighbours have; the smaller class in a tie."""
    classes = np.unique(targets)
    counts = np.stack([(targets[nearest] == value).sum(1) for value in classes], axis=1)
    return float((classes[counts.argmax(1)] == targets).mean())
