"""A map that moves through training, as one file that can be sent or shown on a slide."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stratascope.tasks.report.svg import COLOURS
from stratascope.tasks.report.text import plain_step, shortened, visible

_SIDE = 440
_LEGEND = 150
_HEAD = 34
_SHARP = 2
"""Drawn so many times larger, then shrunk: smooth edges."""
_MOST_PICTURES = 90
_PAPER, _INK = (255, 255, 255), (29, 37, 48)
_LINES = 18
"""So many names of classes at most."""


def animated_points(
    steps: Sequence[int], maps: np.ndarray, groups: np.ndarray | None, names: Mapping[int, str], title: str
) -> bytes:
    """A GIF of points (step, sample, 2), coloured by `groups` (sample,), that move from step to step and stay a while.

    All steps share one scale. Equal input gives equal bytes with one version of Pillow.
    """
    from PIL import Image

    between = max(1, min(6, _MOST_PICTURES // max(1, len(steps))))
    edge = max(float(np.abs(maps).max()), 1e-300) * 1.05
    places = (maps.astype(np.float64) / edge * [1, -1] + 1) / 2 * _SIDE
    colours = np.zeros(maps.shape[1], int) if groups is None else groups % len(COLOURS)
    palette = _palette()
    background = _background(groups, names, title)
    frames, times = [], []
    for number, step in enumerate(steps):
        ahead = range(between) if number + 1 < len(steps) else range(1)
        for part in ahead:
            # Slow at both ends, so that the eye rests at the true maps.
            share = (1 - np.cos(np.pi * part / between)) / 2
            here = places[number] * (1 - share) + places[min(number + 1, len(steps) - 1)] * share
            drawn = _drawn(background, here, colours, f"step {plain_step(int(step))}")
            frames.append(drawn.quantize(palette=palette, dither=Image.Dither.NONE))
            times.append(700 if part == 0 else 70)
    times[-1] = 1800
    stream = io.BytesIO()
    frames[0].save(
        stream, "GIF", save_all=True, append_images=frames[1:], duration=times, loop=0, optimize=False, disposal=1
    )
    return stream.getvalue()


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _palette() -> Any:
    """The colours that can occur: each of the points' and the ink, in steps towards the paper."""
    from PIL import Image

    entries = [_PAPER]
    for colour in [*map(_rgb, COLOURS), _INK]:
        for share in np.linspace(0.25, 1, 8):
            entries.append(tuple(round(p + (c - p) * share) for p, c in zip(_PAPER, colour, strict=True)))
    found = Image.new("P", (1, 1))
    found.putpalette([value for entry in entries for value in entry])
    return found


def _font(size: int) -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _background(groups: np.ndarray | None, names: Mapping[int, str], title: str) -> Any:
    """Everything that stands still, at the sharp size."""
    from PIL import Image, ImageDraw

    legend = _LEGEND if groups is not None and names else 0
    picture = Image.new("RGB", ((_SIDE + legend) * _SHARP, (_SIDE + _HEAD) * _SHARP), _PAPER)
    brush = ImageDraw.Draw(picture)
    brush.text((12 * _SHARP, 8 * _SHARP), visible(shortened(title, 46)), fill=_INK, font=_font(15 * _SHARP))
    for line, (group, name) in enumerate(list(names.items())[:_LINES] if legend else ()):
        top, left = (_HEAD + 12 + 22 * line) * _SHARP, (_SIDE + 8) * _SHARP
        colour = _rgb(COLOURS[group % len(COLOURS)])
        brush.ellipse((left, top + 3 * _SHARP, left + 10 * _SHARP, top + 13 * _SHARP), fill=colour)
        brush.text((left + 16 * _SHARP, top), visible(shortened(name, 16)), fill=_INK, font=_font(13 * _SHARP))
    if legend and len(names) > _LINES:
        text = f"and {len(names) - _LINES} more"
        brush.text(
            ((_SIDE + 8) * _SHARP, (_HEAD + 12 + 22 * _LINES) * _SHARP), text, fill=_INK, font=_font(13 * _SHARP)
        )
    return picture


def _drawn(background: Any, places: np.ndarray, colours: np.ndarray, label: str) -> Any:
    from PIL import ImageDraw

    picture = background.copy()
    brush = ImageDraw.Draw(picture)
    radius = (2.6 if len(places) <= 800 else 2.0) * _SHARP
    tones = [_rgb(colour) for colour in COLOURS]
    for (x, y), colour in zip((places + [0, _HEAD]) * _SHARP, colours, strict=True):
        brush.ellipse((x - radius, y - radius, x + radius, y + radius), fill=tones[colour])
    font = _font(15 * _SHARP)
    wide = brush.textlength(label, font=font)
    brush.text((_SIDE * _SHARP - wide - 12 * _SHARP, 8 * _SHARP), label, fill=_INK, font=font)
    return picture.reduce(_SHARP)
