"""The store: what is committed is whole, what is not does not exist."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import subprocess
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from stratascope import open_store
from stratascope.errors import DamagedStoreError, NewerStoreError, StoreError
from stratascope.storage.archive import join_path
from stratascope.storage.ledger import Row
from stratascope.storage.store import Store, this_machine
from stratascope.storage.units import Unit
from stratascope.storage.verification import verify
from stratascope.tasks.analysis import NamedArray

CAPTURE = Unit("checkpoint", "run", 7, "capture")


def commit(store: Store, value: float = 1.0, unit: Unit = CAPTURE, step: int = 7) -> None:
    unit = Unit(unit.scope, unit.run, step, unit.analysis)
    with store.claim(unit), store.stage(unit, f"identity {value}", {"value": value}) as staged:
        for layer, width in (("conv", 3), ("a/b", 5)):
            path = join_path("activations", "probe", layer, "pooled")
            writer = staged.create_array(
                path,
                dims=("sample", "channel"),
                shape=(10, width),
                dtype="float32",
                attributes={"layer": layer},
            )
            for start in range(0, 10, 4):
                writer.append(np.full((min(4, 10 - start), width), value, np.float32))
        staged.write_rows([Row("m", value), Row("a", 2 * value)])
        staged.summary["seen"] = value
        staged.commit()


def bytes_of(store: Store) -> dict[str, bytes]:
    return {
        str(path.relative_to(store.path)): path.read_bytes()
        for part in ("archive.zarr", "ledger")
        for path in sorted((store.path / part).rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store", create=True)


def test_a_committed_unit_reads_back_with_plain_tools(store: Store):
    commit(store)
    assert store.is_current(CAPTURE, "identity 1.0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = xr.open_datatree(store.path / "archive.zarr", engine="zarr", consolidated=False)
    array = tree["runs/run/000000000007/activations/probe/conv/pooled"]
    assert array.dims == ("sample", "channel")
    np.testing.assert_array_equal(array.values, np.ones((10, 3), np.float32))
    rows = pd.read_parquet(store.path / "ledger")
    assert list(rows["metric"]) == ["a", "m"]
    assert set(rows["step"]) == {7}
    assert set(rows["analysis"]) == {"capture"}
    assert verify(store) == []


def test_equal_results_are_equal_bytes_and_name_no_time_or_process(tmp_path: Path):
    first, second = (Store.open(tmp_path / name, create=True) for name in "ab")
    commit(first)
    commit(second, 5.0)
    commit(second)
    assert bytes_of(first) == bytes_of(second)


def test_what_fails_before_its_commit_leaves_the_old_result_and_no_trace(store: Store):
    commit(store)
    before = bytes_of(store)
    with pytest.raises(ZeroDivisionError), store.stage(CAPTURE, "new", {}) as staged:
        staged.write_array("activations/x", NamedArray(("sample",), np.ones(3)))
        raise ZeroDivisionError
    assert bytes_of(store) == before
    assert list((store.path / ".staging").iterdir()) == []


def test_an_incomplete_array_is_never_committed(store: Store):
    with pytest.raises(StoreError, match="incomplete"), store.stage(CAPTURE, "x", {}) as staged:
        writer = staged.create_array("activations/x", dims=("sample",), shape=(5,), dtype="float32")
        writer.append(np.ones(4))
        staged.commit()
    assert store.manifest(CAPTURE) is None


@pytest.mark.parametrize("path", ["../../other/x", "elsewhere/x", "activations/../../../x"])
def test_a_unit_cannot_write_outside_what_it_owns(store: Store, path: str):
    with pytest.raises(StoreError, match="may not write"), store.stage(CAPTURE, "x", {}) as staged:
        staged.create_array(path, dims=("sample",), shape=(1,), dtype="float32")


def test_a_flipped_byte_is_found_by_verify_and_by_reading(store: Store):
    commit(store)
    name = join_path("runs", "run", "000000000007", "activations", "probe", "conv", "pooled")
    chunk = store.path / "archive.zarr" / name / "c.0.0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(bytes(data))
    assert [item.path for item in verify(store)] == [f"archive.zarr/{name}/c.0.0"]
    with pytest.raises(DamagedStoreError, match="verify"):
        store.array(name)


def test_a_missing_chunk_makes_the_unit_not_current(store: Store):
    commit(store)
    next((store.path / "archive.zarr").rglob("c.0.0")).unlink()
    assert not store.is_current(CAPTURE, "identity 1.0")


def _commit_and_die(path: Path, moment: int) -> None:
    import stratascope.storage.staging as staging

    calls = {"left": moment}
    for name in ("replace",):
        original = getattr(staging.os, name)

        def counted(*args, _original=original):
            if calls["left"] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            calls["left"] -= 1
            return _original(*args)

        setattr(staging.os, name, counted)
    commit(Store.open(path), 2.0)


@pytest.mark.parametrize("moment", range(4, 20, 3))
def test_a_kill_at_any_rename_costs_at_most_the_unit_in_flight(store: Store, moment: int):
    commit(store, 1.0)
    commit(store, 1.0, step=8)
    process = multiprocessing.get_context("fork").Process(target=_commit_and_die, args=(store.path, moment))
    process.start()
    process.join()
    store.sweep()
    assert verify(store) == []
    assert store.is_current(Unit("checkpoint", "run", 8, "capture"), "identity 1.0")
    manifest = store.manifest(CAPTURE)
    assert manifest is None or manifest.identity in ("identity 1.0", "identity 2.0")
    commit(store, 2.0)
    fresh = Store.open(store.path.parent / "fresh", create=True)
    commit(fresh, 2.0)
    commit(fresh, 1.0, step=8)
    assert bytes_of(store) == bytes_of(fresh)


def _claim_and_count(path: Path, counter: Path) -> None:
    store = Store.open(path)
    with store.claim(CAPTURE):
        if not store.is_current(CAPTURE, "identity 3.0"):
            with open(counter, "a") as stream:
                stream.write("x")
            commit_inside = store.stage(CAPTURE, "identity 3.0", {})
            with commit_inside as staged:
                staged.write_rows([Row("m", 1.0)])
                staged.commit()


def test_two_processes_that_claim_one_unit_compute_it_once(store: Store, tmp_path: Path):
    counter = tmp_path / "counter"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_claim_and_count, args=(store.path, counter)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert counter.read_text() == "x"


def _commit_on_a_full_disk(path: Path) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
    try:
        commit(Store.open(path), 2.0)
    except StoreError as error:
        os._exit(0 if "untouched" in str(error) else 1)
    os._exit(2)


def test_no_room_on_the_disk_is_said_plainly_and_costs_nothing_stored(store: Store):
    commit(store)
    before = bytes_of(store)
    process = multiprocessing.get_context("fork").Process(target=_commit_on_a_full_disk, args=(store.path,))
    process.start()
    process.join()
    assert process.exitcode == 0
    assert bytes_of(store) == before
    assert verify(store) == []


def test_a_store_of_a_newer_schema_is_refused(store: Store):
    path = store.path / "archive.zarr" / "zarr.json"
    content = json.loads(path.read_text())
    content["attributes"]["schema_version"] = 99
    path.write_text(json.dumps(content))
    with pytest.raises(NewerStoreError, match="schema 99"):
        Store.open(store.path)


def test_a_store_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(StoreError, match="no store at"):
        Store.open(tmp_path / "absent")


def test_a_reader_gets_a_layer_over_all_steps(store: Store):
    commit(store, 1.0)
    commit(store, 2.0, step=8)
    layer = open_store(store.path).layer("run", "a/b", "pooled", "probe")
    assert layer.dims == ("step", "sample", "channel")
    assert list(layer.step.values) == [7, 8]
    np.testing.assert_array_equal(layer.sel(step=8).values, np.full((10, 5), 2.0, np.float32))
    with pytest.raises(StoreError, match="Did you mean 'run'"):
        open_store(store.path).steps("ru")


def test_the_compacted_ledger_is_rebuilt_when_it_is_stale_or_damaged(store: Store):
    commit(store, 1.0)
    assert sorted(store.rows()["value"]) == [1.0, 2.0]
    compacted = store.path / "ledger" / "_compacted" / "run.parquet"
    first = compacted.read_bytes()
    assert sorted(store.rows()["value"]) == [1.0, 2.0]
    assert compacted.read_bytes() == first
    commit(store, 5.0, step=8)
    assert sorted(store.rows()["value"]) == [1.0, 2.0, 5.0, 10.0]
    compacted.write_bytes(b"nothing")
    assert sorted(store.rows()["value"]) == [1.0, 2.0, 5.0, 10.0]
    # Other programs that read the folder see every row once.
    assert len(pd.read_parquet(store.path / "ledger")) == 4


def test_sweeping_leaves_alone_what_another_machine_may_still_be_writing(store: Store):
    dead = subprocess.Popen(["true"])
    dead.wait()
    folder = store.path / ".staging"
    names = {
        "gone": f"{dead.pid}-{this_machine()}-aa", "mine": f"{os.getpid()}-{this_machine()}-bb",
        "theirs": f"{dead.pid}-ffffffff-cc", "theirs, long ago": f"{dead.pid}-ffffffff-dd",
    }  # fmt: skip
    for name in names.values():
        (folder / name).mkdir()
    long_ago = time.time() - 30 * 24 * 3600
    os.utime(folder / names["theirs, long ago"], (long_ago, long_ago))
    store.sweep()
    assert {path.name for path in folder.iterdir()} == {names["mine"], names["theirs"]}
