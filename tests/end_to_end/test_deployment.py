"""The scheduled audit, for real: a server, a deployment, a worker, and a run that the clock starts."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[2]
PATIENCE = 240


@dataclass
class Installation:
    """A Prefect server with a home of its own, and whatever was started to go with it."""

    home: Path
    port: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
        return {
            **inherited,
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_WORKER_QUERY_SECONDS": "2",
        }

    def start(self, *words: str) -> None:
        """Start `prefect …` and leave it running."""
        log = open(self.home / f"{words[0]}.log", "wb")  # noqa: SIM115 - lives as long as the process
        command = [sys.executable, "-m", "prefect", *words]
        self.processes.append(
            subprocess.Popen(
                command, env=self.environment, cwd=self.home, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )
        )  # fmt: skip

    def prefect(self, *words: str, **more: str) -> str:
        """What `prefect --no-prompt …` prints."""
        done = subprocess.run(
            [sys.executable, "-m", "prefect", "--no-prompt", *words],
            env={**self.environment, **more}, cwd=self.home, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def ask(self, path: str, **body: Any) -> Any:
        """What the API answers to a POST. It may be too busy with its database, which Prefect's clients sit out too."""
        request = urllib.request.Request(
            f"{self.environment['PREFECT_API_URL']}/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        for _ in range(10):
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != 503:
                    raise
                time.sleep(1)
            except TimeoutError:
                continue
        return pytest.fail(f"{path}: the server is busy")

    def stratascope(self, *words: str) -> subprocess.CompletedProcess[str]:
        """How `stratascope …` ends here."""
        return subprocess.run(
            [sys.executable, "-m", "stratascope", *words],
            env=self.environment, cwd=self.home, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip

    def deployment(self, name: str) -> dict[str, Any]:
        """What the server knows of the deployment called `name`."""
        (found,) = self.ask("deployments/filter", deployments={"name": {"any_": [name]}})
        assert isinstance(found, dict)
        return found

    def begin(self, name: str, **parameters: Any) -> str:
        """Ask for a run of the deployment called `name`; returns the run's identifier."""
        place = f"deployments/{self.deployment(name)['id']}/create_flow_run"
        return str(self.ask(place, state={"type": "SCHEDULED"}, parameters=parameters)["id"])

    def ended(self, identifier: str) -> Any:
        """The run, once it has ended."""
        (run,) = self.ask("flow_runs/filter", flow_runs={"id": {"any_": [identifier]}})
        return run if run["end_time"] else None

    def audits(self) -> list[dict[str, Any]]:
        """The runs of the deployed flow that are no longer merely planned, oldest first."""
        runs = self.ask("flow_runs/filter", flows={"name": {"any_": ["audit"]}}, sort="EXPECTED_START_TIME_ASC")
        return [run for run in runs if run["state_type"] not in ("SCHEDULED", "PENDING")]

    def task_runs(self, flow_run: dict[str, Any]) -> dict[str, str]:
        """Name and state of every task below `flow_run`, those of the flows that it called included."""
        own = self.ask("task_runs/filter", flow_runs={"id": {"any_": [flow_run["id"]]}})
        inner = self.ask("flow_runs/filter", flow_runs={"parent_flow_run_id": {"any_": [flow_run["id"]]}})
        states = {run["name"]: run["state_type"] for run in own}
        for run in inner:
            states |= self.task_runs(run)
        return states

    def members(self) -> list[psutil.Process]:
        """Every process that descends from this installation: all of them carry its environment."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("PREFECT_HOME") == str(self.home):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def listening(self) -> set[str]:
        """The addresses that its processes listen on."""
        addresses = set()
        for process in self.members():
            try:
                connections = process.net_connections(kind="inet")
            except psutil.Error:
                continue
            addresses |= {entry.laddr.ip for entry in connections if entry.status == psutil.CONN_LISTEN}
        return addresses

    def stop(self) -> None:
        """End the worker, then the server; by force what does not go."""
        for process in reversed(self.processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def until(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of `condition`."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.5)
    return pytest.fail(f"{what}: not within {PATIENCE} s")


@pytest.fixture(scope="module")
def installation(tmp_path_factory) -> Iterator[Installation]:
    """A lasting server, as `prefect server start` makes it; `deploy` makes the work pool, and one worker serves it."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = Installation(home, port)
    try:
        made.start("server", "start", "--host", "127.0.0.1", "--port", str(port))

        def healthy() -> bool:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/health", timeout=2) as answer:
                    return answer.status == 200
            except OSError:
                return False

        until(healthy, "the server answers")
        yield made
    finally:
        made.stop()
        for process in made.members():
            process.kill()


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """An audit of a perceptron's three checkpoints on the digits that scikit-learn carries."""
    tmp_path = tmp_path_factory.mktemp("series")
    import torch
    from safetensors.torch import save_file
    from sklearn.datasets import load_digits

    from stratascope.tasks.models import mlp

    torch.manual_seed(0)
    network = mlp(64, [8], 10)
    images, classes = (torch.tensor(part) for part in load_digits(return_X_y=True))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for step in range(21):
        if step % 10 == 0:
            save_file(network.state_dict(), tmp_path / f"step-{step:04}.safetensors")
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images.float() / 16), classes).backward()
        optimizer.step()
    model = {"factory": "stratascope.tasks.models:mlp", "args": {"inputs": 64, "widths": [8], "outputs": 10}}
    settings = {
        "store": "store",
        "probes": {"test": {"dataset": "digits", "split": "test", "limit": 100}},
        "runs": [{"name": "mlp", "checkpoints": "step-*.safetensors", "model": model}],
        "analyses": {"outputs": {}},
        "cluster": {"kind": "local", "workers": 1},
    }
    (tmp_path / "audit.yaml").write_text(yaml.safe_dump(settings))
    impossible = {"name": "impossible", "metric": "accuracy", "min": 1.1, "severity": "fail"}
    (tmp_path / "strict.yaml").write_text(yaml.safe_dump({**settings, "checks": [impossible]}))
    # And a training, for the study.
    training = {
        "name": "mlp", "directory": "trained", "model": model, "batch_size": 256, "stop": {"steps": 2},
        "train": {"dataset": "digits", "split": "train", "role": "train"},
        "test": {"dataset": "digits", "split": "test"}, "checkpoints": {"log_spaced": 0, "steps": [1]},
    }  # fmt: skip
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(training))
    return tmp_path / "audit.yaml"


def test_deploy_registers_the_audit_once_however_often_it_is_called(installation: Installation, config: Path):
    first = installation.stratascope("deploy", str(config), "--cron", "0 4 * * *", "--json")
    assert first.returncode == 0, first.stderr
    told = json.loads(first.stdout)
    assert told["action"] == "created"
    assert told["deployment"] == "audit/audit"
    assert told["work_pool"] == {"name": "local-pool", "created": True}
    assert told["next_run"].endswith("T04:00:00+00:00")
    again = installation.stratascope("deploy", str(config), "--watch", "--timezone", "Europe/Berlin")
    assert again.returncode == 0, again.stderr
    assert "updated: deployment audit/audit" in again.stdout
    address = installation.environment["PREFECT_API_URL"]
    assert f"PREFECT_API_URL={address} prefect worker start --pool local-pool" in again.stdout
    known = installation.deployment("audit")
    schedules = [(entry["schedule"]["cron"], entry["schedule"]["timezone"]) for entry in known["schedules"]]
    assert schedules == [("*/5 * * * *", "Europe/Berlin")]
    assert known["parameters"] == {"config": str(config), "overrides": ["watch=true"]}
    assert known["entrypoint"] == "stratascope.flows.audit:audit"
    assert known["pull_steps"] == []
    assert known["concurrency_options"]["collision_strategy"] == "CANCEL_NEW"
    assert known["global_concurrency_limit"]["limit"] == 1
    # A file of the same name elsewhere does not take its place unasked.
    other = config.parent / "other" / "audit.yaml"
    other.parent.mkdir()
    other.write_text(config.read_text().replace("step-*", "../step-*"))
    refused = installation.stratascope("deploy", str(other))
    assert (refused.returncode, "--name" in refused.stderr) == (2, True), refused.stderr
    assert installation.stratascope("deploy", str(config), "--remove").returncode == 0
    assert installation.ask("deployments/filter") == []
    assert installation.stratascope("deploy", str(config), "--remove").returncode == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_schedule_starts_an_audit_that_a_worker_does(installation: Installation, config: Path):
    import pandas

    registered = installation.stratascope(
        "deploy", str(config), "--cron", "* * * * *", "--watch", "--set", "settle=0"
    )
    assert registered.returncode == 0, registered.stderr
    installation.prefect(
        "deploy",
        "--all",
        "--prefect-file",
        str(ROOT / "prefect.yaml"),
        STRATASCOPE_CONFIG=str(config),
        STRATASCOPE_TRAIN=str(config.parent / "train.yaml"),
    )
    deployment = installation.deployment("audit")
    nightly = installation.deployment("nightly")
    assert nightly["entrypoint"] == "stratascope.flows.audit:audit"
    assert nightly["parameters"] == {"config": str(config)}
    installation.start("worker", "start", "--pool", "local-pool", "--name", "one")

    # The clock starts a run. One that is asked for meanwhile is turned away; the work goes on undisturbed.
    running = until(lambda: [run for run in installation.audits() if run["state_type"] == "RUNNING"], "a run")[0]
    second = installation.ask(f"deployments/{deployment['id']}/create_flow_run", state={"type": "SCHEDULED"})
    addresses: set[str] = set()

    def finished(wanted: str) -> Any:
        addresses.update(installation.listening())
        return next((run for run in installation.audits() if run["id"] == wanted and run["end_time"]), None)

    refused = until(lambda: finished(second["id"]), "the second run is over")
    done = until(lambda: finished(running["id"]), "the scheduled run is over")
    assert (done["state_type"], done["auto_scheduled"]) == ("COMPLETED", True)
    assert done["state"]["message"].startswith("verdict pass")
    assert refused["state_type"] == "CANCELLED"
    assert not refused["auto_scheduled"]

    # What the run left behind, read without this package.
    store = config.parent / "store"
    ledger = pandas.read_parquet(store / "ledger")
    assert set(ledger[ledger.metric == "accuracy"].step) == {0, 10, 20}
    assert list((store / "manifests").rglob("*.json"))
    assert (store / "report" / "index.html").exists()

    # Each piece of work was a named task, and Prefect knows that it is done.
    wanted = {f"{work}-mlp-{step}" for work in ("capture", "outputs") for step in (0, 10, 20)} | {
        "page-index.html"
    }
    tasks = until(
        lambda: (
            (found := installation.task_runs(done)).keys() >= wanted
            and set(found.values()) == {"COMPLETED"}
            and found
        ),
        "all task runs are filed as completed",
    )
    assert sum(name.startswith("page-") for name in tasks) > 1

    # A check that fails makes a failed run, whose state tells why.
    installation.prefect("deployment", "schedule", "pause", "--all")
    until(lambda: all(run["end_time"] for run in installation.audits()), "no run is at work")
    strict = installation.begin("nightly", config=str(config.parent / "strict.yaml"))
    failed = until(lambda: finished(strict), "the strict audit is over")
    assert failed["state_type"] == "FAILED"
    assert failed["state"]["message"].startswith("verdict fail")

    # The other deployments do what they are for: each runs once.
    wanted_runs: dict[str, dict[str, Any]] = {
        "backfill": {"overrides": ["store=backfilled", "analyses={outputs: {}}"], "first": 2},
        "weekly": {"overrides": ["store=studied", "runs.0.checkpoints=trained", "analyses={outputs: {}}"]},
    }
    ended = {}
    for name, parameters in wanted_runs.items():
        begun = installation.begin(name, **parameters)
        ended[name] = until(lambda run=begun: installation.ended(run), f"{name} is over")
    for name, run in ended.items():
        assert run["state_type"] == "COMPLETED", (name, run["state"]["message"])
    backfilled = [
        json.loads(path.read_bytes()) for path in sorted((config.parent / "backfilled/audits").iterdir())
    ]
    assert [[item["step"] for item in record["checkpoints"]] for record in backfilled] == [[0, 20], [0, 10, 20]]
    assert [record["units"]["cached"] for record in backfilled][-1] >= 2 * 2
    studied = pandas.read_parquet(config.parent / "studied" / "ledger")
    assert sorted(set(studied[studied.metric == "accuracy"].step)) == [0, 1, 2]
    assert (config.parent / "trained" / "trace.parquet").exists()

    assert addresses == {"127.0.0.1"}
    # Between runs there is the server and the worker; afterwards there is nothing.
    until(lambda: len(installation.members()) == 2, "the runs' processes are gone")
    installation.stop()
    assert not [process.cmdline() for process in installation.members()]
