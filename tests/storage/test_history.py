"""The history of audits: short records where nothing is new, and what each one brought."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stratascope.storage.audits import newest_first, read_audits, write_audit, write_repeat
from stratascope.storage.history import read_history
from stratascope.storage.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store", create=True)


def entry(step: int, status: str, reason: str = "") -> dict[str, Any]:
    return {"run": "a", "step": step, "file": f"/runs/step-{step}.pt", "status": status, "reason": reason}


def raised(name: str, step: int = 1, outcome: str = "fail") -> dict[str, Any]:
    return {"name": name, "run": "a", "layer": "fc1", "step": step, "outcome": outcome}


def full(store: Store, plan: str, verdict: str, checkpoints: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    blank: dict[str, Any] = {
        "plan": plan, "title": "Audit", "conditions": [], "analyses": {}, "checks": [], "failures": [], "seconds": 90.5,
        "units": {"computed": 3, "cached": 0, "failed": 0},
    }  # fmt: skip
    write_audit(store, {**blank, "verdict": verdict, "checkpoints": checkpoints, **more})
    return read_audits(store, last=1)[0]


def test_an_audit_with_nothing_new_leaves_a_short_record_that_reads_as_a_whole_one(store: Store):
    many = [entry(step, "computed") for step in range(1000)]
    first = full(store, "p", "pass", many)
    write_repeat(store, first, units={"computed": 0, "cached": 5, "failed": 0}, seconds=0.2)
    again = read_audits(store, last=1)[0]
    write_repeat(store, again, units={"computed": 0, "cached": 5, "failed": 0}, seconds=0.3)
    sizes = [path.stat().st_size for path in sorted((store.path / "audits").glob("*.json"))]
    assert sizes[0] > 50_000
    assert max(sizes[1:]) < 500
    records = read_audits(store)
    assert [item["plan"] for item in records] == ["p"] * 3
    assert {item["status"] for item in records[2]["checkpoints"]} == {"cached"}
    assert len(records[2]["checkpoints"]) == 1000
    assert [item["seconds"] for item in newest_first(store)] == [0.3, 0.2, 90.5]
    assert len({item["id"] for item in records}) == 3


def test_what_is_still_being_written_is_told_without_a_record_of_everything(store: Store):
    first = full(store, "p", "pass", [entry(0, "computed"), entry(1, "deferred", "changed while it was read")])
    write_repeat(store, first, units={}, seconds=0.1, deferred=[entry(2, "deferred", "changed within 60 s")])
    write_repeat(store, first, units={}, seconds=0.1)
    last = read_audits(store)
    assert [item["step"] for item in last[1]["checkpoints"] if item["status"] == "deferred"] == [2]
    assert [item["status"] for item in last[2]["checkpoints"]] == ["cached"]
    history = read_history(store)
    assert [len(item["newly"].get("deferred", ())) for item in history] == [1, 1, 0]
    assert [item["nothing_new"] for item in history] == [False, False, True]


def test_the_history_tells_what_each_audit_brought(store: Store):
    first = full(store, "p", "pass", [entry(0, "computed")])
    write_repeat(store, first, units={}, seconds=0.1)
    bad = [entry(0, "gone"), entry(1, "computed"), entry(2, "quarantined", "it is cut off")]
    full(
        store, "q", "fail", bad, checks=[raised("dead", 1), raised("dead", 2)], failures=["capture (a step 1): no"]
    )
    full(store, "r", "warn", bad, checks=[raised("loud", 1, "warn")])
    history = read_history(store)
    assert [item["verdict"] for item in history] == ["pass", "pass", "fail", "warn"]
    assert [item["verdict_before"] for item in history] == [None, "pass", "pass", "fail"]
    assert [item["new"] for item in history] == [["a step 0"], [], ["a step 1"], ["a step 1"]]
    assert [item["nothing_new"] for item in history] == [False, True, False, False]
    third = history[2]
    assert third["newly"] == {
        "gone": [{"run": "a", "file": "step-0.pt", "reason": ""}],
        "quarantined": [{"run": "a", "file": "step-2.pt", "reason": "it is cut off"}],
    }
    assert (third["newly_raised"], third["cleared"]) == (["dead (a fc1)"], [])
    assert third["failures"] == ["capture (a step 1): no"]
    assert (history[3]["newly_raised"], history[3]["cleared"]) == (["loud (a fc1)"], ["dead (a fc1)"])
    assert history[3]["newly"] == {}
    assert history[0]["started"] < history[0]["finished"]
    assert [item["id"] for item in read_history(store, last=2)] == [item["id"] for item in history[2:]]


def test_summaries_that_are_kept_say_the_same_and_spare_the_reading_of_the_records(store: Store):
    first = full(store, "p", "pass", [entry(0, "computed")])
    for _ in range(250):
        write_repeat(store, first, units={}, seconds=0.1)
    fresh = read_history(store)
    kept = store.path / "audits" / "_summaries.jsonl"
    assert kept.exists()
    # The records themselves are not looked at again: one could be emptied without a trace.
    records = sorted((store.path / "audits").glob("*.json"))
    saved = records[100].read_bytes()
    records[100].write_bytes(b"")
    assert read_history(store) == fresh
    records[100].write_bytes(saved)
    full(store, "q", "warn", [entry(0, "cached"), entry(1, "computed")])
    longer = read_history(store)
    assert longer[:-1] == fresh
    assert longer[-1]["new"] == ["a step 1"]
    assert longer[-1]["verdict_before"] == "pass"
    # What is kept is only a copy: damaged, or of another history, it is made anew.
    lines = kept.read_text().splitlines()
    for damage in ("", "{", "\n".join([lines[0], *lines[5:]]), '{"version": 0}\n' + lines[1]):
        kept.write_text(damage)
        assert read_history(store) == longer


def test_a_damaged_record_is_passed_over(store: Store):
    first = full(store, "p", "pass", [entry(0, "computed")])
    write_repeat(store, first, units={}, seconds=0.1)
    full(store, "q", "warn", [entry(0, "cached"), entry(1, "computed")])
    base, repeat, _ = sorted((store.path / "audits").glob("*.json"))
    base.write_bytes(base.read_bytes()[:40])
    assert [item["plan"] for item in read_audits(store)] == ["q"]
    assert [item["verdict"] for item in read_history(store)] == ["warn"]
    repeat.write_text(json.dumps(["no", "record"]))
    assert [item["plan"] for item in read_audits(store)] == ["q"]
