"""More than classes of images: tokens, sequences in and out, numbers."""

import numpy as np
import pytest
import torch

from stratascope.tasks.models import attention_encoder_decoder
from stratascope.tasks.training.data import load_data, twin_data

TEXT = "the quick brown fox jumps over the lazy dog and runs away. " * 60


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return {
        split: {"dataset": "text", "split": split, "args": {"path": "text.txt", "length": 16}}
        for split in ("train", "test")
    }


@pytest.mark.parametrize(
    ("factory", "arguments"),
    [
        ("text_transformer", {"length": 16, "width": 16, "heads": 2, "depth": 1}),
        ("text_transformer", {"length": 16, "width": 16, "heads": 2, "expansion": 0, "layer_norm": False}),
        ("character_model", {"cell": "gru", "width": 24}),
        ("character_model", {"cell": "rnn", "width": 24}),
    ],
)
def test_a_model_of_text_learns_to_predict_the_next_character(trained, text, factory, arguments):
    model = {"factory": f"stratascope.tasks.models:{factory}", "args": {"alphabet": 28} | arguments}
    run = trained(**text, model=model, batch_size=16, optimizer={"name": "adam", "rate": 0.01}, stop={"epochs": 8})
    trace = run.trace.dropna(subset="test_cross_entropy")
    assert trace["test_cross_entropy"].iloc[0] == pytest.approx(np.log(28), rel=0.25)
    assert trace["test_cross_entropy"].iloc[-1] < 1.0
    assert run.summary.test_accuracy > 0.7


REVERSAL = """
import numpy as np
def samples(count, seed):
    generator = np.random.default_rng(seed)
    source, target = np.zeros((2, count, 6), np.int64)
    for row, length in enumerate(generator.integers(3, 7, count)):
        source[row, :length] = generator.integers(2, 10, length)
        target[row, :length] = source[row, :length][::-1]
    return {"inputs": {"source": source, "target": target}, "targets": target}
"""
"""Codes of 2 to 9 in, the same from back to front out; 3 to 6 tokens, padded with 0."""


def test_an_encoder_decoder_trains_on_mappings_and_learns_where_to_look(trained, plain_config, tmp_path):
    (tmp_path / "reversal.py").write_text(REVERSAL)
    arguments = {"source": 10, "target": 10, "embedding": 12, "width": 24}
    changes = {
        "train": {"factory": "reversal:samples", "args": {"count": 420, "seed": 0}},
        "test": {"factory": "reversal:samples", "args": {"count": 50, "seed": 1}},
        "samples": 400,
        "twin": {"replace": 2},
        "model": {"factory": "stratascope.tasks.models:attention_encoder_decoder", "args": arguments},
        "loss": {"ignore_index": 0},
        "optimizer": {"name": "adam", "rate": 0.01},
        "batch_size": 32,
        "stop": {"epochs": 10},
        "checkpoints": {"log_spaced": 0, "every_epochs": None},
        "trace": {"example_gradients_every": 100},
    }
    run = trained(**changes)
    assert run.summary.test_accuracy > 0.8
    network = attention_encoder_decoder(**arguments).eval()
    network.load_state_dict(run.weights(run.summary.steps))
    seen = []
    network.attention.register_forward_hook(lambda module, inputs, output: seen.append(output[1]))
    data = load_data(plain_config(**changes), tmp_path)
    network(data.test.inputs)
    best = seen[0].argmax(-1)
    mirrored = [
        best[row, token] == length - 1 - token
        for row, length in enumerate((data.test.inputs["source"] != 0).sum(1).tolist())
        for token in range(length)
    ]
    assert np.mean(mirrored) > 0.5
    other = twin_data(data, plain_config(**changes).twin)
    differs = (other.train.inputs["source"] != data.train.inputs["source"]).any(1)
    assert torch.nonzero(differs).flatten().tolist() == [2]
    assert torch.equal(other.train.inputs["target"][2], data.held_out.inputs["target"][0])
    assert torch.equal(other.train.targets[2], data.held_out.targets[0])


def test_numbers_are_learnt_by_squared_error_and_have_no_accuracy(trained, tmp_path):
    (tmp_path / "teacher.py").write_text(
        "import numpy as np\n"
        "def samples(count, seed):\n"
        "    inputs = np.random.default_rng(seed).normal(size=(count, 6)).astype('float32')\n"
        "    return inputs, (inputs @ np.arange(6, dtype='float32')[:, None]) / 6\n"
    )
    probes = {
        name: {"factory": "teacher:samples", "args": {"count": 100, "seed": seed}}
        for seed, name in enumerate(("train", "test"))
    }
    model = {"factory": "stratascope.tasks.models:mlp", "args": {"inputs": 6, "widths": [], "outputs": 1}}
    run = trained(**probes, model=model, loss={"name": "mse"}, stop={"epochs": 30}, optimizer={"rate": 0.1})
    trace = run.trace.dropna(subset="test_loss")
    assert trace["test_loss"].iloc[-1] < 0.01 * trace["test_loss"].iloc[0]
    assert trace[["train_accuracy", "test_accuracy", "train_cross_entropy"]].isna().all(axis=None)
    assert "NaN" not in (run.directory / "run.json").read_text()
    again = trained(**probes, model=model, loss={"name": "mse"}, stop={"epochs": 30}, optimizer={"rate": 0.1})
    assert np.isnan([run.summary.test_accuracy, again.summary.test_accuracy]).all()


def test_shuffled_pixels_are_as_easy_for_a_perceptron_and_random_labels_are_not(trained):
    accuracies = {
        name: trained(name, corruption=corruption, stop={"epochs": 12}).summary.test_accuracy
        for name, corruption in {
            "true": {}, "shuffled": {"pixels": "shuffled"}, "labels": {"labels": 1.0}, "gaussian": {"pixels": "gaussian"},
        }.items()
    }  # fmt: skip
    assert accuracies["true"] > 0.75
    assert accuracies["shuffled"] > accuracies["true"] - 0.1
    assert accuracies["labels"] < 0.4
    assert accuracies["gaussian"] < 0.4
