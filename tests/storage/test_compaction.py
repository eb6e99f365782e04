"""The compacted ledger and its index: derived, so they may be stale, damaged or gone, and nobody sees a difference."""

from __future__ import annotations

import io
import json
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stratascope.errors import ConfigurationError, DamagedStoreError
from stratascope.storage.ledger import COLUMNS, Row
from stratascope.storage.ledger_files import rows_file
from stratascope.storage.ledger_query import select
from stratascope.storage.manifest_index import INDEX, indexed_units
from stratascope.storage.manifests import manifest_path
from stratascope.storage.store import Store
from stratascope.storage.units import Unit


def commit(store: Store, unit: Unit, seed: int = 0) -> None:
    generator = np.random.default_rng([seed, max(unit.step, 0), len(unit.analysis), len(unit.run)])
    rows = [
        Row(metric, float(value), layer=layer, probe="test", part=part, reason="says \"no\", twice" if value < 0 else "",
            other_step=3 if part else None, step=7 if unit.scope != "checkpoint" and part else -1)
        for metric in ("dead_fraction", "alpha", f"of_{unit.analysis}")
        for layer in ("", "conv1", "a/b")
        for part, value in zip(("", "class=1"), generator.normal(size=2), strict=True)
    ]  # fmt: skip
    with store.stage(unit, f"{unit} {seed}", {}) as staged:
        staged.write_rows([*rows, Row("nothing", status="failed", reason="because")])
        staged.commit()


def checkpoint(step: int, analysis: str = "outputs", run: str = "run-1") -> Unit:
    return Unit("checkpoint", run, step, analysis)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.open(tmp_path / "store", create=True)
    for step in range(8):
        commit(store, checkpoint(step))
        commit(store, checkpoint(step, "statistics"))
    for unit in (Unit("series", "run-1", -1, "intake"), Unit("cohort", "", -1, "copies"), checkpoint(3, run="b")):
        commit(store, unit)
    return store


def by_file(store: Store) -> pd.DataFrame:
    """Every row, from the units' own files, by another reader than the store's."""
    found = pd.concat(
        [pd.read_parquet(path) for path in sorted((store.path / "ledger").glob("[!_]*/*/*.parquet"))]
    )
    return pd.concat([found, pd.read_parquet(store.path / "ledger" / "_cohort")])


def content(rows: pd.DataFrame) -> list[str]:
    return sorted(map(str, rows[list(COLUMNS)].itertuples(index=False)))


def test_rows_are_those_of_the_units_files_and_sorted(store: Store):
    rows = store.rows()
    assert list(rows.columns) == list(COLUMNS)
    assert content(rows) == content(by_file(store))
    keys = rows[["analysis", "metric", "layer", "probe", "part", "run", "step"]]
    assert list(keys.itertuples(index=False)) == sorted(keys.itertuples(index=False))


def test_few_units_and_many_and_all_give_the_same_rows(store: Store, monkeypatch: pytest.MonkeyPatch):
    chosen = [checkpoint(step, "statistics") for step in (1, 4)] + [Unit("series", "run-1", -1, "intake")]
    few, every = store.rows(chosen), store.rows(store.units())
    monkeypatch.setattr("stratascope.storage.store._FEW_UNITS", 0)
    pd.testing.assert_frame_equal(store.rows(chosen), few)
    pd.testing.assert_frame_equal(store.rows(store.units()), every)
    pd.testing.assert_frame_equal(store.rows(), every)
    assert store.rows([]).empty
    assert list(store.rows([]).columns) == list(COLUMNS)


def test_adding_replacing_and_removing_units_gives_the_bytes_of_a_file_made_anew(store: Store):
    store.rows()
    commit(store, checkpoint(8))
    commit(store, checkpoint(2, "statistics"), seed=1)
    commit(store, Unit("series", "run-1", -1, "intake"), seed=1)
    manifest_path(store.path, checkpoint(5)).unlink()
    # What did not change is not read again: a unit's own file may even be damaged.
    kept = rows_file(store.path, checkpoint(0))
    whole = kept.read_bytes()
    kept.write_bytes(b"damaged")
    rows = store.rows()
    kept.write_bytes(whole)
    compacted = store.path / "ledger" / "_compacted" / "run-1.parquet"
    patched = compacted.read_bytes()
    compacted.unlink()
    pd.testing.assert_frame_equal(store.rows(), rows)
    assert compacted.read_bytes() == patched
    assert 5 not in set(rows.loc[rows["analysis"] == "outputs", "step"])


def test_a_flipped_byte_is_never_believed(store: Store):
    sound = store.rows()
    compacted = store.path / "ledger" / "_compacted" / "run-1.parquet"
    whole = compacted.read_bytes()
    for place in range(5, len(whole), len(whole) // 25):
        compacted.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        pd.testing.assert_frame_equal(store.rows(), sound)
        compacted.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        assert len(select(store, {"metric": "dead*"})) == (sound["metric"] == "dead_fraction").sum()
    compacted.unlink()
    file = rows_file(store.path, checkpoint(4))
    data = file.read_bytes()
    place = len(data) // 4
    file.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
    with pytest.raises(DamagedStoreError, match="stratascope verify"):
        store.rows()
    with pytest.raises(DamagedStoreError, match="000000000004"):
        select(store, {"metric": "alpha"})


def test_the_index_tells_what_the_manifests_tell(store: Store):
    def agrees() -> None:
        found = {item.unit: item.rows_checksum for item in indexed_units(store.path)}
        told = {
            unit: next((facts["xxh3"] for name, facts in manifest.files.items() if name.startswith("ledger/")), "")
            for unit, manifest in store.manifests().items()
        }
        assert found == told
        assert store.units() == list(told)

    agrees()
    index = store.path / INDEX
    first = index.read_bytes()
    agrees()
    assert index.read_bytes() == first
    commit(store, checkpoint(2), seed=5)
    agrees()
    manifest_path(store.path, checkpoint(6)).write_bytes(b"{")
    agrees()
    for spoilt in (b"", b"[]", b'{"schema": 1, "manifests": {"run-1/x.json": 3}}', b'{"schema": 9}'):
        index.write_bytes(spoilt)
        agrees()
    index.unlink()
    agrees()


def test_a_store_that_cannot_be_written_is_read_file_by_file(store: Store):
    sound = store.rows()
    folder = store.path / "ledger" / "_compacted"
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("in the way")
    pd.testing.assert_frame_equal(store.rows(), sound)
    assert len(select(store, {"metric": "alpha", "layer": "conv1"})) == 2 * 19


@pytest.mark.parametrize(
    ("wanted", "step"),
    [
        ({}, None), ({"metric": "dead_fraction"}, None), ({"metric": "*a*", "layer": "[ac]*", "run": "run-?"}, 3),
        ({"part": ""}, None), ({"run": "b", "metric": "alpha"}, None), ({"layer": "a/b"}, 7), ({}, 99),
    ],
)  # fmt: skip
def test_a_selection_is_what_pandas_selects_in_every_form(store: Store, wanted: dict[str, str], step: int | None):
    rows = store.rows()
    for column, pattern in wanted.items():
        rows = rows[[fnmatchcase(name, pattern) for name in rows[column]]]
    rows = rows[rows["step"] == step] if step is not None else rows
    found = select(store, wanted, step)
    csv, text, parquet = io.BytesIO(), io.StringIO(), io.BytesIO()
    found.write_csv(csv)
    found.write_json(text)
    found.write_parquet(parquet)
    expected = rows.reset_index(drop=True)
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(parquet.getvalue())), expected, check_dtype=False)
    texts = dict.fromkeys(expected.select_dtypes("str").columns, str)
    read = pd.read_csv(
        io.BytesIO(csv.getvalue()), keep_default_na=False, na_values={"value": [""], "low": [""], "high": [""], "other_step": [""]}, dtype=texts
    )  # fmt: skip
    pd.testing.assert_frame_equal(read, expected, check_dtype=False)
    records = json.loads(text.getvalue())
    assert [record["value"] for record in records] == [
        None if value != value else value for value in expected["value"]
    ]
    assert [list(record) for record in records] == [list(COLUMNS)] * len(expected)


def test_a_glob_without_a_match_names_the_nearest(store: Store):
    with pytest.raises(ConfigurationError, match="Did you mean 'dead_fraction'"):
        select(store, {"metric": "dead_fractions"})
    with pytest.raises(ConfigurationError, match="no finding has layer 'conv9'"):
        select(store, {"metric": "alpha", "layer": "conv9"})
