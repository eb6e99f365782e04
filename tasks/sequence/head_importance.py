"""What the answers owe to each attention head: by gradient, by taking it away, and by taking away more and more of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.given_samples import GivenSamples, with_targets
from stratascope.tasks.representation.losses import mean_interval
from stratascope.tasks.sequence.head_importance_drawing import LEAST_HEADS, draw
from stratascope.tasks.sequence.head_pruning import (
    RANDOM_ORDERS,
    bearable_share,
    order_by,
    pruning_points,
    random_orders,
)
from stratascope.tasks.sequence.sequence_samples import SequenceOptions, SequenceSamples, sequence_samples
from stratascope.tasks.vision.sample_gradients import LossKind

if TYPE_CHECKING:
    from stratascope.tasks.sequence.head_passes import GatedNetwork
    from stratascope.tasks.sequence.sequence_network import SequenceNetwork

_METRICS = ("head_importance_gradient", "head_importance_ablation", "head_importance_agreement")


class HeadImportanceOptions(SequenceOptions):
    """Where attention is looked for, and how far it is taken apart."""

    modules: dict[str, str] = Field(default_factory=dict)
    """Weights that modules return: the part of the output, by name or glob: `{"attention": "[1]"}`."""
    softmax: tuple[str, ...] = ()
    """Modules whose last softmax is their attention, by name or glob."""
    ablated: int = Field(default=144, ge=1)
    """So many heads at most are taken away one by one, those of the largest gradient first."""
    pruning: bool = True
    """Whether more and more heads are taken away, in three orders."""
    tolerance: float = Field(default=0.05, gt=0)
    """By so much of itself the accuracy may fall, or the loss rise where targets are numbers, in `prunable_head_share`."""


@dataclass(frozen=True)
class HeadEffects:
    """What is known of the heads of one probe's pass."""

    heads: dict[str, int]
    gradients: dict[str, np.ndarray]
    """float64 (sample, head) by layer."""
    rises: dict[tuple[str, int], np.ndarray]
    """float64 (sample,): the rise of each sample's loss without the head."""
    loss: float
    """With all heads, mean over samples."""

    def mean_gradient(self, rows: Any = slice(None)) -> dict[tuple[str, int], float]:
        """Mean over `rows` of |∂ loss / ∂ ξ| by head: of each sample first, so that opposite signs do not cancel."""
        means = {layer: np.abs(values[rows]).mean(0) for layer, values in self.gradients.items()}
        return {(layer, number): float(means[layer][number]) for layer, number in self.every}

    @property
    def every(self) -> list[tuple[str, int]]:
        return [(layer, number) for layer, count in self.heads.items() for number in range(count)]


def compute(context: CheckpointContext, options: HeadImportanceOptions) -> Findings:
    """Rows by layer and head; arrays `<probe>/<layer>/importance` (measure, head) and `<probe>/pruning/<order>` (<order>_order,
    measure, removed)."""
    from stratascope.tasks.sequence.attention_switches import gateable_attention
    from stratascope.tasks.sequence.sequence_network import SequenceNetwork

    findings = Findings()
    kind = LossKind.of(context.subject)
    network = SequenceNetwork.of(context)
    with network.untouched(), gateable_attention(network.network):
        for name, probe in context.probes.items():
            try:
                _measure(network, kind, probe, options, findings)
            except DoesNotApply as reason:
                findings.rows += [
                    Row(metric, probe=name, status="does_not_apply", reason=str(reason)) for metric in _METRICS
                ]
    return findings


def _measure(
    network: SequenceNetwork, kind: LossKind, probe: Probe, options: HeadImportanceOptions, findings: Findings
) -> None:
    from stratascope.storage.datasets.dataset import leaves_of
    from stratascope.tasks.sequence.attention_calls import AttentionSpec
    from stratascope.tasks.sequence.head_passes import GatedNetwork
    from stratascope.tasks.sequence.sequence_samples import token_count

    samples = sequence_samples(probe, options)
    given = with_targets(samples.given, kind.task)
    leaves = leaves_of(given.inputs)
    tokens = {name: token_count(leaves[name]) for name in samples.inputs}
    spec = AttentionSpec(dict(options.modules), options.softmax, tokens)
    gated = GatedNetwork(network, given, kind, spec, options.batch_size)
    heads = {call.layer: call.weights.shape[1] for call in gated.calls()}
    effects = _effects(gated, heads, options.ablated)
    focus = gated.focus(_real_tokens(samples, given))
    findings.rows += list(_head_rows(probe.name, effects))
    findings.rows += list(_agreement_rows(probe.name, effects, focus, len(given)))
    findings.arrays |= dict(_importance_arrays(probe.name, effects, focus))
    if options.pruning and len(given) >= 4 and len(effects.every) > 1:
        _prune(gated, effects, probe.name, options, findings)


def _effects(gated: GatedNetwork, heads: dict[str, int], most: int) -> HeadEffects:
    whole = gated.scores_without(heads, frozenset())[0]
    found = HeadEffects(heads, gated.gradients(heads), {}, float(whole.mean()))
    means = found.mean_gradient()
    for head in order_by({head: -value for head, value in means.items()})[:most]:
        found.rises[head] = gated.scores_without(heads, frozenset({head}))[0] - whole
    return found


def _real_tokens(samples: SequenceSamples, given: GivenSamples) -> dict[str | None, np.ndarray]:
    """The real tokens of each input, of those samples that have a target."""
    kept = np.isin(samples.given.rows, given.rows)
    return {name: samples.real(name)[kept] for name in samples.inputs}


def _head_rows(probe: str, effects: HeadEffects) -> Iterator[Row]:
    for layer, number in effects.every:
        where: dict[str, Any] = {"layer": layer, "probe": probe, "part": f"head={number}"}
        slopes = np.abs(effects.gradients[layer][:, number])
        yield _mean_row("head_importance_gradient", slopes, where)
        if (layer, number) in effects.rises:
            yield _mean_row("head_importance_ablation", effects.rises[layer, number], where)


def _mean_row(metric: str, values: np.ndarray, where: Mapping[str, Any]) -> Row:
    if not np.isfinite(values).all():
        return Row(metric, status="failed", reason="the loss of a sample is not finite", **where)
    low, high = mean_interval(values, np.arange(len(values)))
    return Row(
        metric, float(values.mean()), low=low, high=high, n=len(values),
        estimator="mean over samples, normal interval", **where,
    )  # fmt: skip


def _agreement_rows(
    probe: str, effects: HeadEffects, focus: Mapping[str, np.ndarray], count: int
) -> Iterator[Row]:
    """Rank correlations over heads of two things with what taking the head away does."""
    from scipy.stats import spearmanr

    gradient = effects.mean_gradient()
    known = [head for head in effects.every if head in effects.rises]
    rises = [float(effects.rises[head].mean()) for head in known]
    beside = {
        "gradient": [gradient[head] for head in known],
        "focus": [float(focus[layer][number]) if layer in focus else np.nan for layer, number in known],
    }
    for name, values in beside.items():
        about: dict[str, Any] = {"probe": probe, "part": f"beside={name}", "n": count, "estimator": f"Spearman over {len(known)} heads"}  # fmt: skip
        sound = np.isfinite(values) & np.isfinite(rises)
        if (
            sound.sum() < LEAST_HEADS
            or np.ptp(np.array(values)[sound]) == 0
            or np.ptp(np.array(rises)[sound]) == 0
        ):
            reason = f"a rank correlation needs {LEAST_HEADS} heads with different values, {sound.sum()} have one"
            yield Row("head_importance_agreement", status="does_not_apply", reason=reason, **about)
            continue
        found = spearmanr(np.array(values)[sound], np.array(rises)[sound])
        yield Row("head_importance_agreement", float(found.statistic), **about)


MEASURES = ("gradient", "gradient_low", "gradient_high", "ablation", "ablation_low", "ablation_high", "focus")


def _importance_arrays(
    probe: str, effects: HeadEffects, focus: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, NamedArray]]:
    for layer, count in effects.heads.items():
        table = np.full((len(MEASURES), count), np.nan)
        for number in range(count):
            slopes = np.abs(effects.gradients[layer][:, number])
            table[:3, number] = slopes.mean(), *mean_interval(slopes, np.arange(len(slopes)))
            rise = effects.rises.get((layer, number))
            if rise is not None:
                table[3:6, number] = rise.mean(), *mean_interval(rise, np.arange(len(rise)))
            if layer in focus:
                table[6, number] = focus[layer][number]
        values = NamedArray(
            ("measure", "head"), table.astype(np.float32), {"measure": list(MEASURES), "loss": effects.loss}
        )
        yield f"{probe}/{encode_path_part(layer)}/importance", values


def _prune(
    gated: GatedNetwork, effects: HeadEffects, probe: str, options: HeadImportanceOptions, findings: Findings
) -> None:
    """One half of the samples puts the heads in order, the other half tells what the order is worth."""
    from stratascope.tasks.sequence.head_passes import GatedNetwork

    first, second = slice(0, None, 2), slice(1, None, 2)
    rest = GatedNetwork(gated.network, gated.samples.part(second), gated.kind, gated.spec, gated.batch_size)
    orders = {"gradient": [order_by(effects.mean_gradient(first))]}
    if len(effects.rises) == len(effects.every):
        orders["ablation"] = [order_by({head: float(rise[first].mean()) for head, rise in effects.rises.items()})]
    orders["random"] = random_orders(effects.every, RANDOM_ORDERS, options.seed)
    removed = pruning_points(len(effects.every))
    known: dict[frozenset[tuple[str, int]], np.ndarray] = {}

    def mean_scores(heads: frozenset[tuple[str, int]]) -> np.ndarray:
        if heads not in known:
            known[heads] = rest.scores_without(effects.heads, heads).mean(1)
        return known[heads]

    for name, draws in orders.items():
        curves = np.array([[mean_scores(frozenset(order[:count])) for count in removed] for order in draws])
        about = {"measure": ["loss", "accuracy"], "removed": removed, "samples": len(rest.samples)}
        about |= {} if name == "random" else {"order": [f"{layer}:{number}" for layer, number in draws[0]]}
        values = NamedArray((f"{name}_order", "measure", "removed_heads"), curves.transpose(0, 2, 1).astype(np.float32), about)  # fmt: skip
        findings.arrays[f"{probe}/pruning/{name}"] = values
        shares = [bearable_share(removed, curve.T, options.tolerance) for curve in curves]
        findings.rows.append(
            Row(
                "prunable_head_share", float(np.mean(shares)), probe=probe, part=f"order={name}", n=len(rest.samples),
                low=min(shares), high=max(shares), convention=f"tolerance={options.tolerance:g}",
                estimator="one order" if len(draws) == 1 else f"mean and range of {len(draws)} orders",
            )
        )  # fmt: skip


ANALYSIS = register(
    Analysis(
        name="head_importance", version=1, scope="checkpoint", title="Importance of attention heads",
        question="Which attention heads do the answers depend on?",
        options=HeadImportanceOptions, compute=compute, draw=draw, needs=frozenset({"network", "gradients"}),
        metrics=(
            Metric("head_importance_gradient", "loss", "[0, ∞)", "Mean over samples of the size of the derivative of a sample's loss by a gate on the head's output, at the open gate; the size is taken of each sample, so that opposite signs do not cancel.", "Michel, Levy and Neubig 2019, eq. 2", "permutation of samples"),
            Metric("head_importance_ablation", "loss", "(-∞, ∞)", "Mean over samples of the rise of the loss when the head's output is set to zero; negative where the network does better without the head.", "Michel, Levy and Neubig 2019, section 3.2", "permutation of samples"),
            Metric("head_importance_agreement", "1", "[-1, 1]", "Spearman's rank correlation over heads with the rise of the loss without the head: of the gradient by its gate (`beside=gradient`), or of how pointed its weights are, 1 less the entropy as a share of that of uniform attention (`beside=focus`).", "Jain and Wallace 2019; Wiegreffe and Pinter 2019", "monotone change of either"),
            Metric("prunable_head_share", "share", "[0, 1]", "The share of all heads that can be set to zero, the least important first by one half of the samples, before the other half's accuracy has fallen (where targets are numbers, its loss has risen) by more than the tolerance, as a share of what it is with all heads.", "Michel, Levy and Neubig 2019, section 4", "permutation of heads"),
        ),
    )
)  # fmt: skip
