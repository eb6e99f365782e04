"""Outcomes as rows of the ledger: what a store's checks said, with a manifest, in the same bytes each time."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from stratascope.storage.ledger import Row
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.storage.verification import verify
from stratascope.tasks.checks.filing import belonging_to, judge_store
from stratascope.tasks.checks.spec import CheckSpec

ACCURATE = CheckSpec(name="accurate", metric="accuracy", min=0.5, severity="warn")
ABSENT = CheckSpec(name="absent", metric="nowhere", max=1)


def filed(store: Store, unit: Unit, *rows: Row) -> Unit:
    with store.stage(unit, "x", {}) as staged:
        staged.write_rows(list(rows))
        staged.commit()
    return unit


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store", create=True)


@pytest.fixture
def units(store: Store) -> set[Unit]:
    """Two runs of three checkpoints; the second run gets worse."""
    found = set()
    for run, values in (("a", (0.6, 0.7, 0.8)), ("b", (0.6, 0.4, 0.3))):
        for step, value in enumerate(values):
            rows = [Row("accuracy", value, probe=probe) for probe in ("test", "train")]
            found.add(filed(store, Unit("checkpoint", run, step, "outputs"), *rows))
    return found


def outcomes(store: Store) -> pd.DataFrame:
    rows = store.rows()
    return rows[rows["metric"] == "check_outcome"]


def bytes_of(store: Store) -> dict[str, bytes]:
    return {
        path.name + str(path.parent): path.read_bytes() for path in (store.path / "ledger").rglob("checks.parquet")
    }


def test_each_condition_and_checkpoint_is_a_row_of_the_ledger(store, units):
    judged = judge_store(str(store.path), units, [ACCURATE, ABSENT], {("b", 2)})
    assert judged.verdict == "error"
    rows = outcomes(store)
    of_b = rows[(rows["run"] == "b") & (rows["part"] == "check=accurate")]
    assert list(of_b["value"]) == [0, 2, 2]
    assert list(of_b["step"]) == [0, 1, 2]
    assert list(of_b["n"]) == [2, 2, 2]
    assert list(of_b["reason"]) == ["", "2 of 2 findings raised", "2 of 2 findings raised"]
    (nowhere,) = rows[rows["part"] == "check=absent"].itertuples()
    assert (nowhere.run, nowhere.step, nowhere.value) == ("", -1, 4)
    assert set(rows["analysis"]) == {"checks"}
    accurate, absent = judged.conditions
    assert accurate["by_run"] == {"a": {"pass": 6}, "b": {"pass": 2, "warn": 4}}
    assert accurate["fresh"] == {"b": "warn"}
    assert absent["by_run"] == {"": {"error": 1}}
    assert verify(store) == []
    assert not (store.path / "archive.zarr" / "series").exists()


def test_judging_again_writes_the_same_bytes_and_only_what_differs(store, units):
    judge_store(str(store.path), units, [ACCURATE, ABSENT])
    before = bytes_of(store)
    times = {path: path.stat().st_mtime_ns for path in (store.path / "ledger").rglob("checks.parquet")}
    judge_store(str(store.path), units, [ACCURATE, ABSENT])
    assert bytes_of(store) == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    judge_store(str(store.path), units, [])
    assert outcomes(store).empty
    judge_store(str(store.path), units, [ACCURATE, ABSENT])
    assert bytes_of(store) == before


def test_a_check_can_look_at_a_run_that_this_audit_is_not_about(store, units):
    change = {"against": "reference", "reference": {"run": "a"}, "max_absolute": 0.2}
    check = CheckSpec(name="like-a", metric="accuracy", change=change)
    only_b = {unit for unit in units if unit.run == "b"}
    judged = judge_store(str(store.path), only_b, [check])
    assert judged.conditions[0]["by_run"] == {"b": {"pass": 2, "fail": 4}}
    assert {(item["run"], item["step"]) for item in judged.raised} == {("b", 1), ("b", 2)}


def test_the_rows_of_a_unit_are_its_own_whatever_runs_and_steps_they_name(store):
    series = filed(store, Unit("series", "a", -1, "triage"), Row("m", 1.0, step=5))
    cohort = filed(
        store, Unit("cohort", "", -1, "copies"), Row("m", 2.0, step=5, run="a"), Row("m", 2.0, step=6, run="b")
    )
    single = filed(store, Unit("checkpoint", "a", 5, "outputs"), Row("m", 3.0))
    other = filed(store, Unit("checkpoint", "a", 6, "outputs"), Row("m", 4.0))
    rows = store.rows()
    for units, values in (({series}, {1.0}), ({cohort}, {2.0}), ({single}, {3.0}), ({other, series}, {1.0, 4.0}), ((), set())):  # fmt: skip
        assert set(rows[belonging_to(rows, units)]["value"]) == values
    assert belonging_to(rows, {Unit("checkpoint", "z", 5, "outputs")}).sum() == 0


def test_outcomes_are_no_findings_that_a_check_could_be_about(store, units):
    judge_store(str(store.path), units, [ACCURATE])
    itself = CheckSpec(name="itself", metric="check_outcome", max=1)
    assert judge_store(str(store.path), units, [itself]).verdict == "error"
