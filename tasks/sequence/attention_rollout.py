"""How much of each input token the attention of all layers together hands on: rollout at every depth, and flow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.sequence.attention_passes import CapturedOptions, attention_passes, calls_of_one
from stratascope.tasks.sequence.attention_rollout_drawing import draw
from stratascope.tasks.sequence.sequence_samples import SHOWN, SequenceSamples, sequence_samples

if TYPE_CHECKING:
    from torch import Tensor

    from stratascope.storage.probes import Probe
    from stratascope.tasks.sequence.attention_calls import AttentionCall
    from stratascope.tasks.sequence.attention_scores import MaskedAttention
    from stratascope.tasks.sequence.sequence_network import SequenceNetwork


class AttentionRolloutOptions(CapturedOptions):
    """Which samples are followed, how heads and the residual connection are taken together, and whether flow is computed."""

    max_samples: int = Field(default=64, ge=1)
    """So many are measured at most, the classes in proportion; which, depends on their ids and on `seed` alone."""
    residual: float = Field(default=0.5, ge=0, lt=1)
    """The share of each token that the residual connection hands on past a layer's attention."""
    heads: Literal["mean", "max", "min"] = "mean"
    """How the heads of a layer are taken together."""
    megabytes: float = Field(default=16.0, ge=0)
    """The rollouts of shown samples may take so much at each checkpoint; of more, fewer samples are kept."""
    flow_depth: int = Field(default=0, ge=0, le=4)
    """The maximum flow through the first so many layers, of the shown samples; 0 for none. Deeper ones say nothing: the flow
    saturates."""
    flow_tokens: int = Field(default=32, ge=2, le=128)
    """Samples with more real tokens get no flow: it takes the square of their number of solves."""


@dataclass
class _Followed:
    """What is gathered of the samples of a probe."""

    layers: list[str] = field(default_factory=list)
    spreads: list[np.ndarray] = field(default_factory=list)
    """Of each batch, float64 (sample, depth)."""
    rollouts: list[np.ndarray] = field(default_factory=list)
    """Of each shown sample, float32 (depth, query, key)."""
    flows: list[np.ndarray] = field(default_factory=list)
    """Of each shown sample, float32 (query, key), NaN for one that is too long."""
    flow_spreads: list[float] = field(default_factory=list)
    residual: float = 0.0


def compute(context: CheckpointContext, options: AttentionRolloutOptions) -> Findings:
    """Rows by depth; arrays `<probe>/rollout` float32 (shown_sample, depth, query, key) and, where it is asked for,
    `<probe>/flow` float32 (shown_sample, query, key).
    """
    from stratascope.tasks.sequence.sequence_network import SequenceNetwork

    findings = Findings()
    network: Any = SequenceNetwork.of(context)
    with network.untouched():
        for name, probe in context.probes.items():
            try:
                samples = sequence_samples(probe, options)
                followed = _follow(network, samples, options)
            except DoesNotApply as reason:
                findings.rows += [
                    Row(metric.name, probe=name, status="does_not_apply", reason=str(reason))
                    for metric in ANALYSIS.metrics
                ]
                continue
            findings.rows += list(_rows(name, followed, options))
            _file(samples, followed, options, findings)
    return findings


def _follow(network: SequenceNetwork, samples: SequenceSamples, options: AttentionRolloutOptions) -> _Followed:
    found = _Followed()
    for rows, calls in attention_passes(network, samples, options):
        stack = self_attention_stack(calls)
        found.layers = [call.layer for call, _ in stack]
        found.residual = max(
            found.residual, *(call.residual for call, _ in stack if np.isfinite(call.residual)), 0.0
        )
        mixed, real = mixed_layers([attention for _, attention in stack], options.residual, options.heads)
        shown = min(samples.shown, int(options.megabytes // _size(mixed[0].shape[-1], len(mixed))))
        _take(mixed, real, max(0, shown - rows.start), options, found)
    return found


def _size(tokens: int, depth: int) -> float:
    """Megabytes of one sample's rollouts."""
    return 4 * depth * tokens**2 / 1e6


def foretold(network: Any, probe: Probe, options: AttentionRolloutOptions) -> str:
    """How much the rollouts of the shown samples take at each checkpoint. Raises DoesNotApply where there is none."""
    from stratascope.tasks.sequence.sequence_network import SequenceNetwork

    samples = sequence_samples(probe, options)
    own = SequenceNetwork(
        network.network, network.model, network.folder, network.fixed_batch_size, network.hookable
    )
    with own.untouched():
        calls = calls_of_one(own, samples, options)
    size = _size(calls[0].weights.shape[-1], len(calls))
    kept = min(samples.shown, int(options.megabytes // size))
    return (
        f"rollouts of {kept} of {samples.shown} shown samples at {len(calls)} depths, {kept * size:.3g} MB at each checkpoint "
        f"before compression (at most {options.megabytes:g}, `megabytes`)"
    )


def self_attention_stack(
    calls: list[tuple[AttentionCall, MaskedAttention]],
) -> list[tuple[AttentionCall, MaskedAttention]]:
    """The calls whose attention can be multiplied up. Raises DoesNotApply where a layer's tokens are not those of the one before."""
    for call, _ in calls:
        if call.kind != "self":
            raise DoesNotApply(f"{call.layer!r} attends to other tokens than its own ({call.kind}): what comes in there is no token of the rollout.")  # fmt: skip
        if call.added_keys:
            raise DoesNotApply(f"{call.layer!r} has {call.added_keys} keys that are no tokens.")
    counts = {call.layer: call.weights.shape[-1] for call, _ in calls}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{layer} {count}" for layer, count in counts.items())
        raise DoesNotApply(f"the layers attend over different numbers of tokens: {told}.")
    return calls


def mixed_layers(
    attentions: list[MaskedAttention], share: float, heads: Literal["mean", "max", "min"]
) -> tuple[list[Tensor], Tensor]:
    """The layers as `rollout` takes them, and the real tokens bool (sample, token)."""
    from stratascope.tasks.sequence.rollout import with_residual

    real = attentions[0].allowed.any(-1) & attentions[0].allowed.any(-2)
    return [with_residual(attention.weights, real, share, heads) for attention in attentions], real


def _take(
    mixed: list[Tensor], real: Tensor, shown: int, options: AttentionRolloutOptions, found: _Followed
) -> None:
    """Add the samples of one batch, of which the first so many are `shown`."""
    import torch

    from stratascope.tasks.sequence.attention_flow import attention_flow, row_spread
    from stratascope.tasks.sequence.rollout import rollout

    matrices = torch.stack(rollout(mixed), 1).cpu().numpy()
    layers = torch.stack(mixed, 1).cpu().numpy()
    places = [np.flatnonzero(line) for line in real.cpu().numpy()]
    inner = [np.ix_(place, place) for place in places]
    found.spreads.append(np.array([[row_spread(matrix[own]) for matrix in sample] for sample, own in zip(matrices, inner, strict=True)]))  # fmt: skip
    found.rollouts += list(matrices[:shown].astype(np.float32))
    depth = min(options.flow_depth, len(mixed))
    if not depth:
        return
    for sample, place, own in zip(layers[:shown], places, inner, strict=False):
        flow = np.full(sample.shape[1:], np.nan, np.float32)
        if len(place) <= options.flow_tokens:
            flow[own] = attention_flow([layer[own] for layer in sample[:depth]])
            found.flow_spreads.append(row_spread(flow[own]))
        found.flows.append(flow)


def _rows(probe: str, found: _Followed, options: AttentionRolloutOptions) -> Iterator[Row]:
    spreads = np.concatenate(found.spreads)
    for number, layer in enumerate(found.layers):
        values = spreads[:, number]
        about: dict[str, Any] = {"probe": probe, "layer": layer, "part": f"depth={number + 1}"}
        sound = values[np.isfinite(values)]
        if not len(sound):
            reason = "the weights are not finite, or no sample has two real tokens"
            yield Row("rollout_row_spread", status="does_not_apply", reason=reason, **about)
            continue
        yield _spread_row("rollout_row_spread", sound, about | {"convention": f"residual {options.residual:g}; {options.heads} of the heads"})  # fmt: skip
    depth = min(options.flow_depth, len(found.layers))
    if not depth:
        return
    about = {"probe": probe, "part": f"depth={depth}"}
    if found.flow_spreads:
        yield _spread_row("flow_row_spread", np.array(found.flow_spreads), about)
        return
    reason = f"no shown sample has at most {options.flow_tokens} real tokens"
    yield Row("flow_row_spread", status="does_not_apply", reason=reason, **about)


def _spread_row(metric: str, values: np.ndarray, about: dict[str, Any]) -> Row:
    low, high = float(values.min()), float(values.max())
    estimator = "mean over samples; low and high are the smallest and the largest"
    return Row(metric, float(values.mean()), low=low, high=high, n=len(values), estimator=estimator, **about)


def _file(
    samples: SequenceSamples, found: _Followed, options: AttentionRolloutOptions, findings: Findings
) -> None:
    from stratascope.tasks.sequence.attention_axes import patch_grid, token_inputs

    if not found.rollouts:
        return
    place = encode_path_part(samples.probe.name)
    tokens = found.rollouts[0].shape[-1]
    grid = patch_grid(samples, tokens)
    about: dict[str, Any] = {"layers": found.layers, "residual": found.residual, "tokens": tokens, "input": ""}
    if grid is not None:
        about["grid"] = [grid.leading, grid.rows, grid.columns, grid.patch]
    else:
        fitting = [name for name, count in token_inputs(samples).items() if count == tokens]
        about["input"] = fitting[0] if fitting else ""
    findings.arrays |= replace(samples, shown=len(found.rollouts)).shown_arrays()
    dims = (SHOWN, "depth", "query", "key")
    findings.arrays[f"{place}/rollout"] = NamedArray(dims, np.stack(found.rollouts), about)
    if found.flows:
        about = about | {"depth": min(options.flow_depth, len(found.layers))}
        findings.arrays[f"{place}/flow"] = NamedArray((SHOWN, "query", "key"), np.stack(found.flows), about)


_ORDER = "order of the samples; batch size up to rounding"
ANALYSIS = register(
    Analysis(
        name="attention_rollout", version=1, scope="checkpoint", title="Attention rollout",
        question="How much of each input token does the attention of all layers together hand on?",
        options=AttentionRolloutOptions, compute=compute, draw=draw, foretell=foretold, needs=frozenset({"network"}),
        metrics=(
            Metric("rollout_row_spread", "1", "[0, 0.5]", "How much the rollout up to a layer tells queries apart: the standard deviation of its rows over the real queries, mean over keys, then over samples. Near 0 every query gets the same mixture of tokens.", "rollout: Abnar and Zuidema 2020, section 4; the spread is ours", _ORDER),
            Metric("flow_row_spread", "1", "[0, 0.5]", "The same of the maximum flow through the first `depth` layers, over the shown samples. At 0 the flow has saturated and says nothing about single queries.", "flow: Abnar and Zuidema 2020, section 4; the spread is ours", _ORDER),
        ),
    )
)  # fmt: skip
