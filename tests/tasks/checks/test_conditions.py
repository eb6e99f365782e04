"""Checks: what is judged, what is passed over, what can never be a pass."""

import math

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from stratascope.tasks.checks.changes import pettitt
from stratascope.tasks.checks.evaluate import StepOutcome, evaluate
from stratascope.tasks.checks.spec import CheckSpec, refuse_equal_names
from stratascope.tasks.checks.suites import SUITES


def ledger(*rows: dict) -> pd.DataFrame:
    blank = {
        "run": "a", "step": 0, "probe": "", "layer": "", "part": "", "status": "ok", "reason": "",
        "low": math.nan, "high": math.nan, "other_run": "", "other_layer": "",
    }  # fmt: skip
    return pd.DataFrame([blank | row for row in rows])


def rows_of(metric: str, *values: float, **more) -> list[dict]:
    """One row a step, from step 0."""
    return [{"metric": metric, "value": value, "step": step, **more} for step, value in enumerate(values)]


def test_a_bound_is_judged_on_every_matching_row_and_the_worst_wins():
    rows = ledger(
        {"metric": "accuracy", "value": 0.4, "step": 0},
        {"metric": "accuracy", "value": 0.9, "step": 5},
        {"metric": "loss", "value": 3.0},
    )
    found = evaluate(rows, [CheckSpec(name="good", metric="accuracy", min=0.5, severity="warn")])
    (outcome,) = found.raised
    assert (outcome.step, outcome.outcome, outcome.reason) == (0, "warn", "0.4 is below 0.5")
    assert found.conditions[0].counts == {"a": {"pass": 1, "warn": 1}}
    assert found.conditions[0].steps == (StepOutcome("a", 0, "warn", 1, 1), StepOutcome("a", 5, "pass", 1, 0))
    assert found.verdict == "warn"


def test_what_does_not_apply_is_passed_over_and_what_failed_is_an_error():
    rows = ledger(
        {"metric": "m", "value": math.nan, "status": "does_not_apply"},
        {"metric": "m", "value": math.nan, "status": "failed", "step": 1, "reason": "singular"},
    )
    found = evaluate(rows, [CheckSpec(name="c", metric="m", max=1)])
    assert [(item.outcome, item.reason) for item in found.raised] == [("error", "singular")]
    assert found.conditions[0].total == {"error": 1}


def test_a_check_that_matches_nothing_is_an_error_but_a_suite_is_silent():
    rows = ledger({"metric": "m", "value": 1.0})
    assert evaluate(rows, [CheckSpec(name="c", metric="absent", max=1)]).verdict == "error"
    assert evaluate(rows, [CheckSpec(name="c", metric="m", layer="absent", max=1)]).verdict == "error"
    assert evaluate(rows.iloc[:0], [CheckSpec(name="c", metric="m", max=1)]).verdict == "error"
    silent = evaluate(rows, None)
    assert silent.raised == ()
    assert {condition.suite for condition in silent.conditions} == {"soundness"}
    assert all(condition.counts == {} for condition in silent.conditions)


def test_soundness_fails_on_weights_that_are_not_finite():
    assert evaluate(ledger({"metric": "non_finite_count", "value": 3.0}), None).verdict == "fail"


def outcomes_of(change: dict, *values: float, **check) -> list[str]:
    """The outcome at each step, `-` where it was not judged."""
    found = evaluate(ledger(*rows_of("m", *values)), [CheckSpec(name="c", metric="m", change=change, **check)])
    by_step = {item.step: item.outcome for item in found.conditions[0].steps}
    return [by_step.get(step, "-") for step in range(len(values))]


def test_a_change_is_measured_against_the_previous_or_the_first_and_waits_for_a_row_of_them():
    values = (0, 0.1, 0.2, 0.3)
    assert outcomes_of({"max_absolute": 0.15}, *values) == ["-", "pass", "pass", "pass"]
    first = {"against": "first", "max_absolute": 0.15}
    assert outcomes_of(first, *values) == ["-", "pass", "fail", "fail"]
    assert outcomes_of(first, *values, after=2) == ["-", "pass", "pass", "fail"]
    assert outcomes_of(first, 0, 1, 0, 1, 1, 1, after=3) == ["-", "pass", "pass", "pass", "pass", "fail"]


def test_a_value_that_is_not_finite_is_no_reference():
    assert outcomes_of({"max_absolute": 1}, 0, math.nan, 0.5, math.inf, 0.5) == [
        "-",
        "fail",
        "pass",
        "fail",
        "pass",
    ]


def test_a_change_counts_in_its_direction_and_beyond_its_tolerances_only():
    values = (10.0, 14.0, 9.0, 9.5)
    assert outcomes_of({"max_absolute": 1, "direction": "up"}, *values) == ["-", "fail", "pass", "pass"]
    assert outcomes_of({"max_absolute": 1, "direction": "down"}, *values) == ["-", "pass", "fail", "pass"]
    assert outcomes_of({"max_absolute": 1, "tolerance": 4.5}, *values) == ["-", "pass", "fail", "pass"]
    assert outcomes_of({"max_absolute": 1, "relative_tolerance": 0.38}, *values) == ["-", "fail", "pass", "pass"]
    assert outcomes_of({"max_relative": 0.3}, *values) == ["-", "fail", "fail", "pass"]


def test_what_has_to_move_and_does_not_is_raised():
    change = {"against": "first", "direction": "down", "min_relative": 0.1}
    assert outcomes_of(change, 2.0, 1.9, 1.7, 2.5) == ["-", "fail", "pass", "fail"]


def test_a_fall_inside_the_intervals_is_no_fall():
    """The bound is that of a difference of proportions by Newcombe's method 10, in his example (a) of 56/70 and 48/80."""
    sides = [(56 / 70, 0.6917, 0.8769), (48 / 80, 0.4904, 0.7004)]
    rows = ledger(*({"metric": "accuracy", "step": step, "value": value, "low": low, "high": high} for step, (value, low, high) in enumerate(sides)))  # fmt: skip
    limit = math.hypot(0.8 - 0.6917, 0.7004 - 0.6)
    assert 0.2 - limit == pytest.approx(0.0524, abs=1e-3)
    check = {"name": "c", "metric": "accuracy"}
    change = {"direction": "down", "max_absolute": 0.0, "beyond_interval": True}
    assert evaluate(rows, [CheckSpec(change=change, **check)]).verdict == "fail"
    rows["high"] += 0.2
    assert evaluate(rows, [CheckSpec(change=change, **check)]).verdict == "pass"
    del rows["low"], rows["high"]
    assert evaluate(rows, [CheckSpec(change=change, **check)]).verdict == "fail"


def test_a_reference_is_a_step_of_the_run_or_another_run_at_its_nearest_step():
    rows = ledger(
        *rows_of("m", 1.0, 2.0, 3.0, run="a"),
        *({"metric": "m", "run": "b", "step": step, "value": value} for step, value in ((0, 1.0), (3, 9.0))),
        {"metric": "m", "run": "c", "layer": "other", "value": 1.0},
    )

    def judged(**reference) -> tuple[dict, list[tuple]]:
        change = {"against": "reference", "reference": reference, "max_absolute": 1.5}
        found = evaluate(rows, [CheckSpec(name="c", metric="m", change=change)])
        return found.conditions[0].counts, [(i.run, i.step, i.outcome, i.reason) for i in found.raised]

    counts, raised = judged(run="b")
    assert counts == {"a": {"pass": 2, "fail": 1}, "b": {"not_judged": 2}, "c": {"error": 1}}
    assert raised == [
        ("a", 2, "fail", "moved by 6 from 9 at step 3"),
        ("c", 0, "error", "there is no such finding of run 'b'"),
    ]
    counts, _ = judged(step=0)
    assert counts == {"a": {"not_judged": 1, "pass": 1, "fail": 1}, "b": {"not_judged": 1, "fail": 1}, "c": {"not_judged": 1}}  # fmt: skip
    counts, raised = judged(run="b", step=2)
    assert counts == {"a": {"error": 3}, "b": {"error": 2}, "c": {"error": 1}}
    assert raised[0][3] == "there is no such finding of run 'b' at step 2"


def test_a_history_shows_what_is_far_from_it_in_robust_deviations():
    quiet = [1.0, 1.1, 0.9, 1.0, 1.1, 0.9, 1.0, 1.05]
    change = {"against": "history", "max_robust_z": 6, "min_points": 8, "window": 8}
    assert outcomes_of(change, *quiet, 1.2, 5.0, 1.0) == ["-"] * 8 + ["pass", "fail", "pass"]
    # A history that stands still has no deviation of its own: a hundredth of its size stands in.
    assert outcomes_of(change, *[2.0] * 8, 2.11, 2.13) == ["-"] * 8 + ["pass", "fail"]
    assert outcomes_of(change, *[0.0] * 9, 1e-9) == ["-"] * 8 + ["pass", "fail"]


@pytest.mark.parametrize("slope", [0.001, 1.0, -1000.0])
def test_a_straight_trend_is_nothing_unusual_however_steep(slope):
    change = {"against": "history", "max_robust_z": 1.7}
    outcomes = outcomes_of(change, *(slope * np.arange(40)))
    assert outcomes == ["-"] * 8 + ["pass"] * 32


def test_a_history_that_is_too_short_is_an_error_and_never_a_pass():
    change = {"against": "history", "max_robust_z": 6, "min_points": 4}
    assert outcomes_of(change, 1, 1, 1) == ["-", "-", "error"]
    assert outcomes_of(change, 1, 1, 1, 1, 1) == ["-", "-", "-", "-", "pass"]


def test_a_move_is_held_against_the_largest_before_it():
    change = {"against": "history", "max_growth": 10, "min_points": 3}
    assert outcomes_of(change, 0, 1, 1.5, 2.5, 3, 14, 25) == ["-", "-", "-", "pass", "pass", "fail", "pass"]


def test_a_shift_of_level_is_found_where_it_happened_and_one_wild_value_is_none():
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.1, 40)
    change = {"against": "history", "change_point": 0.01, "window": 30, "min_points": 20}
    check = CheckSpec(name="c", metric="m", change=change)
    assert evaluate(ledger(*rows_of("m", *noise)), [check]).raised == ()
    wild = noise + 5 * (np.arange(40) == 30)
    assert evaluate(ledger(*rows_of("m", *wild)), [check]).raised == ()
    found = evaluate(ledger(*rows_of("m", *(noise + (np.arange(40) >= 28)))), [check]).raised
    assert found[0].step > 30
    assert found[-1].step == 39
    assert "after step 27" in found[-1].reason


def test_pettitt_agrees_with_an_example_worked_by_hand():
    """1 2 3 | 7 8 9: U is 9 after the third value, and p = 2 exp(-6 * 81 / (216 + 36))."""
    p, place, size = pettitt(np.array([[1.0, 2, 3, 7, 8, 9], [5.0, 5, 5, 5, 5, 5], [np.nan, 1, 2, 8, np.nan, 9]]))
    assert p[0] == pytest.approx(2 * math.exp(-6 * 81 / 252))
    assert (place[0], size[0]) == (2, 6.0)
    assert (p[1], size[1]) == (1.0, 0.0)
    assert p[2] == pytest.approx(2 * math.exp(-6 * 16 / 80))
    assert (place[2], size[2]) == (2, 7.0)


def test_a_layer_pattern_and_a_span_of_steps_narrow_a_check_but_not_what_it_is_held_against():
    rows = ledger(
        *rows_of("d", 1.0, 1.0, 4.0, layer="conv1"),
        {"metric": "d", "value": 1.0, "layer": "fc", "step": 2},
    )
    check = {"name": "c", "metric": "d", "steps": (2, None)}
    raised = evaluate(rows, [CheckSpec(layer="conv*", max=0.5, **check)]).raised
    assert [(item.layer, item.step) for item in raised] == [("conv1", 2)]
    raised = evaluate(rows, [CheckSpec(layer=r"re:\w+\d", change={"max_absolute": 1}, **check)]).raised
    assert [(item.layer, item.step) for item in raised] == [("conv1", 2)]


def test_only_the_subject_is_judged_and_the_rest_is_there_to_be_held_against():
    rows = ledger(*rows_of("m", 1.0, 5.0, 5.0))
    check = CheckSpec(name="c", metric="m", change={"max_absolute": 1})
    found = evaluate(rows, [check], np.array([False, True, False]))
    assert [(item.step, item.outcome) for item in found.raised] == [(1, "fail")]
    assert found.conditions[0].total == {"fail": 1}


def test_findings_about_other_layers_and_runs_are_series_of_their_own():
    rows = ledger(
        *rows_of("cka", 0.9, 0.9, other_layer="fc1"),
        *rows_of("cka", 0.1, 0.1, other_layer="fc2"),
        *rows_of("cka", 0.5, 0.5, other_run="b"),
    )
    assert evaluate(rows, [CheckSpec(name="c", metric="cka", change={"max_absolute": 0.1})]).raised == ()


def test_a_condition_of_ones_own_takes_the_place_of_a_suites():
    rows = ledger({"metric": "dead_fraction", "value": 0.95})
    own = CheckSpec(name="dead-units", metric="dead_fraction", max=0.99)
    assert evaluate(rows, [CheckSpec(suite="soundness")]).verdict == "warn"
    assert evaluate(rows, [CheckSpec(suite="soundness"), own]).verdict == "pass"
    twice = evaluate(rows, [CheckSpec(suite="soundness"), CheckSpec(suite="soundness")])
    assert len(twice.conditions) == len(SUITES["soundness"])
    with pytest.raises(ValueError, match="two checks are called 'dead-units'"):
        refuse_equal_names([own, own])


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"suite": "soundnes"}, "soundness"),
        ({"name": "c", "metric": "m"}, "no condition"),
        ({"metric": "m", "max": 1}, "`name` and `metric`"),
        ({"name": "../c", "metric": "m", "max": 1}, "not allowed"),
        ({"name": "c", "metric": "m", "maxx": 1}, "maxx"),
        ({"name": "c", "metric": "m", "max": 1, "layer": "re:("}, "no regular expression"),
        ({"name": "c", "metric": "m", "change": {"against": "first"}}, "a change needs one of"),
        ({"name": "c", "metric": "m", "change": {"max_robust_z": 3}}, "`against: history`"),
        ({"name": "c", "metric": "m", "change": {"against": "reference", "max_absolute": 1}}, "go together"),
        ({"name": "c", "metric": "m", "change": {"reference": {"step": 1}, "max_absolute": 1}}, "go together"),
        (
            {"name": "c", "metric": "m", "change": {"against": "reference", "reference": {}, "max_absolute": 1}},
            "needs `run`, `step`",
        ),
        (
            {"name": "c", "metric": "m", "change": {"against": "history", "change_point": 0.001}},
            "cannot give a p-value below",
        ),
        (
            {"name": "c", "metric": "m", "change": {"against": "history", "max_robust_z": 5, "window": 5}},
            "never fit",
        ),
        ({"suite": "soundness", "severity": "info"}, "takes no `severity`"),
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
    assert {(item.name, item.step, item.outcome) for item in outcomes.raised} == {
        ("finite", 1, "fail"),
        ("finite-loss", 2, "error"),
    }
