"""The trace: which rows and columns it has, and that its numbers are those of the weights beside it."""

import math

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch

from stratascope.storage.traces import TRACE_COLUMNS, read_trace, write_trace
from stratascope.tasks.models import mlp
from stratascope.tasks.training.data import load_data
from stratascope.tasks.training.seeds import batch_order

UPDATE = ["rate", "noise_variance", "batch_seed", "batch_loss", "batch_accuracy", "gradient_norm_squared"]
STATE = [name for name in TRACE_COLUMNS if name.startswith(("train_", "test_"))]
SINGLE = [name for name in TRACE_COLUMNS if name.startswith("example_")]


def test_columns_have_their_types_and_definitions_in_the_file(trained):
    schema = parquet.read_schema(trained().directory / "trace.parquet")
    assert schema.names == list(TRACE_COLUMNS)
    whole = {"step", "batch_seed"}
    assert {field.name: str(field.type) for field in schema} == {
        name: "int64" if name in whole else "double" for name in TRACE_COLUMNS
    }
    assert schema.field("rate").metadata[b"definition"].decode() == TRACE_COLUMNS["rate"]


def test_each_step_has_its_update_and_each_evaluation_its_state(trained):
    trace = trained(trace={"example_gradients_every": 5}).trace
    assert trace["step"].tolist() == list(range(13))
    assert trace["epoch"].tolist() == [step / 4 for step in range(13)]
    assert trace.loc[0, UPDATE].isna().all()
    assert trace.loc[1:, UPDATE].notna().all(axis=None)
    evaluated = trace["step"].isin([0, 4, 8, 12])
    assert trace.loc[evaluated, STATE].notna().all(axis=None)
    assert trace.loc[~evaluated, STATE].isna().all(axis=None)
    assert trace.loc[trace["step"].isin([1, 5, 10]), SINGLE].notna().all(axis=None)
    assert trace.loc[~trace["step"].isin([1, 5, 10]), SINGLE].isna().all(axis=None)


def test_a_sparse_trace_keeps_what_was_measured(trained):
    trace = trained(trace={"every": 3, "example_gradients_every": 5}).trace
    assert trace["step"].tolist() == [0, 1, 3, 4, 5, 6, 8, 9, 10, 12]


def test_how_much_is_traced_does_not_change_the_weights(trained):
    one = trained("one")
    other = trained("other", trace={"every": 5, "example_gradients_every": 1}, evaluation={"every_epochs": 3})
    for name, value in one.weights(12).items():
        assert torch.equal(value, other.weights(12)[name])


def network_at(run, step):
    network = mlp(64, (12,))
    network.load_state_dict(run.weights(step))
    return network.eval()


def test_numbers_of_an_update_are_those_of_its_batch_at_the_weights_before_it(trained, plain_config, tmp_path):
    run = trained(trace={"example_gradients_every": 1})
    data = load_data(plain_config(), tmp_path).train
    row = run.trace.set_index("step").loc[9]  # the first update of the third epoch
    places = batch_order(int(row["batch_seed"]), 200)[:50]
    network, inputs, targets = network_at(run, 8), data.inputs[places], data.targets[places]
    scores = network(inputs)
    loss = torch.nn.functional.cross_entropy(scores, targets)
    loss.backward()
    squared = sum(float((item.grad**2).sum()) for item in network.parameters())
    assert row["batch_loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert row["batch_accuracy"] == pytest.approx(float((scores.argmax(1) == targets).float().mean()))
    assert row["gradient_norm_squared"] == pytest.approx(squared, rel=1e-4)
    norms = []
    for place in places:
        network.zero_grad()
        one = torch.nn.functional.cross_entropy(
            network(data.inputs[place : place + 1]), data.targets[place : place + 1]
        )
        one.backward()
        norms.append(math.sqrt(sum(float((item.grad**2).sum()) for item in network.parameters())))
    assert row["example_gradient_norm_mean"] == pytest.approx(np.mean(norms), rel=1e-5)
    assert row["example_gradient_norm_squared_mean"] == pytest.approx(np.mean(np.square(norms)), rel=1e-5)
    assert row["example_gradient_norm_max"] == pytest.approx(max(norms), rel=1e-5)


def test_numbers_of_a_state_are_those_of_its_checkpoint(trained, plain_config, tmp_path):
    run = trained(evaluation={"train_samples": 30, "batch_size": 7}, loss={"label_smoothing": 0.1})
    data = load_data(plain_config(), tmp_path)
    row = run.trace.set_index("step").loc[8]
    for name, samples, count in (("train", data.train, 30), ("test", data.test, 60)):
        scores, targets = network_at(run, 8)(samples.inputs[:count]), samples.targets[:count]
        smooth = torch.nn.functional.cross_entropy(scores, targets, label_smoothing=0.1)
        assert row[f"{name}_loss"] == pytest.approx(smooth.item(), rel=1e-5)
        plain = torch.nn.functional.cross_entropy(scores, targets)
        assert row[f"{name}_cross_entropy"] == pytest.approx(plain.item(), rel=1e-5)
        assert row[f"{name}_accuracy"] == pytest.approx(float((scores.argmax(1) == targets).float().mean()))


def test_what_does_not_apply_is_null_and_whole_numbers_stay_whole(tmp_path):
    write_trace(
        tmp_path / "trace.parquet", [{"step": 0, "test_accuracy": math.nan}, {"step": 1, "batch_seed": 2**53 - 1}]
    )
    table = parquet.read_table(tmp_path / "trace.parquet")
    assert table["test_accuracy"].null_count == 2
    assert table["batch_seed"].to_pylist() == [None, 2**53 - 1]
    assert int(read_trace(tmp_path / "trace.parquet")["batch_seed"][1]) == 2**53 - 1
