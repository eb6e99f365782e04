"""Where memory runs out an analysis asks fewer samples at once, and finds the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stratascope.tasks.memory import is_memory_shortage
from stratascope.tasks.models import convnet
from tests.tasks.conftest import LittleAudit
from tests.tasks.vision.conftest import CLASSES, bars

NETWORK = """
import torch
from stratascope.tasks.models import convnet

class Hungry(torch.nn.Module):
    def __init__(self, most, **settings):
        super().__init__()
        self.inner, self.most = convnet(**settings), most

    def forward(self, inputs):
        if len(inputs) > self.most:
            torch.empty(10**14)  # a hundred terabytes: the allocator itself refuses
        return self.inner(inputs)

def hungry(most, **settings):
    return Hungry(most, **settings)
"""
SETTINGS = {"channels": 1, "widths": [6, 8], "outputs": 4}
CASES = {
    "attribution": {"methods": ["gradient", "smooth_grad", "occlusion"], "batch_size": 32, "baseline": "mean"},
    "class_activation": {"methods": ["grad_cam", "score_cam"], "batch_size": 32, "baseline": "mean"},
    "attribution_trust": {"methods": ["gradient"], "cam_methods": [], "batch_size": 32, "baseline": "mean"},
}


@pytest.fixture(scope="module")
def audits(tmp_path_factory) -> dict[int, LittleAudit]:
    """By the largest batch that fits: the same network and pictures."""
    found = {}
    torch.manual_seed(0)
    weights = convnet(**SETTINGS).state_dict()
    inputs, targets = bars(16, 0)
    for most in (1000, 5):
        folder = tmp_path_factory.mktemp(f"memory-{most}")
        module = f"hungry_{folder.name.replace('-', '_')}"
        (folder / f"{module}.py").write_text(NETWORK)
        audit = LittleAudit(folder, f"{module}:hungry", {"most": most, **SETTINGS})
        audit.probe("test", "test", CLASSES, inputs=inputs.astype(np.float32), targets=targets)
        network = torch.nn.ModuleDict({"inner": convnet(**SETTINGS)})
        network["inner"].load_state_dict(weights)
        audit.checkpoint(0, network)
        audit.capture()
        found[most] = audit
    return found


@pytest.mark.parametrize("name", CASES)
def test_an_analysis_without_room_finds_what_it_finds_with_room(audits, name):
    plenty, scarce = (audit.analyse(name, **CASES[name]) for audit in audits.values())
    assert set(scarce["status"]) == set(plenty["status"])
    assert (scarce["status"] == "ok").all()
    assert list(scarce["metric"]) == list(plenty["metric"])
    np.testing.assert_allclose(scarce["value"], plenty["value"], rtol=1e-4, atol=1e-6)


def test_one_sample_that_does_not_fit_is_a_failure_with_its_reason(tmp_path):
    (tmp_path / "hungry_for_one.py").write_text(NETWORK)
    audit = LittleAudit(tmp_path, "hungry_for_one:hungry", {"most": 0, **SETTINGS})
    inputs, targets = bars(4, 0)
    audit.probe("test", "test", CLASSES, inputs=inputs.astype(np.float32), targets=targets)
    audit.checkpoint(0, torch.nn.ModuleDict({"inner": convnet(**SETTINGS)}))
    with pytest.raises(AssertionError, match="DefaultCPUAllocator: can't allocate memory"):
        audit.analyse("attribution", batch_size=4)


def test_a_shortage_is_told_from_other_faults():
    with pytest.raises(RuntimeError) as refused:
        torch.empty(10**14)
    assert is_memory_shortage(refused.value)
    assert is_memory_shortage(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(MemoryError) as numpys:
        np.empty(10**16)
    assert is_memory_shortage(numpys.value)
    assert not is_memory_shortage(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
