"""What all benchmarks share: one process for each measurement, interleaved rounds, the machine beside the numbers."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
WORK = Path(__file__).parent / "work"
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
}
"""One thread, and memory that is kept rather than returned: what the audit's own workers run with."""


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch

    described = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in described if line.startswith("model name")), "unknown")
    return {
        "processor": model, "cores": os.cpu_count(), "python": platform.python_version(), "torch": torch.__version__,
        "system": platform.platform(), "load_average": [round(item, 2) for item in os.getloadavg()],
    }  # fmt: skip


def measured(work: Callable[[], Any]) -> dict[str, float]:
    """Wall and processor seconds of `work`, and this process's peak memory in bytes."""
    processor, wall = time.process_time(), time.perf_counter()
    work()
    return {
        "seconds": time.perf_counter() - wall,
        "processor_seconds": time.process_time() - processor,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def in_own_process(script: str, *words: Any, python: str = sys.executable) -> dict[str, Any]:
    """Run `script` with `words`; what it prints last is one JSON object."""
    done = subprocess.run(
        [python, script, *map(str, words)], env=os.environ | ENVIRONMENT, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"{script} {words}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def interleaved(
    rounds: int, cases: Sequence[str], run: Callable[[str], dict[str, Any]]
) -> dict[str, list[dict[str, Any]]]:
    """Every case once a round, so that what else the machine does falls on all of them."""
    found: dict[str, list[dict[str, Any]]] = {case: [] for case in cases}
    for number in range(rounds):
        for case in cases:
            found[case].append(run(case))
            print(f"round {number + 1} of {rounds}: {case}: {found[case][-1]}", file=sys.stderr, flush=True)
    return found


def summary(runs: Sequence[dict[str, Any]], key: str = "seconds") -> dict[str, float]:
    """Median, least and most of one number."""
    values = [float(item[key]) for item in runs]
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def ratio(
    first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]], time: str = "processor_seconds"
) -> dict[str, float]:
    """`time` of `first` by that of `second`, round by round."""
    return summary([{"seconds": one[time] / two[time]} for one, two in zip(first, second, strict=True)])


def folder_bytes(path: Path) -> int:
    """Bytes of all files below `path`."""
    return sum(item.stat().st_size for item in path.rglob("*") if item.is_file())


def write_results(name: str, content: dict[str, Any]) -> None:
    """Keep the numbers beside the scripts, with the machine."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(
        json.dumps({"machine": machine(), **content}, indent=1, sort_keys=True) + "\n"
    )
    print(f"{RESULTS / f'{name}.json'} written")
