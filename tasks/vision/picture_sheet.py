"""A sheet with pictures and words at stated places, in inches from the top left corner; still, or sliding over steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stratascope.tasks.vision.map_drawing import ColourScale, rgb_picture

SHEET_WIDTH = 6.4
"""Inches; narrow enough for words to be read beside the figure's text."""
LETTER = 0.0085
"""Inches that a letter takes, for each point of its size."""


class PictureSheet:
    """Pictures uint8 (y, x, 3) or (y, x), each with its own pixels, and the words around them."""

    def __init__(self, height: float, width: float = SHEET_WIDTH) -> None:
        from matplotlib.figure import Figure as Canvas

        self.width, self.height = width, height
        self.canvas = Canvas(figsize=(width, height), dpi=72)
        # Each picture keeps its own pixels instead of becoming part of one that is resampled.
        self.canvas.suppressComposite = True
        self.axes = self.canvas.add_axes((0, 0, 1, 1))
        self._bounds()
        self.axes.axis("off")
        self.images: list[Any] = []

    def picture(self, picture: np.ndarray, left: float, top: float, width: float, height: float) -> int:
        """Put `picture` there; returns its number, by which `frames` exchanges it."""
        place = (left, left + width, top + height, top)
        image = self.axes.imshow(rgb_picture(picture), interpolation="none", aspect="auto", extent=place)
        self.images.append(image)
        self._bounds()
        return len(self.images) - 1

    def words(
        self, left: float, top: float, text: str, *, size: float = 9.5, bold: bool = False, align: str = "left"
    ) -> None:
        """Write `text` with its upper edge at `top`; `align` says what `left` is the place of."""
        from stratascope.tasks.report.svg import INK

        weight = "bold" if bold else "normal"
        self.axes.text(left, top, text, ha=align, va="top", fontsize=size, weight=weight, color=INK)

    def scale(self, scale: ColourScale, left: float, top: float, width: float = 2.6) -> None:
        """The bar of `scale`, 0.6 inches high with its words."""
        bottom = 1 - (top + 0.33) / self.height
        scale.draw(self.canvas, left / self.width, bottom, width / self.width, 0.11 / self.height)

    def svg(self) -> str:
        from stratascope.tasks.report.svg import to_svg

        return to_svg(self.canvas)

    def frames(
        self, steps: Sequence[int], pictures: Sequence[dict[int, np.ndarray]]
    ) -> tuple[tuple[int, str], ...]:
        """(step, svg) for each of `steps`, with the `pictures` of that step by number; others stay."""
        from stratascope.tasks.report.svg import moving_frames

        numbers = sorted(pictures[0])

        def update(place: int) -> None:
            for number in numbers:
                self.images[number].set_data(rgb_picture(pictures[place][number]))

        return moving_frames(self.canvas, steps, [self.images[number] for number in numbers], update)

    def _bounds(self) -> None:
        self.axes.set(xlim=(0, self.width), ylim=(self.height, 0))


def fitting(text: str, width: float, largest: float = 9.5, smallest: float = 7.0) -> tuple[str, float]:
    """`text` and the size of its letters (points), so that it takes at most `width` inches; its middle gives way last."""
    from stratascope.tasks.report.text import shortened

    size = min(largest, max(smallest, width / (LETTER * max(1, len(text)))))
    return shortened(text, max(3, int(width / (LETTER * size)))), size


def drawable(values: np.ndarray, longest: int) -> np.ndarray:
    """Maps (…, y, x) as means of blocks of k × k, k the least with which no side is above `longest` pixels.

    At the lower and the right edge blocks may be smaller; all maps of one shape get the same blocks.
    """
    height, width = values.shape[-2:]
    block = -(-max(height, width) // longest)
    if block <= 1:
        return values
    rows, columns = np.arange(0, height, block), np.arange(0, width, block)
    sums = np.add.reduceat(np.add.reduceat(values.astype(np.float64), rows, axis=-2), columns, axis=-1)
    counts = np.outer(np.diff(np.append(rows, height)), np.diff(np.append(columns, width)))
    return sums / counts


def numbered_tiles(
    steps: Sequence[int],
    pictures: Sequence[Sequence[np.ndarray]],
    names: Sequence[str],
    *,
    scale: ColourScale | None,
    columns: int = 8,
    largest: float = 0.9,
) -> tuple[tuple[int, str], ...]:
    """`pictures` (step, tile) in rows of `columns`, each with its name above, as frames (step, svg)."""
    gap, head, last = 0.06, 0.16, pictures[-1]
    columns = min(columns, len(last))
    height, width = last[0].shape[:2]
    side = min(largest, SHEET_WIDTH / columns - gap)
    tall = min(1.2, side * height / width)
    side = min(side, tall * width / height)
    bottom = 0.66 if scale is not None else 0.06
    sheet = PictureSheet(-(-len(last) // columns) * (head + tall + gap) + bottom)
    numbers = []
    for place, (picture, name) in enumerate(zip(last, names, strict=True)):
        left, top = place % columns * (side + gap) + 0.02, place // columns * (head + tall + gap) + head
        sheet.words(left, top - 0.145, name, size=8)
        numbers.append(sheet.picture(picture, left, top, side, tall))
    if scale is not None:
        sheet.scale(scale, 0.3, sheet.height - 0.62)
    return sheet.frames(steps, [dict(zip(numbers, item, strict=True)) for item in pictures])
