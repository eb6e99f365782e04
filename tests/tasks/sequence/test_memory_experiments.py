"""Experiments on memory, on networks whose memory is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray
from torch import nn

from stratascope.errors import DoesNotApply
from stratascope.tasks.analysis import named
from stratascope.tasks.sequence.context_losses import context_losses, doubling, gain_length
from stratascope.tasks.sequence.memory_experiments import Gathered, MemoryExperimentsOptions, experiment_rows
from stratascope.tasks.sequence.memory_interventions import (
    directions,
    disturbed_places,
    erased_state,
    excess_losses,
    reading,
    replaced_inputs,
    since,
)
from stratascope.tasks.sequence.memory_trials import Trials
from stratascope.tasks.sequence.streamed_profiles import StreamedProfile
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


class Echoing(nn.Module):
    """Says, sure of itself, which token it read `delay` steps ago; at the start it knows nothing."""

    def __init__(self, delay: int) -> None:
        super().__init__()
        self.delay = delay
        self.recurrent = nn.GRU(1, 1, batch_first=True)

    def forward(self, codes):
        known = nn.functional.one_hot(codes, 6).float() * 8
        self.recurrent(codes[..., None].float())
        return nn.functional.pad(known, (0, 0, self.delay, 0))[:, : codes.shape[1]]


def echoes(delay: int, count: int = 20, time: int = 16):
    codes, _ = texts(count, time)
    targets = np.pad(codes, ((0, 0), (delay, 0)), constant_values=-100)[:, :time]
    return wrapped(Echoing(delay)), given(codes, targets)


def gathered_of(network, samples, kind=TOKENS, size: int = 64, **options) -> Gathered:
    chosen = MemoryExperimentsOptions(rounds=20, **options)
    found = Gathered(lambda: StreamedProfile(20))
    trials = Trials(network, samples, kind.task, kind, chosen)
    for start in range(0, len(samples), size):
        part = samples.part(slice(start, start + size))
        others = samples.inputs[(np.arange(start, start + len(part)) + 1) % len(samples)]
        for experiment in (trials.impulses, trials.erasures, trials.contexts):
            experiment(part, others, found)
    return found


@pytest.mark.parametrize("past", ["none", "other", "shuffled"])
def test_a_network_that_repeats_what_it_read_three_steps_ago_needs_four_tokens(past):
    network, samples = echoes(3)
    others = np.roll(samples.inputs, 1, axis=0)
    ends = np.full(len(samples), 15)
    losses = context_losses(network, samples, others, ends, [1, 2, 3, 4, 8, 16], past, TOKENS, 0)
    assert (losses[:, 3:] < 0.01).all()
    assert losses[:, :3].mean(0).min() > 1
    if past == "none":
        np.testing.assert_allclose(losses[:, :3], np.log(6), rtol=1e-6)


def test_the_length_of_a_gain_is_read_off_between_doubled_contexts():
    losses = np.array([3.0, 2.0, 1.2, 1.0, 1.0])
    assert gain_length(losses, [1, 2, 4, 8], 0.5) == pytest.approx(2)
    assert gain_length(losses, [1, 2, 4, 8], 0.9) == pytest.approx(4)
    assert gain_length(losses, [1, 2, 4, 8], 0.7) == pytest.approx(2**1.5)
    assert gain_length(np.array([3.0, 2.9, 1.0]), [1, 2], 0.9) == np.inf
    assert np.isnan(gain_length(np.array([1.0, 1.0, 2.0]), [1, 2], 0.9))
    assert doubling(12) == [1, 2, 4, 8, 12]
    assert doubling(8) == [1, 2, 4, 8]


def test_samples_of_different_lengths_give_what_each_gives_alone():
    network, samples = echoes(2)
    ends = np.array([15, 9, -1, 4] * 5)
    others = np.roll(samples.inputs, 1, axis=0)
    together = context_losses(network, samples, others, ends, [2, 8], "other", TOKENS, 0)
    assert np.isnan(together[ends < 0]).all()
    for place in (0, 1, 3):
        alone = samples.part(slice(place, place + 1))
        found = context_losses(network, alone, others[place : place + 1], ends[place : place + 1], [2, 8], "other", TOKENS, 0)  # fmt: skip
        np.testing.assert_allclose(found, together[place : place + 1], rtol=1e-6)


def test_a_network_that_cannot_read_a_piece_is_told_in_words():
    network = wrapped(nn.Linear(16, 6))
    samples = given(np.ones((3, 16), np.float32), np.zeros(3, np.int64))
    with pytest.raises(DoesNotApply, match="cannot read 2 steps alone"):
        context_losses(network, samples, samples.inputs, np.full(3, 15), [2], "none", LossKind(), 0)


def test_a_push_of_a_cell_with_a_constant_forget_gate_dies_as_the_gate_says():
    found = gathered_of(wrapped(holding(np.full(4, 0.9))), given(*texts(time=30)))
    curve = found.curves["impulse/state/recurrent.l0/state"].mean
    np.testing.assert_allclose(curve, 0.9 ** np.arange(15), rtol=1e-3)
    # The answer at the step of the push is made of h_t, which was not pushed.
    assert np.isnan(found.curves["impulse/state/recurrent.l0/output"].mean[0])


def test_pushes_belong_to_the_sample_and_have_length_one():
    names = np.array(["a", "b", "c"])
    drawn = directions(names, 5, 0, "layer")
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(directions(names[::-1], 5, 0, "layer"), drawn.flip(0))
    assert not torch.equal(directions(names, 5, 0, "other"), drawn)


def test_what_is_erased_is_gone_and_the_past_before_it_with_it():
    network = wrapped(seeded(character_model, **CHARACTERS))
    samples = given(*texts(4))
    places = np.full(4, 6)
    after = reading(network, samples, TOKENS, erased_state("both", places))
    # From zero states the rest is read as if it were a text of its own.
    rest = samples.inputs[:, 7:]
    alone = network.outputs(torch.from_numpy(rest))
    torch.testing.assert_close(after.outputs[:, 7:], alone.detach())
    cell = reading(network, samples, TOKENS, erased_state("cell", places))
    trace = cell.traces["recurrent.l0"]
    assert not trace.state[:, 6].any()
    assert trace.hidden[:, 6].abs().max() > 0


def test_the_rise_of_the_loss_is_counted_from_the_erased_step():
    network = wrapped(seeded(character_model, **CHARACTERS))
    samples = given(*texts(4))
    places = np.array([6, 3, -1, 15])
    before, after = (reading(network, samples, TOKENS, edit) for edit in (None, erased_state("both", places)))
    rise = excess_losses(before.losses, after.losses, places, np.ones((4, 16), bool), 5)
    wanted = (after.losses.values - before.losses.values).double().numpy()
    np.testing.assert_allclose(rise[0, 1:], wanted[0, 7:11])
    assert np.isfinite(rise).tolist() == [[False, *[True] * 4]] * 2 + [[False] * 5] * 2
    np.testing.assert_allclose(wanted[0, :6], 0, atol=1e-6)


def test_steps_since_a_place_run_in_the_order_of_reading():
    values = np.arange(12.0).reshape(2, 6)
    np.testing.assert_equal(since(values, np.array([2, 5]), 3, False), [[2, 3, 4], [11, np.nan, np.nan]])
    np.testing.assert_equal(since(values, np.array([2, 0]), 3, True), [[2, 1, 0], [6, np.nan, np.nan]])


def test_places_leave_room_for_what_is_watched():
    real = np.ones((3, 20), bool)
    real[1, 12:] = False
    assert [place.tolist() for place in disturbed_places(real, 2, 8, None)] == [[5, 5, 5], [12, -1, 12]]
    assert [place.tolist() for place in disturbed_places(real, 2, 8, [1, 15])] == [[18, 10, 18], [4, -1, 4]]


def test_only_the_step_that_is_named_is_replaced():
    inputs, _ = texts(3)
    found, changed = replaced_inputs(inputs, 5 - inputs, np.array([2, 4, -1]))
    assert changed.tolist() == [True, True, False]
    assert np.argwhere(found != inputs).tolist() == [[0, 2], [1, 4]]
    picture = np.zeros((1, 1, 4, 3))
    found, _ = replaced_inputs(picture, picture + 1, np.array([1]))
    assert found[0, 0].tolist() == [[0] * 3, [1] * 3, [0] * 3, [0] * 3]


@pytest.mark.parametrize("kind", ["tokens", "classification"])
def test_batches_change_nothing(kind):
    if kind == "tokens":
        network, samples = wrapped(seeded(character_model, **CHARACTERS)), given(*texts(6))
    else:
        inputs = np.random.default_rng(0).normal(size=(6, 8, 3)).astype(np.float32)
        network, samples = wrapped(seeded(recurrent_classifier, **CLASSIFIER)), given(inputs, np.arange(6) % 3)
    whole, parts = (gathered_of(network, samples, LossKind(kind), size, places=2) for size in (6, 4))
    assert set(whole.curves) == set(parts.curves)
    assert len(whole.curves) >= 8
    for place, curve in whole.curves.items():
        np.testing.assert_allclose(parts.curves[place].curves, curve.curves, rtol=1e-4, atol=1e-6)


def test_weights_that_are_not_finite_fail_in_words():
    network = seeded(character_model, **CHARACTERS)
    with torch.no_grad():
        network.recurrent.weight_ih_l0[0, 0] = torch.nan
    rows = list(experiment_rows("test", gathered_of(wrapped(network), given(*texts(4)))))
    assert {row.metric for row in rows} == {metric.name for metric in named("memory_experiments").metrics}
    assert {row.status for row in rows} == {"failed"}


def test_the_analysis_files_rows_and_arrays_and_draws(lasting_audit):
    made = lasting_audit("stratascope.tasks.models:character_model", CHARACTERS, task="tokens")
    audit = text_audit(made, {step: seeded(character_model, step, **CHARACTERS) for step in (0, 5)})
    rows = audit.analyse("memory_experiments", rounds=20, places=2)
    assert set(rows["metric"]) == {metric.name for metric in named("memory_experiments").metrics}
    assert set(rows["status"]) <= {"ok", "vacuous", "does_not_apply"}
    missing = rows[rows["status"] == "does_not_apply"]
    assert set(missing["metric"]) <= {"context_gain_length"}
    assert missing["reason"].str.contains("not told from nothing").all()
    whole = rows[(rows["metric"] == "context_loss") & rows["part"].str.startswith("context=whole")]
    assert whole.groupby("step")["value"].nunique().eq(1).all()
    arrays = audit.view("memory_experiments").arrays(5)
    assert arrays["test/context/other"].shape == (3, 5)
    xarray.open_datatree(audit.store.path / "archive.zarr", engine="zarr", consolidated=False)
    figures = {figure.key.split("-")[0]: figure for figure in audit.draw("memory_experiments")}
    assert set(figures) == {"context", "impulse", "answer", "erasure", "course"}
    assert figures["context"].headline
    for figure in figures.values():
        assert any(letter.isdigit() for letter in figure.caution)
        assert figure.svg


def test_with_an_answer_at_the_end_the_state_is_followed_from_one_place_and_the_answer_from_several():
    """A mean over places of which fewer and fewer reach far would step where one drops out."""
    inputs, targets = texts(time=30)
    targets = np.where(np.arange(30) == 29, targets, -100)
    found = gathered_of(wrapped(holding(np.full(4, 0.9))), given(inputs, targets))
    curve = found.curves["impulse/state/recurrent.l0/state"].mean
    np.testing.assert_allclose(curve[:25], 0.9 ** np.arange(25), rtol=1e-2)
    for place in ("impulse/state/recurrent.l0/output", "erasure/both"):
        assert np.flatnonzero(np.isfinite(found.curves[place].mean)).tolist() == [1, 2, 5, 10, 20, 29]
    assert found.about["context/none"]["contexts"] == [1, 2, 4, 8, 16, 30]
