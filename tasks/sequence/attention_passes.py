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


_HELD_BYTES = 64 << 20
"""Weights of one batch, all layers together, that may be held at once; what is made of them takes several times that."""


class CapturedOptions(SequenceOptions):
    """Where weights are looked for, as for `attention`."""

    modules: dict[str, str] = {}
    """Modules that return their weights, and where in their output: `{"decoder.attention": "[1]"}`; globs count."""
    softmax: tuple[str, ...] = ()
    """Modules whose last softmax is their attention, where they do not return it; globs count."""


def attention_passes(
    network: SequenceNetwork, samples: SequenceSamples, options: CapturedOptions
) -> Iterator[tuple[slice, list[tuple[AttentionCall, MaskedAttention]]]]:
    """The rows of each batch, and every call of attention in it, in the order of execution; batches are so small that their
    weights, and what is made of them, fit into memory.

    Raises DoesNotApply where nothing attends, or where weights are not those of single samples.
    """
    import torch

    from stratascope.tasks.sequence.attention_axes import of_samples, real_tokens, spec_with_axes
    from stratascope.tasks.sequence.attention_calls import AttentionSpec, captured_attention
    from stratascope.tasks.sequence.attention_scores import masked_attention

    values = sum(call.weights[0].numel() for call in calls_of_one(network, samples, options))
    size = max(1, min(options.batch_size, _HELD_BYTES // (4 * values)))
    spec = spec_with_axes(network, samples, AttentionSpec(options.modules, options.softmax))
    with captured_attention(network, spec) as recorder:
        for rows in network.batches_of(samples.given, size):
            with torch.no_grad():
                network.run(samples.given.part(rows))
            found = []
            for call in recorder.take():
                call = of_samples(call, rows.stop - rows.start, network.fixed_batch_size)
                queries = real_tokens(samples, call.query_input, rows, call.weights.shape[2])
                keys = real_tokens(samples, call.key_input, rows, call.weights.shape[3] - call.added_keys)
                if keys is not None and call.added_keys:
                    keys = torch.nn.functional.pad(keys, (0, call.added_keys), value=True)
                found.append((call, masked_attention(call.weights, queries, keys, call.allowed)))
            yield rows, found


def calls_of_one(
    network: SequenceNetwork, samples: SequenceSamples, options: CapturedOptions
) -> list[AttentionCall]:
    """The attention in a pass of the first sample. Raises DoesNotApply where there is none."""
    import torch

    from stratascope.tasks.sequence.attention_calls import AttentionSpec, captured_attention

    spec = AttentionSpec(options.modules, options.softmax)
    with torch.no_grad(), captured_attention(network, spec) as recorder:
        network.run(samples.given.part(slice(0, 1)))
    calls = recorder.take()
    if not calls:
        raise DoesNotApply("the network has no attention that could be found; name what returns its weights with `modules`, or what computes them inside with `softmax`.")  # fmt: skip
    return calls
