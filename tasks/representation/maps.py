"""What maps of samples are made from: principal components, neighbours, and what can be mapped at all."""

from __future__ import annotations

import numpy as np

from stratascope.tasks.representation.distances import different_rows
from stratascope.tasks.representation.features import degenerate

KEPT_COMPONENTS = 50
"""t-SNE sees at most so many principal components of the features."""
SMALLEST = 10
"""With fewer samples, or fewer different ones, there is nothing to map."""


def unfit(values: np.ndarray) -> str:
    """Why features (sample, feature) cannot be mapped; empty where they can."""
    if len(values) < SMALLEST:
        return f"a map needs at least {SMALLEST} samples, there are {len(values)}"
    if reason := degenerate(values):
        return reason
    different = len(different_rows(values))
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


def turned_onto(placed: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """`placed` (sample, component) turned and reflected to lie as near to `reference` as it can; not scaled or moved.

    Orthogonal Procrustes: Schönemann 1966. Without scaling, so that growth stays visible.
    """
    from scipy.linalg import orthogonal_procrustes

    turn, _ = orthogonal_procrustes(placed, np.asarray(reference, np.float64))
    return np.asarray(placed @ turn)


def scaled(scores: np.ndarray) -> np.ndarray:
    """At most KEPT_COMPONENTS principal components with total variance 1, so that all steps weigh alike."""
    kept = scores[:, :KEPT_COMPONENTS]
    return kept / np.sqrt((kept**2).sum() / len(kept))


def fitting_perplexity(wish: float, count: int) -> float:
    """The perplexity that `count` samples allow: at least three neighbours for each unit of it."""
    return min(wish, max(2.0, (count - 1) / 3.5))


def nearest_in(placed: np.ndarray, neighbours: int) -> np.ndarray:
    """Row numbers (sample, neighbour) of each sample's nearest others in a map (sample, component)."""
    from sklearn.neighbors import NearestNeighbors

    found: np.ndarray = NearestNeighbors(n_neighbors=neighbours).fit(placed).kneighbors(return_distance=False)
    return found


def voted(nearest: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The class (row,) that most of the neighbours (row, neighbour) have among `targets` (sample,); the smaller in a tie."""
    classes = np.unique(targets)
    counts = np.stack([(targets[nearest] == value).sum(1) for value in classes], axis=1)
    found: np.ndarray = classes[counts.argmax(1)]
    return found


def voted_accuracy(nearest: np.ndarray, targets: np.ndarray) -> float:
    """Share of samples whose class `targets` (sample,) most of their neighbours have; the smaller class in a tie."""
    return float((voted(nearest, targets) == targets).mean())
