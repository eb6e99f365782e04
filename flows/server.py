"""A Prefect server for as long as one command needs it.

The command starts this module as a process of its own, so that the server can watch for the command's death.
"""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from importlib import metadata
from pathlib import Path

from stratascope.errors import ClusterError

_START_SECONDS = 120
_RESTARTS = 5
"""So often a server that dies is replaced; one that dies more often has a reason that will not pass."""
_QUIET = {
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "PREFECT_CLI_WRAP_LINES": "false",
}
# What a server that lives for one command does not need; its user interface, which nobody could open in time, too.
_NEEDLESS = (
    "UI",
    "SERVICES_CANCELLATION_CLEANUP",
    "SERVICES_CLEANUP_RECONCILER",
    "SERVICES_EVENT_PERSISTER",
    "SERVICES_FOREMAN",
    "SERVICES_LATE_RUNS",
    "SERVICES_PAUSE_EXPIRATIONS",
    "SERVICES_REPOSSESSOR",
    "SERVICES_SCHEDULER",
    "SERVICES_TRIGGERS",
)


@contextmanager
def prefect_server(own: bool = False) -> Iterator[str]:
    """The address of a Prefect API: the configured one, or that of a server that lives as long as this block.

    What is configured is for Prefect to say (environment, profile, `prefect.toml`); `own` passes it over. Enter this
    before Prefect is imported elsewhere: some of the settings count at its import only.

    Raises ClusterError where the server does not answer.
    """
    quiet = {name: value for name, value in _QUIET.items() if name not in os.environ}
    with _environment(quiet):
        configured = None if own else _configured_address()
        if configured:
            _expect_answer(configured)
            yield configured
            return
        home = Path(tempfile.mkdtemp(prefix="stratascope-prefect-"))
        try:
            with _server_process(home) as address, _environment(_client_environment(address, home)):
                yield address
        finally:
            shutil.rmtree(home, ignore_errors=True)


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables and have Prefect read them; afterwards put them back.

    Prefect is not told of the end: a thread of its own that ends late would otherwise start a server to report to.
    """
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Failed to create the Prefect home")
        from prefect.context import refresh_global_settings_context

        refresh_global_settings_context()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _configured_address() -> str | None:
    from prefect.settings import get_current_settings

    return get_current_settings().api.url


def _expect_answer(address: str) -> None:
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
    if problem is not None:
        raise ClusterError(
            f"the configured Prefect API {address} does not answer ({problem}). Start it, or unset PREFECT_API_URL "
            "(in a profile: `prefect config unset PREFECT_API_URL`), and a server of its own is used."
        )


def _client_environment(address: str, home: Path) -> dict[str, str]:
    """What this process and its workers need in order to talk to the server at `address`, and to no other."""
    from stratascope.flows.artifacts import TEMPORARY

    around_proxies = ",".join(
        filter(None, (os.environ.get("no_proxy") or os.environ.get("NO_PROXY"), "127.0.0.1"))
    )
    return {
        TEMPORARY: "1",
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": address,
        "PREFECT_API_SSL_CERT_FILE": str(_one_certificate(home)),
        "NO_PROXY": around_proxies,
        "no_proxy": around_proxies,
    }


def _one_certificate(home: Path) -> Path:
    """A file with a single certificate.

    Prefect's client loads all trusted certificates anew, twice for each task, even where it speaks plain HTTP: half
    of what a task costs. The file is no root of trust, since the server of this block is plain HTTP on loopback.
    """
    import certifi

    end = "-----END CERTIFICATE-----\n"
    first, _, _ = Path(certifi.where()).read_text(encoding="utf-8").partition(end)
    path = home / "certificate.pem"
    path.write_text(first + end, encoding="utf-8")
    return path


@contextmanager
def _server_process(home: Path) -> Iterator[str]:
    """The address of a server whose files lie in `home`; it is up on entry and gone on exit."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/api"
        server = _Server(home, listener)
        try:
            # Meanwhile load what the flow will need: on two cores that costs no time.
            import stratascope.flows.audit  # noqa: F401

            _wait_until_healthy(server.process, address, home / "server.log")
            server.keep_alive()
            yield address
        finally:
            server.stop()


class _Server:
    """A server in a process of its own. Should it die, another takes its place on the same socket and database.

    The socket stays open here, so that whoever calls meanwhile waits a few seconds instead of being refused.
    """

    def __init__(self, home: Path, listener: socket.socket) -> None:
        self._home, self._listener = home, listener
        self._stopped = threading.Event()
        self._changing = threading.Lock()
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with open(self._home / "server.log", "ab") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", __name__, str(self._listener.fileno()), str(os.getpid()), str(self._home)],
                env=_server_environment(self._home),
                pass_fds=[self._listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip

    def keep_alive(self) -> None:
        """From now on replace a process that dies, a few times."""
        threading.Thread(target=self._replace, daemon=True).start()

    def _replace(self) -> None:
        for _ in range(_RESTARTS):
            self.process.wait()
            with self._changing:
                if self._stopped.is_set():
                    return
                self.process = self._start()

    def stop(self) -> None:
        """End the process. Nothing of it is kept, so nothing is waited for."""
        with self._changing:
            self._stopped.set()
        self.process.kill()
        self.process.wait()


def _server_environment(home: Path) -> dict[str, str]:
    """None of the user's Prefect settings, or the server might write into a database that others use."""
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("PREFECT")}
    return {
        **inherited,
        **_QUIET,
        **{f"PREFECT_SERVER_{name}_ENABLED": "false" for name in _NEEDLESS},
        "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
        "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{_database(home)}",
        "PREFECT_HOME": str(home),
    }


def _wait_until_healthy(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        with suppress(OSError), direct.open(f"{address}/health", timeout=2) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    tail = log.read_text(errors="replace").strip().splitlines()[-1:] or ["no output"]
    raise ClusterError(
        f"the local Prefect server did not start ({tail[0]}). Run `stratascope doctor`, or set PREFECT_API_URL."
    )


def _database(home: Path) -> Path:
    return home / "prefect.db"


def _serve(listener: int, parent: int, home: Path) -> None:
    """Be the server, on the socket with file descriptor `listener`, until it is killed or `parent` dies."""
    threading.Thread(target=_end_with, args=(parent, home), daemon=True).start()
    # Settings files of the folder where the command was typed are not for this server.
    os.chdir(home)
    _prepare_database(home)
    # Nothing of what is loaded here is garbage later: to look for some takes a fifth of the start.
    gc.disable()
    import uvicorn
    from prefect.server.api.server import create_app

    config = uvicorn.Config(create_app(final=True), log_level="warning")
    gc.freeze()
    gc.enable()
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=listener)])


def _end_with(parent: int, home: Path) -> None:
    """End this process, and remove its files, once `parent` is no longer its parent."""
    while os.getppid() == parent:
        time.sleep(0.5)
    shutil.rmtree(home, ignore_errors=True)
    os._exit(1)


def _prepare_database(home: Path) -> None:
    """A database with Prefect's tables: a copy of the one that is kept from an earlier time, or a new one.

    The copy spares all migrations, which take longer than the rest of the start.
    """
    import pooch

    if _database(home).exists():  # of the server before this one
        return
    kept = Path(pooch.os_cache("stratascope")) / "prefect"
    if copy_kept_database(kept, _database(home)):
        return
    from prefect.server.database import provide_database_interface

    asyncio.run(provide_database_interface().create_db())
    with suppress(OSError, sqlite3.Error):
        keep_database(_database(home), kept)


def copy_kept_database(kept: Path, database: Path) -> bool:
    """Copy the database that is kept for this version of Prefect, if there is one that is whole."""
    from stratascope.storage.digests import file_checksum

    for path in sorted(kept.glob(f"{metadata.version('prefect')}-*.db")):
        with suppress(OSError):
            shutil.copyfile(path, database)
            if file_checksum(database) == path.stem.rpartition("-")[2]:
                return True
            path.unlink()
    database.unlink(missing_ok=True)
    return False


def keep_database(database: Path, kept: Path) -> None:
    """Keep a copy of `database`, named by its checksum; it holds tables and nothing of any run."""
    from stratascope.storage.digests import file_checksum

    kept.mkdir(parents=True, exist_ok=True)
    temporary = kept / f"writing-{os.getpid()}"
    try:
        with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(temporary)) as copy:
            source.backup(copy)
        os.replace(temporary, kept / f"{metadata.version('prefect')}-{file_checksum(temporary)}.db")
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
