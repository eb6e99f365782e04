"""An analysis on arrays in memory finds what an audit finds, and leaves nothing behind."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

import stratascope
from stratascope.errors import AnalysisError, ConfigurationError
from stratascope.tasks.models import lenet


@pytest.fixture(autouse=True)
def empty_place(tmp_path, monkeypatch):
    """Temporary folders go to a place of our own, which must be empty afterwards."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    assert list(Path(tmp_path).iterdir()) == []


def value(found, metric: str, **where) -> float:
    rows = found.rows[found.rows["metric"] == metric]
    for column, wanted in where.items():
        rows = rows[rows[column] == wanted]
    (only,) = rows["value"]
    return float(only)


def test_numbers_are_those_of_numpy():
    layer = np.random.default_rng(0).normal(2.0, 3.0, size=(150, 7)).astype(np.float32)
    found = stratascope.analyse("statistics", activations={"block.one": layer})
    assert value(found, "activation_mean", layer="block.one") == pytest.approx(layer.mean(), rel=1e-5)
    assert value(found, "activation_std", layer="block.one") == pytest.approx(layer.std(), rel=1e-5)
    by_unit = found.arrays["probe/block.one/by_unit"]
    names = list(by_unit.attrs["statistic"])
    np.testing.assert_allclose(by_unit.values[names.index("mean")], layer.mean(0), rtol=1e-5)
    assert not found.rows["metric"].str.startswith("weight_").any()


def test_outputs_are_held_against_targets():
    targets = np.arange(60) % 3
    answers = np.eye(3)[(targets + (np.arange(60) < 15)) % 3] * 5
    found = stratascope.analyse("outputs", outputs=answers, targets=targets, class_names=["a", "b", "<i>"])
    assert value(found, "accuracy", part="") == pytest.approx(0.75)
    assert all("<i>" not in figure.svg for figure in found.figures)


def test_a_network_gives_the_numbers_of_its_own_layers_and_is_left_as_it_was():
    torch.manual_seed(0)
    networks = {step: lenet(1, 8, width=4) for step in (0, 5)}
    before = {name: tensor.clone() for name, tensor in networks[5].state_dict().items()}
    inputs = np.random.default_rng(0).normal(size=(40, 1, 8, 8)).astype(np.float32)
    found = stratascope.analyse("statistics", networks=networks, inputs=inputs, layers=["conv1"])
    with torch.no_grad():
        expected = networks[5].eval().conv1(torch.from_numpy(inputs)).numpy()
    assert value(found, "activation_mean", layer="conv1", step=5) == pytest.approx(expected.mean(), rel=1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in networks[5].state_dict().items())
    assert {path.split("/")[0] for path in found.arrays} == {"step-0", "step-5"}


def test_arrays_over_steps_become_a_series():
    features = np.random.default_rng(0).normal(size=(3, 80, 6))
    found = stratascope.analyse(
        "embedding",
        activations={"features": features},
        steps=[0, 10, 20],
        targets=np.arange(80) % 4,
        methods=["pca"],
    )
    assert found.arrays["probe/features/pca_2d"].shape == (3, 80, 2)
    assert list(found.arrays["probe/features/step"].values) == [0, 10, 20]
    # The map to explore is over all layers.
    assert {figure.layer for figure in found.figures} == {"features", ""}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "either `networks`"),
        ({"outputs": np.ones((3, 2)), "networks": torch.nn.Identity()}, "either `networks`"),
        ({"networks": torch.nn.Identity()}, "need `inputs`"),
        ({"outputs": np.ones((3, 2)), "activations": {"a": np.ones((4, 2))}}, "'@output' has the shape"),
        ({"outputs": np.ones((3, 2)), "steps": [0, 1]}, "expected \\(2 steps, sample"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments, words):
    with pytest.raises(ConfigurationError, match=words):
        stratascope.analyse("outputs", **arguments)


def test_what_needs_a_network_or_runs_says_so():
    with pytest.raises(ConfigurationError, match="give `networks`"):
        stratascope.analyse("gradients", outputs=np.ones((3, 2)), targets=np.zeros(3, int))
    with pytest.raises(ConfigurationError, match="compares runs"):
        stratascope.analyse("copies", outputs=np.ones((3, 2)))
    with pytest.raises(ConfigurationError, match="Did you mean 'outputs'"):
        stratascope.analyse("output", outputs=np.ones((3, 2)))
    with pytest.raises(AnalysisError, match="nowhere"):
        stratascope.analyse("outputs", outputs=np.ones((3, 2)), targets=np.array([0, 1, 1]), loss="nowhere:loss")
