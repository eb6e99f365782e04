"""Attribution from one gradient by the pixels, plain or under another rule for ReLUs, or averaged over noise.

Registers `gradient`, `gradient_times_input`, `guided_backpropagation`, `deconvolution`, `smooth_grad`,
`smooth_grad_squared` and `var_grad`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.tasks.vision.attribution_methods import (
    Attributed,
    AttributionMethod,
    Explained,
    register_method,
)
from stratascope.tasks.vision.chosen_samples import normal_noise
from stratascope.tasks.vision.rectifier_rules import RectifierCalls, Rule, rectifiers

if TYPE_CHECKING:
    from torch import Tensor

NOISE = "smooth_grad"
"""What the noise of all three averages is drawn for: they share it."""
_DRAWS = {"draws": 32, "level": 0.15}


def gradients_at_copies(
    explained: Explained, count: int, copies: Callable[[int, slice], Tensor]
) -> Iterator[tuple[int, slice, np.ndarray]]:
    """(row, draws, gradients float32 (draw, channel, y, x)) at `count` altered copies of every sample.

    `copies(row, draws)` makes some of them, float32 (draw, channel, y, x); no more than `batch_size` are there at
    once, of one or of several samples. Those of a sample come in order, so sums over them do not depend on batches.
    """
    import torch

    for start in range(0, len(explained) * count, explained.batch_size):
        stop = min(start + explained.batch_size, len(explained) * count)
        pieces = [
            (row, slice(max(start - row * count, 0), min(stop - row * count, count)))
            for row in range(start // count, (stop - 1) // count + 1)
        ]
        sizes = [draws.stop - draws.start for _, draws in pieces]
        rows = torch.tensor([row for row, _ in pieces]).repeat_interleave(torch.tensor(sizes))
        pictures = torch.cat([copies(row, draws) for row, draws in pieces])
        found = explained.network.input_gradient(pictures, explained.indices[rows], explained.target)
        for (row, draws), part in zip(pieces, found.split(sizes), strict=True):
            yield row, draws, part.numpy()


def _gradients(explained: Explained) -> np.ndarray:
    found = gradients_at_copies(explained, 1, lambda row, draws: explained.inputs[row : row + 1])
    return np.concatenate([part for _, _, part in found])


def plain_gradient(explained: Explained) -> np.ndarray:
    """float32 (sample, channel, y, x): of each sample's score by its pixels; computed once for all who ask."""
    return explained.once("gradient", lambda: _gradients(explained))


def gradient(explained: Explained) -> Attributed:
    """∂y/∂x, signed. Simonyan et al. 2014, section 3, without the absolute value."""
    return Attributed(plain_gradient(explained))


def gradient_times_input(explained: Explained) -> Attributed:
    """x ⊙ ∂y/∂x with x in the network's own, normalised numbers. Shrikumar et al. 2016."""
    return Attributed(plain_gradient(explained) * explained.inputs.numpy())


def signed_parts(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is above and what is below zero in `maps` (sample, …), each from 0 to 1 by its own largest in the sample.

    A part of which a sample has nothing is zero. Values that are not finite count as zero.
    """
    sound = np.where(np.isfinite(maps), maps, 0)
    axes = tuple(range(1, maps.ndim))
    parts = []
    for part in (np.maximum(sound, 0), np.maximum(-sound, 0)):
        largest = part.max(axes, keepdims=True)
        parts.append(np.divide(part, largest, out=np.zeros_like(part), where=largest > 0))
    return parts[0], parts[1]


def ruled_gradient(explained: Explained, rule: Rule, name: str) -> tuple[np.ndarray, RectifierCalls]:
    """float32 (sample, channel, y, x): the gradient with every ReLU under `rule`; and what was met on the way.

    Raises DoesNotApply, with the `name` of what is asked for, where there is no ReLU.
    """
    with rectifiers(rule) as calls:
        found = _gradients(explained)
    if not calls.rectified:
        others = (
            f"; it has {', '.join(sorted(calls.unruled))}, for which the rule is not defined"
            if calls.unruled
            else ""
        )
        raise DoesNotApply(f"not {name}: this network has no ReLU{others}. Its plain gradient is `gradient`.")
    return found, calls


def _ruled(explained: Explained, rule: Rule, name: str) -> Attributed:
    found, calls = ruled_gradient(explained, rule, name)
    if not calls.unruled:
        return Attributed(found)
    kinds = ", ".join(sorted(calls.unruled))
    return Attributed(found, warnings=(f"{name} at its ReLUs only: {kinds} keep their plain gradient",))


def guided_backpropagation(explained: Explained) -> Attributed:
    """The gradient, where at every ReLU what comes back below zero is cut. Springenberg et al. 2015, section 3.4."""
    return _ruled(explained, "guided", "guided")


def deconvolution(explained: Explained) -> Attributed:
    """What comes back passes every ReLU where it is above zero, whatever went forward. Zeiler and Fergus 2014, section 2.1."""
    return _ruled(explained, "deconvolution", "a deconvolution")


@dataclass(frozen=True)
class NoisyGradients:
    """What is kept of the gradients of noisy copies."""

    mean: np.ndarray
    """float64 (sample, channel, y, x)."""
    square: np.ndarray
    """float64, the mean of the squares."""

    @property
    def variance(self) -> np.ndarray:
        """float64, over the draws, divided by their number."""
        return np.maximum(self.square - self.mean**2, 0)


def noisy_gradients(explained: Explained, draws: int, level: float) -> NoisyGradients:
    """Over `draws` copies x + ε with ε from a normal distribution of standard deviation `level` × (max − min) of x.

    The noise belongs to the sample's id, hence is the same at every checkpoint (featurevis P9 and P10).
    """
    import torch

    inputs = explained.inputs
    shape = tuple(inputs.shape[1:])
    ranges = inputs.flatten(1).amax(1) - inputs.flatten(1).amin(1)

    def copies(row: int, wanted: slice) -> Tensor:
        noise = normal_noise(explained.sample_id[row], wanted, shape, explained.seed, NOISE)
        return inputs[row] + level * ranges[row] * torch.from_numpy(noise)

    total = np.zeros((len(explained), *shape))
    square = np.zeros_like(total)
    for row, _, found in gradients_at_copies(explained, draws, copies):
        exact = found.astype(np.float64)
        for one in exact:
            total[row] += one
        for one in exact**2:
            square[row] += one
    return NoisyGradients(total / draws, square / draws)


def _noisy(explained: Explained) -> NoisyGradients:
    draws, level = explained.settings["draws"], explained.settings["level"]
    if draws < 1 or level < 0:
        raise DoesNotApply(f"`draws` is {draws} and `level` {level}: at least one draw and no level below zero.")
    return explained.once((NOISE, draws, level), lambda: noisy_gradients(explained, draws, level))


def smooth_grad(explained: Explained) -> Attributed:
    """Mean of the signed gradients of noisy copies. Smilkov et al. 2017, section 3.

    `spread` (sample, y, x) is the root of their variance, added over the channels.
    """
    found = _noisy(explained)
    spread = np.sqrt(found.variance.sum(1)).astype(np.float32)
    return Attributed(found.mean.astype(np.float32), arrays={"spread": spread})


def smooth_grad_squared(explained: Explained) -> Attributed:
    """Mean of the squares of the same gradients. Hooker et al. 2019, section 3.2."""
    return Attributed(_noisy(explained).square.astype(np.float32))


def var_grad(explained: Explained) -> Attributed:
    """Variance of the same gradients over the draws. Adebayo et al. 2018, section 2."""
    return Attributed(_noisy(explained).variance.astype(np.float32))


_METHODS = (
    AttributionMethod(
        "gradient", "Gradient", "gradient", "∂y/∂x", "Simonyan et al. 2014",
        "it tells what would change the score, not what made it: where the score is saturated it is small on what matters, and ReLUs make it ragged.",
        gradient,
    ),
    AttributionMethod(
        "gradient_times_input", "Gradient × input", "gradient", "x ⊙ ∂y/∂x", "Shrikumar et al. 2016",
        "pixels that are zero after normalisation get nothing, whatever they do: another normalisation gives another map.",
        gradient_times_input,
    ),
    AttributionMethod(
        "guided_backpropagation", "Guided backpropagation", "gradient", "∂y/∂x, at each ReLU R ← R ⊙ 1[x > 0] ⊙ 1[R > 0]", "Springenberg et al. 2015",
        "it redraws the edges of the picture, nearly whatever the class and the weights of later layers are (Adebayo et al. 2018; Nie et al. 2018).",
        guided_backpropagation,
    ),
    AttributionMethod(
        "deconvolution", "Deconvolution network", "gradient", "∂y/∂x, at each ReLU R ← R ⊙ 1[R > 0]", "Zeiler and Fergus 2014",
        "like guided backpropagation it mostly redraws the picture; without max-pooling it hardly depends on the picture at all.",
        deconvolution,
    ),
    AttributionMethod(
        "smooth_grad", "SmoothGrad", "gradient", "mean of ∂y/∂x at x + ε, ε ~ N(0, (level × (max − min))²)", "Smilkov et al. 2017",
        "it explains a blurred network: with much noise the copies leave what the network was trained on.",
        smooth_grad, settings=_DRAWS,
    ),
    AttributionMethod(
        "smooth_grad_squared", "SmoothGrad squared", "gradient", "mean of (∂y/∂x)² at x + ε", "Hooker et al. 2019",
        "without a sign it cannot tell what speaks for the class from what speaks against it; large where the gradient is merely noisy.",
        smooth_grad_squared, signed=False, settings=_DRAWS,
    ),
    AttributionMethod(
        "var_grad", "VarGrad", "gradient", "variance of ∂y/∂x at x + ε", "Adebayo et al. 2018",
        "it shows where the gradient changes under noise: a pixel that always matters by the same amount gets nothing.",
        var_grad, signed=False, settings=_DRAWS,
    ),
)  # fmt: skip
for _method in _METHODS:
    register_method(_method)
