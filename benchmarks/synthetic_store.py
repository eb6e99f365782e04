"""A store of many checkpoints with made-up numbers, written through the real storage functions, for `scale.py`.

Layers, metrics and their course over the steps look like those of a training: some layers die, one explodes.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from stratascope.storage.ledger import Row
from stratascope.storage.store import Store
from stratascope.storage.units import Unit
from stratascope.tasks.checks.filing import Judgement

PROBE = "test"
UNITS = 64
BINS = 32
METRICS = (
    "activation_mean", "activation_std", "sparsity", "dead_fraction", "saturated_fraction", "weight_norm", "gradient_norm",
    "gradient_to_weight_ratio", "effective_rank", "participation_ratio", "intrinsic_dimension", "silhouette",
    "knn_accuracy", "linear_probe_accuracy", "nc1", "nc2", "nc3", "nc4", "cka", "procrustes_distance", "spectral_norm",
    "stable_rank", "alpha", "path_norm", "sharpness", "normalized_margin", "attention_entropy", "attention_distance",
    "spectral_complexity", "memory_time_constant",
)  # fmt: skip
_FRACTIONS = frozenset(
    {"sparsity", "dead_fraction", "saturated_fraction", "knn_accuracy", "linear_probe_accuracy", "cka"}
)


def layer_names(count: int) -> list[str]:
    """Names as a deep network has them."""
    kinds = ("conv1", "norm1", "relu", "conv2", "norm2")
    return [f"stage{place // 20 + 1}.{place // 5 % 4}.{kinds[place % 5]}" for place in range(count)]


def make_store(folder: Path, runs: int, checkpoints: int, layers: int, processes: int = 2) -> Store:
    """`checkpoints` in all, spread over `runs`; the audit's record, which has to come last, is left to the caller."""
    from stratascope.storage.probes import ProbeSpec
    from stratascope.tasks.units import keep_probe

    shutil.rmtree(folder, ignore_errors=True)
    store = Store.open(folder, create=True)
    spec = ProbeSpec(dataset="digits", split="test", limit=100)
    keep_probe(str(store.path), PROBE, spec, str(folder), "synthetic")
    work = [(f"run-{run}", step * 100) for run in range(runs) for step in range(checkpoints // runs)]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        pieces = [work[start::processes] for start in range(processes)]
        list(pool.map(_write_checkpoints, [str(folder)] * processes, pieces, [layers] * processes))
    return store


def _write_checkpoints(folder: str, places: list[tuple[str, int]], layers: int) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    store = Store.open(folder)
    names = layer_names(layers)
    last = max(step for _, step in places) or 1
    for run, step in places:
        _write_capture(store, run, step, names, step / last)
        for analysis, rows in (
            ("statistics", _layer_rows(step / last, run, names)),
            ("outputs", _whole_rows(step / last, run)),
        ):
            _write(store, Unit("checkpoint", run, step, analysis), list(rows))


def _write(store: Store, unit: Unit, rows: list[Row]) -> None:
    with store.stage(unit, f"{unit} synthetic", {"made": "up"}) as staged:
        staged.write_rows(rows)
        staged.commit()


def _write_capture(store: Store, run: str, step: int, names: list[str], progress: float) -> None:
    """What `statistics` reads when it draws: moments by unit and a histogram of each layer."""
    from stratascope.storage.archive import join_path
    from stratascope.tasks.analysis import NamedArray

    unit = Unit("checkpoint", run, step, "capture")
    generator = np.random.default_rng(step)
    with store.stage(unit, f"{unit} synthetic", {"made": "up"}) as staged:
        for place, name in enumerate(names):
            spread = (1 + place / len(names)) * (0.5 + progress)
            edges = np.linspace(-3 * spread, 3 * spread, BINS + 1)
            middle = (edges[1:] + edges[:-1]) / 2
            counts = np.round(1e4 * np.exp(-0.5 * (middle / spread) ** 2) * generator.uniform(0.9, 1.1, BINS))
            staged.write_array(
                join_path("statistics", PROBE, name, "histogram"),
                NamedArray(("row", "bin"), np.stack([edges[:-1], edges[1:], counts]), {"rows": ["low", "high", "count"]}),
            )  # fmt: skip
        facts = {name: {"type": "Conv2d", "shape": [UNITS, 8, 8], "dims": ["sample", "channel", "y", "x"], "kept": []} for name in names}  # fmt: skip
        staged.summary = {PROBE: {"layers": names, "facts": facts, "aliases": {}, "narrowed": 0, "warnings": []}}
        staged.recorded = {"files": [f"/made/up/{run}/step-{step}.safetensors"]}
        staged.commit()


def _layer_rows(progress: float, run: str, names: list[str]) -> Iterator[Row]:
    generator = np.random.default_rng([int(progress * 1e6), len(run)])
    for place, layer in enumerate(names):
        depth = place / len(names)
        for number, metric in enumerate(METRICS):
            value = math.exp(-progress * (1 + depth)) * (1 + number) + 0.05 * generator.normal()
            if metric in _FRACTIONS:
                value = min(1.0, max(0.0, 0.1 + 0.9 * depth * progress + 0.02 * generator.normal()))
            yield Row(metric, value, layer=layer, probe=PROBE, n=UNITS, unit="1")


def _whole_rows(progress: float, run: str) -> Iterator[Row]:
    generator = np.random.default_rng([int(progress * 1e6), 7])
    accuracy = min(1.0, max(0.0, 0.1 + 0.85 * (1 - math.exp(-5 * progress)) + 0.01 * generator.normal()))
    yield Row("accuracy", accuracy, probe=PROBE, n=100, low=accuracy - 0.02, high=accuracy + 0.02, unit="fraction")
    yield Row(
        "loss", 2.3 * math.exp(-4 * progress) + 0.02 * abs(generator.normal()), probe=PROBE, n=100, unit="nat"
    )


def write_record(store: Store, judged: Judgement) -> None:
    """The audit's record, as `conclude` writes it."""
    from stratascope.storage.audits import write_audit

    captures = [unit for unit in store.manifests() if unit.analysis == "capture"]
    write_audit(
        store,
        {
            "schema": 1, "store": str(store.path), "report": str(store.path / "report" / "index.html"),
            "verdict": judged.verdict, "units": {"computed": 3 * len(captures), "cached": 0, "failed": 0}, "failures": [],
            "checkpoints": [
                {"run": unit.run, "step": unit.step, "file": f"/made/up/{unit.run}/step-{unit.step}.safetensors",
                 "status": "computed", "reason": ""} for unit in captures
            ],
            "checks": list(judged.raised), "seconds": 1.0, "plan": "made up", "title": "Synthetic audit",
            "conditions": list(judged.conditions), "analyses": {"statistics": {}, "outputs": {}},
        },
    )  # fmt: skip
