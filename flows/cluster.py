"""The one place that makes clusters."""

from __future__ import annotations

import logging
import os
from typing import Any

from stratascope.errors import ClusterError
from stratascope.flows.config import ClusterSpec
from stratascope.tasks.limits import Limits

GIB = 2**30
CONNECT_SECONDS = 15

_WORKER_ENVIRONMENT = {
    # One thread for each library: two that spin on the same cores cost a factor of tens.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    # Dask's own default returns memory at once and makes torch on the CPU 2.6 times slower.
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
}


def task_runner(spec: ClusterSpec) -> Any:
    """A Prefect task runner on the workers that `spec` names; local ones live as long as the flow."""
    import dask
    from prefect_dask.task_runners import DaskTaskRunner

    if spec.kind == "address":
        return DaskTaskRunner(address=spec.address)
    # Must be set before the first cluster of the process: the nanny copies it into the workers' environment.
    os.environ.update(_WORKER_ENVIRONMENT)
    dask.config.set(
        {
            "distributed.nanny.pre-spawn-environ": _WORKER_ENVIRONMENT,
            "distributed.scheduler.allowed-failures": 1,
            # Where every worker is gone for good, the work fails instead of waiting for ever.
            "distributed.scheduler.no-workers-timeout": "120s",
            "distributed.logging.distributed": "CRITICAL",
            "distributed.worker.memory.terminate": False,
            # Dask's profiler keeps every call stack it meets: 30 kB for each task, without end.
            "distributed.worker.profile.enabled": False,
        }
    )
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    return DaskTaskRunner(
        cluster_class="distributed.LocalCluster",
        cluster_kwargs={
            "n_workers": spec.workers,
            "threads_per_worker": 1,
            "processes": True,
            "host": "127.0.0.1",
            "dashboard_address": "127.0.0.1:0",
            "silence_logs": logging.CRITICAL,
        },
    )


def worker_limits(limits: Limits, spec: ClusterSpec) -> Limits:
    """`limits` with a bound of memory where none is set: a local worker's share of the machine, less a twentieth."""
    if limits.memory_gib is not None or spec.kind != "local":
        return limits
    return limits.model_copy(update={"memory_gib": 0.95 * _worker_memory(spec) / GIB})


def check_workers(spec: ClusterSpec, needed: int) -> None:
    """Refuse work that the workers have not the memory for.

    `needed` is in bytes, for one worker. Raises ClusterError that names both numbers, or the scheduler that does not
    answer.
    """
    available = _worker_memory(spec)
    if available and needed > available:
        raise ClusterError(
            f"this audit needs about {needed / GIB:.1f} GiB for each worker, the workers have {available / GIB:.1f} GiB: "
            "lower `capture.batch_size` or `cluster.workers`, or keep less of each layer."
        )


def _worker_memory(spec: ClusterSpec) -> int:
    """Bytes that the smallest worker may use; 0 where that is not known."""
    if spec.kind == "local":
        import psutil

        return int(psutil.virtual_memory().total / spec.workers)
    from distributed import Client

    try:
        with Client(spec.address, timeout=CONNECT_SECONDS, set_as_default=False) as client:
            workers = client.scheduler_info(n_workers=-1)["workers"].values()
    except (OSError, TimeoutError) as error:
        raise ClusterError(
            f"no Dask scheduler answers at {spec.address} ({type(error).__name__}): start one, or use "
            "`cluster: {kind: local}`."
        ) from None
    if not workers:
        raise ClusterError(f"the Dask scheduler at {spec.address} has no workers: start at least one.")
    return min(int(worker.get("memory_limit") or 0) for worker in workers)
