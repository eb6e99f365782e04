"""Two kinds of tiny networks, trained from several seeds and audited in this process: a store to compare in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from stratascope.flows.config import load_config
from stratascope.flows.plan import make_plan, probe_identity, store_folder, survey
from stratascope.flows.result import conclude
from stratascope.storage.datasets import load_dataset
from stratascope.storage.store import Store
from stratascope.tasks import units
from stratascope.tasks.checks.filing import judge_store
from stratascope.tasks.comparison import work
from stratascope.tasks.models import mlp

SEEDS = 3


def write_runs(folder: Path, kind: str, width: int, steps: int, seeds: int = SEEDS) -> None:
    """Networks with one hidden layer, trained on the digits from different seeds, with a checkpoint every 120 steps."""
    data = load_dataset("digits", split="train", folder=folder)
    inputs = torch.from_numpy(np.asarray(data.inputs, np.float32)).flatten(1) / 16
    targets = torch.from_numpy(np.asarray(data.targets, np.int64))
    for seed in range(seeds):
        torch.manual_seed(seed)
        network = mlp(64, (width,))
        optimizer = torch.optim.SGD(network.parameters(), lr=0.3)
        place = folder / "runs" / f"{kind}-{seed}"
        place.mkdir(parents=True)
        for step in range(steps + 1):
            if step % 120 == 0:
                save_file(network.state_dict(), place / f"step-{step}.safetensors")
            rows = torch.randint(0, len(inputs), (32,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs[rows].reshape(-1, 1, 8, 8)), targets[rows]).backward()
            optimizer.step()


def write_configuration(folder: Path, **changes: Any) -> Path:
    """An audit of both kinds, and a comparison of them; `changes` are keys of the comparison."""
    runs = [
        {
            "name": kind, "checkpoints": f"runs/{kind}-*/step-*.safetensors", "run": rf"{kind}-(\d)",
            "model": {"factory": "stratascope.tasks.models:mlp", "args": {"inputs": 64, "widths": [width]}},
        }
        for kind, width in (("wide", 24), ("narrow", 4))
    ]  # fmt: skip
    audit = {
        "store": "store", "runs": runs, "analyses": {"outputs": {}, "embedding": {"methods": ["pca"]}},
        "probes": {
            "test": {"dataset": "digits", "split": "test", "limit": 200, "normalize": "unit"},
            "train": {"dataset": "digits", "split": "train", "limit": 250, "normalize": "unit"},
        },
    }  # fmt: skip
    (folder / "audit.yaml").write_text(yaml.safe_dump(audit))
    comparison = {
        "audit": "audit.yaml", "name": "width", "groups": {"A": {"runs": ["wide-*"]}, "B": {"runs": ["narrow-*"]}},
        "layers": ["@last_linear:input"], "resamples": 499, "traditional": {"folds": 0, "pca_components": 12},
    }  # fmt: skip
    comparison |= changes
    (folder / "compare.yaml").write_text(
        yaml.safe_dump({key: value for key, value in comparison.items() if value is not None})
    )
    return folder / "compare.yaml"


def audit_here(folder: Path) -> Store:
    """Do in this process what the flow of an audit does on its workers."""
    config = load_config(folder / "audit.yaml")
    store = Store.open(store_folder(config, folder), create=True)
    found = survey(config, folder, store)
    for name in found.unknown_probes:
        identity = probe_identity(config, name)
        found.probes[name] = units.keep_probe(store.location, name, config.probes[name], str(folder), identity)
    for source, file in found.unread:
        identity = units.facts_identity(source)
        found.facts[source.name][file.path] = units.read_file(store.location, file, source, str(folder), identity)
    plan = make_plan(found)
    outcomes = [units.compute_unit(item) for item in plan.units()]
    assert not [item.reason for item in outcomes if item.status == "failed"]
    judged = judge_store(store.location, {item.unit for item in plan.units()}, config.checks)
    conclude(found, plan, outcomes, 0, 1.0, judged=judged)
    return store


def compare_here(config: Path) -> list[Any]:
    """Do in this process what the flow of a comparison does on its workers; returns the units' outcomes."""
    from stratascope.flows.compare_plan import make_comparison_plan

    plan = make_comparison_plan(config, [])
    outcomes = []
    for item in plan.assignments:
        do = work.compare_runs if item.unit.analysis.startswith("comparison:") else work.fit_method
        outcomes.append(do(item))
    return outcomes


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose runs have been audited and compared; tests read it, or compare under another name."""
    folder = tmp_path_factory.mktemp("compared")
    write_runs(folder, "wide", 24, 120)
    write_runs(folder, "narrow", 4, 120)
    config = write_configuration(folder)
    audit_here(folder)
    outcomes = compare_here(config)
    assert [item.reason for item in outcomes] == [""] * 5
    return folder
