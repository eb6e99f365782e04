"""What can be said of class activation maps in numbers: are they empty, do they agree, does the network need what they mark."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from stratascope.errors import DoesNotApply

if TYPE_CHECKING:
    from torch import Tensor

    from stratascope.tasks.vision.image_network import ImageNetwork


def nowhere_positive(maps: np.ndarray) -> np.ndarray:
    """bool (sample,): which of the maps (sample, y, x) are all zero once what is below 0 is cut off."""
    return np.asarray(~(maps > 0).any((1, 2)))


def soft_masks(maps: Tensor, shape: tuple[int, int]) -> Tensor:
    """(sample, y, x) from 0 to 1: what is above 0 in `maps`, enlarged to `shape` and divided by its largest value.

    An empty map gives an empty mask.
    """
    import torch

    from stratascope.tasks.vision.class_activation_maps import enlarged

    grown = enlarged(maps.clamp(min=0), shape)
    top = grown.amax((1, 2), keepdim=True)
    return torch.where(top > 0, grown / torch.where(top > 0, top, 1.0), 0.0)


class Confidence(NamedTuple):
    """The probability of the class that is asked about, before and after the picture is masked by a map."""

    before: np.ndarray
    after: np.ndarray

    @property
    def drops(self) -> np.ndarray:
        """(sample,): which share of the probability is lost, 0 where it rose (Chattopadhyay et al. 2018, section 4.1)."""
        return np.maximum(0.0, self.before - self.after) / self.before

    @property
    def increases(self) -> np.ndarray:
        """bool (sample,): where the probability rose."""
        return self.after > self.before


def class_probabilities(outputs: Tensor, indices: Tensor, task: str) -> np.ndarray:
    """float64 (sample,): the softmax of the outputs at each sample's index. Raises DoesNotApply where there is no such thing."""
    if task != "classification" or outputs.ndim != 2 or outputs.shape[1] < 2:
        raise DoesNotApply(
            f"confidence is the probability of a class; the task is {task!r} and a sample has outputs of shape "
            f"({', '.join(str(size) for size in outputs.shape[1:])})."
        )
    return outputs.double().softmax(1).gather(1, indices[:, None].to(outputs.device))[:, 0].cpu().numpy()


def masked_confidence(
    network: ImageNetwork,
    inputs: Tensor,
    indices: Tensor,
    maps: np.ndarray,
    baseline: Tensor,
    before: np.ndarray,
    batch_size: int,
) -> Confidence:
    """The confidence when each picture x is x' + (x − x') ⊙ mask, the mask being what is above 0 in its map."""
    import torch

    found = []
    for start in range(0, len(inputs), batch_size):
        rows = slice(start, start + batch_size)
        shape = int(inputs.shape[2]), int(inputs.shape[3])
        masks = soft_masks(torch.from_numpy(maps[rows]).float(), shape)[:, None]
        altered = baseline[rows] + (inputs[rows] - baseline[rows]) * masks
        outputs = network.outputs_in_batches(altered, batch_size)
        found.append(class_probabilities(outputs, indices[rows], "classification"))
    return Confidence(before, np.concatenate(found))
