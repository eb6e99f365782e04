"""Maps over pictures as people see them: one scale that is stated, zero drawn as zero, the same picture in a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_WIDTH = 7.6
"""Inches of a grid; the page shows one as about 72 to 100 pixels."""
_LONGEST_SIDE = 2.1
_GAP = 0.05
NO_NUMBER = np.array([255, 0, 255], np.uint8)
"""The colour of what is not finite."""


def scale_bound(maps: np.ndarray, quantile: float = 0.99) -> float:
    """The size at which colours saturate: the `quantile` of the sizes of all finite values; 0 where all are zero.

    Taken over everything that is to be compared, so that a colour means the same everywhere. Where more than
    `quantile` of the values are zero the largest value counts.
    """
    sizes = np.abs(maps[np.isfinite(maps)])
    if not len(sizes):
        return 0.0
    bound = float(np.quantile(sizes, quantile))
    return bound if bound > 0 else float(sizes.max())


def signed_colours(values: np.ndarray, bound: float) -> np.ndarray:
    """uint8 (y, x, 3): blue for below zero, white for zero, red for above, full at ± `bound`.

    With a bound of 0 there is nothing to see: a map of zeros is white, and never stretched to noise.
    """
    return _coloured(values / bound / 2 + 0.5 if bound > 0 else np.full(values.shape, 0.5), "RdBu_r", values)


def size_colours(values: np.ndarray, bound: float) -> np.ndarray:
    """uint8 (y, x, 3): dark for zero (and below) to yellow for `bound` and above."""
    return _coloured(values / bound if bound > 0 else np.zeros(values.shape), "cividis", values)


def _coloured(shares: np.ndarray, palette: str, values: np.ndarray) -> np.ndarray:
    from matplotlib import colormaps

    finite = np.isfinite(values)
    colours = colormaps[palette](np.clip(np.where(finite, shares, 0.0), 0, 1))[..., :3]
    found = np.round(255 * colours).astype(np.uint8)
    found[~finite] = NO_NUMBER
    return found


def overlaid(picture: np.ndarray, values: np.ndarray, bound: float, signed: bool = False) -> np.ndarray:
    """uint8 (y, x, 3): `picture` (y, x) or (y, x, channel) in grey, under the colours of `values` (y, x).

    The colour is the stronger the larger the value is against `bound`; where it is zero the picture alone is seen.
    """
    values = resized(values, picture.shape[:2])
    grey = picture if picture.ndim == 2 else picture[..., :3].mean(-1)
    base = np.repeat(grey[..., None].astype(np.float64), 3, axis=-1)
    size = np.clip(np.abs(values) / bound, 0, 1) if bound > 0 else np.zeros(values.shape)
    if not signed:
        size = np.where(values > 0, size, 0.0)
    colours = (signed_colours if signed else heat_colours)(values, bound).astype(np.float64)
    weight = 0.75 * np.nan_to_num(size)[..., None]
    return np.round(base * (1 - weight) + colours * weight).astype(np.uint8)


def heat_colours(values: np.ndarray, bound: float) -> np.ndarray:
    """uint8 (y, x, 3) from dark purple (zero) over orange to pale yellow (`bound`), as overlays use them."""
    return _coloured(values / bound if bound > 0 else np.zeros(values.shape), "inferno", values)


def resized(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """float (y, x) of `shape` (height, width): `values` (y, x) between their cell centres, linearly; edges go on.

    Equals torch's bilinear interpolation with `align_corners=False`.
    """
    if values.shape == tuple(shape):
        return values
    from scipy.ndimage import map_coordinates

    places = np.meshgrid(
        *((np.arange(new) + 0.5) * old / new - 0.5 for new, old in zip(shape, values.shape, strict=True)),
        indexing="ij",
    )
    return map_coordinates(values.astype(np.float64), places, order=1, mode="nearest")


def rgb_picture(picture: np.ndarray) -> np.ndarray:
    """uint8 (y, x, 3) of a picture (y, x), (y, x, 1) or (y, x, 3)."""
    if picture.ndim == 2:
        picture = picture[..., None]
    return np.repeat(picture, 3, axis=-1) if picture.shape[-1] == 1 else picture[..., :3]


def shown_inputs(inputs: np.ndarray) -> list[np.ndarray]:
    """uint8 (y, x, channel) of inputs (sample, channel, y, x) whose normalisation is not known, each stretched to its own range.

    Of more than three channels, or two, the mean is shown.
    """
    pictures = []
    for item in inputs:
        values = item if len(item) in (1, 3) else item.mean(0, keepdims=True)
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        scaled = (values - low) / (high - low) if high > low else np.zeros(values.shape)
        pictures.append(np.round(255 * np.nan_to_num(scaled)).astype(np.uint8).transpose(1, 2, 0))
    return pictures


def picture_grid(
    pictures: Sequence[Sequence[np.ndarray | None]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    *,
    scale: ColourScale | None = None,
    width: float = _WIDTH,
) -> str:
    """Pictures uint8 (y, x, 3) or (y, x) by row and column, with names at the left and on top, as SVG.

    None leaves a place empty. Each keeps its own pixels. `scale` adds the meaning of the colours below.
    """
    from stratascope.tasks.report.svg import to_svg

    figure, _ = _grid(pictures, row_names, column_names, scale, width)
    return to_svg(figure)


def moving_picture_grid(
    steps: Sequence[int],
    pictures: Sequence[Sequence[Sequence[np.ndarray | None]]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    *,
    scale: ColourScale | None = None,
    width: float = _WIDTH,
) -> tuple[tuple[int, str], ...]:
    """The same for each of `steps` (step, row, column), as frames (step, svg) for a slider.

    Places must be filled or empty at all steps alike.
    """
    from stratascope.tasks.report.svg import moving_frames

    figure, images = _grid(pictures[0], row_names, column_names, scale, width)

    def update(place: int) -> None:
        for (row, column), image in images.items():
            picture = pictures[place][row][column]
            if picture is not None:
                image.set_data(rgb_picture(picture))

    return moving_frames(figure, steps, list(images.values()), update)


class ColourScale:
    """What the colours of a grid mean: a bar below it with the two ends named."""

    def __init__(self, label: str, bound: float, signed: bool, heat: bool = False) -> None:
        self.label, self.bound, self.signed, self.heat = label, bound, signed, heat

    def draw(self, figure: Any, left: float, bottom: float, width: float, height: float) -> None:
        from stratascope.tasks.report.svg import INK
        from stratascope.tasks.report.text import plain_number

        low = -self.bound if self.signed else 0.0
        values = np.linspace(low, self.bound, 128)[None]
        colours = signed_colours if self.signed else heat_colours if self.heat else size_colours
        axes = figure.add_axes((left, bottom, width, height))
        axes.imshow(colours(values, self.bound), aspect="auto", interpolation="none")
        axes.set_yticks([])
        places, texts = ([0, 63.5, 127], [low, 0.0, self.bound]) if self.signed else ([0, 127], [0.0, self.bound])
        axes.set_xticks(places, [plain_number(float(f"{text:.3g}")) for text in texts])
        axes.tick_params(colors=INK, labelsize=8.5, length=2)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_title(self.label, fontsize=9.5, color=INK, loc="left", pad=3)


def _grid(
    pictures: Sequence[Sequence[np.ndarray | None]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    scale: ColourScale | None,
    width: float,
) -> tuple[Any, dict[tuple[int, int], Any]]:
    from matplotlib.figure import Figure as Canvas

    from stratascope.tasks.report.svg import INK
    from stratascope.tasks.report.text import shortened

    rows, columns = len(pictures), max(len(line) for line in pictures)
    shape = next(picture.shape for line in pictures for picture in line if picture is not None)
    left = 0.085 * min(26, max((len(name) for name in row_names), default=0)) + 0.08 if any(row_names) else 0.03
    side = min(_LONGEST_SIDE, (width - left) / columns - _GAP)
    tall = side * shape[0] / shape[1]
    if tall > _LONGEST_SIDE:
        side, tall = side * _LONGEST_SIDE / tall, _LONGEST_SIDE
    top = 0.3 if any(column_names) else 0.04
    bottom = 0.62 if scale is not None else 0.04
    height = top + bottom + rows * (tall + _GAP)
    canvas = Canvas(figsize=(width, height), dpi=72)
    canvas.suppressComposite = True
    axes = canvas.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    images = {}
    fits = max(4, int(side / 0.078))
    for row, line in enumerate(pictures):
        above = top + row * (tall + _GAP)
        if row < len(row_names) and row_names[row]:
            axes.text(left - 0.08, above + tall / 2, shortened(row_names[row], 26), ha="right", va="center", fontsize=9.5, color=INK)  # fmt: skip
        for column, picture in enumerate(line):
            if picture is None:
                continue
            start = left + column * (side + _GAP)
            images[row, column] = axes.imshow(
                rgb_picture(picture), interpolation="none", aspect="auto", extent=(start, start + side, above + tall, above)
            )  # fmt: skip
    for column, name in enumerate(column_names):
        place = left + column * (side + _GAP) + side / 2
        axes.text(place, top - 0.08, shortened(name, fits), ha="center", va="bottom", fontsize=9.5, color=INK)
    axes.set(xlim=(0, width), ylim=(height, 0))
    if scale is not None:
        bar = min(2.6, width - left)
        scale.draw(canvas, left / width, 0.26 / height, bar / width, 0.11 / height)
    return canvas, images
