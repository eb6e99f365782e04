"""Linear probes of whole checkpoints: rows with n, d and intervals, controls, named reasons, order, baselines, figures."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from stratascope.storage.units import Unit
from stratascope.tasks.analysis import _REGISTRY, named
from stratascope.tasks.checks.evaluate import evaluate
from stratascope.tasks.checks.spec import CheckSpec
from stratascope.tasks.in_memory import analyse
from stratascope.tasks.models import mlp
from tests.tasks.representation.blobs import blobs

FAST = {"regularization": (1e-2, 1.0), "folds": 3, "bootstrap": 20, "permutations": 3, "control_groups": 12}
NAMES = ("linear_probe", "linear_probe_baselines")
TEXTS = ("shows", "reading", "caution", "audience", "practitioner", "researcher")
SIZE = {"inputs": 6, "widths": [8], "outputs": 3}
STEPS = (0, 20)
COLUMNS = ["metric", "step", "layer", "part", "value", "low", "high", "n", "status"]


def data(count: int = 90, seed: int = 0):
    """Samples on which a network can be better than a straight cut, and worse than none."""
    targets = np.arange(count) % 3
    generator = np.random.default_rng(seed)
    inputs = 1.2 * np.eye(3, 6)[targets] + generator.normal(size=(count, 6))
    return inputs.astype(np.float32), targets


@pytest.fixture(scope="module")
def audit(lasting_audit):
    """Two steps of a perceptron; the same probe once as it is and once in another order; both analyses."""
    found = lasting_audit("stratascope.tasks.models:mlp", SIZE)
    inputs, targets = data()
    order = np.random.default_rng(1).permutation(len(inputs))
    identities = np.array([f"s{number}" for number in range(len(inputs))])
    found.probe("plain", class_names=("ant", "bee", "cow"), inputs=inputs, targets=targets, sample_id=identities)
    found.probe("turned", inputs=inputs[order], targets=targets[order], sample_id=identities[order])
    torch.manual_seed(0)
    network = mlp(**SIZE)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3)
    for step in range(max(STEPS) + 1):
        if step in STEPS:
            found.checkpoint(step, network)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(torch.from_numpy(inputs)), torch.from_numpy(targets)).backward()
        optimizer.step()
    found.capture(*NAMES, layers=("fc1", "relu1"))
    for file in found.files:
        unit = Unit("checkpoint", "run", file.step, "linear_probe")
        found._do(_assignment(found, unit, (file,), FAST))
    methods = ("logistic_regression", "k_nearest_neighbors")
    unit = Unit("series", "run", -1, "linear_probe_baselines")
    found._do(_assignment(found, unit, tuple(found.files), {"methods": methods, "bootstrap": 20}))
    return found


def _assignment(audit, unit, files, options):
    from stratascope.tasks.units import Assignment

    return Assignment(unit, str(options), {}, (audit.subject,), files, options=options)


@pytest.fixture(scope="module")
def figures(audit):
    return {name: audit.draw(name) for name in NAMES}


@pytest.fixture
def undrawn(monkeypatch):
    """Analyses in memory without their figures, which take time and are looked at elsewhere."""
    for name in NAMES:
        monkeypatch.setitem(_REGISTRY, name, replace(named(name), draw=lambda view, options: []))


@pytest.mark.parametrize("name", NAMES)
def test_every_number_says_what_it_is_and_how_sure(audit, name):
    rows = audit.view(name).rows
    registered = {metric.name: metric.unit for metric in named(name).metrics}
    assert set(rows.metric) == set(registered) - {"linear_probe_r2"}
    sound = rows[rows.status.isin(["ok", "vacuous"])]
    assert all(unit == registered[metric] for metric, unit in zip(sound.metric, sound.unit, strict=True))
    assert (sound.n == 90).all()
    assert (sound.estimator != "").all()
    assert (sound.convention != "").all()
    without = ["permutation_p_value", "margin_p_value", "first_layer_beyond_inputs"]
    with_interval = sound[~sound.metric.isin(without) & (sound.part != "code=uniform")]
    assert (with_interval.low <= with_interval.high).all()
    assert (rows[rows.status == "does_not_apply"].reason != "").all()


@pytest.mark.parametrize("name", NAMES)
def test_another_order_of_the_probe_gives_the_same_numbers(audit, name):
    rows = audit.view(name).rows
    one, other = (
        rows[rows.probe == probe][COLUMNS].sort_values(COLUMNS[:4]).reset_index(drop=True)
        for probe in audit.probes
    )
    assert len(one) > 15
    values = ["value", "low", "high"]
    np.testing.assert_allclose(one[values], other[values], rtol=1e-5, atol=1e-6)
    assert one.drop(columns=values).equals(other.drop(columns=values))


def test_rows_and_arrays_tell_the_same(audit):
    step = STEPS[-1]
    found = audit.view("linear_probe").arrays(step)
    predicted, target = found["plain/relu1/predicted"], found["plain/target"]
    rows = audit.view("linear_probe").metric("linear_probe_accuracy", probe="plain", layer="relu1", part="")
    assert rows[rows.step == step].value.item() == pytest.approx((predicted == target).mean())
    counts = found["plain/relu1/confusion"]
    assert np.trace(counts) == (predicted == target).sum()
    balanced = audit.view("linear_probe").metric("linear_probe_balanced_accuracy", probe="plain", layer="relu1")
    assert balanced[balanced.step == step].value.item() == pytest.approx(
        (counts.diagonal() / counts.sum(1)).mean()
    )
    path = found["plain/relu1/path"]
    assert path.shape == (4, 2)
    assert (path[3, 0] < path[3, 1]).all()
    assert set(found["plain/fold"]) == {0, 1, 2}


def test_margins_are_those_of_the_stored_answers_and_the_first_that_wins_is_named(audit):
    found = audit.view("linear_probe_baselines").arrays()
    target = audit.view("linear_probe").arrays(0)["plain/target"]
    shares = {
        method: (found[f"plain/baseline/{method}"] == target).mean()
        for method in ("logistic_regression", "k_nearest_neighbors")
    }
    baselines = audit.view("linear_probe_baselines").metric("linear_probe_accuracy", probe="plain", layer="@input")
    assert {part.removeprefix("baseline="): value for part, value in zip(baselines.part, baselines.value, strict=True)} == pytest.approx(shares)  # fmt: skip
    assert set(baselines.step) == {-1}
    for step in STEPS:
        own = audit.view("linear_probe").arrays(step)["plain/relu1/predicted"] == target
        margin = audit.view("linear_probe_baselines").metric("margin_over_inputs", probe="plain", layer="relu1")
        assert margin[margin.step == step].value.item() == pytest.approx(own.mean() - max(shares.values()))
    rows = audit.view("linear_probe_baselines").rows
    first = rows[(rows.metric == "first_layer_beyond_inputs") & (rows.probe == "plain")]
    assert set(first.step) == set(STEPS)
    lost = first[first.status == "does_not_apply"]
    assert lost.reason.str.contains("none of 2 layers beats").all()
    random = rows[rows.part == "null=random_features"]
    assert set(random.layer) == {"fc1", "relu1"}
    assert random[random.probe == "plain"].value.nunique() == 1  # one width, one fit


def test_baselines_are_taken_over_when_the_run_grows(audit, monkeypatch):
    from stratascope.tasks.representation import linear_probe_baselines

    def refuse(*given):
        raise AssertionError("a baseline was learned again")

    before = audit.view("linear_probe_baselines").rows
    monkeypatch.setattr(linear_probe_baselines, "baseline_answers", refuse)
    unit = Unit("series", "run", -1, "linear_probe_baselines")
    options = {"methods": ("logistic_regression", "k_nearest_neighbors"), "bootstrap": 20}
    audit._do(replace(_assignment(audit, unit, tuple(audit.files), options), identity="again"))
    assert audit.view("linear_probe_baselines").rows.equals(before)


def probed(values, targets, **more):
    layers = values if isinstance(values, dict) else {"a": values}
    return analyse("linear_probe", activations=layers, targets=targets, **{**FAST, **more}).rows


def one(rows, metric: str, part: str = ""):
    return rows[(rows.metric == metric) & (rows.part == part) & (rows.layer == "a")].iloc[0]


def test_parted_classes_are_read_and_noise_is_not(undrawn):
    values, targets = blobs(3, 24, 10)
    noise = np.random.default_rng(0).normal(size=(72, 10))
    rows = probed({"a": values, "noise": noise}, targets, permutations=19)
    assert one(rows, "linear_probe_accuracy").value == 1
    assert one(rows, "linear_probe_accuracy").low == pytest.approx(72 / (72 + 1.96**2), abs=1e-3)  # Wilson
    assert one(rows, "permutation_p_value", "of=linear_probe_accuracy").value == pytest.approx(0.05)
    assert one(rows, "compression").value > 4
    assert one(rows, "selectivity").value > 0
    found = rows[rows.layer == "noise"].set_index(["metric", "part"])
    null = found.loc[("linear_probe_accuracy", "null=shuffled_labels")]
    assert null.low - 0.1 < found.loc[("linear_probe_accuracy", "")].value < null.high + 0.1
    assert null.low < 1 / 3 < null.high
    assert found.loc[("permutation_p_value", "of=linear_probe_accuracy")].value > 0.05
    assert found.loc[("compression", "")].value < 1.1


def test_it_repeats_to_the_byte(undrawn):
    inputs, targets = data()
    first, again = (probed(inputs, targets) for _ in range(2))
    assert first.equals(again)


def refused(values, targets, metric="linear_probe_accuracy", **more) -> str:
    rows = probed(values, targets, **more)
    rows = rows[(rows.metric == metric) & (rows.layer == "a")]
    assert set(rows.status) == {"does_not_apply"}
    assert rows.value.isna().all()
    return rows.reason.iloc[0]


def test_what_cannot_be_said_has_a_named_reason(undrawn):
    inputs, targets = data(30)
    broken = inputs.copy()
    broken[3, 1] = np.nan
    assert "constant" in refused(np.ones_like(inputs), targets)
    assert "1 of 30 samples are not finite" in refused(broken, targets)
    assert "one class only" in refused(inputs, np.zeros(30, int))
    assert "no classes" in refused(inputs, None)
    assert "fewer than two classes have 3 different samples" in refused(inputs, np.arange(30))
    assert "targets are constant" in refused(inputs, np.ones(30), "linear_probe_r2", task="regression")
    with pytest.raises(ValueError, match="positive"):
        probed(inputs, targets, regularization=(0.0, 1.0))


def test_more_features_than_samples_and_copies_are_said(undrawn):
    generator = np.random.default_rng(0)
    targets = np.arange(30) % 3
    rows = probed(generator.normal(size=(30, 50)), targets)
    assert "n<=d: 30 samples" in one(rows, "linear_probe_accuracy").convention
    assert one(rows, "linear_probe_accuracy").status == "ok"
    assert one(rows, "linear_probe_overfit").status == "vacuous"
    assert "any labels" in one(rows, "linear_probe_overfit").reason
    few = np.repeat(generator.normal(size=(10, 4)), 3, axis=0)  # inputs differ, this layer cannot tell them apart
    rows = probed(few, targets)
    assert "different samples with equal features=20" in one(rows, "linear_probe_accuracy").convention


def test_copies_in_the_probe_do_not_leak_into_the_score(undrawn):
    """Labels at random: only samples that are seen in training can be right beyond chance."""
    generator = np.random.default_rng(0)
    inputs = np.repeat(generator.normal(size=(40, 60)), 3, axis=0).astype(np.float32)
    targets = np.repeat(generator.integers(0, 2, 40), 3)

    network = torch.nn.Sequential(torch.nn.Linear(60, 60))
    rows = analyse("linear_probe", networks=network, inputs=inputs, targets=targets, **FAST).rows
    found = rows[(rows.metric == "linear_probe_accuracy") & (rows.part == "")].iloc[0]
    assert "copies kept in one fold=80" in found.convention
    assert found.value < 0.7


def test_amounts_are_explained_by_a_ridge_probe(undrawn):
    generator = np.random.default_rng(0)
    values = generator.normal(size=(80, 6))
    targets = values @ generator.normal(size=6)
    rows = probed({"a": values, "noise": generator.normal(size=(80, 6))}, targets, task="regression")
    assert one(rows, "linear_probe_r2").value == pytest.approx(1.0, abs=1e-3)
    assert one(rows, "linear_probe_r2", "null=shuffled_labels").value < 0.1
    noise = rows[(rows.layer == "noise") & (rows.metric == "linear_probe_r2") & (rows.part == "")]
    assert noise.value.item() < 0.2
    assert set(rows.metric) == {"linear_probe_r2", "linear_probe_overfit", "linear_probe_regularization", "permutation_p_value"}  # fmt: skip


def test_a_layer_that_loses_its_classes_is_raised_by_the_suite(audit, undrawn):
    """The condition `linear-probe-fall` on findings as they are filed, controls and baselines among them."""
    values, targets = blobs(3, 24, 10)
    noise = np.random.default_rng(0).normal(size=values.shape)
    layers = {"lost": np.stack([values, values, noise]), "kept": np.stack([values, values, values])}
    rows = analyse("linear_probe", activations=layers, targets=targets, steps=(0, 1, 2), **FAST).rows
    raised = evaluate(rows, [CheckSpec(suite="progress")]).raised
    assert [(item.name, item.layer, item.step) for item in raised] == [("linear-probe-fall", "lost", 2)]
    every = pd.concat([audit.view(name).rows for name in NAMES])
    healthy = evaluate(every, [CheckSpec(suite="progress")])
    assert healthy.raised == ()
    judged = {item.check.name for item in healthy.conditions if item.total.get("pass")}
    assert judged == {"linear-probe-fall"}


@pytest.mark.parametrize("name", NAMES)
def test_figures_have_all_their_words_keys_and_numbers(audit, figures, name):
    drawn = figures[name]
    keys = [figure.key for figure in drawn]
    assert len(set(keys)) == len(keys)
    wanted = {
        "linear_probe": {"profile-plain", "steps-plain", "path-plain", "description-plain", "linear_probe_accuracy-plain"},
        "linear_probe_baselines": {"margin-plain", "baselines-plain", "random-features-plain"},
    }  # fmt: skip
    assert wanted[name] <= set(keys)
    for figure in drawn:
        texts = [getattr(figure, text) for text in TEXTS]
        assert all(text.strip().endswith((".", "?")) for text in texts), figure.key
        assert not any("{" in text or re.search(r"\bnan\b", text) for text in texts), (figure.key, texts)
        assert len({len(values) for values in figure.table.values()}) == 1, figure.key
        assert re.search(r"\d", figure.caution)
        assert figure.svg


def test_figures_of_amounts_are_drawn_too():
    generator = np.random.default_rng(0)
    values = generator.normal(size=(2, 60, 6))
    found = analyse(
        "linear_probe", activations={"a": values}, targets=values[1] @ generator.normal(size=6), steps=(0, 1),
        task="regression", **FAST,
    )  # fmt: skip
    keys = {figure.key for figure in found.figures}
    assert keys == {"linear_probe_r2-probe", "steps-r2-probe", "path-r2-probe"}
    assert not any("nan" in figure.caution for figure in found.figures)


def test_baselines_do_not_apply_to_regression(undrawn):
    inputs, _ = data(30)
    rows = analyse(
        "linear_probe_baselines", activations={"a": inputs}, targets=inputs[:, 0], task="regression"
    ).rows
    assert set(rows.status) == {"does_not_apply"}
    assert rows.reason.str.contains("regression").all()
