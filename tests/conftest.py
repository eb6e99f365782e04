"""What several test folders share: a finished demo, and tiny series to audit."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from stratascope.tasks.models import mlp

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "200"}
# Hundreds of processes are started: without bytecode on the disk each would compile the package anew.
ENVIRONMENT.pop("PYTHONDONTWRITEBYTECODE", None)
ONE_WORKER = {"workers": 1}
"""For audits of which nothing is asked that a second worker could change: its start takes as long as the work."""


@dataclass
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def stratascope(*words: str | Path, folder: Path | None = None, **environment: str) -> Ran:
    """Run the command as a user does, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "stratascope", *map(str, words)],
        cwd=folder, env={**ENVIRONMENT, **environment}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    return Ran(done.returncode, done.stdout, done.stderr)


@dataclass
class Workplace:
    """A folder with a series of tiny checkpoints and a configuration that audits them."""

    folder: Path

    @property
    def config(self) -> Path:
        return self.folder / "audit.yaml"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def configure(self, **changes: Any) -> Path:
        """Write the configuration with some keys changed; None removes a key."""
        content = {
            "store": "store",
            "probe": {"dataset": "digits", "split": "test", "limit": 60},
            "runs": [
                {
                    "name": "small",
                    "checkpoints": "runs/step-*.safetensors",
                    "model": {"factory": "stratascope.tasks.models:mlp", "args": {"inputs": 64, "widths": [12]}},
                }
            ],
            "analyses": {"outputs": {}, "statistics": {}, "embedding": {"methods": ["pca"]}},
            "cluster": {"workers": 2},
        } | changes
        self.config.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
        return self.config

    def checkpoint(self, step: int, seed: int = 0, name: str | None = None) -> Path:
        """Write weights that drift with the step, so that every step differs and none is out of place."""
        torch.manual_seed(seed)
        network, drift = mlp(64, (12,)), mlp(64, (12,))
        tensors = {
            key: value + 0.05 * step * drift.state_dict()[key] for key, value in network.state_dict().items()
        }
        path = self.folder / "runs" / (name or f"step-{step}.safetensors")
        path.parent.mkdir(exist_ok=True)
        save_file(tensors, path)
        return path

    def audit(self, *words: str, **environment: str) -> Ran:
        return stratascope("audit", self.config, "--json", *words, **environment)


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    place = Workplace(tmp_path)
    place.configure()
    for step in range(4):
        place.checkpoint(step)
    return place


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name`, filled by `make` once for all workers of pytest-xdist: who comes second waits for the first.

    All of them are given the same folder: what a test writes there, the others see.
    """
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, made = base / name, base / f"{name}.made"
    with open(base / f"{name}.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            # What a worker left that failed half-way is no beginning for the next.
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            made.touch()
    return folder


def _audit_once(folder: Path) -> None:
    place = Workplace(folder / "audited")
    place.folder.mkdir()
    place.configure()
    for step in range(4):
        place.checkpoint(step)
    done = place.audit()
    assert done.code == 0, done.err
    shutil.copytree(place.folder, folder / "untouched")


@pytest.fixture(scope="session")
def audited(tmp_path_factory) -> Workplace:
    """A series that has been audited once; tests only read it, or put it back as it was."""
    return Workplace(made_once(tmp_path_factory, "series", _audit_once) / "audited")


@pytest.fixture
def copy_of_audited(audited: Workplace, tmp_path: Path) -> Workplace:
    """A copy of `audited` as its audit left it, to do with as one likes.

    The copy is not made of `audited` itself, which another worker's test may be auditing again at this moment.
    """
    place = Workplace(tmp_path / "copy")
    shutil.copytree(audited.folder.with_name("untouched"), place.folder)
    return place


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory) -> Path:
    """What `stratascope demo` leaves behind; tests only read it, or audit it again when there is nothing to do."""

    def make(folder: Path) -> None:
        done = stratascope("demo", folder / "demo")
        assert done.code == 0, done.err

    return made_once(tmp_path_factory, "demonstration", make) / "demo"


@pytest.fixture(scope="session")
def demo_store(demo_folder: Path) -> Path:
    return demo_folder / "store"
