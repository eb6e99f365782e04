"""How long all suites take over a large ledger: 1,000 checkpoints × 50 layers × 30 metrics, read from the compacted file.

`python benchmarks/checks.py` makes the ledger in a temporary folder and writes medians with their spread to
`results/checks.json`.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
from measuring import measured, summary, write_results

from stratascope.storage.ledger import COLUMNS, read_files
from stratascope.tasks.checks.evaluate import evaluate
from stratascope.tasks.checks.spec import SUITE_NAMES, ChangeSpec, CheckSpec

LAYERWISE = ["weight_norm", "activation_std", "activation_mean", "dead_fraction", "saturated_fraction", "sparsity",
             "gradient_norm", "non_finite_count", "cka", "knn_accuracy", "linear_probe_accuracy"]  # fmt: skip
WHOLE = ["accuracy", "loss", "generalization_gap"]


def ledger(path: Path, steps: int, layers: int, metrics: int) -> int:
    """Write a run's compacted file; returns how many rows it has. Values wander, so that little is raised."""
    generator = np.random.default_rng(0)
    names = [*LAYERWISE, *WHOLE, *(f"metric_{number}" for number in range(metrics))][:metrics]
    places = [f"layers.{number}" for number in range(layers)]
    places[0] = ""
    count = steps * layers * metrics
    metric = np.tile(np.repeat(np.arange(metrics), layers), steps)
    layer = np.tile(np.arange(layers), steps * metrics)
    value = 0.5 + 0.01 * generator.standard_normal(count)
    value[metric == names.index("non_finite_count")] = 0.0
    value[metric == names.index("generalization_gap")] -= 0.45
    texts = {"run": np.full(count, "run"), "probe": np.full(count, "test"), "layer": np.asarray(places)[layer],
             "metric": np.asarray(names)[metric], "status": np.full(count, "ok")}  # fmt: skip
    numbers = {"step": np.repeat(np.arange(steps), layers * metrics), "value": value, "low": value - 0.02, "high": value + 0.02,
               "n": np.full(count, 1000)}  # fmt: skip
    frame = pd.DataFrame({name: texts.get(name, numbers.get(name, "")) for name in COLUMNS})
    frame.loc[frame["metric"] == "generalization_gap", "part"] = "of=accuracy;against=train"
    frame["other_step"] = pd.array([None] * count, dtype="Int64")
    parquet.write_table(pa.Table.from_pandas(frame, preserve_index=False), path, compression="zstd")
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    history = ChangeSpec(against="history", max_robust_z=12, change_point=0.01)
    checks = [*(CheckSpec(suite=name) for name in SUITE_NAMES),
              CheckSpec(name="history", metric="activation_mean", change=history, severity="info")]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.parquet"
        count = ledger(path, options.steps, 50, 30)
        reading, judging = [], []
        kept: dict[str, Any] = {}

        def read() -> None:
            kept["rows"] = read_files([path])

        def judge() -> None:
            kept["found"] = evaluate(kept["rows"], checks)

        for _ in range(options.rounds):
            reading.append(measured(read))
            judging.append(measured(judge))
    found = kept["found"]
    content: dict[str, Any] = {
        "rows": count, "conditions": len(found.conditions), "raised": len(found.raised), "rounds": options.rounds,
    }  # fmt: skip
    for name, runs in (("read", reading), ("judge", judging)):
        content[name] = {key: summary(runs, key) for key in ("seconds", "processor_seconds", "peak_bytes")}
    write_results("checks", content)


if __name__ == "__main__":
    main()
