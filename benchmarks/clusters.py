"""How long workers take to come, by kind of cluster: local processes, ssh and Slurm on one machine.

    python -m benchmarks.clusters [REPEATS]

From the root of the repository. sshd and Slurm are started as the tests start them, before the clock.
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

from stratascope.flows.cluster import start_cluster, task_runner
from stratascope.flows.cluster_spec import LocalWorkers, SlurmWorkers, SshWorkers
from tests.clusters.slurm_machine import SlurmMachine
from tests.clusters.ssh_machine import SshMachine

WORKERS = 2


def seconds_until_all_are_there(spec) -> tuple[float, float]:
    """Seconds until the first of the workers is there, and until all are."""
    from distributed import Client

    task_runner(spec)
    started = time.perf_counter()
    with start_cluster(spec) as cluster, Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=300)
        first = time.perf_counter() - started
        client.wait_for_workers(WORKERS, timeout=300)
        return first, time.perf_counter() - started


def main(repeats: int) -> None:
    slurm = SlurmMachine(Path(tempfile.mkdtemp(prefix="slurm-")))
    ssh = SshMachine(Path(tempfile.mkdtemp(prefix="sshd-")))
    try:
        slurm.start()
        ssh.start()
        os.environ.update(slurm.environment)
        specs = [
            LocalWorkers(workers=WORKERS),
            SshWorkers(**ssh.cluster()),
            SlurmWorkers(workers=WORKERS, memory="1 GB"),
        ]
        found: dict[str, list[tuple[float, float]]] = {spec.kind: [] for spec in specs}
        for _ in range(repeats + 1):
            for spec in specs:
                found[spec.kind].append(seconds_until_all_are_there(spec))
    finally:
        ssh.stop()
        slurm.stop()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {WORKERS} workers, ", end=""
    )
    print(f"{repeats} times in turn after one for warmth: median (least to most) seconds")
    for kind, times in found.items():
        for what, values in zip(("first worker", "all workers"), zip(*times[1:], strict=True), strict=True):
            print(f"{kind:6} {what}: {statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
