"""A Dask scheduler that runs already, behind TLS, with one worker that has a graphics card and one that has none."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from stratascope.storage.store import Store
from tests.clusters.slurm_machine import free_port, until
from tests.conftest import ENVIRONMENT, Workplace
from tests.end_to_end.test_audit import tree_of
from tests.requirements import need_program


class RunningDask:
    """A scheduler and its workers, each as a user starts them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port, self.dashboard = free_port(), free_port()
        self.address = f"tls://127.0.0.1:{self.port}"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.tls = self._certificates()
        self._run(
            "scheduler", "--host", "tls://127.0.0.1", "--port", str(self.port),
            "--dashboard-address", f"127.0.0.1:{self.dashboard}",
        )  # fmt: skip
        until(lambda: self._ask("health") == b"ok", "the scheduler answers")

    def _certificates(self) -> dict[str, str]:
        openssl = need_program("openssl", package="openssl")
        key, certificate = str(self.folder / "key.pem"), str(self.folder / "certificate.pem")
        subprocess.run(
            [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test",
             "-keyout", key, "-out", certificate],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        return {"ca": certificate, "cert": certificate, "key": key}

    def _run(self, program: str, *words: str) -> None:
        tls = [
            "--tls-ca-file", self.tls["ca"], "--tls-cert", self.tls["cert"], "--tls-key", self.tls["key"],
        ]  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.dask_{program}", *tls, *words],
            env={**ENVIRONMENT, "STRATASCOPE_DEVICE": "cpu"},
            cwd=self.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self.processes.append(process)

    def _ask(self, page: str) -> bytes:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.dashboard}/{page}", timeout=5) as answer:
                return bytes(answer.read())
        except OSError:
            return b""

    def workers(self) -> int:
        return int(json.loads(self._ask("json/counts.json") or '{"workers": 0}')["workers"])

    def add_worker(self, *words: str) -> None:
        before = self.workers()
        self._run("worker", self.address, "--nthreads", "1", "--no-dashboard", *words)
        until(lambda: self.workers() > before, "one more worker has come")

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def dask_there(tmp_path: Path) -> Iterator[RunningDask]:
    folder = tmp_path / "dask"
    folder.mkdir()
    there = RunningDask(folder)
    yield there
    there.stop()


@pytest.mark.slow
def test_networks_run_where_the_card_is_and_everything_else_where_there_is_room(tmp_path, dask_there, audited):
    place = Workplace(tmp_path)
    cluster = {"kind": "address", "address": dask_there.address, "tls": dask_there.tls, "gpus_per_worker": 1}
    place.configure(cluster=cluster)
    for step in range(4):
        place.checkpoint(step)
    nobody = place.audit()
    assert nobody.code == 3
    assert f"the Dask scheduler at {dask_there.address} has no workers" in nobody.err
    dask_there.add_worker("--name", "without")
    poor = place.audit()
    assert poor.code == 3
    assert "asks for workers that offer the Dask resource 'GPU', and none of 1 does" in poor.err
    dask_there.add_worker("--name", "with", "--resources", "GPU=1")
    done = place.audit()
    assert done.code == 0, done.err
    assert tree_of(place.store) == tree_of(audited.store)
    manifests = Store.open(place.store).manifests()
    on_card = {item.recorded["pid"] for unit, item in manifests.items() if "device" in item.recorded}
    captures = [item for unit, item in manifests.items() if unit.analysis == "capture"]
    assert len(captures) == 4
    assert all("device" in item.recorded for item in captures)
    assert len(on_card) == 1


@pytest.mark.slow
def test_a_scheduler_that_is_not_there_is_named(tmp_path):
    place = Workplace(tmp_path)
    address = f"tcp://127.0.0.1:{free_port()}"
    place.configure(cluster={"kind": "address", "address": address})
    place.checkpoint(0)
    gone = place.audit()
    assert gone.code == 3
    assert f"no Dask scheduler answers at {address}" in gone.err
