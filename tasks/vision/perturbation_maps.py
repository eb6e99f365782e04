"""What the score loses when parts of the picture are taken away: windows, superpixels, and many of them at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.tasks.vision.attribution_methods import Attributed, AttributionMethod, Explained, register_method
from stratascope.tasks.vision.chosen_samples import sample_generator
from stratascope.tasks.vision.coalitions import (
    lime_weights,
    linear_surrogate,
    shapley_coalitions,
    shapley_values,
)
from stratascope.tasks.vision.segments import superpixels

if TYPE_CHECKING:
    from torch import Tensor


def altered_scores(explained: Explained, rows: Tensor, alter: Callable[[Tensor, slice], Tensor]) -> np.ndarray:
    """float64 (evaluation,): the scores of altered copies of the samples `rows` int64 (evaluation,).

    `alter` makes the copies of some rows, which are `rows[part]`; no more than a batch of them is there at a time.
    """
    import torch

    size = explained.network.fixed_batch_size or explained.batch_size
    found = []
    with explained.network.untouched(), torch.no_grad():
        for start in range(0, len(rows), size):
            part = slice(start, start + size)
            outputs = explained.network.outputs(alter(rows[part], part))
            found.append(explained.target.scores(outputs, explained.indices[rows[part]]).double().cpu())
    return torch.cat(found).numpy() if found else np.zeros(0)


def asked_quickly(explained: Explained, evaluations: int) -> Explained:
    """The same question of a copy of the network that is quicker forward, where about `evaluations` passes pay for one."""
    from stratascope.tasks.vision.forward_copy import forward_copy

    with explained.network.untouched():
        return replace(
            explained,
            network=forward_copy(explained.network, explained.inputs[: explained.batch_size], evaluations),
        )


def plain_scores(explained: Explained) -> np.ndarray:
    """float64 (sample,): the scores of the samples as they are."""
    return altered_scores(explained, _every(explained), lambda rows, part: explained.inputs[rows])


def _every(explained: Explained) -> Tensor:
    import torch

    return torch.arange(len(explained))


def occlusion(explained: Explained) -> Attributed:
    """What the score loses when a window is exchanged for the baseline: `drop` by window, the map by pixel.

    A window covers all channels; one that reaches beyond the border is cut. A pixel has the mean over the windows that
    cover it. Arrays: `drop` float32 (sample, window row, window column), before any spreading. Raises
    DoesNotApply for a window or stride that cannot be.
    """
    import torch

    count, _, height, width = explained.inputs.shape
    window, stride = _window(explained.settings, height, width)
    rows = math.ceil((height - window[0]) / stride[0]) + 1
    columns = math.ceil((width - window[1]) / stride[1]) + 1
    places = torch.arange(rows * columns).repeat(count)
    explained = asked_quickly(explained, len(places))

    def without(samples: Tensor, part: slice) -> Tensor:
        top = (places[part] // columns * stride[0]).view(-1, 1)
        left = (places[part] % columns * stride[1]).view(-1, 1)
        down, across = torch.arange(height), torch.arange(width)
        inside = ((down >= top) & (down < top + window[0]))[:, None, :, None]
        inside = inside & ((across >= left) & (across < left + window[1]))[:, None, None, :]
        return torch.where(inside, explained.baseline[samples], explained.inputs[samples])

    samples = torch.arange(count).repeat_interleave(rows * columns)
    drop = plain_scores(explained)[:, None] - altered_scores(explained, samples, without).reshape(count, -1)
    grid = torch.from_numpy(drop).view(count, 1, rows, columns)
    ones = torch.ones(1, 1, *window, dtype=torch.float64)
    spread = torch.nn.functional.conv_transpose2d(grid, ones, stride=stride)
    covering = torch.nn.functional.conv_transpose2d(torch.ones_like(grid[:1]), ones, stride=stride)
    maps = (spread / covering)[:, :, :height, :width].expand(explained.inputs.shape)
    return Attributed(maps.float().numpy().copy(), arrays={"drop": grid[:, 0].float().numpy()})


def _window(settings: Any, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    side = max(1, min(height, width) // 8)
    window = _pair(settings.get("window"), (side, side), "window")
    stride = _pair(settings.get("stride"), (max(1, window[0] // 2), max(1, window[1] // 2)), "stride")
    if window[0] > height or window[1] > width:
        raise DoesNotApply(f"`window` {list(window)} is larger than a picture of {height} × {width}.")
    if stride[0] > window[0] or stride[1] > window[1]:
        raise DoesNotApply(
            f"`stride` {list(stride)} is larger than `window` {list(window)}: pixels between the windows would have no value."
        )
    return window, stride


def _pair(given: Any, default: tuple[int, int], name: str) -> tuple[int, int]:
    if given is None:
        return default
    pair = tuple(given) if isinstance(given, list | tuple) else (given, given)
    if len(pair) != 2 or any(not isinstance(item, int) or isinstance(item, bool) or item < 1 for item in pair):
        raise DoesNotApply(f"`{name}` {given!r} is not a whole number from 1, or two of them (down, across).")
    return pair


def _pieces(explained: Explained) -> Tensor:
    """int64 (sample, y, x): the superpixels of each picture."""
    count = explained.settings.get("segments", _SEGMENTS)
    if not isinstance(count, int) or count < 1:
        raise DoesNotApply(f"`segments` {count!r} is not a whole number from 1.")
    import torch

    return torch.from_numpy(np.stack([superpixels(picture, count) for picture in explained.inputs.numpy()]))


def _coalition_scores(explained: Explained, pieces: Tensor, present: list[np.ndarray]) -> list[np.ndarray]:
    """Scores float64 (coalition,) of each sample with only the pieces that `present` has, bool (coalition, piece) by sample."""
    import torch

    widest = max(item.shape[1] for item in present)
    shown = torch.from_numpy(
        np.concatenate([np.pad(item, ((0, 0), (0, widest - item.shape[1]))) for item in present])
    )
    rows = torch.arange(len(present)).repeat_interleave(torch.tensor([len(item) for item in present]))

    def altered(samples: Tensor, part: slice) -> Tensor:
        kept = shown[part].gather(1, pieces[samples].flatten(1)).view(-1, 1, *pieces.shape[1:])
        return torch.where(kept, explained.inputs[samples], explained.baseline[samples])

    scores = altered_scores(explained, rows, altered)
    return np.split(scores, np.cumsum([len(item) for item in present])[:-1])


def _spread(explained: Explained, pieces: Tensor, values: list[np.ndarray]) -> np.ndarray:
    """float32 (sample, channel, y, x): each pixel has the value of its piece."""
    maps = np.stack([own[piece] for own, piece in zip(values, pieces.numpy(), strict=True)])
    return np.repeat(maps[:, None], explained.inputs.shape[1], 1).astype(np.float32)


def _counted(pieces: Tensor) -> list[int]:
    return (pieces.flatten(1).amax(1) + 1).tolist()


def _found(explained: Explained, pieces: Tensor, values: list[np.ndarray], **numbers: np.ndarray) -> Attributed:
    counted = np.array(_counted(pieces), np.float64)
    return Attributed(
        _spread(explained, pieces, values),
        {"segments": counted, **numbers},
        {"segment": pieces.numpy().astype(np.int32)},
    )


def feature_ablation(explained: Explained) -> Attributed:
    """What the score loses when one superpixel is exchanged for the baseline; every pixel of it has the whole loss.

    Arrays: `segment` int32 (sample, y, x), the superpixel of each place.
    """
    pieces = _pieces(explained)
    explained = asked_quickly(explained, sum(_counted(pieces)))
    scores = _coalition_scores(explained, pieces, [~np.eye(count, dtype=bool) for count in _counted(pieces)])
    losses = [own - left for own, left in zip(plain_scores(explained), scores, strict=True)]
    return _found(explained, pieces, losses)


def lime(explained: Explained) -> Attributed:
    """Slopes of a line through the scores with random superpixels shown; `surrogate_r2` says how well a line tells them.

    The perturbations belong to the sample, so that they are the same at every checkpoint. Every pixel has the whole slope
    of its superpixel. Arrays: `segment` as for feature ablation.
    """
    settings = explained.settings
    surrogate = settings.get("surrogate", "ridge")
    if surrogate not in ("ridge", "lasso"):
        raise DoesNotApply(f"`surrogate` {surrogate!r} is not known; it is `ridge` or `lasso`.")
    draws, width = int(settings.get("perturbations", _PERTURBATIONS)), float(settings.get("kernel_width", 0.25))
    if draws < 2 or width <= 0:
        raise DoesNotApply("`perturbations` begins at 2 and `kernel_width` above 0.")
    pieces = _pieces(explained)
    explained = asked_quickly(explained, draws * len(explained))
    present = []
    for sample, count in zip(explained.sample_id, _counted(pieces), strict=True):
        drawn = sample_generator(sample, explained.seed, "lime").random((draws, count)) < 0.5
        drawn[0] = True
        present.append(drawn)
    regularisation = float(settings.get("regularisation", _REGULARISATION))
    fits = [
        linear_surrogate(shown, scores, lime_weights(shown, width), surrogate, regularisation)
        for shown, scores in zip(present, _coalition_scores(explained, pieces, present), strict=True)
    ]
    return _found(
        explained, pieces, [slopes for slopes, _ in fits], surrogate_r2=np.array([share for _, share in fits])
    )


def kernel_shap(explained: Explained) -> Attributed:
    """Shapley values of superpixels by weighted regression, exact where they are few, spread evenly over their pixels.

    The map adds up to the score less that of the baseline; `completeness_gap` is what rounding leaves. The coalitions
    belong to the sample, so that they are the same at every checkpoint. Arrays: `segment` as for feature ablation.
    """
    evaluations = int(explained.settings.get("evaluations", _EVALUATIONS))
    pieces = _pieces(explained)
    most = max(_counted(pieces))
    if evaluations < 2 * most and evaluations < 2**most - 2:
        raise DoesNotApply(
            f"`evaluations` {evaluations} is too small for {most} superpixels; give at least {2 * most}."
        )
    chosen = [
        shapley_coalitions(count, evaluations, sample_generator(sample, explained.seed, "kernel_shap"))
        for sample, count in zip(explained.sample_id, _counted(pieces), strict=True)
    ]
    present = [shown for shown, _ in chosen]
    explained = asked_quickly(explained, sum(map(len, present)))
    whole = plain_scores(explained)
    empty = altered_scores(explained, _every(explained), lambda samples, part: explained.baseline[samples])
    values = []
    for place, scores in enumerate(_coalition_scores(explained, pieces, present)):
        found = shapley_values(present[place], scores, chosen[place][1], empty[place], whole[place])
        size = np.bincount(pieces[place].flatten().numpy(), minlength=len(found)) * explained.inputs.shape[1]
        values.append(found / size)
    result = _found(explained, pieces, values)
    difference = whole - empty
    gap = result.maps.reshape(len(explained), -1).sum(1, np.float64) - difference
    numbers = {**result.numbers, "completeness_gap": gap, "score_difference": difference}
    return Attributed(result.maps, numbers, result.arrays)


_SEGMENTS = 25
_PERTURBATIONS = 200
_EVALUATIONS = 256
_REGULARISATION = 1e-3
_ALTERED = "the altered pictures are unlike any the network was trained on: it is then asked about what it does not know. "

register_method(
    AttributionMethod(
        name="occlusion",
        title="Occlusion",
        family="perturbation",
        formula="f(x) − f(x with a window of the baseline), mean over the windows that cover a pixel",
        source="Zeiler and Fergus 2014, section 4.2",
        lies_when=_ALTERED + "What two places tell alike counts for neither: one stands in for the other.",
        compute=occlusion,
        settings={"window": None, "stride": None},
    )
)
register_method(
    AttributionMethod(
        name="feature_ablation",
        title="Ablation of superpixels",
        family="perturbation",
        formula="f(x) − f(x with superpixel s of the baseline)",
        source="Zeiler and Fergus 2014 for windows; superpixels in the manner of Achanta et al. 2012",
        lies_when=_ALTERED + "A superpixel that joins object and background has one value for both.",
        compute=feature_ablation,
        settings={"segments": _SEGMENTS},
    )
)
register_method(
    AttributionMethod(
        name="lime",
        title="LIME",
        family="perturbation",
        formula="argmin_β Σ_z exp(−d(z)²/σ²) (f(x_z) − β₀ − Σ_s β_s z_s)² + α‖β‖², z random superpixels shown",
        source="Ribeiro, Singh and Guestrin 2016, equations 1 and 2",
        lies_when=_ALTERED + "A low `surrogate_r2` says that no line tells the scores; few perturbations make it noise.",
        compute=lime,
        settings={
            "segments": _SEGMENTS, "perturbations": _PERTURBATIONS, "kernel_width": 0.25, "surrogate": "ridge",
            "regularisation": _REGULARISATION,
        },
    )
)  # fmt: skip
register_method(
    AttributionMethod(
        name="kernel_shap",
        title="Kernel SHAP",
        family="perturbation",
        formula=(
            "argmin_φ Σ_z k(z) (f(x_z) − f(x') − Σ_s φ_s z_s)² with Σ φ_s = f(x) − f(x'), k(z) = (M − 1)/(C(M,|z|) |z| (M − |z|))"
        ),
        source="Lundberg and Lee 2017, theorem 2; paired sampling: Covert and Lee 2021",
        lies_when=_ALTERED
        + "More superpixels than evaluations pay for make it noise; all is relative to the baseline.",
        compute=kernel_shap,
        complete=True,
        settings={"segments": _SEGMENTS, "evaluations": _EVALUATIONS},
    )
)
