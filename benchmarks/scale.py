"""1,000 checkpoints × 50 layers × 30 metrics: compaction, checks, history, metrics, report, and its pages in Chromium.

    python benchmarks/scale.py [RUNS]

The store is made up (`synthetic_store.py`); everything is then measured as the command or the flow does it.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from measuring import WORK, write_results
from synthetic_store import make_store, write_record

CHECKPOINTS, LAYERS = 1000, 50
METRICS_CALLS = {
    "one metric, csv": ("--metric", "dead_fraction", "--format", "csv"),
    "one metric, json": ("--metric", "dead_fraction", "--format", "json"),
    "one metric, parquet": ("--metric", "dead_fraction", "--format", "parquet"),
    "one metric, table": ("--metric", "dead_fraction"),
    "layers by glob at one step, csv": ("--layer", "stage1*", "--step", "500", "--format", "csv"),
    "everything, csv": ("--format", "csv"),
    "everything, parquet": ("--format", "parquet"),
}


def timed(work: Callable[[], Any], rounds: int = 3) -> dict[str, float]:
    """Wall seconds, and processor seconds of this process and its children, which other programs do not stretch."""
    walls, processors = [], []
    for _ in range(rounds):
        wall, processor = time.perf_counter(), processor_seconds()
        work()
        walls.append(time.perf_counter() - wall)
        processors.append(processor_seconds() - processor)
    return {"wall": statistics.median(walls), "most": max(walls), "processor": statistics.median(processors)}


def processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(item.ru_utime + item.ru_stime for item in used)


def command(*words: Any) -> Callable[[], Any]:
    """The command `stratascope` with `words`, its output thrown away."""
    line = [sys.executable, "-m", "stratascope", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return lambda: subprocess.run(
        line, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment
    )


def forget(store: Any) -> None:
    """Remove everything derived."""
    for name in ("ledger/_compacted", ".derived"):
        shutil.rmtree(store.path / name, ignore_errors=True)


def judge(store: Any) -> Any:
    """The suites over the whole ledger as the audit does it: rows read, judged, what came out filed."""
    from stratascope.tasks.checks.filing import judge_store

    return judge_store(str(store.path), store.units(), None)


def one_more(store: Any) -> None:
    """A new checkpoint, then the ledger again."""
    from synthetic_store import _write_checkpoints

    _write_checkpoints(str(store.path), [("run-0", 10_000_000)], LAYERS)
    store.rows()


def pages(report: Path) -> dict[str, Any]:
    """Bytes of the largest pages, and seconds until Chromium shows them: loaded, laid out, its first frame drawn."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    sizes = {path: path.stat().st_size for path in report.rglob("*.html")}
    largest = sorted(sizes, key=lambda path: -sizes[path])[:4]
    chosen = {*largest, report / "index.html", next((report / "layers").iterdir())}
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    found = {}
    drawn = "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(() => done(performance.now() / 1000)))"
    try:
        for path in sorted(chosen):
            driver.get((report / "index.html").as_uri())
            seconds = []
            for _ in range(3):
                driver.get("about:blank")
                driver.get(path.as_uri())
                seconds.append(driver.execute_async_script(drawn))
            name = path.relative_to(report).as_posix()
            found[name] = {"bytes": sizes[path], "seconds": statistics.median(seconds), "most": max(seconds)}
    finally:
        driver.quit()
    return {"pages": len(sizes), "bytes of the largest": max(sizes.values()), "in Chromium": found}


def main(runs: int) -> None:
    WORK.mkdir(exist_ok=True)
    place = WORK / f"scale-{runs}"
    before = os.getloadavg()
    from stratascope.storage.store import Store

    store = Store.open(place, create=True)
    if sum(unit.analysis == "capture" for unit in store.units()) != CHECKPOINTS:
        store = make_store(place, runs, CHECKPOINTS, LAYERS)
    for path in (store.path / "audits").iterdir():
        path.unlink()
    found: dict[str, Any] = {"compaction": timed(lambda: (forget(store), store.rows()), rounds=1)}
    found["rows read from the compacted ledger"] = timed(store.rows)
    found["checks, ledger read and outcomes filed"] = timed(lambda: judge(store))
    write_record(store, judge(store))
    found["history"] = timed(command("history", place, "--json"))
    for name, words in METRICS_CALLS.items():
        found[f"metrics, {name}"] = timed(command("metrics", place, *words))
    found["report"] = timed(command("report", place), rounds=1)
    shown = pages(store.path / "report")
    found["compaction after one more checkpoint"] = timed(lambda: one_more(store), rounds=1)
    write_results(
        f"scale_{runs}",
        {
            "what": __doc__, "runs": runs, "rows": len(store.rows()), "seconds": found, "report": shown,
            "load before": before, "load after": os.getloadavg(),
        },
    )  # fmt: skip


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
