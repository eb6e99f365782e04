"""Samples that come later are placed in the maps that are there."""

from __future__ import annotations

import numpy as np
import pytest

from stratascope.errors import StoreError
from stratascope.tasks.representation.placement import place_samples

LAYER = "fc3:input"


def features_of(audit, step: int) -> np.ndarray:
    return audit.store.array(f"runs/run/{step:012d}/activations/test/{LAYER}/pooled")


@pytest.mark.parametrize("name", ["tsne_2d", "tsne_3d", "pca_2d", "pca_3d"])
def test_the_mapped_samples_themselves_are_placed_where_they_are(trained_audit, name: str):
    store, place = trained_audit.store, f"series/run/embedding/test/{LAYER}"
    before = store.array(f"{place}/{name}")
    found = place_samples(store, "run", "test", LAYER, 30, features_of(trained_audit, 30), name)
    ids = store.array("probes/test/sample_id")
    mapped = store.array(f"{place}/sample_id")
    rows = np.argsort(ids)[np.searchsorted(np.sort(ids), mapped)]
    np.testing.assert_array_equal(found.nearest[rows], mapped)
    away = np.linalg.norm(found.positions[rows] - before[-1], axis=1)
    radius = np.sqrt((before[-1] ** 2).sum(1).mean())
    # A plane is projected onto exactly; in t-SNE a sample settles among its neighbours.
    assert np.median(away) / radius < (1e-4 if name.startswith("pca") else 0.1)
    np.testing.assert_array_equal(store.array(f"{place}/{name}"), before)


def test_what_is_not_there_is_named(trained_audit):
    store, values = trained_audit.store, features_of(trained_audit, 30)
    with pytest.raises(StoreError, match="no map 'tsne_2d' of 'nowhere'"):
        place_samples(store, "run", "test", "nowhere", 30, values)
    with pytest.raises(StoreError, match="step 7 of run"):
        place_samples(store, "run", "test", LAYER, 7, values)
    with pytest.raises(ValueError, match="not in 'umap_2d'"):
        place_samples(store, "run", "test", LAYER, 30, values, "umap_2d")
    with pytest.raises(ValueError, match="have 3 numbers a sample, the mapped ones 8"):
        place_samples(store, "run", "test", LAYER, 30, values[:, :3])
