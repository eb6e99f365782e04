"""Losses against formulas written out in NumPy, and gradient norms of single samples against one call each."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from stratascope.errors import ConfigurationError
from stratascope.storage.model_spec import ModelSpec
from stratascope.tasks.models.network import build_network
from stratascope.tasks.training.config import LossSpec
from stratascope.tasks.training.example_gradients import example_gradient_norms, refuse_batch_norm
from stratascope.tasks.training.losses import accuracy_of, check_targets, cross_entropy_of, loss_of, target_count

SCORES = np.random.default_rng(0).normal(size=(20, 5)) * 2
LABELS = np.random.default_rng(1).integers(0, 5, 20)


def loss(spec, scores=SCORES, labels=LABELS):
    return float(loss_of(torch.tensor(scores), torch.tensor(labels), LossSpec.model_validate(spec)))


def chances(scores):
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def plain_cross_entropy(scores=SCORES, labels=LABELS):
    return -np.log(chances(scores)[np.arange(len(labels)), labels])


def rivals(values, labels=LABELS):
    return [np.delete(row, label) for row, label in zip(values, labels, strict=True)]


def test_cross_entropy_and_label_smoothing():
    assert loss({}) == pytest.approx(plain_cross_entropy().mean())
    smooth = -(0.9 * np.eye(5)[LABELS] + 0.1 / 5) * np.log(chances(SCORES))
    assert loss({"label_smoothing": 0.1}) == pytest.approx(smooth.sum(-1).mean())


@pytest.mark.parametrize("margin", [0.5, 1.0, 4.0])
def test_the_margin_loss_is_the_hinge_of_the_distance_to_the_best_other_class(margin):
    expected = [
        max(0.0, margin - (row[label] - max(other)))
        for row, label, other in zip(SCORES, LABELS, rivals(SCORES), strict=True)
    ]
    assert loss({"name": "margin", "margin": margin}) == pytest.approx(np.mean(expected))


def test_margin_penalties_have_the_form_of_sun_et_al():
    softmax = chances(SCORES)
    own = softmax[np.arange(20), LABELS]
    nearest = [(1 - (mine - max(other))) ** 2 for mine, other in zip(own, rivals(softmax), strict=True)]
    mean_of_all = [np.mean((1 - (mine - other)) ** 2) for mine, other in zip(own, rivals(softmax), strict=True)]
    for kind, expected in (("nearest", nearest), ("all", mean_of_all)):
        spec = {"penalty": {"kind": kind, "weight": 0.7}}
        assert loss(spec) == pytest.approx(plain_cross_entropy().mean() + 0.7 * np.mean(expected))
        assert loss({"penalty": {"kind": kind, "weight": 0}}) == loss({})
    assert np.mean(mean_of_all) < np.mean(nearest)


def test_for_two_classes_both_penalties_are_one():
    scores, labels = SCORES[:, :2], LABELS % 2
    one, other = (loss({"penalty": {"kind": kind, "weight": 1}}, scores, labels) for kind in ("nearest", "all"))
    assert one == pytest.approx(other)


def test_squared_error_of_classes_is_that_of_the_one_hot_vector():
    assert loss({"name": "mse"}) == pytest.approx(((SCORES - np.eye(5)[LABELS]) ** 2).mean())


def test_numbers_are_compared_as_numbers():
    targets = SCORES[::-1].copy()
    assert loss({"name": "mse"}, SCORES, targets) == pytest.approx(((SCORES - targets) ** 2).mean())
    assert loss({"name": "mae"}, SCORES, targets) == pytest.approx(np.abs(SCORES - targets).mean())


@pytest.mark.parametrize(
    "spec", [{}, {"name": "margin"}, {"name": "mse"}, {"penalty": {"kind": "all", "weight": 1}}]
)
def test_padding_counts_in_no_loss_and_no_accuracy(spec):
    spec = LossSpec.model_validate(spec | {"ignore_index": 0})
    scores, labels = torch.tensor(SCORES.reshape(4, 5, 5)), torch.tensor(LABELS.reshape(4, 5))
    kept = LABELS != 0
    assert 0 < kept.sum() < 20
    alone = torch.tensor(SCORES[kept]), torch.tensor(LABELS[kept])
    for measure in (loss_of, cross_entropy_of, accuracy_of):
        assert float(measure(scores, labels, spec)) == pytest.approx(float(measure(*alone, spec)))
    assert target_count(labels, spec) == kept.sum()


@pytest.mark.parametrize(
    ("spec", "scores", "targets", "words"),
    [
        ({}, (3, 5), torch.tensor([0, 1]), r"\(3, 5\) do not fit targets of shape \(2,\)"),
        ({}, (2, 5), torch.tensor([0, 5]), "from 0 to 5.*classes 0 to 4"),
        ({}, (2, 5), torch.tensor([0, -1]), "from -1 to 0"),
        ({}, (2, 5), torch.zeros(2, 5), "these are numbers"),
        ({"name": "mae"}, (2, 5), torch.tensor([0, 1]), "these are classes"),
        ({"name": "mse"}, (2, 5), torch.zeros(2, 4), r"\(2, 4\)"),
    ],
)
def test_targets_that_do_not_fit_are_refused_with_their_shape_or_range(spec, scores, targets, words):
    with pytest.raises(ConfigurationError, match=words):
        check_targets(torch.zeros(scores), targets, LossSpec.model_validate(spec))


def test_options_of_cross_entropy_are_refused_with_another_loss():
    with pytest.raises(ValidationError, match="cross_entropy only"):
        LossSpec(name="margin", label_smoothing=0.1)


NETWORKS = {
    "mlp": ({"inputs": 6, "widths": [5], "outputs": 5, "dropout": 0.5}, torch.randn(7, 6)),
    "lenet": ({"size": 8, "width": 2, "outputs": 5, "dropout": 0.5}, torch.randn(7, 1, 8, 8)),
    "recurrent_classifier": ({"cell": "lstm", "inputs": 4, "width": 3, "outputs": 5}, torch.randn(7, 6, 4)),
    "vision_transformer": ({"size": 8, "patch": 4, "width": 8, "heads": 2, "outputs": 5}, torch.randn(7, 1, 8, 8)),
}


@pytest.mark.parametrize("factory", NETWORKS)
@pytest.mark.parametrize("spec", [{}, {"name": "margin"}, {"ignore_index": 4}])
def test_gradient_norms_of_single_samples_equal_one_backward_pass_each(factory, spec):
    torch.manual_seed(0)
    arguments, inputs = NETWORKS[factory]
    model = ModelSpec(factory=f"stratascope.tasks.models:{factory}", args=arguments)
    network = build_network(model, None)
    next(iter(network.parameters())).requires_grad_(False)
    targets = torch.tensor([0, 1, 2, 3, 0, 1, 2])
    loss_spec = LossSpec.model_validate(spec)
    norms = example_gradient_norms(network, model, loss_spec, inputs, targets)
    assert network.training
    network.eval()
    for row in range(7):
        network.zero_grad()
        loss_of(network(inputs[row : row + 1]), targets[row : row + 1], loss_spec).backward()
        gradients = [item.grad for item in network.parameters() if item.grad is not None]
        expected = torch.cat([item.reshape(-1) for item in gradients]).norm()
        assert float(norms[row]) == pytest.approx(float(expected), rel=1e-5)


def test_gradients_of_single_samples_do_not_exist_with_batch_norm():
    with pytest.raises(ConfigurationError, match=r"batch norm \(norm1\)"):
        refuse_batch_norm(build_network(
            ModelSpec(factory="stratascope.tasks.models:mlp", args={"batch_norm": True}), None
        ))  # fmt: skip
