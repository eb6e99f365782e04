"""Workers as pods that Dask's Kubernetes operator starts."""

from __future__ import annotations

import copy
import uuid
from contextlib import suppress
from typing import Any

from dask_kubernetes.operator import KubeCluster, make_cluster_spec

from stratascope.errors import ClusterError
from stratascope.flows.cluster_spec import GPU, KubernetesWorkers
from stratascope.flows.worker_environment import DASK_ENVIRONMENT, WORKER_ENVIRONMENT

_SCHEDULER_ENVIRONMENT = {
    "DASK_LOGGING__DISTRIBUTED": "CRITICAL",
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
}
_READY_SECONDS = 600
_IDLE_SECONDS = 1800
"""A cluster whose command died without a word is removed by the operator after so long."""


def start(spec: KubernetesWorkers, security: Any = None) -> KubeCluster:
    """Ask the operator for a scheduler and workers as `spec` says; they go when the cluster is closed.

    Raises ClusterError where no Kubernetes API answers, or the operator does not start the scheduler.
    """
    name = f"stratascope-{uuid.uuid4().hex[:8]}"
    try:
        cluster = KubeCluster(
            custom_cluster_spec=cluster_spec(spec, name),
            namespace=spec.namespace,
            resource_timeout=int(min(spec.start_seconds, _READY_SECONDS)),
            quiet=True,
        )
    except Exception as error:
        _forget(name)
        raise ClusterError(
            f"Kubernetes gave no scheduler: {type(error).__name__}: {error}. Check that `kubectl get daskclusters` "
            "answers with the same KUBECONFIG, and that Dask's operator is installed."
        ) from None
    if spec.adaptive:
        cluster.adapt(minimum=spec.adaptive.minimum, maximum=spec.adaptive.maximum)
    return cluster


def _forget(name: str) -> None:
    """Remove what there is of a cluster that did not start; else dask-kubernetes tries at exit, and fails aloud."""
    for cluster in list(KubeCluster._instances):
        if cluster.name == name:
            with suppress(Exception):
                cluster.close(timeout=30)
            KubeCluster._instances.discard(cluster)


def cluster_spec(spec: KubernetesWorkers, name: str) -> dict[str, Any]:
    """The `DaskCluster` resource called `name` that gives the scheduler and the workers of `spec`."""
    command = [
        "dask", "worker", "--nthreads", str(spec.threads), "--memory-limit", str(spec.memory), "--death-timeout", "60",
    ]  # fmt: skip
    if spec.gpus_per_worker:
        command += ["--resources", f"{GPU}=1"]
    made: dict[str, Any] = make_cluster_spec(
        name=name,
        image=spec.image,
        n_workers=spec.least_workers,
        worker_command=command,
        idle_timeout=_IDLE_SECONDS,
    )
    patience = f"{max(120.0, spec.start_seconds):g}s"
    scheduler = made["spec"]["scheduler"]["spec"]
    scheduler["containers"][0]["env"] = _variables(
        {**_SCHEDULER_ENVIRONMENT, "DASK_DISTRIBUTED__SCHEDULER__NO_WORKERS_TIMEOUT": patience}
    )
    scheduler["containers"][0].pop("resources")
    worker = made["spec"]["worker"]["spec"]
    container = worker["containers"][0]
    container["env"] = _variables({**WORKER_ENVIRONMENT, **DASK_ENVIRONMENT, **spec.environment})
    container["resources"] = _resources(spec)
    if spec.volumes:
        worker["volumes"] = [
            {"name": f"shared-{number}", "persistentVolumeClaim": {"claimName": volume.claim}}
            for number, volume in enumerate(spec.volumes)
        ]
        container["volumeMounts"] = [
            {"name": f"shared-{number}", "mountPath": volume.path} for number, volume in enumerate(spec.volumes)
        ]
    made["spec"]["worker"]["spec"] = merged(worker, spec.worker_spec)
    return made


def merged(below: Any, above: Any) -> Any:
    """`above` over `below`: mappings key by key, lists of named things name by name, anything else as it stands."""
    if isinstance(below, dict) and isinstance(above, dict):
        return {
            key: merged(below.get(key), above.get(key)) if key in above else below[key] for key in below | above
        }
    if _are_named(below) and _are_named(above):
        joined = {item["name"]: item for item in below}
        for item in above:
            joined[item["name"]] = merged(joined.get(item["name"]), item)
        return list(joined.values())
    return copy.deepcopy(above)


def _are_named(items: Any) -> bool:
    return isinstance(items, list) and all(isinstance(item, dict) and "name" in item for item in items)


def _variables(environment: dict[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in environment.items()]


def _resources(spec: KubernetesWorkers) -> dict[str, dict[str, str]]:
    cores = f"{spec.cores:g}"
    made = {
        "limits": {"cpu": cores, "memory": str(spec.memory)},
        "requests": {"cpu": cores, "memory": str(spec.memory)},
    }
    if spec.gpus_per_worker:
        # A card is asked for by its limit; the cluster's plugin lets each pod see its own card alone.
        made["limits"][spec.gpu_resource] = str(spec.gpus_per_worker)
    return {kind: {**made[kind], **spec.resources.get(kind, {})} for kind in made}  # type: ignore[call-overload]
