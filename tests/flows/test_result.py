"""What an audit came to, from what its parts say."""

from __future__ import annotations

from pathlib import Path

import pytest

from stratascope.flows.config import AuditConfig
from stratascope.flows.plan import Plan, Survey
from stratascope.flows.result import AuditResult, conclude, repeat
from stratascope.storage.audits import latest_audit
from stratascope.storage.store import Store
from stratascope.tasks.checks.filing import Judgement


@pytest.fixture
def found(tmp_path: Path) -> Survey:
    """An audit that found nothing at all."""
    content = {
        "store": "store", "probe": {"dataset": "digits"},
        "runs": [{"name": "a", "checkpoints": "*.pt", "model": {"factory": "x:y"}}],
    }  # fmt: skip
    store = Store.open(tmp_path / "store", create=True)
    return Survey(AuditConfig.model_validate(content), tmp_path, store, {})


def nothing() -> Plan:
    return Plan({}, [], [], [])


def test_checks_that_could_not_be_evaluated_are_no_pass_and_the_next_audit_tries_again(found):
    result = conclude(found, nothing(), [], 0, 1.0, judged=RuntimeError("the worker was lost"))
    assert (result.verdict, result.exit_code) == ("error", 3)
    assert "the checks could not be evaluated" in result.failures[0]
    assert repeat(found, nothing(), 0.0) is None
    conclude(found, nothing(), [], 0, 1.0, judged=Judgement("pass", (), ()))
    again = repeat(found, nothing(), 0.0)
    assert (again.verdict, again.exit_code) == ("pass", 0)


def test_an_audit_with_nothing_to_do_tells_what_the_one_before_told_and_remembers_its_states(found):
    condition = {"name": "c", "metric": "m", "suite": "", "bound": "<= 1", "severity": "fail", "counts": {"fail": 1},
                 "by_run": {"a": {"fail": 1}}, "fresh": {"a": "fail"}}  # fmt: skip
    raised = {"name": "c", "metric": "m", "run": "a", "layer": "", "step": 1, "outcome": "fail", "value": float("nan"),
              "bound": "<= 1", "reason": "", "probe": "", "part": ""}  # fmt: skip
    conclude(found, nothing(), [], 0, 1.0, judged=Judgement("fail", (raised,), (condition,)))
    states = latest_audit(found.store)["states"]
    assert [(state["check"], state["levels"]) for state in states] == [("c", ["fail"])]
    again = repeat(found, nothing(), 0.0)
    assert (again.exit_code, again.conditions[0]["fresh"]) == (1, {})
    assert latest_audit(found.store)["states"] == states
    assert again.summary().title == "Stratascope audit"
    assert again.as_json()["checks"][0]["value"] is None


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        ({"verdict": "warn"}, 0), ({"verdict": "fail"}, 1), ({"verdict": "error"}, 3), ({"failures": ["x"]}, 3),
        ({"verdict": "fail", "newly_quarantined": 1}, 3), ({"verdict": "fail", "units": {"failed": 1}}, 3),
        ({"alerts": [{"delivered": False}]}, 0),
    ],
)  # fmt: skip
def test_the_exit_code_is_the_worst_of_what_happened(facts, code):
    blank = {"store": "s", "report": "r", "verdict": "pass", "checkpoints": [], "units": {}, "checks": []}
    assert AuditResult(**{**blank, **facts}).exit_code == code
