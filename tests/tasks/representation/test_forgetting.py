"""Forgetting, transitions and churn: against a hand-made table, naive loops, and chance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stratascope.tasks.representation.forgetting import (
    NEVER,
    chance_of_churn,
    learning_course,
    learning_history,
    relative_change,
    transitions,
)
from stratascope.tasks.representation.neighbour_churn import chance_of_replacement, replaced_share

TABLE = np.array(
    [  # one line a checkpoint, one column a sample
        [1, 0, 0, 1, 0],
        [1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0],
        [1, 1, 0, 0, 1],
    ],
    bool,
)


def test_a_table_made_by_hand():
    found = learning_history(TABLE)
    assert found.events.tolist() == [0, 1, 0, 2, 0]
    assert found.first_learned.tolist() == [0, 1, NEVER, 0, 3]
    assert found.settled.tolist() == [0, 3, NEVER, NEVER, 3]
    assert found.never_learned.tolist() == [False, False, True, False, False]
    assert found.unforgettable.tolist() == [True, False, False, False, True]
    course = learning_course(TABLE)
    np.testing.assert_allclose(course.events, [0, 0.2, 0.4, 0.6])
    np.testing.assert_allclose(course.forgotten, [0, 0.2, 0.4, 0.4])
    np.testing.assert_allclose(course.never_learned, [0.6, 0.4, 0.4, 0.2])
    np.testing.assert_allclose(course.unforgettable, [0.4, 0.4, 0.2, 0.4])


@settings(max_examples=60, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 8))))
def test_a_naive_loop_counts_the_same(right):
    found, course = learning_history(right), learning_course(right)
    for sample, answers in enumerate(right.T.tolist()):
        events, learned, settled = 0, NEVER, NEVER
        for step, answer in enumerate(answers):
            if answer and learned == NEVER:
                learned = step
            if step and answers[step - 1] and not answer:
                events += 1
            if answer and settled == NEVER:
                settled = step
            if not answer:
                settled = NEVER
        assert (found.events[sample], found.first_learned[sample], found.settled[sample]) == (
            events,
            learned,
            settled,
        )
    np.testing.assert_allclose(course.forgotten + course.never_learned + course.unforgettable, 1)
    assert course.events[-1] == pytest.approx(found.events.mean())
    assert course.never_learned[-1] == pytest.approx(found.never_learned.mean())
    assert course.unforgettable[-1] == pytest.approx(found.unforgettable.mean())


def test_each_change_of_answer_has_one_kind():
    before, after, targets = np.array([0, 1, 2, 2, 1]), np.array([0, 0, 1, 0, 0]), np.array([0, 0, 2, 1, 1])
    found = {name: np.flatnonzero(chosen).tolist() for name, chosen in transitions(before, after, targets).items()}
    assert found == {"newly_right": [1], "newly_wrong": [2, 4], "changed_wrong": [3]}


def test_unrelated_predictions_churn_as_often_as_chance_says():
    generator = np.random.default_rng(0)
    before, after = generator.choice(3, 4000, p=[0.6, 0.3, 0.1]), generator.choice(3, 4000, p=[0.2, 0.2, 0.6])
    assert chance_of_churn(before, after) == pytest.approx((before != after).mean(), abs=0.03)
    assert chance_of_churn(np.zeros(5, int), np.zeros(5, int)) == 0


def test_a_regression_moves_in_units_of_its_targets():
    targets = np.random.default_rng(1).normal(3, 4, size=(500, 2))
    found = relative_change(targets, targets + targets.std(0), targets)
    assert np.sqrt(found.mean()) == pytest.approx(1, rel=0.05)
    assert relative_change(targets, targets, targets).max() == 0
    with pytest.raises(ValueError, match="do not vary"):
        relative_change(targets, targets, np.ones((500, 2)))


def test_replaced_neighbours_are_counted_whatever_their_order():
    before = np.array([[1, 2, 3], [0, 2, 4]])
    after = np.array([[3, 2, 1], [5, 0, 1]])
    np.testing.assert_allclose(replaced_share(before, after, 6), [0, 2 / 3], rtol=1e-6)


def test_neighbours_at_random_are_replaced_as_often_as_chance_says():
    generator = np.random.default_rng(2)
    count, k = 300, 12

    def drawn() -> np.ndarray:
        others = [generator.choice(np.delete(np.arange(count), row), k, replace=False) for row in range(count)]
        return np.stack(others)

    before, after = drawn(), drawn()
    naive = [len(set(new) - set(old)) / k for old, new in zip(before.tolist(), after.tolist(), strict=True)]
    found = replaced_share(before, after, count)
    np.testing.assert_allclose(found, naive, rtol=1e-6)
    assert found.mean() == pytest.approx(chance_of_replacement(k, count), abs=0.01)
