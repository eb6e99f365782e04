"""Whole audits of checkpoints, probe and store behind URLs: the bytes of a local audit, whatever goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stratascope.flows.result import outcome_without_work
from stratascope.storage.objects import open_folder
from stratascope.storage.store import Store
from stratascope.storage.verification import verify
from stratascope.tasks import units
from stratascope.tasks.report.build import zip_report
from tests.conftest import Workplace, stratascope
from tests.object_stores.auditing import audit_here
from tests.object_stores.faulty_proxy import FaultyProxy

HERE = Path(__file__).parent
MODEL = {"factory": "stratascope.tasks.models:mlp", "args": {"inputs": 64, "widths": [12]}}
ANALYSES = {"outputs": {}, "statistics": {}}


def stored(place: str | Path) -> dict[str, bytes]:
    """Bytes of archive and ledger, by name below the store."""
    if isinstance(place, Path):
        files = [
            path for part in ("archive.zarr", "ledger") for path in (place / part).rglob("*") if path.is_file()
        ]
        return {path.relative_to(place).as_posix(): path.read_bytes() for path in files}
    objects = open_folder(place)
    return {name: objects.read(name)[0] for part in ("archive.zarr", "ledger") for name in objects.list(part)}


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Workplace:
    """A series with its probe in files, audited into a folder."""
    place = Workplace(tmp_path_factory.mktemp("local"))
    for step in range(3):
        place.checkpoint(step)
    inputs = np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32)
    np.savez(place.folder / "probe.npz", inputs=inputs, targets=np.arange(40) % 10)
    run = {"name": "small", "checkpoints": "runs/step-*.safetensors", "model": MODEL}
    place.configure(runs=[run], probe={"dataset": "npz", "args": {"path": "probe.npz"}}, analyses=ANALYSES)
    assert audit_here(place.config, draws=True).exit_code == 0
    return place


@pytest.fixture
def remote(local, bucket, tmp_path, monkeypatch) -> Workplace:
    """The same, with everything behind URLs."""
    for path in (local.folder / "runs").iterdir():
        bucket.upload(path, f"runs/{path.name}")
    bucket.upload(local.folder / "probe.npz", "probe.npz")
    place = Workplace(tmp_path)
    run = {"name": "small", "checkpoints": "s3://${BUCKET}/runs/step-*.safetensors", "model": MODEL}
    probe = {"dataset": "npz", "args": {"path": f"{bucket.url}/probe.npz"}}
    place.configure(store=f"{bucket.url}/audits/one", runs=[run], probe=probe, analyses=ANALYSES)
    monkeypatch.setenv("BUCKET", bucket.url.removeprefix("s3://"))
    return place


def told() -> dict[str, str]:
    """What a command must be told of this process's environment."""
    names = ("AWS_", "STRATASCOPE_", "BUCKET")
    return {name: value for name, value in os.environ.items() if name.startswith(names)}


def start(place: Workplace, cache: str, **environment: str) -> subprocess.Popen[str]:
    """An audit in a process of its own, on a machine of its own as far as its copies go."""
    variables = {**os.environ, "STRATASCOPE_CACHE": str(place.folder / cache), "PYTHONPATH": str(HERE.parents[1]), **environment}  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "tests.object_stores.auditing", str(place.config)],
        env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def test_the_command_audits_behind_urls_and_does_nothing_twice(local, remote, bucket, tmp_path):
    url = f"{bucket.url}/audits/one"
    done = remote.audit(**told())
    assert done.code == 0, done.err
    assert done.json["store"] == url
    assert done.json["report"] == f"{url}/report/index.html"
    assert stored(url) == stored(local.store)
    assert stratascope("verify", url, **told()).code == 0
    pages = {name for name in open_folder(url).list("report") if name.endswith(".html")}
    assert pages == {path.relative_to(local.store).as_posix() for path in (local.store / "report").rglob("*.html")}
    assert zip_report(url, tmp_path / "report.zip").stat().st_size > 100_000

    objects, inputs = open_folder(url), open_folder(bucket.url)
    objects.requests.clear()
    inputs.requests.clear()
    result = outcome_without_work(remote.config)
    assert result is not None
    assert result.units == {"computed": 0, "cached": sum(done.json["units"].values()), "failed": 0}
    # The archive's root, one listing (all objects fit one page), and the record of this audit, which is written after
    # a look at the latest one, under a claim.
    assert objects.requests == {"get": 2, "list": 2, "put": 2, "head": 1, "delete": 1}
    assert inputs.requests == {"list": 2, "head": 1}, "checkpoints and probe"


def test_of_two_audits_at_once_one_is_killed_and_the_other_ends_as_if_alone(local, remote, bucket):
    url = f"{bucket.url}/audits/one"
    first, second = (start(remote, cache, STRATASCOPE_CLAIM_SECONDS="2") for cache in ("a", "b"))
    try:
        deadline = time.monotonic() + 300
        while len([name for name in open_folder(url).list("manifests") if "_files" not in name]) < 4:
            assert time.monotonic() < deadline, "nothing is committed"
            assert first.poll() is None or second.poll() is None, (first.communicate(), second.communicate())
            time.sleep(0.05)
        os.killpg(first.pid, signal.SIGKILL)
        output, _ = second.communicate(timeout=300)
    finally:
        for process in (first, second):
            process.kill()
            process.wait(30)
    assert second.returncode == 0, output
    assert stored(url) == stored(local.store)
    assert verify(Store.open(url)) == []


@pytest.mark.slow
def test_the_same_bytes_through_a_network_that_fails(local, remote, bucket, monkeypatch):
    monkeypatch.setenv("STRATASCOPE_OBJECT_TIMEOUT", "2")
    with FaultyProxy(bucket.endpoint, share=0.05, seed=3, stall=2.5) as proxy, monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.url)
        result = audit_here(remote.config, draws=True)
    assert result.exit_code == 0, result.failures
    assert stored(f"{bucket.url}/audits/one") == stored(local.store)
    assert verify(Store.open(f"{bucket.url}/audits/one")) == []
    assert len(set(proxy.counts) - {"requests"}) >= 5, proxy.counts
    assert sum(proxy.counts.values()) - proxy.counts["requests"] >= 10, proxy.counts


def test_a_network_that_stays_away_ends_with_a_clear_error_and_a_whole_store(remote, bucket, monkeypatch):
    monkeypatch.setenv("STRATASCOPE_OBJECT_TIMEOUT", "2")
    monkeypatch.setenv("STRATASCOPE_OBJECT_RETRIES", "1")
    with FaultyProxy(bucket.endpoint, share=0) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        proxy.always = "unavailable"
        ran = remote.audit(**told())
        assert ran.code == 2, "before any work"
        assert f"{bucket.url}/audits/one" in ran.err
        assert "does not answer as it should" in ran.err
        assert "Traceback" not in ran.err
        proxy.always = None
        whole = units.compute_unit

        def compute(item):
            proxy.always = "reset" if item.unit.step == 1 else None
            outcome = whole(item)
            proxy.always = None
            return outcome

        with monkeypatch.context() as patch:
            patch.setattr(units, "compute_unit", compute)
            result = audit_here(remote.config)
        assert result.exit_code == 3
        assert result.units["failed"] >= 3
        assert result.units["computed"] >= 3
        known = ("does not answer as it should", "could not be captured")
        assert all(any(text in failure for text in known) for failure in result.failures)
        assert verify(Store.open(f"{bucket.url}/audits/one")) == []
        assert audit_here(remote.config).exit_code == 0
