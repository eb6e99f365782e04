"""Interrupts, two audits at once, and a limit of time: what is stored is whole, and nothing stays behind."""

from __future__ import annotations

import signal

import pytest

from stratascope.storage.store import Store
from stratascope.storage.verification import verify
from tests.conftest import ONE_WORKER
from tests.end_to_end.test_audit import tree_of
from tests.faults.rounds import family, outlived, series, started, wait_for


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_with_its_code_and_no_process_behind(tmp_path, sent, code):
    place = series(tmp_path / "series")
    process = started(place)
    wait_for(place, 14, process)
    children = family(process)
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert "the next audit goes on" in err
    assert outlived(children, 10) == []
    assert verify(Store.open(place.store)) == []


@pytest.mark.slow
def test_two_audits_of_one_store_at_once_both_end_well(tmp_path, audited):
    place = series(tmp_path / "series", 4)
    processes = [started(place), started(place)]
    for process in processes:
        _, err = process.communicate(timeout=400)
        assert process.returncode == 0, err
    assert verify(Store.open(place.store)) == []
    assert tree_of(place.store) == tree_of(audited.store)


@pytest.mark.slow
def test_max_time_leaves_the_rest_for_the_next_audit(tmp_path):
    place = series(tmp_path / "series", 2)
    place.configure(analyses={"outputs": {}}, cluster=ONE_WORKER)
    first = place.audit("--max-time", "0s")
    assert first.code == 0, first.err
    assert {item["status"] for item in first.json["checkpoints"]} == {"deferred"}
    second = place.audit()
    assert {item["status"] for item in second.json["checkpoints"]} == {"computed"}
