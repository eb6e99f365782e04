"""Each sample's own gradient: by hand, against plain automatic differentiation, whatever the batch and the way there."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from stratascope.errors import AnalysisError, DoesNotApply
from stratascope.storage.probes import Probe
from stratascope.tasks.given_samples import given_samples, with_targets
from stratascope.tasks.vision import sample_gradients as module
from stratascope.tasks.vision.sample_gradients import LossKind, sample_gradients, trained_parameters
from tests.tasks.vision.conftest import bars, wrapped


def probe_of(inputs, targets, masks=None) -> Probe:
    count = len(targets)
    return Probe("train", "train", inputs, np.asarray(targets), np.arange(count) + 100, (), "digest", masks=masks or {})  # fmt: skip


def all_gradients(network, probe, kind=LossKind(), most=32, rows=None):  # noqa: B008
    given = wrapped(network)
    parameters = trained_parameters(given.network)
    samples = with_targets(given_samples(probe, np.arange(len(probe)) if rows is None else rows), kind.task)
    with given.untouched():
        parts = [found for _, found in sample_gradients(given, samples, kind, parameters, most)]
    return {name: torch.cat([part[name] for part in parts]) for name in parameters}


class Branching(nn.Module):
    """What `vmap` cannot take: the way through depends on the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, inputs):
        return self.fc(inputs) if inputs.sum() > 0 else self.fc(2 * inputs)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, inputs):
        return self.fc(self.lstm(inputs.reshape(len(inputs), 3, 2))[0][:, -1])


def test_a_linear_model_with_squared_errors_by_hand():
    generator = np.random.default_rng(0)
    inputs, targets = generator.normal(size=(9, 4)).astype(np.float32), generator.normal(size=9).astype(np.float32)
    network = nn.Linear(4, 1)
    found = all_gradients(network, probe_of(inputs, targets), LossKind("regression", "mse"), most=4)
    residual = 2 * (inputs @ network.weight.detach().numpy()[0] + network.bias.item() - targets)
    np.testing.assert_allclose(found["weight"][:, 0], residual[:, None] * inputs, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["bias"][:, 0], residual, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [Branching, Recurrent, lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True), nn.Linear(5, 3))])  # fmt: skip
@pytest.mark.parametrize("most", [1, 4, 32])
def test_any_network_gives_what_plain_differentiation_gives(kind, most: int):
    torch.manual_seed(0)
    network = kind().eval()
    generator = np.random.default_rng(1)
    inputs, targets = generator.normal(size=(7, 6)).astype(np.float32), generator.integers(0, 3, 7)
    found = all_gradients(network, probe_of(inputs, targets), most=most)
    for place in range(7):
        loss = functional.cross_entropy(network(torch.from_numpy(inputs[place : place + 1])), torch.from_numpy(targets[place : place + 1]))  # fmt: skip
        expected = torch.autograd.grad(loss, list(network.parameters()))
        for (name, values), gradient in zip(found.items(), expected, strict=True):
            torch.testing.assert_close(values[place], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_batch_norm_and_shared_weights_are_taken_in_one_vectorised_pass(monkeypatch):
    """The convolution is used twice; in evaluation mode the norm's statistics stand still."""

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1), nn.Linear(192, 4)

        def forward(self, inputs):
            hidden = functional.relu(self.norm(self.conv(inputs)), inplace=True)
            return self.fc(functional.relu(self.conv(hidden)).flatten(1)), hidden

    torch.manual_seed(0)
    network = Shared().eval()
    inputs, targets = bars(6, 0)
    given = wrapped(network, output="[0]")
    parameters = trained_parameters(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    samples = given_samples(probe_of(inputs, targets), np.arange(6))
    with given.untouched():
        loops = module._one_by_one(given, samples, LossKind(), parameters)
        monkeypatch.setattr(module, "_one_by_one", lambda *arguments: None)
        ((_, found),) = sample_gradients(given, samples, LossKind(), parameters)
    for name, values in loops.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-6)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(item.grad is None and item.requires_grad for item in network.parameters())


def test_a_sample_does_not_depend_on_its_place_or_its_mates():
    torch.manual_seed(2)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    inputs, targets = bars(12, 4)
    probe = probe_of(inputs, targets)
    forward = all_gradients(network, probe)
    backward = all_gradients(network, probe, rows=np.arange(12)[::-1], most=5)
    torch.testing.assert_close(forward["1.weight"], backward["1.weight"].flip(0), rtol=1e-5, atol=1e-7)


def test_tokens_count_only_where_they_are_real():
    generator = np.random.default_rng(2)
    inputs = generator.normal(size=(5, 6, 3)).astype(np.float32)
    targets = generator.integers(0, 4, (5, 6))
    mask = np.arange(6) < np.array([6, 1, 3, 0, 2])[:, None]
    network = nn.Linear(3, 4)
    probe = probe_of(inputs, targets, {"": mask})
    found = all_gradients(network, probe, LossKind("tokens"))
    assert len(found["weight"]) == 4
    for place, row in enumerate((0, 1, 2, 4)):
        real = mask[row]
        loss = functional.cross_entropy(network(torch.from_numpy(inputs[row][real])), torch.from_numpy(targets[row][real]))  # fmt: skip
        torch.testing.assert_close(found["weight"][place], torch.autograd.grad(loss, network.weight)[0], rtol=1e-4, atol=1e-6)  # fmt: skip


def test_what_has_no_gradient_or_does_not_fit_is_named(tmp_path):
    (tmp_path / "sample_losses.py").write_text(
        "def without(outputs, targets): return outputs.detach().abs().sum(1)\n"
    )
    inputs, targets = np.zeros((3, 4), np.float32), np.arange(3)
    with pytest.raises(AnalysisError, match="carries no gradient"):
        all_gradients(nn.Linear(4, 3), probe_of(inputs, targets), LossKind("classification", "sample_losses:without", tmp_path))  # fmt: skip
    with pytest.raises(DoesNotApply, match="scores of 2 classes"):
        all_gradients(nn.Linear(4, 2), probe_of(inputs, np.full(3, 5)))
    with pytest.raises(DoesNotApply, match="no parameter"):
        trained_parameters(nn.Flatten())
    with pytest.raises(DoesNotApply, match="the task is 'none'"):
        all_gradients(nn.Linear(4, 2), probe_of(inputs, targets), LossKind("none"))
