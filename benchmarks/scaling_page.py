"""Writes docs/scaling.md from the results that the benchmarks left.

python benchmarks/scaling_page.py
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from page import FOLDER, result

TASKS = 5
"""Of one checkpoint in `endurance.py`: reading its file, capture and three analyses."""
PAGE = FOLDER.parent / "docs" / "scaling.md"


def load_of(found: dict[str, Any]) -> str:
    """The load of the machine while a part was measured, in words."""
    return f"load {found['machine']['load_average'][0]:.0f} on {found['machine']['cores']} cores when it ended"


def reading() -> list[str]:
    found = result("scale_1")
    lines = [
        "## Reading 1.5 million rows",
        "",
        f"1,000 checkpoints × 50 layers × 30 metrics: {found['rows']:,} rows in one run, from 3,000 units. `benchmarks/scale.py 1`;",
        f"{load_of(found)}. Processor seconds are what a free core would take; wall seconds are with everything that ran beside it.",
        "",
        "| what | processor s | wall s |",
        "|---|---|---|",
    ]
    for name, numbers in found["seconds"].items():
        lines.append(f"| {name} | {numbers['processor']:.2f} | {numbers['wall']:.2f} |")
    report = found["report"]
    lines += [
        "",
        f"The report has {report['pages']} pages; the largest has {report['bytes of the largest'] / 1e6:.2f} MB. Seconds until Chromium has",
        "loaded a page and drawn its first frame:",
        "",
        "| page | MB | s (most) |",
        "|---|---|---|",
    ]
    for name, numbers in report["in Chromium"].items():
        lines.append(
            f"| {name} | {numbers['bytes'] / 1e6:.2f} | {numbers['seconds']:.2f} ({numbers['most']:.2f}) |"
        )
    return [
        *lines,
        "",
        "How: `ledger/_compacted/<run>.parquet` is sorted by analysis, metric, layer, probe, part and step and has row groups of 32,768",
        "rows, so that a question about one metric passes over the others; only new units are put in, the rest of the file is carried",
        "over. `.derived/units.json` remembers what the manifests say, by their size, times and inode. Both can be deleted at any time.",
        "A table for people ends after 1,000 rows and says how many more there are. Pictures of many steps are thinned, and say so.",
        "",
    ]


def probes() -> list[str]:
    found = result("streaming")
    lines = [
        "## A probe of a million samples",
        "",
        f"Samples of 1 × 16 × 16 float32, kept as the audit keeps a probe, and read in batches of 256. `benchmarks/streaming.py`; {load_of(found)}.",
        "",
        "| source, samples | MB of inputs | peak MB of the process | s to keep | s to read |",
        "|---|---|---|---|---|",
    ]
    for name, numbers in found["cases"].items():
        lines.append(
            f"| {name} | {numbers['input bytes'] / 1e6:.0f} | {numbers['peak_bytes'] / 1e6:.0f} | {numbers['seconds to keep']:.1f} "
            f"| {numbers['seconds to read']:.1f} |"
        )
    growth = " and ".join(
        f"{(more['peak_bytes'] - fewer['peak_bytes']) * 1024 / (more['input bytes'] - fewer['input bytes']):.0f} bytes ({source})"
        for source, fewer, more in (
            (source, found["cases"][f"{source}, 100,000"], found["cases"][f"{source}, 1,000,000"])
            for source in ("items", "zarr")
        )
    )
    return [
        *lines,
        "",
        "Inputs of more than 64 MB are made ready in slices of 16 MB: once for the digest, once for the archive, and never all at once.",
        f"What still grows: {growth} for each sample, of 1,024 bytes of input; its target and its id are held, and what tests that ids",
        "are unique. An `.npz` is read whole: use Zarr, a memory-mapped array or a map-style data set for what does not fit. A probe from a factory is read at the",
        "beginning of each audit to learn whether it is still the same, because nobody else can tell; one from files is not.",
        "",
    ]


def endurance() -> list[str]:
    found = result("endurance")
    shares = found["own megabytes, by share of the checkpoints done"]
    processors = found["processor seconds"]
    count = found["checkpoints"]
    lines = [
        f"## {count:,} checkpoints through the whole command",
        "",
        f"A tiny network, two workers, {found['units']['computed']:,} units, {found['seconds'] / 60:.0f} minutes; {load_of(found)}. Memory that belongs to",
        "the process alone, in MB, while so many of the checkpoints were done. `benchmarks/endurance.py`",
        "",
        "| done | driver | server | largest worker |",
        "|---|---|---|---|",
    ]
    for name, numbers in sorted(shares.items(), key=lambda item: int(item[0].split("–")[0])):
        lines.append(f"| {name} | {numbers['driver']:.0f} | {numbers['server']:.0f} | {numbers['worker']:.0f} |")
    peaks = found["peak own megabytes"]
    lines.append(
        f"| most, report included | {peaks['driver']:.0f} | {peaks['server']:.0f} | {peaks['worker']:.0f} |"
    )
    per = {name: 1000 * seconds / count for name, seconds in processors.items()}
    slowest = max(per["driver"], per["server"]) / 1000
    return [
        *lines,
        "",
        f"Processor milliseconds for each checkpoint, of {TASKS} Prefect tasks: driver {per['driver']:.0f}, server {per['server']:.0f}, both workers",
        f"together {per['worker']:.0f}. Driver and server are one process each, so {1 / slowest:.1f} checkpoints a second are the most that pass,",
        f"whatever the number of workers: 200 workers stay busy where a checkpoint takes one of them {200 * slowest:.0f} s or longer.",
        "",
    ]


def sleeping(found: dict[str, Any]) -> list[str]:
    """The table of one simulation."""
    lines = [
        "| workers | task, s | tasks | tasks/s | of the ideal | processor ms of a task: this process | server |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in found["cases"]:
        server = case.get("processor milliseconds of a task, server")
        lines.append(
            f"| {case['workers']} | {case['seconds of a task']:g} | {case['tasks']} | {case['tasks a second']:.1f} "
            f"| {case['share of the ideal']:.0%} | {case['processor milliseconds of a task, this process']:.0f} "
            f"| {'–' if server is None else f'{server:.0f}'} |"
        )
    return lines


def dask_alone() -> list[str]:
    found = result("simulation_dask")
    return [
        "## Workers that sleep: Dask alone",
        "",
        "Dask workers as threads of one process, tasks that sleep instead of computing, so that all that is measured is the machinery.",
        f"`benchmarks/simulation.py dask`; {load_of(found)}.",
        "",
        *sleeping(found),
        "",
    ]


def through_prefect() -> list[str]:
    found = result("simulation_prefect")
    mine = min(case["processor milliseconds of a task, this process"] for case in found["cases"]) / 1000
    server = min(case["processor milliseconds of a task, server"] for case in found["cases"]) / 1000
    slowest = max(mine, server)
    return [
        "## Workers that sleep: through Prefect",
        "",
        "The same tasks, handed out as the audit does: four for each worker under way, collected as they end. `benchmarks/simulation.py",
        f"prefect`; {load_of(found)}.",
        "",
        *sleeping(found),
        "",
        f"One task costs about {1000 * mine:.0f} ms of this process, which holds driver, scheduler and all workers' share of Prefect, and",
        f"{1000 * server:.0f} ms of the server with SQLite. Each uses one core, so no more than about {1 / slowest:.0f} tasks a second pass here, whatever",
        f"the number of workers, and to keep 200 of them busy a task must last {200 * slowest:.0f} s or longer.",
        "",
    ]


def commits() -> list[str]:
    found = result("simulation_store")
    lines = [
        "## One store, many writers",
        "",
        f"Small units (10 arrays, 50 rows), each claimed and committed durably. `benchmarks/simulation.py store`; {load_of(found)}.",
        "",
        "| processes | commits/s | slowest commit, s |",
        "|---|---|---|",
    ]
    for case in found["cases"]:
        lines.append(
            f"| {case['processes']} | {case['commits a second']:.0f} | {case['slowest commit, seconds']:.2f} |"
        )
    return [
        *lines,
        "",
        "Writers share nothing but the disk: a claim is a lock on a file of its own, and a manifest is written once. Each commit waits for",
        "one `syncfs`, which also waits for whatever other programs have written to that disk: on a busy one, that is what a commit takes.",
        "",
    ]


WAY_ON = """## The way on

- **Longer tasks first.** A unit is a checkpoint by design; larger probes, more layers or a larger network make it longer at no cost
  to Prefect. Many analyses of one checkpoint are tasks of their own: leave out those that you do not read.
- **PostgreSQL** for the Prefect server (`PREFECT_API_DATABASE_CONNECTION_URL`) as soon as several audits run at once: SQLite has one
  writer. Several API processes can then stand behind one address.
- **Several flows.** One configuration for each group of runs, all with the same `store`: each flow has a driver and a window of its own,
  and claims keep two from doing one unit twice.
- **A cluster kind** other than `local` (`address`, `slurm`, `kubernetes`, `ssh`) moves the workers' share of Prefect off this machine;
  the driver's and the server's stay.
- **A disk of its own** for the store, where commits are what is waited for.
"""


def main() -> None:
    parts = {
        "scale_1": reading, "streaming": probes, "endurance": endurance, "simulation_dask": dask_alone,
        "simulation_prefect": through_prefect, "simulation_store": commits,
    }  # fmt: skip
    measured = [part for name, part in parts.items() if (FOLDER / "results" / f"{name}.json").exists()]
    lines = [
        "# Scaling",
        "",
        "<!-- Written by benchmarks/scaling_page.py from benchmarks/results/. -->",
        "",
        "Where it stops, in numbers, and what to do then. The machine is the one of [performance.md](performance.md).",
        "",
        *(line for part in measured for line in part()),
    ]
    PAGE.write_text("\n".join([*lines, WAY_ON]))
    print(f"{PAGE} written")


if __name__ == "__main__":
    main()
