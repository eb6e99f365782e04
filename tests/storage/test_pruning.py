"""Pruning: what the rules keep, what goes, and that a killed pruning leaves nothing half done."""

from __future__ import annotations

import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from stratascope.errors import ConfigurationError
from stratascope.storage.ledger import Row
from stratascope.storage.pruning import finish_pruning, lost_arrays, parse_rule, prune
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.storage.verification import verify
from stratascope.tasks.analysis import NamedArray


def array(*shape: int) -> NamedArray:
    return NamedArray(("sample", "feature")[: len(shape)], np.ones(shape, np.float32))


@pytest.fixture(scope="module")
def template(tmp_path_factory) -> Path:
    """Two runs of eight checkpoints; each capture has two reductions and statistics, each analysis an array."""
    store = Store.open(tmp_path_factory.mktemp("template") / "store", create=True)
    for run in ("a", "b"):
        for step in range(0, 80, 10):
            with store.stage(Unit("checkpoint", run, step, "capture"), f"{run}{step}", {}) as staged:
                for name in (
                    "activations/test/fc1/pooled",
                    "activations/test/fc1/full",
                    "statistics/test/fc1/top",
                ):
                    staged.write_array(name, array(4, 3))
                staged.recorded = {"finished": time.time() - 86400 * (70 - step)}
                staged.commit()
            with store.stage(Unit("checkpoint", run, step, "outputs"), f"o{run}{step}", {}) as staged:
                staged.write_array("confusion", array(2, 2))
                staged.write_array("names", NamedArray(("class",), np.array(["x", "y"])))
                staged.write_rows([Row("accuracy", 0.5, n=4)])
                staged.commit()
    return store.path


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Store:
    """A copy of the template."""
    shutil.copytree(template, tmp_path / "store")
    return Store.open(tmp_path / "store")


def arrays_of(store: Store, run: str = "a") -> dict[int, list[str]]:
    """The arrays that are there, by step."""
    found: dict[int, list[str]] = {}
    for path in store.list_arrays(f"runs/{run}"):
        found.setdefault(int(path.split("/")[2]), []).append("/".join(path.split("/")[3:]))
    return found


@pytest.mark.parametrize(
    ("rules", "kept"),
    [
        (["last:2"], {60, 70}),
        (["last:0"], set()),
        (["first:1", "last:1"], {0, 70}),
        (["every:3"], {0, 30, 60}),
        (["steps:10,20,999"], {10, 20}),
        (["log_spaced:3"], {0, 30, 70}),
        (["newer:25d"], {50, 60, 70}),
        (["runs:b*"], set()),
        (["runs:a", "last:0"], set(range(0, 80, 10))),
    ],
)
def test_a_checkpoint_stays_whole_where_any_rule_keeps_it(store: Store, rules: list[str], kept: set[int]):
    told = prune(store, [parse_rule(text) for text in rules], dry_run=True)
    assert len(arrays_of(store)) == 8
    done = prune(store, [parse_rule(text) for text in rules])
    assert set(done.kept["a"]) == set(arrays_of(store)) == kept
    assert (told.steps, told.files, told.bytes) == (done.steps, done.files, done.bytes)
    assert prune(store, [parse_rule(text) for text in rules]).files == 0


def test_ledger_manifests_and_identities_stay_and_nothing_counts_as_damage(store: Store):
    before = {unit: item.identity for unit, item in store.manifests().items()}
    rows = store.rows()
    size = sum(path.stat().st_size for path in store.path.rglob("c*") if path.is_file())
    done = prune(store, [parse_rule("last:1")])
    assert {unit: item.identity for unit, item in store.manifests().items()} == before
    assert all(store.is_current(unit, identity) for unit, identity in before.items())
    assert store.rows().equals(rows)
    assert verify(store) == []
    assert store.sweep() == []
    assert done.bytes > 0.8 * size
    assert lost_arrays(store.manifest(Unit("checkpoint", "a", 0, "capture"))) == {"pooled", "full", "statistics"}
    assert lost_arrays(store.manifest(Unit("checkpoint", "a", 70, "capture"))) == set()
    tree = xr.open_datatree(store.path / "archive.zarr", engine="zarr", consolidated=False)
    assert "a" in tree["runs"].children


def test_arrays_can_be_kept_of_every_checkpoint(store: Store):
    prune(store, [parse_rule("reduction:pooled"), parse_rule("arrays:outputs/names"), parse_rule("last:1")])
    found = arrays_of(store)
    assert found[0] == ["activations/test/fc1/pooled", "outputs/names"]
    assert len(found[70]) == 5
    assert store.array("runs/a/000000000000/activations/test/fc1/pooled").sum() == 12
    assert list(store.array("runs/a/000000000000/outputs/names")) == ["x", "y"]
    assert lost_arrays(store.manifest(Unit("checkpoint", "a", 0, "capture"))) == {"full", "statistics"}
    assert verify(store) == []
    # A second, harder pruning adds to what the first one took.
    prune(store, [parse_rule("last:1")])
    assert set(arrays_of(store)) == {70}
    assert lost_arrays(store.manifest(Unit("checkpoint", "a", 0, "capture"))) == {"full", "pooled", "statistics"}


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("moment", [0, 1, 3, 5, 6, 7, 8, 11])
def test_wherever_a_pruning_is_killed_no_unit_is_lost_and_the_next_one_ends_it(
    store: Store, moment: int, monkeypatch: pytest.MonkeyPatch
):
    shutil.rmtree(store.path / "manifests" / "b")
    rows = store.rows()
    remaining = moment

    def deadly(action):
        def act(*arguments, **named):
            nonlocal remaining
            if remaining == 0:
                raise Killed
            remaining -= 1
            return action(*arguments, **named)

        return act

    with monkeypatch.context() as patched:
        patched.setattr(Store, "replace_manifest", deadly(Store.replace_manifest))
        patched.setattr(Path, "unlink", deadly(Path.unlink))
        with pytest.raises(Killed):
            prune(store, [parse_rule("last:7")])
    assert store.rows().equals(rows)
    assert verify(store) == []
    for unit, manifest in store.manifests().items():
        assert store.is_current(unit, manifest.identity)
    finish_pruning(store)
    assert finish_pruning(store) == 0
    named = {name for item in store.manifests().values() for name in item.files}
    there = {path.relative_to(store.path).as_posix() for path in (store.path / "archive.zarr/runs/a").rglob("*")}
    groups = {name for name in there if name.endswith("/zarr.json")}
    assert {name for name in there if (store.path / name).is_file()} - groups <= named
    prune(store, [parse_rule("last:7")])
    assert set(arrays_of(store)) == set(range(10, 80, 10))


@pytest.mark.parametrize(
    "text", ["", "last", "last:x", "last:-1", "every:0", "newer:3", "steps:a", "runs:", "log_spaced:1"]
)
def test_what_is_no_rule_is_refused_with_all_that_are(text: str):
    with pytest.raises(ConfigurationError, match=r"last:N.*newer:30d"):
        parse_rule(text)


def test_nothing_is_freed_without_a_rule(store: Store):
    with pytest.raises(ConfigurationError, match="--keep"):
        prune(store, [])


def test_what_somebody_is_at_work_on_is_waited_for(store: Store):
    unit = Unit("checkpoint", "a", 0, "capture")
    with ThreadPoolExecutor(1) as pool:
        with store.claim(unit):
            pruning_it = pool.submit(prune, store, [parse_rule("last:1"), parse_rule("runs:b")])
            # All others may go meanwhile; the claimed one must not.
            time.sleep(1.0)
            assert not pruning_it.done()
            assert lost_arrays(store.manifest(unit)) == set()
        assert pruning_it.result(timeout=60).steps == {"a": list(range(0, 70, 10))}
    assert set(arrays_of(store)) == {70}
