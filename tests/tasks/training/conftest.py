"""Small runs on the digits, built from a few changes to one plain configuration."""

import pytest
from safetensors.torch import load_file

from stratascope.storage.traces import read_trace
from stratascope.tasks.training.config import TrainConfig
from stratascope.tasks.training.loop import train

PLAIN = {
    "directory": "run",
    "train": {"dataset": "digits", "split": "train", "role": "train", "limit": 200},
    "test": {"dataset": "digits", "split": "test", "limit": 60},
    "model": {"factory": "stratascope.tasks.models:mlp", "args": {"inputs": 64, "widths": [12]}},
    "batch_size": 50,
    "optimizer": {"rate": 0.05},
    "stop": {"epochs": 3},
    "checkpoints": {"log_spaced": 0},
}
"""Three epochs of four steps."""


class Trained:
    """A run that is over."""

    def __init__(self, directory, summary):
        self.directory, self.summary = directory, summary

    @property
    def trace(self):
        return read_trace(self.directory / "trace.parquet")

    @property
    def steps(self):
        return sorted(int(path.stem.split("-")[1]) for path in self.directory.glob("step-*.safetensors"))

    def weights(self, step):
        return load_file(self.directory / f"step-{step:09d}.safetensors")

    @property
    def files(self):
        """The bytes of everything but run.json, which holds the time."""
        return {path.name: path.read_bytes() for path in self.directory.iterdir() if path.name != "run.json"}


@pytest.fixture(scope="session")
def plain_config():
    def build(**changes):
        return TrainConfig.model_validate(PLAIN | changes)

    return build


@pytest.fixture
def trained(tmp_path, plain_config):
    def run(directory="run", **changes):
        summary = train(plain_config(directory=directory, **changes), tmp_path)
        return Trained(tmp_path / directory, summary)

    return run
