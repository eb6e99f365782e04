"""A probe's sequences go through a network batch by batch; of its recurrent layers sums are kept, and everything of a few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from stratascope.errors import DoesNotApply
from stratascope.storage.datasets.dataset import leaves_of, with_exchanged
from stratascope.storage.probes import Probe
from stratascope.tasks.given_samples import given_samples
from stratascope.tasks.sequence.recurrent_capture import (
    RecurrentTrace,
    StateRecorder,
    captured_states,
    recurrent_modules,
)
from stratascope.tasks.sequence.recurrent_cells import GATES, CellWeights, cell_weights, layer_suffixes
from stratascope.tasks.sequence.recurrent_statistics import StateSums
from stratascope.tasks.sequence.sequence_network import SequenceNetwork
from stratascope.tasks.sequence.sequence_samples import SequenceOptions, SequenceSamples, sample_rows, token_count

MIB = 1 << 20
_BATCH_BYTES = 256 * MIB
"""A batch's states take no more than this, roughly; fewer samples then go through at once."""
_SEPARATE = 1000
"""Of so many samples, the first by their order of ids, each has a time constant of its own."""


@dataclass(frozen=True)
class StateLimits:
    """What counts as saturated, and how much is kept."""

    ends: tuple[float, float] = (0.1, 0.9)
    most_units: int = 1024
    """Pairs of units are held against each other in layers of at most so many."""
    trace_bytes: int = 256 * MIB


@dataclass(eq=False)
class LayerStates:
    """One layer and direction over all samples."""

    layer: str
    weights: CellWeights
    sums: StateSums
    residual: float = 0.0
    input: str | None = None
    """Which input of the probe its time steps are the tokens of; None where it is none."""
    reason: str = ""
    """Why nothing is stored of the shown samples, where that is so."""
    shown: dict[str, np.ndarray] = field(default_factory=dict)
    """float32, NaN in padding: `hidden` and `cell_state` (shown_sample, time, unit), `gates` (…, time, gate, unit)."""


def values_per_step(modules: Mapping[str, nn.Module]) -> int:
    """How many numbers the states and gates of all recurrent layers have at one step of one sample."""
    total = 0
    for module in modules.values():
        for suffix in layer_suffixes(module):
            weights = cell_weights(module, suffix)
            gates = len(GATES[weights.cell])
            total += weights.outputs + weights.units * (gates + (weights.cell == "lstm"))
    return total


def trace_bytes(modules: Mapping[str, nn.Module], shown: int, time: int) -> int:
    """What the raw traces of `shown` samples of `time` steps take in the archive before compression, as float16."""
    return 2 * shown * time * values_per_step(modules)


@dataclass(frozen=True)
class StatePass:
    """What one probe's sequences left."""

    layers: list[LayerStates]
    samples: SequenceSamples
    """The shown ones alone."""
    measured: int
    bytes: int
    """Of the raw traces, told before anything ran."""
    refused: str = ""
    """Why no raw traces were kept, where that is so."""


def states_of(network: SequenceNetwork, probe: Probe, options: SequenceOptions, limits: StateLimits) -> StatePass:
    """Run the samples that `options` mean through `network`, which is left as it was. Memory does not grow with them.

    Raises DoesNotApply where the network has no recurrent layer that runs, or the probe no sequences.
    """
    rows, shown = sample_rows(probe, options)
    modules = recurrent_modules(network.network)
    time = max(token_count(values) for values in leaves_of(probe.inputs).values() if len(values.shape) >= 2)
    size = trace_bytes(modules, shown, time)
    refused = ""
    if size > limits.trace_bytes:
        refused = (
            f"the raw traces of {shown} samples of {time} steps would take {size / MIB:.3g} MiB, more than the "
            f"{limits.trace_bytes / MIB:.3g} that `trace_mib` allows: show fewer samples, or raise it."
        )
    # In the order of their places neighbours are read together; sums do not ask for an order. Samples of which something
    # lasting is kept come first: small pieces that are kept for good between large ones would scatter the memory.
    first, later = np.sort(rows[shown:_SEPARATE]), np.sort(rows[max(shown, _SEPARATE) :])
    rows = np.concatenate([rows[:shown], first, later])
    separate = np.arange(len(rows)) < _SEPARATE
    batch = max(1, min(options.batch_size, _BATCH_BYTES // max(1, 4 * time * values_per_step(modules))))
    batch = min(batch, network.fixed_batch_size or batch)
    found: dict[str, LayerStates] = {}
    with torch.no_grad(), captured_states(network) as recorder:
        for start in range(0, len(rows), batch):
            part = SequenceSamples(probe, given_samples(probe, rows[start : start + batch]), 0)
            network.run(part.given)
            traces = recorder.take(len(part))
            if start == 0:
                found = _opened(network, recorder, traces, part, limits)
            kept = 0 if refused else max(0, min(shown - start, batch))
            for trace in traces:
                _add(found, trace, part, separate[start : start + batch], kept)
    if not found:
        raise DoesNotApply("no recurrent layer of this network ran.")
    samples = SequenceSamples(probe, given_samples(probe, rows[:shown]), shown)
    for layer in found.values():
        known = None if layer.input is None else token_count(leaves_of(probe.inputs)[layer.input])
        layer.shown = {name: _of_time(values, known) for name, values in layer.shown.items()}
    return StatePass(list(found.values()), samples, len(rows), size, refused)


def _opened(
    network: SequenceNetwork, recorder: StateRecorder, traces: Sequence[RecurrentTrace], part: SequenceSamples,
    limits: StateLimits,
) -> dict[str, LayerStates]:  # fmt: skip
    """What is kept of each layer, empty, with the input that it reads."""
    found = {}
    for trace in traces:
        weights = trace.weights
        sums = StateSums(
            trace.cell, tuple(_gates(trace)), weights.units, weights.outputs, limits.ends,
            correlated=weights.outputs <= limits.most_units,
        )  # fmt: skip
        found[trace.layer] = LayerStates(
            trace.layer, weights, sums, input=_input_read(network, recorder, trace, part)
        )
    return found


def _gates(trace: RecurrentTrace) -> dict[str, Tensor]:
    """Of a tanh cell the hidden state is its candidate: it saturates as gates do."""
    return {"candidate": trace.hidden} if trace.cell == "rnn_tanh" else trace.gates


def _add(
    found: dict[str, LayerStates], trace: RecurrentTrace, part: SequenceSamples, separate: np.ndarray, kept: int
) -> None:
    layer = found.get(trace.layer)
    if layer is None:
        raise DoesNotApply(
            f"layer {trace.layer!r} does not run for every sample: the network decides by its input."
        )
    if np.isnan(trace.residual) or trace.residual > layer.residual:
        layer.residual = trace.residual
    real = trace.real.cpu()
    if len(real) == len(part):
        if layer.input is not None:
            mask = torch.from_numpy(part.real(layer.input))[:, : real.shape[1]]
            real = real & mask if mask.shape == real.shape else real
    elif kept:
        layer.reason = f"the layer reads {len(real)} sequences where the batch has {len(part)} samples"
        kept = 0
    own = separate if len(real) == len(part) else np.ones(len(real), bool) & separate.all()
    hidden, state = trace.hidden.cpu(), None if trace.state is None else trace.state.cpu()
    gates = {name: values.cpu() for name, values in _gates(trace).items()}
    layer.sums.add(hidden, state, gates, real, own)
    if kept:
        _show(layer, {"hidden": hidden, "cell_state": state, **{f"gate {name}": gates[name] for name in trace.gates}}, real, kept)  # fmt: skip


def _show(layer: LayerStates, states: Mapping[str, Tensor | None], real: Tensor, kept: int) -> None:
    padding = ~real[:kept, :, None]
    own = {
        name: values[:kept].float().masked_fill(padding, torch.nan).numpy()
        for name, values in states.items()
        if values is not None
    }
    gates = [own.pop(name) for name in list(own) if name.startswith("gate ")]
    if gates:
        own["gates"] = np.stack(gates, 2)
    for name, values in own.items():
        layer.shown[name] = values if name not in layer.shown else _one_after_other(layer.shown[name], values)


def _one_after_other(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Samples of both, the shorter ones filled up with NaN in time."""
    time = max(before.shape[1], after.shape[1])
    filled = [
        np.concatenate([part, np.full((len(part), time - part.shape[1], *part.shape[2:]), np.nan, part.dtype)], 1)
        for part in (before, after)
    ]
    return np.concatenate(filled)


def _of_time(values: np.ndarray, time: int | None) -> np.ndarray:
    """`values` (sample, time, …) with `time` steps, whatever their batch had; None: as many as the longest needs."""
    if time is None:
        real = np.isfinite(values).any(axis=(0, *range(2, values.ndim)))
        time = int(real.nonzero()[0].max(initial=0)) + 1
    missing = np.full((len(values), max(0, time - values.shape[1]), *values.shape[2:]), np.nan, values.dtype)
    return np.concatenate([values[:, :time], missing], 1)


# -- which input a layer reads ------------------------------------------------------------------------------


def _input_read(
    network: SequenceNetwork, recorder: StateRecorder, trace: RecurrentTrace, part: SequenceSamples
) -> str | None:
    """The input whose tokens the layer's time steps are: one with as many, or as many real ones of each sample.

    Where several fit it is the last on which the layer depends: a decoder reads the target, and sees the source through
    its encoder.
    """
    if len(trace.real) != len(part):
        return None
    time, lengths = trace.hidden.shape[1], trace.real.sum(1).cpu().numpy()
    values = leaves_of(part.given.inputs)
    packed = bool((lengths < time).any())
    fitting = [
        name
        for name in part.inputs
        if (token_count(values[name]) == time and not packed)
        or (time <= token_count(values[name]) and np.array_equal(part.real(name).sum(1), lengths))
    ]
    if len(fitting) < 2 or len(part) < 2:
        return fitting[-1] if fitting else None
    for name in fitting[::-1]:
        network.run(replace(part.given, inputs=with_exchanged(part.given.inputs, name)))
        other = next((item for item in recorder.take(len(part)) if item.layer == trace.layer), None)
        if (
            other is None
            or other.hidden.shape != trace.hidden.shape
            or not torch.equal(other.hidden, trace.hidden)
        ):
            return name
    return fitting[-1]


def _moved(before: Tensor, after: Tensor) -> bool:
    """Whether two passes differ by more than rounding."""
    return float((after - before).abs().max()) > 1e-3 * float(before.abs().max())
