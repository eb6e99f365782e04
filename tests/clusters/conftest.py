"""A Slurm and an sshd for the tests of this folder, and clusters in the test's own process."""

from __future__ import annotations

import copy
import importlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from stratascope.flows.cluster_spec import AnyWorkers
from tests.clusters.slurm_machine import SlurmMachine
from tests.clusters.ssh_machine import SshMachine
from tests.requirements import need_module


@pytest.fixture(scope="session")
def slurm() -> Iterator[SlurmMachine]:
    need_module("dask_jobqueue", extra="slurm")
    # The path of a socket has at most 107 bytes: not below pytest's own deep folders.
    machine = SlurmMachine(Path(tempfile.mkdtemp(prefix="slurm-")))
    try:
        machine.start()
        yield machine
    finally:
        machine.stop()


@pytest.fixture(scope="session")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshMachine]:
    need_module("asyncssh", extra="ssh")
    machine = SshMachine(tmp_path_factory.mktemp("sshd"))
    try:
        machine.start()
        yield machine
    finally:
        machine.stop()


@pytest.fixture
def running() -> Iterator[Callable[[AnyWorkers], Any]]:
    """Start a cluster as an audit does, and get a client; all is put back and ended after the test."""
    import dask
    from distributed import Client

    from stratascope.flows.cluster import start_cluster, task_runner

    # Packages add their own defaults when they are first imported: that must not be undone.
    for name in ("dask_jobqueue", "dask_kubernetes"):
        with suppress(ImportError):
            importlib.import_module(name)
    environment, settings = dict(os.environ), copy.deepcopy(dask.config.config)
    level = logging.getLogger("distributed").level
    with ExitStack() as stack:

        def start(spec: AnyWorkers) -> Any:
            task_runner(spec)  # brings about the settings that a cluster is started under
            cluster = stack.enter_context(start_cluster(spec))  # type: ignore[arg-type]
            return stack.enter_context(Client(cluster, set_as_default=False))

        yield start
    os.environ.clear()
    os.environ.update(environment)
    dask.config.config.clear()
    dask.config.config.update(settings)
    logging.getLogger("distributed").setLevel(level)
