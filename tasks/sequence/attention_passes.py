"""The attention of a network over samples, batch by batch, with what may be counted of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from stratascope.errors import DoesNotApply
from stratascope.tasks.sequence.sequence_samples import SequenceOptions, SequenceSamples

if TYPE_CHECKING:
    from stratascope.tasks.sequence.attention_calls import AttentionCall
    from stratascope.tasks.sequence.attention_scores import MaskedAttention
    from stratascope.tasks.sequence.sequence_network import SequenceNetwork


class CapturedOptions(SequenceOptions):
    """Where weights are looked for, as for `attention`."""

    modules: dict[str, str] = {}
    """Modules that return their weights, and where in their output: `{"decoder.attention": "[1]"}`; globs count."""
    softmax: tuple[str, ...] = ()
    """Modules whose last softmax is their attention, where they do not return it; globs count."""


def attention_passes(
    network: SequenceNetwork, samples: SequenceSamples, options: CapturedOptions
) -> Iterator[tuple[slice, list[tuple[AttentionCall, MaskedAttention]]]]:
    """The rows of each batch, and every call of attention in it, in the order of execution.

    Raises DoesNotApply where nothing attends, or where weights are not those of single samples.
    """
    import torch

    from stratascope.tasks.sequence.attention_axes import of_samples, real_tokens, spec_with_axes
    from stratascope.tasks.sequence.attention_calls import AttentionSpec, captured_attention
    from stratascope.tasks.sequence.attention_scores import masked_attention

    spec = spec_with_axes(network, samples, AttentionSpec(options.modules, options.softmax))
    with captured_attention(network, spec) as recorder:
        for rows in network.batches_of(samples.given, options.batch_size):
            with torch.no_grad():
                network.run(samples.given.part(rows))
            found = []
            for call in recorder.take():
                call = of_samples(call, rows.stop - rows.start, network.fixed_batch_size)
                queries = real_tokens(samples, call.query_input, rows, call.weights.shape[2])
                keys = real_tokens(samples, call.key_input, rows, call.weights.shape[3])
                found.append((call, masked_attention(call.weights, queries, keys, call.allowed)))
            if not found:
                raise DoesNotApply("the network has no attention that could be found; name what returns its weights with `modules`, or what computes them inside with `softmax`.")  # fmt: skip
            yield rows, found
