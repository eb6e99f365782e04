"""The analysis of gradients through time: closed forms, padding, batches, losses of every kind, refusals and figures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray
from torch import nn

from stratascope.tasks.models import mlp
from stratascope.tasks.sequence.gradient_tables import GradientTables
from stratascope.tasks.sequence.gradient_through_time import gradient_rows
from stratascope.tasks.vision.sample_gradients import LossKind
from tests.tasks.sequence.remembering import (
    CHARACTERS,
    CLASSIFIER,
    character_model,
    given,
    holding,
    recurrent_classifier,
    seeded,
    text_audit,
    texts,
    wrapped,
)

TOKENS = LossKind("tokens")


def tables_of(network, samples, kind=TOKENS, size: int = 64, most: int = 4, window=None) -> GradientTables:
    tables = GradientTables(wrapped(network), kind, most, window, 20, 0)
    for start in range(0, len(samples), size):
        tables.add(samples.part(slice(start, start + size)), samples, max(0, 2 - start))
    return tables


def test_a_constant_forget_gate_is_the_decay_of_the_gradient_by_the_cell():
    keep = np.full(4, 0.8)
    found = tables_of(holding(keep), given(*texts())).found["recurrent.l0", "cell"]
    mean = found.profile.mean
    assert found.window == 8
    # Beyond lag 0 nothing but the forget gate stands between a cell state and a later loss.
    np.testing.assert_allclose(mean[1:] / mean[:-1], 0.8, rtol=1e-5)


def test_each_loss_step_agrees_with_a_gradient_taken_on_its_own():
    network = seeded(character_model, **CHARACTERS)
    inputs, targets = texts(3)
    found = tables_of(network, given(inputs, targets)).found["recurrent.l0", "hidden"]
    recurrent, step, source = network.recurrent, found.loss_steps[0], found.loss_steps[0] - 3
    codes = network.embedding(torch.from_numpy(inputs[:1]))
    _, (last, cell) = recurrent(codes[:, : source + 1])
    last = last.detach().requires_grad_()
    later, _ = recurrent(codes[:, source + 1 : step + 1], (last, cell.detach()))
    loss = nn.functional.cross_entropy(network.fc(later[:, -1]), torch.from_numpy(targets[:1, step]))
    wanted = torch.autograd.grad(loss, last)[0].norm()
    assert found.shown[0][0, 3] == pytest.approx(float(wanted), rel=1e-5)


def test_a_loss_at_the_end_is_counted_back_from_the_last_real_step_of_each_sample():
    network = seeded(recurrent_classifier, **CLASSIFIER)
    inputs = np.random.default_rng(0).normal(size=(4, 7, 3)).astype(np.float32)
    found = tables_of(network, given(inputs, np.arange(4) % 3), LossKind()).found["recurrent.l0", "hidden"]
    assert found.loss_steps == (-1,)
    assert found.table().shape == (1, 7)
    mask = np.arange(7) < np.array([[4], [7], [4], [7]])
    masked = tables_of(network, given(inputs, np.arange(4) % 3, mask), LossKind()).found["recurrent.l0", "hidden"]
    assert np.isfinite(masked.shown[0][0]).tolist() == [True] * 4 + [False] * 3
    # The network reads the padding too: its fourth step lies three before its last one.
    np.testing.assert_allclose(masked.shown[0][0, :4], found.shown[0][0, 3:])
    np.testing.assert_allclose(masked.shown[1], found.shown[1])


def test_padding_and_batch_mates_change_nothing():
    network = seeded(character_model, **(CHARACTERS | {"layers": 2}))
    inputs, targets = texts(10)
    mask = np.arange(16) < np.array([16] * 7 + [11] * 3)[:, None]
    targets = np.where(mask, targets, -100)
    whole = tables_of(network, given(inputs, targets, mask))
    parts = tables_of(network, given(inputs, targets, mask), size=3)
    other = tables_of(network, given(np.where(mask, inputs, 5), targets, mask))
    assert set(whole.found) == {(f"recurrent.l{layer}", state) for layer in (0, 1) for state in ("cell", "hidden")}
    for key, found in whole.found.items():
        assert found.loss_steps == parts.found[key].loss_steps
        np.testing.assert_allclose(parts.found[key].profile.curves, found.profile.curves, rtol=1e-5)
        np.testing.assert_allclose(other.found[key].profile.mean, found.profile.mean, rtol=1e-6)


class Mirror(nn.Module):
    """Reads in both directions and predicts every token."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.recurrent = nn.GRU(4, 3, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(6, 6)

    def forward(self, codes):
        return self.fc(self.recurrent(self.embedding(codes))[0])


class Repeater(nn.Module):
    """Reads all of it first, then answers from the last state alone, as many tokens as it read."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.encoder = nn.GRU(4, 3, batch_first=True)
        self.decoder = nn.GRU(3, 3, batch_first=True)
        self.fc = nn.Linear(3, 6)

    def forward(self, codes):
        _, last = self.encoder(self.embedding(codes))
        return self.fc(self.decoder(last[0][:, None].expand(-1, codes.shape[1], -1))[0])


def test_a_layer_that_reads_backwards_is_followed_in_its_own_order():
    torch.manual_seed(0)
    found = tables_of(Mirror(), given(*texts(5))).found
    forward, backward = found["recurrent.l0", "hidden"], found["recurrent.l0_reverse", "hidden"]
    assert min(forward.loss_steps) >= 7
    assert max(backward.loss_steps) <= 8
    for item in (forward, backward):
        assert np.isfinite(item.table()).all()
        assert (item.profile.mean > 0).all()
        assert item.profile.mean[0] > item.profile.mean[-1]


def test_an_encoder_as_long_as_the_target_is_not_taken_for_the_steps_of_the_loss():
    torch.manual_seed(0)
    found = tables_of(Repeater(), given(*texts(5))).found
    assert found["encoder.l0", "hidden"].loss_steps == (-1,)
    assert found["decoder.l0", "hidden"].loss_steps[-1] == 15


def test_gradients_that_are_not_finite_are_told_and_not_averaged():
    network = seeded(character_model, **(CHARACTERS | {"cell": "rnn"}))
    with torch.no_grad():
        network.fc.weight[0, 0] = torch.nan
    found = tables_of(network, given(*texts(6))).found["recurrent.l0", "hidden"]
    assert found.non_finite == 6
    rows = list(gradient_rows("test", found))
    assert {row.status for row in rows} == {"failed"}
    assert "6 of 6 samples are not finite" in rows[0].reason


@pytest.fixture(scope="module")
def audit(lasting_audit):
    made = lasting_audit("stratascope.tasks.models:character_model", CHARACTERS, task="tokens")
    return text_audit(made, {0: seeded(character_model, 0, **CHARACTERS), 5: seeded(character_model, 1, **CHARACTERS)})  # fmt: skip


def test_the_analysis_files_rows_and_arrays_and_draws(audit):
    rows = audit.analyse("gradient_through_time", rounds=20, loss_steps=3, jacobian_samples=2)
    assert set(rows["status"]) == {"ok"}
    assert set(rows["metric"]) == {"gradient_norm_by_lag", "effective_memory_length", "gradient_decay_rate", "state_jacobian_norm"}  # fmt: skip
    parts = set(rows[rows["metric"] == "gradient_norm_by_lag"]["part"])
    assert {f"lag={lag};state=cell" for lag in (0, 1, 2, 5, 7)} < parts
    own = rows[rows["metric"] == "effective_memory_length"]
    assert (own["low"] <= own["value"]).all()
    assert (own["value"] <= own["high"]).all()
    arrays = audit.view("gradient_through_time").arrays(5)
    assert arrays["test/recurrent.l0/cell/table"].shape == (3, 8)
    jacobian = arrays["test/recurrent.l0/jacobian"]
    np.testing.assert_allclose(jacobian[:, :, 0], 1, rtol=1e-6)
    xarray.open_datatree(audit.store.path / "archive.zarr", engine="zarr", consolidated=False)
    figures = {figure.key.split("-")[0]: figure for figure in audit.draw("gradient_through_time")}
    assert set(figures) == {"decay", "table", "sample", "jacobian"}
    assert figures["decay"].headline
    assert "step 0" in figures["decay"].shows
    assert len(figures["table"].frames) == 2
    for figure in figures.values():
        assert "{" not in figure.caution + figure.shows
        assert any(letter.isdigit() for letter in figure.caution)


def test_a_network_without_recurrence_and_a_task_without_loss_are_told_so(little_audit):
    audit = little_audit(args={"inputs": 6, "widths": [4], "outputs": 3})
    audit.probe("test", inputs=np.ones((4, 6), np.float32), targets=np.arange(4) % 3)
    audit.checkpoint(0, seeded(mlp, inputs=6, widths=[4], outputs=3))
    for name in ("gradient_through_time", "memory_experiments"):
        rows = audit.analyse(name)
        assert set(rows["status"]) == {"does_not_apply"}
        assert "no recurrent layer" in rows["reason"].iloc[0]
