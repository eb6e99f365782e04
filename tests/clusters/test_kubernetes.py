"""What is sent to Kubernetes, against the schemas of its API and of Dask's operator. It has not run on a cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import yaml

from stratascope.errors import ClusterError
from stratascope.flows.cluster_spec import KubernetesWorkers
from tests.requirements import need_module

CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "cards": {"gpus_per_worker": 1, "threads": 2, "cores": 2.5},
    "shared": {
        "volumes": [{"claim": "store", "path": "/store"}, {"claim": "data", "path": "/data"}],
        "environment": {"STRATASCOPE_DATA": "/data", "EMPTY": ""},
    },
    "overridden": {
        "volumes": [{"claim": "store", "path": "/store"}],
        "resources": {"limits": {"ephemeral-storage": "10Gi"}, "requests": {"cpu": "500m"}},
        "worker_spec": {
            "nodeSelector": {"pool": "gpu"},
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "volumes": [{"name": "scratch", "emptyDir": {}}],
            "containers": [
                {"name": "worker", "imagePullPolicy": "Always", "env": [{"name": "EXTRA", "value": "1"}]}
            ],
        },
    },
}


def spec_of(**options: Any) -> KubernetesWorkers:
    return KubernetesWorkers(**({"image": "registry.example.org/stratascope:1", "memory": "4 GiB"} | options))


@pytest.fixture(scope="module", autouse=True)
def _packages() -> None:
    need_module("dask_kubernetes", extra="kubernetes")
    need_module("kubernetes_validate", extra="development")


@pytest.fixture(params=CASES)
def made(request: pytest.FixtureRequest) -> dict[str, Any]:
    from stratascope.flows.kubernetes_cluster import cluster_spec

    return cluster_spec(spec_of(**CASES[request.param]), "stratascope-1234")


def valid(resource: dict[str, Any]) -> None:
    import kubernetes_validate

    kubernetes_validate.validate(resource, kubernetes_validate.latest_version(), strict=True)


def test_pods_and_service_are_what_kubernetes_takes(made):
    for part in ("worker", "scheduler"):
        valid(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": part}, "spec": made["spec"][part]["spec"]},
        )
    service = made["spec"]["scheduler"]["service"]
    valid({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "scheduler"}, "spec": service})


def test_a_key_that_no_pod_has_would_be_found():
    import kubernetes_validate

    from stratascope.flows.kubernetes_cluster import cluster_spec

    wrong = cluster_spec(spec_of(worker_spec={"nodeSelektor": {"pool": "gpu"}}), "stratascope-1234")
    with pytest.raises(kubernetes_validate.ValidationError):
        valid(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": wrong["spec"]["worker"]["spec"]}
        )


def own_schema(kind: str) -> dict[str, Any]:
    """The schema of a resource of Dask's operator; the parts that are Kubernetes' own are checked above."""
    import dask_kubernetes.operator as operator

    folder = Path(operator.__file__).parent / "customresources"
    definition = yaml.safe_load((folder / f"{kind}.yaml").read_text())
    assert definition["spec"]["versions"][0]["name"] == "v1"
    templates = yaml.safe_load((folder / "templates.yaml").read_text())["definitions"]

    def resolved(place: Any) -> Any:
        if isinstance(place, list):
            return [resolved(item) for item in place]
        if not isinstance(place, dict):
            return place
        if "$ref" in place:
            name = place["$ref"].rsplit("/", 1)[1]
            return resolved(templates[name]) if name in templates else {"type": "object"}
        return {key: resolved(item) for key, item in place.items()}

    return resolved(definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"])


def test_the_cluster_is_what_the_operator_takes(made):
    import jsonschema

    schema = own_schema("daskcluster")
    jsonschema.validate(made, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**made, "spec": {"worker": made["spec"]["worker"]}}, schema)
    assert (made["apiVersion"], made["kind"]) == ("kubernetes.dask.org/v1", "DaskCluster")
    assert made["spec"]["idleTimeout"] > 0


def test_the_worker_gets_what_the_configuration_says():
    from stratascope.flows.kubernetes_cluster import cluster_spec

    made = cluster_spec(spec_of(gpus_per_worker=1, threads=2, cores=2, workers=5, **CASES["overridden"]), "a")
    worker = made["spec"]["worker"]
    (container,) = worker["spec"]["containers"]
    assert worker["replicas"] == 5
    assert container["resources"] == {
        "limits": {"cpu": "2", "memory": str(4 << 30), "nvidia.com/gpu": "1", "ephemeral-storage": "10Gi"},
        "requests": {"cpu": "500m", "memory": str(4 << 30)},
    }
    environment = {item["name"]: item["value"] for item in container["env"]}
    assert environment["MALLOC_TRIM_THRESHOLD_"] == "4294967296"
    assert environment["EXTRA"] == "1"
    assert container["imagePullPolicy"] == "Always"
    assert {volume["name"] for volume in worker["spec"]["volumes"]} == {"shared-0", "scratch"}
    assert container["volumeMounts"] == [{"name": "shared-0", "mountPath": "/store"}]


def test_the_commands_of_the_pods_are_ones_that_dask_takes(made):
    from distributed.cli.dask_scheduler import main as scheduler
    from distributed.cli.dask_worker import main as worker

    first, second, *words = made["spec"]["worker"]["spec"]["containers"][0]["args"]
    assert (first, second) == ("dask", "worker")
    asked = worker.make_context("worker", words).params
    assert asked["memory_limit"] == str(4 << 30)
    assert asked["resources"] in (None, "GPU=1")
    program, *words = made["spec"]["scheduler"]["spec"]["containers"][0]["args"]
    assert program == "dask-scheduler"
    scheduler.make_context("scheduler", words)


def test_adaptive_workers_are_what_the_operator_takes(monkeypatch):
    import jsonschema
    from dask_kubernetes.operator import KubeCluster
    from dask_kubernetes.operator.kubecluster import kubecluster

    from stratascope.flows.kubernetes_cluster import cluster_spec

    spec = spec_of(adaptive={"minimum": 2, "maximum": 7}, workers=9)
    assert cluster_spec(spec, "a")["spec"]["worker"]["replicas"] == 2
    asked: list[dict[str, Any]] = []

    class Recorded:
        def __init__(self, resource: dict[str, Any], namespace: str | None) -> None:
            asked.append(resource)

        def __await__(self) -> Any:
            yield from asyncio.sleep(0).__await__()
            return self

        async def patch(self, change: dict[str, Any]) -> None:
            asked.append(change)

    # Only the call over the network is replaced; what it is given is dask-kubernetes' own.
    monkeypatch.setattr(kubecluster, "DaskAutoscaler", Recorded)
    cluster = KubeCluster.__new__(KubeCluster)
    cluster._cluster_info, cluster.namespace = {"name": "stratascope-1234"}, "lab"
    assert spec.adaptive is not None
    asyncio.run(cluster._adapt(minimum=spec.adaptive.minimum, maximum=spec.adaptive.maximum))
    resource, change = asked
    jsonschema.validate(resource, own_schema("daskautoscaler"))
    assert resource["spec"] == {"cluster": "stratascope-1234", **change["spec"]}
    assert change["spec"] == {"minimum": 2, "maximum": 7}


def test_without_a_kubernetes_that_answers_the_error_says_what_to_check(tmp_path, monkeypatch):
    from stratascope.flows.kubernetes_cluster import start

    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    (tmp_path / "config").write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1", "kind": "Config", "contexts": [context], "current-context": "c",
                "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
            }
        )
    )  # fmt: skip
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    with pytest.raises(ClusterError, match=r"Kubernetes gave no scheduler: .*kubectl get daskclusters"):
        start(spec_of(start_seconds=5))
