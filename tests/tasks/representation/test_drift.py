"""Drift of made-up series with known answers, of real networks, and of what cannot be followed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import stratascope
from stratascope.tasks.models import mlp

STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 100, 150)
BROKEN = 5
"""From this checkpoint on one layer is noise, another at each."""
SIZE = {"inputs": 6, "widths": [8, 4], "outputs": 3}


def series(seed: int = 0, samples: int = 90, width: int = 10):
    """Activations (step, sample, feature), outputs (step, sample, class) and targets with known drift."""
    generator = np.random.default_rng(seed)
    start = generator.normal(size=(samples, width))
    turns = [np.linalg.qr(generator.normal(size=(width, width)))[0] for _ in STEPS]
    layers = {
        "frozen": np.stack([start] * len(STEPS)),
        "turned": np.stack([(1 + n) * start @ turn + n for n, turn in enumerate(turns)]),
        "broken": np.stack([
            generator.normal(size=start.shape) if n >= BROKEN else start + 0.02 * generator.normal(size=start.shape)
            for n in range(len(STEPS))
        ]),
    }  # fmt: skip
    targets = np.arange(samples) % 3
    answers = np.where(generator.random((len(STEPS), samples)) < 0.6, targets, generator.integers(0, 3, samples))
    return layers, np.eye(3)[answers] * 4.0, targets, answers


@pytest.fixture(scope="module")
def made_up():
    layers, outputs, targets, answers = series()
    found = stratascope.analyse(
        "drift",
        activations=layers,
        outputs=outputs,
        targets=targets,
        steps=STEPS,
        class_names=("a", "b", "c"),
        rounds=50,
    )
    return found, targets, answers


def chosen(rows, metric: str, **where):
    rows = rows[rows["metric"] == metric]
    for column, value in where.items():
        rows = rows[rows[column] == value]
    return rows


def test_frozen_and_turned_layers_do_not_move_and_keep_their_neighbours(made_up):
    rows = made_up[0].rows
    for layer in ("frozen", "turned"):
        moved = chosen(rows, "layer_movement", layer=layer)
        still = moved[~moved["part"].str.contains("null=permuted")]
        assert set(still["part"].str.split(";").str[1]) == {"against=previous", "against=first", "against=last"}
        assert (still["value"] < 1e-6).all()
        assert (still["high"].dropna() < 1e-6).all()
        assert (chosen(rows, "neighbour_churn", layer=layer, part="")["value"] == 0).all()
        counts = chosen(rows, "change_point_count", layer=layer)
        assert set(counts["status"]) == {"does_not_apply"}
        assert set(counts["reason"]) == {"the curve is constant"}


def test_a_layer_that_turns_to_noise_has_its_change_point_there(made_up):
    rows = made_up[0].rows
    for against in ("previous", "first"):
        part = f"of=layer_movement;measure=cka;against={against};number=1"
        (step,) = chosen(rows, "change_point_step", layer="broken", part=part).itertuples()
        assert (step.value, step.low, step.high) == (STEPS[BROKEN], STEPS[BROKEN - 1], STEPS[BROKEN])
        assert chosen(rows, "change_point_p_value", layer="broken", part=part)["value"].item() <= 0.05
        assert chosen(rows, "change_point_size", layer="broken", part=part)["value"].item() > 0.8
    assert len(chosen(rows, "change_point_step", layer="broken")) == 2


def test_noise_is_as_far_as_shuffled_samples_and_its_neighbours_are_those_of_chance(made_up):
    rows = made_up[0].rows
    last = chosen(rows, "layer_movement", layer="broken", step=STEPS[-1], part="measure=cka;against=previous")
    null = chosen(
        rows, "layer_movement", layer="broken", step=STEPS[-1], part="measure=cka;against=previous;null=permuted"
    )
    assert last["value"].item() == pytest.approx(null["value"].item(), abs=0.15)
    churn = chosen(rows, "neighbour_churn", layer="broken", part="").tail(5)
    chance = chosen(rows, "neighbour_churn", layer="broken", part="null=chance")["value"]
    assert set(chance.round(9)) == {round(1 - 10 / 89, 9)}
    assert churn["value"].mean() == pytest.approx(chance.iloc[0], abs=0.03)
    assert (churn["low"] <= churn["value"]).all()
    assert (churn["value"] <= churn["high"]).all()


def test_the_layer_that_moved_most_ranks_first_and_rows_say_what_they_are_held_against(made_up):
    rows = made_up[0].rows
    ranks = chosen(rows, "movement_rank", step=STEPS[-1]).set_index("layer")
    assert ranks.loc["broken", ["value", "low", "high"]].tolist() == [1, 1, 1]
    assert set(ranks["value"]) == {1, 2, 3}
    moved = chosen(rows, "layer_movement", layer="broken", part="measure=cka;against=previous")
    assert moved["other_step"].tolist() == list(STEPS[:-1])
    doubled = chosen(rows, "layer_movement", layer="broken", part="measure=cka;against=previous;per=doubling")
    lengths = np.log2((np.array(STEPS[1:]) + 1) / (np.array(STEPS[:-1]) + 1))
    np.testing.assert_allclose(doubled["value"], moved["value"] / lengths)
    assert (moved["n"] == 90).all()
    assert moved["convention"].str.contains("d=10").all()


def test_answers_are_counted_as_a_loop_counts_them(made_up):
    found, targets, answers = made_up
    rows, right = found.rows, answers == targets
    for place, step in enumerate(STEPS[1:], 1):

        def value(metric: str, step: int = step) -> float:
            return float(chosen(rows, metric, step=step, part="")["value"].item())

        assert value("prediction_churn") == pytest.approx((answers[place] != answers[place - 1]).mean())
        assert value("newly_right_fraction") == pytest.approx((right[place] & ~right[place - 1]).mean())
        assert value("newly_wrong_fraction") == pytest.approx((right[place - 1] & ~right[place]).mean())
        lost = [sum(a and not b for a, b in itertools.pairwise(line)) for line in right[: place + 1].T.tolist()]
        assert value("forgetting_events") == pytest.approx(np.mean(lost))
        assert value("forgotten_fraction") == pytest.approx(np.mean(np.array(lost) > 0))
        assert value("never_learned_fraction") == pytest.approx((~right[: place + 1].any(0)).mean())
    agreement = chosen(rows, "final_agreement").set_index("step")["value"]
    np.testing.assert_allclose(agreement, (answers[:-1] == answers[-1]).mean(1))
    order = np.argsort(found.arrays["probe/@output/sample_id"].values)
    np.testing.assert_array_equal(found.arrays["probe/@output/predicted"].values[:, order], answers)
    events = found.arrays["probe/@output/forgetting_events"].values[order]
    assert events.sum() == (right[:-1] & ~right[1:]).sum()
    first = found.arrays["probe/@output/first_learned_step"].values[order]
    assert first[~right.any(0)].tolist() == [-1] * int((~right.any(0)).sum())
    learned = np.array(STEPS)[right[:, right.any(0)].argmax(0)]
    assert chosen(rows, "first_learned_step")["value"].item() == np.median(learned)


def test_every_number_has_an_interval_around_it(made_up):
    rows = made_up[0].rows
    plain = rows[(rows["status"] == "ok") & ~rows["part"].str.contains("null=")]
    sure = plain[~plain["metric"].isin(["change_point_count", "change_point_size", "change_point_p_value"])]
    assert (sure["low"] <= sure["value"] + 1e-7).all()
    assert (sure["value"] <= sure["high"] + 1e-7).all()
    assert (rows[rows["metric"] != "first_learned_step"]["n"] > 0).all()


def test_the_same_checkpoint_twice_has_no_drift():
    generator = np.random.default_rng(3)
    layer, scores = generator.normal(size=(40, 5)), generator.normal(size=(40, 3))
    found = stratascope.analyse(
        "drift", activations={"one": np.stack([layer] * 2), "other": np.stack([layer[:, :3]] * 2)},
        outputs=np.stack([scores] * 2), targets=np.arange(40) % 3, steps=(5, 9), rounds=20,
    ).rows  # fmt: skip
    for metric in (
        "layer_movement",
        "neighbour_churn",
        "prediction_churn",
        "forgetting_events",
        "newly_wrong_fraction",
    ):
        values = chosen(found, metric)
        values = values[~values["part"].str.contains("null=")]
        assert len(values) > 0
        assert (values["value"] < 1e-6).all(), metric
    assert (chosen(found, "final_agreement")["value"] == 1).all()
    short = chosen(found, "change_point_count")
    assert short["reason"].str.contains("needs at least 8 checkpoints, there are 1").any()


def audited(make, networks, count: int = 60, *analyses: str, **options):
    audit = make("stratascope.tasks.models:mlp", SIZE, **options)
    targets = np.arange(count) % 3
    inputs = (np.random.default_rng(0).normal(size=(count, 6)) + 2 * targets[:, None]).astype(np.float32)
    names = np.array([f"s{number}" for number in range(count)])
    audit.probe("probe", inputs=inputs, targets=targets, sample_id=names, class_names=("a", "b", "c"))
    order = np.random.default_rng(1).permutation(count)
    audit.probe("shuffled", inputs=inputs[order], targets=targets[order], sample_id=names[order])
    for step, network in networks.items():
        audit.checkpoint(step, network)
    audit.capture("decomposition", "outputs")
    audit.analyse("decomposition")
    return audit


def networks(*steps: int) -> dict[int, torch.nn.Module]:
    """A network that is disturbed a little more at each step."""
    torch.manual_seed(0)
    network = mlp(**SIZE)
    found = {}
    for step in steps:
        found[step] = mlp(**SIZE)
        found[step].load_state_dict(network.state_dict())
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.3 * torch.randn_like(parameter)
    return found


def test_another_order_of_the_samples_changes_no_number(little_audit):
    rows = audited(little_audit, networks(0, 3, 10)).analyse("drift", rounds=30)
    ok = rows[rows["status"] == "ok"]
    first, second = (
        ok[ok["probe"] == name].drop(columns="probe").reset_index(drop=True) for name in ("probe", "shuffled")
    )
    assert len(first) > 100
    for column in ("metric", "layer", "step", "part", "n"):
        assert first[column].tolist() == second[column].tolist()
    # Batches of other samples round otherwise: Procrustes takes the root of that, and neighbours that are equally near
    # to a sample, as behind a rectifier, change places.
    ties = np.where(first["metric"] == "neighbour_churn", 0.02, 2e-5)
    off = np.abs(first["value"] - second["value"]) > ties
    assert not off.any(), first[off].assign(other=second["value"])
    assert (np.abs(first["low"] - second["low"]).fillna(0) <= ties).all()


def test_a_later_audit_is_held_against_the_newest_step_of_the_one_before(little_audit):
    audit = audited(little_audit, networks(0, 3, 10, 30))
    every = list(audit.files)
    audit.files = every[:2]
    rows = audit.analyse("drift", rounds=20)
    assert not rows["part"].str.contains("last_audit").any()
    audit.files = every
    since = audit.analyse("drift", rounds=20)
    since = since[since["part"].str.contains("last_audit")]
    assert {(row.step, row.other_step) for row in since.itertuples()} == {(30, 3)}
    assert {"layer_movement", "movement_rank", "prediction_churn", "newly_wrong_fraction"} <= set(since["metric"])
    # Made again with nothing new, the answer stays.
    again = audit.analyse("drift", rounds=25)
    assert set(again[again["part"].str.contains("last_audit")]["other_step"]) == {3}


def test_a_second_computation_gives_the_same_bytes(little_audit):
    audit = audited(little_audit, networks(0, 3))
    files = []
    for _ in range(2):
        audit.analyse("drift", rounds=20)
        files.append((audit.store.path / "ledger/run/series/drift.parquet").read_bytes())
        (audit.store.path / "manifests/run/series/drift.json").unlink()
    assert files[0] == files[1]


def test_what_cannot_be_followed_has_a_reason(little_audit):
    made = networks(0, 3, 10)
    with torch.no_grad():
        made[3].fc2.weight.zero_()
        made[3].fc2.bias.fill_(-1.0)
        made[10].fc3.weight[0, 0] = float("nan")
    rows = audited(little_audit, made).analyse("drift", rounds=20)
    refused = rows[(rows["status"] == "does_not_apply") & (rows["probe"] == "probe")]
    gone = refused[(refused["metric"] == "layer_movement") & (refused["step"] == 3)]
    assert set(gone["layer"]) >= {"relu2"}
    assert gone["reason"].str.contains("has no decomposition at step 3").all()
    answers = refused[(refused["metric"] == "prediction_churn")].iloc[0]
    assert answers["step"] == 10
    assert "60 of 60 outputs are not finite" in answers["reason"]
    # The steps around a gap are held against one another.
    over = chosen(
        rows, "layer_movement", layer="relu2", probe="probe", step=10, part="measure=cka;against=previous"
    )
    assert over["other_step"].tolist() == [0]


def test_one_checkpoint_cannot_drift(little_audit):
    rows = audited(little_audit, networks(4)).analyse("drift")
    assert set(rows["status"]) == {"does_not_apply"}
    assert rows["reason"].str.contains("needs two checkpoints or more; the run has one checkpoint").all()


def test_tasks_have_what_they_have_and_reasons_for_the_rest():
    layers, outputs, targets, _ = series(samples=30, width=4)
    shared = {"activations": {"frozen": layers["frozen"]}, "steps": STEPS, "rounds": 20}
    without = stratascope.analyse("drift", outputs=outputs, **shared).rows
    assert set(chosen(without, "prediction_churn")["status"]) == {"ok"}
    assert chosen(without, "forgetting_events")["reason"].tolist() == ["probe 'probe' has no targets"]
    assert "prediction_churn" in chosen(without, "change_point_count")["part"].str.cat()

    none = stratascope.analyse("drift", outputs=outputs, targets=targets, task="none", **shared).rows
    assert "outputs are no predictions" in chosen(none, "prediction_churn")["reason"].item()
    assert set(chosen(none, "layer_movement")["status"]) == {"ok"}

    amounts = np.random.default_rng(5).normal(2, 3, 30)
    slope = np.linspace(0, 1, len(STEPS))[:, None, None]
    linear = stratascope.analyse(
        "drift", outputs=slope * amounts[None, :, None], targets=amounts, task="regression", **shared
    )
    change = chosen(linear.rows, "prediction_change", part="")
    expected = np.sqrt((amounts**2).mean()) / amounts.std() / (len(STEPS) - 1)
    np.testing.assert_allclose(change["value"], expected, rtol=1e-4)
    assert (change["low"] < change["value"]).all()
    assert "see prediction_change" in chosen(linear.rows, "forgetting_events")["reason"].item()
    assert "change-probe" in [figure.key for figure in linear.figures]


def test_few_samples_have_a_reason(little_audit):
    rows = audited(little_audit, networks(0, 3), 8).analyse("drift")
    assert (
        "at least 10 samples are needed, there are 8"
        in chosen(rows, "neighbour_churn", probe="probe")["reason"].item()
    )
