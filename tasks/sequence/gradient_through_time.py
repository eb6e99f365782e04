"""How far back the loss reaches: its gradient by the state at every earlier step, and how the state hands changes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.given_samples import with_targets
from stratascope.tasks.sequence.gradient_through_time_drawing import draw
from stratascope.tasks.sequence.lags import decay_rate, length_holding, marked_lags
from stratascope.tasks.sequence.sequence_samples import SHOWN, SequenceOptions, sequence_samples
from stratascope.tasks.sequence.state_jacobians import jacobian_arrays, jacobian_rows, measured_jacobians
from stratascope.tasks.vision.sample_gradients import LossKind

if TYPE_CHECKING:
    from stratascope.tasks.sequence.gradient_tables import StateGradients
    from stratascope.tasks.sequence.sequence_network import SequenceNetwork

SHARES = (0.5, 0.9)
_METRICS = ("gradient_norm_by_lag", "effective_memory_length", "gradient_decay_rate")


class GradientThroughTimeOptions(SequenceOptions):
    """How many loss steps are asked, and how far back each of them is followed."""

    max_samples: int = Field(default=128, ge=1)
    """So many samples of each probe are measured at most."""
    loss_steps: int = Field(default=8, ge=1)
    """Where there is a loss at every step, the gradients of so many of them are taken, evenly chosen."""
    window: int | None = Field(default=None, ge=1)
    """So many steps back at most; null: as many as half of the loss steps have behind them, so that all lags are seen from
    the same loss steps. That is half of a sequence with a loss at every step, and all of one with a loss at its end."""
    rounds: int = Field(default=200, ge=20)
    """Of the bootstrap over samples."""
    jacobian_samples: int = Field(default=4, ge=0)
    """Of so many samples the derivative of the last state by each earlier one is computed."""
    exact_units: int = Field(default=160, ge=1)
    """Up to so many units with all its singular values; beyond, by power iteration and random changes."""


def compute(context: CheckpointContext, options: GradientThroughTimeOptions) -> Findings:
    """Rows by layer and kind of state; below `<probe>/<layer>/<state>/` arrays `profile` (band, lag): mean, low, high;
    `table` (loss_step, lag) and `shown` (shown_sample, loss_step, lag); below `<probe>/<layer>/` `jacobian` (norm,
    jacobian_sample, jacobian_lag). Lag 0 is the state at the loss step itself.
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
                _measure(network, kind, name, probe, options, findings)
            except DoesNotApply as reason:
                findings.rows += _unknown(name, str(reason))
            findings.rows += list(_jacobians(network, name, probe, options, findings))
    return findings


def _measure(
    network: SequenceNetwork, kind: LossKind, name: str, probe: Probe, options: GradientThroughTimeOptions,
    findings: Findings,
) -> None:  # fmt: skip
    from stratascope.tasks.sequence.gradient_tables import GradientTables

    samples = sequence_samples(probe, options)
    every = with_targets(samples.given, kind.task)
    shown = int(np.isin(samples.given.sample_id[: samples.shown], every.sample_id).sum())
    tables = GradientTables(network, kind, options.loss_steps, options.window, options.rounds, options.seed)
    for rows in network.batches_of(every, options.batch_size):
        tables.add(every.part(rows), every, max(0, shown - rows.start))
    if not tables.found:
        raise DoesNotApply("no recurrent layer of this network was run.")
    findings.arrays[f"{name}/sample_id"] = NamedArray((SHOWN,), every.sample_id[:shown])
    for found in tables.found.values():
        findings.rows += list(gradient_rows(name, found))
        if not found.non_finite:
            findings.arrays |= _arrays(name, found)


def gradient_rows(probe: str, found: StateGradients) -> Iterator[Row]:
    """The rows of one layer and kind of state; `failed` where a gradient is not finite."""
    state = f"state={found.state}"
    count = found.profile.samples
    where = "the end" if found.loss_steps == (-1,) else f"{len(found.loss_steps)} loss steps"
    about: dict[str, Any] = {
        "layer": found.layer, "probe": probe, "n": count, "convention": f"window={found.window};loss at {where}",
    }  # fmt: skip
    if found.non_finite or not count:
        reason = f"the gradients of {found.non_finite} of {found.non_finite + count} samples are not finite"
        yield from (Row(metric, part=state, status="failed", reason=reason, **about) for metric in _METRICS)
        return
    mean, (low, high) = found.profile.mean, found.profile.band()
    about["estimator"] = "mean over samples, interval by Poisson bootstrap"
    for lag in marked_lags(len(mean)):
        yield Row(
            "gradient_norm_by_lag", float(mean[lag]), part=f"lag={lag};{state}", low=float(low[lag]),
            high=float(high[lag]), **about,
        )  # fmt: skip
    for metric, part, of, missing in (
        *(("effective_memory_length", f"share={share:g};{state}", lambda line, share=share: length_holding(line, share), "all gradients are zero") for share in SHARES),
        ("gradient_decay_rate", state, decay_rate, "fewer than three lags have a gradient"),
    ):  # fmt: skip
        value, least, most = found.profile.number(of)
        if np.isfinite(value):
            yield Row(metric, value, part=part, low=least, high=most, **about)
        else:
            yield Row(metric, part=part, status="does_not_apply", reason=missing, **about)


def _arrays(probe: str, found: StateGradients) -> dict[str, NamedArray]:
    place = f"{probe}/{encode_path_part(found.layer)}/{found.state}"
    about = {
        "loss_step": list(found.loss_steps), "window": found.window, "residual": found.residual,
        "backwards": found.backwards, "cell": found.cell, "samples": found.profile.samples,
    }  # fmt: skip
    profile = np.stack([found.profile.mean, *found.profile.band()]).astype(np.float32)
    # One width for all three, so that the store opens as one tree.
    width = profile.shape[1]
    arrays = {
        f"{place}/profile": NamedArray(("band", "lag"), profile, about | {"band": ["mean", "low", "high"]}),
        f"{place}/table": NamedArray(("loss_step", "lag"), _widened(found.table(), width), about),
    }
    if found.shown:
        shown = np.stack([_widened(item, width) for item in found.shown])
        arrays[f"{place}/shown"] = NamedArray((SHOWN, "loss_step", "lag"), shown, about)
    return arrays


def _widened(values: np.ndarray, width: int) -> np.ndarray:
    """float32 (loss step, lag) with NaN at the lags up to `width` that are missing."""
    missing = width - values.shape[1]
    return np.pad(values.astype(np.float32), ((0, 0), (0, missing)), constant_values=np.nan)


def _jacobians(
    network: SequenceNetwork, name: str, probe: Probe, options: GradientThroughTimeOptions, findings: Findings
) -> Iterator[Row]:
    if not options.jacobian_samples:
        return
    try:
        for found in measured_jacobians(network, probe, options, options.jacobian_samples, options.exact_units):
            findings.arrays |= jacobian_arrays(name, found)
            yield from jacobian_rows(name, found)
    except DoesNotApply as reason:
        yield Row("state_jacobian_norm", probe=name, status="does_not_apply", reason=str(reason))


def _unknown(probe: str, reason: str) -> list[Row]:
    return [Row(metric, probe=probe, status="does_not_apply", reason=reason) for metric in _METRICS]


_INVARIANT = "permutation of units and samples"

ANALYSIS = register(
    Analysis(
        name="gradient_through_time", version=1, scope="checkpoint", title="Gradients through time",
        question="How far back does the loss reach?",
        options=GradientThroughTimeOptions, compute=compute, draw=draw, needs=frozenset({"network", "gradients"}),
        metrics=(
            Metric("gradient_norm_by_lag", "loss per unit of state", "[0, ∞)", "Norm over units of the gradient of a sample's loss at a loss step by the state (`state=hidden` or `cell`) `lag` steps before it, over all ways on which that state reaches the loss; mean over the chosen loss steps, then over samples. Where the loss is one of the whole sequence the lag counts back from its last step.", "Bengio et al. 1994; Pascanu et al. 2013, eq. 3–5", _INVARIANT),
            Metric("effective_memory_length", "steps", "[0, ∞)", "In how many steps, the loss step counted as the first, `share` of the mean gradient norm within the window lies; linear within a step. A flat gradient over n steps gives share · n: near that the window, not the network, is the limit.", "", f"{_INVARIANT}; scale of the loss and of the state"),
            Metric("gradient_decay_rate", "per step", "(-∞, ∞)", "Slope of -log of the mean gradient norm over the lag, by least squares over the window; positive where gradients vanish on their way back, negative where they explode. Its inverse is a time constant. Values below 1e-12 of the largest are left out.", "Pascanu et al. 2013, section 2", f"{_INVARIANT}; scale of the loss and of the state"),
            Metric("state_jacobian_norm", "1", "[0, ∞)", "Largest singular value of the derivative of the last state by the state `lag` steps before (c of an LSTM, else h), inputs held; median over samples. `path=full` is the whole derivative, `path=direct` the product of the forget gates (LSTM) or update gates (GRU) alone, which is one path of many.", "Hochreiter and Schmidhuber 1997, appendix A.2; Pascanu et al. 2013, eq. 5", "permutation of units and samples"),
        ),
    )
)  # fmt: skip
