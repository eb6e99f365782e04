"""Similarity within a run: what is filed and where, what is taken over, and what is refused with a reason."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import xarray as xr
from pydantic import ValidationError

from stratascope.tasks.checks.suites import SUITES
from stratascope.tasks.models import mlp
from stratascope.tasks.representation.similarity import SimilarityOptions
from stratascope.tasks.representation.similarity_measures import MEASURES, cka, procrustes_distance
from stratascope.tasks.representation.similarity_sides import Side

SIZE = {"inputs": 6, "widths": [8, 4], "outputs": 3}
FAST = {"bootstrap": 8, "permutations": 5}
PLACE = "series/run/similarity/probe"


def network(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return mlp(**SIZE)


def audited(make, networks, count: int = 40, order=None):
    audit = make("stratascope.tasks.models:mlp", SIZE)
    targets = np.arange(count) % 3
    inputs = (np.random.default_rng(0).normal(size=(count, 6)) + 2 * targets[:, None]).astype(np.float32)
    rows = np.arange(count) if order is None else order
    audit.probe("probe", inputs=inputs[rows], targets=targets[rows], sample_id=rows)
    for step, model in networks.items():
        audit.checkpoint(step, model)
    audit.capture("outputs")
    audit.analyse("decomposition")
    return audit


@pytest.fixture
def three(little_audit):
    return audited(little_audit, {step: network(step) for step in (0, 3, 9)})


def features(audit, step: int, layer: str) -> np.ndarray:
    return audit.store.array(f"runs/run/{step:012d}/activations/probe/{layer}/pooled")


def test_each_layer_is_held_against_the_step_before_the_first_the_last_and_the_other_layers(three):
    rows = three.analyse("similarity", **FAST)
    assert set(rows.status) == {"ok"}
    own = rows[(rows.metric == "cka") & (rows.layer == "fc1") & ~rows.part.str.contains("null")]
    steps = {part: sorted(zip(group.step, group.other_step, strict=True)) for part, group in own.groupby("part") if part != "against=layer"}  # fmt: skip
    assert steps == {
        "": [(3, 0), (9, 3)],
        "against=first": [(3, 0), (9, 0)],
        "against=last": [(0, 9), (3, 9)],
    }
    between = own[own.part == "against=layer"]
    assert set(between.step) == {9}
    assert set(between.other_layer) == {"relu1", "fc2", "relu2", "fc3"}
    for metric, compare in (("cka", cka), ("procrustes_distance", procrustes_distance)):
        row = rows[(rows.metric == metric) & (rows.layer == "fc2") & (rows.part == "") & (rows.step == 9)].iloc[0]
        expected = compare(Side.of(features(three, 9, "fc2")), Side.of(features(three, 3, "fc2")))
        assert row.value == pytest.approx(expected, abs=1e-5)
        assert row.low <= row.value + 0.1
        assert row.low < row.high
        assert row.n == 40
        assert row.convention.startswith("d=8;other_d=8") or row.convention.startswith("d=4;other_d=4")
    null = rows[rows.part == "null=permuted"]
    assert set(null.step) == {9}
    assert (null[null.metric == "cka"].value.abs() < 0.15).all()
    assert null.convention.str.contains("p=").all()


def test_the_whole_matrices_stand_in_the_archive_with_names(three):
    three.analyse("similarity", **FAST, all_pairs=True)
    tree = xr.open_datatree(three.store.path / "archive.zarr", engine="zarr", consolidated=False)
    group = tree[f"{PLACE}/cka"]
    assert group["step_by_step"].dims == ("layer", "step", "other_step")
    assert group["layer_by_layer"].dims == ("layer_step", "layer", "other_layer")
    assert group["all_pairs"].dims == ("step", "layer", "other_step", "other_layer")
    layers = [str(name) for name in tree[PLACE]["layer"].values]
    assert tree[PLACE]["step"].values.tolist() == [0, 3, 9]
    whole = group["all_pairs"].values
    for number in range(len(layers)):
        np.testing.assert_array_equal(whole[:, number, :, number], group["step_by_step"].values[number])
    for number in range(3):
        np.testing.assert_array_equal(whole[number, :, number, :], group["layer_by_layer"].values[number])
    expected = cka(Side.of(features(three, 0, "fc1")), Side.of(features(three, 9, "fc3")))
    assert whole[0, layers.index("fc1"), 2, layers.index("fc3")] == pytest.approx(expected, abs=1e-5)


def content(audit) -> dict[str, bytes]:
    root = audit.store.path / "archive.zarr" / "series"
    found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    return found | {"rows": (audit.store.path / "ledger/run/series/similarity.parquet").read_bytes()}


def computed_pairs(monkeypatch) -> list[int]:
    """How many numbers each matrix had to be computed for, from now on."""
    from stratascope.tasks.representation.similarity_pairs import Pairs

    asked, whole = [], Pairs.matrix

    def noted(self, items, needed):
        asked.append(int(needed.sum()))
        return whole(self, items, needed)

    monkeypatch.setattr(Pairs, "matrix", noted)
    return asked


def test_a_new_checkpoint_costs_its_own_pairs_only_and_changes_no_bit(little_audit, monkeypatch):
    audit = audited(little_audit, {step: network(step) for step in (0, 3, 9)})
    options = {**FAST, "all_pairs": True, "measures": ("cka", "procrustes_distance", "linear_predictivity")}
    audit.analyse("similarity", **options)
    audit.checkpoint(12, network(12))
    audit.files, older = audit.files[-1:], audit.files
    audit.capture("outputs")
    audit.analyse("decomposition")
    audit.files = older
    asked = computed_pairs(monkeypatch)
    audit.analyse("similarity", **options)
    grown = content(audit)
    # All pairs of 6 layers at 4 steps, of which those at 3 steps were there; 7 of the 16 pairs of each layer's steps;
    # and the layers of the new step.
    assert sorted(set(asked)) == [6, 7, 36, 24 * 24 - 18 * 18]
    (audit.store.path / "manifests/run/series/similarity.json").unlink()
    shutil.rmtree(audit.store.path / "archive.zarr" / PLACE)
    audit.analyse("similarity", **options)
    assert content(audit) == grown


def test_what_depends_on_changed_weights_is_computed_again(little_audit):
    audit = audited(little_audit, {step: network(step) for step in (0, 3, 9)})
    audit.analyse("similarity", **FAST)
    before = audit.store.array(f"{PLACE}/cka/step_by_step")
    audit.files.pop()
    audit.checkpoint(9, network(77))
    for name in ("capture", "decomposition"):
        (audit.store.path / f"manifests/run/000000000009/{name}.json").unlink()
    (audit.store.path / "manifests/run/series/similarity.json").unlink()
    audit.files, older = audit.files[-1:], audit.files
    audit.capture("outputs")
    audit.analyse("decomposition")
    audit.files = older
    audit.analyse("similarity", **FAST)
    after = audit.store.array(f"{PLACE}/cka/step_by_step")
    np.testing.assert_array_equal(after[:, :2, :2], before[:, :2, :2])
    changed = after[1:, 2, :2] != before[1:, 2, :2]
    assert changed.all()


def test_a_probe_in_another_order_gives_the_same_numbers(little_audit, tmp_path):
    straight, found = little_audit("stratascope.tasks.models:mlp", SIZE), []
    (tmp_path / "mixed").mkdir()
    mixed = type(straight)(tmp_path / "mixed", "stratascope.tasks.models:mlp", SIZE)
    for audit, order in ((straight, None), (mixed, np.random.default_rng(1).permutation(40))):
        audited(lambda *_, made=audit: made, {0: network(0), 5: network(1)}, order=order)
        found.append(
            audit.analyse("similarity", bootstrap=0, permutations=0, measures=tuple(MEASURES), matrices=())
        )
    assert len(found[0]) == len(found[1])
    assert found[0].status.tolist() == found[1].status.tolist()
    np.testing.assert_allclose(found[0].value, found[1].value, atol=1e-5)


def test_a_measure_that_is_not_symmetric_is_filed_in_both_directions(three):
    rows = three.analyse("similarity", bootstrap=0, permutations=0, measures=("linear_predictivity",), matrices=())
    own = rows[(rows.layer == "fc2") & (rows.step == 9) & (rows.other_step == 0)].set_index("part").value
    now, then = Side.of(features(three, 9, "fc2")), Side.of(features(three, 0, "fc2"))
    predict = MEASURES["linear_predictivity"].compare
    assert own["against=first"] == pytest.approx(predict(now, then), abs=1e-5)
    assert own["against=first;direction=from_other"] == pytest.approx(predict(then, now), abs=1e-5)
    assert rows.low.isna().all()
    pairs = rows[rows.part == "against=layer"]
    assert set(zip(pairs.layer, pairs.other_layer, strict=True)) >= {("fc1", "fc2"), ("fc2", "fc1")}


def test_a_silent_and_a_broken_layer_have_their_reasons_and_the_others_their_numbers(little_audit):
    broken, silent = network(1), network(2)
    with torch.no_grad():
        broken.fc2.weight[0, 0] = float("nan")
        silent.fc2.weight.zero_()
        silent.fc2.bias.fill_(-1.0)
    audit = audited(little_audit, {0: network(0), 5: broken, 9: silent})
    rows = audit.analyse("similarity", **FAST)
    refused = rows[(rows.status != "ok") & (rows.metric == "cka") & (rows.layer == "fc2")].set_index("step").reason
    assert "not finite" in refused[5]
    assert "constant" in refused[9]
    assert set(rows[rows.layer == "fc1"].status) == {"ok"}
    matrix = audit.store.array(f"{PLACE}/cka/step_by_step")
    assert np.isnan(matrix[3, 1:]).all()


def test_too_few_samples_and_too_little_memory_are_named(little_audit):
    audit = audited(little_audit, {0: network(0), 5: network(1)}, count=3)
    rows = audit.analyse("similarity", **FAST)
    refused = rows[rows.metric == "cka"]
    assert set(refused.status) == {"does_not_apply"}
    assert refused.reason.str.contains("at least 4 samples").all()
    assert set(rows[(rows.metric == "procrustes_distance") & (rows.part == "")].status) == {"ok"}
    rows = audit.analyse("similarity", **FAST, memory=1)
    assert rows[rows.status != "ok"].reason.str.contains("more than 1 MiB").any()


def test_an_unknown_measure_is_refused_with_those_that_there_are():
    with pytest.raises(ValidationError, match="there are cka"):
        SimilarityOptions(measures=("cosine",))


def test_the_pictures_are_drawn_with_words_about_this_run(three):
    three.analyse("similarity", **FAST, matrices=("cka", "procrustes_distance"))
    figures = {figure.key: figure for figure in three.draw("similarity")}
    assert {"last-cka-probe", "layers-cka-probe", "steps-cka-probe-fc1", "last-procrustes_distance-probe"} <= set(figures)  # fmt: skip
    assert [step for step, _ in figures["layers-cka-probe"].frames] == [0, 3, 9]
    for figure in figures.values():
        assert figure.svg.startswith("<svg") or figure.frames
        assert "nan" not in figure.caution
        assert "{" not in figure.caution + figure.shows + figure.reading


def test_the_suite_of_drift_finds_one_similarity_to_the_step_before_for_each_layer_and_step(three):
    condition = next(item for item in SUITES["drift"] if item.metric == "cka")
    rows = three.analyse("similarity", bootstrap=0, permutations=0)
    judged = rows[(rows.metric == "cka") & (rows.part == condition.part)]
    assert judged.groupby(["layer", "step"]).size().tolist() == [1] * 12
    assert (judged.other_layer == "").all()
