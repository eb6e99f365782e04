"""A Prefect server for as long as one command needs it."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from stratascope.errors import ClusterError

_START_SECONDS = 120
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def quiet_environment() -> None:
    """Set, before Prefect is imported, what keeps it quiet and on this machine."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_TO_API_ENABLED", "false")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("PREFECT_CLI_WRAP_LINES", "false")


def _die_with_parent() -> None:
    ctypes.CDLL("libc.so.6", use_errno=True).prctl(_DIE_WITH_PARENT, signal.SIGTERM)


@contextmanager
def prefect_server() -> Iterator[str]:
    """The address of a Prefect API: the configured one, or that of a server that lives as long as this block.

    Raises ClusterError where the server does not answer in time.
    """
    quiet_environment()
    if os.environ.get("PREFECT_API_URL"):
        yield os.environ["PREFECT_API_URL"]
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = Path(tempfile.mkdtemp(prefix="stratascope-prefect-"))
    address = f"http://127.0.0.1:{port}/api"
    os.environ["PREFECT_HOME"], os.environ["PREFECT_API_URL"] = str(home), address
    log = open(home / "server.log", "wb")  # noqa: SIM115 - lives as long as the server
    server = subprocess.Popen(
        [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        preexec_fn=_die_with_parent,
        start_new_session=True,
    )
    try:
        _wait_until_healthy(server, address, home / "server.log")
        yield address
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(8)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        log.close()
        os.environ.pop("PREFECT_API_URL", None)
        shutil.rmtree(home, ignore_errors=True)


def _wait_until_healthy(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if server.poll() is not None:
            break
        with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.2)
    tail = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
    raise ClusterError(
        f"the local Prefect server did not start ({tail[0]}). Run `stratascope doctor`, or set PREFECT_API_URL."
    )
