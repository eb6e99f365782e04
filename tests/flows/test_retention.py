"""What becomes of results whose checkpoints are deleted, or whose arrays were pruned."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from stratascope import open_store
from stratascope.storage.store import Store
from stratascope.storage.verification import verify
from tests.conftest import Workplace, stratascope
from tests.flows.without_workers import audit_here

EMBEDDING = "series/small/embedding/probe/fc2:input/pca_2d"


@pytest.fixture
def place(tmp_path: Path) -> Workplace:
    place = Workplace(tmp_path)
    place.configure(analyses={"outputs": {}, "embedding": {"methods": ["pca"]}})
    for step in range(4):
        place.checkpoint(step)
    return place


def rows_of(place: Workplace, metric: str) -> pd.DataFrame:
    rows = Store.open(place.store).rows()
    return rows[rows["metric"] == metric].sort_values("step")


def status_of(result) -> dict[int, str]:
    return {item["step"]: item["status"] for item in result.checkpoints}


def test_a_deleted_checkpoint_stays_in_ledger_and_series_and_is_marked(place: Workplace):
    audit_here(place.config)
    before = Store.open(place.store).array(EMBEDDING)
    files = [place.folder / "runs" / f"step-{step}.safetensors" for step in range(4)]
    files[1].unlink()
    result, outcomes, _ = audit_here(place.config)
    assert status_of(result) == {0: "cached", 1: "gone", 2: "cached", 3: "cached"}
    # Only what tells which files are gone was computed: the series still holds the step.
    assert [item.unit.analysis for item in outcomes if item.status == "computed"] == ["quarantine"]
    assert (Store.open(place.store).array(EMBEDDING) == before).all()
    gone = rows_of(place, "gone")
    assert list(gone["step"]) == [1]
    assert list(gone["part"]) == ["file=step-1.safetensors"]
    assert set(rows_of(place, "accuracy")["step"]) == {0, 1, 2, 3}
    # A series that is computed anew reads what is stored of the deleted checkpoint.
    place.checkpoint(4)
    result, outcomes, _ = audit_here(place.config)
    assert status_of(result) == {0: "cached", 1: "gone", 2: "cached", 3: "cached", 4: "computed"}
    assert Store.open(place.store).array(EMBEDDING).shape[0] == 5
    assert not [item for item in outcomes if item.status == "failed"]
    # Captured in another way, it cannot stand beside the others.
    result, outcomes, _ = audit_here(place.config, "capture={keep: [pooled, max]}")
    assert "another configuration" in next(
        item["reason"] for item in result.checkpoints if item["status"] == "gone"
    )
    assert Store.open(place.store).array(EMBEDDING).shape[0] == 4
    # Back in its place, it is a checkpoint like any other.
    place.checkpoint(1)
    result, _, _ = audit_here(place.config, "capture={keep: [pooled, max]}")
    assert status_of(result)[1] == "computed"
    assert rows_of(place, "gone").empty


def test_pruned_arrays_are_missed_by_no_audit_and_come_back_when_asked_for(place: Workplace):
    audit_here(place.config)
    store = Store.open(place.store)
    kept = {step: store.array(f"runs/small/{step:012d}/activations/probe/fc1/pooled") for step in range(4)}
    embedded = store.array(EMBEDDING)
    told = stratascope("prune", place.store, "--keep", "last:2", "--dry-run")
    assert (told.code, "2 checkpoint(s), 2 kept whole" in told.out) == (0, True), told.err
    assert "would be freed" in told.out
    freed = stratascope("prune", place.store, "--keep", "last:2", "--json").json
    assert freed["steps"] == {"small": [0, 1]}
    assert freed["bytes"] > 0
    assert stratascope("prune", place.store, "--keep", "latest:2").code == 2
    result, outcomes, _ = audit_here(place.config)
    assert {item.status for item in outcomes} == {"cached"}
    assert (store.array(EMBEDDING) == embedded).all()
    assert [("pruned" in item["reason"]) for item in result.checkpoints] == [True, True, False, False]
    with pytest.warns(UserWarning, match=r"steps 0, 1 were pruned"):
        layer = open_store(place.store).layer("small", "fc1", "pooled", "probe")
    assert list(layer["step"].values) == [2, 3]
    assert layer.attrs["pruned_steps"] == [0, 1]

    # A new checkpoint: the series is computed over what is left, and says what is not.
    place.checkpoint(4)
    (place.folder / "runs" / "step-0.safetensors").unlink()
    result, outcomes, _ = audit_here(place.config)
    assert not result.failures
    assert store.array(EMBEDDING).shape[0] == 3
    told = store.rows()
    told = told[(told["analysis"] == "embedding") & (told["status"] == "does_not_apply")]
    assert list(told["step"]) == [0, 1]
    assert told["reason"].str.contains("steps 0, 1 were pruned.*pruned=recompute").all()
    assert {item.status for item in audit_here(place.config)[1]} == {"cached"}
    assert set(rows_of(place, "accuracy")["step"]) == {0, 1, 2, 3, 4}

    # So does an analysis of a checkpoint that comes later.
    _, outcomes, _ = audit_here(place.config, "analyses.statistics={}")
    assert not [item for item in outcomes if item.status == "failed"]
    late = rows_of(place, "activation_mean")
    assert list(late[late["status"] == "does_not_apply"]["step"]) == [1]

    # What has its checkpoint comes back to the byte; the other one stays away.
    result, outcomes, _ = audit_here(place.config, "analyses.statistics={}", "pruned=recompute")
    again = {(item.unit.analysis, item.unit.step) for item in outcomes if item.status == "computed"}
    assert {("capture", 1), ("outputs", 1), ("statistics", 1), ("embedding", -1)} <= again
    assert not {step for _, step in again} & {0, 2, 3, 4}
    assert (store.array(f"runs/small/{1:012d}/activations/probe/fc1/pooled") == kept[1]).all()
    assert store.array(EMBEDDING).shape[0] == 4
    late = rows_of(place, "activation_mean")
    assert set(late[late["status"] == "ok"]["step"]) == {1, 2, 3, 4}
    assert {item.status for item in audit_here(place.config, "analyses.statistics={}", "pruned=recompute")[1]} == {
        "cached"
    }
    assert verify(store) == []
