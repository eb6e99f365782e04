"""Heads followed over a real little run that learns to repeat: formation, change points, moves, pictures."""

import numpy as np
import pytest
import torch

from tests.tasks.conftest import LittleAudit

STEPS = (0, 10, 20, 30, 35, 40, 45, 50, 60, 70)
ARGUMENTS = {"alphabet": 12, "length": 16, "width": 32, "heads": 2, "depth": 2, "expansion": 0}


def repeated(count: int, seed: int) -> torch.Tensor:
    """int64 (sample, 16): eight random tokens, twice."""
    half = torch.randint(0, 12, (count, 8), generator=torch.Generator().manual_seed(seed))
    return torch.cat([half, half], 1)


@pytest.fixture(scope="module")
def repeating_audit(tmp_path_factory) -> LittleAudit:
    from stratascope.tasks.models import text_transformer

    audit = LittleAudit(tmp_path_factory.mktemp("repeating"), "stratascope.tasks.models:text_transformer", ARGUMENTS, task="tokens")  # fmt: skip
    tokens = repeated(32, 9).numpy()
    audit.probe("test", inputs=tokens, targets=np.roll(tokens, -1, 1))
    torch.manual_seed(0)
    network = text_transformer(**ARGUMENTS)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    for step in range(STEPS[-1] + 1):
        if step in STEPS:
            audit.checkpoint(step, network)
        tokens = repeated(32, step + 100)
        loss = torch.nn.functional.cross_entropy(network(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return audit


@pytest.fixture(scope="module")
def rows(repeating_audit):
    return repeating_audit.analyse("attention_over_training")


def test_a_head_forms_by_induction_and_the_step_is_that_of_its_curve(repeating_audit, rows):
    formed = rows[(rows["metric"] == "head_formation_step") & (rows["status"] == "ok")]
    formed = formed[formed["part"].str.endswith("induction_score")]
    assert len(formed)
    for row in formed.itertuples():
        place = f"series/run/attention_over_training/test/{row.layer}"
        names = repeating_audit.store.array_info(f"{place}/scores")[3]["score"]
        head = int(row.part.partition(";")[0].removeprefix("head="))
        curve = repeating_audit.store.array(f"{place}/scores")[:, names.index("induction_score"), head]
        middle = (curve[0] + curve[-1]) / 2
        at = STEPS.index(int(row.value))
        assert (curve[at:] >= middle).all()
        assert curve[at - 1] < middle
        assert row.low == STEPS[at - 1]


def test_heads_that_did_not_form_say_why(rows):
    still = rows[(rows["metric"] == "head_formation_step") & (rows["status"] != "ok")]
    assert len(still)
    assert still["reason"].str.contains("did not rise by 0.1 over").all()
    assert still["value"].isna().all()


def test_the_jump_is_a_change_point(rows):
    sizes = rows[(rows["metric"] == "change_point_size") & rows["part"].str.contains("of=induction_score")]
    best = sizes.loc[sizes["value"].idxmax()]
    assert best["value"] > 0.15
    where = (rows["part"] == best["part"]) & (rows["layer"] == best["layer"])
    step = rows[where & (rows["metric"] == "change_point_step")]["value"].item()
    assert 20 < step <= 70
    assert rows[where & (rows["metric"] == "change_point_p_value")]["value"].item() <= 0.05


def test_head_change_is_the_distance_of_the_stored_weights(repeating_audit, rows):
    from scipy.spatial.distance import jensenshannon

    changes = rows[rows["metric"] == "head_change"]
    assert len(changes) == 4 * (len(STEPS) - 1)
    row = changes[(changes["step"] == 45) & (changes["part"] == "head=1")].iloc[0]
    assert row["other_step"] == 40
    kept = [repeating_audit.store.array(f"runs/run/{step:012d}/attention/test/{row['layer']}/weights")[:, 1] for step in (40, 45)]  # fmt: skip
    one, other = (values.astype(np.float64) / values.astype(np.float64).sum(-1, keepdims=True) for values in kept)
    expected = jensenshannon(one, other, base=2, axis=-1).mean()
    assert row["value"] == pytest.approx(expected, abs=2e-3)


def test_agreement_is_that_of_the_pair_of_heads_of_each_layer(repeating_audit, rows):
    from scipy.spatial.distance import jensenshannon

    agreement = rows[rows["metric"] == "head_agreement"]
    assert len(agreement) == 2 * len(STEPS)
    row = agreement[agreement["step"] == 70].iloc[0]
    kept = repeating_audit.store.array(f"runs/run/{70:012d}/attention/test/{row['layer']}/weights").astype(
        np.float64
    )
    kept /= kept.sum(-1, keepdims=True)
    expected = 1 - jensenshannon(kept[:, 0], kept[:, 1], base=2, axis=-1).mean()
    assert row["value"] == pytest.approx(expected, abs=2e-3)
    place = "series/run/attention_over_training/test/head_distance"
    distances, about = repeating_audit.store.array(place), repeating_audit.store.array_info(place)[3]
    np.testing.assert_array_equal(distances, distances.T)
    first = about["layers"].index(row["layer"])
    assert 1 - distances[first, first + 1] == pytest.approx(row["value"], abs=1e-6)


def test_the_archive_opens_as_a_tree(repeating_audit, rows):
    import xarray

    archive = repeating_audit.store.path / "archive.zarr"
    xarray.open_datatree(archive, engine="zarr", consolidated=False).close()
    tree = xarray.open_datatree(
        archive, engine="zarr", consolidated=False, group="series/run/attention_over_training"
    )
    assert tree["test/head_distance"].shape == (4, 4)
    assert tree["test/blocks.0.attention/head_weights"].dims == ("step", "top_head", "query", "key")
    tree.close()


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_a_steep_slope_is_one_change_of_level(noise):
    from stratascope.tasks.representation.change_points import changes
    from stratascope.tasks.sequence.attention_over_training import AttentionOverTrainingOptions

    curve = np.array([0.03, 0.03, 0.04, 0.05, 0.07, 0.08, 0.09, 0.1, 0.28, 0.68, 0.84, 0.92, 0.94, 0.95])
    curve += noise * np.random.default_rng(0).normal(size=len(curve))
    asked = AttentionOverTrainingOptions().of_changes(curve)
    found = changes(curve, asked.penalty, asked.level, asked.permutations, asked.seed)
    assert [change.place for change in found] == [9]


def test_pictures_tell_what_happened(repeating_audit, rows):
    figures = {figure.key: figure for figure in repeating_audit.draw("attention_over_training")}
    formation = figures["formation-test"]
    assert formation.headline
    assert "formed between steps" in formation.caution
    assert "not measured in this run" in formation.caution
    assert {
        "order-test",
        "change-test",
        "agreement-test",
        "heads-test",
        "attention_entropy_share-test",
        "weights-test",
    } <= set(figures)
    assert [step for step, _ in figures["weights-test"].frames] == list(STEPS)
    for figure in figures.values():
        assert figure.table
        assert "{" not in figure.shows + figure.reading + figure.caution


def test_one_checkpoint_or_no_attention_says_so(little_audit):
    from stratascope.tasks.models import mlp

    audit = little_audit(args={"inputs": 4, "widths": [4], "outputs": 2})
    audit.probe("test", inputs=np.zeros((4, 4), np.float32), targets=np.arange(4) % 2)
    torch.manual_seed(0)
    audit.checkpoint(0, mlp(inputs=4, widths=[4], outputs=2))
    assert audit.analyse("attention_over_training")["reason"].str.contains("the run has one checkpoint").all()
    audit.checkpoint(1, mlp(inputs=4, widths=[4], outputs=2))
    found = audit.analyse("attention_over_training")
    assert set(found["status"]) == {"does_not_apply"}
    assert found["reason"].str.contains("`attention` says why").all()
