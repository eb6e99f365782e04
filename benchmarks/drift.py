"""How long `drift` takes over a long series, and in how much memory: 200 checkpoints × 12 layers × 2,000 samples.

`python benchmarks/drift.py` writes decompositions and outputs with made-up numbers through the real storage functions,
follows them each round in a process of its own on one thread, and writes `results/drift.json`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np
from measuring import WORK, in_own_process, measured, summary, write_results

from stratascope.storage.checkpoint_files import RunSource
from stratascope.storage.probes import ProbeSpec
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.tasks.analysis import NamedArray
from stratascope.tasks.contexts import SeriesContext, Subject
from stratascope.tasks.representation.drift import DriftOptions, compute
from stratascope.tasks.units import keep_probe

PROBE = "test"
_FACTORY = """
import numpy as np
def probe(samples):
    return {"inputs": np.zeros((samples, 1), np.float32), "targets": np.arange(samples) % 10}
"""


def make_store(folder: Path, steps: int, layers: int, samples: int, components: int) -> None:
    """A series in which every layer moves by smaller and smaller steps, with spectra that fall as 1/rank."""
    shutil.rmtree(folder, ignore_errors=True)
    store = Store.open(folder / "store", create=True)
    (folder / "made_up.py").write_text(_FACTORY)
    spec = ProbeSpec(factory="made_up:probe", args={"samples": samples})
    keep_probe(store.location, PROBE, spec, str(folder), "made-up")
    generator = np.random.default_rng(0)
    spectrum = (1 / np.sqrt(np.arange(1, components + 1))).astype(np.float32)
    scores = [generator.standard_normal((samples, components), np.float32) * spectrum for _ in range(layers)]
    near = [generator.integers(0, samples - 20, (samples, 1)) + np.arange(20) for _ in range(layers)]
    answers = generator.standard_normal((samples, 10))
    names = [f"layer{number}" for number in range(layers)]
    for number in range(steps):
        speed = 1 / (1 + number)
        unit = Unit("checkpoint", "run", 100 * number, "capture")
        with store.stage(unit, "made-up", {}) as staged:
            answers = answers + speed * generator.standard_normal(answers.shape)
            about = NamedArray(("sample", "feature"), answers.astype(np.float32))
            staged.write_array(f"activations/{PROBE}/@output/full", about)
            staged.summary = {PROBE: {"layers": names, "facts": {}, "aliases": {}}}
            staged.commit()
        with store.stage(Unit("checkpoint", "run", 100 * number, "decomposition"), "made-up", {}) as staged:
            staged.write_array(f"{PROBE}/sample_id", NamedArray(("decomposition_sample",), np.arange(samples)))
            for place, name in enumerate(names):
                noise = generator.standard_normal(scores[place].shape, np.float32) * spectrum
                scores[place] = scores[place] + np.float32(0.3 * speed) * noise
                turned = generator.random(samples) < speed
                near[place] = np.where(turned[:, None], (near[place] + 7) % samples, near[place])
                arrays = {
                    "scores": (("decomposition_sample", "component"), scores[place]),
                    "variance": (("every_component",), scores[place].var(0).astype(np.float64)),
                    "squared_norm": (("decomposition_sample",), (scores[place].astype(np.float64) ** 2).sum(1)),
                    "neighbour": (("decomposition_sample", "rank"), near[place].astype(np.int32)),
                }
                for kind, (dims, values) in arrays.items():
                    staged.write_array(
                        f"{PROBE}/{name}/{kind}", NamedArray(dims, values, {"features": components})
                    )
            staged.commit()


def follow(folder: Path) -> dict[str, float]:
    """One run of the analysis, as a worker does it; also how many rows it files."""
    store = Store.open(folder / "store")
    model = {"factory": "made_up:probe", "args": {}}
    source = RunSource.model_validate({"name": "run", "checkpoints": "*", "model": model})
    subject = Subject(store.location, "run", (PROBE,), source, str(folder))
    steps = tuple(sorted(unit.step for unit in store.committed("run", "capture")))
    found = []
    numbers = measured(lambda: found.append(compute(SeriesContext(store, subject, steps), DriftOptions())))
    return numbers | {"rows": len(found[0].rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--components", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--follow", type=Path)
    options = parser.parse_args()
    if options.follow is not None:
        print(json.dumps(follow(options.follow)))
        return
    folder = WORK / "drift"
    make_store(folder, options.steps, options.layers, options.samples, options.components)
    runs = []
    for number in range(options.rounds):
        runs.append(in_own_process(__file__, "--follow", folder))
        print(f"round {number + 1} of {options.rounds}: {runs[-1]}", file=sys.stderr, flush=True)
    shutil.rmtree(folder)
    size = {name: getattr(options, name) for name in ("steps", "layers", "samples", "components", "rounds")}
    write_results(
        "drift",
        {"size": size, "threads": 1, "rows": runs[0]["rows"]}
        | {key: summary(runs, key) for key in ("seconds", "processor_seconds", "peak_bytes")},
    )


if __name__ == "__main__":
    main()
