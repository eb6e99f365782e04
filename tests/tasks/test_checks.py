"""Checks: what is judged, what is passed over, what can never be a pass."""

import math

import pandas as pd
import pytest
from pydantic import ValidationError

from stratascope.tasks.checks.evaluate import evaluate, verdict
from stratascope.tasks.checks.spec import ChangeSpec, CheckSpec


def ledger(*rows: dict) -> pd.DataFrame:
    blank = {"run": "a", "step": 0, "probe": "", "layer": "", "part": "", "status": "ok", "reason": ""}
    return pd.DataFrame([blank | row for row in rows])


def test_a_bound_is_judged_on_every_matching_row_and_the_worst_wins():
    rows = ledger(
        {"metric": "accuracy", "value": 0.4, "step": 0},
        {"metric": "accuracy", "value": 0.9, "step": 5},
        {"metric": "loss", "value": 3.0},
    )
    outcomes = evaluate(rows, [CheckSpec(name="good", metric="accuracy", min=0.5, severity="warn")])
    assert [(item.step, item.outcome) for item in outcomes] == [(0, "warn"), (5, "pass")]
    assert verdict(outcomes) == "warn"


def test_what_does_not_apply_is_passed_over_and_what_failed_is_an_error():
    rows = ledger(
        {"metric": "m", "value": math.nan, "status": "does_not_apply"},
        {"metric": "m", "value": math.nan, "status": "failed", "step": 1, "reason": "singular"},
    )
    outcomes = evaluate(rows, [CheckSpec(name="c", metric="m", max=1)])
    assert [(item.outcome, item.reason) for item in outcomes] == [("error", "singular")]


def test_a_check_that_matches_nothing_is_an_error_but_a_suite_is_silent():
    rows = ledger({"metric": "m", "value": 1.0})
    assert verdict(evaluate(rows, [CheckSpec(name="c", metric="absent", max=1)])) == "error"
    assert evaluate(rows, None) == []


def test_soundness_fails_on_weights_that_are_not_finite():
    rows = ledger({"metric": "non_finite_count", "value": 3.0})
    assert verdict(evaluate(rows, None)) == "fail"


def test_a_change_is_measured_against_the_previous_or_the_first_and_waits_for_a_row_of_them():
    rows = ledger(
        *({"metric": "cka", "value": value, "step": step} for step, value in enumerate([0, 0.1, 0.2, 0.3]))
    )
    previous = CheckSpec(name="p", metric="cka", change=ChangeSpec(max_absolute=0.15))
    first = CheckSpec(name="f", metric="cka", change=ChangeSpec(against="first", max_absolute=0.15), after=2)
    assert [item.outcome for item in evaluate(rows, [previous])] == ["pass"] * 4
    assert [item.outcome for item in evaluate(rows, [first])] == ["pass", "pass", "pass", "fail"]


def test_a_layer_pattern_and_a_span_of_steps_narrow_a_check():
    rows = ledger(
        {"metric": "d", "value": 1.0, "layer": "conv1", "step": 1},
        {"metric": "d", "value": 1.0, "layer": "conv1", "step": 9},
        {"metric": "d", "value": 1.0, "layer": "fc", "step": 9},
    )
    outcomes = evaluate(rows, [CheckSpec(name="c", metric="d", layer="conv*", steps=(5, None), max=0.5)])
    assert [(item.layer, item.step) for item in outcomes] == [("conv1", 9)]


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"suite": "soundnes"}, "soundness"),
        ({"name": "c", "metric": "m"}, "no condition"),
        ({"metric": "m", "max": 1}, "`name` and `metric`"),
        ({"name": "../c", "metric": "m", "max": 1}, "not allowed"),
        ({"name": "c", "metric": "m", "maxx": 1}, "maxx"),
    ],
)
def test_a_check_that_makes_no_sense_is_refused_with_its_reason(keys, says):
    with pytest.raises(ValidationError, match=says):
        CheckSpec(**keys)


def test_what_numbers_that_are_not_finite_spoil_is_told_once():
    rows = ledger(
        {"metric": "non_finite_count", "value": 3.0, "step": 1},
        {"metric": "loss", "value": math.nan, "status": "failed", "reason": "not finite", "step": 1},
        {"metric": "loss", "value": math.nan, "status": "failed", "reason": "another reason", "step": 2},
    )
    outcomes = evaluate(rows, None)
    assert {(item.name, item.step, item.outcome) for item in outcomes} == {
        ("finite", 1, "fail"),
        ("finite-loss", 2, "error"),
    }
