"""A small network with all that state dicts can hold, and checkpoints of it written by torch and safetensors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from stratascope.storage.checkpoint_files import RunSource, find_checkpoints

FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=6, tied=False):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU())
        self.head = nn.Linear(width, 3)
        self.register_buffer("mask", torch.ones(4))
        if tied:
            self.first, self.second = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
            self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(self.features(x * self.mask))

class Noisy(Net):
    def __init__(self):
        super().__init__()
        self.register_buffer("frequencies", torch.randn(4))
"""


@pytest.fixture(scope="session")
def factory_folder(tmp_path_factory):
    """A folder with the module `intake_network` in it, as a user's own code lies beside the configuration."""
    folder = tmp_path_factory.mktemp("factory")
    (folder / "intake_network.py").write_text(FACTORY)
    yield folder
    sys.modules.pop("intake_network", None)


@pytest.fixture
def network(factory_folder: Path):
    """The network with weights of its own, batch statistics included."""
    sys.path.insert(0, str(factory_folder))
    try:
        import intake_network
    finally:
        sys.path.remove(str(factory_folder))
    torch.manual_seed(3)
    found = intake_network.Net()
    found(torch.randn(16, 4))
    return found.eval()


@pytest.fixture
def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.fixture
def open_source():
    """`open_source(path)` gives the run source and the file that an audit would make of `path`."""

    def make(path: Path, factory: str = "intake_network:Net", args=None, **keys):
        run = RunSource(name="run", checkpoints=str(path), model={"factory": factory, "args": args or {}}, **keys)
        (file,) = find_checkpoints(run, path.parent)
        return file, run

    return make
