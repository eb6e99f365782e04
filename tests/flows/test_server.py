"""The server that lives as long as one command: it serves, it keeps to this machine, and nothing of it stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from stratascope.flows.server import copy_kept_database, keep_database

# Every Python process of a command writes down here whom it talks to: the command, the server and the workers.
WATCH = """
import os, sys

def note(event, arguments):
    if event in ("socket.connect", "socket.bind") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    elif event == "socket.getaddrinfo":
        host = arguments[0]
    else:
        return
    with open(os.environ["WATCHED"], "a") as stream:
        stream.write(f"{event} {host.decode() if isinstance(host, bytes) else host}\\n")

sys.addaudithook(note)
"""
WORK = """
import time

def double(number):
    return 2 * number

def rest(seconds):
    time.sleep(seconds)

def doubled(count):
    from prefect import Task
    from prefect.cache_policies import NO_CACHE

    task = Task(double, name="double", task_run_name="double-{number}", cache_policy=NO_CACHE)
    return [future.result() for future in [task.submit(number) for number in range(count)]]

def resting():
    from prefect import Task
    from prefect.cache_policies import NO_CACHE

    future = Task(rest, name="rest", cache_policy=NO_CACHE).submit(600)
    print("resting", flush=True)
    future.result()
"""
START = """
import json
import os

import work
from stratascope.flows.server import prefect_server

def records(address):
    import time
    import urllib.request

    request = urllib.request.Request(address + "/task_runs/filter", b"{}", {"Content-Type": "application/json"})
    for _ in range(100):  # the server files what it is told a little later
        with urllib.request.urlopen(request) as answer:
            runs = {run["name"]: run["state_type"] for run in json.load(answer)}
        if len(runs) == 3 and set(runs.values()) == {"COMPLETED"}:
            break
        time.sleep(0.2)
    return runs

if __name__ == "__main__":
    before = dict(os.environ)
"""
SERVE = (
    START
    + """
    with prefect_server() as address:
        from prefect import flow
        from stratascope.flows.cluster import task_runner
        from stratascope.flows.cluster_spec import LocalWorkers

        runner = task_runner(LocalWorkers(workers=1))
        values = flow(work.doubled, name="doubling", task_runner=runner)(3)
        runs = records(address)
    changed = sorted(name for name in before | os.environ if before.get(name) != os.environ.get(name))
    print(json.dumps({"address": address, "values": values, "runs": runs, "changed": changed}))
"""
)
REST = (
    START
    + """
    with prefect_server(own=True):
        from prefect import flow
        from stratascope.flows.cluster import task_runner
        from stratascope.flows.cluster_spec import LocalWorkers

        flow(work.resting, name="resting", task_runner=task_runner(LocalWorkers(workers=1)))()
"""
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    """One cache for all tests here, so that Prefect's migrations run once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def place(tmp_path: Path, cache: Path) -> Iterator[Path]:
    """A folder with the scripts; whatever still runs in its name afterwards is killed."""
    for name, text in {"work": WORK, "serve": SERVE, "rest": REST, "sitecustomize": WATCH}.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "temporary").mkdir()
    yield tmp_path
    for process in processes_of(tmp_path):
        process.kill()


def environment(place: Path, cache: Path, **more: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    paths = os.pathsep.join(filter(None, (str(place), os.environ.get("PYTHONPATH"))))
    own = {
        "HOME": str(place),
        "TMPDIR": str(place / "temporary"),
        "XDG_CACHE_HOME": str(cache),
        "PYTHONPATH": paths,
        "WATCHED": str(place / "watched.txt"),
    }
    return {**inherited, **own, **more}


def processes_of(place: Path) -> list[psutil.Process]:
    """All processes that descend from a command in `place`: they carry its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("WATCHED") == str(place / "watched.txt"):
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_flow_and_workers_use_a_server_that_keeps_to_this_machine_and_leaves_nothing(place: Path, cache: Path):
    # All of this must not matter: a proxy, a database of others, a broken database from an earlier time.
    foreign = place / "foreign.db"
    (place / "prefect.toml").write_text(f'[server.database]\nconnection_url = "sqlite+aiosqlite:///{foreign}"\n')
    kept = cache / "stratascope" / "prefect"
    kept.mkdir(parents=True)
    broken = kept / f"{metadata.version('prefect')}-{'0' * 32}.db"
    broken.write_bytes(b"SQLite format 3\0 and no more")
    done = subprocess.run(
        [sys.executable, "serve.py"],
        cwd=place,
        env=environment(
            place, cache, HTTP_PROXY="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9",
            PREFECT_API_DATABASE_CONNECTION_URL=f"sqlite+aiosqlite:///{foreign}",
        ),
        capture_output=True,
        text=True,
        timeout=300,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["values"] == [0, 2, 4]
    assert told["runs"] == {f"double-{number}": "COMPLETED" for number in range(3)}
    assert told["address"].startswith("http://127.0.0.1:")

    watched = {tuple(line.split(" ", 1)) for line in (place / "watched.txt").read_text().splitlines()}
    assert {"socket.connect", "socket.bind"} <= {event for event, _ in watched}
    assert {host for _, host in watched} <= {"127.0.0.1", "localhost", "::1"}

    assert not foreign.exists()
    assert not broken.exists()
    assert len(list(kept.glob("*.db"))) == 1
    assert not processes_of(place)
    assert not list((place / "temporary").glob("stratascope-prefect-*"))
    ours = [name for name in told["changed"] if name.startswith(("PREFECT", "STRATASCOPE", "NO_", "no_"))]
    assert not ours, "the environment is as before"


def test_server_and_workers_end_with_a_command_that_is_killed(place: Path, cache: Path):
    command = subprocess.Popen(
        [sys.executable, "rest.py"],
        cwd=place,
        env=environment(place, cache, PREFECT_API_URL="http://127.0.0.1:9/api"),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert command.stdout is not None
    assert command.stdout.readline() == "resting\n"
    started = processes_of(place)
    assert any("stratascope.flows.server" in process.cmdline() for process in started)
    assert len(started) >= 3, "the command, its server and a worker"
    command.kill()
    command.wait()
    until = time.monotonic() + 10
    while processes_of(place) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [process.cmdline() for process in processes_of(place)]
    assert not list((place / "temporary").glob("stratascope-prefect-*"))


@pytest.mark.parametrize("where", ["environment", "profile"])
def test_a_configured_api_that_does_not_answer_is_named(where: str, place: Path, cache: Path):
    address = "http://127.0.0.1:9/api"
    more = {"PREFECT_API_URL": address}
    if where == "profile":
        profiles = place / ".prefect" / "profiles.toml"
        profiles.parent.mkdir()
        profiles.write_text(f'active = "mine"\n[profiles.mine]\nPREFECT_API_URL = "{address}"\n')
        more = {}
    done = subprocess.run(
        [sys.executable, "serve.py"],
        cwd=place,
        env=environment(place, cache, **more),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        f"stratascope.errors.ClusterError: the configured Prefect API {address} does not answer"
    )
    assert not processes_of(place)


def sqlite_file(path: Path) -> Path:
    import sqlite3

    connection = sqlite3.connect(path)
    connection.executescript("create table runs (name text); insert into runs values ('one');")
    connection.close()
    return path


def test_a_kept_database_is_copied_whole(tmp_path: Path):
    keep_database(sqlite_file(tmp_path / "made.db"), tmp_path / "kept")
    assert copy_kept_database(tmp_path / "kept", tmp_path / "copy.db")
    import sqlite3

    connection = sqlite3.connect(tmp_path / "copy.db")
    assert connection.execute("select name from runs").fetchall() == [("one",)]
    connection.close()


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty"])
def test_a_damaged_kept_database_is_not_used_and_goes(damage: str, tmp_path: Path):
    keep_database(sqlite_file(tmp_path / "made.db"), tmp_path / "kept")
    (path,) = (tmp_path / "kept").iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"flipped": bytes(content), "truncated": bytes(content[:-1]), "empty": b""}[damage])
    assert not copy_kept_database(tmp_path / "kept", tmp_path / "copy.db")
    assert not path.exists()
    assert not (tmp_path / "copy.db").exists()


def test_a_database_of_another_version_of_prefect_is_neither_used_nor_removed(tmp_path: Path):
    keep_database(sqlite_file(tmp_path / "made.db"), tmp_path / "kept")
    (path,) = (tmp_path / "kept").iterdir()
    other = path.rename(path.with_name(path.name.replace(metadata.version("prefect"), "2.0.0")))
    assert not copy_kept_database(tmp_path / "kept", tmp_path / "copy.db")
    assert other.exists()
