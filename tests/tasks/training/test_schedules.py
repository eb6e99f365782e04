"""Schedules, noise and the steps at which something happens, against their formulas."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from stratascope.tasks.training.config import CheckpointSpec, EvaluationSpec, NoiseSpec, ScheduleSpec
from stratascope.tasks.training.schedules import (
    checkpoint_steps,
    evaluation_steps,
    factor,
    noise_variance,
    regular_steps,
)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"name": "constant"}, [1, 1, 1, 1, 1]),
        ({"name": "cosine"}, [(1 + math.cos(math.pi * share)) / 2 for share in (0, 0.125, 0.25, 0.5, 0.875)]),
        ({"name": "linear"}, [1, 0.875, 0.75, 0.5, 0.125]),
        ({"name": "milestones", "milestones": [1, 3.5], "factor": 0.1}, [1, 1, 0.1, 0.1, 0.01]),
        ({"name": "exponential", "factor": 0.5}, [1, 1, 0.5, 0.25, 0.125]),
        ({"name": "exponential", "factor": 0.95, "every_epochs": 0.5}, [1, 0.95, 0.95**2, 0.95**4, 0.95**7]),
        ({"name": "inverse"}, [1, 1, 1 / 2, 1 / 3, 1 / 4]),
        ({"name": "inverse_step"}, [1, 1 / 6, 1 / 11, 1 / 21, 1 / 36]),
    ],
)
def test_a_schedule_has_the_value_of_its_formula(spec, expected):
    spec = ScheduleSpec.model_validate(spec)
    assert [factor(spec, step, 10, 40) for step in (0, 5, 10, 20, 35)] == pytest.approx(expected)


def test_a_warm_up_rises_in_equal_steps_to_the_full_value():
    spec = ScheduleSpec(warm_up_epochs=2)
    assert [factor(spec, step, 2, 100) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]


def test_full_batch_decay_every_fifty_steps_does_not_slip_by_rounding():
    spec = ScheduleSpec(name="exponential", factor=0.95, every_epochs=0.1)
    values = [factor(spec, step, 10, 1000) for step in range(1000)]
    assert values == pytest.approx([0.95**step for step in range(1000)])


def test_noise_follows_the_rate_or_its_own_schedule():
    assert noise_variance(None, 0.1, 0, 1, 10) == 0
    assert noise_variance(NoiseSpec(temperature=1e-4), 0.1, 3, 1, 10) == pytest.approx(2e-5)
    own = NoiseSpec(variance=3e-6, schedule=ScheduleSpec(name="linear"))
    assert noise_variance(own, 0.1, 5, 1, 10) == pytest.approx(1.5e-6)


def test_noise_needs_exactly_one_size():
    for values in ({}, {"temperature": 1, "variance": 1}, {"temperature": 1, "schedule": {"name": "linear"}}):
        with pytest.raises(ValidationError, match="temperature"):
            NoiseSpec.model_validate(values)


def test_early_checkpoints_are_evenly_spaced_in_the_logarithm():
    steps = sorted(checkpoint_steps(CheckpointSpec(log_spaced=6), 1000, 3000))
    assert steps == [0, 1, 3, 10, 32, 100, 316, 1000, 2000, 3000]
    ratios = np.diff(np.log(steps[3:8]))
    assert ratios == pytest.approx(np.full(4, math.log(10) / 2), abs=0.02)


def test_checkpoints_come_where_any_rule_asks_and_never_beyond_the_end():
    spec = CheckpointSpec(log_spaced=0, every_epochs=None, epochs=(0.5, 2, 99), steps=(7, 1000))
    assert sorted(checkpoint_steps(spec, 10, 33)) == [0, 5, 7, 20, 33]
    spec = CheckpointSpec(log_spaced=0, every_epochs=1.5)
    assert sorted(checkpoint_steps(spec, 10, 33)) == [0, 15, 30, 33]


@pytest.mark.parametrize(
    ("steps_per_epoch", "last", "log_spaced"), [(1, 1, 6), (1, 50, 3), (2, 7, 20), (469, 5, 6)]
)
def test_start_and_end_are_always_kept(steps_per_epoch, last, log_spaced):
    steps = checkpoint_steps(CheckpointSpec(log_spaced=log_spaced), steps_per_epoch, last)
    assert {0, last} <= steps <= set(range(last + 1))


def test_evaluations_come_at_start_end_and_every_so_many_epochs():
    spec = EvaluationSpec(every_epochs=2, at_checkpoints=False)
    assert sorted(evaluation_steps(spec, frozenset({3}), 10, 45)) == [0, 20, 40, 45]
    with_checkpoints = evaluation_steps(EvaluationSpec(every_epochs=2), frozenset({3}), 10, 45)
    assert sorted(with_checkpoints) == [0, 3, 20, 40, 45]


def test_regular_steps_do_not_miss_the_last_one_by_rounding():
    assert max(regular_steps(0.1, 469, 469)) == 469
    assert regular_steps(0.001, 10, 3) == {1, 2, 3}
