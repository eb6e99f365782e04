"""A real Slurm of one node: the same bytes as local workers, also when a job is lost, and nothing left behind."""

from __future__ import annotations

import signal
import subprocess
import sys

import dask
import pytest

from stratascope.flows.cluster_spec import SlurmWorkers
from stratascope.storage.store import Store
from stratascope.storage.verification import verify
from tests.clusters.seen_by_workers import about_this_worker, card_after
from tests.clusters.slurm_machine import until
from tests.conftest import ENVIRONMENT, Workplace
from tests.end_to_end.test_audit import tree_of


def series(folder, cluster: dict) -> Workplace:
    folder.mkdir(exist_ok=True)
    place = Workplace(folder)
    place.configure(cluster={"kind": "slurm", "memory": "2 GB", **cluster})
    for step in range(4):
        place.checkpoint(step)
    return place


def started(place: Workplace, slurm) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "stratascope", "audit", str(place.config), "--json"],
        env={**ENVIRONMENT, **slurm.environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=place.folder,
    )  # fmt: skip


def units(place: Workplace) -> int:
    return len(list((place.store / "manifests").rglob("*.json")))


@pytest.mark.slow
def test_an_audit_in_jobs_gives_the_bytes_of_a_local_one_though_a_job_is_cancelled(tmp_path, slurm, audited):
    place = series(tmp_path / "series", {"workers": 2})
    process = started(place, slurm)
    try:
        until(lambda: units(place) >= 8 or process.poll() is not None, "a few units are stored", 300)
        jobs = slurm.running()
        slurm.ask("scancel", jobs[0])
        _, err = process.communicate(timeout=400)
    finally:
        process.kill()
    assert process.returncode == 0, err
    assert len(jobs) == 2
    assert tree_of(place.store) == tree_of(audited.store)
    assert verify(Store.open(place.store)) == []
    until(slurm.is_empty, "no job is left")
    assert list(place.folder.glob("*.out")) == []


@pytest.mark.slow
def test_sigterm_leaves_no_job(tmp_path, slurm):
    place = series(tmp_path / "series", {"workers": 2})
    process = started(place, slurm)
    try:
        until(lambda: len(slurm.running()) == 2 or process.poll() is not None, "two jobs run", 200)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 143, err
    assert "Traceback" not in err
    until(slurm.is_empty, "no job is left", 60)


@pytest.mark.slow
def test_a_queue_that_starts_nothing_ends_the_audit_with_what_slurm_says(tmp_path, slurm):
    place = series(tmp_path / "series", {"queue": "closed", "start_seconds": 2})
    done = place.audit(**slurm.environment)
    assert done.code == 3
    assert "no worker came within 2 s on nodes of Slurm's queue 'closed'" in done.err
    assert "is PENDING (Reason=PartitionDown)" in done.err
    assert "Traceback" not in done.err
    assert slurm.is_empty()


@pytest.fixture
def at_slurm(slurm, monkeypatch):
    for name, value in slurm.environment.items():
        monkeypatch.setenv(name, value)
    return slurm


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"queue": "nowhere"}, "sbatch says 'invalid partition specified: nowhere"),
        ({"python": "/nowhere/python"}, "is FAILED (Reason=NonZeroExitCode, ExitCode=127:0)"),
    ],
)
def test_what_can_never_start_is_known_at_once(at_slurm, running, option, said):
    cluster = running(SlurmWorkers(memory="1 GB", workers=2, **option)).cluster
    reason, _ = until(
        lambda: found if (found := cluster.why_no_worker())[1] else None, "it is known to be hopeless"
    )
    assert said in reason


def test_jobs_have_their_environment_before_python_starts_their_own_card_and_come_back_when_lost(
    at_slurm, running
):
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1s"}):
        spec = SlurmWorkers(memory="1 GB", workers=2, gpus_per_worker=1, environment={"GREETING": "it's $HOME"})
        client = running(spec)
        client.wait_for_workers(2, timeout=120)
        told = client.run(about_this_worker).values()
        assert all(item["environment"]["MALLOC_MMAP_THRESHOLD_"] == "4294967296" for item in told)
        assert all(item["environment"]["GREETING"] == "it's $HOME" for item in told)
        assert {item["threads"] for item in told} == {1}
        assert {address for item in told for address in item["listening"]} == {"127.0.0.1"}
        workers = client.scheduler_info(n_workers=-1)["workers"].values()
        assert [(item["nthreads"], item["resources"]) for item in workers] == [(1, {"GPU": 1.0})] * 2
        assert [item["memory_limit"] for item in workers] == pytest.approx([10**9] * 2, rel=0.01)
        hands = [client.submit(card_after, 0.5, pure=False, resources={"GPU": 1}) for _ in range(4)]
        assert {card for _, card in client.gather(hands)} == {"0", "1"}
        before = set(at_slurm.running())
        at_slurm.ask("scancel", min(before))
        until(
            lambda: len(set(at_slurm.running()) - before) == 1, "a new job has come in the place of the lost one"
        )
        until(lambda: len(client.scheduler_info(n_workers=-1)["workers"]) == 2, "its worker has come, too")


def test_adaptive_workers_come_with_the_work_and_go_with_it(at_slurm, running):
    client = running(SlurmWorkers(memory="1 GB", adaptive={"minimum": 1, "maximum": 3}))
    client.wait_for_workers(1, timeout=120)
    assert len(at_slurm.jobs()) == 1
    hands = [client.submit(card_after, 4, pure=False) for _ in range(12)]
    until(lambda: len(at_slurm.jobs()) == 3, "as many jobs as may be")
    del hands
    until(lambda: len(at_slurm.jobs()) == 1, "no more than must be")


def test_the_queue_is_empty_in_the_end(slurm):
    until(slurm.is_empty, "no job is left by any test of this file", 60)
