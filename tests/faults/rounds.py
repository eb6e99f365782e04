"""One round of a fault: an audit is hit at a seeded moment, and the next audit must end as if nothing had happened."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from stratascope.storage.store import Store
from stratascope.storage.verification import verify
from tests.conftest import ENVIRONMENT, Workplace, stratascope

KINDS = ("one worker", "all workers", "driver", "server")
CHECKPOINTS = 6
_PATIENCE = 300


@dataclass(frozen=True)
class Round:
    """What one round showed. `problems` is empty where everything held."""

    kind: str
    seed: int
    moment: int
    """So many units and notes were committed when the blow fell."""
    code: int
    """How the audit that was hit ended."""
    kept: int
    """Units that it left whole."""
    computed: int
    """Units that the next audit computed."""
    problems: tuple[str, ...]


def series(folder: Path, count: int = CHECKPOINTS) -> Workplace:
    """A folder with `count` tiny checkpoints and the configuration that audits them."""
    folder.mkdir()
    place = Workplace(folder)
    place.configure()
    for step in range(count):
        place.checkpoint(step)
    return place


def started(place: Workplace) -> subprocess.Popen[str]:
    """An audit in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "stratascope", "audit", str(place.config), "--json"],
        env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def committed(place: Workplace) -> dict[str, bytes]:
    """Manifests and notes by their path."""
    folder = place.store / "manifests"
    found = {}
    for path in folder.rglob("*.json"):
        try:
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
        except FileNotFoundError:  # replaced at this very moment
            continue
    return found


def units(found: dict[str, bytes]) -> dict[str, bytes]:
    """The manifests of checkpoints, series and what compares runs: no notes about files, no probe, no report."""
    return {name: data for name, data in found.items() if not name.startswith(("_files", "_probe", "_report"))}


def wait_for(place: Workplace, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until `count` manifests and notes are committed. Raises AssertionError where the audit ends before."""
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until and process.poll() is None:
        if len(list((place.store / "manifests").rglob("*.json"))) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"the audit ended, or did too little: {process.communicate()}")


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def outlived(children: list[psutil.Process], seconds: float) -> list[str]:
    """Command lines of those of `children` that are still alive after `seconds`."""
    _, alive = psutil.wait_procs(children, timeout=seconds)
    return [" ".join(child.cmdline()) for child in alive if child.is_running()]


def victims(kind: str, process: subprocess.Popen[str], choice: random.Random) -> list[int]:
    """The processes that a fault of `kind` kills."""
    if kind == "driver":
        return [process.pid]
    mark = "stratascope.flows.server" if kind == "server" else "spawn_main"
    found = sorted(child.pid for child in family(process) if mark in " ".join(child.cmdline()))
    return [choice.choice(found)] if kind == "one worker" else found


def play(kind: str, seed: int, place: Workplace, whole: Workplace) -> Round:
    """Hit an audit of `place` by `kind` at a moment drawn with `seed`, audit again, and compare with `whole`."""
    from tests.end_to_end.test_audit import tree_of

    choice = random.Random(f"{kind} {seed}")
    moment = choice.randint(CHECKPOINTS, len(committed(whole)) - 3)
    process = started(place)
    wait_for(place, moment, process)
    time.sleep(choice.random() * 0.3)
    children = family(process)
    for pid in victims(kind, process, choice):
        os.kill(pid, signal.SIGKILL)
    _, error = process.communicate(timeout=_PATIENCE)
    problems = []
    if left := outlived(children, 20):
        problems.append(f"processes outlived the audit: {left}")
    if kind != "driver" and (process.returncode != 0 or "Traceback" in error):
        problems.append(f"the audit ended with {process.returncode}: {error[-2000:]}")
    problems += [f"after the blow: {item}" for item in verify(Store.open(place.store))]
    kept = units(committed(place))
    again = place.audit()
    if again.code != 0:
        problems.append(f"the next audit ended with {again.code}: {again.err[-2000:]}")
    computed = again.json["units"]["computed"] if again.out else -1
    later = units(committed(place))
    twice = [name for name, data in kept.items() if later.get(name) != data]
    if twice:
        problems.append(f"computed twice: {twice}")
    if tree_of(place.store) != tree_of(whole.store):
        problems.append("archive or ledger differ from those of an undisturbed audit")
    problems += [f"after the next audit: {item}" for item in verify(Store.open(place.store))]
    return Round(kind, seed, moment, process.returncode, len(kept), computed, tuple(problems))


__all__ = [
    "CHECKPOINTS", "KINDS", "Round", "committed", "family", "outlived", "play", "series", "started", "stratascope",
    "victims", "wait_for",
]  # fmt: skip
