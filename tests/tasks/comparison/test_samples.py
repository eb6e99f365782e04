"""Two groups before the same samples, on answers that are known beforehand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stratascope.storage.probes import read_probe
from stratascope.storage.store import Store
from stratascope.tasks.comparison.samples import GroupAnswers, answers_of, disagreement, shown_samples


def group(answer: list[int], probability: list[float]) -> GroupAnswers:
    given = np.array(answer, np.int32)
    sure = np.array(probability, np.float32)
    return GroupAnswers(given[None], given, np.ones_like(sure), sure, sure)


def test_disagreement_within_and_between_is_a_mean_over_pairs():
    first = np.array([[0, 0, 0, 0], [0, 0, 1, 1]])
    second = np.array([[1, 0, 0, 0]])
    found = disagreement(first, second)
    assert found.within_a == 0.5
    assert math.isnan(found.within_b)
    assert found.between == (0.25 + 0.75) / 2


def test_each_kind_of_disagreement_shows_first_where_both_are_sure():
    targets = np.array([0, 0, 0, 1, 2, 2])
    a = group([0, 0, 1, 1, 0, 2], [0.6, 0.9, 0.7, 0.9, 0.5, 0.9])
    b = group([1, 1, 0, 1, 1, 2], [0.8, 0.7, 0.9, 0.9, 0.6, 0.9])
    found = shown_samples(a, b, targets, most=12)
    assert found["only_a"].tolist() == [1, 0]
    assert found["only_b"].tolist() == [2]
    assert found["both_wrong"].tolist() == [4]
    assert shown_samples(a, b, targets, most=1)["only_a"].tolist() == [1]


def test_the_stored_answers_are_the_softmax_of_the_stored_outputs(compared):
    store = Store.open(compared / "store")
    probe = read_probe(store, "test")
    runs = [(f"narrow-{seed}", 120) for seed in range(3)]
    found = answers_of(store, runs, probe)
    outputs = np.stack(
        [store.array(f"runs/{run}/000000000120/activations/test/@output/full").astype(float) for run, _ in runs]
    )
    chances = np.exp(outputs) / np.exp(outputs).sum(2, keepdims=True)
    assert (found.predicted == outputs.argmax(2)).all()
    ballots = np.stack([(outputs.argmax(2) == value).sum(0) for value in range(10)], 1)
    for sample in range(len(probe)):
        most = np.flatnonzero(ballots[sample] == ballots[sample].max())
        best = most[chances[:, sample, most].mean(0).argmax()]
        assert found.answer[sample] == best
        assert found.votes[sample] == pytest.approx(ballots[sample].max() / 3)
        assert found.probability[sample] == pytest.approx(chances[:, sample, best].mean(), rel=1e-5)
        assert found.target_probability[sample] == pytest.approx(
            chances[:, sample, probe.targets[sample]].mean(), rel=1e-5
        )
