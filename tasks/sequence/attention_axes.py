"""Which input the queries and the keys of an attention are, and how its tokens lie on a picture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stratascope.errors import DoesNotApply
from stratascope.storage.datasets.dataset import leaves_of, with_exchanged
from stratascope.tasks.sequence.sequence_samples import SequenceSamples, token_count

if TYPE_CHECKING:
    from torch import Tensor

    from stratascope.tasks.given_samples import GivenSamples
    from stratascope.tasks.sequence.attention_calls import AttentionCall, AttentionSpec
    from stratascope.tasks.sequence.sequence_network import SequenceNetwork

_LEADING = 8
"""So many tokens may stand before the patches of a picture: a class token, registers."""
_LOOKED_AT = 8
"""Samples that are given one another's tokens."""
_CHANGED = 1e-6


@dataclass(frozen=True)
class PatchGrid:
    """Patches of a picture as tokens, row by row, behind `leading` others."""

    leading: int
    rows: int
    columns: int
    patch: int
    """Pixels of a side."""


def token_inputs(samples: SequenceSamples) -> dict[str, int]:
    """How many tokens each input has that a network reads; those that only say what is right (an alignment) are left out."""
    probe, leaves = samples.probe, leaves_of(samples.given.inputs)
    spoken = [name for name in samples.inputs if name in probe.names or name in probe.masks]
    return {name: token_count(leaves[name]) for name in spoken or samples.inputs}


def patch_grid(samples: SequenceSamples, tokens: int) -> PatchGrid | None:
    """How `tokens` lie on the pictures of `samples`; None where the inputs are no pictures, or square patches do not fit."""
    for values in leaves_of(samples.given.inputs).values():
        if values.ndim != 4:
            continue
        height, width = values.shape[2:]
        for leading in range(min(_LEADING, tokens - 1)):
            patch = math.isqrt(max(1, height * width // (tokens - leading)))
            if (
                height % patch == 0
                and width % patch == 0
                and (height // patch) * (width // patch) == tokens - leading
            ):
                return PatchGrid(leading, height // patch, width // patch, patch)
    return None


def spec_with_axes(network: SequenceNetwork, samples: SequenceSamples, spec: AttentionSpec) -> AttentionSpec:
    """`spec` with the lengths of the inputs and, where two inputs have one length, what each layer's axes run over.

    An attention that changes with one input alone is over that one. One that changes with several is a decoder's: its
    queries are of the last of them, its keys of the same in self-attention and of the first otherwise.
    """
    lengths = token_inputs(samples)
    spec = replace(spec, inputs=lengths)
    if len(set(lengths.values())) == len(lengths):
        return spec
    few = samples.given.part(slice(0, min(_LOOKED_AT, len(samples), network.fixed_batch_size or _LOOKED_AT)))
    base = _calls(network, few, spec)
    changed: dict[str, list[str]] = {call.layer: [] for call in base}
    for name in lengths:
        for call, other in zip(
            base, _calls(network, replace(few, inputs=with_exchanged(few.inputs, name)), spec), strict=False
        ):
            same = call.layer == other.layer and call.weights.shape == other.weights.shape
            if not same or float((call.weights - other.weights).abs().max()) > _CHANGED:
                changed[call.layer].append(name)
    axes = {call.layer: _axes_of(call, changed[call.layer], lengths) for call in base}
    return replace(spec, axes=axes)


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


def _axes_of(call: AttentionCall, changed: list[str], lengths: Mapping[str, int]) -> tuple[str | None, str | None]:
    queries, keys = call.weights.shape[2], call.weights.shape[3] - call.added_keys
    fit = [[name for name, count in lengths.items() if count == tokens] for tokens in (queries, keys)]
    known = [[name for name in names if name in changed] or names for names in fit]
    last = known[0][-1] if known[0] else None
    if not known[1]:
        return last, None
    return last, last if call.kind == "self" and last in known[1] else known[1][0]


def _calls(network: SequenceNetwork, samples: GivenSamples, spec: AttentionSpec) -> list[AttentionCall]:
    import torch

    from stratascope.tasks.sequence.attention_calls import captured_attention

    with torch.no_grad(), captured_attention(network, spec) as recorder:
        network.run(samples)
    return recorder.take()
