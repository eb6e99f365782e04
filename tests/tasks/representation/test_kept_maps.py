"""Maps that stay where they are: what joins, what moves, and what is made anew."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stratascope.storage.units import Unit
from stratascope.tasks.models import mlp
from stratascope.tasks.representation.kept_maps import steady_choice
from stratascope.tasks.units import Assignment

SIZE = {"inputs": 6, "widths": [8, 4], "outputs": 3}
FAST = {"iterations": 50, "dimensions": (2,), "stability_seeds": 0}
PLACE = "series/run/embedding/probe/fc3:input"


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return mlp(**SIZE)


@pytest.fixture
def audit(little_audit):
    made = little_audit("stratascope.tasks.models:mlp", SIZE)
    targets = np.arange(60) % 3
    inputs = np.random.default_rng(0).normal(size=(60, 6)) + 2 * targets[:, None]
    made.probe("probe", inputs=inputs.astype(np.float32), targets=targets)
    for step in (0, 5, 9):
        made.checkpoint(step, network(step))
    made.capture("embedding")
    return made


def analysed(audit, rebase: bool = False, **options) -> dict[str, np.ndarray]:
    """The maps after another audit, with the start and the steps."""
    unit = Unit("series", "run", -1, "embedding")
    known = audit.store.manifest(unit)
    identity = f"{known.identity if known else ''}+"
    audit._do(Assignment(unit, identity, {}, (audit.subject,), tuple(audit.files), options=FAST | options, rebase=rebase))  # fmt: skip
    return {name: audit.store.array(f"{PLACE}/{name}") for name in ("step", "pca_2d", "tsne_2d", "start_tsne_2d")}


def join(audit, step: int, weights: torch.nn.Module) -> None:
    """Another checkpoint, captured too; one of the same step is replaced."""
    audit.files = [file for file in audit.files if file.step != step]
    audit.checkpoint(step, weights)
    audit.files.sort(key=lambda file: file.step)
    every, audit.files = audit.files, [file for file in audit.files if file.step == step]
    manifest = audit.store.path / f"manifests/run/{step:012d}/capture.json"
    manifest.unlink(missing_ok=True)
    audit.capture("embedding")
    audit.files = every


def start_facts(audit) -> dict:
    return audit.store.array_info(f"{PLACE}/start_tsne_2d")[3]


def test_a_new_checkpoint_joins_and_the_old_maps_stay_to_the_bit(audit):
    before = analysed(audit)
    join(audit, 12, network(12))
    after = analysed(audit)
    assert after["step"].tolist() == [0, 5, 9, 12]
    for name in ("pca_2d", "tsne_2d"):
        assert after[name][:3].tobytes() == before[name].tobytes()
        assert not np.array_equal(after[name][3], after[name][2])
    assert after["start_tsne_2d"].tobytes() == before["start_tsne_2d"].tobytes()
    facts = start_facts(audit)
    assert facts["steps"] == [0, 5, 9]
    assert facts["made_anew"] == ""
    digests = audit.store.array_info(f"{PLACE}/step")[3]["weights_digests"]
    assert digests == [audit.digests[step] for step in (0, 5, 9, 12)]


def test_the_new_map_is_the_one_that_the_old_start_gives(audit):
    """A step that is lost and comes back has the map that it had."""
    before = analysed(audit)
    every = audit.files
    audit.files = [file for file in every if file.step != 5]
    assert analysed(audit)["step"].tolist() == [0, 9]
    audit.files = every
    after = analysed(audit)
    for name in ("pca_2d", "tsne_2d"):
        assert after[name].tobytes() == before[name].tobytes()


def test_rebase_makes_everything_anew_from_all_steps(audit):
    before = analysed(audit)
    join(audit, 12, network(12))
    kept = analysed(audit)
    moved = analysed(audit, rebase=True)
    for name in ("pca_2d", "tsne_2d"):
        assert not np.array_equal(moved[name][:3], before[name])
    assert start_facts(audit)["steps"] == [0, 5, 9, 12]
    assert not np.array_equal(moved["start_tsne_2d"], kept["start_tsne_2d"])
    again = analysed(audit, rebase=True)
    assert all(again[name].tobytes() == moved[name].tobytes() for name in again)


def test_changed_weights_of_one_step_move_that_step_only(audit):
    before = analysed(audit)
    join(audit, 5, network(77))
    after = analysed(audit)
    for name in ("pca_2d", "tsne_2d"):
        assert after[name][[0, 2]].tobytes() == before[name][[0, 2]].tobytes()
        assert not np.array_equal(after[name][1], before[name][1])
    assert after["start_tsne_2d"].tobytes() == before["start_tsne_2d"].tobytes()


def test_the_quality_of_old_maps_is_kept_with_them(audit):
    analysed(audit)
    unit = Unit("series", "run", -1, "embedding")
    key = ["metric", "part", "step"]
    before = audit.store.rows([unit]).set_index(key)
    join(audit, 12, network(12))
    analysed(audit)
    after = audit.store.rows([unit]).set_index(key)
    assert before.index.isin(after.index).all()
    shared = after.loc[before.index]
    np.testing.assert_array_equal(shared.value, before.value)
    np.testing.assert_array_equal(shared.low, before.low)
    assert set(after.xs("stability_cost").reset_index().step) == {0, 9, 12}


def test_other_options_start_anew_and_say_what_changed(audit):
    before = analysed(audit)
    after = analysed(audit, iterations=60, methods=("pca", "tsne"))
    assert not np.array_equal(after["tsne_2d"], before["tsne_2d"])
    # What t-SNE is told is nothing to PCA.
    assert after["pca_2d"].tobytes() == before["pca_2d"].tobytes()
    assert "iterations changed" in start_facts(audit)["made_anew"]
    told = [figure.caution for figure in audit.draw("embedding") if figure.key.startswith("tsne_2d")]
    assert any("iterations changed" in text for text in told)


def test_another_method_leaves_the_maps_of_the_others(audit):
    before = analysed(audit)
    after = analysed(audit, dimensions=(2, 3))
    for name in before:
        assert after[name].tobytes() == before[name].tobytes()
    assert audit.store.has_array(f"{PLACE}/tsne_3d")


def test_other_samples_start_anew(audit):
    before = analysed(audit)
    after = analysed(audit, max_samples=40)
    assert after["tsne_2d"].shape == (3, 40, 2)
    assert before["tsne_2d"].shape == (3, 60, 2)
    assert "samples changed" in start_facts(audit)["made_anew"]


def break_array(audit, name: str) -> None:
    folder = audit.store.path / "archive.zarr" / PLACE / name
    chunks = [path for path in folder.rglob("*") if path.is_file() and path.name != "zarr.json"]
    assert chunks
    for chunk in chunks:
        chunk.write_bytes(b"broken")


@pytest.mark.parametrize("name", ["start_tsne_2d", "tsne_2d", "quality_tsne_2d", "start_pca_2d", "pca_2d", "step"])
def test_what_cannot_be_read_is_made_again_to_the_same_bytes(audit, name: str):
    analysed(audit)
    join(audit, 12, network(12))
    before = analysed(audit)
    facts = start_facts(audit)
    break_array(audit, name)
    after = analysed(audit)
    assert before.keys() == after.keys()
    for array in before:
        assert after[array].tobytes() == before[array].tobytes(), array
    assert start_facts(audit) == facts


def test_a_start_that_cannot_be_read_nor_made_again_is_made_anew_and_says_so(audit):
    """One of the steps is gone from which it was made."""
    before = analysed(audit)
    break_array(audit, "start_tsne_2d")
    audit.files = [file for file in audit.files if file.step != 5]
    after = analysed(audit)
    assert after["step"].tolist() == [0, 9]
    assert not np.array_equal(after["start_tsne_2d"], before["start_tsne_2d"])
    assert "could not be read" in start_facts(audit)["made_anew"]


@pytest.mark.parametrize("comparable", ["chain", "last", "independent", "procrustes", "consensus"])
def test_every_way_of_keeping_maps_alike_keeps_old_ones(audit, comparable: str):
    analysed(audit, comparable=comparable) if comparable in ("last", "procrustes", "consensus") else audit.analyse(
        "embedding", **FAST, comparable=comparable
    )
    first = audit.store.array(f"{PLACE}/tsne_2d")
    join(audit, 12, network(12))
    rows = audit.analyse("embedding", **FAST, comparable=comparable)
    second = audit.store.array(f"{PLACE}/tsne_2d")
    assert second[:3].tobytes() == first.tobytes()
    assert np.isfinite(second).all()
    costs = rows[rows.metric == "stability_cost"].value
    assert len(costs)
    if comparable in ("independent", "procrustes"):
        np.testing.assert_array_equal(costs, 0)
    assert set(rows[rows.metric == "map_movement"].convention.str.partition("comparable=")[2]) == {comparable}


def test_a_shuffled_probe_gives_the_same_maps(little_audit):
    generator = np.random.default_rng(1)
    targets, order = np.arange(60) % 3, generator.permutation(60)
    inputs = (generator.normal(size=(60, 6)) + 2 * targets[:, None]).astype(np.float32)
    made = little_audit("stratascope.tasks.models:mlp", SIZE)
    for name, rows in (("straight", np.arange(60)), ("shuffled", order)):
        made.probe(name, inputs=inputs[rows], targets=targets[rows], sample_id=rows)
    made.checkpoint(0, network(0))
    made.capture("embedding")
    table = made.analyse("embedding", **FAST, layers=("@input", "fc3:input"))

    def both(layer: str, name: str) -> list[np.ndarray]:
        return [made.store.array(f"series/run/embedding/{probe}/{layer}/{name}") for probe in ("straight", "shuffled")]  # fmt: skip

    for name in ("sample_id", "tsne_2d", "pca_2d", "quality_tsne_2d"):
        np.testing.assert_array_equal(*both("@input", name))
    # The forward pass rounds by a sample's place in its batch, and a descent of hundreds of steps makes rounding grow.
    np.testing.assert_allclose(*both("fc3:input", "pca_2d"), atol=1e-5)
    trust = (
        table[(table.metric == "trustworthiness") & (table.layer == "fc3:input")]
        .set_index(["part", "probe"])
        .value
    )
    for part in ("map=pca_2d", "map=tsne_2d"):
        assert trust[part, "straight"] == pytest.approx(trust[part, "shuffled"], abs=0.03)


def test_an_even_choice_prefers_what_is_known_and_keeps_its_ends():
    steps = list(range(0, 1000, 10))
    first = steady_choice(steps, 10)
    assert first[0] == 0
    assert first[-1] == 990
    assert len(first) == 10
    grown = steady_choice([*steps, 1000], 10, frozenset(first))
    assert len(set(grown) & set(first)) == 9
    assert max(np.diff(grown)) <= 2 * 1000 / 9
    assert steady_choice([3, 4], 1) == [4]
    assert steady_choice([3, 4], 5) == [3, 4]
