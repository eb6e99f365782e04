"""A checkpoint's network as analyses of sequences need it: private, in evaluation mode, with inputs of any nesting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stratascope.tasks.device import moved
from stratascope.tasks.given_samples import GivenSamples
from stratascope.tasks.models.network import as_tensor, call_network, select_output
from stratascope.tasks.vision.image_network import ImageNetwork


@dataclass
class SequenceNetwork(ImageNetwork):
    """As `ImageNetwork`, for codes, series and mappings of such. `SequenceNetwork.of(context)` opens a checkpoint's."""

    def outputs(self, inputs: Any) -> Tensor:
        """(sample, …) of `inputs`, a tensor (sample, …) or a mapping of such; carries a gradient where they do.

        For a network that takes a fixed number of samples, fewer are filled up and the rest cut off.
        """
        given = _filled(moved(inputs, self.device), self.fixed_batch_size)
        output = select_output(call_network(self.network, given, self.model, self.folder), self.model.output)
        return output[: count_of(inputs)]

    def run(self, samples: GivenSamples) -> Tensor:
        """The outputs of `samples`, which are one batch."""
        return self.outputs(as_tensor(samples.inputs))

    def batches_of(self, samples: GivenSamples, size: int) -> list[slice]:
        """Rows of each batch of at most `size` samples, fewer where the network takes no more."""
        size = min(size, self.fixed_batch_size or size)
        return [slice(start, min(start + size, len(samples))) for start in range(0, len(samples), size)]


def count_of(inputs: Any) -> int:
    """How many samples `inputs` are."""
    while isinstance(inputs, Mapping):
        inputs = next(iter(inputs.values()))
    return len(inputs)


def _filled(inputs: Any, size: int | None) -> Any:
    """`inputs`, copied so that no in-place operation changes them, with the first sample repeated up to `size`."""
    if isinstance(inputs, Mapping):
        return {name: _filled(item, size) for name, item in inputs.items()}
    if size is None or len(inputs) >= size:
        return inputs.clone()
    return torch.cat([inputs, inputs[:1].expand(size - len(inputs), *inputs.shape[1:])])
