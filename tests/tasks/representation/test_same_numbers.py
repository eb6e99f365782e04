"""What is said of representations depends neither on the probe's order nor on how the samples went through the network."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from stratascope.tasks.analysis import discover
from stratascope.tasks.models import mlp
from stratascope.tasks.representation.features import FeatureOptions
from tests.tasks.conftest import LittleAudit

KEYS = ["metric", "step", "layer", "part", "status", "other_run", "other_layer", "other_step"]
NAMES = sorted(name for name, analysis in discover().items() if issubclass(analysis.options, FeatureOptions))
SAMPLES = 90
FEW = {"bootstrap": 12, "permutations": 9}
"""Rounds of resampling: each depends on order and batches as the others do."""
SMALLER: dict[str, dict] = {
    "linear_probe": {"regularization": (1e-2, 1e-1), "folds": 3, "permutations": 1, "layers": ("fc*",)}
}
"""Options where an analysis would take long with its own."""


def audited(folder, order: np.ndarray, **capture) -> LittleAudit:
    """Three steps of a perceptron on blobs, the probe's samples in `order`."""
    folder.mkdir()
    audit = LittleAudit(folder, "stratascope.tasks.models:mlp", {"inputs": 10, "widths": [12, 8], "outputs": 3})
    generator = np.random.default_rng(1)
    targets = np.arange(SAMPLES) % 3
    inputs = (generator.normal(size=(3, 10))[targets] * 1.5 + generator.normal(size=(SAMPLES, 10))).astype(
        np.float32
    )
    identities = np.array([f"sample-{number}" for number in range(SAMPLES)])
    audit.probe("test", inputs=inputs[order], targets=targets[order], sample_id=identities[order])
    torch.manual_seed(0)
    network = mlp(inputs=10, widths=[12, 8], outputs=3)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.2)
    for step in range(21):
        if step % 10 == 0:
            audit.checkpoint(step, network)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(torch.from_numpy(inputs)), torch.from_numpy(targets)).backward()
        optimizer.step()
    audit.capture(*NAMES, "outputs", **capture)
    return audit


@pytest.fixture(scope="module")
def audits(tmp_path_factory) -> dict[str, LittleAudit]:
    folder = tmp_path_factory.mktemp("orders")
    turned = np.random.default_rng(2).permutation(SAMPLES)
    return {
        "plain": audited(folder / "plain", np.arange(SAMPLES)),
        "turned": audited(folder / "turned", turned),
        "small batches": audited(folder / "small", np.arange(SAMPLES), batch_size=7),
    }


def findings(audit: LittleAudit, name: str) -> pd.DataFrame:
    few = {key: FEW[key] for key in FEW if key in discover()[name].options.model_fields}
    rows = audit.analyse(name, **(few | SMALLER.get(name, {})))
    assert (rows["status"] == "ok").any(), rows[["metric", "reason"]]
    return rows.sort_values(KEYS, kind="stable").reset_index(drop=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("other", ["turned", "small batches"])
def test_order_and_batches_change_nothing(audits, name, other):
    here, there = findings(audits["plain"], name), findings(audits[other], name)
    pd.testing.assert_frame_equal(here[KEYS], there[KEYS])
    for column in ("value", "low", "high"):
        np.testing.assert_allclose(here[column], there[column], rtol=1e-5, atol=1e-5, err_msg=f"{name}: {column}")
