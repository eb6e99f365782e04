"""Pictures for what happened when: maps of layer by step with marks, values with their intervals, and learning order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stratascope.tasks.report.style import COLOURS, INK, cells, new_axes, to_svg
from stratascope.tasks.report.text import shortened

_MARKS = (("o", COLOURS[4]), ("D", COLOURS[5]))


def marked_heatmap(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    marks: Mapping[str, Sequence[tuple[int, int]]],
) -> str:
    """A matrix (layer, step) as coloured cells, as SVG, with the (row, column) of each kind of mark drawn on them."""
    figure, _ = cells(values, rows, columns, label, "layer", "training step")
    axes = figure.axes[0]
    for (name, places), (shape, colour) in zip(marks.items(), _MARKS, strict=False):
        if not places:
            continue
        # The second kind is smaller, so that both can be seen in one cell.
        size = 62 if shape == "o" else 30
        axes.scatter(
            [column for _, column in places], [row for row, _ in places], s=size, marker=shape, facecolor=colour,
            edgecolor="white", linewidths=1.1, label=name, zorder=5,
        )  # fmt: skip
    if any(len(places) for places in marks.values()):
        figure.legend(
            loc="outside lower left", frameon=False, fontsize=10, labelcolor=INK, ncols=1, handletextpad=0.2,
            borderaxespad=0.0,
        )  # fmt: skip
    return to_svg(figure)


def values_with_intervals(
    names: Sequence[str], series: Mapping[str, Sequence[tuple[float, float, float]]], label: str
) -> str:
    """(value, low, high) of each name, one line below the other, in as many colours as `series` has, as SVG."""
    figure, axes = new_axes(5.9, 0.9 + 0.24 * len(names) * max(1, 0.7 * len(series)))
    axes.grid(True, axis="x", color=INK, alpha=0.13, linewidth=0.7)
    axes.grid(False, axis="y")
    for number, (name, values) in enumerate(series.items()):
        middle, low, high = np.array(values, float).T
        height = np.arange(len(names)) + (number - (len(series) - 1) / 2) * 0.3
        colour = COLOURS[number]
        axes.hlines(height, low, high, color=colour, linewidth=2.2, alpha=0.55)
        axes.scatter(middle, height, s=26, color=colour, marker="os"[number % 2], label=name, zorder=3)
    axes.set_yticks(range(len(names)), [shortened(name, 26) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.set_xlabel(label)
    if len(series) > 1:
        axes.legend(
            loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False, fontsize=10, labelcolor=INK,
            ncols=len(series), handletextpad=0.2,
        )  # fmt: skip
    return to_svg(figure)


def learning_order(right: np.ndarray, columns: Sequence[str], kinds: Sequence[tuple[str, int]]) -> str:
    """bool `right` (sample, step), already sorted, as a strip of two colours, as SVG.

    `kinds` names stretches of the samples from above, each with how many there are.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    figure, axes = new_axes(5.9, 4.2)
    axes.grid(False)
    colours = ListedColormap([COLOURS[1], COLOURS[0]])
    picture: Any = axes.imshow(right, aspect="auto", cmap=colours, vmin=0, vmax=1, interpolation="none")
    picture.set_rasterized(True)
    stride = max(1, -(-len(columns) // max(2, int(50 / (max(map(len, columns)) + 1.3)))))
    shown = list(range(len(columns) - 1, -1, -stride))[::-1]
    axes.set_xticks(shown, [columns[place] for place in shown])
    axes.set_xlabel("training step")
    top = 0
    ticks, names = [], []
    for name, count in kinds:
        if not count:
            continue
        if top:
            axes.axhline(top - 0.5, color="white", linewidth=1.6)
        ticks.append(top + count / 2 - 0.5)
        names.append(name)
        top += count
    axes.set_yticks(ticks, names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylabel("samples")
    handles = [Patch(color=COLOURS[0], label="right"), Patch(color=COLOURS[1], label="wrong")]
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False, fontsize=10, labelcolor=INK,
        ncols=2,
    )  # fmt: skip
    return to_svg(figure)
