"""What stays and what goes behind a URL: pruning, checkpoints that are gone, notes of damage, the history, judging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stratascope import open_store
from stratascope.storage.audits import latest_audit
from stratascope.storage.damage import damage_note
from stratascope.storage.history import read_history
from stratascope.storage.ledger_query import select
from stratascope.storage.objects import ObjectFolder, open_folder
from stratascope.storage.pruning import finish_pruning, parse_rule, prune
from stratascope.storage.store import Store
from stratascope.storage.units import CHECKS
from stratascope.storage.verification import verify
from tests.conftest import Workplace, stratascope
from tests.flows.without_workers import audit_here

EMBEDDING = "series/small/embedding/probe/fc2:input/pca_2d"
MODEL = {"factory": "stratascope.tasks.models:mlp", "args": {"inputs": 64, "widths": [12]}}


@pytest.fixture
def place(bucket, tmp_path: Path) -> Workplace:
    """Three checkpoints and their store, in one bucket."""
    place = Workplace(tmp_path)
    for step in range(3):
        bucket.upload(place.checkpoint(step), f"runs/step-{step}.safetensors")
    run = {"name": "small", "checkpoints": f"{bucket.url}/runs/step-*.safetensors", "model": MODEL}
    analyses: dict[str, Any] = {"outputs": {}, "embedding": {"methods": ["pca"]}}
    place.configure(store=f"{bucket.url}/store", runs=[run], analyses=analyses)
    return place


def status_of(result) -> dict[int, str]:
    return {item["step"]: item["status"] for item in result.checkpoints}


def archive_of(url: str) -> dict[str, bytes]:
    objects = open_folder(url)
    return {name: objects.read(name)[0] for name in objects.list("archive.zarr")}


def test_a_deleted_checkpoint_stays_and_pruned_arrays_come_back_to_the_byte(place, bucket):
    url = f"{bucket.url}/store"
    audit_here(place.config)
    store = Store.open(url)
    whole = archive_of(url)
    runs = {unit.run for unit in store.units() if unit.analysis == CHECKS}
    assert runs == {"small"}, "the outcomes of the checks are filed"

    freed = stratascope("prune", url, "--keep", "last:1", "--json", **bucket.environment).json
    assert freed["steps"] == {"small": [0, 1]}
    lost = whole.keys() - archive_of(url).keys()
    assert len(lost) == freed["files"]
    assert sum(len(whole[name]) for name in lost) == freed["bytes"]
    assert verify(store) == []
    result, outcomes, _ = audit_here(place.config)
    assert {item.status for item in outcomes} == {"cached"}
    assert ["pruned" in item["reason"] for item in result.checkpoints] == [True, True, False]
    with pytest.warns(UserWarning, match="steps 0, 1 were pruned"):
        assert list(open_store(url).layer("small", "fc1")["step"].values) == [2]

    bucket.objects.delete(["runs/step-0.safetensors"])
    result, outcomes, _ = audit_here(place.config, "pruned=recompute")
    assert status_of(result) == {0: "gone", 1: "computed", 2: "cached"}
    assert not [item.reason for item in outcomes if item.status == "failed"]
    back = archive_of(url)
    once = [name for name in lost if "/small/000000000001/" in name]
    assert once
    assert {name: back.get(name) for name in once} == {name: whole[name] for name in once}
    rows = Store.open(url).rows()
    assert list(rows[rows["metric"] == "gone"]["part"]) == ["file=step-0.safetensors"]
    assert set(rows[rows["metric"] == "accuracy"]["step"]) == {0, 1, 2}
    assert {item.status for item in audit_here(place.config, "pruned=recompute")[1]} == {"cached"}
    assert verify(store) == []


def test_a_series_reads_what_is_stored_of_a_deleted_checkpoint(place, bucket):
    audit_here(place.config)
    bucket.objects.delete(["runs/step-1.safetensors"])
    bucket.upload(place.checkpoint(3), "runs/step-3.safetensors")
    result, outcomes, plan = audit_here(place.config)
    assert status_of(result) == {0: "cached", 1: "gone", 2: "cached", 3: "computed"}
    assert not [item.reason for item in outcomes if item.status == "failed"]
    assert [item.file for item in plan.gone] == [f"{bucket.url}/runs/step-1.safetensors"]
    assert Store.open(f"{bucket.url}/store").array(EMBEDDING).shape[0] == 4


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("moment", [0, 1, 2, 4])
def test_wherever_a_pruning_is_killed_no_unit_is_lost_and_the_next_one_ends_it(place, bucket, moment, monkeypatch):
    url = f"{bucket.url}/store"
    audit_here(place.config)
    store = Store.open(url)
    rows, remaining = store.rows(), moment

    def deadly(action):
        def act(self, names, *arguments, **options):
            nonlocal remaining
            names = names if isinstance(names, str) else list(names)
            if not str(names[0] if isinstance(names, list) else names).startswith("claims/"):
                if remaining == 0:
                    raise Killed
                remaining -= 1
            return action(self, names, *arguments, **options)

        return act

    with monkeypatch.context() as patched:
        patched.setattr(ObjectFolder, "write", deadly(ObjectFolder.write))
        patched.setattr(ObjectFolder, "delete", deadly(ObjectFolder.delete))
        with pytest.raises(Killed):
            prune(store, [parse_rule("last:1")])
    assert store.rows().equals(rows)
    assert verify(store) == []
    for unit, manifest in store.manifests().items():
        assert store.is_current(unit, manifest.identity)
    finish_pruning(store)
    assert finish_pruning(store) == 0
    named = {name for item in store.manifests().values() for name in item.files}
    groups = {name for name in archive_of(url) if name.endswith("/zarr.json")}
    assert archive_of(url).keys() - groups <= named


def test_a_unit_that_was_committed_meanwhile_is_left_whole_by_a_pruning(place, bucket, monkeypatch):
    audit_here(place.config)
    store = Store.open(f"{bucket.url}/store")
    unit = next(unit for unit in store.units() if unit.analysis == "capture")
    old = store.manifest(unit)
    assert old is not None
    store.write_manifest(new := type(old)(unit, "another", {}, old.files))
    assert not store.replace_manifest(old, old)
    assert store.manifest(unit) == new


def test_damage_that_any_machine_has_noted_is_mended_by_the_next_audit(place, bucket, tmp_path, monkeypatch):
    url = f"{bucket.url}/store"
    audit_here(place.config)
    store = Store.open(url)
    before = archive_of(url)
    name = next(name for name in before if "/activations/" in name and "/c." in name)
    store.objects.write(name, bytes(len(before[name])))
    (damage,) = verify(store)
    assert damage.path == name
    (unit,) = (unit for unit, manifest in store.manifests().items() if name in manifest.files)
    assert damage_note(unit) in store.objects.list("manifests")
    store.objects.write(name, before[name])  # whole again, yet the note holds until somebody has looked
    monkeypatch.setenv("STRATASCOPE_CACHE", str(tmp_path / "other"))
    _, outcomes, _ = audit_here(place.config)
    assert [item.unit for item in outcomes if item.status == "computed"] == [unit]
    assert damage_note(unit) not in store.objects.list("manifests")
    assert archive_of(url) == before


def test_history_and_questions_to_the_ledger_are_those_of_a_folder(place, bucket, tmp_path, monkeypatch):
    local = Workplace(place.folder)
    url = f"{bucket.url}/store"
    for _ in range(3):
        audit_here(place.config)
    far = Store.open(url)
    run = {"name": "small", "checkpoints": "runs/step-*.safetensors", "model": MODEL}
    local.configure(runs=[run], analyses={"outputs": {}, "embedding": {"methods": ["pca"]}})
    for _ in range(3):
        audit_here(local.config)
    near = Store.open(local.store)
    told = [[(item["verdict"], item["new"], item["nothing_new"]) for item in read_history(store)] for store in (far, near)]  # fmt: skip
    assert told[0] == told[1]
    assert len(told[0]) == 3
    assert latest_audit(far)["store"] == url
    wanted = {"metric": "acc*"}
    monkeypatch.setenv("STRATASCOPE_CACHE", str(tmp_path / "other"))
    assert select(Store.open(url), wanted, step=2).table.equals(select(near, wanted, step=2).table)
    metrics = {"accuracy"}
    rows = Store.open(url).rows(metrics=metrics)
    assert rows.equals(near.rows(metrics=metrics))
    assert set(rows["step"]) == {0, 1, 2}
    assert set(rows["metric"]) == metrics
