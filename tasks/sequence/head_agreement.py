"""How alike the heads of a network attend: within each layer over the steps, and all with all at the last one."""

from __future__ import annotations

from typing import Any

import numpy as np

from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Findings, NamedArray
from stratascope.tasks.sequence.followed_heads import FollowedLayer, shown_attention

_MOST_HEADS = 256
"""The matrix of all heads with all is the square of their number."""


def file_agreement(followed: list[FollowedLayer], findings: Findings) -> None:
    """Rows of `head_agreement` by layer and step; array `<probe>/head_distance` (any_head, other_head) of the newest step, over the
    layers whose queries and keys are those of the first one."""
    from stratascope.tasks.sequence.attention_agreement import head_distances

    for layer in followed:
        for context in layer.contexts:
            about: dict[str, Any] = {"probe": layer.probe.name, "layer": layer.layer, "step": context.step}
            attention = shown_attention(context, layer)
            if layer.scores.shape[2] < 2:
                reason = "the layer has one head"
            elif attention is None:
                reason = "no weights of shown samples are stored"
            else:
                findings.rows.append(_row(head_distances(attention).numpy(), about))
                continue
            findings.rows.append(Row("head_agreement", status="does_not_apply", reason=reason, **about))
    _file_distances(followed, findings)


def _row(distances: np.ndarray, about: dict[str, Any]) -> Row:
    """From `distances` (sample, head, head)."""
    known = np.isfinite(distances).all((1, 2))
    if not known.any():
        reason = "the weights are not finite, or no query of a shown sample has any"
        return Row("head_agreement", status="does_not_apply", reason=reason, **about)
    mean = distances[known].mean(0)
    pairs = 1 - mean[np.triu_indices(len(mean), 1)]
    estimator = (
        f"mean over {len(pairs)} pairs of heads; low and high are the most different and the most similar pair"
    )
    return Row("head_agreement", float(pairs.mean()), n=int(known.sum()), low=float(pairs.min()), high=float(pairs.max()), estimator=estimator, **about)  # fmt: skip


def _file_distances(followed: list[FollowedLayer], findings: Findings) -> None:
    import torch

    from stratascope.tasks.sequence.attention_agreement import head_distances
    from stratascope.tasks.sequence.attention_scores import MaskedAttention

    kept: list[MaskedAttention] = []
    names: list[str] = []
    numbers: list[int] = []
    for layer in followed:
        attention = shown_attention(layer.contexts[-1], layer)
        if attention is None or (kept and attention.weights.shape[2:] != kept[0].weights.shape[2:]):
            continue
        if len(names) + attention.weights.shape[1] > _MOST_HEADS or (kept and len(attention.weights) != len(kept[0].weights)):  # fmt: skip
            continue
        kept.append(attention)
        heads = attention.weights.shape[1]
        names += [layer.layer] * heads
        numbers += list(range(heads))
    if len(names) < 2:
        return
    both = torch.stack([attention.allowed for attention in kept]).all(0)
    joined = MaskedAttention(torch.cat([attention.weights for attention in kept], 1), both)
    distances = head_distances(joined).numpy()
    known = np.isfinite(distances).all((1, 2))
    if known.any():
        about = {
            "layers": names,
            "heads": numbers,
            "step": followed[0].contexts[-1].step,
            "samples": int(known.sum()),
        }
        place = f"{encode_path_part(followed[0].probe.name)}/head_distance"
        findings.arrays[place] = NamedArray(
            ("any_head", "other_head"), distances[known].mean(0).astype(np.float32), about
        )
