"""The look of every figure: one palette, quiet axes, and text that follows the page's light or dark theme."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

# Okabe and Ito's palette for colour-blind readers, extended by lightness; the black became a blue-grey.
COLOURS = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8A7A00", "#7A5195", "#6E7F8D", "#B03A5B",
)  # fmt: skip
_INK = "#123456"
"""Stands for the page's text colour while Matplotlib draws."""
_counter = [0]


def new_axes(width: float = 7.2, height: float = 3.4) -> tuple[Any, Any]:
    """A figure of `width` × `height` inches and its axes, in the house style."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    quiet(axes)
    return figure, axes


def quiet(axes: Any) -> None:
    """Remove what carries no information from `axes`."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(_INK)
        axes.spines[side].set_alpha(0.35)
    axes.tick_params(colors=_INK, labelsize=9, length=3)
    axes.xaxis.label.set_color(_INK)
    axes.yaxis.label.set_color(_INK)
    axes.grid(True, axis="y", color=_INK, alpha=0.12, linewidth=0.7)
    axes.set_axisbelow(True)


def to_svg(figure: Any) -> str:
    """`figure` as SVG to stand inside a page: text stays text, ink follows the theme, equal figures give equal bytes."""
    import matplotlib

    settings: Any = {"svg.hashsalt": "stratascope", "svg.fonttype": "none", "font.family": "sans-serif"}
    with matplotlib.rc_context(settings):
        stream = io.StringIO()
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"#123456", "currentColor", text)
    # Text drawn in Matplotlib's default black follows the theme too.
    text = text.replace("#000000", "currentColor")
    text = re.sub(r'(<text [^>]*style=")', r"\1fill: currentColor; ", text)
    text = re.sub(r'font: [^;"]*px [^;"]*', lambda match: re.sub(r"px .*", "px inherit", match.group()), text)
    return re.sub(r'<svg ([^>]*?)width="[\d.]+pt" height="[\d.]+pt"', r'<svg \1role="img"', text, count=1)


def step_axis(axes: Any, steps: Sequence[int]) -> None:
    """Label the horizontal axis with training steps; logarithmic near 0 where steps are spread widely."""
    axes.set_xlabel("training step")
    positive = [step for step in steps if step > 0]
    if positive and max(positive) / min(positive) > 30:
        axes.set_xscale("symlog", linthresh=max(1, min(positive)))
        axes.set_xlim(0, max(steps) * 1.05)


def lines(
    series: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    label: str,
    *,
    logarithmic: bool = False,
    height: float = 3.4,
) -> str:
    """One line over training steps for each name, as SVG; lines are named at their end where there are few."""
    figure, axes = new_axes(height=height)
    every: list[int] = []
    for number, (name, (steps, values)) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        style = ("-", "--", ":", "-.")[number // len(COLOURS) % 4]
        axes.plot(steps, values, style, marker="o", markersize=3, linewidth=1.6, color=colour, label=name)
        every += list(steps)
    step_axis(axes, every or [0])
    axes.set_ylabel(label)
    if logarithmic and all(value > 0 for _, values in series.values() for value in values if np.isfinite(value)):
        axes.set_yscale("log")
    if len(series) > 1:
        columns = 1 if len(series) <= 14 else 2
        axes.legend(
            loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8, ncols=columns, labelcolor=_INK
        )
    return to_svg(figure)


def heatmap(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], label: str, row_label: str, column_label: str
) -> str:
    """A matrix (row, column) as coloured cells with a scale, as SVG; cells without a number stay empty."""
    height = max(2.2, 0.24 * len(rows) + 1.2)
    figure, axes = new_axes(height=height)
    axes.grid(False)
    picture = axes.imshow(values, aspect="auto", cmap="cividis", interpolation="nearest")
    axes.set_yticks(range(len(rows)), rows)
    shown = range(0, len(columns), max(1, len(columns) // 12))
    axes.set_xticks(list(shown), [columns[place] for place in shown], rotation=35, ha="right")
    axes.set_xlabel(column_label)
    axes.set_ylabel(row_label)
    bar = figure.colorbar(picture, ax=axes, pad=0.015)
    bar.set_label(label, color=_INK)
    bar.ax.tick_params(colors=_INK, labelsize=8)
    bar.outline.set_visible(False)
    return to_svg(figure)
