"""One round of each kind of kill; `benchmarks/faults.py` plays fifty (docs/reliability.md)."""

from __future__ import annotations

import pytest

from tests.conftest import Workplace
from tests.faults.rounds import KINDS, play, series


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Workplace:
    """A series whose audit nothing disturbed."""
    place = series(tmp_path_factory.mktemp("undisturbed") / "whole")
    done = place.audit()
    assert done.code == 0, done.err
    return place


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_after_a_kill_archive_and_ledger_end_as_if_nothing_had_happened(kind, whole, tmp_path):
    result = play(kind, 0, series(tmp_path / "broken"), whole)
    assert result.problems == ()
    if kind == "driver":
        assert result.code < 0
        assert result.computed > 0
    else:
        assert result.computed == 0
