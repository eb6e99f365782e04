"""The page of past audits: what it folds, what it shows of a thousand, and what cannot get into it."""

from __future__ import annotations

from stratascope.storage.audits import read_audits, write_repeat
from stratascope.tasks.report.past_audits import MOST_ROWS, bars, folded, told
from tests.tasks.report.conftest import Page


def entry(verdict: str = "pass", **changes):
    blank = {
        "finished": "2026-11-24T21:29:16Z", "seconds": 1.0, "verdict": verdict, "verdict_before": verdict, "new": [],
        "newly": {}, "newly_raised": [], "cleared": [], "failures": [], "nothing_new": not changes,
    }  # fmt: skip
    return blank | changes


def test_audits_with_nothing_new_are_joined_as_long_as_the_verdict_stays():
    rows = folded([entry(), entry(), entry(new=["a step 1"]), entry(), entry("warn"), entry("warn")])
    assert [(row["count"], row["new"], row["verdict"]) for row in rows] == [
        (2, 0, "pass"),
        (1, 1, "pass"),
        (1, 0, "pass"),
        (2, 0, "warn"),
    ]
    assert rows[0]["seconds"] == 2.0


def test_sentences_name_what_came_and_what_went():
    reason = "it is cut off"
    text = " ".join(
        told(
            entry(
                "fail", verdict_before="pass", new=["a step 1", "a step 2"], newly_raised=["dead (a fc1)"],
                cleared=["loud (a)"], newly={"quarantined": [{"run": "a", "file": "x.pt", "reason": reason}]},
                failures=["capture (a step 1): no memory."],
            )
        )
    )  # fmt: skip
    for part in (
        "2 checkpoints computed: a step 1; a step 2.",
        "from pass to fail",
        "Newly raised: dead (a fc1).",
        "No longer raised: loud (a).",
        "Newly quarantined: x.pt (it is cut off).",
        "Not computed: capture (a step 1): no memory.",
    ):
        assert part in text


def test_a_bar_for_many_audits_shows_the_worst_of_them():
    found = bars(["pass"] * 999 + ["fail"])
    assert len(found) == 200
    assert {bar["level"] for bar in found[:-1]} == {"pass"}
    assert found[-1]["level"] == "fail"
    assert found[-1]["height"] > found[0]["height"]
    assert found[-1]["x"] + found[-1]["width"] <= 1000


def test_a_thousand_audits_make_a_page_that_can_be_read(made_up):
    made_up.captured("a", [1])
    evil = "<script>alert(1)</script>\u202e"
    for number in range(1100):
        made_up.checkpoints = []
        made_up.file("a", number, f"runs/step-{number}.pt")
        made_up.file("a", None, f"{evil}-{number}.pt", "quarantined", evil * 20)
        made_up.audited(
            "fail" if number % 50 == 0 else "pass", checks=[made_up.raised(evil)] if number % 2 else []
        )
    for _ in range(3):
        write_repeat(made_up.store, read_audits(made_up.store, last=1)[0], units={}, seconds=0.1)
    text = made_up.rewritten()["history.html"]
    assert len(text.encode()) < 3_000_000
    assert not Page(text).complaints
    assert "<script>alert" not in text
    assert "\u202e" not in text
    assert text.count("<tr>") == MOST_ROWS + 1
    assert "1,103 audits" in text
    assert "101 earlier ones" in text
    assert 'aria-current="page">Past audits' in text
    assert 'href="history.html"' in (made_up.report / "index.html").read_text()
