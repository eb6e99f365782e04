"""The attention of a network over samples, batch by batch, with what may be counted of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from stratascope.errors import DoesNotApply
from stratascope.tasks.sequence.sequence_samples import SequenceOptions, SequenceSamples

if TYPE_CHECKING:
    from torch import Tensor

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

    from stratascope.tasks.sequence.attention_axes import spec_with_axes
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
                keys = real_tokens(samples, call.key_input, rows, call.weights.shape[3] - call.added_keys)
                if keys is not None and call.added_keys:
                    keys = torch.nn.functional.pad(keys, (0, call.added_keys), value=True)
                found.append((call, masked_attention(call.weights, queries, keys, call.allowed)))
            if not found:
                raise DoesNotApply("the network has no attention that could be found; name what returns its weights with `modules`, or what computes them inside with `softmax`.")  # fmt: skip
            yield rows, found


def of_samples(call: AttentionCall, count: int, fixed: int | None) -> AttentionCall:
    """`call` with the weights of the samples alone. Raises DoesNotApply where its first axis is not that of the samples."""
    found = len(call.weights)
    if found == count:
        return call
    if fixed is not None and found == fixed:
        return replace(
            call, weights=call.weights[:count], allowed=None if call.allowed is None else call.allowed[:count]
        )
    raise DoesNotApply(
        f"{call.layer!r} has weights of {found} rows for {count} samples: its first axis is not that of the samples "
        "(time steps or windows folded into it, or `batch_first` forgotten)."
    )


def real_tokens(samples: SequenceSamples, name: str | None, rows: slice, count: int) -> Tensor | None:
    """bool (sample, token) of input `name`; None where all of them are real, or it has not that many."""
    import torch

    if name is None or name not in samples.probe.masks:
        return None
    real = samples.real(name)[rows]
    return torch.from_numpy(real) if real.shape[1] == count else None
