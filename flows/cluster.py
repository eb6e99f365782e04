"""The one place that makes clusters: which workers an audit has, and whether they are enough."""

from __future__ import annotations

import importlib
import logging
import os
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from stratascope.errors import ClusterError, ConfigurationError
from stratascope.flows.cluster_spec import (
    GPU,
    AnyWorkers,
    StartedWorkers,
    TlsFiles,
    WorkersAtAddress,
    host_of,
    is_loopback,
)
from stratascope.flows.worker_environment import WORKER_ENVIRONMENT
from stratascope.tasks.limits import Limits

GIB = 2**30
CONNECT_SECONDS = 15
_LOOK_SECONDS = 0.2
_ASK_SECONDS = 3.0
_MODULES = {
    "local": ("local_cluster", "", ""),
    "slurm": ("slurm_cluster", "dask_jobqueue", "dask-jobqueue"),
    "ssh": ("ssh_cluster", "asyncssh", "asyncssh"),
    "kubernetes": ("kubernetes_cluster", "dask_kubernetes", "dask-kubernetes"),
}
"""By kind: our module, the package that it needs, and under which name that is installed."""


def task_runner(spec: AnyWorkers) -> Any:
    """A Prefect task runner on the workers that `spec` names; those that it starts live as long as the flow.

    Raises ConfigurationError that names the extra to install where a package for this kind is missing.
    """
    from prefect_dask.task_runners import DaskTaskRunner

    if isinstance(spec, WorkersAtAddress):
        return DaskTaskRunner(address=spec.address, client_kwargs={"security": _security(spec.tls)})
    require_package(spec.kind)
    _configure(spec)
    start: Any = start_cluster
    return DaskTaskRunner(cluster_class=start, cluster_kwargs={"spec": spec})


def require_package(kind: str) -> None:
    """Raise ConfigurationError that names the extra where the package that clusters of `kind` need is missing."""
    _, package, distribution = _MODULES.get(kind, ("", "", ""))
    if not package:
        return
    try:
        importlib.import_module(package)
    except ImportError:
        raise ConfigurationError(
            f"cluster kind {kind!r} needs {distribution}, which is not installed: pip install 'stratascope[{kind}]'."
        ) from None


def start_cluster(spec: StartedWorkers) -> Any:
    """A Dask cluster with workers as `spec` says; it is a context manager, and its end ends them."""
    module = importlib.import_module(f"stratascope.flows.{_MODULES[spec.kind][0]}")
    tls = getattr(spec, "tls", None)
    return module.start(spec, _security(tls) if tls is not None else None)


def _configure(spec: StartedWorkers) -> None:
    """Settings of Dask for scheduler and workers, which the clusters of this process share."""
    import dask

    # Must be set before the first cluster of the process: the nanny copies it into the workers' environment.
    os.environ.update(WORKER_ENVIRONMENT)
    patience = 120.0 if spec.kind == "local" else max(120.0, spec.start_seconds)
    dask.config.set(
        {
            "distributed.nanny.pre-spawn-environ": WORKER_ENVIRONMENT,
            "distributed.scheduler.allowed-failures": 1,
            # Where every worker is gone for good, the work fails instead of waiting for ever.
            "distributed.scheduler.no-workers-timeout": f"{patience:g}s",
            "distributed.logging.distributed": "CRITICAL",
            "distributed.worker.memory.terminate": False,
            # Dask's profiler keeps every call stack it meets: 30 kB for each task, without end.
            "distributed.worker.profile.enabled": False,
            # It also keeps the last messages to each worker, whole tasks of 50 kB among them: by default a thousand.
            "distributed.admin.low-level-log-length": 20,
        }
    )
    logging.getLogger("distributed").setLevel(logging.CRITICAL)


def _security(tls: TlsFiles | None) -> Any:
    """The certificates for all that speak with each other; None where they speak openly."""
    if tls is None:
        return None
    from distributed.security import Security

    roles = {f"tls_{role}_{part}": getattr(tls, part) for role in ("client", "scheduler", "worker") for part in ("cert", "key")}  # fmt: skip
    return Security(tls_ca_file=tls.ca, require_encryption=True, **roles)


def on_workers(inner: Any, spec: AnyWorkers) -> Any:
    """The flow `inner` as it runs on the workers of `spec`. Its first act must be `await_workers`.

    Raises ConfigurationError or ClusterError, before anything is started, where they could not do the work.
    """
    check_reach(spec)
    flow = inner.with_options(task_runner=task_runner(spec))
    if spec.kind != "local":
        return flow

    def with_settings_inherited(*parameters: Any) -> Any:
        from stratascope.flows.inherited_settings import settings_inherited

        with settings_inherited():
            return flow(*parameters)

    return with_settings_inherited


# -- before anything is started ----------------------------------------------------------------------------


def check_reach(spec: AnyWorkers) -> None:
    """Refuse workers that could not talk to Prefect's API, and a scheduler that nobody answers for.

    Raises ConfigurationError that names PREFECT_API_URL, or ClusterError that names the scheduler.
    """
    from prefect.settings import get_current_settings

    from stratascope.flows.artifacts import server_lasts

    if not spec.on_this_machine:
        address = get_current_settings().api.url
        advice = (
            "Start one that they reach (`prefect server start --host …`, on a network of your own or behind a "
            "proxy that asks who calls) and set PREFECT_API_URL to its address."
        )
        if not address or not server_lasts():
            raise ConfigurationError(
                f"cluster kind {spec.kind!r} has workers on other machines ({spec.whereabouts}), which must reach a "
                f"Prefect API; the one that this command starts listens on this machine alone. {advice}"
            )
        if is_loopback(host_of(address)):
            raise ConfigurationError(
                f"cluster kind {spec.kind!r} has workers on other machines ({spec.whereabouts}), which cannot reach "
                f"the Prefect API at {address}. {advice}"
            )
    if isinstance(spec, WorkersAtAddress):
        _expect_workers(spec)


def _expect_workers(spec: WorkersAtAddress) -> None:
    from distributed import Client

    try:
        with Client(
            spec.address, timeout=CONNECT_SECONDS, set_as_default=False, security=_security(spec.tls)
        ) as client:
            workers = _workers(client)
    except (OSError, TimeoutError) as error:
        raise ClusterError(
            f"no Dask scheduler answers at {spec.address} ({type(error).__name__}): start one, or use "
            "`cluster: {kind: local}`."
        ) from None
    if not workers:
        raise ClusterError(f"the Dask scheduler at {spec.address} has no workers: start at least one.")


# -- inside a flow -----------------------------------------------------------------------------------------


def await_workers(spec: AnyWorkers) -> int:
    """Start the workers of the flow that runs, wait for the first, and return how many units they take at once.

    Raises ClusterError, after `start_seconds` or as soon as none will ever come, with what is known of the reason.
    """
    try:
        client = _client()
    except ClusterError:
        raise
    except Exception as error:
        raise ClusterError(f"workers of kind {spec.kind!r} could not be started: {error}.") from None
    until = time.monotonic() + spec.start_seconds
    ask_again = 0.0
    while not (workers := _workers(client)):
        reason, hopeless = "", False
        late = time.monotonic() > until
        if late or time.monotonic() > ask_again:
            ask = getattr(client.cluster, "why_no_worker", lambda: ("", False))
            reason, hopeless = ask()
            ask_again = time.monotonic() + _ASK_SECONDS
        if late or hopeless:
            waited = f"no worker came within {spec.start_seconds:g} s" if not hopeless else "no worker can start"
            raise ClusterError(
                f"{waited} on {spec.whereabouts}{f': {reason}' if reason else ''}. See docs/clusters.md, and "
                "`cluster.start_seconds` for a longer wait."
            )
        time.sleep(_LOOK_SECONDS)
    if isinstance(spec, WorkersAtAddress):
        return sum(worker["nthreads"] for worker in workers)
    return spec.most_workers * spec.threads


def check_workers(spec: AnyWorkers, needed: int) -> None:
    """Refuse work that the workers of the flow that runs have not the memory or the graphics cards for.

    `needed` is in bytes, for one unit. Raises ClusterError that names what is needed and what there is.
    """
    workers = _workers(_client())
    limits = [(int(worker.get("memory_limit") or 0), worker["nthreads"]) for worker in workers]
    available, threads = min(((limit, count) for limit, count in limits if limit), default=(0, 1))
    if available and needed * threads > available:
        at_once = f" ({threads} units at once)" if threads > 1 else ""
        raise ClusterError(
            f"this audit needs about {needed * threads / GIB:.1f} GiB for each worker{at_once}, the workers have "
            f"{available / GIB:.1f} GiB: lower `capture.batch_size`, `cluster.workers` or `cluster.threads`, raise "
            "`cluster.memory`, or keep less of each layer."
        )
    if spec.gpus_per_worker and workers and not any(worker["resources"].get(GPU, 0) >= 1 for worker in workers):
        raise ClusterError(
            f"`gpus_per_worker: {spec.gpus_per_worker}` asks for workers that offer the Dask resource {GPU!r}, and "
            f"none of {len(workers)} does: start them with `dask worker … --resources {GPU}=1`."
        )


def worker_limits(limits: Limits) -> Limits | None:
    """`limits` with a bound of memory where none is set: what Dask grants the smallest worker, less a twentieth.

    None where a worker does several units at once, since their process could not be ended for one of them.
    """
    workers = _workers(_client())
    if any(worker["nthreads"] > 1 for worker in workers):
        return None
    granted = [int(worker["memory_limit"]) for worker in workers if worker.get("memory_limit")]
    if limits.memory_gib is not None or not granted:
        return limits
    return limits.model_copy(update={"memory_gib": 0.95 * min(granted) / GIB})


def placed(device: str) -> AbstractContextManager[Any]:
    """While it lasts, what is handed out goes to workers that have a `device`: cpu is everywhere."""
    if device == "cpu":
        return nullcontext()
    from dask.base import annotate

    return annotate(resources={GPU: 1})


def _client() -> Any:
    """Dask's client of the flow that runs; the first call starts the workers."""
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    assert context is not None, "only inside a flow"
    return context.task_runner.client  # type: ignore[attr-defined]


def _workers(client: Any) -> list[dict[str, Any]]:
    return list(client.scheduler_info(n_workers=-1)["workers"].values())
