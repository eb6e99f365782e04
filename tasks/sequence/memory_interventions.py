"""What becomes of a network that reads on when its state, or one of its inputs, is disturbed or erased at some step."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stratascope.tasks.given_samples import GivenSamples
from stratascope.tasks.sequence.gradient_tables import reads_backwards, real_steps
from stratascope.tasks.sequence.recurrent_capture import RecurrentTrace, captured_states
from stratascope.tasks.sequence.sequence_network import SequenceNetwork
from stratascope.tasks.sequence.step_losses import StepLosses, step_losses
from stratascope.tasks.sequence.unrolling import Edit
from stratascope.tasks.vision.sample_gradients import LossKind


@dataclass(frozen=True)
class Reading:
    """What a network did with a batch of samples, undisturbed or disturbed."""

    traces: dict[str, RecurrentTrace]
    """By layer."""
    outputs: Tensor
    """(sample, …) on the processor."""
    losses: StepLosses | None
    """None where there is no loss."""

    def followed(self, layer: str) -> Tensor:
        """(sample, time, unit): c_t of an LSTM, else h_t."""
        trace = self.traces[layer]
        return trace.hidden if trace.state is None else trace.state


@torch.no_grad()
def reading(
    network: SequenceNetwork, part: GivenSamples, kind: LossKind | None, edit: Edit | None = None
) -> Reading:
    """One pass over `part`; without `kind` no loss is taken."""
    with captured_states(network, edit=edit) as recorder:
        outputs = network.run(part)
        traces = {trace.layer: trace for trace in recorder.take(len(part))}
    return Reading(traces, outputs.cpu(), None if kind is None else step_losses(outputs, part, kind))


def directions(sample_id: np.ndarray, units: int, seed: int, purpose: str) -> Tensor:
    """float32 (sample, unit) of length 1, drawn for each sample's id and `purpose`."""
    lines = []
    for name in sample_id.tolist():
        generator = np.random.default_rng([seed, zlib.crc32(str(name).encode()), zlib.crc32(purpose.encode())])
        line = generator.standard_normal(units)
        lines.append(line / np.linalg.norm(line))
    return torch.from_numpy(np.array(lines, np.float32).reshape(-1, units))


def pushed_state(layer: str, places: np.ndarray, pushes: Tensor) -> Edit:
    """An edit that adds `pushes` (sample, unit) to the followed state of `layer` at each sample's place; -1 for never."""

    def edit(name: str, step: int, hidden: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if name != layer:
            return hidden, state
        here = _at(places, step, hidden)
        added = torch.zeros_like(hidden if state is None else state)
        added[: len(pushes)] = pushes.to(added)
        if state is None:
            return torch.where(here, hidden + added, hidden), None
        return hidden, torch.where(here, state + added, state)

    return edit


def erased_state(what: str, places: np.ndarray) -> Edit:
    """An edit that sets the state of all layers to zero at each sample's place: `both`, `hidden` or `cell` alone."""

    def edit(name: str, step: int, hidden: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor | None]:
        here = _at(places, step, hidden)
        if what in ("both", "hidden"):
            hidden = torch.where(here, torch.zeros_like(hidden), hidden)
        if state is not None and what in ("both", "cell"):
            state = torch.where(here, torch.zeros_like(state), state)
        return hidden, state

    return edit


def _at(places: np.ndarray, step: int, like: Tensor) -> Tensor:
    """bool (sample, 1): the samples whose place is `step`; those that only fill up a batch have none."""
    here = np.zeros(len(like), bool)
    here[: len(places)] = places == step
    return torch.from_numpy(here).to(like.device)[:, None]


def replaced_inputs(inputs: np.ndarray, others: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`inputs` (sample, time, …) or (sample, channel, time, x) with the step at each place taken from `others`; and bool
    (sample,): where that changed anything."""
    found = inputs.copy()
    time = 2 if inputs.ndim == 4 else 1
    line, given = np.moveaxis(found, time, 1), np.moveaxis(others, time, 1)
    rows = np.flatnonzero(places >= 0)
    line[rows, places[rows]] = given[rows, places[rows]]
    return found, (found != inputs).reshape(len(inputs), -1).any(1)


@dataclass(frozen=True)
class Echo:
    """How far a disturbance is felt; float64 (sample, lag), NaN where there is no such step."""

    state: dict[str, np.ndarray]
    """By layer: the distance of the followed state from the undisturbed one."""
    output: np.ndarray
    """Of the outputs: total variation of the answers, or the norm of the difference of numbers."""


def echo(
    before: Reading, after: Reading, places: np.ndarray, part: GivenSamples, task: str, lags: int, at_the_end: bool
) -> Echo:
    """`after` against `before`, by the number of steps read since each sample's place, up to `lags` - 1; of the answers
    that of the last step alone where it is the one that counts, `at_the_end`."""
    states = {}
    backwards = any(reads_backwards(layer) for layer in before.traces)
    real = None
    for layer, trace in before.traces.items():
        if layer not in after.traces or after.followed(layer).shape != before.followed(layer).shape:
            continue
        distance = (after.followed(layer) - before.followed(layer)).double().norm(dim=-1).cpu().numpy()
        real = real_steps(trace, part)
        states[layer] = since(np.where(real, distance, np.nan), places, lags, reads_backwards(layer))
    gap = output_distance(before.outputs, after.outputs, task)
    if gap.ndim == 2 and at_the_end and real is not None and gap.shape == real.shape:
        gap = gap[np.arange(len(gap)), last_places(real)]
    if gap.ndim == 2:
        known = gap if real is None or gap.shape != real.shape else np.where(real, gap, np.nan)
        return Echo(
            states, since(known, places, lags, False) if not backwards else np.full((len(gap), lags), np.nan)
        )
    found = np.full((len(gap), lags), np.nan)
    if real is not None and not backwards:
        distance_back = last_places(real) - places
        rows = np.flatnonzero((places >= 0) & (distance_back >= 0) & (distance_back < lags))
        found[rows, distance_back[rows]] = gap[rows]
    return Echo(states, found)


def last_places(real: np.ndarray) -> np.ndarray:
    """int64 (sample,): the last real step."""
    return real.shape[1] - 1 - np.argmax(real[:, ::-1], axis=1)


def since(values: np.ndarray, places: np.ndarray, lags: int, backwards: bool) -> np.ndarray:
    """(sample, lag): `values` (sample, time) from each sample's place on, in the order of reading; NaN beyond."""
    found = np.full((len(values), lags), np.nan)
    for row, place in enumerate(places):
        if place < 0:
            continue
        line = values[row, place::-1] if backwards else values[row, place:]
        width = min(lags, len(line))
        found[row, :width] = line[:width]
    return found


def output_distance(before: Tensor, after: Tensor, task: str) -> np.ndarray:
    """float64 (sample,) or (sample, time): total variation of the softmax, from 0 to 1; of numbers the norm of their
    difference, over all of a sample's numbers where there are no steps."""
    if task == "regression":
        gap = (after - before).double()
        whole = gap.ndim < 3
        return (gap.flatten(1).norm(dim=-1) if whole else gap.flatten(2).norm(dim=-1)).numpy()
    gap = after.double().softmax(-1) - before.double().softmax(-1)
    return (0.5 * gap.abs().sum(-1)).numpy()


def disturbed_places(real: np.ndarray, count: int, horizon: int, whole: Sequence[int] | None) -> list[np.ndarray]:
    """For each disturbance int64 (sample,): where it strikes each sample, -1 where the sample is too short.

    `whole` are numbers of steps back from each sample's last one, where the answer comes at the end; else `count` steps
    are chosen evenly, early enough that `horizon` - 1 more follow in the longest sample and a quarter of it came before.
    """
    last = last_places(real)
    if whole is not None:
        return [np.where(real.any(1) & (last - lag >= 0), last - lag, -1) for lag in whole]
    time = real.shape[1]
    first, end = min(time - 1, max(1, time // 4)), max(0, time - horizon)
    steps = sorted({round(float(value)) for value in np.linspace(min(first, end), end, count)})
    return [np.where(real[:, step], step, -1) for step in steps]


def excess_losses(
    before: StepLosses, after: StepLosses, places: np.ndarray, real: np.ndarray, lags: int
) -> np.ndarray:
    """float64 (sample, lag): by how much the loss rose, by the number of steps read since the place; NaN at lag 0, where
    the answer is made from what was erased itself."""
    gap = (after.values - before.values).double().numpy()
    known = np.where(before.counts.numpy(), gap, np.nan)
    if before.stepwise:
        found = since(known, places, lags, False)
    else:
        found = np.full((len(known), lags), np.nan)
        back = last_places(real) - places
        rows = np.flatnonzero((places >= 0) & (back >= 0) & (back < lags))
        found[rows, back[rows]] = known[rows, 0]
    found[:, 0] = np.nan
    return found
