"""JUnit XML and Markdown: well formed whatever the names say, and counts that add up."""

from __future__ import annotations

import math
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from stratascope.tasks.checks.ci_output import AuditSummary, junit, markdown

HOSTILE = "]]><script>alert(1)</script> & \x00\x07\ud800\uffff\u202e |`*_[x](javascript:1)\nline two"


def condition(name: str, suite: str = "", **by_run: dict[str, int]) -> dict:
    counts: dict[str, int] = {}
    for levels in by_run.values():
        for level, count in levels.items():
            counts[level] = counts.get(level, 0) + count
    return {"name": name, "suite": suite, "metric": "loss", "bound": "<= 1", "severity": "fail", "counts": counts, "by_run": by_run}  # fmt: skip


def raised(name: str, run: str, outcome: str, **more) -> dict:
    blank = {"metric": "loss", "layer": "", "probe": "test", "part": "", "step": 3, "value": 2.0, "bound": "<= 1", "reason": "2 is above 1"}  # fmt: skip
    return {**blank, "name": name, "run": run, "outcome": outcome, **more}


AUDIT = AuditSummary(
    title="Nightly", verdict="error", report="/store/report/index.html",
    conditions=[
        condition("finite", "soundness", a={"pass": 4}, b={"pass": 1, "fail": 2}),
        condition("idle", "soundness"),
        condition("drift", a={"not_judged": 3}, b={"error": 1}),
        condition("quiet", a={"warn": 1, "pass": 3}),
    ],
    raised=[raised("finite", "b", "fail"), raised("finite", "b", "fail", step=4), raised("drift", "b", "error", value=math.nan), raised("quiet", "a", "warn")],
    checkpoints=[
        {"run": "a", "step": 3, "file": "a-3.pt", "status": "computed", "reason": ""},
        {"run": "b", "step": None, "file": "b.pt", "status": "quarantined", "reason": "no checkpoint"},
        {"run": "b", "step": 4, "file": "b-4.pt", "status": "gone", "reason": "the file is gone"},
    ],
    failures=["capture (a step 9): out of memory"], newly_quarantined=True, seconds=12.5,
)  # fmt: skip


def cases(root: ElementTree.Element) -> dict[tuple[str, str], ElementTree.Element]:
    return {(case.get("classname"), case.get("name")): case for case in root.iter("testcase")}


def check_counts(root: ElementTree.Element) -> None:
    """What Jenkins and GitLab read: `testsuites` over `testsuite` over `testcase`, with sums that are those of the cases."""
    assert root.tag == "testsuites"
    for element in [root, *root]:
        inside = list(element.iter("testcase"))
        assert int(element.get("tests")) == len(inside)
        for attribute, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert int(element.get(attribute)) == sum(case.find(tag) is not None for case in inside), attribute
        float(element.get("time"))
    for case in root.iter("testcase"):
        assert case.get("name")
        assert case.get("classname")
        assert len(case) <= 1
        for outcome in case:
            assert outcome.tag in ("failure", "error", "skipped", "system-out")


def test_each_check_and_run_is_a_case_and_never_passes_without_a_judgement():
    root = ElementTree.fromstring(junit(AUDIT).encode())
    check_counts(root)
    found = cases(root)
    assert [suite.get("name") for suite in root] == ["soundness", "checks", "checkpoints", "work"]
    assert len(found["stratascope.a", "finite"]) == 0
    failure = found["stratascope.b", "finite"].find("failure")
    assert failure.get("message") == "2 findings, the first: fail: step 3 (test): 2 is above 1"
    assert failure.text.splitlines()[0] == "wanted: loss <= 1"
    assert found["stratascope.b", "drift"].find("error") is not None
    assert found["stratascope.a", "drift"].find("skipped") is not None
    assert found["stratascope", "idle"].find("skipped") is not None
    assert "2 is above 1" in found["stratascope.a", "quiet"].find("system-out").text
    assert found["stratascope.b", "b.pt"].find("error").get("message") == "quarantined: no checkpoint"
    assert found["stratascope.b", "b-4.pt"].find("skipped") is not None
    assert found["stratascope", "unit 1"].find("error").get("message").endswith("out of memory")


def test_a_quarantine_that_is_known_fails_no_job():
    root = ElementTree.fromstring(junit(replace(AUDIT, newly_quarantined=False)).encode())
    assert cases(root)["stratascope.b", "b.pt"].find("skipped") is not None


def hostile(text: str) -> AuditSummary:
    return AuditSummary(
        title=text, verdict="fail", report=text, conditions=[condition("c", a={"fail": 1})],
        raised=[raised("c", "a", "fail", layer=text, part=text, reason=text)],
        checkpoints=[{"run": "a", "step": 1, "file": text, "status": "quarantined", "reason": text}], failures=[text],
    )  # fmt: skip


def test_hostile_names_stay_text():
    text = junit(hostile(HOSTILE))
    assert "<script" not in text
    root = ElementTree.fromstring(text.encode())
    check_counts(root)
    assert "<script>alert(1)</script>" in root.get("name")
    page = markdown(hostile(HOSTILE))
    assert "<script" not in page
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len(table) == 3
    # Bars that are no escape separate seven cells.
    assert table[2].replace("\\\\", "").replace("\\|", "").count("|") == 8
    assert "[x](" not in page.replace("\\[x\\](", "")


@settings(max_examples=60, deadline=None)
@given(some.text(some.characters(codec=None), max_size=30))
def test_whatever_a_name_is_the_xml_can_be_read(text):
    check_counts(ElementTree.fromstring(junit(hostile(text or "x")).encode()))


def test_markdown_tells_the_verdict_and_the_worst_first():
    page = markdown(AUDIT)
    assert "**Verdict: ? error**. Checkpoints: 1 computed, 1 gone, 1 quarantined." in page
    rows = [line for line in page.splitlines() if line.startswith("| ") and "outcome" not in line]
    assert [row.split(" | ")[0] for row in rows] == ["| ? error", "| ✕ fail", "| ✕ fail", "| ⚠ warn"]
    assert "Conditions without a finding to judge: idle." in page
    assert "- b.pt: no checkpoint" in page
    assert "out of memory" in page
    clean = replace(AUDIT, verdict="pass", raised=[], failures=[], checkpoints=[])
    assert "No check was raised." in markdown(clean)


@pytest.mark.parametrize("count", [51, 400])
def test_many_findings_are_cut_and_counted(count):
    many = replace(AUDIT, raised=[raised("finite", "b", "fail", step=step) for step in range(count)])
    assert f"{count - 50} more are in the report." in markdown(many)
    failure = cases(ElementTree.fromstring(junit(many).encode()))["stratascope.b", "finite"].find("failure")
    assert failure.text.endswith(f"… and {count - 20} more")
