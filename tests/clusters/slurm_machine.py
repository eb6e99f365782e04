"""A real Slurm with one node, this machine, in a temporary folder and on free ports of loopback."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.requirements import need_program, need_root

_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=5
MpiDefault=none
SwitchType=switch/none
KillWait=5
MinJobAge=60
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={controller_port}
SlurmdPort={node_port}
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=16000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
PartitionName=closed Nodes=ALL MaxTime=INFINITE State=DOWN
"""


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def until(true: Callable[[], Any], what: str, seconds: float = 120.0) -> Any:
    """Wait until `true()` is so; fails with `what` after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := true():
            return found
        time.sleep(0.1)
    raise AssertionError(f"in vain: {what}")


@dataclass
class SlurmMachine:
    """munged, slurmctld and slurmd, all in `folder`."""

    folder: Path
    programs: dict[str, str] = field(default_factory=dict)
    _running: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """What sbatch and its like need to find this Slurm and no other."""
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self) -> None:
        need_root("slurmctld and munged of a machine run as root")
        for name in ("munged", "mungekey", "slurmctld", "slurmd", "sbatch"):
            package = "munge" if name.startswith("munge") else "slurm-wlm"
            self.programs[name] = need_program(name, package=package)
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        host = socket.gethostname().split(".")[0]
        ports = {"controller_port": free_port(), "node_port": free_port()}
        text = _CONFIGURATION.format(host=host, folder=self.folder, **ports)
        (self.folder / "slurm.conf").write_text(text)
        (self.folder / "gres.conf").write_text(
            f"NodeName={host} Name=gpu File=/dev/null\nNodeName={host} Name=gpu File=/dev/zero\n"
        )
        self._start_munge()
        self._run("slurmctld", "-D")
        until(
            lambda: "UP" in self.ask("scontrol", "ping"), f"slurmctld answers; its log: {self._log('slurmctld')}"
        )
        self._run("slurmd", "-D", "-N", host)
        until(
            lambda: "idle" in self.ask("sinfo", "-h", "-o", "%T"), f"the node is idle; log: {self._log('slurmd')}"
        )

    def _start_munge(self) -> None:
        key, socket_file = self.folder / "munge.key", self.folder / "munge.socket"
        subprocess.run([self.programs["mungekey"], "--create", f"--keyfile={key}"], check=True, timeout=30)
        # munged wants its folders to be nobody else's to write, all the way up; /tmp is, so it is told to trust them.
        self._run(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={socket_file}",
            f"--pid-file={self.folder}/munged.pid", f"--log-file={self.folder}/munged.log",
            f"--seed-file={self.folder}/munged.seed", "--num-threads=2",
        )  # fmt: skip
        until(socket_file.exists, f"munged listens; its log: {self._log('munged')}")

    def _run(self, name: str, *words: str) -> None:
        with open(self.folder / f"{name}.printed", "wb") as printed:
            self._running.append(
                subprocess.Popen(
                    [self.programs[name], *words],
                    env={**os.environ, **self.environment},
                    stdout=printed,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def _log(self, name: str) -> str:
        return str(self.folder / f"{name}.log")

    def ask(self, *words: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(
            words, env={**os.environ, **self.environment}, capture_output=True, text=True, timeout=60, check=False
        )
        return done.stdout

    def jobs(self) -> list[str]:
        """The numbers of all jobs that are not over."""
        return self.ask("squeue", "-h", "-o", "%i").split()

    def running(self) -> list[str]:
        return self.ask("squeue", "-h", "-t", "R", "-o", "%i").split()

    def is_empty(self) -> bool:
        return not self.jobs()

    def stop(self) -> None:
        """End all jobs and daemons."""
        if len(self._running) == 3:
            for job in self.jobs():
                self.ask("scancel", "--full", job)
            end = time.monotonic() + 30
            while self.jobs() and time.monotonic() < end:
                time.sleep(0.2)
        for process in reversed(self._running):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
