"""A store behind a URL: the same bytes as a folder's, whole units only, damage found and repaired."""

from __future__ import annotations

import json
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from stratascope import open_store
from stratascope.errors import DamagedStoreError, NewerStoreError, StoreError, UnreachableError
from stratascope.storage import claims
from stratascope.storage.archive import join_path
from stratascope.storage.cache import held_copy, trim
from stratascope.storage.digests import sealed, unsealed
from stratascope.storage.ledger import Row
from stratascope.storage.objects import open_folder
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.storage.verification import verify
from stratascope.storage.zarr_stores import zarr_store

STEPS = (7, 12)


class Named:
    dims = ("name",)
    values = np.array(["a", "ü"])
    attributes: dict[str, str] = {}


def commit(
    store: Store, value: float = 1.0, step: int = 7, layers: tuple[str, ...] = ("conv", "a/b"), rows: int = 10
):
    unit = Unit("checkpoint", "run", step, "capture")
    with store.claim(unit), store.stage(unit, f"identity {value}", {"value": value}) as staged:
        for width, layer in enumerate(layers, 3):
            path = join_path("activations", "probe", layer, "pooled")
            writer = staged.create_array(
                path, dims=("sample", "channel"), shape=(rows, width), dtype="float32", codec="none"
            )
            writer.append(np.full((rows, width), value + step, np.float32))
        staged.write_array("statistics/probe/names", Named)
        staged.write_rows([Row("m", value), Row("a", 2 * value)])
        staged.commit()
    return unit


@pytest.fixture
def store(bucket) -> Store:
    return Store.open(f"{bucket.url}/some/where", create=True)


def elsewhere(store: Store, monkeypatch, tmp_path: Path, name: str = "other") -> Store:
    """The same store as another machine sees it, with nothing in its cache."""
    monkeypatch.setenv("STRATASCOPE_CACHE", str(tmp_path / name))
    return Store.open(store.location)


def test_archive_and_ledger_have_the_bytes_that_a_folder_has(store, bucket, tmp_path):
    local = Store.open(tmp_path / "local", create=True)
    for step in STEPS:
        commit(local, 1.0, step)
        commit(store, 1.0, step)
    expected = {
        path.relative_to(local.path).as_posix(): path.read_bytes()
        for part in ("archive.zarr", "ledger")
        for path in (local.path / part).rglob("*")
        if path.is_file()
    }
    contents = open_folder(store.location)
    assert {
        name: contents.read(name)[0] for part in ("archive.zarr", "ledger") for name in contents.list(part)
    } == expected
    assert verify(store) == []
    assert store.rows().equals(local.rows())
    assert list(store.manifests()) == list(local.manifests())
    for prefix in ("runs/run/000000000007/activations", "runs/run/000000000007", ""):
        assert store.list_arrays(prefix) == local.list_arrays(prefix)


def test_plain_tools_read_it_without_a_warning(store):
    commit(store)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = xr.open_datatree(zarr_store(f"{store.location}/archive.zarr"), engine="zarr", consolidated=False)
    array = tree["runs/run/000000000007/activations/probe/conv/pooled"]
    np.testing.assert_array_equal(array.values, np.full((10, 3), 8, np.float32))


def test_another_machine_reads_everything_and_only_what_it_needs(store, monkeypatch, tmp_path):
    for step in STEPS:
        commit(store, 1.0, step, rows=400_000)
    other = elsewhere(store, monkeypatch, tmp_path)
    place = "runs/run/000000000007/activations/probe/conv/pooled"
    gets = other.objects.requests["get"]
    np.testing.assert_array_equal(other.read_slice(place, 10, 13), np.full((3, 3), 8, np.float32))
    assert other.objects.requests["get"] - gets == 3, "manifest, metadata and the one chunk"
    assert other.array_info(place)[:2] == (("sample", "channel"), (400_000, 3))
    assert [str(name) for name in other.array("runs/run/000000000007/statistics/probe/names")] == ["a", "ü"]
    assert other.has_array(place)
    assert not other.has_array("runs/run/000000000007/activations/probe/none")
    assert not other.has_array("runs/run/000000000007/activations/probe")
    with pytest.raises(StoreError, match="there is no array s3://"):
        other.array("runs/run/000000000099/activations/probe/conv/pooled")
    reader = open_store(store.location)
    array = reader.layer("run", "conv")
    assert array.dims == ("step", "sample", "channel")
    assert array.chunks is not None, "lazy"
    np.testing.assert_array_equal(array[:, 5, 0], [8, 13])
    assert list(reader.ledger()["metric"]) == ["a", "a", "m", "m"]


def test_a_reader_never_sees_a_mix_of_old_and_new(store, monkeypatch, tmp_path):
    commit(store, 1.0)
    other = elsewhere(store, monkeypatch, tmp_path)
    old, new = (f"runs/run/000000000007/activations/probe/{name}/pooled" for name in ("conv", "x"))
    assert other.array(old)[0, 0] == 8
    commit(store, 5.0, layers=("conv", "x"))
    # What is held of the old unit is read to its end; what is not held any more is read from the new one.
    assert other.array(old)[0, 0] in (8, 12)
    assert other.rows([Unit("checkpoint", "run", 7, "capture")])["value"].tolist() == [10, 5]
    fresh = elsewhere(store, monkeypatch, tmp_path, "third")
    assert fresh.array(old)[0, 0] == fresh.array(new)[0, 0] == 12
    names = open_folder(store.location).list("archive.zarr")
    assert not [name for name in names if "a%2Fb" in name], "nothing of the old unit is left"


def test_a_reader_turns_to_the_new_unit_where_the_old_is_gone(store, monkeypatch, tmp_path):
    commit(store, 1.0, rows=800_000)
    other = elsewhere(store, monkeypatch, tmp_path)
    place = "runs/run/000000000007/activations/probe/conv/pooled"
    assert other.array_info(place)[1] == (800_000, 3)
    commit(store, 5.0, rows=800_000)
    assert (other.array(place) == 12).all()


def test_an_interrupted_commit_does_not_exist_and_is_swept(store, monkeypatch):
    unit = commit(store, 1.0)
    commit(store, 1.0, 12)
    written = type(store.objects).write

    def fail(self, name, data, **how):
        if name.startswith("manifests/"):
            raise KeyboardInterrupt
        return written(self, name, data, **how)

    with monkeypatch.context() as patch:
        patch.setattr(type(store.objects), "write", fail)
        with pytest.raises(KeyboardInterrupt):
            commit(store, 2.0)
    assert store.manifest(unit) is None
    assert store.rows([unit]).empty
    assert store.objects.list("archive.zarr/runs/run/000000000007/activations")
    assert len(store.sweep()) == 2
    assert not store.objects.list("archive.zarr/runs/run/000000000007/activations")
    assert store.is_current(Unit("checkpoint", "run", 12, "capture"), "identity 1.0")
    commit(store, 2.0)
    assert verify(store) == []


@pytest.mark.parametrize("kind", ["flipped", "shorter", "gone"])
def test_damage_is_found_by_verify_by_reading_and_by_the_next_audit(store, monkeypatch, tmp_path, kind):
    unit = commit(store)
    name = "archive.zarr/runs/run/000000000007/activations/probe/conv/pooled/c.0.0"
    data = bytearray(store.objects.read(name)[0])
    data[len(data) // 2] ^= 1
    if kind == "gone":
        store.objects.delete([name])
    else:
        store.objects.write(name, bytes(data) if kind == "flipped" else bytes(data[:-1]))
    (damage,) = verify(store)
    assert damage.path == name
    other = elsewhere(store, monkeypatch, tmp_path)
    with pytest.raises(DamagedStoreError, match="run `stratascope verify`"):
        other.array("runs/run/000000000007/activations/probe/conv/pooled")
    assert not store.is_current(unit, "identity 1.0")
    with store.snapshot():
        assert not store.is_current(unit, "identity 1.0")
    commit(store)
    assert verify(store) == []
    assert store.is_current(unit, "identity 1.0")


def test_a_damaged_copy_on_this_machine_is_fetched_again(store):
    commit(store, 1.0)
    with store.snapshot():
        pass
    for path in (store.path / "small").iterdir():
        data = bytearray(path.read_bytes())
        data[-10] ^= 1
        path.write_bytes(bytes(data))
    assert len(store.manifests()) == 1


def test_two_machines_that_write_one_unit_end_with_one_whole_unit(store, monkeypatch, tmp_path):
    """Claims are switched off: what is left must do."""
    stores = [elsewhere(store, monkeypatch, tmp_path, name) for name in ("a", "b", "c")]
    for machine in stores:
        machine.claim = lambda unit, wait=True: threading.Lock()  # type: ignore[method-assign,assignment]
    failures: list[BaseException] = []

    def work(machine: Store, value: float) -> None:
        try:
            for _ in range(4):
                commit(machine, value)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(machine, value)) for machine, value in zip(stores, (1.0, 1.0, 2.0), strict=True)]  # fmt: skip
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(isinstance(error, StoreError) for error in failures), failures
    manifest = store.manifest(Unit("checkpoint", "run", 7, "capture"))
    if verify(store) or manifest is None:  # the last word was a mix: it is seen, and the next audit repairs it
        assert manifest is None or not store.is_current(manifest.unit, manifest.identity)
        commit(store, 2.0)
    assert verify(store) == []


def test_a_claim_excludes_other_machines_until_its_owner_shows_no_sign_of_life(store, monkeypatch, tmp_path):
    monkeypatch.setenv("STRATASCOPE_CLAIM_SECONDS", "1")
    store = Store.open(store.location)
    unit = Unit("checkpoint", "run", 7, "capture")
    other = elsewhere(store, monkeypatch, tmp_path)
    with store.claim(unit) as mine:
        assert mine
        with other.claim(unit, wait=False) as theirs:
            assert not theirs
        time.sleep(1.5)  # the heart beats on
        with other.claim(unit, wait=False) as theirs:
            assert not theirs
    with other.claim(unit, wait=False) as theirs:
        assert theirs
    assert not store.objects.list("claims"), "nothing is left behind"
    name = "claims/dead.json"
    store.objects.write(name, json.dumps({"machine": "gone", "owner": "x", "beat": 0}).encode())
    began = time.monotonic()
    with claims.held_claim(other.objects, name, "another") as mine:
        assert mine
        assert time.monotonic() - began > 1.0
    store.objects.write(name, json.dumps({"machine": "same", "owner": "x", "beat": 0}).encode())
    with claims.held_claim(other.objects, name, "same", wait=False) as mine:
        assert mine, "whoever shares the machine's locks knows that the owner is gone"


def test_a_snapshot_costs_one_listing_however_many_units_are_asked_about(store, monkeypatch, tmp_path):
    units = [commit(store, 1.0, step) for step in range(6)]
    other = elsewhere(store, monkeypatch, tmp_path)
    other.objects.requests.clear()
    for _ in range(2):
        with other.snapshot():
            assert all(other.is_current(unit, "identity 1.0") for unit in units)
            assert len(other.manifests()) == 6
    assert other.objects.requests == {"list": 2, "get": 6}


def test_the_ledger_is_compacted_there_and_read_as_one(store, monkeypatch, tmp_path):
    for step in STEPS:
        commit(store, 1.0, step)
    expected = store.rows()
    assert "ledger/_compacted/run.parquet" in store.objects.list("ledger")
    other = elsewhere(store, monkeypatch, tmp_path)
    other.objects.requests.clear()
    assert other.rows().equals(expected)
    assert other.objects.requests["get"] == 3, "two manifests and the compacted file"
    commit(store, 3.0, 7)
    assert sorted(other.rows()["value"]) == [1, 2, 3, 6]


def test_copies_are_bounded_and_those_in_use_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("STRATASCOPE_CACHE", str(tmp_path))

    def fill(folder: Path) -> None:
        (folder / "data").write_bytes(bytes(1000))

    for name in ("a", "b", "c"):
        with held_copy("files", name, fill):
            time.sleep(0.01)
    with held_copy("files", "a", fill):
        assert trim(tmp_path / "files", 1500) == ["b", "c"]
        assert trim(tmp_path / "files", 10) == []
    assert trim(tmp_path / "files", 10) == ["a"]


def test_hostile_manifests_reach_nothing_outside_the_copies(store, tmp_path):
    unit = commit(store)
    name = f"manifests/{unit.relative_path}.json"
    content = unsealed(store.objects.read(name)[0])
    place = "runs/run/000000000007/activations/probe/conv/pooled"
    facts = content["files"][f"archive.zarr/{place}/zarr.json"]
    content["files"][f"archive.zarr/{place}/../../../../../../../../escaped"] = facts
    store.objects.write(name, sealed(content))
    with pytest.raises(StoreError, match="a manifest names the file"):
        Store.open(store.location).array(place)
    assert not list(tmp_path.rglob("escaped"))


def test_what_cannot_be_opened_says_why_and_what_to_set(bucket, monkeypatch):
    with pytest.raises(StoreError, match=r"there is no store at s3://.*/none"):
        Store.open(f"{bucket.url}/none")
    with pytest.raises(UnreachableError, match=r"there is no bucket 'missing-bucket'.*Make it"):
        Store.open("s3://missing-bucket/store", create=True)
    root = {"attributes": {"schema_version": 99}, "zarr_format": 3, "node_type": "group"}
    bucket.objects.write("newer/archive.zarr/zarr.json", json.dumps(root).encode())
    with pytest.raises(NewerStoreError, match="schema 99"):
        Store.open(f"{bucket.url}/newer")
    with monkeypatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(
            UnreachableError, match=r"no credentials\. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ):
            Store.open(f"{bucket.url}/none")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("STRATASCOPE_OBJECT_RETRIES", "0")
    with pytest.raises(
        UnreachableError, match=r"does not answer.* at http://127.0.0.1:9.*Check the network and AWS_ENDPOINT_URL"
    ):
        Store.open(f"{bucket.url}/none")


def test_a_store_on_any_file_system_of_fsspec(tmp_path, monkeypatch):
    monkeypatch.setenv("STRATASCOPE_CACHE", str(tmp_path / "cache"))
    store = Store.open("memory://audits/one", create=True)
    unit = commit(store)
    assert store.is_current(unit, "identity 1.0")
    assert verify(store) == []
    assert open_store("memory://audits/one").layer("run", "a/b").shape == (1, 10, 4)
    group = zarr.open_group(zarr_store("memory://audits/one/archive.zarr"), mode="r")
    assert group["runs/run/000000000007/activations/probe/conv/pooled"].shape == (10, 3)
