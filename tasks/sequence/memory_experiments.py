"""Experiments on memory: push the state, replace an input, erase the past, take the context away, and watch what follows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.given_samples import GivenSamples, with_targets
from stratascope.tasks.sequence.lags import crossing_below, marked_lags
from stratascope.tasks.sequence.memory_experiments_drawing import draw
from stratascope.tasks.sequence.sequence_samples import SequenceOptions, sequence_samples
from stratascope.tasks.sequence.streamed_profiles import StreamedProfile
from stratascope.tasks.vision.sample_gradients import LossKind

if TYPE_CHECKING:
    from stratascope.tasks.sequence.sequence_network import SequenceNetwork

SHARES = (0.5, 0.9)
_METRICS = ("impulse_half_life", "erasure_excess_loss", "context_loss", "context_gain_length")
_ESTIMATOR = "mean over samples, interval by Poisson bootstrap"


class MemoryExperimentsOptions(SequenceOptions):
    """What is disturbed, where, and how long it is watched. The same places and pushes serve at every checkpoint."""

    max_samples: int = Field(default=64, ge=1)
    """So many samples of each probe are measured at most."""
    places: int = Field(default=3, ge=1)
    """Where there is an answer at every step, so many steps are disturbed, one at a time, and as many are predicted from a
    shortened context. Where the answer comes at the end, steps at a few distances from it are."""
    horizon: int | None = Field(default=None, ge=2)
    """So many steps are watched, the disturbed one included; null: half of the sequence, or all of it where the answer comes
    at the end."""
    push: float = Field(default=0.1, gt=0)
    """The length of the push by the mean length of the sample's own states."""
    longest_context: int | None = Field(default=None, ge=2)
    """null: as many tokens as half of the loss steps have behind them."""
    pasts: tuple[Literal["none", "other", "shuffled"], ...] = ("none", "other", "shuffled")
    """What stands before the context that is left."""
    rounds: int = Field(default=200, ge=20)
    """Of the bootstrap over samples."""


@dataclass
class Gathered:
    """Curves of one probe, added up over batches, by their place below the probe."""

    make: Callable[[], StreamedProfile]
    curves: dict[str, StreamedProfile] = field(default_factory=dict)
    about: dict[str, dict[str, Any]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    """Why there is none, by experiment."""

    def add(self, place: str, values: np.ndarray, sample_id: np.ndarray, **about: Any) -> None:
        """`values` (sample, lag); about tells what the curve is of."""
        self.curves.setdefault(place, self.make()).add(values, sample_id)
        self.about[place] = about


def compute(context: CheckpointContext, options: MemoryExperimentsOptions) -> Findings:
    """Rows by probe; arrays (band, lag), band being mean, low, high: `<probe>/impulse/<kind>/<layer>/state` and `output`,
    `<probe>/erasure/<what>`, and (band, context) `<probe>/context/<past>`, whose last place is the whole past.
    """
    from stratascope.tasks.sequence.recurrent_capture import recurrent_modules
    from stratascope.tasks.sequence.sequence_network import SequenceNetwork

    findings = Findings()
    kind = LossKind.of(context.subject)
    network = SequenceNetwork.of(context)
    recurrent_modules(network.network)  # raises DoesNotApply, for all probes at once, where there are none
    with network.untouched():
        for name, probe in context.probes.items():
            try:
                gathered = _experiments(network, probe, kind, options)
            except DoesNotApply as reason:
                findings.rows += _unknown(name, str(reason))
                continue
            findings.rows += list(experiment_rows(name, gathered))
            findings.arrays |= _arrays(name, gathered)
    return findings


def _experiments(
    network: SequenceNetwork, probe: Probe, kind: LossKind, options: MemoryExperimentsOptions
) -> Gathered:
    from stratascope.tasks.sequence.memory_trials import Trials

    every = sequence_samples(probe, options).given
    gathered = Gathered(lambda: StreamedProfile(options.rounds, options.seed))
    lost: LossKind | None = kind
    try:
        every = with_targets(every, kind.task)
    except DoesNotApply as reason:
        lost = None
        gathered.reasons |= dict.fromkeys(("erasure", "context"), str(reason))
    trials = Trials(network, every, kind.task, lost, options)
    for rows in network.batches_of(every, options.batch_size):
        part, others = every.part(rows), _others(every, rows)
        trials.impulses(part, others, gathered)
        for name, experiment in (("erasure", trials.erasures), ("context", trials.contexts)):
            if name not in gathered.reasons:
                try:
                    experiment(part, others, gathered)
                except DoesNotApply as reason:
                    gathered.reasons[name] = str(reason)
    return gathered


def _others(every: GivenSamples, rows: slice) -> Any:
    """Inputs of the next sample for each of `rows`, in the order of the choice, which is one of ids."""
    places = (np.arange(rows.start, rows.stop) + 1) % len(every)
    return every.inputs[places] if isinstance(every.inputs, np.ndarray) else None


def experiment_rows(probe: str, gathered: Gathered) -> Iterator[Row]:
    """All rows of one probe."""
    found: list[Row] = []
    for place, curve in gathered.curves.items():
        about = gathered.about[place]
        fields: dict[str, Any] = {"probe": probe, "layer": about.get("layer", ""), "n": curve.samples}
        if not curve.samples:
            continue
        if about["experiment"] == "impulse":
            found.append(_half_life(curve, about, fields))
        elif about["experiment"] == "erasure":
            mean, (low, high) = curve.mean, curve.band()
            for lag in marked_lags(len(mean)):
                if np.isfinite(mean[lag]):
                    part = f"erased={about['erased']};lag={lag}"
                    found.append(Row("erasure_excess_loss", float(mean[lag]), part=part, low=float(low[lag]), high=float(high[lag]), estimator=_ESTIMATOR, **fields))  # fmt: skip
        else:
            found += _context_rows(curve, about, fields)
    yield from found
    told = {row.metric for row in found}
    for metric in _METRICS:
        reason = next((text for name, text in gathered.reasons.items() if metric.startswith(name)), "")
        if reason:
            yield Row(metric, probe=probe, status="does_not_apply", reason=reason)
        elif metric not in told:
            yield Row(
                metric, probe=probe, status="failed", reason="no state, answer or loss that it needs is finite"
            )


def _half_life(curve: StreamedProfile, about: dict[str, Any], fields: dict[str, Any]) -> Row:
    """The lag at which the mean curve first falls to half of its highest point, counted from there."""

    def half_life(line: np.ndarray) -> float:
        known = np.isfinite(line)
        top = float(line[known].max()) if known.any() else 0.0
        if top <= 0:
            return float("nan")
        return crossing_below(line, top / 2) - float(np.flatnonzero(known & (line == top))[0])

    part = f"impulse={about['impulse']};watched={about['watched']}"
    value, low, high = curve.number(half_life)
    if np.isfinite(value):
        return Row("impulse_half_life", value, part=part, low=low, high=high, estimator=_ESTIMATOR, **fields)
    known = np.flatnonzero(np.isfinite(curve.mean))
    if not len(known) or not curve.mean[known].max() > 0:
        reason = "nothing was changed by it"
        return Row("impulse_half_life", part=part, status="does_not_apply", reason=reason, **fields)
    last = int(known[-1])
    reason = f"not fallen to half after {last} steps, as far as was watched: it lasts at least so long"
    return Row("impulse_half_life", float(last), part=part, status="vacuous", reason=reason, **fields)


def _context_rows(curve: StreamedProfile, about: dict[str, Any], fields: dict[str, Any]) -> Iterator[Row]:
    from stratascope.tasks.sequence.context_losses import gain_length

    contexts, past = about["contexts"], f"past={about['past']}"
    mean, (low, high) = curve.mean, curve.band()
    for place, name in enumerate((*contexts, "whole")):
        part = f"context={name};{past}"
        yield Row("context_loss", float(mean[place]), part=part, low=float(low[place]), high=float(high[place]), estimator=_ESTIMATOR, **fields)  # fmt: skip
    gain = curve.number(lambda line: float(line[0] - line[-1]))
    for share in SHARES:
        if not gain[1] > 0:
            reason = "the gain of the whole past over the last token alone is not told from nothing"
            yield Row("context_gain_length", part=f"{past};share={share:g}", status="does_not_apply", reason=reason, **fields)  # fmt: skip
            continue
        value, least, most = curve.number(lambda line, share=share: gain_length(line, contexts, share))  # type: ignore[misc]
        part = f"{past};share={share:g}"
        if np.isfinite(value):
            yield Row(
                "context_gain_length", value, part=part, low=least, high=most, estimator=_ESTIMATOR, **fields
            )
            continue
        reason = f"{contexts[-1]} tokens do not give {share:.0%} of the gain: it takes more"
        yield Row("context_gain_length", float(contexts[-1]), part=part, status="vacuous", reason=reason, **fields)


def _arrays(probe: str, gathered: Gathered) -> dict[str, NamedArray]:
    found = {}
    for place, curve in gathered.curves.items():
        if curve.samples:
            values = np.stack([curve.mean, *curve.band()]).astype(np.float32)
            path = "/".join(encode_path_part(part) for part in place.split("/"))
            about = gathered.about[place] | {"band": ["mean", "low", "high"], "samples": curve.samples}
            found[f"{probe}/{path}"] = NamedArray(("band", about.pop("axis", "lag")), values, about)
    return found


def _unknown(probe: str, reason: str) -> list[Row]:
    return [Row(metric, probe=probe, status="does_not_apply", reason=reason) for metric in _METRICS]


_INVARIANT = "permutation of units and samples"

ANALYSIS = register(
    Analysis(
        name="memory_experiments", version=1, scope="checkpoint", title="Experiments on memory",
        question="How long does a recurrent network remember, when the past is disturbed or taken away?",
        options=MemoryExperimentsOptions, compute=compute, draw=draw, needs=frozenset({"network"}),
        metrics=(
            Metric("impulse_half_life", "steps", "[0, ∞)", "Steps after which the mean effect of a disturbance at one step has fallen to half of its highest: of a push of a layer's own state (`impulse=state`; c of an LSTM, else h) or of another sample's token at one step (`impulse=input`), on the distance of that layer's state (`watched=state`) or of the answers (`watched=output`). `vacuous`, a lower bound, where it has not fallen so far within what was watched.", "", f"{_INVARIANT}; scale of the state"),
            Metric("erasure_excess_loss", "loss", "(-∞, ∞)", "By how much the loss rises, `lag` steps after the state of all layers was set to zero: `erased=both`, or the `cell` or `hidden` state alone. Mean over the erased places, then over samples.", "", _INVARIANT),
            Metric("context_loss", "loss", "(-∞, ∞)", "Loss at a token when only the last `context` tokens, itself included, are the sample's own: before them stands nothing (`past=none`), another sample (`past=other`) or the sample's own past in a random order (`past=shuffled`). `context=whole` leaves the past as it is.", "Khandelwal et al. 2018, section 3", "permutation of samples"),
            Metric("context_gain_length", "tokens", "[1, ∞)", "The shortest context that gives `share` of what the whole past gains over the last token alone, linear in the logarithm of its length. `vacuous`, a lower bound, where the longest context does not give it.", "Khandelwal et al. 2018, section 3 (effective context size)", "permutation of samples; scale of the loss"),
        ),
    )
)  # fmt: skip
