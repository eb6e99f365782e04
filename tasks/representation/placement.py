"""New samples in an old map: where they belong among those that were mapped."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stratascope.errors import StoreError
from stratascope.storage.archive import join_path
from stratascope.storage.names import step_directory
from stratascope.storage.probes import read_probe
from stratascope.storage.store import Store
from stratascope.tasks.representation.kept_maps import ANALYSIS
from stratascope.tasks.representation.maps import KEPT_COMPONENTS
from stratascope.tasks.representation.principal_components import PrincipalAxes, components_of_blocks
from stratascope.tasks.representation.tsne import placed_in


@dataclass(frozen=True)
class Placed:
    """Where new samples lie in a map."""

    positions: np.ndarray
    """float64 (new_sample, component)."""
    nearest: np.ndarray
    """The id (new_sample,) of the mapped sample that is nearest in the features, to be looked at beside it."""


def place_samples(
    store: Store, run: str, probe: str, layer: str, step: int, features: np.ndarray, name: str = "tsne_2d", reduction: str = "pooled"
) -> Placed:  # fmt: skip
    """Place samples with `features` (new_sample, feature) in the map `name` of `layer` at `step`, which stays as it is.

    t-SNE's maps take new samples by their affinities to the old ones (`tsne.placed_in`); PCA's by projection. The
    features must be of the same layer, network and `reduction` as the stored ones. Raises StoreError where the map, the
    step or the stored activations are not there, ValueError for features of another width, or for UMAP and PaCMAP.
    """
    method = name.partition("_")[0]
    if method not in ("tsne", "pca"):
        raise ValueError(f"new samples can be placed in t-SNE's and PCA's maps, not in {name!r}.")
    place = join_path("series", run, ANALYSIS, probe, layer)
    if not store.has_array(f"{place}/{name}"):
        raise StoreError(f"there is no map {name!r} of {layer!r} on probe {probe!r} in run {run!r}.")
    steps = store.array(f"{place}/step").tolist()
    if step not in steps:
        raise StoreError(f"step {step} of run {run!r} has no map; there are {steps}.")
    every = store.array(f"{place}/sample_id")
    held = store.array(f"{place}/sample_id_3d") if _is_subset(store, place, name) else every
    positions = store.array(f"{place}/{name}")[steps.index(step)].astype(np.float64)
    stored = store.array(join_path("runs", run, step_directory(step), "activations", probe, layer, reduction))
    identities = read_probe(store, probe).sample_id
    order = np.argsort(identities, kind="stable")
    rows = order[np.searchsorted(identities[order], every)]
    known = stored.reshape(len(stored), -1)[rows].astype(np.float64)
    new = features.reshape(len(features), -1).astype(np.float64)
    if new.shape[1] != known.shape[1]:
        raise ValueError(f"the features have {new.shape[1]} numbers a sample, the mapped ones {known.shape[1]}.")
    axes = components_of_blocks([known], KEPT_COMPONENTS)
    inside = np.isin(every, held)
    old, fresh = axes.scores(known), axes.scores(new)
    apart = ((fresh[:, None] - old[inside][None]) ** 2).sum(2)
    nearest = every[inside][apart.argmin(1)]
    if method == "pca":
        return Placed(_projected(axes, known[inside], new, positions), nearest)
    # The map was made of components with total variance 1.
    scale = float(np.sqrt((old**2).sum() / len(old)))
    return Placed(placed_in(positions, old[inside] / scale, fresh / scale), nearest)


def _is_subset(store: Store, place: str, name: str) -> bool:
    return name.endswith("_3d") and store.has_array(f"{place}/sample_id_3d")


def _projected(axes: PrincipalAxes, known: np.ndarray, new: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """`new` on the plane of the map, turned as the map was turned."""
    from scipy.linalg import orthogonal_procrustes

    dimensions = positions.shape[1]
    turn, _ = orthogonal_procrustes(axes.scores(known)[:, :dimensions], positions)
    return np.asarray(axes.scores(new)[:, :dimensions] @ turn)
