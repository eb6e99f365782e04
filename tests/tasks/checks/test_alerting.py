"""Which change is told to whom, from the audits' records alone."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from stratascope.tasks.checks.alerting import (
    AlertSpec,
    changes_to_tell,
    message_of,
    remember,
    updated_states,
    worth_keeping,
)


def condition(name: str = "c", fresh: dict | None = None, bound: str = "<= 1", **by_run: str) -> dict:
    """A condition as the audit's record has it, with the worst outcome over all checkpoints of each run."""
    counts = {run.strip("_"): {"pass": 3, "not_judged": 1, level: 1} for run, level in by_run.items()}
    for run, level in by_run.items():
        if level == "error":
            counts[run.strip("_")] = {"error": 1}
    return {"name": name, "metric": "m", "bound": bound, "by_run": counts, "fresh": fresh or {}}


class Nights:
    """Audits of one store, one after the other, with one alert."""

    def __init__(self, **alert) -> None:
        self.alert = AlertSpec(name="night", webhook="http://localhost/x", **alert)
        self.states: list = []
        self.memory: dict = {}
        self.now = 0.0

    def audit(self, *conditions: dict, hours: float = 24, arrives: bool = True) -> list[tuple[str, str, str]]:
        self.now += hours * 3600
        self.states = updated_states(self.states, conditions)
        changes = changes_to_tell(self.alert, self.states, self.memory, self.now)
        if arrives:
            self.memory = remember(self.memory, changes, self.now)
        self.states = worth_keeping(self.states, {"night": self.memory}, conditions)
        return [(item.run, item.kind, item.outcome) for item in changes]

    def new(self, level: str, worst: str = "", **when) -> list[tuple[str, str, str]]:
        """An audit whose new checkpoints came to `level`, over all to `worst`."""
        return self.audit(condition(a=worst or level, fresh={"a": level}), **when)


def test_a_change_is_told_once_and_its_end_too():
    nights = Nights()
    assert nights.new("pass") == []
    assert nights.new("fail") == [("a", "raised", "fail")]
    assert nights.new("fail") == []
    # The bad checkpoint is still there; what is new is sound again.
    assert nights.new("pass", worst="fail") == [("a", "recovered", "pass")]
    assert nights.new("pass", worst="fail") == []


def test_what_is_raised_at_the_first_audit_is_told():
    assert Nights().new("warn") == [("a", "raised", "warn")]


def test_an_audit_without_anything_new_changes_nothing_unless_all_is_well_again():
    nights = Nights()
    nights.new("fail")
    assert nights.audit(condition(a="fail")) == []
    assert nights.audit(condition(a="pass")) == [("a", "recovered", "pass")]
    assert nights.audit() == []


def test_something_worse_is_told_again_and_something_milder_is_not():
    nights = Nights()
    assert nights.new("warn") == [("a", "raised", "warn")]
    assert nights.new("fail") == [("a", "raised", "fail")]
    assert nights.new("warn") == []
    assert nights.new("error") == [("a", "raised", "error")]


def test_it_waits_for_so_many_in_a_row():
    nights = Nights(after=3)
    assert [nights.new(level) for level in ("fail", "fail", "pass", "fail", "fail")] == [[]] * 5
    assert nights.audit(condition(a="fail")) == [], "nothing new is no evidence"
    assert nights.new("fail") == [("a", "raised", "fail")]


def test_below_the_least_severity_nothing_is_told():
    nights = Nights(min_severity="fail")
    assert nights.new("warn") == []
    assert nights.new("fail") == [("a", "raised", "fail")]
    assert nights.new("warn") == [("a", "recovered", "warn")]


def test_within_the_cool_down_it_holds_its_tongue_and_says_it_later_if_it_still_holds():
    nights = Nights(cooldown="6h")
    assert nights.new("fail") == [("a", "raised", "fail")]
    assert nights.new("pass", worst="fail", hours=1) == []
    assert nights.new("fail", hours=1) == []
    assert nights.new("pass", worst="fail", hours=1) == []
    assert nights.new("pass", worst="fail", hours=4) == [("a", "recovered", "pass")]


def test_what_did_not_arrive_is_told_by_the_next_audit():
    nights = Nights()
    assert nights.new("fail", arrives=False) == [("a", "raised", "fail")]
    assert nights.audit(condition(a="fail")) == [("a", "raised", "fail")]
    assert nights.audit(condition(a="fail")) == []


def test_a_check_that_wants_something_else_now_is_judged_by_all_checkpoints():
    nights = Nights()
    nights.new("pass")
    assert nights.audit(condition(a="fail", bound="<= 0.5")) == [("a", "raised", "fail")]


def test_patterns_narrow_the_checks_and_runs_that_are_told():
    nights = Nights(checks="re:loss|acc.*", runs="a*")
    told = nights.audit(condition("loss", a1="fail", b="fail"), condition("dead", a1="fail"))
    assert told == [("a1", "raised", "fail")]


def test_an_old_checkpoint_that_turns_out_bad_is_told():
    """A checkpoint can be found misplaced once its neighbours are there."""
    nights = Nights()
    nights.new("pass")
    assert nights.new("pass", worst="warn") == [("a", "raised", "warn")]
    assert nights.new("pass", worst="warn") == [("a", "recovered", "pass")]
    assert nights.audit(condition(a="fail")) == [("a", "raised", "fail")]


def test_a_check_that_matches_nothing_is_told_and_recovers_when_it_does():
    nights = Nights()
    assert nights.audit(condition(_="error")) == [("", "raised", "error")]
    assert nights.audit(condition(_="error")) == []
    assert nights.audit(condition(a="pass")) == [("", "recovered", "pass")]


def test_what_an_audit_is_not_about_keeps_its_state():
    nights = Nights()
    nights.audit(condition("other", a="fail"), condition(a="fail"))
    assert nights.audit(condition(a="fail")) == []
    assert nights.audit(condition("other", a="fail")) == []


def test_only_what_was_raised_or_told_is_kept_from_audit_to_audit():
    nights = Nights()
    nights.audit(condition("quiet", a="pass"), condition("loud", a="fail"))
    assert [state["check"] for state in nights.states] == ["loud"]
    for _ in range(30):
        nights.audit(condition("loud", a="pass", fresh={"a": "pass"}), arrives=False)
    assert [state["check"] for state in nights.states] == ["loud"]
    assert nights.audit(condition("loud", a="pass")) == [("a", "recovered", "pass")]
    assert nights.states == []


def test_a_bad_checkpoint_of_long_ago_is_not_told_a_second_time():
    nights = Nights()
    nights.new("fail")
    assert nights.new("pass", worst="fail") == [("a", "recovered", "pass")]
    assert [nights.new("pass", worst="fail") for _ in range(40)] == [[]] * 40
    assert nights.audit(condition("another", a="pass")) == []
    assert nights.new("pass", worst="fail") == []


def test_the_message_names_the_worst_finding_of_each_change():
    raised = [
        {"name": "c", "run": "a", "outcome": level, "step": step, "layer": "fc1", "reason": f"at {step}"}
        for step, level in enumerate(["warn", "fail", "fail"])
    ]
    nights = Nights()
    states = updated_states([], [condition(a="fail")])
    changes = changes_to_tell(nights.alert, states, {}, 0.0)
    record = {"title": "Nightly", "store": "/s", "report": "/s/report", "verdict": "fail"}
    message = message_of("night", changes, record, raised)
    (change,) = message["changes"]
    assert (change["findings"], change["step"], change["reason"], change["before"]) == (3, 1, "at 1", "pass")
    assert message["text"].splitlines() == [
        "Nightly: verdict fail", "c (a): fail at fc1 step 1: at 1", "report: /s/report",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"name": "n"}, "needs one of `webhook`, `block` and `event: true`"),
        ({"name": "n", "webhook": "http://x", "event": True}, "needs one of"),
        ({"name": "n", "webhook": "file:///etc/passwd"}, "no http or https address"),
        ({"name": "n", "webhook": "https://"}, "no http or https address"),
        ({"name": "n", "block": "team"}, "type/name"),
        ({"name": "../n", "event": True}, "not allowed"),
        ({"name": "n", "event": True, "cooldown": "soon"}, "cooldown"),
        ({"name": "n", "event": True, "checks": "re:("}, "no regular expression"),
        ({"name": "n", "event": True, "after": 0}, "after"),
    ],
)
def test_an_alert_that_makes_no_sense_is_refused_with_its_reason(keys, says):
    with pytest.raises(ValidationError, match=says):
        AlertSpec(**keys)


def test_a_cool_down_is_told_in_words_or_seconds():
    assert [AlertSpec(name="n", event=True, cooldown=value).cooldown for value in ("90s", "30m", "6h", "2d", 5)] == [
        90, 1800, 21600, 172800, 5,
    ]  # fmt: skip
