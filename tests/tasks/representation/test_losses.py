"""Losses and intervals against scikit-learn, published values and each other."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, mean_absolute_error, mean_squared_error

from stratascope.errors import AnalysisError, DoesNotApply
from stratascope.tasks.representation.losses import (
    counted_rows,
    losses_of,
    mean_interval,
    name_of,
    wilson_interval,
)


def rows_of(outputs, targets, task="classification", mask=None):
    return counted_rows(torch.as_tensor(outputs), torch.as_tensor(targets), mask, task)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    # 81 of 263 and 15 of 148 are the worked examples of Newcombe 1998, table I; 0 of 10 by hand: z² / (n + z²).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)],
)
def test_wilson_intervals_are_the_published_ones(right: int, count: int, low: float, high: float):
    assert wilson_interval(right, count) == pytest.approx((low, high), abs=6e-5)


def test_the_interval_of_independent_rows_is_the_mean_and_its_standard_error():
    values = np.random.default_rng(0).gamma(2.0, size=50)
    low, high = mean_interval(values, np.arange(50))
    half = 1.959964 * values.std(ddof=1) / np.sqrt(50)
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-12)


def test_copies_of_a_row_within_a_sample_make_nothing_surer():
    values = np.random.default_rng(1).normal(size=30)
    once = mean_interval(values, np.arange(30))
    assert mean_interval(np.repeat(values, 7), np.repeat(np.arange(30), 7)) == pytest.approx(once, rel=1e-10)


def test_one_sample_has_no_interval():
    assert np.isnan(mean_interval(np.array([1.0, 2.0]), np.zeros(2, int))).all()


def test_cross_entropy_equals_scikit_learns_log_loss():
    generator = np.random.default_rng(2)
    scores, targets = generator.normal(size=(40, 5)) * 3, generator.integers(0, 5, 40)
    losses = losses_of(rows_of(scores, targets), "classification", "cross_entropy")
    chances = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    assert float(losses.mean()) == pytest.approx(log_loss(targets, chances, labels=range(5)), rel=1e-12)


@pytest.mark.parametrize(("loss", "reference"), [("mse", mean_squared_error), ("mae", mean_absolute_error)])
def test_errors_equal_scikit_learns_on_numbers_and_on_one_hot_classes(loss: str, reference):
    generator = np.random.default_rng(3)
    outputs, numbers, classes = generator.normal(size=(20, 4)), generator.normal(size=(20, 4)), np.arange(20) % 4
    found = losses_of(rows_of(outputs, numbers, "regression"), "regression", loss)
    assert found.shape == (20,)
    assert float(found.mean()) == pytest.approx(reference(numbers, outputs), rel=1e-12)
    found = losses_of(rows_of(outputs, classes), "classification", loss)
    assert float(found.mean()) == pytest.approx(reference(np.eye(4)[classes], outputs), rel=1e-12)


def test_regression_with_the_default_loss_means_squared_errors_and_says_so():
    rows = rows_of(np.ones((3, 1)), np.zeros(3), "regression")
    assert losses_of(rows, "regression", "cross_entropy").tolist() == [1.0, 1.0, 1.0]
    assert name_of("regression", "cross_entropy") == ("mean squared error", "squared target unit")


def test_padding_and_ignored_targets_do_not_count():
    outputs = np.random.default_rng(4).normal(size=(2, 4, 3))
    targets = np.array([[0, 1, 2, 0], [1, -100, 2, 0]])
    mask = np.array([[True, True, False, False], [True, True, True, False]])
    rows = rows_of(outputs, targets, "tokens", mask)
    assert rows.owner.tolist() == [0, 0, 1, 1]
    assert rows.targets.tolist() == [0, 1, 1, 2]
    assert torch.equal(rows.outputs, torch.from_numpy(outputs[[0, 0, 1, 1], [0, 1, 0, 2]]))


def test_masked_numbers_do_not_count_either():
    outputs, targets = np.arange(12.0).reshape(2, 3, 2), np.zeros((2, 3, 2))
    rows = rows_of(outputs, targets, "regression", np.array([[True, False, True], [False, False, True]]))
    assert rows.owner.tolist() == [0, 0, 1]
    assert rows.outputs.tolist() == [[0.0, 1.0], [4.0, 5.0], [10.0, 11.0]]


@pytest.mark.parametrize(
    ("outputs", "targets", "task"),
    [
        (np.zeros((4, 3)), np.full(4, 3), "classification"),
        (np.zeros((4, 3)), np.array([0, 1, 2, -1]), "classification"),
        (np.zeros((4, 3)), np.zeros(4), "classification"),
        (np.zeros((4, 5, 3)), np.zeros((4, 6), int), "tokens"),
        (np.zeros((4, 3)), np.zeros((4, 2)), "regression"),
    ],
)
def test_outputs_and_targets_that_do_not_fit_are_refused_with_both_shapes_or_ranges(outputs, targets, task: str):
    with pytest.raises(DoesNotApply, match="targets"):
        rows_of(outputs, targets, task)


@pytest.fixture
def own_losses(tmp_path, monkeypatch):
    (tmp_path / "own_losses_of_a_user.py").write_text(
        "import numpy as np, torch\n"
        "def by_row(outputs, targets): return (outputs[:, 0] - targets).abs() ** 3\n"
        "def mean(outputs, targets): return by_row(outputs, targets).mean()\n"
        "def numpy_mean(outputs, targets): return float(np.mean(np.abs(outputs.numpy()[:, 0])))\n"
        "def wrong_shape(outputs, targets): return outputs.flatten()\n"
        "def broken(outputs, targets): return outputs @ targets\n"
    )
    return tmp_path


def test_a_loss_of_ones_own_may_give_rows_or_a_mean(own_losses):
    rows = rows_of(np.arange(6.0).reshape(3, 2), np.array([0, 0, 1]))
    by_row = losses_of(rows, "classification", "own_losses_of_a_user:by_row", own_losses)
    assert by_row.tolist() == [0.0, 8.0, 27.0]
    mean = losses_of(rows, "classification", "own_losses_of_a_user:mean", own_losses)
    assert mean.ndim == 0
    assert float(mean) == pytest.approx(35 / 3)
    assert float(losses_of(rows, "classification", "own_losses_of_a_user:numpy_mean", own_losses)) == 2.0


@pytest.mark.parametrize("name", ["wrong_shape", "broken"])
def test_a_loss_of_ones_own_that_fails_is_named(own_losses, name: str):
    rows = rows_of(np.arange(6.0).reshape(3, 2), np.array([0, 0, 1]))
    with pytest.raises(AnalysisError, match=f"own_losses_of_a_user:{name}"):
        losses_of(rows, "classification", f"own_losses_of_a_user:{name}", own_losses)
