"""t-SNE by openTSNE: affinities, maps from a start of their own or a common one, and new samples in an old map."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from stratascope.tasks.representation.distances import Neighbours, centred_values
from stratascope.tasks.representation.maps import fitting_perplexity, principal_components

OWN_ITERATIONS = (250, 500)
"""Of a map from a start of its own: under early exaggeration 12, and after it; openTSNE's defaults."""
COMMON_ITERATIONS = (150, 200)
"""The same of the common start, from which every step moves on anyway."""
LOOSENING = 150
"""Iterations of each step under exaggeration 4, in which groups can still change places."""
MOST_SOLID = 2000
"""Samples of a map in three dimensions, where gradients take Barnes and Hut's tree."""
_TREE = 2000
"""Up to so many samples the tree is quicker than interpolation on a grid in two dimensions too."""
_START_SPREAD = 1e-4
_BLOCK = 512


@dataclass(frozen=True)
class Mapped:
    """A map and how well it has done what it was made to do."""

    positions: np.ndarray
    """float64 (sample, component)."""
    divergence: float = float("nan")
    """t-SNE's Kullback–Leibler divergence in nats; NaN for other methods."""


@dataclass(frozen=True)
class Tsne:
    """t-SNE with one setting for all steps. Equal input gives equal bytes: one thread, exact neighbours, seeded starts.

    Learning rates are openTSNE's `auto`, samples over exaggeration in each stage (Belkina et al. 2019); starts are
    principal components of spread 1e-4 (Kobak and Berens 2019).
    """

    perplexity: tuple[float, ...] = (30.0,)
    """More than one are mixed: small ones for what is near, large ones for the whole (Kobak and Berens 2019)."""
    iterations: int = 275
    """Of each step from a common start, after `LOOSENING` under exaggeration 4."""
    exaggeration: float = 1.0
    """In the main phase; about 4 draws islands tighter where samples are very many."""
    seed: int = 0
    angle: float = 0.8
    """Of Barnes and Hut's tree: at 0.5 maps are a percent or two better and cost almost twice as much."""

    def prepared(self, scores: np.ndarray) -> Any:
        """Affinities of `scores` (sample, component), and the scores, from which a map can begin."""
        return affinities_of(scores, self.perplexity), scores

    def consensus(self, prepared: Iterable[tuple[Any, np.ndarray]], dimensions: int) -> Mapped:
        """One map of the mean affinities of all steps: the common start."""
        from openTSNE.affinity import PrecomputedAffinities

        mean: Any = 0
        beside: list[np.ndarray] = []
        for affinities, scores in prepared:
            mean = mean + affinities.P if beside else affinities.P
            beside.append(scores)
        start, _ = principal_components(np.concatenate(beside, axis=1), dimensions)
        affinities = PrecomputedAffinities(mean / mean.sum(), normalize=False)
        return self._descend(affinities, _small(start), (12, COMMON_ITERATIONS[0]), COMMON_ITERATIONS[1])

    def alone(self, prepared: tuple[Any, np.ndarray], dimensions: int, seed: int | None = None) -> Mapped:
        """A map from its own principal components, or from random places where a `seed` is given."""
        affinities, scores = prepared
        start = scores[:, :dimensions]
        if seed is not None:
            start = np.random.default_rng([seed, len(scores)]).normal(size=(len(scores), dimensions))
        return self._descend(affinities, _small(start), (12, OWN_ITERATIONS[0]), OWN_ITERATIONS[1])

    def continued(self, prepared: tuple[Any, np.ndarray], start: np.ndarray) -> Mapped:
        """A map that leaves `start` (sample, component) under exaggeration 4, so that groups can still change places."""
        return self._descend(prepared[0], np.asarray(start, np.float64), (4, LOOSENING), self.iterations)

    def _descend(self, affinities: Any, start: np.ndarray, early: tuple[float, int], iterations: int) -> Mapped:
        from openTSNE import TSNEEmbedding

        tree = start.shape[1] > 2 or len(start) <= _TREE
        state = TSNEEmbedding(
            start, affinities, negative_gradient_method="bh" if tree else "fft", theta=self.angle, n_jobs=1,
            learning_rate="auto", random_state=self.seed,
        )  # fmt: skip
        state = state.optimize(n_iter=early[1], exaggeration=early[0], momentum=0.5)
        state = state.optimize(n_iter=iterations, exaggeration=self.exaggeration, momentum=0.8)
        return Mapped(np.array(state), float(state.kl_divergence))


def _small(start: np.ndarray) -> np.ndarray:
    return start / max(float(start[:, 0].std()), 1e-12) * _START_SPREAD


def affinities_of(scores: np.ndarray, perplexity: Iterable[float]) -> Any:
    """openTSNE's affinities of `scores` (sample, component), from exact neighbours; several perplexities are mixed."""
    from openTSNE.affinity import Multiscale, PerplexityBasedNN
    from openTSNE.nearest_neighbors import PrecomputedNeighbors

    wanted = sorted({fitting_perplexity(item, len(scores)) for item in perplexity})
    index = PrecomputedNeighbors(*with_distances(scores, min(len(scores) - 1, int(3 * wanted[-1]))))
    if len(wanted) == 1:
        return PerplexityBasedNN(knn_index=index, perplexity=wanted[0], n_jobs=1)
    return Multiscale(knn_index=index, perplexities=wanted, n_jobs=1)


def with_distances(scores: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers and distances (sample, count) of each sample's nearest others, nearest first."""
    nearest = Neighbours.of(centred_values(scores), count).order
    distances = np.empty(nearest.shape)
    for start in range(0, len(scores), _BLOCK):
        block = slice(start, start + _BLOCK)
        distances[block] = np.sqrt(((scores[nearest[block]] - scores[block, None]) ** 2).sum(2))
    return nearest, distances


def placed_in(
    positions: np.ndarray, known: np.ndarray, new: np.ndarray, perplexity: float = 5.0, iterations: int = 250
) -> np.ndarray:
    """Where samples with scores `new` (new_sample, component) belong in the map `positions` (sample, dimension).

    `known` (sample, component) are the scores of those that the map holds; they stay where they are. Each new sample
    starts at the median of its 25 nearest and moves by its affinities to the old ones alone, so it does not matter
    which others are placed with it. Poličar, Stražar and Zupan 2021; openTSNE's `prepare_partial`.
    """
    from openTSNE import TSNEEmbedding
    from openTSNE.affinity import PerplexityBasedNN

    held = min(perplexity, (len(known) - 1) / 3)
    affinities = PerplexityBasedNN(known, perplexity=held, method="exact", n_jobs=1)
    tree = positions.shape[1] > 2 or len(positions) <= _TREE
    state = TSNEEmbedding(
        np.asarray(positions, np.float64), affinities, negative_gradient_method="bh" if tree else "fft", n_jobs=1,
        learning_rate=0.1, dof=1,
    )  # fmt: skip
    partial = state.prepare_partial(new, initialization="median", k=min(25, len(known) - 1), perplexity=held)
    partial.optimize(
        n_iter=iterations, learning_rate=0.1, exaggeration=1.5, momentum=0.8, max_grad_norm=0.25, inplace=True
    )
    return np.array(partial)
