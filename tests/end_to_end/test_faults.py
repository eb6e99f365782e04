"""Kills, interrupts and lost workers: at most what is in flight is lost, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from stratascope.storage.store import Store
from stratascope.storage.verification import verify
from tests.conftest import ENVIRONMENT, Workplace, stratascope
from tests.end_to_end.test_audit import tree_of


def started(place: Workplace) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "stratascope", "audit", str(place.config), "--json"],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for_units(place: Workplace, count: int, process: subprocess.Popen) -> None:
    until = time.monotonic() + 240
    while time.monotonic() < until and process.poll() is None:
        if len(list((place.store / "manifests").rglob("*.json"))) >= count:
            return
        time.sleep(0.05)
    raise AssertionError(f"the audit ended, or did too little: {process.communicate()}")


def family(process: subprocess.Popen) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def outlived(children: list[psutil.Process], seconds: float) -> list[str]:
    _, alive = psutil.wait_procs(children, timeout=seconds)
    return [" ".join(child.cmdline()) for child in alive if child.is_running()]


def series(folder: Path, count: int = 8) -> Workplace:
    folder.mkdir()
    place = Workplace(folder)
    place.configure()
    for step in range(count):
        place.checkpoint(step)
    return place


@pytest.mark.slow
def test_after_a_kill_the_next_run_completes_to_the_same_bytes(tmp_path):
    whole, broken = series(tmp_path / "whole"), series(tmp_path / "broken")
    assert whole.audit().code == 0
    process = started(broken)
    # Files remembered, the probe, and some units of work: somewhere in the middle.
    wait_for_units(broken, 18, process)
    children = family(process)
    assert children
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert outlived(children, 10) == []
    assert verify(Store.open(broken.store)) == []
    done_before = len(Store.open(broken.store).manifests())
    again = broken.audit()
    assert again.code == 0, again.err
    units = again.json["units"]
    assert units["computed"] > 0
    assert units["cached"] > 0
    assert done_before > 1
    assert tree_of(broken.store) == tree_of(whole.store)
    assert verify(Store.open(broken.store)) == []


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupt_leaves_with_its_code_and_no_process_behind(tmp_path, sent, code):
    place = series(tmp_path / "series")
    process = started(place)
    wait_for_units(place, 14, process)
    children = family(process)
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert "Traceback" not in err
    assert "the next audit goes on" in err
    assert outlived(children, 10) == []
    assert verify(Store.open(place.store)) == []


@pytest.mark.slow
def test_a_worker_that_dies_costs_nothing(tmp_path):
    place = series(tmp_path / "series")
    process = started(place)
    wait_for_units(place, 14, process)
    workers = [child for child in family(process) if "multiprocessing" in " ".join(child.cmdline())]
    os.kill(workers[-1].pid, signal.SIGKILL)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert verify(Store.open(place.store)) == []
    assert stratascope("audit", place.config, "--json").json["units"]["computed"] == 0


@pytest.mark.slow
def test_two_audits_of_one_store_at_once_both_end_well(tmp_path):
    place = series(tmp_path / "series", 2)
    processes = [started(place), started(place)]
    for process in processes:
        _, err = process.communicate(timeout=400)
        assert process.returncode == 0, err
    assert verify(Store.open(place.store)) == []
    alone = series(tmp_path / "alone", 2)
    assert alone.audit().code == 0
    assert tree_of(place.store) == tree_of(alone.store)


@pytest.mark.slow
def test_max_time_leaves_the_rest_for_the_next_audit(tmp_path):
    place = series(tmp_path / "series", 2)
    first = place.audit("--max-time", "0s")
    assert first.code == 0, first.err
    assert {item["status"] for item in first.json["checkpoints"]} == {"deferred"}
    second = place.audit()
    assert {item["status"] for item in second.json["checkpoints"]} == {"computed"}
