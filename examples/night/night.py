"""A night of audits in a few minutes: a training writes checkpoints while a schedule audits them, and things go wrong.

    python examples/night/night.py [FOLDER]

A Prefect server, a worker and `stratascope deploy` with a cron of every minute, all on loopback and all gone at the end. In
the course of the training somebody cuts a checkpoint short, copies one under a later name, and one explodes. A small
web server stands for the people on call. What remains is the store: its history and its report are printed.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PATIENCE = 1200
QUIET_AUDITS = 1
"""The night is over once so many audits in a row found nothing new."""


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", flush=True)


class OnCall(BaseHTTPRequestHandler):
    """The people who are told."""

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        say(f"on call: {message.get('text', message)}".splitlines()[0])
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing of each request."""


def free_port() -> int:
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        return int(chosen.getsockname()[1])


@contextmanager
def running(words: list[str], log: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process for as long as the block lasts."""
    with open(log, "wb") as stream:
        process = subprocess.Popen(words, env=environment, stdout=stream, stderr=stream, start_new_session=True)
    try:
        yield process
    finally:
        for end in (process.terminate, process.terminate, process.kill):
            end()
            try:
                process.wait(10)
                break
            except subprocess.TimeoutExpired:
                continue


def await_server(address: str) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                return
        except OSError:
            time.sleep(0.5)
    raise RuntimeError("the Prefect server did not start")


def sabotage(runs: Path, training: subprocess.Popen[bytes]) -> None:
    """Three things that go wrong in the course of a training, each between two honest checkpoints."""
    import torch
    from safetensors.torch import load_file, save_file

    def newest(count: int) -> Path | None:
        while True:
            found = sorted(runs.glob("step-*[02468].safetensors"))
            if len(found) >= count:
                time.sleep(1)  # let it be written
                return found[count - 1]
            if training.poll() is not None:
                return found[-1] if found else None
            time.sleep(0.3)

    def beside(path: Path) -> Path:
        step = int(path.stem.partition("-")[2]) + 1
        return path.with_name(f"step-{step:09d}.safetensors")

    if cut := newest(6):
        beside(cut).write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
        say(f"{beside(cut).name} was cut short")
    if copied := newest(8):
        shutil.copyfile(copied, beside(copied))
        say(f"{beside(copied).name} is a copy of {copied.name}")
    if exploded := newest(10):
        tensors = {
            name: value * 300 if value.is_floating_point() else value
            for name, value in load_file(exploded).items()
        }
        first = next(iter(tensors))
        tensors[first].view(-1)[0] = torch.inf
        save_file(tensors, beside(exploded))
        say(f"{beside(exploded).name} has exploded")


def stratascope(*words: str | Path, environment: dict[str, str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "stratascope", *map(str, words)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout


def watch(folder: Path, training: subprocess.Popen[bytes], environment: dict[str, str]) -> None:
    """Say what each audit brought, until the training is over and an audit has found nothing new."""
    told = quiet = 0
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        time.sleep(3)
        if not (folder / "store" / "audits").exists():
            continue
        past = json.loads(stratascope("history", "store", "--json", environment=environment, folder=folder))[
            "audits"
        ]
        for audit in past[told:]:
            say(f"audit: verdict {audit['verdict']}, new: {len(audit['new'])}")
            quiet = quiet + 1 if training.poll() is not None and not audit["new"] else 0
        told = len(past)
        if quiet >= QUIET_AUDITS:
            return
    raise RuntimeError("the night did not end")


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "night").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train.yaml", "audit.yaml"):
        shutil.copyfile(HERE / name, folder / name)
    on_call = ThreadingHTTPServer(("127.0.0.1", 0), OnCall)
    threading.Thread(target=on_call.serve_forever, daemon=True).start()
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")} | {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "DO_NOT_TRACK": "1",
        "NIGHT_WEBHOOK": f"http://127.0.0.1:{on_call.server_port}/",
    }
    prefect = [sys.executable, "-m", "prefect"]
    with running([*prefect, "server", "start", "--port", str(port)], folder / "server.log", environment):
        await_server(environment["PREFECT_API_URL"])
        say("deploy: an audit every minute")
        stratascope("deploy", "audit.yaml", "--watch", "--cron", "* * * * *", "--name", "night", environment=environment, folder=folder)  # fmt: skip
        train = [sys.executable, "-m", "stratascope", "train", str(folder / "train.yaml")]
        worker = [*prefect, "worker", "start", "--pool", "local-pool"]
        with (
            running(worker, folder / "worker.log", environment),
            running(train, folder / "train.log", environment) as training,
        ):
            say("the training begins")
            threading.Thread(target=sabotage, args=(folder / "runs" / "night", training), daemon=True).start()
            watch(folder, training, environment)
    on_call.shutdown()
    print(stratascope("history", "store", environment=environment, folder=folder))
    print(f"report: {folder / 'store' / 'report' / 'index.html'}")


if __name__ == "__main__":
    main()
