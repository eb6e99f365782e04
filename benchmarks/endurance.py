"""A thousand checkpoints of a tiny network through the whole command: seconds, and memory of each process over time.

    python benchmarks/endurance.py [CHECKPOINTS]

Driver, server and workers are told apart by their command lines and sampled while the audit runs.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from audit import DIGITS, TINY, series
from measuring import WORK, write_results

SAMPLE_SECONDS = 2.0


def kind_of(process: Any, driver: int) -> str:
    """What `process` is for in an audit whose command has the id `driver`."""
    words = " ".join(process.cmdline())
    if process.pid == driver:
        return "driver"
    if ("prefect" in words and "server" in words) or "uvicorn" in words:
        return "server"
    if "multiprocessing" in words and "resource_tracker" not in words:
        return "worker"
    return "other"


def sample(driver: Any) -> dict[str, int]:
    """Bytes that belong to driver, server and the largest worker alone, and processor seconds so far."""
    import psutil

    found: dict[str, int] = {}
    for process in [driver, *driver.children(recursive=True)]:
        try:
            kind, own, times = kind_of(process, driver.pid), process.memory_full_info().uss, process.cpu_times()
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
        found[kind] = max(found.get(kind, 0), own)
        found[f"{kind} seconds"] = round(found.get(f"{kind} seconds", 0) + times.user + times.system, 1)
    return found


def watched(config: Path, store: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Run the audit of `config`; returns what it printed, and the samples with how many checkpoints were done."""
    import psutil

    begun = time.perf_counter()
    out = WORK / "endurance.json"
    with out.open("w") as stdout, (WORK / "endurance.err").open("w") as stderr:
        running = subprocess.Popen(
            [sys.executable, "-m", "stratascope", "audit", str(config), "--json"], stdout=stdout, stderr=stderr,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        samples = []
        while running.poll() is None:
            time.sleep(SAMPLE_SECONDS)
            try:
                here = sample(psutil.Process(running.pid))
            except psutil.NoSuchProcess:
                break
            done = len(list((store / "manifests" / "run").glob("*/outputs.json")))
            samples.append({"second": round(time.perf_counter() - begun, 1), "done": done, **here})
        running.wait()
    seconds = time.perf_counter() - begun
    told = json.loads(out.read_text())
    return {"seconds": seconds, "exit code": running.returncode, "units": told["units"]}, samples


def at_shares(samples: list[dict[str, Any]], count: int) -> dict[str, dict[str, float]]:
    """Median megabytes of each kind of process while so many hundredths of the checkpoints were done."""
    found = {}
    for low, high in ((5, 15), (15, 35), (35, 65), (65, 85), (85, 99)):
        inside = [item for item in samples if low <= 100 * item["done"] / count < high]
        kinds = ("driver", "server", "worker")
        if inside:
            found[f"{low}–{high} %"] = {
                kind: statistics.median(item.get(kind, 0) for item in inside) / 1e6 for kind in kinds
            }
    return found


def main(count: int) -> None:
    WORK.mkdir(exist_ok=True)
    config = series(WORK / "endurance", count, *TINY, **DIGITS, cluster={"workers": 2},
                    analyses={"outputs": {}, "statistics": {}})  # fmt: skip
    done, samples = watched(config, config.parent / "store")
    load = os.getloadavg()
    peaks = {
        kind: max(item.get(kind, 0) for item in samples) / 1e6 for kind in ("driver", "server", "worker", "other")
    }
    write_results(
        "endurance",
        {
            "what": main.__doc__ or __doc__, "checkpoints": count, **done, "load at the end": load,
            "own megabytes, by share of the checkpoints done": at_shares(samples, count),
            "peak own megabytes": peaks,
            "processor seconds": {
                kind: max(item.get(f"{kind} seconds", 0) for item in samples)
                for kind in ("driver", "server", "worker")
            },
            "samples": samples[:: max(1, len(samples) // 60)],
        },
    )  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
