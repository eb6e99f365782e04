"""What is kept of a layer: exact up to the stated share, and blind to rotation, translation and order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from stratascope.errors import DoesNotApply
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.models import mlp
from stratascope.tasks.representation.decomposition import (
    decompose,
    decomposed_layers,
    decomposed_samples,
    read_decomposition,
)


def features(samples=120, width=40, decay=1.0, seed=0):
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(samples, width)) * (1 + np.arange(width)) ** -decay
    turn, _ = np.linalg.qr(generator.normal(size=(width, width)))
    return values @ turn + generator.normal(size=width)


@pytest.mark.parametrize(("samples", "width"), [(120, 40), (40, 120)])
@pytest.mark.parametrize("lost", [0.0, 1e-4, 1e-2])
def test_the_gram_matrix_is_kept_up_to_the_stated_share(samples, width, lost):
    values = features(samples, width)
    found = decompose(values, lost, 5)
    centred = values - values.mean(0)
    whole = centred @ centred.T
    kept = found.scores.astype(float) @ found.scores.astype(float).T
    share = np.linalg.norm(whole - kept) / np.linalg.norm(whole)
    assert share <= lost + 1e-6  # float32 scores
    np.testing.assert_allclose(found.squared_norm, np.diag(whole), rtol=1e-10)
    singular = np.linalg.svd(centred, compute_uv=False)
    np.testing.assert_allclose(found.variance, singular**2 / (samples - 1), rtol=1e-8, atol=1e-10)
    assert found.features == width


def test_fewer_components_are_kept_where_more_may_be_lost():
    values = features(decay=2.0)
    sizes = [decompose(values, lost, 5).scores.shape[1] for lost in (0.0, 1e-4, 1e-2)]
    assert sizes[0] == 40 > sizes[1] > sizes[2] >= 1


def test_neighbours_are_those_of_scikit_learn():
    values = features(700, 12)
    found = decompose(values, 0.0, 9).neighbour
    wanted = NearestNeighbors(n_neighbors=9).fit(values).kneighbors(return_distance=False)
    np.testing.assert_array_equal(found, wanted)


def test_equal_distances_are_ordered_by_row():
    corners = np.repeat(np.eye(4), 3, axis=0)
    near = decompose(corners, 0.0, 2).neighbour
    assert near[0].tolist() == [1, 2]
    assert near[1].tolist() == [0, 2]
    assert near[11].tolist() == [9, 10]


def test_rotation_and_translation_change_nothing_and_scale_only_sizes():
    values = features()
    turn, _ = np.linalg.qr(np.random.default_rng(9).normal(size=(40, 40)))
    here, there, larger = (decompose(item, 1e-4, 7) for item in (values, values @ turn + 3.0, values * 5.0))
    np.testing.assert_allclose(np.abs(here.scores), np.abs(there.scores), atol=2e-4)
    np.testing.assert_allclose(here.variance, there.variance, rtol=1e-8)
    np.testing.assert_array_equal(here.neighbour, there.neighbour)
    np.testing.assert_array_equal(here.neighbour, larger.neighbour)
    np.testing.assert_allclose(larger.variance, 25 * here.variance, rtol=1e-10)


def test_layers_are_filed_and_read_back_and_dead_ones_are_told(little_audit):
    audit = little_audit(args={"inputs": 6, "widths": [5, 4], "outputs": 3})
    inputs = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32)
    audit.probe("test", inputs=inputs, targets=np.arange(30) % 3)
    torch.manual_seed(0)
    network = mlp(inputs=6, widths=[5, 4], outputs=3)
    audit.checkpoint(0, network)
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, torch.nn.Linear) and layer.out_features == 4:
                layer.weight.zero_()
    audit.checkpoint(1, network)
    audit.capture("decomposition")
    rows = audit.analyse("decomposition")
    whole, dead = (CheckpointContext(audit.store, audit.subject, step) for step in (0, 1))
    layers = decomposed_layers(whole, "test")
    assert layers == [name for name in whole.layers("test") if name in layers]
    assert len(layers) >= 3
    assert len(decomposed_samples(whole, "test")) == 30
    lost = set(layers) - set(decomposed_layers(dead, "test"))
    told = rows[(rows["step"] == 1) & (rows["status"] == "does_not_apply")]
    assert lost
    assert set(told["layer"]) == lost
    assert told["reason"].str.contains("constant").all()
    with pytest.raises(DoesNotApply, match="step 1"):
        read_decomposition(dead, "test", sorted(lost)[0])
    found = read_decomposition(whole, "test", layers[0])
    values = whole.activations("test", layers[0], "pooled").astype(float)
    np.testing.assert_allclose(found.variance.sum(), values.var(0, ddof=1).sum(), rtol=1e-6)
