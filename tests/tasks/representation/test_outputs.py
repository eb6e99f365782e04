"""What is filed of outputs: against scikit-learn, whatever the slices, and never a silent NaN."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    log_loss,
    r2_score,
    top_k_accuracy_score,
)

from stratascope.tasks.representation import outputs
from stratascope.tasks.representation.outputs import calibration_error, class_part


def echo(width: int) -> torch.nn.Linear:
    """A layer that puts out what it is given."""
    layer = torch.nn.Linear(width, width)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(width))
        layer.bias.zero_()
    return layer


@pytest.fixture
def echo_audit(little_audit):
    """An audit of a network that echoes: `make(width, task=…)`, then probes, then `rows(audit)`."""

    def make(width: int, **options):
        audit = little_audit("torch.nn:Linear", {"in_features": width, "out_features": width}, **options)
        audit.checkpoint(5, echo(width))
        return audit

    return make


def rows_of(audit, **options):
    audit.capture("outputs")
    return audit.analyse("outputs", **options)


def value(rows, metric: str, part: str = "", probe: str = "probe") -> float:
    chosen = rows[(rows.metric == metric) & (rows.part == part) & (rows.probe == probe)]
    assert list(chosen.status) == ["ok"]
    return float(chosen.value.iloc[0])


def classified(classes: int = 12, count: int = 300):
    generator = np.random.default_rng(0)
    targets = generator.integers(0, classes, count)
    scores = generator.normal(size=(count, classes)) + 1.5 * np.eye(classes)[targets]
    return scores.astype(np.float32), targets


def test_metrics_of_a_classifier_equal_scikit_learns(echo_audit):
    scores, targets = classified()
    audit = echo_audit(12)
    audit.probe("probe", inputs=scores, targets=targets)
    rows = rows_of(audit)
    exact = scores.astype(np.float64)
    chances = np.exp(exact) / np.exp(exact).sum(1, keepdims=True)
    predicted = exact.argmax(1)
    assert value(rows, "loss") == pytest.approx(log_loss(targets, chances, labels=range(12)), rel=1e-6)
    assert value(rows, "accuracy") == accuracy_score(targets, predicted)
    assert value(rows, "top5_accuracy") == top_k_accuracy_score(targets, chances, k=5, labels=range(12))
    assert value(rows, "confidence") == pytest.approx(chances.max(1).mean(), rel=1e-6)
    confusion = audit.store.array("runs/run/000000000005/outputs/probe/confusion")
    np.testing.assert_array_equal(confusion, confusion_matrix(targets, predicted, labels=range(12)))
    for number in range(12):
        inside = targets == number
        assert value(rows, "accuracy", f"class={number}") == (predicted[inside] == number).mean()
    whole = rows[(rows.metric == "accuracy") & (rows.part == "")].iloc[0]
    assert whole.low < whole.value < whole.high
    assert (whole.n, whole.unit) == (300, "fraction")


def test_ten_classes_have_no_top_five(echo_audit):
    scores, targets = classified(10)
    audit = echo_audit(10)
    audit.probe("probe", inputs=scores, targets=targets)
    assert "top5_accuracy" not in set(rows_of(audit).metric)


def test_a_network_that_answers_the_same_always_is_right_by_chance_only(echo_audit):
    audit = echo_audit(20)
    audit.probe("probe", inputs=np.zeros((200, 20), np.float32), targets=np.arange(200) % 20)
    rows = rows_of(audit)
    assert value(rows, "accuracy") == pytest.approx(1 / 20)
    assert value(rows, "top5_accuracy") == pytest.approx(5 / 20)
    assert value(rows, "loss") == pytest.approx(np.log(20))


def test_calibration_error_by_hand():
    # Two bins: 0.6 sure and half right, 0.9 sure and all right.
    confidence, right = np.array([0.6, 0.6, 0.9, 0.9]), np.array([True, False, True, True])
    assert calibration_error(confidence, right, 5) == pytest.approx(0.5 * 0.1 + 0.5 * 0.1)
    assert calibration_error(np.ones(4), np.ones(4, bool), 15) == 0.0


def test_reading_by_slices_changes_nothing(echo_audit, monkeypatch):
    scores, targets = classified()
    audit = echo_audit(12)
    audit.probe("probe", inputs=scores, targets=targets)
    whole = rows_of(audit)
    monkeypatch.setattr(outputs, "_SLICE_BYTES", 7 * 12 * 4)
    sliced = audit.analyse("outputs", bins=15, class_limit=200)
    assert len(whole) == len(sliced)
    for name in ("metric", "part", "n", "status", "unit", "convention"):
        assert list(whole[name]) == list(sliced[name])
    np.testing.assert_allclose(whole.value, sliced.value, rtol=1e-12)


def test_outputs_that_are_not_finite_fail_with_a_reason_and_are_counted(echo_audit):
    scores, targets = classified(3, 30)
    scores[4, 1], scores[9, 0] = np.nan, np.inf
    audit = echo_audit(3)
    audit.probe("probe", inputs=scores, targets=targets)
    rows = rows_of(audit)
    assert value(rows, "non_finite_count", "of=outputs") == 2
    others = rows[rows.metric != "non_finite_count"]
    assert set(others.status) == {"failed"}
    assert set(others.reason) == {"2 of 30 outputs are not finite"}
    assert {"loss", "accuracy", "confidence", "calibration_error"} <= set(others.metric)


def test_tokens_leave_padding_out_and_count_samples_for_the_interval(echo_audit):
    generator = np.random.default_rng(5)
    scores = generator.normal(size=(40, 6, 4)).astype(np.float32)
    targets = generator.integers(0, 4, (40, 6))
    mask = np.arange(6) < generator.integers(1, 7, 40)[:, None]
    scores[~mask] = np.nan  # what stands at padding must not matter
    audit = echo_audit(4, task="tokens")
    audit.probe("probe", inputs=scores, targets=targets, mask=mask)
    rows = rows_of(audit)
    real, wanted = scores[mask].astype(np.float64), targets[mask]
    chances = np.exp(real) / np.exp(real).sum(1, keepdims=True)
    assert value(rows, "non_finite_count", "of=outputs") == 0
    assert value(rows, "loss") == pytest.approx(log_loss(wanted, chances, labels=range(4)), rel=1e-6)
    assert value(rows, "accuracy") == (real.argmax(1) == wanted).mean()
    row = rows[(rows.metric == "accuracy") & (rows.part == "")].iloc[0]
    assert (row.n, row.estimator) == (mask.sum(), "95 % normal over samples")


def test_regression_gives_errors_and_variance_explained_as_scikit_learn_does(echo_audit):
    generator = np.random.default_rng(6)
    targets = generator.normal(size=(50, 3)).astype(np.float32) * [1.0, 5.0, 0.1] + 100
    guesses = (targets + generator.normal(size=(50, 3))).astype(np.float32)
    audit = echo_audit(3, task="regression", loss="mae")
    audit.probe("probe", inputs=guesses, targets=targets)
    rows = rows_of(audit)
    assert value(rows, "loss") == pytest.approx(np.abs(guesses - targets).mean(), rel=1e-6)
    expected = r2_score(targets, guesses, multioutput="variance_weighted")
    assert value(rows, "r_squared") == pytest.approx(expected, rel=1e-6)
    assert set(rows[rows.metric == "loss"].unit) == {"target unit"}
    assert "accuracy" not in set(rows.metric)


def test_targets_that_do_not_vary_have_no_variance_to_explain(echo_audit):
    audit = echo_audit(2, task="regression")
    audit.probe("probe", inputs=np.ones((8, 2), np.float32), targets=np.zeros((8, 2), np.float32))
    rows = rows_of(audit)
    assert value(rows, "loss") == 1.0
    row = rows[rows.metric == "r_squared"].iloc[0]
    assert (row.status, row.reason) == ("does_not_apply", "the targets do not vary")


def test_a_loss_of_ones_own_that_is_a_mean_is_weighted_by_rows(echo_audit, monkeypatch):
    scores, targets = classified(3, 31)
    audit = echo_audit(3, loss="loss_of_one:mean")
    (audit.folder / "loss_of_one.py").write_text("def mean(outputs, targets): return outputs[:, 0].mean()\n")
    audit.probe("probe", inputs=scores, targets=targets)
    monkeypatch.setattr(outputs, "_SLICE_BYTES", 10 * 3 * 4)  # slices of 10, 10, 10 and 1
    rows = rows_of(audit)
    assert value(rows, "loss") == pytest.approx(scores[:, 0].astype(np.float64).mean(), rel=1e-6)
    losses = rows[rows.metric == "loss"]
    assert list(losses.part) == [""]
    assert losses.low.isna().all()
    assert set(losses.convention) == {"loss_of_one:mean"}


def test_without_a_task_or_without_targets_it_says_why_and_the_other_probe_goes_on(echo_audit):
    scores, targets = classified(3, 30)
    audit = echo_audit(3)
    audit.probe("blind", inputs=scores)
    audit.probe("probe", inputs=scores, targets=targets)
    rows = rows_of(audit)
    blind = rows[rows.probe == "blind"]
    assert set(blind.status) == {"does_not_apply"}
    assert set(blind.reason) == {"probe 'blind' has no targets."}
    assert value(rows, "accuracy") > 0.5
    audit.task = "none"
    rows = audit.analyse("outputs")
    assert set(rows.status) == {"does_not_apply"}
    assert "none" in rows.reason.iloc[0]


def test_class_names_cannot_break_the_form_of_part():
    assert class_part(1, ("a", "b;c=d%")) == "class=b%3Bc%3Dd%25"
    assert class_part(7, ("a", "b")) == "class=7"
    assert class_part(0, ("same", "same")) == "class=0"


def test_the_gap_between_training_and_test_is_filed_with_the_interval_of_a_difference(echo_audit):
    """56 of 70 right in training and 48 of 80 in the test: Newcombe 1998, table II, example (a), method 10."""
    audit = echo_audit(2)
    for name, role, right, count in (
        ("train", "train", 56, 70),
        ("test", "test", 48, 80),
        ("far", "shifted", 1, 9),
    ):
        targets = np.zeros(count, dtype=np.int64)
        scores = np.where(np.arange(count)[:, None] < right, [[1.0, 0.0]], [[0.0, 1.0]]).astype(np.float32)
        audit.probe(name, role=role, inputs=scores, targets=targets)
    rows = rows_of(audit)
    gaps = rows[rows.metric == "generalization_gap"].set_index("part")
    assert list(gaps.index) == ["of=accuracy;against=train", "of=loss;against=train"]
    accuracy, loss = gaps.iloc[0], gaps.iloc[1]
    assert (accuracy.probe, accuracy.n, accuracy.unit) == ("test", 70, "fraction")
    assert (accuracy.value, accuracy.low, accuracy.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    assert loss.value == pytest.approx(value(rows, "loss", probe="test") - value(rows, "loss", probe="train"))
    assert loss.low < loss.value < loss.high
    assert loss.unit == "nat"


def test_without_a_training_probe_there_is_no_gap(echo_audit):
    scores, targets = classified()
    audit = echo_audit(12)
    audit.probe("probe", inputs=scores, targets=targets)
    assert not (rows_of(audit).metric == "generalization_gap").any()
