"""One number for each sample, whatever the outputs look like; what cannot be asked is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stratascope.errors import ConfigurationError, DoesNotApply
from stratascope.tasks.vision.targets import Target


def test_label_predicted_and_a_number():
    outputs = torch.tensor([[1.0, 5.0, 2.0], [4.0, 0.0, 3.0]])
    for wanted, indices in (("label", [2, 0]), ("predicted", [1, 0]), (1, [1, 1]), (-1, [2, 2])):
        target = Target.of(wanted)
        found = target.indices(outputs, np.array([2, 0]))
        assert found.tolist() == indices
        assert target.scores(outputs, found).tolist() == [
            float(outputs[row, index]) for row, index in enumerate(indices)
        ]


def test_p29_as_many_targets_as_samples_and_none_out_of_range():
    outputs = torch.zeros(3, 4)
    with pytest.raises(DoesNotApply, match="3 outputs and 2 targets"):
        Target().indices(outputs, np.array([0, 1]))
    with pytest.raises(DoesNotApply, match="3 outputs and 2 targets"):
        Target().scores(outputs, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(DoesNotApply, match="class 4 is out of range: the network has 4 outputs, 0 to 3"):
        Target().indices(outputs, np.array([0, 4, 1]))
    with pytest.raises(DoesNotApply, match="target 7 is out of range: the network has 4 outputs"):
        Target(7).indices(outputs, None)
    with pytest.raises(ConfigurationError, match="'lable' is not `label`"):
        Target.of("lable")


def test_segmentation_takes_the_mean_over_the_places_of_the_class():
    outputs = torch.zeros(2, 3, 2, 2)
    outputs[0, 1] = torch.tensor([[5.0, 3.0], [-1.0, 0.0]])
    outputs[0, 0] = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    outputs[1, 0] = 1.0
    scores = Target(1).scores(outputs, torch.tensor([1, 1]))
    assert scores.tolist() == [4.0, 0.0]


def test_a_callable_gets_outputs_and_must_return_one_number_a_sample():
    outputs = torch.arange(6.0).reshape(2, 3)
    margin = Target("mine:margin", lambda values, indices: values[:, 2] - values[:, 0])
    assert margin.scores(outputs, torch.zeros(2, dtype=torch.int64)).tolist() == [2.0, 2.0]
    with pytest.raises(DoesNotApply, match="expected one number for each of the 2 samples"):
        Target("mine:all", lambda values, indices: values).scores(outputs, torch.zeros(2, dtype=torch.int64))


def test_a_single_amount_is_its_own_target():
    assert Target().scores(torch.tensor([[2.0], [3.0]]), Target().indices(torch.zeros(2, 1), None)).tolist() == [
        2.0,
        3.0,
    ]
    assert Target().scores(torch.tensor([2.0, 3.0]), Target().indices(torch.zeros(2), None)).tolist() == [2.0, 3.0]
