"""The key `cluster` of a configuration: what each kind takes, what is refused, and how the refusal reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stratascope.errors import ConfigurationError
from stratascope.flows.cluster_spec import LocalWorkers, SlurmWorkers, host_of, is_loopback, parse_bytes
from stratascope.flows.config import AuditConfig, load_config

BASE = {
    "store": "store",
    "probe": {"dataset": "digits"},
    "runs": [{"name": "run", "checkpoints": "*.safetensors", "model": {"factory": "a:b"}}],
}


def loaded(folder: Path, **cluster: Any) -> Any:
    path = folder / "audit.yaml"
    path.write_text(yaml.safe_dump({**BASE, "cluster": cluster}))
    return load_config(path).cluster


def test_a_cluster_without_a_kind_is_local(tmp_path):
    assert loaded(tmp_path, workers=3) == LocalWorkers(workers=3)
    assert AuditConfig.model_validate(BASE).cluster == LocalWorkers()


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ({"wrokers": 3}, "cluster.wrokers: there is no key 'wrokers'. Did you mean 'workers'"),
        ({"kind": "slrum"}, "cluster: there is no kind 'slrum'; there are local, address, slurm, kubernetes, ssh."),
        ({"kind": "slurm", "memory": "4 GB", "quue": "a"}, "cluster.quue: there is no key 'quue'. Did you mean 'queue'"),
        ({"kind": "slurm", "queue": "gpu"}, "cluster.memory: Field required"),
        ({"kind": "local", "queue": "gpu"}, "cluster.queue: there is no key 'queue'"),
        ({"adaptive": {"minimun": 1, "maximum": 2}}, "cluster.adaptive.minimun: there is no key 'minimun'. Did you"),
        ({"adaptive": {"minimum": 4, "maximum": 2}}, "`minimum` 4 is above `maximum` 2"),
        ({"memory": "much"}, "cluster.memory: expected a size such as '4 GiB'"),
        ({"gpus_per_worker": 2}, "cluster.gpus_per_worker: Input should be less than or equal to 1"),
        ({"environment": {"A B": "1"}}, "'A B' is no name of an environment variable"),
        ({"kind": "address", "address": "localhost"}, "expected the address of a Dask scheduler"),
        ({"kind": "address", "address": "tls://a:1"}, "a tls:// address needs `tls: {ca, cert, key}`"),
        ({"kind": "address", "address": "tcp://a:1", "tls": {"ca": "x", "cert": "x", "key": "x"}}, "an absolute path"),
        ({"kind": "ssh", "hosts": []}, "cluster.hosts: Tuple should have at least 1 item"),
        ({"kind": "ssh", "hosts": ["node7"]}, "workers on 'node7' cannot reach a scheduler on loopback: set `host`"),
        ({"kind": "slurm", "memory": "1 GB", "queue": "a\n#SBATCH -x"}, "it goes into a job script"),
        ({"kind": "slurm", "memory": "1 GB", "job_extra_directives": ["-a\nrm"]}, "a directive is one line"),
        ({"kind": "kubernetes", "image": "a", "memory": "1 GB", "resources": {"limit": {}}}, "'limits' or 'requests'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_with_its_place_and_the_nearest_key(tmp_path, cluster, said):
    with pytest.raises(ConfigurationError) as error:
        loaded(tmp_path, **cluster)
    assert str(error.value).startswith("audit.yaml: cluster")
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("size", "count"),
    [(123, 123), ("500MB", 500_000_000), ("1.5 GiB", 3 << 29), ("2 gib", 2 << 30), ("7 B", 7), ("1 TB", 10**12)],
)
def test_sizes_are_told_in_decimal_and_in_binary_units(size, count):
    assert parse_bytes(size) == count


@pytest.mark.parametrize(
    ("address", "host", "loopback"),
    [
        ("tcp://127.0.0.1:8786", "127.0.0.1", True),
        ("http://localhost:4200/api", "localhost", True),
        ("tls://[::1]:8786", "::1", True),
        ("tcp://10.0.0.5:8786", "10.0.0.5", False),
        ("https://prefect.example.org/api", "prefect.example.org", False),
    ],
)
def test_what_listens_for_this_machine_alone_is_known(address, host, loopback):
    assert host_of(address) == host
    assert is_loopback(host) is loopback


def test_ssh_gives_each_host_a_worker_unless_told_otherwise(tmp_path):
    shared = {"kind": "ssh", "hosts": ["a", "b", "c"], "host": "10.0.0.1"}
    assert loaded(tmp_path, **shared).workers == 3
    assert loaded(tmp_path, **shared, workers=5).workers == 5


def test_the_schema_offers_the_options_of_every_kind():
    schema = AuditConfig.model_json_schema()
    kinds = schema["properties"]["cluster"]["discriminator"]["mapping"]
    options = {kind: set(schema["$defs"][place.rsplit("/", 1)[1]]["properties"]) for kind, place in kinds.items()}
    assert set(options) == {"local", "address", "slurm", "kubernetes", "ssh"}
    assert {"queue", "account", "walltime", "interface"} <= options["slurm"] - options["local"]
    assert {"hosts", "known_hosts", "remote_python"} <= options["ssh"] - options["slurm"]
    assert {"image", "namespace", "worker_spec"} <= options["kubernetes"] - options["ssh"]
    assert all({"workers", "gpus_per_worker", "start_seconds"} <= known for known in options.values())


def test_a_job_script_asks_slurm_for_what_the_configuration_says(monkeypatch):
    pytest.importorskip("dask_jobqueue")
    from stratascope.flows.slurm_cluster import job_script

    monkeypatch.setenv("STRATASCOPE_DATA", "/shared/data with a space")
    script = job_script(
        SlurmWorkers(
            memory="6 GiB", threads=2, cores=4, queue="gpu", account="lab", walltime="02:00:00", gpus_per_worker=1,
            interface="lo", job_extra_directives=["--constraint=a100"], prologue=["module load cuda"],
            environment={"PYTHONPATH": "/shared/it's"}, python="/shared/venv/bin/python",
        )
    )  # fmt: skip
    lines = script.splitlines()
    asked = {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")}
    assert asked >= {
        "-p gpu", "-A lab", "-t 02:00:00", "--cpus-per-task=4", "--mem=6G", "--gres=gpu:1", "--constraint=a100",
        "--output=/dev/null", "--error=/dev/null",
    }  # fmt: skip
    worker = next(
        line for line in lines if line.startswith("/shared/venv/bin/python -m distributed.cli.dask_worker")
    )
    assert "--nthreads 2 --memory-limit 6.00GiB" in worker
    assert "--resources GPU=1" in worker
    assert "--interface lo" in worker
    before = lines[: lines.index(worker)]
    assert before[-1] == "module load cuda"
    assert "export OMP_NUM_THREADS=1" in before
    assert "export MALLOC_TRIM_THRESHOLD_=4294967296" in before
    assert "export STRATASCOPE_DATA='/shared/data with a space'" in before
    assert """export PYTHONPATH='/shared/it'"'"'s'""" in before
