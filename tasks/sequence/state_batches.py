"""The states of recurrent layers, batch by batch, as what looks for patterns in them reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stratascope.errors import DoesNotApply
from stratascope.tasks.given_samples import given_samples
from stratascope.tasks.sequence.recurrent_capture import RecurrentTrace, captured_states
from stratascope.tasks.sequence.sequence_network import SequenceNetwork
from stratascope.tasks.sequence.sequence_samples import SequenceSamples


@dataclass(frozen=True)
class UnitStates:
    """What one recurrent layer held at each token of a batch."""

    layer: str
    kind: str
    """`cell`: tanh(c_t) of an LSTM; `hidden`: h_t of any cell."""
    values: Tensor
    """float32 (sample, time, unit) from -1 to 1, 0 at padding."""
    real: Tensor
    """bool (sample, time)."""

    @property
    def place(self) -> tuple[str, str]:
        return self.layer, self.kind


def state_batches(
    network: SequenceNetwork, samples: SequenceSamples, rows: np.ndarray, size: int, most_tokens: int
) -> Iterator[tuple[np.ndarray, list[UnitStates]]]:
    """(places, states of every recurrent layer) of the samples at the ascending places `rows`, `size` at a time.

    Only the first `most_tokens` steps are kept. Raises DoesNotApply where the network has no recurrent layer.
    """
    size = min(size, network.fixed_batch_size or size)
    with captured_states(network) as recorder, torch.no_grad():
        for start in range(0, len(rows), size):
            places = rows[start : start + size]
            network.run(given_samples(samples.probe, samples.given.rows[places]))
            states = [found for trace in recorder.take(len(places)) for found in _states(trace, most_tokens)]
            if not states:
                raise DoesNotApply("the network ran without calling any of its recurrent layers.")
            yield places, states


def _states(trace: RecurrentTrace, most_tokens: int) -> list[UnitStates]:
    real = trace.real[:, :most_tokens].cpu()
    found = [UnitStates(trace.layer, "hidden", trace.hidden[:, :most_tokens].float().cpu(), real)]
    if trace.state is not None:
        cell = torch.tanh(trace.state[:, :most_tokens].float()).cpu()
        found.insert(0, UnitStates(trace.layer, "cell", cell, real))
    return found


def input_of(samples: SequenceSamples, places: np.ndarray, states: UnitStates, most_tokens: int) -> str | None:
    """The name of the input that the layer read, as one batch of its states tells.

    Of the inputs with as many tokens, or of which packing cut off nothing but padding: rather one whose real tokens are the
    layer's steps, then one whose codes have words of their own, then the first. None where there is none, as behind a pooling
    layer.
    """
    real = states.real.numpy()
    steps = real.shape[1]
    fitting = []
    for order, name in enumerate(samples.inputs):
        given = samples.real(name)[places][:, :most_tokens]
        if given.shape[1] < steps:
            continue
        exact = bool((given[:, :steps] == real).all()) and not given[:, steps:].any()
        if exact or given.shape[1] == steps:
            fitting.append((not exact, name not in samples.probe.names, order, name))
    return min(fitting)[3] if fitting else None


def lengthened(states: UnitStates, tokens: int) -> UnitStates:
    """The same with padding up to `tokens` steps: a packed batch is as long as its longest sample."""
    missing = tokens - states.values.shape[1]
    if missing <= 0:
        return states
    values = torch.nn.functional.pad(states.values, (0, 0, 0, missing))
    return UnitStates(states.layer, states.kind, values, torch.nn.functional.pad(states.real, (0, missing)))
