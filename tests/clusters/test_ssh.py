"""A real sshd on loopback: the same bytes as local workers, hosts that are checked, and nothing left behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from stratascope.flows.cluster_spec import GPU, SshWorkers
from stratascope.storage.store import Store
from tests.clusters.seen_by_workers import about_this_worker, addresses, card_after
from tests.clusters.slurm_machine import until
from tests.conftest import Workplace
from tests.end_to_end.test_audit import tree_of


def remote_workers() -> list[psutil.Process]:
    """All processes that an ssh worker of ours is made of, by their command line."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = " ".join(process.info["cmdline"] or ())
        if "distributed.cli.dask_spec" in words and '"name": "ssh-' in words:
            found.append(process)
    return found


@pytest.mark.slow
def test_an_audit_over_ssh_gives_the_bytes_of_a_local_one(tmp_path, ssh, audited):
    place = Workplace(tmp_path)
    place.configure(cluster=ssh.cluster())
    for step in range(4):
        place.checkpoint(step)
    done = place.audit()
    assert done.code == 0, done.err
    assert tree_of(place.store) == tree_of(audited.store)
    units = [item for unit, item in Store.open(place.store).manifests().items() if unit.scope == "checkpoint"]
    assert len({item.recorded["pid"] for item in units}) == 2
    until(lambda: not remote_workers(), "no process is left behind", 30)


def test_workers_have_their_environment_and_their_own_cards_and_come_back_when_killed(ssh, running):
    given = {"GREETING": "it's $HOME", "PYTHONPATH": str(Path(__file__).parents[2])}
    spec = SshWorkers(**ssh.cluster(gpus_per_worker=1, memory="1 GB", environment=given))
    client = running(spec)
    client.wait_for_workers(2, timeout=120)
    told = client.run(about_this_worker).values()
    assert all(item["environment"]["MALLOC_MMAP_THRESHOLD_"] == "4294967296" for item in told)
    assert all(item["environment"]["GREETING"] == "it's $HOME" for item in told)
    assert {item["threads"] for item in told} == {1}
    assert {address for item in told for address in item["listening"]} == {"127.0.0.1"}
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    assert [(item["resources"], item["memory_limit"]) for item in workers] == [({GPU: 1.0}, 10**9)] * 2
    hands = [client.submit(card_after, 0.5, pure=False, resources={GPU: 1}) for _ in range(4)]
    assert {card for _, card in client.gather(hands)} == {"0", "1"}
    secrets = [" ".join(process.cmdline()) for process in remote_workers()]
    assert len(secrets) >= 2
    assert not any("GREETING" in words for words in secrets)
    before = addresses(client)
    os.kill(min(item["pid"] for item in told), signal.SIGKILL)
    until(lambda: len(addresses(client) - before) == 1 and len(addresses(client)) == 2, "another one has come")


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"known_hosts": "wrong_hosts"}, "Host key is not trusted"),
        ({"key": "other_key"}, "Permission denied"),
        ({"port": 1}, "Connect call failed"),
        ({"remote_python": "/nowhere/python"}, "the worker has ended: /bin/sh: "),
    ],
)
def test_why_no_worker_starts_is_told(ssh, running, option, said):
    changes = {
        name: str(ssh.folder / value) if name in ("key", "known_hosts") else value
        for name, value in option.items()
    }
    cluster = running(SshWorkers(**ssh.cluster(**changes))).cluster
    reason, _ = until(
        lambda: found if (found := cluster.why_no_worker())[1] else None, "it is known to be hopeless"
    )
    assert said in reason


def test_the_worker_ends_when_the_connection_is_lost(ssh, running):
    client = running(SshWorkers(**ssh.cluster(hosts=["127.0.0.1"])))
    client.wait_for_workers(1, timeout=120)
    (worker,) = client.cluster.workers.values()
    present = remote_workers()
    assert present
    worker._connection.abort()
    psutil.wait_procs(present, timeout=30)
    assert not any(process.is_running() for process in present)
