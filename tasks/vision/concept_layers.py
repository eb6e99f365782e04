"""Activations of concepts' samples in a layer and gradients of outputs by it, reduced to inner products at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.tasks.representation.pictures import even_choice
from stratascope.tasks.vision.concept_vectors import LayerProducts

if TYPE_CHECKING:
    from torch import Tensor

    from stratascope.storage.probes import Probe
    from stratascope.tasks.capture.layers import LayerInfo
    from stratascope.tasks.vision.image_network import ImageNetwork

_FEW = 4
_WEIGHTED = ("Linear", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose2d", "LSTM", "GRU", "RNN", "MultiheadAttention")
_MOST_BYTES = 1 << 30


def concept_layers(network: ImageNetwork, probe: Probe, patterns: Sequence[str]) -> list[LayerInfo]:
    """The layers that `patterns` mean; without any, four weighted ones from the first to the last but the output's own.

    Raises DoesNotApply where there is none, ConfigurationError where a pattern matches nothing.
    """
    from stratascope.tasks.capture.layers import select_layers
    from stratascope.tasks.vision.spatial_layers import chosen_spatial_layers, observed

    layers = observed(network, probe).layers
    if patterns:
        special = [pattern for pattern in patterns if pattern in ("@last_spatial", "@convolutions")]
        plain = [pattern for pattern in patterns if pattern not in special]
        chosen = {layer.name: layer for layer in (select_layers(plain, layers) if plain else ())}
        picture = tuple(probe.inputs.shape[2:4]) if len(probe.inputs.shape) == 4 else None
        for item in chosen_spatial_layers(special, layers, picture) if special else ():
            chosen[item.name] = item.info
        return [layer for layer in layers if layer.name in chosen and layer.side == "output"]
    weighted = [layer for layer in layers if layer.side == "output" and layer.kind in _WEIGHTED and layer.is_leaf]
    # What the last one puts out are the answers themselves: a direction there says nothing of how they came about.
    inner = weighted[:-1] or weighted
    if not inner:
        raise DoesNotApply("the network has no weighted layer to look for concepts in; name some under `layers`.")
    return [inner[place] for place in dict.fromkeys(even_choice(range(len(inner)), _FEW))]


def layer_products(
    network: ImageNetwork,
    layer: LayerInfo,
    inputs: np.ndarray,
    explained: np.ndarray,
    outputs: np.ndarray,
    features: str,
    batch_size: int,
) -> LayerProducts:
    """Inner products of the activations of `inputs` (sample, …), and with the gradients at `explained` (explained sample, …).

    `outputs` int64 (explained sample,) says which output's gradient. `pooled` means activations over a layer's places and sums
    gradients over them. Raises DoesNotApply where no gradient reaches the layer, or it is too wide to be held.
    """
    import torch

    from stratascope.tasks.models.network import as_tensor
    from stratascope.tasks.vision.image_network import layer_pass
    from stratascope.tasks.vision.targets import Target

    width = layer.values_per_sample
    if features == "full" and 4 * width * (len(inputs) + batch_size) > _MOST_BYTES:
        raise DoesNotApply(
            f"layer {layer.name!r} has {width:,} numbers a sample, too many to hold {len(inputs)} samples of; take "
            "`features: pooled`, or a smaller `pool`."
        )
    axes = _places(layer) if features == "pooled" else ()
    held = _activations(network, layer, as_tensor(inputs), axes, batch_size)
    along, norms = [], []
    target = Target()
    for start in range(0, len(explained), batch_size):
        rows = slice(start, start + batch_size)
        asked = torch.as_tensor(outputs[rows])
        given = as_tensor(explained[rows])
        if start == 0:
            # The highest class stands for all: where the network has no such output, that is said.
            with torch.no_grad():
                target.indices(network.outputs(given[:1]), outputs.max(keepdims=True))
        passed = layer_pass(network, given, asked, target, [layer])
        gradient = passed.gradients[layer.name]
        gradient = (gradient.sum(axes) if axes else gradient).flatten(1).double().cpu()
        along.append(torch.cat([gradient @ part.double().T for part in held.split(batch_size)], 1).numpy())
        norms.append(gradient.norm(dim=1).numpy())
    gram = np.empty((len(held), len(held)))
    for start in range(0, len(held), batch_size):
        part = held[start : start + batch_size].double()
        for other in range(0, len(held), batch_size):
            gram[start : start + len(part), other : other + batch_size] = (part @ held[other : other + batch_size].double().T).numpy()  # fmt: skip
    return LayerProducts(gram, np.concatenate(along), np.concatenate(norms))


def _places(layer: LayerInfo) -> tuple[int, ...]:
    """Axes, counted with the sample axis in front, over which a layer repeats its units."""
    unit = layer.unit_axis
    return () if unit is None else tuple(axis + 1 for axis in range(len(layer.shape)) if axis != unit)


def _activations(
    network: ImageNetwork, layer: LayerInfo, inputs: Any, axes: tuple[int, ...], batch_size: int
) -> Tensor:
    """float32 (sample, feature) on the processor."""
    import torch

    from stratascope.tasks.vision.image_network import replaced_outputs

    seen: list[Tensor] = []

    def keep(_: LayerInfo, values: Tensor) -> Tensor:
        seen.append(values)
        # What goes on is a copy, which an in-place operation may overwrite.
        return values.clone()

    size = network.fixed_batch_size or batch_size
    parts = []
    with torch.no_grad(), replaced_outputs(network.network, [layer], keep):
        for part in inputs.split(size):
            seen.clear()
            network.outputs(part)
            if not seen:
                raise DoesNotApply(f"layer {layer.name!r} is not reached by a forward pass.")
            values = seen[0].movedim(layer.sample_axis, 0)[: len(part)]
            parts.append((values.mean(axes) if axes else values).flatten(1).float().cpu())
    return torch.cat(parts)
