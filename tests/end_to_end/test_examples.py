"""The configurations in `examples/` are valid, and those whose data are made up train as they say, a few steps of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from stratascope.flows.config import load_config
from stratascope.storage.datasets import SOURCES
from stratascope.tasks.models.network import build_network
from stratascope.tasks.training.config import TrainConfig
from stratascope.tasks.training.loop import train

EXAMPLES = Path(__file__).parents[2] / "examples"
TRAINED = sorted(EXAMPLES.rglob("train.yaml"))
SEQUENCES = sorted(path.parent.name for path in (EXAMPLES / "sequence").glob("*/train.yaml"))
MADE_UP = ("induction", "dates", "recall-rnn", "recall-lstm", "adding-gru")


def name_of(path: Path) -> str:
    return path.relative_to(EXAMPLES).as_posix()


@pytest.mark.parametrize("path", TRAINED, ids=name_of)
def test_each_training_example_is_valid_and_builds_its_network(path):
    config = load_config(path, (), TrainConfig)
    build_network(config.model, path.parent)
    assert config.directory == f"runs/{config.name}"
    if "sequence" in path.parts:
        assert config.name == path.parent.name
        assert config.threads == 1


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*audit.yaml")), ids=name_of)
def test_each_audit_example_is_valid_and_asks_for_the_network_that_was_trained(path, monkeypatch):
    monkeypatch.setenv("NIGHT_WEBHOOK", "https://example.org")
    config = load_config(path)
    for run in config.runs:
        place, _, name = run.checkpoints.removesuffix("/step-*.safetensors").rpartition("runs/")
        beside = path.parent / place / "train.yaml"
        if not beside.exists() or load_config(beside, (), TrainConfig).name != name:
            assert "sequence" not in path.parts
            continue
        model = load_config(beside, (), TrainConfig).model
        assert (run.model.factory, run.name) == (model.factory, name)
        # What concerns training alone, dropout, may be left out.
        assert run.model.args == {key: model.args[key] for key in run.model.args}
        build_network(model, path.parent).load_state_dict(build_network(run.model, path.parent).state_dict())


@pytest.mark.parametrize("name", MADE_UP)
def test_an_example_of_made_up_data_trains(name, tmp_path):
    config = load_config(EXAMPLES / "sequence" / name / "train.yaml", (), TrainConfig)
    assert config.train.dataset in SOURCES
    few = {"train": 40, "test": 10}
    changes = {
        which: getattr(config, which).model_copy(update={"args": {**getattr(config, which).args, "count": count}})
        for which, count in few.items()
    }
    changes |= {"batch_size": 20, "stop": config.stop.model_copy(update={"steps": 2})}
    summary = train(config.model_copy(update=changes), tmp_path)
    assert (summary.steps, summary.checkpoints) == (2, 2)
    assert summary.train_loss > 0
