"""Twin runs: the same weights, the same places in the same order, one sample between them."""

import numpy as np
import pytest
import torch

from stratascope.errors import ConfigurationError
from stratascope.storage.traces import read_samples, read_trace
from stratascope.tasks.training.data import load_data, twin_data
from stratascope.tasks.training.seeds import batch_order

LINEAR = {
    "model": {"factory": "stratascope.tasks.models:mlp", "args": {"inputs": 64, "widths": []}},
    "initial_scale": 0.0,
    "samples": 60,
    "batch_size": 10,
    "optimizer": {"rate": 0.2, "momentum": 0},
    "stop": {"steps": 6},
    "checkpoints": {"steps": [1, 2, 3, 4, 5, 6]},
}
NOISY = {
    "model": {"factory": "stratascope.tasks.models:lenet", "args": {"size": 8, "width": 3, "dropout": 0.5}},
    "augmentation": {"crop": 1},
    "noise": {"variance": 1e-6},
    "samples": 60,
    "batch_size": 10,
}


@pytest.fixture
def twins(trained):
    def run(twin, **changes):
        one = trained(twin=twin, **changes)
        other = type(one)(one.directory.with_name(f"run-twin-{twin.get('replace', 0)}"), None)
        return one, other

    return run


def test_twins_start_from_the_same_weights_and_share_the_batch_order(twins):
    one, other = twins({"replace": 7}, **NOISY)
    for name, value in one.weights(0).items():
        assert torch.equal(value, other.weights(0)[name])
    assert one.trace["batch_seed"].equals(other.trace["batch_seed"])
    first, second = (read_samples(run.directory / "samples.parquet")["sample_id"] for run in (one, other))
    assert np.flatnonzero(first != second).tolist() == [7]
    assert second[7] not in set(first)
    assert any(not torch.equal(value, other.weights(18)[name]) for name, value in one.weights(18).items())


def test_twins_are_equal_until_the_first_batch_with_the_exchanged_sample_and_then_as_far_apart_as_it_says(
    twins, plain_config, tmp_path
):
    order = batch_order(
        int(read_trace(twins({"source": "same"}, **LINEAR)[0].directory / "trace.parquet")["batch_seed"][1]), 60
    )
    place = int(order[34])  # in the fourth batch
    one, other = twins({"replace": place}, **LINEAR | {"directory": "run"})
    for step in range(4):
        assert torch.equal(one.weights(step)["fc1.weight"], other.weights(step)["fc1.weight"])
    data = load_data(plain_config(**LINEAR), tmp_path)
    weight, bias = (one.weights(3)[f"fc1.{name}"].numpy() for name in ("weight", "bias"))

    def gradient(samples, row):
        inputs = samples.inputs[row].numpy().reshape(64)
        powers = np.exp(weight @ inputs + bias)
        return np.outer(powers / powers.sum() - np.eye(10)[int(samples.targets[row])], inputs)

    apart = (one.weights(4)["fc1.weight"] - other.weights(4)["fc1.weight"]).numpy()
    expected = -0.2 / 10 * (gradient(data.train, place) - gradient(data.held_out, 0))
    np.testing.assert_allclose(apart, expected, atol=1e-6)


def test_a_twin_with_the_same_sample_is_equal_to_the_bit_whatever_is_random(twins):
    one, other = twins({"replace": 3, "source": "same"}, **NOISY)
    for step in one.steps:
        for name, value in one.weights(step).items():
            assert torch.equal(value, other.weights(step)[name])


def test_a_second_twin_does_not_train_the_first_run_again(twins):
    one, _ = twins({"replace": 7}, **NOISY)
    files = one.files
    times = {path: path.stat().st_mtime_ns for path in one.directory.iterdir()}
    again, second = twins({"replace": 8}, **NOISY)
    assert again.files == files
    assert {path: path.stat().st_mtime_ns for path in again.directory.iterdir()} == times
    assert second.steps == one.steps


def test_a_twin_may_take_a_sample_of_the_test_set(plain_config, tmp_path):
    config = plain_config(twin={"replace": 5, "source": "test", "index": 2})
    data = load_data(config, tmp_path)
    other = twin_data(data, config.twin)
    assert torch.equal(other.train.inputs[5], data.test.inputs[2])
    assert other.train.targets[5] == data.test.targets[2]
    assert torch.equal(other.train.inputs[6:], data.train.inputs[6:])


@pytest.mark.parametrize(
    ("twin", "changes", "words"),
    [
        ({}, {}, "held_out.*`samples`.*source: test"),
        ({"replace": 60}, {"samples": 60}, "replace: 60.*last of 60"),
        ({"index": 140}, {"samples": 60}, "index: 140.*last of 140"),
    ],
)
def test_a_twin_without_a_sample_to_exchange_is_refused_before_any_work(trained, tmp_path, twin, changes, words):
    with pytest.raises(ConfigurationError, match=words):
        trained(twin=twin, **changes)
    assert not (tmp_path / "run").exists()
