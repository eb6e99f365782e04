"""Whole columns at a time, or one row after the other: every outcome is the same."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pandas as pd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some

from stratascope.tasks.checks.evaluate import evaluate
from stratascope.tasks.checks.spec import CheckSpec
from tests.tasks.checks import plain

NUMBERS = some.sampled_from([0.0, 0.1, 0.11, 0.2, 0.5, 1.0, 1.01, 3.0, -1.0, 50.0, math.nan, math.inf, -math.inf])
WIDTHS = some.sampled_from([0.0, 0.05, 0.3, math.nan])


@some.composite
def ledgers(draw) -> list[dict]:
    """A few series of one metric, and now and then numbers that are not finite."""
    rows = []
    for place in range(draw(some.integers(1, 4))):
        key = {
            "run": draw(some.sampled_from("ab")), "layer": draw(some.sampled_from(["", "conv1", "fc"])),
            "probe": "test", "part": draw(some.sampled_from(["", "class=1"])), "other_run": "", "other_layer": f"{place % 2}",
        }  # fmt: skip
        values = draw(some.lists(NUMBERS, min_size=1, max_size=14))
        for step, value in enumerate(values):
            status = draw(some.sampled_from(["ok"] * 8 + ["failed", "does_not_apply"]))
            if (key["run"], step, key["layer"], key["part"], key["other_layer"]) in {
                (row["run"], row["step"], row["layer"], row["part"], row["other_layer"]) for row in rows
            }:
                continue
            width = draw(WIDTHS)
            rows.append(
                {**key, "metric": "loss", "step": step, "value": value if status == "ok" else math.nan, "status": status,
                 "low": value - width, "high": value + 2 * width, "reason": "", "subject": draw(some.integers(0, 5)) > 0}
            )  # fmt: skip
    if draw(some.booleans()):
        rows.append({**rows[0], "metric": "non_finite_count", "value": 1.0, "status": "ok"})
    return rows


@some.composite
def changes(draw) -> dict:
    kind = draw(some.sampled_from(["previous", "first", "reference", "history"]))
    bounds = {"max_absolute": 0.15, "max_relative": 0.4, "min_relative": 0.1}
    change: dict = {"against": kind, "direction": draw(some.sampled_from(["either", "up", "down"]))}
    if kind == "reference":
        change["reference"] = draw(
            some.sampled_from([{"run": "b"}, {"step": 1}, {"run": "a", "step": 3}, {"run": "x"}])
        )
    if kind == "history":
        bounds |= {"max_robust_z": 3.0, "max_growth": 2.0, "change_point": 0.4}
        change |= {"window": draw(some.integers(6, 9)), "min_points": draw(some.integers(3, 5))}
    for name in draw(some.sets(some.sampled_from(sorted(bounds)), min_size=1, max_size=2)):
        change[name] = bounds[name]
    change["tolerance"] = draw(some.sampled_from([0.0, 0.05, 0.6]))
    change["relative_tolerance"] = draw(some.sampled_from([0.0, 0.2]))
    change["beyond_interval"] = draw(some.booleans())
    return change


@some.composite
def checks(draw) -> CheckSpec:
    if draw(some.integers(0, 5)) == 0:
        return CheckSpec(suite=draw(some.sampled_from(["soundness", "progress"])))
    condition: dict = {"name": "mine", "metric": draw(some.sampled_from(["loss"] * 9 + ["absent"]))}
    condition["layer"] = draw(some.sampled_from(["*", "*", "conv*", "re:conv\\d|"]))
    condition["run"] = draw(some.sampled_from(["*", "*", "a"]))
    condition["steps"] = draw(some.sampled_from([None, None, (2, None), (None, 5)]))
    condition["severity"] = draw(some.sampled_from(["info", "warn", "fail"]))
    condition["after"] = draw(some.sampled_from([1, 1, 2]))
    if draw(some.booleans()):
        condition["change"] = draw(changes())
    if "change" not in condition or draw(some.integers(0, 2)) == 0:
        condition |= draw(some.sampled_from([{"min": 0.1}, {"max": 1.0}, {"equals": 1.0}]))
    return CheckSpec(**condition)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(ledgers(), checks(), some.randoms(use_true_random=False))
def test_every_outcome_is_that_of_the_plain_way(rows, check, random):
    shuffled = random.sample(rows, len(rows))
    frame = pd.DataFrame(shuffled)
    found = evaluate(frame, [check], frame["subject"].to_numpy())
    counts = Counter(
        {
            (condition.check.name, run, level): count
            for condition in found.conditions
            for run, levels in condition.counts.items()
            for level, count in levels.items()
        }
    )
    raised = {(i.name, i.run, i.probe, i.layer, i.part, i.step, i.outcome) for i in found.raised}
    expected_counts, expected_raised = plain.evaluate(rows, [check])
    assert counts == expected_counts
    assert raised == expected_raised
    assert all(item.reason for item in found.raised)
    for condition in found.conditions:
        judged = sum(count for level, count in condition.total.items() if level != "not_judged")
        matched = any(run for run in condition.counts)
        assert sum(step.judged for step in condition.steps) == (judged if matched else 0)


def test_the_order_of_the_rows_and_the_kind_of_their_text_do_not_matter():
    generator = np.random.default_rng(1)
    steps = np.tile(np.arange(30), 6)
    frame = pd.DataFrame(
        {"run": np.repeat(["a", "b"], 90), "probe": "test", "layer": np.tile(np.repeat(["x", "y", "z"], 30), 2), "part": "",
         "metric": "weight_norm", "step": steps, "value": generator.lognormal(0, 1, 180), "low": np.nan, "high": np.nan,
         "status": "ok", "reason": "", "other_run": "", "other_layer": ""}
    )  # fmt: skip
    check = CheckSpec(name="c", metric="weight_norm", change={"against": "history", "max_robust_z": 3})
    expected = evaluate(frame, [check])
    assert expected.raised
    shuffled = frame.sample(frac=1, random_state=0)
    texts = ["run", "probe", "layer", "part", "metric", "status"]
    for kind in ("category", "object", "string"):
        assert evaluate(shuffled.astype(dict.fromkeys(texts, kind)), [check]) == expected
