"""Gradients through time of many samples: which loss steps are asked, and the tables over lags that add up batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from stratascope.tasks.given_samples import GivenSamples
from stratascope.tasks.sequence.itemised_gradients import (
    AFTER_THE_END,
    chosen_loss_steps,
    itemised_norms,
    natural_window,
)
from stratascope.tasks.sequence.lags import lag_mean, places_back
from stratascope.tasks.sequence.recurrent_capture import RecurrentTrace, captured_states
from stratascope.tasks.sequence.recurrent_cells import CellStep
from stratascope.tasks.sequence.sequence_network import SequenceNetwork
from stratascope.tasks.sequence.step_losses import StepLosses, step_losses, stepwise_counts
from stratascope.tasks.sequence.streamed_profiles import StreamedProfile
from stratascope.tasks.vision.sample_gradients import LossKind


@dataclass
class StateGradients:
    """The norms of gradients by one kind of state of one layer, over all samples so far."""

    layer: str
    state: str
    """`hidden` or `cell`."""
    cell: str
    """`lstm`, `gru`, `rnn_tanh` or `rnn_relu`."""
    loss_steps: tuple[int, ...]
    """Ascending; (-1,) where the loss is one of the whole sequence, which the lag then counts back from the last step of."""
    window: int
    """So many lags are kept at most."""
    profile: StreamedProfile
    tables: list[StreamedProfile]
    """One for each loss step, without intervals."""
    residual: float = 0.0
    """Of the unrolled layer against the real one, the worst of all batches."""
    non_finite: int = 0
    """So many samples have a gradient that is not finite."""
    shown: list[np.ndarray] = field(default_factory=list)
    """(loss step, lag) of each shown sample."""

    @property
    def backwards(self) -> bool:
        return reads_backwards(self.layer)

    def add(self, norms: np.ndarray, sample_id: np.ndarray, shown: int) -> None:
        """Add `norms` (loss step, sample, lag), NaN where there is no such step; the first `shown` are kept whole."""
        bad = np.isinf(norms).any((0, 2))
        self.non_finite += int(bad.sum())
        norms = np.where(bad[None, :, None], np.nan, norms)
        self.profile.add(lag_mean(norms), sample_id)
        for table, own in zip(self.tables, norms, strict=True):
            table.add(own, sample_id)
        self.shown += [norms[:, place].astype(np.float32) for place in range(min(shown, len(sample_id)))]

    def table(self) -> np.ndarray:
        """float64 (loss step, lag): means over samples."""
        width = max(table.mean.shape[0] for table in self.tables)
        return np.stack([np.pad(table.mean, (0, width - len(table.mean)), constant_values=np.nan) for table in self.tables])  # fmt: skip


def reads_backwards(layer: str) -> bool:
    """Whether a layer, by torch's suffix, reads the last step first."""
    return layer.partition("#")[0].endswith("_reverse")


class GradientTables:
    """Takes batches of samples in; all of one probe."""

    def __init__(
        self, network: SequenceNetwork, kind: LossKind, most: int, window: int | None, rounds: int, seed: int
    ) -> None:
        self._network, self._kind, self._most, self._window = network, kind, most, window
        self._made = partial(StreamedProfile, rounds, seed)
        self._loss_steps: dict[str, tuple[int, ...]] = {}
        self._windows: dict[str, int] = {}
        self.found: dict[tuple[str, str], StateGradients] = {}

    def add(self, part: GivenSamples, every: GivenSamples, shown: int) -> None:
        """Take in the batch `part` of the samples `every`, whose first `shown` samples are kept whole."""
        with torch.enable_grad(), captured_states(self._network, retain=True) as recorder:
            outputs = self._network.run(part)
            losses = step_losses(outputs, part, self._kind)
            for trace in recorder.take():
                if not trace.steps:
                    continue
                if trace.layer not in self._loss_steps:
                    self._loss_steps[trace.layer] = self._chosen(trace, losses, every, tuple(outputs.shape))
                self._take_in(trace, losses, part, shown)

    def _chosen(
        self, trace: RecurrentTrace, losses: StepLosses, every: GivenSamples, shape: tuple[int, ...]
    ) -> tuple[int, ...]:
        """The loss steps that go with the layer's own steps; (-1,) where its steps are not those of the loss."""
        time = len(trace.steps)
        assert every.targets is not None
        counts = stepwise_counts(shape, torch.as_tensor(every.targets), every.mask, self._kind.task)
        if not losses.stepwise or counts is None or time != counts.shape[1] or _sees_ahead(trace, losses):
            self._windows[trace.layer] = min(self._window or time, time)
            return (AFTER_THE_END,)
        backwards = reads_backwards(trace.layer)
        seen = counts.flip(1) if backwards else counts
        window = min(self._window or natural_window(seen), time)
        self._windows[trace.layer] = window
        steps = chosen_loss_steps(seen, self._most, window)
        return tuple(sorted(time - 1 - step for step in steps) if backwards else steps)

    def _take_in(self, trace: RecurrentTrace, losses: StepLosses, part: GivenSamples, shown: int) -> None:
        steps, time, count = self._loss_steps[trace.layer], len(trace.steps), len(part)
        whole = steps == (AFTER_THE_END,)
        window = min(self._windows[trace.layer], time)
        backwards = reads_backwards(trace.layer)
        spans = [_span(step, time, window, backwards) for step in steps]
        asked = [losses.whole()] if whole else [losses.values[:, step] for step in steps]
        kinds = {"hidden": [step.hidden for step in trace.steps]}
        if trace.state is not None:
            kinds["cell"] = [step.state for step in trace.steps if step.state is not None]
        real = real_steps(trace, part)
        for kind, norms in zip(kinds, itemised_norms(asked, list(kinds.values()), spans), strict=True):
            values = norms.numpy()[:, :count]
            back = [_whole_lags(values[0], real, backwards, window)] if whole else [
                _step_lags(own, real, losses.counts[:, step].numpy(), step, window, backwards)
                for own, step in zip(values, steps, strict=True)
            ]  # fmt: skip
            own = self._of(trace, kind, steps, window)
            own.residual = max(own.residual, trace.residual)
            own.add(np.stack(back), part.sample_id, shown)

    def _of(self, trace: RecurrentTrace, kind: str, steps: tuple[int, ...], window: int) -> StateGradients:
        layer = trace.layer
        if (layer, kind) not in self.found:
            tables = [StreamedProfile(0) for _ in steps]
            self.found[layer, kind] = StateGradients(layer, kind, trace.cell, steps, window, self._made(), tables)
        own = self.found[layer, kind]
        own.window = max(own.window, window)
        return own


def real_steps(trace: RecurrentTrace, part: GivenSamples) -> np.ndarray:
    """bool (sample, time): steps that the layer took and that are no padding of the probe."""
    real = trace.real[: len(part)].cpu().numpy()
    return real & part.mask if part.mask is not None and part.mask.shape == real.shape else real


def _span(step: int, time: int, window: int, backwards: bool) -> tuple[int, int]:
    if step == AFTER_THE_END:
        return 0, time
    return (step, min(time, step + window)) if backwards else (max(0, step + 1 - window), step + 1)


def _whole_lags(norms: np.ndarray, real: np.ndarray, backwards: bool, window: int) -> np.ndarray:
    """(sample, lag) of `norms` (sample, time), counted back from the last step that is read."""
    places = places_back(real, backwards)[:, :window]
    return np.where(places >= 0, np.take_along_axis(norms, np.maximum(places, 0), 1), np.nan)


def _step_lags(
    norms: np.ndarray, real: np.ndarray, counts: np.ndarray, step: int, window: int, backwards: bool
) -> np.ndarray:
    """(sample, lag) of `norms` (sample, time), counted back from the loss step; NaN beyond the sequence's start."""
    known = np.where(real & counts[:, None], norms, np.nan)
    line = known[:, step:] if backwards else known[:, step::-1]
    found = np.full((len(norms), window), np.nan)
    width = min(window, line.shape[1])
    found[:, :width] = line[:, :width]
    return found


def _sees_ahead(trace: RecurrentTrace, losses: StepLosses) -> bool:
    """Whether losses depend on states that the layer reaches after them: its steps are then not those of the loss, as in
    an encoder whose source is as long as the target."""
    backwards = reads_backwards(trace.layer)
    counted = torch.nonzero(losses.counts.any(0)).flatten().tolist()
    steps: Sequence[CellStep] = trace.steps
    if not counted:
        return False
    step = counted[-1] if backwards else counted[0]
    later = steps[:step] if backwards else steps[step + 1 :]
    if not later:
        return False
    total: Tensor = losses.values[:, step].sum()
    asked = [one.hidden for one in later]
    found = torch.autograd.grad(total, asked, retain_graph=True, allow_unused=True, materialize_grads=True)
    return any(bool(gradient.any()) for gradient in found)
