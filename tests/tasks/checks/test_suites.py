"""The ready-made suites: silent over healthy training, and each of their conditions raised by a fault made for it."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from stratascope.tasks.checks.evaluate import evaluate
from stratascope.tasks.checks.spec import SUITE_NAMES, CheckSpec
from stratascope.tasks.checks.suites import SUITES

ALL = [CheckSpec(suite=name) for name in SUITE_NAMES]
LAYERS = ("conv1", "relu1", "fc1", "fc2")
BLANK = {
    "run": "a", "probe": "", "layer": "", "part": "", "status": "ok", "reason": "", "low": math.nan, "high": math.nan,
    "other_run": "", "other_layer": "",
}  # fmt: skip


def healthy(seed: int, steps: np.ndarray, samples: int = 1000) -> pd.DataFrame:
    """A run that learns: everything that the suites look at, with the noise of `samples` samples and of the training."""
    generator = np.random.default_rng(seed)
    speed, top = generator.uniform(10, 200), generator.uniform(0.7, 0.99)
    learned = 1 - np.exp(-steps / speed)
    rows: list[dict] = []

    def file(metric: str, values: np.ndarray, width: np.ndarray | float = math.nan, **where: str) -> None:
        wide = np.broadcast_to(width, values.shape)
        rows.extend(
            {**BLANK, **where, "metric": metric, "step": int(step), "value": value, "low": value - half, "high": value + half}
            for step, value, half in zip(steps, values, wide, strict=True)
        )  # fmt: skip

    sure = 1.96 / math.sqrt(samples)
    for probe, best in (("test", top), ("train", min(1.0, top + 0.05))):
        true = 0.1 + (best - 0.1) * learned
        seen = generator.binomial(samples, true) / samples
        file("accuracy", seen, np.sqrt(true * (1 - true)) * sure, probe=probe)
        loss = 2.3 * (1 - learned) + 2 * (1 - best) * learned
        file("loss", loss * (1 + 0.03 * generator.standard_normal(len(steps))), loss * sure, probe=probe)
        for layer in LAYERS:
            growth = 1 + generator.uniform(0.5, 20) * learned
            file("activation_std", growth * generator.lognormal(0, 0.02, len(steps)), probe=probe, layer=layer)
            idle = 0.3 + 0.1 * learned + 0.01 * generator.standard_normal(len(steps))
            file("sparsity", idle, probe=probe, layer=layer)
            file("dead_fraction", 0.2 * (1 - learned), probe=probe, layer=layer)
            file("cka", np.clip(0.99 - 0.3 * np.exp(-steps / speed) * generator.uniform(0, 1, len(steps)), 0, 1), probe=probe, layer=layer)  # fmt: skip
    file("generalization_gap", 0.05 * learned + 0.01 * generator.standard_normal(len(steps)), sure, probe="test", part="of=accuracy;against=train")  # fmt: skip
    for layer in ("", *LAYERS):
        file("weight_norm", 5 + 3 * learned, layer=layer)
        file("gradient_norm", 0.2 + 2 * learned * (1 - learned), layer=layer)
    file("non_finite_count", np.zeros(len(steps)), part="of=weights")
    file("duplicate_of", np.zeros(len(steps)))
    file("shared_tensors", np.zeros(len(steps)))
    file("misplaced_score", generator.uniform(0, 0.5, len(steps)))
    file("knn_accuracy", 0.6 + 0.3 * learned, probe="test", layer="fc2", part="space=features")
    file("saturated_fraction", np.full(len(steps), 0.1), probe="test", layer="fc1")
    true = 0.5 + 0.4 * learned
    seen = generator.binomial(samples, true) / samples
    file("linear_probe_accuracy", seen, np.sqrt(true * (1 - true)) * sure, probe="test", layer="fc1")
    by_chance = generator.uniform(0, 0.4, len(steps))  # a control is no score: nothing watches it
    file("linear_probe_accuracy", by_chance, 0.01, probe="test", layer="fc1", part="null=shuffled_labels")
    moving = np.gradient(learned) / max(np.gradient(learned).max(), 1e-12)
    churn = generator.binomial(samples, np.clip(0.8 * moving + 0.01, 0, 1)) / samples
    file("prediction_churn", churn, np.sqrt(churn * (1 - churn)) * sure, probe="test")
    lost = generator.binomial(samples, np.clip(0.1 * moving + 0.005, 0, 1)) / samples
    file("newly_wrong_fraction", lost, np.sqrt(lost * (1 - lost)) * sure, probe="test")
    for layer in LAYERS:
        moved = 0.5 * moving * generator.uniform(0.1, 1) * generator.lognormal(0, 0.2, len(steps))
        file("layer_movement", moved, 0.1 * moved, probe="test", layer=layer, part="measure=cka;against=previous")
    return pd.DataFrame(rows)


EVENLY = np.arange(0, 2000, 40)
DOUBLING = np.array([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000])


@pytest.mark.parametrize("steps", [EVENLY, DOUBLING], ids=["evenly", "doubling"])
def test_nothing_is_raised_over_healthy_runs(steps):
    for seed in range(30):
        found = evaluate(healthy(seed, steps), ALL)
        assert found.raised == (), seed
    assert all(condition.counts for condition in found.conditions)


def at(place: int, **where: str):
    """The rows of a healthy run at the checkpoint numbered `place`, narrowed by column."""
    return lambda rows: (rows["step"] == EVENLY[place]) & np.logical_and.reduce([rows[k] == v for k, v in where.items()])  # fmt: skip


def since(place: int, **where: str):
    return lambda rows: (rows["step"] >= EVENLY[place]) & np.logical_and.reduce([rows[k] == v for k, v in where.items()])  # fmt: skip


FAULTS = {
    "finite": (at(30, metric="non_finite_count"), lambda value: 7.0),
    "finite-loss": (at(30, metric="loss", probe="test"), lambda value: math.inf),
    "dead-units": (at(30, metric="dead_fraction", layer="fc1"), lambda value: 0.95),
    "saturated-units": (at(30, metric="saturated_fraction"), lambda value: 0.97),
    "exploding-weights": (since(30, metric="weight_norm", layer=""), lambda value: 150 * value),
    "jumping-weights": (at(30, metric="weight_norm", layer=""), lambda value: 15 * value),
    "huge-activations": (since(0, metric="activation_std", layer="fc1"), lambda value: 1e7 * value),
    "exploding-activations": (at(30, metric="activation_std", layer="fc1"), lambda value: 200 * value),
    "exploding-gradients": (at(30, metric="gradient_norm", layer=""), lambda value: 1e5 * value),
    "duplicate-checkpoint": (at(30, metric="duplicate_of"), lambda value: 1.0),
    "shared-tensors": (at(30, metric="shared_tensors"), lambda value: 12.0),
    "misplaced-checkpoint": (at(30, metric="misplaced_score"), lambda value: 1.7),
    "accuracy-fall": (at(30, metric="accuracy", probe="test"), lambda value: value - 0.2),
    "accuracy-below-start": (since(5, metric="accuracy", probe="test"), lambda value: 0.01),
    "loss-rise": (at(30, metric="loss", probe="test"), lambda value: 3 * value + 0.2),
    "loss-above-start": (since(20, metric="loss", probe="test"), lambda value: 4.0),
    "no-improvement": (since(0, metric="loss", probe="test"), lambda value: 2.3),
    "neighbour-accuracy-fall": (at(30, metric="knn_accuracy"), lambda value: value - 0.3),
    "linear-probe-fall": (at(30, metric="linear_probe_accuracy", part=""), lambda value: value - 0.3),
    "representation-drift": (since(30, metric="cka", layer="fc1"), lambda value: 0.1),
    "weight-drift": (since(40, metric="weight_norm", layer="fc1"), lambda value: 2 * value),
    "activation-drift": (since(40, metric="activation_std", layer="relu1"), lambda value: 40 * value),
    "sparsity-drift": (since(40, metric="sparsity", layer="relu1"), lambda value: 1.0),
    "output-drift": (since(40, metric="accuracy", probe="train"), lambda value: value / 9),
    "layer-jump": (at(40, metric="layer_movement", layer="fc1"), lambda value: value + 0.6),
    "prediction-jump": (at(40, metric="prediction_churn"), lambda value: value + 0.6),
    "mass-forgetting": (at(40, metric="newly_wrong_fraction"), lambda value: value + 0.4),
    "accuracy-gap": (at(30, metric="generalization_gap"), lambda value: 0.35),
    "widening-gap": (at(30, metric="generalization_gap"), lambda value: value + 0.2),
    "gap-seen": (at(30, metric="generalization_gap"), lambda value: 0.2),
}


@pytest.mark.parametrize("name", [member.name for name in SUITE_NAMES for member in SUITES[name]])
def test_each_condition_is_raised_by_a_fault_made_for_it(name):
    rows = healthy(3, EVENLY)
    where, change = FAULTS[name]
    if name in ("output-drift", "activation-drift"):
        # What learns fast at first has seen large moves; a run that has settled shows a new one.
        settled = (rows["metric"] == rows["metric"][where(rows)].iloc[0]) & (rows["step"] >= EVENLY[15])
        rows.loc[settled, "value"] = rows.loc[settled].groupby(["layer", "probe"])["value"].transform("first")
    chosen = where(rows)
    assert chosen.any()
    moved = rows.loc[chosen, "value"].map(change) - rows.loc[chosen, "value"]
    for column in ("value", "low", "high"):
        rows.loc[chosen, column] += moved
    raised = [item for item in evaluate(rows, ALL).raised if item.name == name]
    assert raised
    expected = {suite: member.severity for suite in SUITE_NAMES for member in SUITES[suite] if member.name == name}
    assert {item.outcome for item in raised} == set(expected.values())
    first = int(rows.loc[chosen, "step"].min())
    # Ten checkpoints in a row without improvement come after the first one; all else is raised at once.
    assert min(item.step for item in raised) == (EVENLY[10] if name == "no-improvement" else first)


def test_suites_have_names_of_their_own_and_conditions_too():
    assert tuple(SUITES) == SUITE_NAMES
    names = [member.name for members in SUITES.values() for member in members]
    assert len(set(names)) == len(names)


def test_a_layer_that_starts_at_zero_may_grow_as_it_likes():
    """Gates and last layers that are set to 0 at the start are no explosion when they begin to learn."""
    values = [0.0, 1e-6, 0.5, 2.0, 2.1]
    rows = pd.DataFrame(
        [
            {**BLANK, "metric": metric, "layer": "gate", "step": step, "value": value}
            for metric in ("weight_norm", "activation_std", "gradient_norm")
            for step, value in enumerate(values)
        ]
    )
    assert evaluate(rows, ALL).raised == ()
