"""The page of a check: its outcomes over the steps of each run and over past audits."""

from __future__ import annotations

import pytest

from stratascope.storage.ledger import Row
from stratascope.tasks.checks.evaluate import ORDER
from stratascope.tasks.report.check_history import bars, past_audits


def outcome(name: str, step: int, level: str) -> Row:
    return Row("check_outcome", ORDER.index(level), part=f"check={name}", step=step, unit="level", n=2)


def condition(name: str = "dead", **counts: int) -> dict:
    return {"name": name, "metric": "dead_fraction", "bound": "<= 0.9", "severity": "warn", "suite": "soundness", "counts": counts, "by_run": {"a": counts}}  # fmt: skip


def alert(**more) -> dict:
    blank = {"alert": "night", "check": "dead", "run": "a", "change": "raised", "outcome": "warn", "delivered": True, "reason": ""}  # fmt: skip
    return blank | more


@pytest.fixture
def page(made_up, reading):
    """The page of the check `dead` after three audits of two runs."""
    for run, levels in (("a", ["pass", "warn", "pass"]), ("b", ["pass"] * 200)):
        made_up.captured(run, range(len(levels)))
        made_up.filed(run, "checks", [outcome("dead", step, level) for step, level in enumerate(levels)])
    made_up.audited("pass", conditions=[condition(**{"pass": 4})])
    made_up.audited("pass", conditions=[condition(**{"pass": 4})])
    made_up.audited("warn", conditions=[condition(warn=1, not_judged=1, **{"pass": 2})], alerts=[alert(delivered=False, reason="x answered 500")])  # fmt: skip
    text = made_up.written()["checks/dead.html"]
    assert reading.problems_of(text, made_up.report / "checks" / "dead.html") == []
    return text


def test_each_run_has_a_strip_with_words_for_those_who_do_not_see_it(page, reading):
    strips = reading.Page(page).all("svg", class_="strip")
    assert [given["aria-label"] for given, _ in strips] == [
        "a: 1 warn, 2 pass over 3 checkpoints; first warn at step 1; pass at the last one",
        "b: 200 pass over 200 checkpoints; pass at the last one",
    ]
    drawn = page.split('class="strip"')[1].split("</svg>")[0]
    assert drawn.count("<rect") == 3
    assert drawn.index('class="pass"') < drawn.index('class="warn"')


def test_past_audits_stand_newest_first_and_equal_ones_together(page):
    table = page.split('aria-label="Outcomes over past audits"')[1].split("</table>")[0]
    rows = table.split("<tbody>")[1].split("<tr>")[1:]
    assert len(rows) == 2
    assert "night: raised (a), not delivered" in rows[0]
    assert "2 audits" in rows[1]
    assert "not judged, only held against" in page
    assert "from the suite soundness" in page


def test_a_bar_of_a_long_run_shows_the_worst_of_its_checkpoints():
    levels = ["pass"] * 1000
    levels[503] = "fail"
    drawn = bars(levels)
    assert len(drawn) == 80
    assert [place for place, bar in enumerate(drawn) if bar["level"] == "fail"] == [503 * 80 // 1000]
    heights = [float(bars([level])[0]["height"]) for level in ("pass", "info", "warn", "fail")]
    assert heights == sorted(heights)
    assert len(set(heights)) == 4


def test_audits_before_a_check_was_there_and_those_that_want_something_else_stand_apart():
    records = [
        {"finished": "1", "conditions": []},
        {"finished": "2", "conditions": [condition(**{"pass": 4})]},
        {"finished": "3", "conditions": [condition(**{"pass": 4}) | {"bound": "<= 0.5"}]},
    ]
    assert [(entry["from"], entry["audits"]) for entry in past_audits(records, "dead")] == [("3", 1), ("2", 1)]
