"""What each head of attention looks at: weights of shown samples, and statistics over many."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, field_validator

from stratascope.errors import ConfigurationError, DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Analysis, Findings, Metric, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.sequence.attention_drawing import draw
from stratascope.tasks.sequence.sequence_samples import SequenceOptions, SequenceSamples, sequence_blocks

if TYPE_CHECKING:
    from torch import Tensor

    from stratascope.storage.probes import Probe
    from stratascope.tasks.sequence.attention_calls import AttentionCall, AttentionSpec
    from stratascope.tasks.sequence.attention_statistics import LayerStatistics
    from stratascope.tasks.sequence.sequence_network import SequenceNetwork

_HELD_BYTES = 192 << 20
"""Weights of one batch, all layers together, that may be held at once."""
_MEGABYTE = 1e6


class AttentionOptions(SequenceOptions):
    """Where weights are looked for, which heads' looks have names, and how much is kept."""

    modules: dict[str, str] = {}
    """Modules that return their weights, and where in their output: `{"decoder.attention": "[1]"}`; globs count. Torch's
    own attention, `scaled_dot_product_attention`, and modules called attention that return weights need no mention."""
    softmax: tuple[str, ...] = ()
    """Modules whose last softmax is their attention, where they do not return it; globs count."""
    patterns: dict[str, dict[str, Any]] = {}
    """Your own patterns by name, each with one of `offsets`, `match`, `tokens`, `matrix`: `{after_comma: {tokens: [11]}}`."""
    window: int = Field(default=3, ge=0)
    """Weight on keys at most so many tokens (or patches) away is local."""
    lags: int = Field(default=32, ge=1)
    """The lag profile goes so far."""
    sink_keys: int = Field(default=8, ge=1)
    """Of so many first keys the weight that they get is kept."""
    megabytes: float = Field(default=64.0, ge=0)
    """The weights of shown samples may take so much at each checkpoint; of more, fewer samples are kept."""

    @field_validator("patterns")
    @classmethod
    def _are_patterns(cls, given: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name, pattern in given.items():
            from stratascope.tasks.sequence.attention_patterns import AttentionPattern

            try:
                AttentionPattern(**pattern)
            except ConfigurationError as error:
                raise ValueError(str(error)) from None
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
                raise ValueError(f"pattern {name!r}: a name has small letters, digits and '_' only.")
        return given


def compute(context: CheckpointContext, options: AttentionOptions) -> Findings:
    """Arrays below `<probe>/<layer>/`: `weights` float16 (shown_sample, head, query, key), `scores` float32 (score, head),
    `lag_profile` (head, lag), `sink` (head, leading_key), `mean_weights` (head, query, key); rows by layer and head.
    """
    import torch

    from stratascope.tasks.sequence.sequence_network import SequenceNetwork

    findings = Findings()
    network = SequenceNetwork.of(context)
    with network.untouched(), torch.no_grad():
        for name, probe in context.probes.items():
            try:
                layers, gap, samples = gathered(network, sequence_blocks(probe, options), options)
            except DoesNotApply as reason:
                findings.rows += [
                    Row(metric.name, probe=name, status="does_not_apply", reason=str(reason))
                    for metric in ANALYSIS.metrics
                ]
                continue
            kept = _kept(layers)
            if kept:
                # Their dimension must be as long as that of the weights beside them, which may not fit for all.
                findings.arrays |= replace(samples, shown=kept).shown_arrays()
            for layer, statistics in layers.items():
                place = f"{encode_path_part(name)}/{encode_path_part(layer)}"
                findings.arrays |= {f"{place}/{key}": array for key, array in statistics.arrays()}
                findings.rows += list(statistics.rows(name))
            findings.rows += [_gap_row(name, gap), _size_row(name, layers, samples)]
    return findings


def gathered(
    network: SequenceNetwork, blocks: Iterator[SequenceSamples], options: AttentionOptions
) -> tuple[dict[str, LayerStatistics], float, SequenceSamples]:
    """The statistics of every layer that attends, over all samples of `blocks`, how far watching changes the network's
    output, and the first block. Raises DoesNotApply where the network has no attention.
    """
    from stratascope.tasks.sequence.attention_axes import of_samples, patch_grid, spec_with_axes
    from stratascope.tasks.sequence.attention_calls import captured_attention
    from stratascope.tasks.sequence.attention_statistics import LayerStatistics

    first = samples = next(blocks)
    spec = spec_with_axes(network, samples, _spec(options))
    asked = _asked(options)
    values, gap = _looked_over(network, samples, spec)
    size = max(1, min(options.batch_size, _HELD_BYTES // (4 * values)))
    shown = min(samples.shown, int(options.megabytes * _MEGABYTE // (2 * values)))
    layers: dict[str, LayerStatistics] = {}
    with captured_attention(network, spec) as recorder:
        for samples in chain([first], blocks):
            for rows in network.batches_of(samples.given, size):
                network.run(samples.given.part(rows))
                for call in recorder.take():
                    call = of_samples(call, rows.stop - rows.start, network.fixed_batch_size)
                    if call.layer not in layers:
                        grid = patch_grid(samples, call.weights.shape[3]) if call.kind == "self" else None
                        if grid is not None:
                            call.query_input = call.key_input = None
                        place = len(layers)
                        layers[call.layer] = LayerStatistics(_without_weights(call), asked, grid, shown, place)
                    _add(layers[call.layer], call, samples, rows)
    return layers, gap, first


def _add(layer: LayerStatistics, call: AttentionCall, samples: SequenceSamples, rows: slice) -> None:
    """Take the weights of `rows` of `samples` into the statistics of their layer."""
    from stratascope.tasks.sequence.attention_axes import real_tokens

    queries = real_tokens(samples, layer.call.query_input, rows, call.weights.shape[2])
    keys = real_tokens(samples, layer.call.key_input, rows, call.weights.shape[3] - call.added_keys)
    layer.add(call, queries, keys, _codes(samples, layer.call, rows))


def _spec(options: AttentionOptions) -> AttentionSpec:
    from stratascope.tasks.sequence.attention_calls import AttentionSpec

    return AttentionSpec(options.modules, options.softmax)


def _asked(options: AttentionOptions) -> Any:
    from stratascope.tasks.sequence.attention_patterns import AttentionPattern
    from stratascope.tasks.sequence.attention_statistics import Asked

    patterns = {name: AttentionPattern(**given) for name, given in options.patterns.items()}
    return Asked(options.window, options.lags, options.sink_keys, patterns)


def foretold(network: Any, probe: Probe, options: AttentionOptions) -> str:
    """How much the weights of the shown samples take at each checkpoint. Raises DoesNotApply where nothing attends."""
    import torch

    from stratascope.tasks.sequence.sequence_network import SequenceNetwork

    samples = next(sequence_blocks(probe, options, 1))
    own = SequenceNetwork(
        network.network, network.model, network.folder, network.fixed_batch_size, network.hookable
    )
    with own.untouched(), torch.no_grad():
        values, _ = _looked_over(own, samples, _spec(options))
    size = 2 * values / _MEGABYTE
    kept = min(samples.shown, int(options.megabytes // size))
    return (
        f"weights of {kept} of {samples.shown} shown samples, {kept * size:.3g} MB at each checkpoint before compression "
        f"(at most {options.megabytes:g}, `megabytes`)"
    )


def _looked_over(network: SequenceNetwork, samples: SequenceSamples, spec: AttentionSpec) -> tuple[int, float]:
    """How many weights a sample has, all layers together, and how far watching changes the network's output for one.

    Raises DoesNotApply where nothing attends.
    """
    from stratascope.tasks.sequence.attention_calls import captured_attention
    from stratascope.tasks.sequence.attention_outputs import relative_gap

    one = samples.given.part(slice(0, 1))
    plain = network.run(one)
    with captured_attention(network, spec) as recorder:
        watched = network.run(one)
    calls = recorder.take()
    if not calls:
        raise DoesNotApply(
            "the network has no attention that could be found; name what returns its weights with `modules`, or what "
            "computes them inside with `softmax`."
        )
    missing = _unseen(network.network, calls)
    if missing:
        raise DoesNotApply(missing)
    if one.mask is not None and one.mask.shape == plain.shape[:2]:
        # Torch's fast path leaves zeros where padding is.
        plain, watched = plain[one.mask], watched[one.mask]
    return sum(call.weights[0].numel() for call in calls), relative_gap(watched, plain)


def _unseen(network: Any, calls: list[AttentionCall]) -> str:
    """Why the attention of a model of Hugging Face is not all there; empty where it is, and for any other network."""
    for module in network.modules():
        wanted = getattr(getattr(module, "config", None), "num_hidden_layers", None)
        if hasattr(module, "set_attn_implementation") and isinstance(wanted, int):
            if len(calls) >= wanted:
                return ""
            used = getattr(module.config, "_attn_implementation", "unknown")
            return (
                f"{type(module).__name__} has {wanted} layers, the attention of {len(calls)} was seen: load it with "
                f'`attn_implementation="eager"` (it has {used!r}).'
            )
    return ""


def _without_weights(call: AttentionCall) -> AttentionCall:
    from dataclasses import replace

    return replace(call, weights=call.weights[:0], allowed=None)


def _codes(samples: SequenceSamples, call: AttentionCall, rows: slice) -> Tensor | None:
    """int (sample, token): the codes of the one input that both axes are of; None where it has none."""
    import torch

    from stratascope.storage.datasets.dataset import leaves_of

    if call.query_input is None or call.query_input != call.key_input:
        return None
    values = np.asarray(leaves_of(samples.given.inputs)[call.query_input][rows])
    if values.ndim != 2 or values.dtype.kind not in "iu":
        return None
    return torch.from_numpy(values.astype(np.int64))


def _gap_row(probe: str, gap: float) -> Row:
    from stratascope.tasks.sequence.attention_statistics import WRONG

    estimator = "largest difference of the network's output, watched and not, by the largest output; one sample"
    if not np.isfinite(gap):
        return Row(
            "attention_residual", probe=probe, status="failed", reason="the network's outputs are no numbers"
        )
    if gap <= WRONG:
        return Row("attention_residual", gap, probe=probe, n=1, estimator=estimator)
    reason = (
        f"watching changes the network's output by {gap:.2g} of it: torch's fast path does something else here"
    )
    return Row("attention_residual", gap, probe=probe, n=1, status="vacuous", reason=reason, estimator=estimator)


def _size_row(probe: str, layers: Mapping[str, LayerStatistics], samples: SequenceSamples) -> Row:
    size = sum(item.nbytes for layer in layers.values() for item in layer.weights)
    kept = _kept(layers)
    said = f"the weights of {kept} of {samples.shown} shown samples, float16"
    return Row("attention_stored_size", size / _MEGABYTE, probe=probe, n=kept, convention=said)


def _kept(layers: Mapping[str, LayerStatistics]) -> int:
    """Of how many samples the weights are stored."""
    return max((sum(map(len, layer.weights)) for layer in layers.values()), default=0)


def _metrics() -> Iterator[Metric]:
    order = "order of the samples; batch size up to rounding"
    yield Metric("attention_entropy", "nat", "[0, ln keys]", "−Σ_j a_ij ln a_ij of a query's weights a_ij, mean over the real queries, then over samples. 0 where each query looks at one key. `first_token=without`: without the first token as key and query, rows divided by what is left.", "Shannon 1948", order)  # fmt: skip
    yield Metric("attention_entropy_share", "1", "[0, 1]", "The entropy of each query as a share of ln K, K being the keys that it may look at; over queries with two or more.", "own; makes causal rows of different length comparable", order)  # fmt: skip
    yield Metric("attention_distance", "token", "[0, tokens)", "Σ_j a_ij · (distance of i and j) in tokens; for patches of a picture the Euclidean distance of their centres, in patches, without class token.", "Dosovitskiy et al. 2021, appendix D.7", order)  # fmt: skip
    yield Metric("sink_mass", "1", "[0, 1]", "Weight on the first real key, mean over the queries.", "Xiao et al. 2023", order)  # fmt: skip
    yield Metric("locality", "1", "[0, 1]", "Weight on keys at most `window` tokens away (for pictures: patches).", "own", order)  # fmt: skip
    yield Metric("previous_token_score", "1", "[0, 1]", "Share of the weight on the token before, over queries that have one.", "TransformerLens, head detector, measure `mul`; Elhage et al. 2021", order)  # fmt: skip
    yield Metric("duplicate_token_score", "1", "[0, 1]", "Share of the weight on earlier tokens of the same code, over queries that have one. `chance` in the convention: a head that looks at all its keys alike.", "TransformerLens, head detector, measure `mul`", order)  # fmt: skip
    yield Metric("induction_score", "1", "[0, 1]", "Share of the weight on tokens that followed an earlier occurrence of the query's own code, over queries that have one.", "Olsson et al. 2022", order)  # fmt: skip
    yield Metric("pattern_score", "1", "[0, 1]", "Share of the weight on the keys of one of your own `patterns`, over queries that have one.", "TransformerLens, head detector, measure `mul`", order)  # fmt: skip
    yield Metric("attention_residual", "1", "[0, ∞)", "Largest difference between a layer's real output and the one made of the captured weights, by the largest output; over the first batch. About 1e-7 in single precision; `vacuous` above 1e-4.", "own", order)  # fmt: skip
    yield Metric("attention_stored_size", "MB", "[0, ∞)", "What the weights of the shown samples take at this checkpoint before compression: 2 · Σ over layers of shown samples × heads × queries × keys bytes.", "own", order)  # fmt: skip


ANALYSIS = register(
    Analysis(
        name="attention", version=1, scope="checkpoint", title="Attention", question="What does each head look at?",
        options=AttentionOptions, compute=compute, draw=draw, foretell=foretold, needs=frozenset({"network"}), metrics=tuple(_metrics()),
    )
)  # fmt: skip
