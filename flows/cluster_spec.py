"""Where the workers of an audit are, as the key `cluster` of a configuration says it.

Importing this module brings in neither Dask nor Prefect, so that planning stays quick.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

LOOPBACK = "127.0.0.1"
GPU = "GPU"
"""The Dask resource that a worker with a graphics card offers, one of it, and that a unit with a network asks for."""
_UNITS = {"": 1, "B": 1}
_UNITS |= {name: 1000**power for power, name in enumerate(("kB", "MB", "GB", "TB"), 1)}
_UNITS |= {name: 1024**power for power, name in enumerate(("KiB", "MiB", "GiB", "TiB"), 1)}
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def parse_bytes(size: Any) -> int:
    """Bytes of a size such as ``4 GiB`` or ``500MB``; raises ValueError that tells the form."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(size))
    units = {name.lower(): factor for name, factor in _UNITS.items()}
    if match is None or match.group(2).lower() not in units:
        raise ValueError("expected a size such as '4 GiB' or '500 MB'")
    return int(float(match.group(1)) * units[match.group(2).lower()])


Bytes = Annotated[int, BeforeValidator(parse_bytes, json_schema_input_type=int | str), Field(gt=0)]


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, is this machine spoken to by itself."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def host_of(address: str) -> str:
    """The host in an address such as ``tcp://10.0.0.5:8786`` or ``http://prefect:4200/api``."""
    host = address.rpartition("://")[2].partition("/")[0]
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Adaptive(_Model):
    """As many workers as there is work for, within bounds."""

    minimum: int = Field(default=1, ge=1)
    maximum: int = Field(ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.minimum > self.maximum:
            raise ValueError(f"`minimum` {self.minimum} is above `maximum` {self.maximum}")
        return self


class TlsFiles(_Model):
    """Certificates with which scheduler, workers and this command know each other, and encrypt what they say."""

    ca: str
    cert: str
    key: str

    @field_validator("ca", "cert", "key")
    @classmethod
    def _is_there(cls, path: str) -> str:
        if not Path(path).is_absolute():
            raise ValueError("give an absolute path: the workers open the same file")
        if not Path(path).is_file():
            raise ValueError("there is no such file")
        return path


class _Workers(_Model):
    """What holds for workers of every kind."""

    workers: int = Field(default=2, ge=1)
    """So many workers; of an existing cluster, so many are there about."""
    gpus_per_worker: int = Field(default=0, ge=0, le=1)
    """1: every worker offers one Dask resource `GPU`, has a graphics card for itself, and runs networks on it."""
    start_seconds: float = Field(default=300.0, gt=0)
    """So long the audit waits for its first worker."""

    @property
    def on_this_machine(self) -> bool:
        """Whether every worker can reach what listens on this machine's loopback only."""
        return False

    @property
    def whereabouts(self) -> str:
        """Where the workers are, for a message."""
        return "elsewhere"


class _StartedWorkers(_Workers):
    """What holds for workers that the audit itself starts and ends."""

    adaptive: Adaptive | None = None
    memory: Bytes | None = None
    """Of one worker."""
    threads: int = Field(default=1, ge=1)
    """So many units at once in a worker; each needs its own memory."""
    environment: dict[str, str] = {}
    """Variables that the workers find in their environment, such as STRATASCOPE_DATA or PYTHONPATH."""

    @field_validator("environment")
    @classmethod
    def _names_of_variables(cls, environment: dict[str, str]) -> dict[str, str]:
        for name in environment:
            if not _VARIABLE.fullmatch(name):
                raise ValueError(f"{name!r} is no name of an environment variable")
        return environment

    @property
    def most_workers(self) -> int:
        return self.adaptive.maximum if self.adaptive else self.workers

    @property
    def least_workers(self) -> int:
        return self.adaptive.minimum if self.adaptive else self.workers


class LocalWorkers(_StartedWorkers):
    """Processes on this machine."""

    kind: Literal["local"] = "local"

    @property
    def on_this_machine(self) -> bool:
        return True


class WorkersAtAddress(_Workers):
    """The workers of a Dask scheduler that runs already."""

    kind: Literal["address"] = "address"
    address: str
    tls: TlsFiles | None = None

    @field_validator("address")
    @classmethod
    def _is_an_address(cls, address: str) -> str:
        if not re.fullmatch(r"(tcp|tls|ws|wss)://\S+:\d+", address):
            raise ValueError("expected the address of a Dask scheduler, such as tcp://127.0.0.1:8786")
        return address

    @model_validator(mode="after")
    def _tls_has_certificates(self) -> Self:
        if self.address.startswith("tls://") and self.tls is None:
            raise ValueError("a tls:// address needs `tls: {ca, cert, key}`")
        return self

    @property
    def on_this_machine(self) -> bool:
        return is_loopback(host_of(self.address))

    @property
    def whereabouts(self) -> str:
        return self.address


class SlurmWorkers(_StartedWorkers):
    """Jobs of the batch system Slurm, one worker each."""

    kind: Literal["slurm"] = "slurm"
    memory: Bytes
    queue: str | None = None
    """The partition; Slurm's default one where it is not given."""
    account: str | None = None
    walltime: str = "01:00:00"
    cores: int | None = Field(default=None, ge=1)
    """Of one job; as many as `threads` where it is not given."""
    job_extra_directives: tuple[str, ...] = ()
    """What else goes behind `#SBATCH`, such as `--constraint=a100`."""
    prologue: tuple[str, ...] = ()
    """Shell lines that a job runs first, such as `module load cuda`."""
    interface: str = "lo"
    """The network interface on which scheduler and workers listen; `lo` is loopback, for a Slurm of one machine."""
    python: str | None = None
    """The Python of the jobs; that of this command where it is not given."""
    log_directory: str | None = None
    """Where jobs write what they print; nowhere if it is not given."""
    local_directory: str | None = None
    """Where workers keep what Dask spills, such as /scratch."""
    tls: TlsFiles | None = None

    @field_validator("queue", "account", "walltime", "interface", "python", "log_directory", "local_directory")
    @classmethod
    def _one_word(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[\w.,:@%+=/~-]+", value):
            raise ValueError("it goes into a job script: letters, digits and . , : @ % + = / ~ - only, no spaces")
        return value

    @field_validator("job_extra_directives")
    @classmethod
    def _one_line(cls, lines: tuple[str, ...]) -> tuple[str, ...]:
        if any("\n" in line for line in lines):
            raise ValueError("a directive is one line")
        return lines

    @property
    def on_this_machine(self) -> bool:
        import psutil

        own = psutil.net_if_addrs().get(self.interface, [])
        addresses = [item.address for item in own if item.family == socket.AF_INET]
        return bool(addresses) and all(is_loopback(address) for address in addresses)

    @property
    def whereabouts(self) -> str:
        return f"nodes of Slurm's {f'queue {self.queue!r}' if self.queue else 'default queue'}"


class SshWorkers(_StartedWorkers):
    """Processes on machines that can be logged in to by ssh."""

    kind: Literal["ssh"] = "ssh"
    hosts: tuple[str, ...] = Field(min_length=1)
    """Taken in turn; each gets as many workers as its turns. Without `workers`, one each."""
    host: str = LOOPBACK
    """The address of this machine on which the scheduler listens, and that workers call."""
    port: int = Field(default=22, ge=1, le=65535)
    username: str | None = None
    key: str | None = None
    """A file with the private key; the agent and the usual files where it is not given."""
    known_hosts: str | None = None
    """A file with the hosts' public keys; `~/.ssh/known_hosts` where it is not given. They are always checked."""
    connect_seconds: float = Field(default=30.0, gt=0)
    remote_python: str | None = None
    """The Python of the workers; the path of this command's own where it is not given."""
    tls: TlsFiles | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_each(cls, values: Any) -> Any:
        if isinstance(values, dict) and "workers" not in values and isinstance(values.get("hosts"), list | tuple):
            return {**values, "workers": max(1, len(values["hosts"]))}
        return values

    @model_validator(mode="after")
    def _can_be_called(self) -> Self:
        away = [host for host in self.hosts if not is_loopback(host)]
        if away and is_loopback(self.host):
            raise ValueError(
                f"workers on {away[0]!r} cannot reach a scheduler on loopback: set `host` to the address of this "
                "machine by which they call it"
            )
        return self

    @property
    def on_this_machine(self) -> bool:
        return is_loopback(self.host) and all(is_loopback(host) for host in self.hosts)

    @property
    def whereabouts(self) -> str:
        return ", ".join(self.hosts[:3]) + (" …" if len(self.hosts) > 3 else "")


class Claim(_Model):
    """A persistent volume claim, and where the pods see it."""

    claim: str
    path: str


class KubernetesWorkers(_StartedWorkers):
    """Pods that Dask's operator starts."""

    kind: Literal["kubernetes"] = "kubernetes"
    memory: Bytes
    image: str
    """With the same versions of Stratascope, Dask and Python as this command."""
    namespace: str | None = None
    cores: float = Field(default=1.0, gt=0)
    """Of one worker."""
    resources: dict[Literal["limits", "requests"], dict[str, str]] = {}
    """Of a worker's container, beside or in place of what `memory`, `cores` and `gpus_per_worker` give."""
    volumes: tuple[Claim, ...] = ()
    """What workers and this command share: the store, the checkpoints, the data."""
    worker_spec: dict[str, Any] = {}
    """Keys of a worker's PodSpec that go over what is made here; lists of named things are joined by name."""
    gpu_resource: str = "nvidia.com/gpu"

    @property
    def whereabouts(self) -> str:
        return "pods of a Kubernetes cluster"


def _with_kind(values: Any) -> Any:
    return {"kind": "local", **values} if isinstance(values, dict) else values


AnyWorkers = LocalWorkers | WorkersAtAddress | SlurmWorkers | KubernetesWorkers | SshWorkers
StartedWorkers = LocalWorkers | SlurmWorkers | KubernetesWorkers | SshWorkers
ClusterSpec = Annotated[
    Annotated[AnyWorkers, Field(discriminator="kind")],
    BeforeValidator(_with_kind),
]
