"""Trains the networks of examples/sequence at their full size and holds what they reach against the floors.

    python benchmarks/sequence_models.py [--runs FOLDER] [--only dates char-lstm …]

Each `train.yaml` is copied to `<runs>/<name>/` and trained there, one after the other, on one thread; a finished run is left as
it is. Seconds are of the processor, as the run itself noted them. With `--only` the other results stay as they were.
"""

from __future__ import annotations

import argparse
import json
import operator
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from os import environ
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from measuring import ENVIRONMENT, RESULTS, WORK, write_results

EXAMPLES = Path(__file__).parent.parent / "examples" / "sequence"
AT_LEAST, AT_MOST, ABOVE, BELOW = "at least", "at most", "above", "below"
_HOLDS: dict[str, Callable[[float, float], bool]] = {
    AT_LEAST: operator.ge, AT_MOST: operator.le, ABOVE: operator.gt, BELOW: operator.lt,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One example: which column of its trace counts, and what it must reach (None: it is only told)."""

    quantity: str
    unit: str
    column: str = "test_accuracy"
    bound: tuple[str, float] | None = None


CASES = {
    "induction": Case("accuracy on the repeat", "share", bound=(AT_LEAST, 0.9)),
    "char-lstm": Case("validation", "nat per character", "test_cross_entropy", (AT_MOST, 1.75)),
    "char-gru": Case("validation", "nat per character", "test_cross_entropy", (AT_MOST, 1.75)),
    "dates": Case("alignment accuracy", "share", "alignment_accuracy", (AT_LEAST, 0.9)),
    "multi30k": Case("test sentences", "nat per word", "test_cross_entropy"),
    "vision-transformer": Case("test accuracy", "share", bound=(AT_LEAST, 0.97)),
    "row-lstm": Case("test accuracy", "share", bound=(AT_LEAST, 0.97)),
    # One of eight symbols by chance; 1/6 is the error of always saying 1.
    "recall-lstm": Case("recall after 99 steps", "share", bound=(AT_LEAST, 0.95)),
    "recall-gru": Case("recall after 99 steps", "share", bound=(AT_LEAST, 0.95)),
    "recall-rnn": Case("recall after 99 steps", "share", bound=(BELOW, 0.25)),
    "adding-lstm": Case("mean squared error", "squared unit", "test_loss", (AT_MOST, 0.01)),
    "adding-gru": Case("mean squared error", "squared unit", "test_loss", (AT_MOST, 0.01)),
    "adding-rnn": Case("mean squared error", "squared unit", "test_loss", (ABOVE, 0.1)),
}


def trained(name: str, runs: Path) -> Path:
    """The folder of the finished run of example `name`."""
    folder = runs / name
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(EXAMPLES / name / "train.yaml", folder / "train.yaml")
    command = [str(Path(sys.executable).with_name("stratascope")), "train", str(folder / "train.yaml")]
    subprocess.run(command, check=True, env=environ | ENVIRONMENT)
    return folder / "runs" / name


def alignment_accuracy(folder: Path) -> dict[int, float]:
    """By step: the share of ISO digits whose largest attention weight lies on the characters that tell them."""
    import torch
    from safetensors.torch import load_file

    from stratascope.storage.probes import ProbeSpec, build_probe
    from stratascope.tasks.models import attention_encoder_decoder
    from stratascope.tasks.models.network import as_tensor
    from stratascope.tasks.training.config import TrainConfig

    config = TrainConfig.model_validate(json.loads((folder / "run.json").read_text())["config"])
    probe = build_probe("test", ProbeSpec.model_validate(config.test), folder)
    inputs = as_tensor(probe.inputs)
    known = inputs["alignment"] >= 0
    found: dict[int, float] = {}
    for path in sorted(folder.glob("step-*.safetensors")):
        network = attention_encoder_decoder(**config.model.args).eval()
        network.load_state_dict(load_file(path))
        seen: list[Any] = []
        network.attention.register_forward_hook(lambda module, given, output, seen=seen: seen.append(output[1]))
        with torch.inference_mode():
            network(inputs)
        best = seen[0].argmax(-1)
        right = (best >= inputs["alignment"]) & (best <= inputs["alignment_end"])
        found[int(path.stem.removeprefix("step-"))] = float(right[known].double().mean())
    return found


def curve_of(folder: Path, case: Case) -> dict[int, float]:
    """The quantity of `case` by step, at every checkpoint."""
    import pandas

    if case.column == "alignment_accuracy":
        return alignment_accuracy(folder)
    steps = set(json.loads((folder / "run.json").read_text())["steps"])
    trace = pandas.read_parquet(folder / "trace.parquet")
    rows = trace[trace["step"].isin(steps)]
    return {int(step): float(value) for step, value in zip(rows["step"], rows[case.column], strict=True)}


def measured(name: str, runs: Path) -> dict[str, Any]:
    """What example `name` reached."""
    case, folder = CASES[name], trained(name, runs)
    facts = json.loads((folder / "run.json").read_text())
    curve = curve_of(folder, case)
    value = curve[max(curve)]
    found: dict[str, Any] = {
        "quantity": case.quantity, "unit": case.unit, "value": value, "at step 0": curve[0],
        "by step": {str(step): round(number, 6) for step, number in curve.items()},
        "seconds": facts.get("processor_seconds"), "seed": facts["config"]["seed"], "steps": max(curve),
        "checkpoints": len(curve),
    }  # fmt: skip
    if case.bound is not None:
        way, bound = case.bound
        found |= {"bound": f"{way} {bound}", "holds": _HOLDS[way](value, bound)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, default=WORK / "sequence_models")
    parser.add_argument("--only", nargs="+", choices=sorted(CASES), default=list(CASES))
    options = parser.parse_args()
    known = RESULTS / "sequence_models.json"
    runs = json.loads(known.read_text())["runs"] if known.exists() else {}
    for name in options.only:
        runs[name] = measured(name, options.runs)
        print(f"{name}: {runs[name]['value']:.4f} {runs[name].get('bound', '')}", file=sys.stderr, flush=True)
    write_results("sequence_models", {"runs": {name: runs[name] for name in CASES if name in runs}})
    missed = [name for name in options.only if not runs[name].get("holds", True)]
    sys.exit(f"below the floor: {', '.join(missed)}" if missed else 0)


if __name__ == "__main__":
    main()
