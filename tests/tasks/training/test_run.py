"""Whole runs: the same bytes each time, interrupted or not, and each seed for its own purpose."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open

from stratascope.errors import ConfigurationError, StratascopeError
from stratascope.storage.traces import read_samples
from stratascope.tasks.training.config import TrainConfig
from stratascope.tasks.training.data import load_data
from stratascope.tasks.training.loop import train
from stratascope.tasks.training.run_directory import checkpoint_bytes
from stratascope.tasks.training.seeds import batch_order

LENET = {"factory": "stratascope.tasks.models:lenet", "args": {"size": 8, "width": 3, "dropout": 0.3}}
RESNET = {"factory": "stratascope.tasks.models:cifar_resnet", "args": {"depth": 8, "width": 4, "channels": 1}}
EVERYTHING = {
    "model": LENET,
    "augmentation": {"crop": 1, "flip": True, "cutout": 2},
    "noise": {"variance": 1e-6},
    "corruption": {"labels": 0.2},
    "schedule": {"name": "cosine", "warm_up_epochs": 0.5},
    "checkpoints": {"log_spaced": 3},
    "trace": {"example_gradients_every": 3},
}


@pytest.mark.parametrize(
    "changes",
    [
        EVERYTHING,
        EVERYTHING | {"optimizer": {"name": "adamw", "rate": 0.003, "weight_decay": 0.1, "clip_norm": 1}},
        {"model": RESNET, "memory_format": "channels_last", "precision": "bfloat16", "loss": {"name": "margin"}},
    ],
)
def test_the_same_configuration_gives_the_same_bytes(trained, changes):
    one, other = trained("one", **changes), trained("other", **changes)
    assert one.files == other.files
    assert len(one.files) == len(one.steps) + 2
    initial, last = one.weights(0), one.weights(one.steps[-1])
    assert any(not torch.equal(initial[name], last[name]) for name in initial)


def test_a_finished_run_is_not_trained_again(trained):
    one = trained()
    times = {path: path.stat().st_mtime_ns for path in one.directory.iterdir()}
    again = trained()
    assert again.summary == one.summary
    assert {path: path.stat().st_mtime_ns for path in one.directory.iterdir()} == times


def test_a_finished_run_that_lost_a_checkpoint_is_made_whole(trained):
    one = trained()
    files = one.files
    (one.directory / "step-000000004.safetensors").unlink()
    assert trained().files == files


KILLED = """
import json, os, signal, sys
from pathlib import Path
from stratascope.tasks.training.config import TrainConfig
from stratascope.tasks.training.loop import train
left, replace = int(sys.argv[3]), os.replace
def replace_or_die(source, target):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
os.replace = replace_or_die
train(TrainConfig.model_validate(json.loads(sys.argv[1])), Path(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("optimizer", "kills"),
    [
        ({"rate": 0.05}, {3: 0, 8: 3, 11: 6}),
        ({"name": "adam", "rate": 0.01}, {9: 3}),
    ],
)
def test_a_run_that_is_killed_while_it_writes_ends_with_the_same_bytes(
    trained, plain_config, tmp_path, optimizer, kills
):
    """`kills` maps the rename before which the process is killed to the checkpoints that are then there."""
    changes = EVERYTHING | {"optimizer": optimizer}
    whole = trained("whole", **changes)
    config = plain_config(directory="killed", **changes).model_dump_json()
    for rename, there in kills.items():
        words = [sys.executable, "-c", KILLED, config, str(tmp_path), str(rename)]
        process = subprocess.run(words, capture_output=True, text=True)
        assert process.returncode == -signal.SIGKILL, process.stderr
        written = list((tmp_path / "killed").glob("step-*.safetensors"))
        assert len(written) == there
        assert all(path.read_bytes() == whole.files[path.name] for path in written)
    assert trained("killed", **changes).files == whole.files


def test_a_run_stopped_by_a_full_disk_says_so_and_goes_on_later(trained, monkeypatch):
    whole = trained("whole")
    fsync, left = os.fsync, [12]

    def no_room(handle):
        left[0] -= 1
        if left[0] == 0:
            raise OSError(28, "No space left on device")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(StratascopeError, match="No space left on device"):
        trained("other")
    monkeypatch.undo()
    assert trained("other").files == whole.files


def test_a_directory_with_another_run_is_refused_and_left_alone(trained):
    files = trained().files
    with pytest.raises(ConfigurationError, match="another configuration or other data"):
        trained(seed=1)
    with pytest.raises(ConfigurationError, match="another configuration or other data"):
        trained(train={"dataset": "digits", "split": "train", "role": "train", "limit": 199})
    assert trained().files == files


def test_a_directory_with_checkpoints_of_nobody_knows_what_is_refused(trained, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "step-000000000.safetensors").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"no run\.json"):
        trained()


def test_the_directory_of_a_run_may_be_moved(trained, tmp_path):
    files = trained().files
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    moved = trained("elsewhere")
    assert moved.files == files
    assert moved.summary.directory == str(tmp_path / "elsewhere")


def test_a_checkpoint_tells_its_step_and_what_it_is_of(trained):
    run = trained()
    with safe_open(run.directory / "step-000000008.safetensors", "pt") as content:
        facts = content.metadata()
    assert facts["global_step"] == "8"
    assert facts["factory"] == "stratascope.tasks.models:mlp"
    assert json.loads(facts["args"]) == {"inputs": 64, "widths": [12]}
    assert facts["config_digest"] == json.loads((run.directory / "run.json").read_text())["config_digest"]


def test_a_run_tells_how_long_it_took_by_the_clock_and_of_the_processor(trained):
    facts = json.loads((trained().directory / "run.json").read_text())
    assert facts["seconds"] > 0
    assert facts["processor_seconds"] > 0


def test_a_checkpoint_has_the_same_bytes_whatever_the_order_of_a_hash_map():
    tensors = {"b": torch.arange(6.0).reshape(2, 3).T, "a": torch.tensor(3)}
    metadata = {f"key {number}": "ü" * number for number in range(9)}
    assert len({checkpoint_bytes(tensors, metadata) for _ in range(12)}) == 1


@pytest.mark.parametrize("loss", [{}, {"name": "mse"}])
def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_its_checkpoints(trained, tmp_path, loss):
    with pytest.raises(StratascopeError, match=r"'run': the .*loss is (nan|inf).*step"):
        trained(optimizer={"rate": 1e30}, loss=loss)
    assert (tmp_path / "run" / "step-000000000.safetensors").exists()
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def test_more_samples_than_there_are_and_patterns_without_weights_are_refused(trained):
    with pytest.raises(ConfigurationError, match="samples: 201"):
        trained(samples=201)
    with pytest.raises(ConfigurationError, match=r"'fc3\*'` matches no weights.*fc1"):
        trained(frozen=["fc3*"])
    with pytest.raises(ConfigurationError, match="nothing to train"):
        trained(frozen=["*"])
    with pytest.raises(ConfigurationError, match="classes 0 to 3"):
        trained(model={"factory": "stratascope.tasks.models:mlp", "args": {"inputs": 64, "outputs": 4}})


def test_each_seed_moves_its_own_stream_only(trained):
    base = trained("base")
    order = trained("order", seeds={"order": 9})
    assert torch.equal(base.weights(0)["fc1.weight"], order.weights(0)["fc1.weight"])
    assert base.trace["batch_seed"][1] != order.trace["batch_seed"][1]
    weights = trained("weights", seeds={"weights": 9})
    assert not torch.equal(base.weights(0)["fc1.weight"], weights.weights(0)["fc1.weight"])
    assert base.trace["batch_seed"].equals(weights.trace["batch_seed"])
    everything = trained("everything", seed=9, seeds={"weights": 0})
    assert torch.equal(base.weights(0)["fc1.weight"], everything.weights(0)["fc1.weight"])
    assert everything.trace["batch_seed"].equals(order.trace["batch_seed"])


def test_a_step_of_gradient_descent_is_that_of_the_formula(trained, plain_config, tmp_path):
    changes = {
        "model": {"factory": "stratascope.tasks.models:mlp", "args": {"inputs": 64, "widths": []}},
        "initial_scale": 0.0,
        "batch_size": "full",
        "optimizer": {"rate": 0.3, "momentum": 0.5},
        "stop": {"steps": 2},
        "checkpoints": {"steps": [1]},
    }
    run = trained(**changes)
    data = load_data(plain_config(**changes), tmp_path).train
    inputs = data.inputs.numpy().reshape(200, 64).astype(float)
    wanted = np.eye(10)[data.targets.numpy()]

    def gradient(weight, bias):
        scores = inputs @ weight.T + bias
        chances = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        return (chances - wanted).T @ inputs / 200, (chances - wanted).mean(0)

    weight, bias = np.zeros((10, 64)), np.zeros(10)
    first, first_bias = gradient(weight, bias)
    weight, bias = weight - 0.3 * first, bias - 0.3 * first_bias
    np.testing.assert_allclose(run.weights(1)["fc1.weight"], weight, atol=1e-6)
    second, _ = gradient(weight, bias)
    np.testing.assert_allclose(run.weights(2)["fc1.weight"], weight - 0.3 * (second + 0.5 * first), atol=1e-6)
    assert run.trace["gradient_norm_squared"][1] == pytest.approx((first**2).sum() + (first_bias**2).sum())
    assert run.trace["train_cross_entropy"][0] == pytest.approx(np.log(10))


def test_frozen_weights_stay_and_the_others_move(trained):
    run = trained(frozen=["fc2.*"])
    first, last = run.weights(0), run.weights(12)
    assert torch.equal(first["fc2.weight"], last["fc2.weight"])
    assert not torch.equal(first["fc1.weight"], last["fc1.weight"])


def test_a_clipped_step_is_as_long_as_rate_times_norm(trained):
    run = trained(optimizer={"rate": 0.5, "momentum": 0, "clip_norm": 0.01}, checkpoints={"steps": [1]})
    first, second = run.weights(0), run.weights(1)
    length = torch.cat([(second[name] - first[name]).reshape(-1) for name in first]).norm()
    assert float(length) == pytest.approx(0.005, rel=1e-4)


@pytest.mark.parametrize(
    ("noise", "variance"),
    [
        ({"variance": 4e-4}, 8 * 4e-4),
        ({"variance": 4e-4, "schedule": {"name": "linear"}}, 4.5 * 4e-4),
        ({"temperature": 1e6}, 8 * 2 * 1e-12 * 1e6),
    ],
)
def test_langevin_noise_adds_up_to_its_variance(trained, noise, variance):
    run = trained(
        model={"factory": "stratascope.tasks.models:mlp", "args": {"inputs": 64, "widths": [200]}},
        optimizer={"rate": 1e-12, "momentum": 0},
        batch_size="full",
        stop={"steps": 8},
        noise=noise,
    )
    first, last = run.weights(0), run.weights(8)
    moved = torch.cat([(last[name] - first[name]).reshape(-1).double() for name in first]).numpy()
    count = len(moved)
    assert count > 14_000
    assert abs((moved**2).mean() / variance - 1) < 4 * np.sqrt(2 / count)
    assert abs(moved.mean()) < 4 * np.sqrt(variance / count)
    assert run.trace["noise_variance"].sum() == pytest.approx(variance)


def test_noise_of_no_variance_is_no_noise(trained):
    plain, silent = trained("plain"), trained("silent", noise={"temperature": 0.0})
    for name, value in plain.weights(12).items():
        assert torch.equal(value, silent.weights(12)[name])


def test_training_stops_at_the_first_evaluation_that_meets_the_target(trained):
    long = trained("long", stop={"epochs": 30}, evaluation={"every_epochs": 2, "at_checkpoints": False})
    measured = long.trace.dropna(subset="train_cross_entropy")
    target = float(measured["train_cross_entropy"].iloc[3]) * 1.0001
    assert (measured["train_cross_entropy"].iloc[:3] > target).all()
    run = trained(
        stop={"epochs": 30, "cross_entropy_below": target},
        evaluation={"every_epochs": 2, "at_checkpoints": False},
        checkpoints={"log_spaced": 0, "every_epochs": None},
    )
    assert (run.summary.steps, run.summary.stopped) == (measured["step"].iloc[3], "target")
    assert run.steps == [0, run.summary.steps]
    assert long.summary.stopped == "cap"
    for name, value in run.weights(run.summary.steps).items():
        assert torch.equal(value, long.weights(run.summary.steps)[name])


def test_a_number_of_steps_is_a_cap_of_its_own(trained):
    assert trained(stop={"steps": 5}).steps == [0, 4, 5]


def test_samples_and_order_together_tell_which_samples_made_a_batch(trained, plain_config, tmp_path):
    run = trained(samples=120, corruption={"labels": 0.3}, batch_size=50, checkpoints={"steps": [3]})
    samples = read_samples(run.directory / "samples.parquet")
    data = load_data(plain_config(samples=120, corruption={"labels": 0.3}), tmp_path).train
    assert samples["sample_id"].tolist() == data.sample_id.tolist()
    assert samples["target"].tolist() == data.targets.tolist()
    assert samples["original_target"].tolist() == data.original.tolist()
    assert ((samples["target"] == samples["original_target"]) | samples["label_redrawn"]).all()
    row = run.trace.set_index("step").loc[4]
    places = batch_order(int(row["batch_seed"]), 120)[:50]
    weights = run.weights(3)
    hidden = torch.relu(data.inputs[places].flatten(1) @ weights["fc1.weight"].T + weights["fc1.bias"])
    scores = hidden @ weights["fc2.weight"].T + weights["fc2.bias"]
    loss = torch.nn.functional.cross_entropy(scores, data.targets[places])
    assert row["batch_loss"] == pytest.approx(float(loss), rel=1e-5)


@pytest.mark.parametrize("name", ["digits", "mnist", "fashion_mnist", "cifar10"])
def test_the_examples_are_configurations_of_a_run(name):
    from pathlib import Path

    place = Path(__file__).parents[3] / "examples" / name / "train.yaml"
    config = TrainConfig.model_validate(yaml.safe_load(place.read_text()))
    assert config.train.role == "train"


def test_progress_hears_every_evaluation(plain_config, tmp_path):
    heard = []
    train(plain_config(), tmp_path, lambda step, last, row: heard.append((step, last, row["test_accuracy"])))
    assert [step for step, _, _ in heard] == [0, 4, 8, 12]
    assert {last for _, last, _ in heard} == {12}
    assert heard[-1][2] > heard[0][2]
