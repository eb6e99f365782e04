"""A real S3 server on loopback, a bucket of one's own, and a proxy in front of it that spoils answers."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from stratascope.storage.objects import ObjectFolder, open_folder
from tests.requirements import need_module


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@dataclass
class Bucket:
    """A bucket of the server, and what a process must be told to reach it."""

    url: str
    endpoint: str
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def objects(self) -> ObjectFolder:
        return open_folder(self.url)

    def upload(self, path: Path, name: str) -> str:
        self.objects.write(name, path.read_bytes())
        return f"{self.url}/{name}"

    def contents(self, *prefixes: str) -> dict[str, bytes]:
        """Bytes of all objects below each of `prefixes`, by name."""
        names = [name for prefix in prefixes for name in self.objects.list(prefix)]
        return {name: self.objects.read(name)[0] for name in sorted(names)}


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    need_module("obstore", "s3")
    need_module("moto", "development")
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, "the S3 server ended"
                assert time.monotonic() < deadline, "the S3 server does not answer"
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture
def bucket(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """An empty bucket; this process and its children find it through the environment, with a cache of their own."""
    name = f"b{uuid.uuid4().hex[:20]}"
    urllib.request.urlopen(urllib.request.Request(f"{s3_server}/{name}", method="PUT"), timeout=30).close()
    environment = {
        "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": s3_server, "STRATASCOPE_CACHE": str(tmp_path / "cache"),
    }  # fmt: skip
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    return Bucket(f"s3://{name}", s3_server, environment)
