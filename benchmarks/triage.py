"""The misplaced score on real training: how often it cries wolf, and what it finds.

    python benchmarks/triage.py

Small networks learn scikit-learn's digits under eleven optimiser settings; each run is taken at evenly spaced and at
log-spaced steps. A sound series should score at most 1 everywhere. Then, in every run that converges: each adjacent pair
is swapped, a checkpoint of another seed is put at each place, and a copy of a late checkpoint is put at each early place.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from stratascope.tasks.intake.fingerprints import sketch
from stratascope.tasks.intake.placement import misplaced_scores

sys.path.insert(0, str(Path(__file__).parent))
from measuring import write_results

STEPS = 400
SEEDS = 15
GRIDS = {
    "evenly spaced": [round(step) for step in np.linspace(0, STEPS, 16)],
    "log-spaced": sorted({0, *(round(step) for step in np.geomspace(1, STEPS, 18))}),
}
Rule = Callable[[Any], torch.optim.Optimizer]
SETTINGS: dict[str, Rule] = {
    "SGD 0.005": lambda weights: torch.optim.SGD(weights, 0.005),
    "SGD 0.1": lambda weights: torch.optim.SGD(weights, 0.1),
    "SGD 0.02, momentum 0.9": lambda weights: torch.optim.SGD(weights, 0.02, momentum=0.9),
    "SGD 0.2, momentum 0.9": lambda weights: torch.optim.SGD(weights, 0.2, momentum=0.9),
    "SGD 0.05, momentum 0.9, decay 0.01": lambda weights: torch.optim.SGD(
        weights, 0.05, momentum=0.9, weight_decay=0.01
    ),
    "Adam 1e-4": lambda weights: torch.optim.Adam(weights, 1e-4),
    "Adam 1e-3": lambda weights: torch.optim.Adam(weights, 1e-3),
    "Adam 1e-2": lambda weights: torch.optim.Adam(weights, 1e-2),
    "AdamW 1e-3, decay 0.1": lambda weights: torch.optim.AdamW(weights, 1e-3, weight_decay=0.1),
    "AdamW 3e-2, decay 0.1": lambda weights: torch.optim.AdamW(weights, 3e-2, weight_decay=0.1),
    "RMSprop 1e-3": lambda weights: torch.optim.RMSprop(weights, 1e-3),
}


def train(rule: Rule, seed: int) -> tuple[dict[int, np.ndarray], bool]:
    """Sketches of the weight matrices at the steps of both grids, and whether the run converges."""
    images, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))
    optimiser = rule(network.parameters())
    wanted, found, losses = {step for grid in GRIDS.values() for step in grid}, {}, []
    for step in range(STEPS + 1):
        if step in wanted:
            found[step] = sketch((name, value) for name, value in network.state_dict().items() if value.dim() > 1)
        chosen = torch.randint(0, len(inputs), (64,))
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(network(inputs[chosen]), targets[chosen])
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return found, float(np.mean(losses[-20:])) < 0.5 * losses[0]


def found_in(series: np.ndarray, other: np.ndarray) -> dict[str, tuple[int, int]]:
    """(found, tried) for each kind of fault put into one sound `series` (step, sketch)."""

    def count(changed: list[tuple[np.ndarray, list[int]]]) -> tuple[int, int]:
        return sum(misplaced_scores(item)[places].max() > 1 for item, places in changed), len(changed)

    swaps, foreign, copies = [], [], []
    for place in range(len(series) - 1):
        swapped = series.copy()
        swapped[[place, place + 1]] = series[[place + 1, place]]
        swaps.append((swapped, [place, place + 1]))
    for place in range(len(series)):
        changed = series.copy()
        changed[place] = other[place]
        foreign.append((changed, [place]))
    half = len(series) // 2
    for place in range(1, half):
        late = series.copy()
        late[place] = series[half + place] * (1 + 1e-9)
        copies.append((late, [place]))
    return {"adjacent swaps": count(swaps), "checkpoints of another seed": count(foreign),
            "late copies placed early": count(copies)}  # fmt: skip


def main() -> None:
    torch.set_num_threads(1)
    sound, alarms, highest = 0, 0, 0.0
    faults: dict[str, np.ndarray] = {}
    for name, rule in SETTINGS.items():
        runs = [train(rule, seed) for seed in range(SEEDS + 1)]
        for seed in range(SEEDS):
            for steps in GRIDS.values():
                series, other = (
                    np.array([runs[number][0][step] for step in steps]) for number in (seed, seed + 1)
                )
                top = float(misplaced_scores(series).max())
                sound, alarms, highest = sound + 1, alarms + (top > 1), max(highest, top)
                if runs[seed][1] and seed < 3:
                    for kind, counted in found_in(series, other).items():
                        faults[kind] = faults.get(kind, np.zeros(2, int)) + counted
        print(f"{name}: {alarms} alarms in {sound} sound series; {faults}", file=sys.stderr, flush=True)
    write_results("triage", {
        "sound series": sound, "sound series with an alarm": alarms, "highest score of a sound series": highest,
        "optimiser settings": len(SETTINGS),
        "faults in converging runs": {kind: {"found": int(found), "tried": int(tried)} for kind, (found, tried) in faults.items()},
    })  # fmt: skip


if __name__ == "__main__":
    main()
