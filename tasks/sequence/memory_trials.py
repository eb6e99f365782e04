"""The experiments on memory, batch by batch: which steps are disturbed, what is done there, and the curves that result."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stratascope.errors import DoesNotApply
from stratascope.tasks.given_samples import GivenSamples
from stratascope.tasks.sequence.context_losses import context_losses, doubling
from stratascope.tasks.sequence.gradient_tables import reads_backwards, real_steps
from stratascope.tasks.sequence.itemised_gradients import chosen_loss_steps, natural_window
from stratascope.tasks.sequence.lags import lag_mean, marked_lags
from stratascope.tasks.sequence.memory_interventions import (
    Echo,
    Reading,
    directions,
    disturbed_places,
    echo,
    erased_state,
    excess_losses,
    last_places,
    pushed_state,
    reading,
    replaced_inputs,
)
from stratascope.tasks.sequence.sequence_network import SequenceNetwork
from stratascope.tasks.sequence.step_losses import stepwise_counts
from stratascope.tasks.vision.sample_gradients import LossKind

if TYPE_CHECKING:
    from stratascope.tasks.sequence.memory_experiments import Gathered, MemoryExperimentsOptions

_LATE = 0.9
"""Where the middle one of the steps that count lies beyond this share of the sequence, the answer comes at its end."""


@dataclass(frozen=True)
class _Plan:
    """What is disturbed in a batch."""

    real: np.ndarray
    """bool (sample, time) of the first layer."""
    places: list[np.ndarray]
    """int64 (sample,) of each disturbance."""
    lags: int
    """So many steps are watched."""
    at_the_end: bool
    """Whether the answer comes at the end; the places are then each further back than the one before."""

    def state_curve(self, found: list[Echo], layer: str) -> np.ndarray:
        """(sample, lag): the mean over the disturbances. With an answer at the end that of the one furthest back, which
        is seen at every lag: a mean over places of which fewer and fewer reach far would jump where one drops out."""
        curves = np.stack([item.state[layer] for item in found])
        if not self.at_the_end:
            return lag_mean(curves)
        known = np.isfinite(curves).any(2)
        furthest = len(curves) - 1 - np.argmax(known[::-1], axis=0)
        return curves[furthest, np.arange(curves.shape[1])]


class Trials:
    """The experiments on one probe's samples. What is chosen depends on all of them, never on a batch."""

    def __init__(
        self, network: SequenceNetwork, every: GivenSamples, task: str, kind: LossKind | None,
        options: MemoryExperimentsOptions,
    ) -> None:  # fmt: skip
        self._network, self._every, self._task, self._kind, self._options = network, every, task, kind, options
        self._before: tuple[GivenSamples, Reading] | None = None

    def _undisturbed(self, part: GivenSamples) -> Reading:
        if self._before is None or self._before[0] is not part:
            self._before = part, reading(self._network, part, self._kind)
        return self._before[1]

    def _plan(self, before: Reading, part: GivenSamples) -> _Plan:
        trace = next(iter(before.traces.values()), None)
        if trace is None:
            raise DoesNotApply("no recurrent layer of this network was run.")
        real = real_steps(trace, part)
        time = real.shape[1]
        counts = self._counts(before)
        stepwise = before.outputs.ndim == 3 and before.outputs.shape[1] == time
        if counts is not None and counts.shape[1] == time:
            # A loss that counts at the very end only is an answer at the end, though there are outputs at every step.
            stepwise = natural_window(counts) <= _LATE * time
        horizon = min(self._options.horizon or (max(2, time // 2) if stepwise else time), time)
        whole = None if stepwise else [lag for lag in marked_lags(horizon) if lag or horizon == 1]
        places = disturbed_places(real, self._options.places, horizon, whole)
        return _Plan(real, places, horizon, not stepwise)

    def _counts(self, before: Reading) -> torch.Tensor | None:
        """bool (sample, time) of all samples: where a loss counts; None where there is none at each step."""
        if self._kind is None or self._every.targets is None:
            return None
        targets = torch.as_tensor(self._every.targets)
        return stepwise_counts(tuple(before.outputs.shape), targets, self._every.mask, self._kind.task)

    def impulses(self, part: GivenSamples, others: Any, gathered: Gathered) -> None:
        """Push the state of each layer, and replace an input; watch states and answers."""
        before = self._undisturbed(part)
        plan = self._plan(before, part)
        for layer, trace in before.traces.items():
            real = real_steps(trace, part)
            sizes = before.followed(layer).double().norm(dim=-1).cpu().numpy()
            mean = lag_mean(np.where(real, sizes, np.nan), 1)
            lengths = self._options.push * np.where(np.isfinite(mean) & (mean > 0), mean, 1.0)
            units = before.followed(layer).shape[-1]
            pushes = directions(part.sample_id, units, self._options.seed, layer) * torch.from_numpy(lengths[:, None]).float()  # fmt: skip
            found = []
            for place in plan.places:
                struck = np.where(place < real.shape[1], place, -1)
                after = reading(self._network, part, None, pushed_state(layer.partition("#")[0], struck, pushes))
                found.append(echo(before, after, struck, part, self._task, plan.lags, plan.at_the_end))
            states = plan.state_curve(found, layer) / lengths[:, None]
            answers = lag_mean(np.stack([item.output for item in found]))
            if trace.state is not None:
                answers[:, 0] = np.nan  # c_t was pushed, and the answer at that step is made of h_t
            self._file(gathered, "state", layer, states, answers, part)
        if isinstance(others, np.ndarray):
            self._input_impulse(before, part, others, plan, gathered)

    def _input_impulse(
        self, before: Reading, part: GivenSamples, others: np.ndarray, plan: _Plan, gathered: Gathered
    ) -> None:
        found = []
        for place in plan.places:
            inputs, changed = replaced_inputs(part.inputs, others, place)
            struck = np.where(changed, place, -1)
            after = reading(self._network, replace(part, inputs=inputs), None)
            found.append(echo(before, after, struck, part, self._task, plan.lags, plan.at_the_end))
        answers = lag_mean(np.stack([item.output for item in found]))
        for layer, trace in before.traces.items():
            if layer not in found[0].state:
                continue
            sizes = before.followed(layer).double().norm(dim=-1).cpu().numpy()
            usual = lag_mean(np.where(real_steps(trace, part), sizes, np.nan), 1)[:, None]
            with np.errstate(invalid="ignore", divide="ignore"):
                states = plan.state_curve(found, layer) / usual
            self._file(gathered, "input", layer, states, answers, part)

    def _file(
        self, gathered: Gathered, impulse: str, layer: str, states: np.ndarray, answers: np.ndarray, part: GivenSamples
    ) -> None:  # fmt: skip
        about = {"experiment": "impulse", "impulse": impulse, "layer": layer, "push": self._options.push}
        gathered.add(f"impulse/{impulse}/{layer}/state", states, part.sample_id, watched="state", **about)
        if np.isfinite(answers).any():
            gathered.add(f"impulse/{impulse}/{layer}/output", answers, part.sample_id, watched="output", **about)

    def erasures(self, part: GivenSamples, others: Any, gathered: Gathered) -> None:
        """Set the states of all layers to zero and watch the loss. Raises DoesNotApply where there is no one past."""
        before = self._undisturbed(part)
        assert before.losses is not None
        _refuse_both_ways(before)
        times = {trace.hidden.shape[1] for trace in before.traces.values()}
        if len(times) > 1:
            raise DoesNotApply(
                "the recurrent layers run over sequences of different lengths: there is no one past."
            )
        if before.losses.stepwise and before.losses.values.shape[1] not in times:
            raise DoesNotApply("the loss has other steps than the recurrent layers.")
        plan = self._plan(before, part)
        kinds = ["both"]
        if any(trace.state is not None for trace in before.traces.values()):
            kinds += ["cell", "hidden"]
        for what in kinds:
            found = []
            for place in plan.places:
                after = reading(self._network, part, self._kind, erased_state(what, place))
                assert after.losses is not None
                found.append(excess_losses(before.losses, after.losses, place, plan.real, plan.lags))
            gathered.add(f"erasure/{what}", lag_mean(np.stack(found)), part.sample_id, experiment="erasure", erased=what)  # fmt: skip

    def contexts(self, part: GivenSamples, others: Any, gathered: Gathered) -> None:
        """Shorten the context and take the loss of the last token. Raises DoesNotApply as `context_losses` does."""
        before = self._undisturbed(part)
        assert before.losses is not None
        assert self._kind is not None
        _refuse_both_ways(before)
        real = self._plan(before, part).real
        time = real.shape[1]
        counts = self._counts(before)
        if counts is not None and counts.shape[1] != time:
            raise DoesNotApply("the loss has other steps than the recurrent layers.")
        natural = time if counts is None else max(2, natural_window(counts))
        longest = min(self._options.longest_context or natural, time)
        contexts = doubling(longest)
        if counts is None:
            ends = [np.where(real.any(1), last_places(real), -1)]
        else:
            own = before.losses.counts.numpy()
            steps = chosen_loss_steps(counts, self._options.places, longest)
            ends = [np.where(own[:, step], step, -1) for step in steps]
        given = others if isinstance(others, np.ndarray) else np.zeros(0)
        for past in self._options.pasts:
            lines = []
            for end in ends:
                losses = context_losses(self._network, part, given, end, contexts, past, self._kind, self._options.seed)  # fmt: skip
                whole = before.losses.values.double().numpy()[
                    np.arange(len(part)), end if counts is not None else 0
                ]
                lines.append(np.column_stack([losses, np.where(end >= 0, whole, np.nan)]))
            gathered.add(
                f"context/{past}", lag_mean(np.stack(lines)), part.sample_id, experiment="context", past=past,
                contexts=contexts, axis="context",
            )  # fmt: skip


def _refuse_both_ways(before: Reading) -> None:
    if any(reads_backwards(layer) for layer in before.traces):
        raise DoesNotApply("a layer reads backwards: what comes later is its past too.")
