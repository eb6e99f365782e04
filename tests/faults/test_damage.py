"""A flipped byte anywhere: found by `verify`, found by reading, and mended by the next audit."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from stratascope.errors import DamagedStoreError
from stratascope.storage.digests import sealed, unsealed
from stratascope.storage.store import Store
from stratascope.storage.verification import verify
from tests.conftest import Workplace, stratascope
from tests.end_to_end.test_audit import tree_of

CHOSEN = {
    "a layer": "archive.zarr/runs/small/000000000001/activations/**/c.*",
    "a layer's metadata": "archive.zarr/runs/small/000000000002/activations/**/zarr.json",
    "statistics": "archive.zarr/runs/small/000000000002/statistics/**/c.*",
    "a series": "archive.zarr/series/small/embedding/**/c.*",
    "the probe": "archive.zarr/probes/probe/**/c.*",
    "the ledger": "ledger/small/000000000003/outputs.parquet",
    "a manifest": "manifests/small/000000000000/outputs.json",
    "a note": "manifests/_files/*.json",
    "a page": "report/layers/*.html",
}


def flip(path: Path, choice: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[choice.randrange(len(data))] ^= 1 << choice.randrange(8)
    path.write_bytes(bytes(data))


@pytest.mark.slow
def test_every_kind_of_damage_is_found_and_mended(copy_of_audited: Workplace, audited: Workplace):
    place = copy_of_audited
    choice = random.Random(0)
    damaged = [choice.choice(sorted(place.store.glob(pattern))) for pattern in CHOSEN.values()]
    for path in damaged:
        flip(path, choice)
    found = stratascope("verify", place.store, "--json")
    assert found.code == 1
    names = sorted(path.relative_to(place.store).as_posix() for path in damaged)
    assert [item["path"] for item in found.json["damage"]] == names
    done = place.audit()
    assert done.code == 0, done.err
    assert tree_of(place.store) == tree_of(audited.store)
    assert verify(Store.open(place.store)) == []
    units = done.json["units"]
    assert 0 < units["computed"] < units["cached"]


def test_any_flipped_byte_of_a_manifest_or_note_is_seen():
    data = sealed({"identity": "0" * 64, "files": {"a": {"bytes": 3}}, "summary": {"checksum": "0" * 32}})
    assert unsealed(data)["files"] == {"a": {"bytes": 3}}
    for place in range(len(data)):
        for bit in range(8):
            broken = bytearray(data)
            broken[place] ^= 1 << bit
            with pytest.raises(ValueError, match=r"checksum|byte|JSON|Expecting|delimiter|decode"):
                unsealed(bytes(broken))
    for length in range(len(data)):
        with pytest.raises(ValueError, match="checksum"):
            unsealed(data[:length])


def test_reading_damaged_data_from_python_says_what_to_do(copy_of_audited: Workplace):
    copy = copy_of_audited.store
    store = Store.open(copy)
    array = "runs/small/000000000001/activations/probe/fc1/pooled"
    for path in sorted((copy / "archive.zarr" / array).glob("c.*")):
        flip(path, random.Random(1))
    with pytest.raises(DamagedStoreError, match="verify"):
        store.array(array)
