"""Workers as processes on machines that can be logged in to by ssh."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import sys
from collections import deque
from contextlib import suppress
from typing import Any

import asyncssh
import dask
from distributed import Scheduler, SpecCluster
from distributed.deploy.spec import ProcessInterface

from stratascope.flows.cluster_spec import GPU, LOOPBACK, SshWorkers, is_loopback
from stratascope.flows.worker_environment import environment_of, export_lines

_END_SECONDS = 10
_DEATH_SECONDS = 60
"""A worker that finds no scheduler for so long ends by itself."""
_SCRIPT = """{
exec 3<&0
%(exports)s
%(command)s </dev/null 3<&- &
worker=$!
(
  while read -r line; do :; done
  kill -TERM $worker
  sleep 5
  kill -KILL $worker
) <&3 >/dev/null 2>&1 &
watcher=$!
wait $worker
status=$?
kill $watcher
exit $status
}
"""
"""The worker ends with its input, which ends with the connection, however that ends. A signal through ssh would not do:
many servers pass none on. The braces make the shell read all of it before the watcher reads what follows."""


class RemoteWorker(ProcessInterface):
    """A worker behind an ssh connection. What goes wrong at its start is kept to be told."""

    def __init__(
        self, scheduler: str, *, host: str, card: int, spec: SshWorkers, settings: str, name: str = ""
    ) -> None:
        super().__init__(scheduler=scheduler, name=name)
        self.scheduler, self.name = scheduler, name
        self.host, self.card, self.spec, self.settings = host, card, spec, settings
        self.trouble = ""
        self._connection: Any = None
        self._process: Any = None
        self._reader: asyncio.Task[None] | None = None
        self._said: deque[str] = deque(maxlen=20)

    async def start(self) -> None:
        try:
            self._connection = await asyncssh.connect(self.host, **_connection_options(self.spec))
            # Through the shell's input, so that nobody finds the environment in a list of processes.
            self._process = await self._connection.create_process(
                "exec /bin/sh -s", stderr=asyncssh.STDOUT, errors="replace"
            )
            self._process.stdin.write(self._script())
            self._reader = asyncio.create_task(self._read())
        except (OSError, TimeoutError, asyncssh.Error) as error:
            self.trouble = f"{self.host}: {error or type(error).__name__}"
        await super().start()

    def _script(self) -> str:
        environment = environment_of(self.spec) | {"DASK_INTERNAL_INHERIT_CONFIG": self.settings}
        python = self.spec.remote_python or sys.executable
        command = [
            python,
            "-m",
            "distributed.cli.dask_spec",
            str(self.scheduler),
            "--spec",
            json.dumps(self._worker()),
        ]
        return _SCRIPT % {"exports": "\n".join(export_lines(environment)), "command": shlex.join(command)}

    def _worker(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            "name": self.name,
            "nthreads": self.spec.threads,
            "death_timeout": _DEATH_SECONDS,
            "dashboard": False,
        }
        if is_loopback(self.spec.host):
            options["host"] = LOOPBACK
        if self.spec.tls:
            options["protocol"] = "tls://"
        if self.spec.memory:
            options["memory_limit"] = self.spec.memory
        if self.spec.gpus_per_worker:
            options["resources"] = {GPU: 1}
            options["env"] = {"CUDA_VISIBLE_DEVICES": str(self.card)}
        return {"cls": "distributed.Nanny", "opts": options}

    async def _read(self) -> None:
        with suppress(asyncssh.Error, OSError):
            async for line in self._process.stdout:
                self._said.append(line.strip())
            await self._process.wait_closed()
        last = next((line for line in reversed(self._said) if line), "it printed nothing")
        self.trouble = f"{self.host}: the worker has ended: {last}"

    async def close(self) -> None:
        if self._process is not None:
            with suppress(asyncssh.Error, OSError):
                self._process.stdin.write_eof()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._process.wait_closed(), _END_SECONDS)
        if self._reader is not None:
            self._reader.cancel()
        if self._connection is not None:
            self._connection.close()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._connection.wait_closed(), _END_SECONDS)
        await super().close()


class WorkersBySsh(SpecCluster):
    """A scheduler in this process and its workers on other machines, which are taken in turn."""

    def __init__(self, spec: SshWorkers, security: Any) -> None:
        turns = [spec.hosts[number % len(spec.hosts)] for number in range(spec.most_workers)]
        self._places = [(host, turns[:number].count(host)) for number, host in enumerate(turns)]
        self._taken: dict[str, tuple[str, int]] = {}
        options: dict[str, Any] = {"host": spec.host, "port": 0, "dashboard_address": f"{LOOPBACK}:0"}
        if security is not None:
            options |= {"protocol": "tls://", "security": security}
        super().__init__(
            scheduler={"cls": Scheduler, "options": options},
            worker={"cls": RemoteWorker, "options": {"spec": spec, "settings": _settings(spec)}},
            security=security,
            silence_logs=logging.CRITICAL,
            name="stratascope-ssh",
        )

    def _new_worker_name(self, worker_number: int) -> str:
        return f"ssh-{worker_number}"

    def new_worker_spec(self) -> dict[str, Any]:
        """The next worker, on the first place that no present worker has."""
        (name, worker), *_ = super().new_worker_spec().items()
        self._taken = {held: place for held, place in self._taken.items() if held in self.worker_spec}
        host, card = next(place for place in self._places if place not in self._taken.values())
        self._taken[name] = (host, card)
        return {name: {**worker, "options": {**worker["options"], "host": host, "card": card}}}

    def why_no_worker(self) -> tuple[str, bool]:
        """What went wrong where, and whether that holds for all workers."""
        workers = [worker for worker in self.workers.values() if isinstance(worker, RemoteWorker)]
        troubles = [worker.trouble for worker in workers if worker.trouble]
        return "; ".join(dict.fromkeys(troubles)), bool(troubles) and len(troubles) == len(workers)


def start(spec: SshWorkers, security: Any = None) -> WorkersBySsh:
    """Log in to the hosts of `spec` and start its workers; what is lost on the way is started anew."""
    cluster = WorkersBySsh(spec, security)
    cluster.scale(spec.least_workers)
    cluster.adapt(minimum=spec.least_workers, maximum=spec.most_workers)
    return cluster


def _connection_options(spec: SshWorkers) -> dict[str, Any]:
    options: dict[str, Any] = {
        "port": spec.port,
        "connect_timeout": spec.connect_seconds,
        "login_timeout": spec.connect_seconds,
        "keepalive_interval": 30,
    }
    if spec.username:
        options["username"] = spec.username
    if spec.key:
        options["client_keys"] = [os.path.expanduser(spec.key)]
    if spec.known_hosts:
        options["known_hosts"] = os.path.expanduser(spec.known_hosts)
    return options


def _settings(spec: SshWorkers) -> str:
    """Dask's settings of this process for the workers, with the certificates where there are some."""
    settings = dict(dask.config.global_config)
    if spec.tls:
        worker = {"cert": spec.tls.cert, "key": spec.tls.key}
        comm = {"require-encryption": True, "tls": {"ca-file": spec.tls.ca, "worker": worker, "client": worker}}
        settings = dask.config.merge(settings, {"distributed": {"comm": comm}})
    return str(dask.config.serialize(settings))
