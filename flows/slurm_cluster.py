"""Workers as jobs of Slurm, one each."""

from __future__ import annotations

import logging
import re
import subprocess
from typing import Any

from dask_jobqueue.slurm import SLURMCluster, SLURMJob
from distributed.core import Status
from distributed.deploy.spec import ProcessInterface

from stratascope.flows.cluster_spec import GPU, LOOPBACK, SlurmWorkers
from stratascope.flows.worker_environment import environment_of, export_lines

_ASK_SECONDS = 20
_ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT",
}  # fmt: skip


class WorkerJob(SLURMJob):
    """A job with one worker. What Slurm refuses is kept to be told: a job that is never sent is one that waits."""

    refusal = ""

    async def start(self) -> None:
        try:
            await super().start()
        except (RuntimeError, ValueError, OSError) as error:
            self.refusal = _sentence(str(error))
            await ProcessInterface.start(self)

    async def close(self) -> None:
        if self.status != Status.closed:
            await super().close()
            await ProcessInterface.close(self)


class WorkersOfSlurm(SLURMCluster):
    """A scheduler in this process and its workers in jobs."""

    job_cls = WorkerJob

    def __init__(self, spec: SlurmWorkers, security: Any) -> None:
        self._spec = spec
        super().__init__(**_options(spec, security))

    def why_no_worker(self) -> tuple[str, bool]:
        """What Slurm says of the jobs, and whether that is final."""
        jobs = [job for job in self.workers.values() if isinstance(job, WorkerJob)]
        refusals = sorted({job.refusal for job in jobs if job.refusal})
        if refusals:
            return f"sbatch says {'; '.join(refusals)!r}", True
        states = [_state(job.job_id) for job in jobs if job.job_id]
        told = "; ".join(f"job {job.job_id} is {state}" for job, state in zip(jobs, states, strict=False) if state)
        ended = bool(states) and all(state.split(" ")[0] in _ENDED for state in states)
        return f"Slurm says {told or 'nothing of the jobs'}{self._hint(ended)}", ended

    def _hint(self, ended: bool) -> str:
        if ended:
            folder = self._spec.log_directory
            return (
                f"; what they printed is in {folder}"
                if folder
                else "; `cluster.log_directory` keeps what they print"
            )
        if self._spec.on_this_machine:
            return "; the scheduler listens on loopback, workers on other nodes need `cluster.interface`"
        return ""


def start(spec: SlurmWorkers, security: Any = None) -> WorkersOfSlurm:
    """Submit the jobs that `spec` asks for; what is lost on the way is submitted anew."""
    cluster = WorkersOfSlurm(spec, security)
    cluster.scale(spec.least_workers)
    cluster.adapt(minimum=spec.least_workers, maximum=spec.most_workers)
    return cluster


def job_script(spec: SlurmWorkers) -> str:
    """The script of a job, without the address of a scheduler: to read, and to test."""
    options = _options(spec, None)
    for name in ("scheduler_options", "silence_logs"):
        options.pop(name)
    return str(WorkerJob("tcp://scheduler:8786", name="worker", config_name="slurm", **options).job_script())


def _options(spec: SlurmWorkers, security: Any) -> dict[str, Any]:
    directives = list(spec.job_extra_directives)
    arguments: list[str] = []
    if spec.log_directory is None:
        directives = ["--output=/dev/null", "--error=/dev/null", *directives]
    if spec.gpus_per_worker:
        # Slurm itself sets CUDA_VISIBLE_DEVICES to the card of the job.
        directives = ["--gres=gpu:1", *directives]
        arguments += ["--resources", f"{GPU}=1"]
    if spec.on_this_machine:
        arguments += ["--dashboard-address", f"{LOOPBACK}:0"]
    else:
        arguments += ["--no-dashboard"]
    return {
        "queue": spec.queue,
        "account": spec.account,
        "walltime": spec.walltime,
        "cores": spec.threads,
        "job_cpu": spec.cores or spec.threads,
        "memory": f"{spec.memory}B",
        "processes": 1,
        "interface": spec.interface,
        "python": spec.python,
        "log_directory": spec.log_directory,
        "local_directory": spec.local_directory,
        "job_name": "stratascope",
        "job_extra_directives": directives,
        "job_script_prologue": [*export_lines(environment_of(spec)), *spec.prologue],
        "worker_extra_args": arguments,
        "security": security,
        "scheduler_options": {"interface": spec.interface, "dashboard_address": f"{LOOPBACK}:0"},
        "silence_logs": logging.CRITICAL,
    }


def _state(job: str) -> str:
    """State, reason and exit code of a job as Slurm tells them; empty where it knows nothing of it any more."""
    try:
        said = subprocess.run(
            ["scontrol", "--oneliner", "show", "job", job],
            capture_output=True, text=True, timeout=_ASK_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    found = dict(re.findall(r"\b(JobState|Reason|ExitCode)=(\S+)", said.stdout))
    if "JobState" not in found:
        return ""
    details = [f"Reason={found['Reason']}"] if found.get("Reason", "None") != "None" else []
    details += [f"ExitCode={found['ExitCode']}"] if found.get("ExitCode", "0:0") != "0:0" else []
    return f"{found['JobState']} ({', '.join(details)})" if details else found["JobState"]


def _sentence(error: str) -> str:
    """What sbatch printed, out of all that dask-jobqueue tells of it."""
    said = re.findall(r"sbatch: (?:error: )?(.+)", error)
    return ": ".join(line.strip() for line in said) if said else error.strip().splitlines()[0]
