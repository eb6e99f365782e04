"""Backfills: which checkpoints come first, and that an interrupted one goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stratascope.errors import ConfigurationError
from stratascope.flows import backfill
from stratascope.flows.backfill import backfill_from_file, places
from stratascope.storage.audits import read_audits
from stratascope.storage.store import Store
from tests.conftest import Workplace
from tests.flows.without_workers import audit_here


@given(st.integers(1, 3000), st.integers(1, 12), st.sampled_from(["log_spaced", "newest"]))
def test_every_slice_holds_the_ones_before_and_the_last_holds_all(count: int, first: int, order: str):
    size, before = first, set()
    while size < count:
        chosen = places(count, size, order)
        assert chosen == sorted(set(chosen))
        assert before <= set(chosen) <= set(range(count))
        assert count - 1 in chosen
        assert len(chosen) <= 2 * size
        before, size = set(chosen), size * 2
    assert places(count, size, order) == list(range(count))


def test_a_coarse_curve_comes_first():
    assert places(1001, 4, "log_spaced") == [0, 10, 100, 1000]
    assert places(1001, 8, "log_spaced") == [0, 3, 7, 10, 19, 52, 100, 139, 373, 1000]
    assert places(10, 3, "newest") == [7, 8, 9]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    """Ten checkpoints, and audits that need no workers."""
    place = Workplace(tmp_path)
    place.configure(analyses={"outputs": {}})
    for step in range(0, 100, 10):
        place.checkpoint(step)
    monkeypatch.setattr(
        backfill, "audit_from_file", lambda config, words, rehash, seconds: audit_here(Path(config), *words)[0]
    )
    return place


def audited_steps(place: Workplace) -> list[list[int]]:
    """The steps that each audit so far computed."""
    return [
        [item["step"] for item in record["checkpoints"] if item["status"] == "computed"]
        for record in read_audits(Store.open(place.store))
    ]


def test_slices_fill_the_curve_and_read_no_file_before_its_turn(place: Workplace):
    damaged = place.folder / "runs" / "step-50.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(b"")
    _, left = backfill_from_file(place.config, [], 0.0, "log_spaced", 2)
    assert (audited_steps(place), left) == ([[0, 90]], 8)
    damaged.write_bytes(whole)
    result, left = backfill_from_file(place.config, [], None, "log_spaced", 2)
    assert left == 0
    assert result.exit_code == 0
    # The first slice was not done again, and nothing was computed twice.
    slices = audited_steps(place)
    assert slices[0] == [0, 90]
    assert sorted(step for steps in slices for step in steps) == list(range(0, 100, 10))
    assert len(slices) == 4
    assert {item["status"] for item in result.checkpoints} <= {"cached", "computed"}
    # With everything there, it is one look.
    result, _ = backfill_from_file(place.config, [], None, "log_spaced", 2)
    assert result.units["computed"] == 0


def test_the_selection_of_a_run_holds_for_a_backfill_too(place: Workplace):
    _, left = backfill_from_file(place.config, ["runs.0.select={every: 3}"], None, "newest", 2)
    assert left == 0
    assert audited_steps(place) == [[60, 90], [0, 30]]


def test_an_unknown_order_is_refused(place: Workplace):
    with pytest.raises(ConfigurationError, match="log_spaced or newest"):
        backfill_from_file(place.config, [], None, "oldest", 2)
