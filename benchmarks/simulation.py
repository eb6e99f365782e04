"""Where orchestration stops scaling: many Dask workers in one process, with tasks that sleep instead of computing.

    python benchmarks/simulation.py [dask] [prefect] [store]

Workers are threads of this process (`processes=False`), so scheduler, Prefect's client and whatever Prefect does on the
workers share one interpreter: on a real cluster that last part is spread over the machines, and the rates are higher.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from measuring import WORK, write_results

DASK = ((10, 1.0, 200), (50, 1.0, 500), (200, 1.0, 1000))
"""Workers, seconds of a task, tasks."""
PREFECT = ((10, 1.0, 60), (200, 1.0, 200), (200, 20.0, 400))


def sleep(seconds: float) -> None:
    """A piece of work that takes its time and no processor."""
    time.sleep(seconds)


def outcome(workers: int, seconds: float, tasks: int, wall: float, processor: float) -> dict[str, float]:
    """How near the workers came to being always busy; processor seconds of this process for each task."""
    ideal = seconds * -(-tasks // workers)
    return {
        "workers": workers, "seconds of a task": seconds, "tasks": tasks, "wall seconds": wall, "tasks a second": tasks / wall,
        "share of the ideal": ideal / wall, "processor milliseconds of a task, this process": 1000 * processor / tasks,
    }  # fmt: skip


def quiet_dask() -> None:
    """As `flows/cluster.py` sets it: no profiles, no chatter; and 200 monitors of one process do not watch it all the time."""
    import logging

    import dask

    dask.config.set(
        {
            "distributed.worker.profile.enabled": False,
            "distributed.logging.distributed": "CRITICAL",
            "distributed.admin.system-monitor.interval": "30s",
            # Ten times a second each worker asks how much memory its process has: here 200 ask about one and the same.
            "distributed.worker.memory.target": False,
            "distributed.worker.memory.spill": False,
            "distributed.worker.memory.pause": False,
        }
    )
    logging.getLogger("distributed").setLevel(logging.CRITICAL)


def dask_alone(workers: int, seconds: float, tasks: int) -> dict[str, float]:
    """The same tasks without Prefect."""
    from distributed import Client, LocalCluster, wait

    quiet_dask()
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.wait_for_workers(workers)
        begun, processor = time.perf_counter(), time.process_time()
        wait([client.submit(sleep, seconds, pure=False) for _ in range(tasks)])
        return outcome(workers, seconds, tasks, time.perf_counter() - begun, time.process_time() - processor)


def through_prefect(workers: int, seconds: float, tasks: int) -> dict[str, float]:
    """The same tasks as the audit hands them out: as Prefect tasks, a window of them under way, collected as they end."""
    from prefect import Task, flow
    from prefect.cache_policies import NO_CACHE
    from prefect_dask.task_runners import DaskTaskRunner

    from stratascope.flows.arrivals import Arrivals
    from stratascope.flows.audit import _AT_ONCE

    quiet_dask()
    nap = Task(sleep, name="nap", cache_policy=NO_CACHE, retries=0, log_prints=False)
    kwargs = {"n_workers": workers, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    found: dict[str, float] = {}

    @flow(
        name="simulation",
        task_runner=DaskTaskRunner(cluster_class="distributed.LocalCluster", cluster_kwargs=kwargs),
    )
    def simulation() -> None:
        nap.submit(0.0).result()
        begun, processor = time.perf_counter(), time.process_time()
        most, handed_out = 0, 0.0
        under_way: Arrivals[int] = Arrivals()
        for number in range(tasks):
            under_way.expect(number, [nap.submit(seconds)])
            most = max(most, len(under_way))
            handed_out = time.perf_counter() - begun
            while len(under_way) >= _AT_ONCE * workers:
                under_way.next()
        while under_way:
            under_way.next()
        found.update(
            outcome(workers, seconds, tasks, time.perf_counter() - begun, time.process_time() - processor)
        )
        found["seconds to hand out all"] = handed_out
        found["most under way"] = most

    simulation()
    return found


def server_seconds() -> float:
    """Processor seconds of the Prefect server that `prefect_server` started below this process."""
    import psutil

    found = 0.0
    for process in psutil.Process().children(recursive=True):
        if "prefect" in " ".join(process.cmdline()):
            times = process.cpu_times()
            found += times.user + times.system
    return found


def prefect() -> list[dict[str, float]]:
    """All cases on one server of their own, with SQLite, as a command without a Prefect API has it."""
    from stratascope.flows.server import prefect_server

    os.environ["PREFECT_LOGGING_LEVEL"] = "ERROR"
    found = []
    with prefect_server(own=True):
        for case in PREFECT:
            before = server_seconds()
            done = through_prefect(*case)
            done["processor milliseconds of a task, server"] = 1000 * (server_seconds() - before) / case[2]
            found.append(done)
            print(done, file=sys.stderr, flush=True)
    return found


def dask() -> list[dict[str, float]]:
    """All cases, each with a cluster of its own."""
    found = []
    for case in DASK:
        found.append(dask_alone(*case))
        print(found[-1], file=sys.stderr, flush=True)
    return found


SECONDS = 5.0
ARRAYS, ROWS = 10, 50


def commits(place: str, process: int) -> dict[str, Any]:
    """Commit small units for `SECONDS`, each claimed first as workers do; how many, and the seconds of the slowest."""
    import numpy as np

    from stratascope.storage.ledger import Row
    from stratascope.storage.store import Store
    from stratascope.storage.units import Unit
    from stratascope.tasks.analysis import NamedArray

    store = Store.open(place)
    values = np.zeros((100, 16), np.float32)
    slowest, count = 0.0, 0
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        begun = time.perf_counter()
        unit = Unit("checkpoint", f"run-{process}", count, "outputs")
        with store.claim(unit), store.stage(unit, "identity", {}) as staged:
            for number in range(ARRAYS):
                staged.write_array(f"array-{number}", NamedArray(("sample", "feature"), values, {}))
            staged.write_rows([Row("metric", float(number), layer=f"layer{number}") for number in range(ROWS)])
            staged.commit()
        slowest, count = max(slowest, time.perf_counter() - begun), count + 1
    return {"commits": count, "slowest": slowest}


def store() -> list[dict[str, float]]:
    """Commits a second from 1 to 16 processes into one store."""
    from stratascope.storage.store import Store

    found = []
    for processes in (1, 2, 4, 16):
        place = WORK / "simulated-store"
        shutil.rmtree(place, ignore_errors=True)
        Store.open(place, create=True)
        with get_context("spawn").Pool(processes) as pool:
            pool.starmap(warm_up, [(number,) for number in range(processes)])
            done = pool.starmap(commits, [(str(place), number) for number in range(processes)], chunksize=1)
        total = sum(item["commits"] for item in done)
        found.append({"processes": processes, "commits a second": total / SECONDS, "slowest commit, seconds": max(item["slowest"] for item in done)})  # fmt: skip
        shutil.rmtree(place, ignore_errors=True)
    return found


def warm_up(number: int) -> int:
    """Import what a commit needs before the time counts."""
    import stratascope.storage.staging
    import stratascope.tasks.analysis  # noqa: F401

    return number


PARTS = {"dask": dask, "prefect": prefect, "store": store}


def main() -> None:
    """Each part in a process of its own, since a cluster leaves threads behind."""
    WORK.mkdir(exist_ok=True)
    if len(sys.argv) == 2:
        name = sys.argv[1]
        before = os.getloadavg()
        content = {"what": PARTS[name].__doc__, "cases": PARTS[name](), "load before": before}
        write_results(f"simulation_{name}", content)
        return
    for name in sys.argv[1:] or PARTS:
        subprocess.run([sys.executable, __file__, name], check=True)


if __name__ == "__main__":
    main()
