"""Text with a colour behind each token and a strip below it: blue above 0, orange below, the paler the nearer to 0.

The SVG is written here: Matplotlib needs a second for a page of letters, and a file five times as long.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from xml.sax.saxutils import escape

import numpy as np

from stratascope.tasks.report.svg import COLOURS
from stratascope.tasks.report.text import visible

ABOVE, BELOW, STRIP = (f"var(--c{COLOURS[place][1:].lower()})" for place in (0, 4, 2))
COLUMNS = 64
"""So many characters stand in a line at most."""
_CELL, _LINE, _LETTER, _SMALL = 7.8, 25, 12, 10.5
_LEGEND = 28
_BLANK = {"\n": "↵", " ": "", "\t": "→"}


@dataclass(frozen=True)
class TextPiece:
    """One text: its tokens, what colours each (-1 to 1), and the strip below it (0 to 1), which may be missing."""

    title: str
    words: Sequence[str]
    colour: np.ndarray
    strip: np.ndarray | None = None
    marked: tuple[int, int] | None = None
    """(start, stop) of tokens to put a frame around."""


def text_lines(
    words: Sequence[str], columns: int = COLUMNS, breaks: bool = True
) -> list[list[tuple[int, int, int]]]:
    """Lines of (token, column, width): a line ends behind the last of several line feeds (with
    `breaks`), and before it would grow beyond `columns`."""
    gap = 0 if 2 * sum(len(word) <= 1 for word in words) > len(words) else 1
    lines: list[list[tuple[int, int, int]]] = [[]]
    column = 0
    for number, word in enumerate(words):
        width = max(1, min(len(word), columns))
        if column and column + width > columns and word != "\n":
            lines.append([])
            column = 0
        lines[-1].append((number, column, width))
        column += width + gap
        if breaks and word == "\n" and words[number + 1 : number + 2] != ["\n"]:
            lines.append([])
            column = 0
    return [line for line in lines if line]


def coloured_text(
    pieces: Sequence[TextPiece],
    legend: str,
    strip_label: str = "",
    columns: int = COLUMNS,
    signed: bool = True,
    breaks: bool = True,
) -> str:
    """SVG of the texts below each other, each below its title; `legend` says what the colours mean.

    The colours run from -1 to 1, or from 0 to 1 where they are not `signed`; without `breaks` a line feed ends no line.
    """
    body = list(_legend(legend, strip_label, columns, signed))
    top = float(_LEGEND)
    for piece in pieces:
        body.append(_text(0, top + 14, piece.title, _SMALL, "font-weight:bold;fill-opacity:.75"))
        top += 21
        for line in text_lines(piece.words, columns, breaks):
            body += _line(piece, line, top)
            top += _LINE
        top += 6
    width = (columns + 1) * _CELL + 8
    return f'<svg viewBox="-5 0 {width:.0f} {top:.0f}" style="--w:{width:.0f}">{"".join(body)}</svg>'


def _line(piece: TextPiece, line: list[tuple[int, int, int]], top: float) -> Iterator[str]:
    """The rectangles, the strip, the letters and the frame of one line."""
    looks = [_look(float(piece.colour[number])) for number, _, _ in line]
    for look, members in groupby(zip(looks, line, strict=True), key=lambda pair: pair[0]):
        if look:
            inside = [cell for _, cell in members]
            yield _bar(inside[0][1], inside[-1][1] + inside[-1][2], top, 17, look)
    if piece.strip is not None:
        heights = [_height(float(piece.strip[number])) for number, _, _ in line]
        for height, group in groupby(zip(heights, line, strict=True), key=lambda pair: pair[0]):
            if height:
                held = [cell for _, cell in group]
                yield _bar(held[0][1], held[-1][1] + held[-1][2], top + 23.5 - height, height, f"fill:{STRIP}")
    letters = [(_BLANK.get(word, visible(word)), column, width) for word, column, width in ((piece.words[n], c, w) for n, c, w in line)]  # fmt: skip
    single = [(word, column) for word, column, width in letters if width == 1 and len(word) == 1]
    if single:
        places = " ".join(f"{(column + 0.5) * _CELL:.1f}" for _, column in single)
        yield f'<text x="{places}" y="{top + 13:.1f}" style="font-size:{_LETTER}px;text-anchor:middle">{escape("".join(word for word, _ in single))}</text>'
    for word, column, width in letters:
        if word and (width > 1 or len(word) > 1):
            shown = word if len(word) <= width else word[: max(width - 1, 1)] + "…"
            yield _text((column + width / 2) * _CELL, top + 13, shown, _LETTER, "text-anchor:middle")
    if piece.marked is not None:
        framed = [cell for cell in line if piece.marked[0] <= cell[0] < piece.marked[1]]
        if framed:
            yield _bar(
                framed[0][1],
                framed[-1][1] + framed[-1][2],
                top - 1,
                19,
                "fill:none;stroke:currentColor;stroke-width:1.4",
            )


def _look(value: float) -> str:
    """The fill of a token; empty where it has no colour to speak of."""
    strength = round(0.8 * min(abs(value), 1.0), 1) if np.isfinite(value) else 0.0
    return f"fill:{ABOVE if value > 0 else BELOW};fill-opacity:{strength:g}" if strength else ""


def _height(value: float) -> float:
    return 0.0 if not np.isfinite(value) or value <= 0 else round(1.5 + 4.0 * min(value, 1.0), 1)


def _bar(start: float, stop: float, top: float, height: float, look: str) -> str:
    return f'<rect x="{start * _CELL:.1f}" y="{top:.1f}" width="{(stop - start) * _CELL:.1f}" height="{height:.1f}" style="{look}"/>'


def _text(x: float, y: float, text: str, size: float, look: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" style="font-size:{size:g}px;{look}">{escape(visible(text))}</text>'


def _legend(legend: str, strip_label: str, columns: int, signed: bool) -> Iterator[str]:
    """A row of swatches above the texts, and what the strip means."""
    values = np.linspace(-1, 1, 9) if signed else np.linspace(0, 1, 6)
    first = "−1" if signed else "0"
    yield _text(0, 15, first, _SMALL)
    for place, value in enumerate(values):
        yield _bar(2.2 + place, 3.2 + place, 5, 12, _look(float(value)) or "fill:currentColor;fill-opacity:.06")
    end = 2.6 + len(values)
    yield _text(end * _CELL, 15, f"1   {legend}", _SMALL)
    if strip_label:
        yield _text(columns * _CELL, 15, strip_label, _SMALL, "text-anchor:end")
        left = columns - (5.7 * len(strip_label) + 18) / _CELL
        yield _bar(left, left + 1.6, 8, 6, f"fill:{STRIP}")
