"""What `attention` filed of each layer, step by step, as a series analysis reads it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stratascope.storage.names import encode_path_part
from stratascope.storage.probes import Probe
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.vision.chosen_samples import rows_of_ids

if TYPE_CHECKING:
    from stratascope.tasks.sequence.attention_scores import MaskedAttention

READ = "attention"


@dataclass
class FollowedLayer:
    """What `attention` filed of one layer, at each step."""

    probe: Probe
    layer: str
    contexts: list[CheckpointContext]
    names: list[str]
    scores: np.ndarray
    """float32 (step, score, head)."""

    @property
    def steps(self) -> list[int]:
        return [context.step for context in self.contexts]

    @property
    def place(self) -> str:
        return f"{encode_path_part(self.probe.name)}/{encode_path_part(self.layer)}"


def followed_layers(contexts: list[CheckpointContext], probe: Probe) -> Iterator[FollowedLayer]:
    """Each layer that has scores of the same heads at two checkpoints or more, in the order of execution if that is known."""
    layers: dict[str, None] = {}
    for context in contexts:
        for path in context.found_arrays(READ, probe.name):
            layer, _, name = path.rpartition("/")
            if name == "scores":
                layers.setdefault(layer)
    places = {layer: number for number, layer in enumerate(contexts[-1].layers(probe.name))}
    for layer in sorted(layers, key=lambda name: (places.get(name, len(places)), name)):
        kept: list[tuple[CheckpointContext, np.ndarray, list[str]]] = []
        for context in contexts:
            values = context.found(READ, probe.name, layer, "scores")
            if values is None:
                continue
            names = list(context.found_attributes(READ, probe.name, layer, "scores")["score"])
            if not kept or (names == kept[0][2] and values.shape == kept[0][1].shape):
                kept.append((context, values, names))
        if len(kept) > 1:
            scores = np.stack([values for _, values, _ in kept]).astype(np.float32)
            yield FollowedLayer(probe, layer, [context for context, _, _ in kept], kept[0][2], scores)


def shown_attention(context: CheckpointContext, layer: FollowedLayer) -> MaskedAttention | None:
    """The stored weights of the shown samples as `MaskedAttention`; None where none are stored."""
    import torch

    from stratascope.tasks.sequence.attention_scores import masked_attention

    weights = context.found(READ, layer.probe.name, layer.layer, "weights")
    identities = context.found(READ, layer.probe.name, "sample_id")
    if weights is None or identities is None or not len(weights):
        return None
    about = context.found_attributes(READ, layer.probe.name, layer.layer, "weights")
    rows = rows_of_ids(layer.probe, tuple(identities.tolist()))
    masks = []
    for name, count in ((about.get("query_input"), weights.shape[2]), (about.get("key_input"), weights.shape[3])):
        real = _real(layer.probe, name, rows)
        masks.append(torch.from_numpy(real) if real is not None and real.shape[1] == count else None)
    return masked_attention(torch.from_numpy(weights.astype(np.float32)), *masks)


def _real(probe: Probe, name: str | None, rows: np.ndarray) -> np.ndarray | None:
    """bool (sample, token): the real tokens of input `name` at `rows`; None where all are, or it is no input."""
    if name is None or name not in probe.masks:
        return None
    return np.stack([np.asarray(probe.masks[name][int(row) : int(row) + 1])[0] for row in rows])
