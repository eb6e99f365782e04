"""A real sshd on a free port of loopback, with keys of its own, that lets in whoever runs the test."""

from __future__ import annotations

import getpass
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.clusters.slurm_machine import free_port, until
from tests.requirements import need_program

_CONFIGURATION = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile {folder}/sshd.pid
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
"""


@dataclass
class SshMachine:
    """sshd with all its files in `folder`."""

    folder: Path
    port: int = 0
    _server: Any = None

    def start(self) -> None:
        sshd = need_program("sshd", package="openssh-server")
        keygen = need_program("ssh-keygen", package="openssh-client")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where sshd shuts itself in before somebody has logged in
        for name in ("host_key", "user_key", "other_key"):
            subprocess.run(
                [keygen, "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name)], check=True, timeout=60
            )
        self.port = free_port()
        (self.folder / "authorized_keys").write_text((self.folder / "user_key.pub").read_text())
        for known, key in (("known_hosts", "host_key"), ("wrong_hosts", "other_key")):
            public = (self.folder / f"{key}.pub").read_text()
            (self.folder / known).write_text(f"[127.0.0.1]:{self.port} {public}")
        (self.folder / "sshd_config").write_text(_CONFIGURATION.format(port=self.port, folder=self.folder))
        log = self.folder / "sshd.log"
        self._server = subprocess.Popen(
            [sshd, "-D", "-f", str(self.folder / "sshd_config"), "-E", str(log)],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        until(lambda: log.exists() and "listening" in log.read_text(), f"sshd listens; its log: {log}")

    def cluster(self, **changes: Any) -> dict[str, Any]:
        """The key `cluster` of a configuration with two workers here."""
        return {
            "kind": "ssh",
            "hosts": ["127.0.0.1", "127.0.0.1"],
            "port": self.port,
            "username": getpass.getuser(),
            "key": str(self.folder / "user_key"),
            "known_hosts": str(self.folder / "known_hosts"),
        } | changes

    def stop(self) -> None:
        if self._server is not None:
            self._server.terminate()
            self._server.wait(20)
