"""Separation and geometry of whole checkpoints: rows with n, d and intervals, named reasons, order, shape and figures."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score

from stratascope.tasks.analysis import _REGISTRY, named
from stratascope.tasks.in_memory import analyse
from stratascope.tasks.models import mlp

FAST = {"bootstrap": 12, "permutations": 9}
NAMES = ("separation", "geometry")
TEXTS = ("shows", "reading", "caution", "audience", "practitioner", "researcher")
SIZE = {"inputs": 6, "widths": [8, 5], "outputs": 3}


def data(count: int = 90, seed: int = 0):
    targets = np.arange(count) % 3
    generator = np.random.default_rng(seed)
    inputs = 2 * np.eye(3, 6)[targets] + generator.normal(size=(count, 6))
    return inputs.astype(np.float32), targets


def network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return mlp(**SIZE)


@pytest.fixture(scope="module")
def audit(trained_audit):
    trained_audit.analyse("separation", **FAST)
    trained_audit.analyse("geometry", bootstrap=12)
    return trained_audit


@pytest.fixture(scope="module")
def figures(audit):
    return {name: audit.draw(name) for name in NAMES}


@pytest.fixture
def undrawn(monkeypatch):
    """Analyses in memory without their figures, which take most of the time and are looked at elsewhere."""
    for name in NAMES:
        monkeypatch.setitem(_REGISTRY, name, replace(named(name), draw=lambda view, options: []))


@pytest.mark.parametrize("name", NAMES)
def test_every_score_says_n_d_and_how_it_was_found_and_has_an_interval(audit, name: str):
    rows = audit.view(name).rows
    registered = {metric.name: metric.unit for metric in named(name).metrics}
    assert set(rows.metric) == set(registered)
    sound = rows[rows.status.isin(["ok", "vacuous"])]
    assert all(unit == registered[metric] for metric, unit in zip(sound.metric, sound.unit, strict=True))
    assert (sound.n > 0).all()
    assert sound.convention.str.contains(r"d=\d+").all()
    assert (sound.estimator != "").all()
    with_interval = sound[~sound.metric.isin(["permutation_p_value", "spectrum_decay_fit"])]
    assert (with_interval.low <= with_interval.high).all()
    assert (rows[rows.status == "does_not_apply"].reason != "").all()
    assert set(rows.layer) >= {"@input", "fc3:input"}


def test_training_sets_the_classes_apart_and_the_raw_inputs_stay_as_they_were(audit):
    view = audit.view("separation")
    for metric, better in (("silhouette", 1), ("fisher_ratio", 1), ("nc1", -1), ("nc3", -1)):
        values = view.metric(metric, probe="train", layer="fc3:input", part="").value.to_numpy()
        assert better * values[-1] > better * values[0], metric
    raw = view.metric("silhouette", probe="train", layer="@input", part="").value
    assert raw.nunique() == 1
    probe = audit.view("separation").probes["train"]
    assert raw.iloc[0] == pytest.approx(silhouette_score(probe.inputs, probe.targets), abs=1e-5)


def test_the_third_is_of_the_layer_before_the_classifier_only_and_of_its_own_weights(audit):
    rows = audit.view("separation").metric("nc3", probe="train")
    assert set(rows.layer) == {"fc3:input"}
    step = audit.files[-1]
    from safetensors.numpy import load_file

    weights = load_file(step.path)["fc3.weight"].astype(float)
    probe = audit.view("separation").probes["train"]
    with torch.no_grad():
        kept = []
        module = mlp(inputs=12, widths=[16, 8], outputs=3)
        module.load_state_dict({name: torch.from_numpy(value) for name, value in load_file(step.path).items()})
        module.get_submodule("fc3").register_forward_hook(lambda layer, given, output: kept.append(given[0]))
        module.eval()(torch.from_numpy(np.asarray(probe.inputs)))
    means = np.stack([kept[0].numpy()[probe.targets == value].mean(0) for value in range(3)])
    means = means - means.mean(0)
    expected = ((weights / np.linalg.norm(weights) - means / np.linalg.norm(means)) ** 2).sum()
    assert rows[rows.step == step.step].value.item() == pytest.approx(expected, rel=1e-5)


def test_permuted_labels_give_chance_and_the_value_stands_out_of_it(audit):
    view = audit.view("separation")
    null = view.metric("knn_accuracy", part="space=features;null=permuted", layer="@input")
    assert null.value.between(0.2, 0.47).all()
    assert (view.metric("silhouette", part="null=permuted").value.abs() < 0.1).all()
    p = view.metric("permutation_p_value", part="of=silhouette", layer="@input")
    assert (p.value == 0.1).all()  # none of nine orders reaches it


def test_a_shuffled_probe_gives_the_same_numbers(little_audit, tmp_path):
    inputs, targets = data()
    order = np.random.default_rng(1).permutation(len(inputs))
    identities = np.array([f"s{number}" for number in range(len(inputs))])
    audit = little_audit("stratascope.tasks.models:mlp", SIZE)
    audit.probe("plain", inputs=inputs, targets=targets, sample_id=identities)
    audit.probe("shuffled", inputs=inputs[order], targets=targets[order], sample_id=identities[order])
    audit.checkpoint(0, network())
    audit.capture("separation", "geometry")
    for name in NAMES:
        rows = audit.analyse(name, max_samples=60, **(FAST if name == "separation" else {"bootstrap": 12}))
        columns = ["metric", "layer", "part", "value", "low", "high", "n", "status"]
        one, other = (
            rows[rows.probe == probe][columns].sort_values(columns[:3]).reset_index(drop=True)
            for probe in audit.probes
        )
        assert len(one) > 30
        np.testing.assert_allclose(
            one[["value", "low", "high"]], other[["value", "low", "high"]], rtol=1e-5, atol=1e-6
        )
        assert one.drop(columns=["value", "low", "high"]).equals(other.drop(columns=["value", "low", "high"]))


def test_it_repeats_to_the_byte(undrawn):
    inputs, targets = data()
    for name in NAMES:
        first, again = (
            analyse(name, activations={"a": inputs}, targets=targets, bootstrap=8).rows for _ in range(2)
        )
        assert first.equals(again)


def refused(name: str, values: np.ndarray, targets: np.ndarray | None, metric: str, **more) -> str:
    rows = analyse(name, activations={"a": values}, targets=targets, bootstrap=4, **more).rows
    rows = rows[(rows.metric == metric) & (rows.layer == "a")]
    assert set(rows.status) == {"does_not_apply"}, rows[["part", "value", "status", "reason"]]
    assert rows.value.isna().all()
    return rows.reason.iloc[0]


def test_what_cannot_be_said_has_a_named_reason(undrawn):
    inputs, targets = data()
    constant = np.ones_like(inputs)
    broken = inputs.copy()
    broken[3, 1] = np.nan
    for name, metric in (("separation", "silhouette"), ("separation", "nc1"), ("geometry", "effective_rank"), ("geometry", "hubness")):  # fmt: skip
        assert "constant" in refused(name, constant, targets, metric)
        assert "1 of 90 samples are not finite" in refused(name, broken, targets, metric)
    assert "one class only" in refused("separation", inputs, np.zeros(90, int), "silhouette")
    assert "at least 2" in refused("separation", inputs, np.arange(90), "fisher_ratio")
    assert "no classes" in refused("separation", inputs, None, "knn_accuracy")
    assert "regression" in refused("separation", inputs, targets, "silhouette", task="regression")
    assert "one class only" in refused("geometry", inputs, np.zeros(90, int), "class_manifold_radius")
    assert "power law needs 20" in refused("geometry", inputs, targets, "spectrum_decay")
    assert "80 copies" in refused("geometry", np.tile(inputs[:10], (9, 1)), targets, "intrinsic_dimension")
    alike = np.eye(3, 6, dtype=np.float32)[targets]
    assert "all alike" in refused("separation", alike, targets, "fisher_ratio")
    assert "all alike" in refused("geometry", alike, targets, "class_manifold_dimension")


def test_what_duplicates_and_few_samples_do_is_said(undrawn):
    inputs, targets = data()
    doubled = np.concatenate([inputs[:60], inputs[:30]])
    rows = analyse("geometry", activations={"a": doubled}, targets=targets, bootstrap=0).rows
    found = rows[(rows.metric == "intrinsic_dimension") & (rows.layer == "a")]
    assert set(found.n) == {60}
    assert found.convention.str.contains("duplicates removed=30").all()
    assert found.low.isna().all()
    wide = np.random.default_rng(0).normal(size=(90, 200)).astype(np.float32)
    rows = analyse("geometry", activations={"a": wide}, targets=targets, bootstrap=4).rows
    rank = rows[rows.metric == "effective_rank"].iloc[0]
    assert "at most n-1=89" in rank.convention
    assert rank.value < 89
    alone = targets.copy()
    alone[0] = 7
    rows = analyse("separation", activations={"a": inputs}, targets=alone, **FAST).rows
    chosen = rows[(rows.metric == "silhouette") & (rows.part == "")].iloc[0]
    assert "left_out=1" in chosen.convention
    assert chosen.n == 89


def test_two_classes_have_no_angles_but_everything_else(undrawn):
    inputs, _ = data()
    targets = np.arange(90) % 2
    rows = analyse("separation", activations={"a": inputs}, targets=targets, **FAST).rows
    second = rows[rows.metric == "nc2"].set_index("part")
    assert second.status.to_dict() == {"aspect=equinorm": "ok", "aspect=equiangle": "does_not_apply", "aspect=maximal_angle": "does_not_apply"}  # fmt: skip
    assert "two classes" in second.reason["aspect=equiangle"]
    assert "no output for each class" in rows[rows.metric == "nc4"].reason.iloc[0]


def test_arrays_hold_confusions_and_spectra(audit):
    step = audit.files[-1].step
    found = audit.view("separation").arrays(step)
    counts = found["test/fc3:input/confusion"]
    assert counts.shape == (3, 3)
    accuracy = audit.view("separation").metric(
        "knn_accuracy", probe="test", layer="fc3:input", part="space=features"
    )
    assert np.trace(counts) / counts.sum() == pytest.approx(accuracy[accuracy.step == step].value.item())
    shapes = audit.view("geometry").arrays(step)
    assert shapes["test/fc3:input/variance"].shape == (8,)
    assert shapes["test/fc3:input/occurrence"].sum() == 120 * 10


@pytest.mark.parametrize("name", NAMES)
def test_figures_have_all_their_words_keys_and_numbers(figures, name: str):
    drawn = figures[name]
    keys = [figure.key for figure in drawn]
    assert len(set(keys)) == len(keys)
    assert "profile-test" in keys
    for figure in drawn:
        texts = [getattr(figure, text) for text in TEXTS]
        assert all(text.strip().endswith((".", "?")) for text in texts), figure.key
        assert not any("{" in text or re.search(r"\bnan\b", text) for text in texts), (figure.key, texts)
        assert len({len(values) for values in figure.table.values()}) == 1
        assert re.fullmatch(r"[A-Za-z0-9._-]+", figure.key)
        assert figure.svg or figure.frames
    if name == "separation":
        moving = [figure for figure in drawn if figure.frames]
        assert all([step for step, _ in figure.frames] == [0, 3, 10, 30] for figure in moving)
        assert {"confusion-test-fc3_input", "collapse-train"} <= {
            re.sub(r"-[0-9a-f]{8}$", "", key) for key in keys
        }


@pytest.mark.parametrize("name", NAMES)
def test_cautions_speak_of_the_numbers(audit, figures, name: str):
    view = audit.view(name)
    rows = view.rows.copy()
    rows["value"] = 0.8 * rows["value"].abs() ** 1.7 + 0.01
    changed = {
        figure.key: figure.caution for figure in named(name).draw(replace(view, rows=rows), named(name).options())
    }
    for figure in figures[name]:
        if not figure.key.startswith(("confusion", "cosines", "spectra")):  # drawn from arrays
            assert changed[figure.key] != figure.caution, figure.key


def test_votes_mean_the_same_here_and_in_the_embedding(audit):
    one, other = (
        audit.view(name)
        .metric("knn_accuracy", layer="fc3:input", part="space=features")
        .sort_values(["probe", "step"])
        for name in ("separation", "embedding")
    )
    assert len(one) == 8
    assert one.convention.str.endswith("k=15").all()
    assert set(other.convention) == {"d=8;k=15"}
    np.testing.assert_allclose(one.value, other.value, atol=1e-12)
