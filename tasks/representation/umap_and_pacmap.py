"""UMAP and PaCMAP, which are extras: maps from a start of their own or a common one."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.tasks.representation.maps import KEPT_COMPONENTS, principal_components, turned_onto
from stratascope.tasks.representation.tsne import Mapped

PACKAGES = {"umap": "umap", "pacmap": "pacmap"}
"""What has to be importable for a method."""


def require(method: str) -> None:
    """Raises DoesNotApply, which says how to install it, where the package of `method` is missing."""
    try:
        importlib.import_module(PACKAGES[method])
    except ImportError:
        raise DoesNotApply(
            f"method {method!r} needs a package that is not installed: pip install 'stratascope[{method}]'."
        ) from None


@dataclass(frozen=True)
class GraphMap:
    """UMAP or PaCMAP with one setting for all steps, seeded and on one thread: equal input gives equal bytes.

    The common start is the map of all steps' components side by side, where squared distances are the sums over steps.
    """

    method: Literal["umap", "pacmap"]
    neighbours: int = 15
    seed: int = 0

    def prepared(self, scores: np.ndarray) -> np.ndarray:
        return scores

    def consensus(self, prepared: Iterable[np.ndarray], dimensions: int) -> Mapped:
        beside, _ = principal_components(np.concatenate(list(prepared), axis=1), KEPT_COMPONENTS)
        return self._map(beside, dimensions, None, self.seed)

    def alone(self, prepared: np.ndarray, dimensions: int, seed: int | None = None) -> Mapped:
        """A map from a start of its own; another `seed` gives another map."""
        return self._map(prepared, dimensions, None, self.seed if seed is None else seed)

    def continued(self, prepared: np.ndarray, start: np.ndarray) -> Mapped:
        """A map that leaves `start` (sample, component), turned back onto it.

        Neither method knows an exaggeration; UMAP takes half its step length, which moves groups less.
        """
        found = self._map(prepared, start.shape[1], start.astype(np.float64), self.seed)
        return Mapped(turned_onto(found.positions, start))

    def _map(self, scores: np.ndarray, dimensions: int, start: np.ndarray | None, seed: int) -> Mapped:
        require(self.method)
        work = self._umap if self.method == "umap" else self._pacmap
        return Mapped(_on_one_thread(lambda: work(scores.astype(np.float32), dimensions, start, seed)))

    def _umap(self, scores: np.ndarray, dimensions: int, start: np.ndarray | None, seed: int) -> np.ndarray:
        import umap

        model = umap.UMAP(
            n_components=dimensions, n_neighbors=min(self.neighbours, len(scores) - 1), random_state=seed, n_jobs=1,
            init="pca" if start is None else start.astype(np.float32), learning_rate=1.0 if start is None else 0.5,
        )  # fmt: skip
        return np.asarray(model.fit_transform(scores))

    def _pacmap(self, scores: np.ndarray, dimensions: int, start: np.ndarray | None, seed: int) -> np.ndarray:
        import pacmap

        model = pacmap.PaCMAP(
            n_components=dimensions, n_neighbors=min(self.neighbours, (len(scores) - 1) // 3), random_state=seed,
            apply_pca=False, verbose=False,
        )  # fmt: skip
        return np.asarray(model.fit_transform(scores, init="pca" if start is None else start.astype(np.float32)))


def _on_one_thread(work: Callable[[], np.ndarray]) -> np.ndarray:
    """What `work` finds, centred; numba and what else was loaded late use one thread meanwhile."""
    import numba
    from threadpoolctl import threadpool_limits

    threads, known = numba.get_num_threads(), logging.root.manager.disable
    try:
        numba.set_num_threads(1)
        logging.disable(logging.WARNING)
        with (
            threadpool_limits(limits=1),
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            # A seed means one thread, which is what is wanted; few samples need no warning of their own.
            warnings.simplefilter("ignore")
            found: Any = work()
    finally:
        logging.disable(known)
        numba.set_num_threads(threads)
    positions = np.asarray(found, np.float64)
    return positions - positions.mean(0)
