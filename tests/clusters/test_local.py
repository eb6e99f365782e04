"""Workers on this machine: a card for each, no more memory than there is; and what is refused before any work."""

from __future__ import annotations

import os
import signal
import sys

import pytest

from stratascope.errors import ClusterError, ConfigurationError
from stratascope.flows.cluster import check_reach, placed, require_package
from stratascope.flows.cluster_spec import (
    GPU,
    AnyWorkers,
    KubernetesWorkers,
    LocalWorkers,
    SlurmWorkers,
    SshWorkers,
    WorkersAtAddress,
)
from tests.clusters.seen_by_workers import about_this_worker, addresses, card_after
from tests.clusters.slurm_machine import until
from tests.conftest import Workplace


def test_each_worker_has_a_card_of_its_own_also_the_one_that_replaces_a_killed_one(running, monkeypatch):
    monkeypatch.setenv("STRATASCOPE_DEVICE", "cpu")  # cards are counted only: this test needs none
    client = running(LocalWorkers(workers=2, gpus_per_worker=1, environment={"GREETING": "hello"}))
    client.wait_for_workers(2, timeout=120)
    told = client.run(about_this_worker).values()
    assert {item["environment"]["CUDA_VISIBLE_DEVICES"] for item in told} == {"0", "1"}
    assert {item["environment"]["GREETING"] for item in told} == {"hello"}
    assert {address for item in told for address in item["listening"]} == {"127.0.0.1"}
    with placed("cuda"):
        hands = [client.submit(card_after, 0.5, pure=False) for _ in range(4)]
    assert len(set(client.gather(hands))) == 2
    before = addresses(client)
    os.kill(min(item["pid"] for item in told), signal.SIGKILL)
    until(lambda: len(addresses(client) - before) == 1 and len(addresses(client)) == 2, "another one has come")
    cards = [item["environment"]["CUDA_VISIBLE_DEVICES"] for item in client.run(about_this_worker).values()]
    assert sorted(cards) == ["0", "1"]


def test_work_for_a_card_waits_for_a_worker_that_has_one(running):
    client = running(LocalWorkers(workers=1))
    with placed("cuda"):
        waiting = client.submit(card_after, 0, pure=False)
    with placed("cpu"):
        client.submit(card_after, 0, pure=False).result(timeout=60)
    assert waiting.status == "pending"
    assert client.scheduler_info(n_workers=-1)["workers"]
    assert not any(
        GPU in worker["resources"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()
    )


def test_more_workers_than_cards_are_refused(running, monkeypatch):
    monkeypatch.delenv("STRATASCOPE_DEVICE", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    with pytest.raises(
        ClusterError, match=r"3 workers with a graphics card each, and torch finds 1 on this machine"
    ):
        running(LocalWorkers(workers=3, gpus_per_worker=1))


@pytest.mark.slow
def test_workers_that_are_too_small_are_refused_with_both_numbers(tmp_path):
    place = Workplace(tmp_path)
    place.configure(cluster={"workers": 1, "memory": "700 MiB", "threads": 2})
    place.checkpoint(0)
    done = place.audit()
    assert done.code == 3
    assert "needs about 1.2 GiB for each worker (2 units at once), the workers have 0.7 GiB" in done.err
    assert not list((place.store / "manifests").glob("*/*/*/capture*"))


AWAY = [
    SshWorkers(hosts=("node7",), host="10.0.0.1"),
    WorkersAtAddress(address="tcp://10.0.0.5:8786"),
    SlurmWorkers(memory="1 GB", interface="eth7"),
    KubernetesWorkers(memory="1 GB", image="a"),
]


@pytest.mark.parametrize("spec", AWAY, ids=lambda spec: spec.kind)
def test_workers_elsewhere_need_a_prefect_api_that_they_reach(spec: AnyWorkers, monkeypatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("STRATASCOPE_TEMPORARY_SERVER", "1")
    with pytest.raises(
        ConfigurationError, match=r"the one that this command starts listens on this machine alone"
    ):
        check_reach(spec)
    monkeypatch.delenv("STRATASCOPE_TEMPORARY_SERVER")
    with (
        temporary_settings({PREFECT_API_URL: "http://127.0.0.1:4200/api"}),
        pytest.raises(
            ConfigurationError,
            match=r"cannot reach the Prefect API at http://127.0.0.1:4200/api.* PREFECT_API_URL",
        ),
    ):
        check_reach(spec)


def test_workers_that_prefect_can_be_reached_from_are_let_through(monkeypatch):
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: "http://10.0.0.9:4200/api"}):
        for spec in AWAY:
            if spec.kind != "address":
                check_reach(spec)
    monkeypatch.setenv("STRATASCOPE_TEMPORARY_SERVER", "1")
    check_reach(LocalWorkers())
    check_reach(SlurmWorkers(memory="1 GB"))
    check_reach(SshWorkers(hosts=("127.0.0.1", "localhost")))


@pytest.mark.parametrize(
    ("kind", "package"), [("slurm", "dask_jobqueue"), ("kubernetes", "dask_kubernetes"), ("ssh", "asyncssh")]
)
def test_a_missing_package_is_named_with_its_extra(kind, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigurationError, match=rf"pip install 'stratascope\[{kind}\]'"):
        require_package(kind)
