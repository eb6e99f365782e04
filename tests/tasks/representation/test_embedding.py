"""The embedding of a run: where it stands in the archive, what it skips, and that it repeats to the byte."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import xarray as xr
from pydantic import ValidationError

from stratascope.tasks.analysis import named
from stratascope.tasks.models import mlp
from stratascope.tasks.representation.embedding import EmbeddingOptions
from stratascope.tasks.representation.embedding_drawing import layer_views

SIZE = {"inputs": 6, "widths": [8, 4], "outputs": 3}
FAST = {"iterations": 50, "dimensions": (2,)}


def audited(make, networks, count: int = 40):
    audit = make("stratascope.tasks.models:mlp", SIZE)
    targets = np.arange(count) % 3
    inputs = np.random.default_rng(0).normal(size=(count, 6)) + 2 * targets[:, None]
    audit.probe("probe", inputs=inputs.astype(np.float32), targets=targets, class_names=("a", "b", "c"))
    for step, network in networks.items():
        audit.checkpoint(step, network)
    audit.capture("embedding")
    return audit


def network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return mlp(**SIZE)


def test_maps_stand_where_the_design_says_and_read_with_plain_tools(trained_audit):
    tree = xr.open_datatree(trained_audit.store.path / "archive.zarr", engine="zarr", consolidated=False)
    group = tree["series/run/embedding/test/fc3:input"]
    for name, width in (("pca_2d", 2), ("pca_3d", 3), ("tsne_2d", 2), ("tsne_3d", 3)):
        component = "component" if width == 2 else "component_3d"
        assert group[name].dims == ("step", "embedding_sample", component)
        assert group[name].shape == (4, 120, width)
        assert np.isfinite(group[name].values).all()
    assert group["step"].values.tolist() == [0, 3, 10, 30]
    stored = trained_audit.store.array("probes/test/sample_id")
    rows = np.argsort(stored)[np.searchsorted(np.sort(stored), group["sample_id"].values)]
    assert sorted(rows) == list(range(120))
    np.testing.assert_array_equal(group["target"].values, rows % 3)


def test_every_map_has_its_quality_in_the_ledger(trained_audit):
    rows = trained_audit.view("embedding").rows
    assert set(rows.status) == {"ok"}
    names = ("pca_2d", "pca_3d", "tsne_2d", "tsne_3d")
    maps = {f"map={name}" for name in names}
    tsne = {"map=tsne_2d", "map=tsne_3d"}
    for metric, parts, steps in (
        ("trustworthiness", maps, 4),
        ("continuity", maps, 4),
        ("knn_preservation", maps | {f"map={name};null=chance" for name in names}, 4),
        ("knn_accuracy", maps | {"space=features", "null=commonest_class"}, 4),
        ("distance_correlation", maps, 4),
        ("explained_variance", maps - tsne, 4),
        ("map_movement", maps, 3),
    ):
        chosen = rows[rows.metric == metric]
        assert set(chosen.part) == parts
        assert len(chosen) == 2 * steps * len(parts)
        assert (chosen.n == 120).all()
        assert chosen.convention.str.startswith("d=8").all()
    own = rows[(rows.metric == "kl_divergence") & rows.part.str.endswith(";start=own")]
    assert set(own.step) == set(rows[rows.metric == "stability_cost"].step) == {0, 30}
    assert set(rows[rows.metric == "seed_stability"].step) == {30}
    for metric in ("trustworthiness", "continuity", "knn_accuracy", "distance_correlation", "seed_stability"):
        measured = rows[(rows.metric == metric) & rows.part.str.startswith("map=")]
        assert ((measured.low <= measured.value) & (measured.value <= measured.high)).all(), metric
        assert (measured.high - measured.low < 0.4).all(), metric
    plane = rows[rows.part == "map=pca_2d"].set_index(["metric", "probe", "step"]).value
    solid = rows[rows.part == "map=pca_3d"].set_index(["metric", "probe", "step"]).value
    assert (solid["explained_variance"] >= plane["explained_variance"]).all()


def test_a_second_computation_gives_the_same_bytes(little_audit):
    audit = audited(little_audit, {0: network(0), 5: network(1)})

    def content():
        root = audit.store.path / "archive.zarr" / "series"
        files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        return files, (audit.store.path / "ledger/run/series/embedding.parquet").read_bytes()

    audit.analyse("embedding", **FAST, seed=0)
    first = content()
    (audit.store.path / "manifests/run/series/embedding.json").unlink()
    audit.analyse("embedding", **FAST, seed=0)
    assert content() == first
    assert len(first[0]) > 5


def test_a_step_whose_layer_is_not_stored_is_left_out_with_a_reason(little_audit):
    audit = audited(little_audit, {0: network(0), 5: network(1), 9: network(2)})
    shutil.rmtree(audit.store.path / "archive.zarr/runs/run/000000000005/activations/probe/fc3:input")
    rows = audit.analyse("embedding", **FAST)
    skipped = rows[rows.status != "ok"]
    assert list(skipped.step) == [5]
    assert list(skipped.status) == ["does_not_apply"]
    assert "not stored" in skipped.reason.iloc[0]
    assert audit.store.array("series/run/embedding/probe/fc3:input/step").tolist() == [0, 9]


def test_features_that_are_not_finite_or_constant_are_left_out_with_a_reason(little_audit):
    broken, silent = network(1), network(2)
    with torch.no_grad():
        broken.fc2.weight[0, 0] = float("nan")
        silent.fc2.weight.zero_()
        silent.fc2.bias.fill_(-1.0)
    audit = audited(little_audit, {0: network(0), 5: broken, 9: silent})
    rows = audit.analyse("embedding", **FAST)
    reasons = rows[rows.status != "ok"].set_index("step").reason
    assert "not finite" in reasons[5]
    assert "constant" in reasons[9]
    assert set(rows[rows.status == "ok"].step) == {0}


def test_where_nothing_can_be_mapped_all_its_metrics_do_not_apply_and_say_why(little_audit):
    audit = audited(little_audit, {0: network()}, count=8)
    rows = audit.analyse("embedding")
    assert set(rows.status) == {"does_not_apply"}
    assert set(rows.metric) == {metric.name for metric in named("embedding").metrics}
    assert "at least 10 samples, there are 8" in rows.reason.iloc[0]


def test_layers_can_be_named_by_globs_and_samples_and_steps_limited(little_audit):
    audit = audited(little_audit, {step: network(step) for step in (0, 1, 2)})
    rows = audit.analyse(
        "embedding", layers=("fc?",), methods=("pca",), dimensions=(2,), max_samples=12, max_steps=2
    )
    assert set(rows[rows.status == "ok"].layer) == {"fc1", "fc2", "fc3"}
    assert audit.store.array("series/run/embedding/probe/fc1/pca_2d").shape == (2, 12, 2)
    assert sorted(audit.store.array("series/run/embedding/probe/fc1/target")) == [0] * 4 + [1] * 4 + [2] * 4
    left_out = rows[rows.status != "ok"]
    assert set(left_out.step) == {1}
    assert "2 checkpoints at most" in left_out.reason.iloc[0]


@pytest.mark.parametrize("pattern", ["3", "-1", "2:5", ":"])
def test_layers_by_number_are_refused_since_numbers_change_with_what_is_captured(pattern: str):
    with pytest.raises(ValidationError, match="name the layers"):
        EmbeddingOptions(layers=(pattern,))


@pytest.mark.parametrize(("factor", "own"), [(1.5, False), (200.0, True)])
def test_a_step_that_dwarfs_the_others_leaves_no_dots_of_them(little_audit, factor: float, own: bool):
    large = network(1)
    with torch.no_grad():
        for weight in large.parameters():
            weight.mul_(factor)
    audit = audited(little_audit, {0: network(0), 1: large, 2: network(2)})
    audit.analyse("embedding", **FAST, methods=("pca",))
    (here,) = layer_views(audit.view("embedding"), EmbeddingOptions())
    edges = np.abs(here.drawn("pca_2d", [0, 1, 2])).max(axis=(1, 2))
    cautions = [figure.caution for figure in audit.draw("embedding") if figure.key.startswith("pca_2d")]
    assert len(cautions) == 1
    assert ("on a scale of its own" in cautions[0]) == own
    if own:
        np.testing.assert_allclose(edges, 1.0, rtol=1e-6)
    else:
        np.testing.assert_array_equal(here.drawn("pca_2d", [0, 1, 2]), here.arrays["pca_2d"])
