"""What a worker's environment must hold before its Python starts."""

from __future__ import annotations

import os
import shlex

from stratascope.flows.cluster_spec import LocalWorkers, SlurmWorkers, SshWorkers

WORKER_ENVIRONMENT = {
    # One thread for each library: two that spin on the same cores cost a factor of tens.
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    # Dask's own default returns memory at once and makes torch on the CPU 2.6 times slower.
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
}
DASK_ENVIRONMENT = {
    "DASK_LOGGING__DISTRIBUTED": "CRITICAL",
    "DASK_DISTRIBUTED__WORKER__MEMORY__TERMINATE": "False",
    "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "False",
}
"""Dask's settings for workers that do not inherit this process's."""
_FORWARDED = ("STRATASCOPE_DATA", "PYTHONPATH", "DO_NOT_TRACK", "NO_PROXY", "no_proxy")
_OF_THIS_MACHINE = ("PREFECT_HOME", "PREFECT_API_SSL_CERT_FILE")
"""Settings of Prefect that name files which only this machine has."""


def environment_of(spec: LocalWorkers | SlurmWorkers | SshWorkers) -> dict[str, str]:
    """The variables of a worker that shares files with this process: ours, what is set here, and what `spec` adds."""
    forwarded = {name: os.environ[name] for name in _FORWARDED if name in os.environ}
    forwarded |= {
        name: value
        for name, value in os.environ.items()
        if name.startswith("PREFECT_") and (spec.on_this_machine or name not in _OF_THIS_MACHINE)
    }
    return {**WORKER_ENVIRONMENT, **DASK_ENVIRONMENT, **forwarded, **spec.environment}


def export_lines(environment: dict[str, str]) -> list[str]:
    """Lines for a shell that set `environment`."""
    return [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
