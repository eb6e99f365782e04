"""The audit as a whole: overhead, a second run, two workers against one, memory, a thousand checkpoints.

    python benchmarks/audit.py [overhead] [second] [workers] [memory] [thousand]

Everything runs the command `stratascope` in processes of its own, on the digits that scikit-learn carries or on noise
of a stated size, in `benchmarks/work/`.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from measuring import WORK, write_results


def series(folder: Path, count: int, factory: str, arguments: dict[str, Any], **changes: Any) -> Path:
    """`count` checkpoints that drift with the step, and a configuration; returns its path."""
    import torch
    import yaml
    from safetensors.torch import save_file

    from stratascope.storage.factories import load_object

    shutil.rmtree(folder, ignore_errors=True)
    (folder / "runs").mkdir(parents=True)
    torch.manual_seed(0)
    build = load_object(factory)
    network, drift = build(**arguments).state_dict(), build(**arguments).state_dict()
    for step in range(count):
        moved = {
            key: value + 0.01 * step * drift[key] if value.is_floating_point() else value
            for key, value in network.items()
        }
        save_file(moved, folder / "runs" / f"step-{step}.safetensors")
    (folder / "noise.py").write_text(
        "import numpy as np\n\n\ndef images(count, channels, size):\n    generator = np.random.default_rng(0)\n"
        "    inputs = generator.normal(size=(count, channels, size, size)).astype('float32')\n"
        "    return inputs, generator.integers(0, 10, count)\n"
    )
    content = {
        "store": "store",
        "runs": [{"name": "run", "checkpoints": "runs/*", "model": {"factory": factory, "args": arguments}}],
        **changes,
    }
    (folder / "audit.yaml").write_text(yaml.safe_dump(content))
    return folder / "audit.yaml"


def audit(config: Path, *words: str) -> dict[str, Any]:
    """One audit: seconds, what it printed, and the peak memory of its largest process."""
    before = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "stratascope", "audit", str(config), "--json", *words],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(done.stderr)
    return {"seconds": time.perf_counter() - before, **json.loads(done.stdout)}


DIGITS = {"probe": {"dataset": "digits", "split": "test", "limit": 100}}
TINY = ("stratascope.tasks.models:mlp", {"inputs": 64, "widths": [16]})


RECORDED = """
import json, os, subprocess, sys, time, urllib.request
begun = time.perf_counter()
from stratascope.flows.server import prefect_server
with prefect_server(own=True) as address:
    subprocess.run([sys.executable, "-m", "stratascope", "audit", sys.argv[1], "--json"], check=True, capture_output=True)
    seconds = time.perf_counter() - begun
    def page(offset):
        content = json.dumps({"limit": 200, "offset": offset}).encode()
        request = urllib.request.Request(f"{address}/task_runs/filter", content, {"Content-Type": "application/json"})
        return json.loads(urllib.request.urlopen(request).read())
    for _ in range(60):
        runs = [run for offset in range(0, 4000, 200) for run in page(offset)]
        if all(run["state_type"] == "COMPLETED" for run in runs):
            break
        time.sleep(0.5)
    print(json.dumps({"seconds": seconds, "tasks": len(runs), "seconds in tasks": sum(run["total_run_time"] for run in runs)}))
"""


def overhead() -> dict[str, Any]:
    """What the orchestration costs: two series of different lengths; all that is not spent inside tasks, by two workers.

    The server's own start is in it, and so is a second interpreter, since the records are read before the server ends.
    """
    found = {}
    for count in (4, 24):
        config = series(WORK / f"overhead-{count}", count, *TINY, **DIGITS, cluster={"workers": 2},
                        analyses={"outputs": {}, "statistics": {}})  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", RECORDED, str(config)], env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        found[count] = json.loads(done.stdout.splitlines()[-1])
    spare = {count: item["seconds"] - item["seconds in tasks"] / 2 for count, item in found.items()}
    by_checkpoint = (spare[24] - spare[4]) / 20
    return {
        "audits": found,
        "seconds for each checkpoint": by_checkpoint,
        "seconds for start and end": spare[4] - 4 * by_checkpoint,
    }


def second() -> dict[str, Any]:
    """The demo's store, audited again with nothing new."""
    folder = WORK / "demo"
    shutil.rmtree(folder, ignore_errors=True)
    before = time.perf_counter()
    subprocess.run([sys.executable, "-m", "stratascope", "demo", str(folder)], check=True, capture_output=True)
    first = time.perf_counter() - before
    again = [audit(folder / "audit.yaml")["seconds"] for _ in range(5)]
    return {
        "seconds of the demo": first,
        "seconds of a second audit": {"median": statistics.median(again), "most": max(again)},
    }


def workers() -> dict[str, Any]:
    """One worker and two on a sweep of 16 checkpoints of ResNet-20; start-up is what an audit of none takes."""
    model = ("stratascope.tasks.models:cifar_resnet", {"depth": 20})
    probe = {"probe": {"factory": "noise:images", "args": {"count": 1024, "channels": 3, "size": 32}}}
    spans = {}
    for count in (1, 2):
        config = series(WORK / f"workers-{count}", 16, *model, **probe, cluster={"workers": count},
                        analyses={"outputs": {}, "statistics": {}, "gradients": {}})  # fmt: skip
        audit(config)
        finished = []
        for path in (config.parent / "store" / "manifests" / "run").rglob("*.json"):
            recorded = json.loads(path.read_bytes())["recorded"]
            if path.parent.name != "series":
                finished.append((recorded["finished"] - recorded["seconds"], recorded["finished"]))
        spans[count] = max(end for _, end in finished) - min(start for start, _ in finished)
    return {"seconds of the sweep, by workers": spans, "times faster with two": spans[1] / spans[2]}


def peak_of(config: Path) -> int:
    """Peak resident bytes of the largest process of one audit."""
    script = (
        "import resource, subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'stratascope', 'audit', sys.argv[1], '--json'], check=True, capture_output=True)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(config)], check=True, capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    return int(done.stdout) * 1024


def memory() -> dict[str, Any]:
    """Ten times the samples, ten times the checkpoints, once the probe is stored: images of 3 × 32 × 32 from a Zarr array."""
    import numpy as np

    from stratascope.storage.archive import create_array, ensure_group

    model = ("stratascope.tasks.models:convnet", {"channels": 3, "widths": [16, 32]})
    found = {}
    for name, samples, checkpoints in (
        ("base", 2_000, 3),
        ("10 × samples", 20_000, 3),
        ("10 × checkpoints", 2_000, 30),
    ):
        config = series(
            WORK / "memory", checkpoints, *model, cluster={"workers": 1},
            probe={"dataset": "zarr", "args": {"path": "data"}}, analyses={"outputs": {}, "statistics": {}},
        )  # fmt: skip
        generator = np.random.default_rng(0)
        data = config.parent / "data"
        ensure_group(data)
        for array, values in (
            ("inputs", generator.normal(size=(samples, 3, 32, 32)).astype("float32")),
            ("targets", generator.integers(0, 10, samples)),
        ):
            dims = [f"axis_{place}" for place in range(values.ndim)]
            writer = create_array(data / array, dims=dims, shape=values.shape, dtype=values.dtype)
            writer.append(values)
            writer.close()
        audit(config, "--set", "runs.0.select={last: 1}")
        found[name] = peak_of(config) / 1e6
    return {"peak megabytes of the largest process": found}


def thousand() -> dict[str, Any]:
    """A thousand checkpoints of a tiny network: what a run with nothing new takes.

    The units are computed in this process, by the same functions that workers call, since only what comes after is timed.
    """
    from stratascope.flows.config import load_config
    from stratascope.flows.plan import make_plan, probe_identity, survey
    from stratascope.storage.store import Store
    from stratascope.tasks.units import compute_unit, facts_identity, keep_probe, read_file

    config = series(WORK / "thousand", 1000, *TINY, **DIGITS, cluster={"workers": 2},
                    analyses={"outputs": {}, "statistics": {}})  # fmt: skip
    settings, folder = load_config(config), config.parent
    store = Store.open(folder / "store", create=True)
    keep_probe(str(store.path), "probe", settings.probes["probe"], str(folder), probe_identity(settings, "probe"))
    for source, file in survey(settings, folder, store).unread:
        read_file(str(store.path), file, source, str(folder), facts_identity(source))
    begun = time.perf_counter()
    for item in make_plan(survey(settings, folder, store)).units():
        compute_unit(item)
    computed = time.perf_counter() - begun
    drawn = audit(config)["seconds"]
    again = [audit(config)["seconds"] for _ in range(3)]
    return {
        "seconds of all units in one process": computed,
        "seconds of the audit that only draws": drawn,
        "seconds of a second audit": {"median": statistics.median(again), "most": max(again)},
    }


PARTS = {"overhead": overhead, "second": second, "workers": workers, "memory": memory, "thousand": thousand}


def main() -> None:
    WORK.mkdir(exist_ok=True)
    for name in sys.argv[1:] or PARTS:
        write_results(f"audit_{name}", {"what": PARTS[name].__doc__, **PARTS[name]()})


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    main()
