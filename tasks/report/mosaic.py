"""Pictures of samples side by side, each with a few words below it; without pictures the words alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stratascope.storage.probes import Probe

_SIDE = 1.0
"""Of a picture; the unit of everything else."""
_GAP = 0.12
_WIDTH = 7.168
"""Inches of four pictures in a row; of more, each is smaller."""
_LONGEST = 96
"""A picture of more pixels a side is shown with every second, third … of them."""


@dataclass(frozen=True)
class Tile:
    """One sample: its picture, and lines of text (text, colour) below it, the first of them bold."""

    lines: tuple[tuple[str, str], ...]
    picture: np.ndarray | None = None
    frame: str = ""
    """A colour around it."""


def pictures_of(probe: Probe, rows: Sequence[int] | np.ndarray) -> list[np.ndarray] | None:
    """uint8 (y, x) or (y, x, channel) of each of `rows`; None where the samples are no images."""
    found = []
    for row in rows:
        picture = probe.pictures_at(slice(int(row), int(row) + 1))
        if picture is None:
            return None
        stride = -(-max(picture.shape[1:3]) // _LONGEST)
        picture = picture[0, ::stride, ::stride]
        found.append(picture[:, :, 0] if picture.shape[2] == 1 else picture)
    return found


def mosaic(tiles: Sequence[Tile | None], columns: int = 4) -> str:
    """`tiles` in rows of `columns`, as SVG; None leaves a place empty."""
    from matplotlib.figure import Figure as Canvas

    from stratascope.tasks.report.style import to_svg

    shown = [tile for tile in tiles if tile is not None]
    side = _SIDE if any(tile.picture is not None for tile in shown) else 0.0
    inch = _WIDTH / (columns * (_SIDE + _GAP))
    # Text keeps its size where pictures shrink.
    size = 1.6 / inch
    line = 0.135 * size
    text = line * max(len(tile.lines) for tile in shown) + 0.115 * size
    rows = -(-len(tiles) // columns)
    height = rows * (side + text + 0.08)
    canvas = Canvas(figsize=(_WIDTH, height * inch), dpi=72)
    # Each picture keeps its own pixels instead of becoming part of one that is resampled.
    canvas.suppressComposite = True
    axes = canvas.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, columns * (_SIDE + _GAP)), ylim=(height, 0))
    axes.axis("off")
    for number, tile in enumerate(tiles):
        if tile is None:
            continue
        left = number % columns * (_SIDE + _GAP) + _GAP / 2
        top = number // columns * (side + text + 0.08) + 0.03
        if tile.picture is not None:
            _place(axes, tile, left, top, columns)
        below = top + side + 0.05 * size
        for place, (words, colour) in enumerate(tile.lines):
            look: dict[str, Any] = {"fontsize": 9.5} if place else {"fontsize": 10.5, "weight": "bold"}
            drop = line * place + 0.015 * size if place else 0.0
            axes.text(left, below + drop, words, va="top", color=colour, **look)
    return to_svg(canvas)


def _place(axes: Any, tile: Tile, left: float, top: float, columns: int) -> None:
    assert tile.picture is not None
    height, width = tile.picture.shape[:2]
    scale = _SIDE / max(height, width)
    middle_x, middle_y = left + _SIDE / 2, top + _SIDE / 2
    half_x, half_y = width * scale / 2, height * scale / 2
    axes.imshow(
        tile.picture, cmap="gray", vmin=0, vmax=255, interpolation="none", aspect="auto",
        extent=(middle_x - half_x, middle_x + half_x, middle_y + half_y, middle_y - half_y),
    )  # fmt: skip
    if tile.frame:
        from matplotlib.patches import Rectangle

        corner = (middle_x - half_x, middle_y - half_y)
        axes.add_patch(Rectangle(corner, 2 * half_x, 2 * half_y, fill=False, edgecolor=tile.frame, linewidth=3))
    axes.set_xlim(0, columns * (_SIDE + _GAP))
