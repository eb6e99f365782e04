"""Attribution along straight lines from a baseline: the gradients on the way add up to the difference of the scores.

Registers `integrated_gradients` and `expected_gradients`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.tasks.vision.attribution_methods import (
    Attributed,
    AttributionMethod,
    Explained,
    register_method,
)
from stratascope.tasks.vision.chosen_samples import sample_generator
from stratascope.tasks.vision.gradient_maps import gradients_at_copies

if TYPE_CHECKING:
    from torch import Tensor

DRAWS = "expected_gradients"
"""What baselines and places on the line are drawn for."""


def scores_of(explained: Explained, inputs: Tensor, indices: Tensor) -> np.ndarray:
    """float64 (row,): the score of each of `inputs` (row, channel, y, x) for the output `indices` (row,)."""
    outputs = explained.network.outputs_in_batches(inputs, explained.batch_size)
    return explained.target.scores(outputs, indices).double().numpy()


def path_integral(explained: Explained, steps: int) -> np.ndarray:
    """float64 (sample, channel, y, x): (x − x′) ⊙ ∫₀¹ ∂y/∂x at x′ + α(x − x′) dα, by Gauss and Legendre's rule.

    It is exact where the gradient along the line is a polynomial of degree 2 × `steps` − 1 in α. Sundararajan et al.
    2017, eq. 1.
    """
    import torch

    places, weights = np.polynomial.legendre.leggauss(steps)
    alphas = torch.from_numpy((1 + places) / 2).float().view(-1, 1, 1, 1)
    way = explained.inputs - explained.baseline
    total = np.zeros(tuple(way.shape))
    found = gradients_at_copies(
        explained, steps, lambda row, wanted: explained.baseline[row] + alphas[wanted] * way[row]
    )
    for row, wanted, gradients in found:
        for weight, gradient in zip(weights[wanted] / 2, gradients, strict=True):
            total[row] += weight * gradient.astype(np.float64)
    return total * way.double().numpy()


def _selected(explained: Explained, rows: np.ndarray) -> Explained:
    import torch

    places = torch.from_numpy(rows)
    return replace(
        explained, inputs=explained.inputs[places], indices=explained.indices[places],
        sample_id=explained.sample_id[rows], baseline=explained.baseline[places], shared={},
    )  # fmt: skip


def integrated_gradients(explained: Explained) -> Attributed:
    """Gradients added up along the line from the baseline to the sample; see `path_integral`.

    `steps` places on the line at first. For samples whose map misses the difference of the scores by more than
    `tolerance` of it their number is doubled, again and again, up to `most_steps`. Each sample decides for itself.
    Files `completeness_gap`, `score_difference` and `steps` (sample,).
    """
    steps, most, tolerance = (explained.settings[name] for name in ("steps", "most_steps", "tolerance"))
    if steps < 1:
        raise DoesNotApply(f"`steps` is {steps}: a path needs at least one.")
    difference = scores_of(explained, explained.inputs, explained.indices) - scores_of(
        explained, explained.baseline, explained.indices
    )
    maps = path_integral(explained, steps)
    used = np.full(len(explained), steps, np.int64)
    while True:
        gaps = maps.sum((1, 2, 3)) - difference
        missed = np.flatnonzero((np.abs(gaps) > tolerance * np.abs(difference)) & (2 * used <= most))
        if not len(missed):
            break
        steps *= 2
        maps[missed] = path_integral(_selected(explained, missed), steps)
        used[missed] = steps
    numbers = {"completeness_gap": gaps, "score_difference": difference, "steps": used}
    return Attributed(maps.astype(np.float32), numbers)


def expected_gradients(explained: Explained) -> Attributed:
    """Mean of (x − x′) ⊙ ∂y/∂x at x′ + α(x − x′), over baselines x′ from a set and α from 0 to 1. Erion et al. 2021, eq. 3.

    Which baseline and which α belongs to a draw comes from the sample's own random numbers, the same at every
    checkpoint. `completeness_gap` (sample,) is against the mean score of the baselines that were drawn.
    """
    import torch

    draws = explained.settings["draws"]
    if draws < 1:
        raise DoesNotApply(f"`draws` is {draws}: at least one is needed.")
    if explained.baselines is None or not len(explained.baselines):
        raise DoesNotApply("expected gradients need a set of baselines; there is none.")
    given, count = explained.baselines, len(explained.baselines)
    chosen = np.empty((len(explained), draws), np.int64)
    alphas = np.empty((len(explained), draws), np.float32)
    for row, name in enumerate(explained.sample_id):
        for draw in range(draws):
            generator = sample_generator(name, explained.seed, DRAWS, draw)
            chosen[row, draw], alphas[row, draw] = generator.integers(count), generator.random()
    places, shares = torch.from_numpy(chosen), torch.from_numpy(alphas)[:, :, None, None, None]

    def copies(row: int, wanted: slice) -> Tensor:
        baselines = given[places[row, wanted]]
        return baselines + shares[row, wanted] * (explained.inputs[row] - baselines)

    total = np.zeros(tuple(explained.inputs.shape))
    for row, wanted, gradients in gradients_at_copies(explained, draws, copies):
        ways = (explained.inputs[row] - given[places[row, wanted]]).double().numpy()
        for way, gradient in zip(ways, gradients, strict=True):
            total[row] += way * gradient
    maps = total / draws
    outputs = explained.network.outputs_in_batches(given, explained.batch_size)
    standing = np.array(
        [explained.target.scores(outputs[places[row]], index.expand(draws)).double().mean() for row, index in enumerate(explained.indices)]
    )  # fmt: skip
    difference = scores_of(explained, explained.inputs, explained.indices) - standing
    numbers = {"completeness_gap": maps.sum((1, 2, 3)) - difference, "score_difference": difference}
    return Attributed(maps.astype(np.float32), numbers)


register_method(
    AttributionMethod(
        "integrated_gradients", "Integrated gradients", "path", "(x − x′) ⊙ ∫₀¹ ∂y/∂x at x′ + α(x − x′) dα", "Sundararajan et al. 2017",
        "everything is against the baseline: pixels that are like it get nothing, and pictures on the way are none that the network has seen.",
        integrated_gradients, complete=True, settings={"steps": 32, "most_steps": 256, "tolerance": 0.05},
    )
)  # fmt: skip
register_method(
    AttributionMethod(
        "expected_gradients", "Expected gradients", "path", "mean over x′ and α of (x − x′) ⊙ ∂y/∂x at x′ + α(x − x′)", "Erion et al. 2021",
        "with few draws it is noisy, as its completeness gap tells; what all baselines share with the sample gets nothing.",
        expected_gradients, complete=True, settings={"draws": 64},
    )
)  # fmt: skip
