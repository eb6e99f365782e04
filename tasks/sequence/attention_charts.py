"""Charts of attention: matrices with words on both axes, a grid of all heads, boxes by layer, lag profiles, heat maps of heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stratascope.tasks.report.style import COLOURS, INK, new_axes, quiet
from stratascope.tasks.report.svg import moving_frames, to_svg
from stratascope.tasks.report.text import plain_number, shortened

_FEW = 14
"""Matrices of at most so many tokens a side stand two in a row."""
_LEAST = 1e-3


def matrix_panels(
    steps: Sequence[int],
    matrices: Sequence[np.ndarray],
    titles: Sequence[str],
    words: Sequence[tuple[Sequence[str], Sequence[str]]],
    labels: tuple[str, str],
) -> tuple[tuple[int, str], ...]:
    """For each panel weights (step, query, key), as frames (step, svg); black is 1, white is 0, in all panels and steps.

    `words` are those of the queries and of the keys of each panel.
    """
    from matplotlib.figure import Figure

    longest = max(max(len(one), len(other)) for one, other in words)
    columns = 2 if longest <= _FEW and len(matrices) > 1 else 1
    rows = -(-len(matrices) // columns)
    width = 7.2
    cell = min(0.3, (width / columns - 1.3) / max(len(keys) for _, keys in words))
    tall = max(len(queries) for queries, _ in words) * cell + 1.35
    figure = Figure(figsize=(width, rows * tall + 0.5), dpi=72, layout="constrained")
    pictures: list[Any] = []
    for place, (matrix, title, (queries, keys)) in enumerate(zip(matrices, titles, words, strict=True)):
        axes: Any = figure.add_subplot(rows, columns, place + 1)
        quiet(axes)
        axes.grid(False)
        pictures.append(
            axes.imshow(matrix[-1], cmap="Greys", vmin=0, vmax=1, interpolation="none", aspect="equal")
        )
        _name_tokens(axes, queries, keys, 72 * cell)
        axes.set_title(shortened(title, 46 if columns == 2 else 90), fontsize=10, color=INK, loc="left")
        axes.set_ylabel(labels[0])
        axes.set_xlabel(labels[1])
        for side in ("top", "right", "left", "bottom"):
            axes.spines[side].set(visible=True, alpha=0.3, color=INK)
    bar = figure.colorbar(pictures[0], ax=figure.axes, location="top", shrink=0.35, aspect=26, pad=0.03, ticks=[0, 0.5, 1])  # fmt: skip
    bar.set_label("weight", color=INK, fontsize=10)
    bar.ax.tick_params(colors=INK, labelsize=9, length=2)

    def update(place: int) -> None:
        for picture, matrix in zip(pictures, matrices, strict=True):
            picture.set_data(matrix[place])

    return moving_frames(figure, steps, pictures, update)


def _name_tokens(axes: Any, queries: Sequence[str], keys: Sequence[str], points: float) -> None:
    """All tokens by their words: sizes fit the cells."""
    size = float(np.clip(points * 0.82, 5.5, 10))
    axes.set_xticks(range(len(keys)), [shortened(word, 12) for word in keys])
    for label, word in zip(axes.get_xticklabels(), keys, strict=True):
        label.set_rotation(90 if len(word) > 2 else 0)
    axes.set_yticks(range(len(queries)), [shortened(word, 12) for word in queries])
    axes.tick_params(labelsize=size, length=1.5)


def head_grid(
    layers: Mapping[str, Mapping[int, np.ndarray]], layer_label: str = "layer", head_label: str = "head"
) -> str:
    """A thumbnail of the weights (query, key) of each head, by layer and number of the head, as SVG.

    Black is what `thumbnail_bound` says; queries go down, keys to the right.
    """
    from matplotlib.figure import Figure

    count = max(len(heads) for heads in layers.values())
    left, width = 1.65, 7.2
    side = min(1.15, (width - left) / count - 0.08)
    shapes = [matrix.shape for heads in layers.values() for matrix in heads.values()]
    tall = side * min(1.6, max(shape[0] / shape[1] for shape in shapes))
    step = tall + 0.24
    height = 0.42 + len(layers) * step
    figure = Figure(figsize=(width, height), dpi=72)
    canvas: Any = figure.add_axes((0, 0, 1, 1))
    canvas.set(xlim=(0, width), ylim=(height, 0))
    canvas.axis("off")
    canvas.text(0.08, 0.2, f"{layer_label}, {head_label} above", fontsize=9.5, color=INK, va="center")
    for row, (name, heads) in enumerate(layers.items()):
        above = 0.42 + row * step + 0.14
        canvas.text(
            left - 0.12, above + tall / 2, shortened(name, 20), ha="right", va="center", fontsize=9, color=INK
        )
        for column, (head, matrix) in enumerate(heads.items()):
            start = left + column * (side + 0.08)
            own: Any = figure.add_axes((start / width, 1 - (above + tall) / height, side / width, tall / height))
            own.imshow(matrix, cmap="Greys", vmin=0, vmax=thumbnail_bound(matrix), interpolation="none", aspect="auto")  # fmt: skip
            own.set(xticks=[], yticks=[])
            for spine in own.spines.values():
                spine.set(color=INK, alpha=0.35, linewidth=0.6)
            canvas.text(
                start + side / 2, above - 0.03, str(head), ha="center", va="bottom", fontsize=8.5, color=INK
            )
    return to_svg(figure)


def thumbnail_bound(matrix: np.ndarray) -> float:
    """The weight at which a thumbnail (query, key) is black: only one weight of a hundred is larger.

    The largest would not do: the first row of a causal head is always 1.
    """
    return max(float(np.nanquantile(matrix, 0.99)), _LEAST)


def boxes_by_layer(charts: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """For each chart, by its label, values (head,) by layer: a box over the heads and a dot for each, the first layer on top."""
    from matplotlib.figure import Figure

    layers = list(next(iter(charts.values())))
    figure = Figure(figsize=(7.2, max(2.0, 0.36 * len(layers) + 1.0)), dpi=72, layout="constrained")
    for place, (label, values) in enumerate(charts.items()):
        axes: Any = figure.add_subplot(1, len(charts), place + 1)
        quiet(axes)
        known = [item[np.isfinite(item)] for item in values.values()]
        wide = [(number, item) for number, item in enumerate(known) if len(item) > 3]
        if wide:
            axes.boxplot(
                [item for _, item in wide], positions=[number for number, _ in wide], orientation="horizontal", widths=0.6,
                showfliers=False, patch_artist=True, boxprops={"facecolor": f"{COLOURS[0]}33", "edgecolor": COLOURS[0]},
                medianprops={"color": COLOURS[0], "linewidth": 2}, whiskerprops={"color": COLOURS[0]},
                capprops={"color": COLOURS[0]}, manage_ticks=False,
            )  # fmt: skip
        for number, item in enumerate(known):
            # Dots of one box stand apart by their number, so that equal ones are seen.
            spread = np.linspace(-0.16, 0.16, len(item)) if len(item) > 1 else np.zeros(len(item))
            axes.plot(item, number + spread, linestyle="", marker="o", markersize=4, color=COLOURS[4], alpha=0.8)
        axes.set_ylim(len(layers) - 0.5, -0.5)
        axes.set_yticks(
            range(len(layers)), [shortened(name, 24) for name in layers] if place == 0 else [""] * len(layers)
        )
        axes.grid(True, axis="x", color=INK, alpha=0.13, linewidth=0.7)
        axes.grid(False, axis="y")
        axes.set_xlabel(label)
    return to_svg(figure)


def lag_curves(lags: Sequence[int], curves: Mapping[str, np.ndarray], others: Sequence[np.ndarray]) -> str:
    """Weight by lag (lag,) of named heads, and pale lines of all `others`; as SVG."""
    figure, axes = new_axes(7.0, 3.2)
    for values in others:
        axes.plot(lags, values, color=INK, alpha=0.12, linewidth=1)
    for number, (name, values) in enumerate(curves.items()):
        style = ("-", "--", ":", "-.")[number // len(COLOURS) % 4]
        axes.plot(lags, values, style, color=COLOURS[number % len(COLOURS)], linewidth=1.7, marker="o", markersize=3, label=shortened(name, 34))  # fmt: skip
    axes.set_xlabel("lag: tokens from the key to the query (1: the token before)")
    axes.set_ylabel("mean weight")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=9, labelcolor=INK, ncols=2)
    return to_svg(figure)


def heat_maps_of_heads(
    steps: Sequence[int], maps: Mapping[str, np.ndarray], layers: Sequence[str], top: float = 1.0
) -> tuple[tuple[int, str], ...]:
    """For each score, by its name, values (step, layer, head) as coloured cells from 0 to `top`, as frames (step, svg)."""
    from matplotlib.figure import Figure

    heads = next(iter(maps.values())).shape[2]
    count = len(maps)
    figure = Figure(figsize=(7.2, max(1.9, 0.3 * len(layers) + 1.5)), dpi=72, layout="constrained")
    pictures = []
    for place, (name, values) in enumerate(maps.items()):
        axes: Any = figure.add_subplot(1, count, place + 1)
        quiet(axes)
        axes.grid(False)
        pictures.append(axes.imshow(np.ma.masked_invalid(values[-1]), cmap="cividis", vmin=0, vmax=top, aspect="auto", interpolation="none"))  # fmt: skip
        axes.set_title(name, fontsize=10, color=INK, loc="left")
        every = max(1, -(-heads // max(4, 24 // count)))
        axes.set_xticks(range(0, heads, every))
        axes.set_xlabel("head")
        axes.set_yticks(
            range(len(layers)), [shortened(layer, 22) for layer in layers] if place == 0 else [""] * len(layers)
        )
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
    bar = figure.colorbar(pictures[0], ax=figure.axes, location="right", shrink=0.9, aspect=18, pad=0.02, ticks=[0, top / 2, top])  # fmt: skip
    bar.ax.tick_params(colors=INK, labelsize=9, length=2)
    bar.outline.set_visible(False)
    bar.ax.set_yticklabels([plain_number(float(f"{tick:.2g}")) for tick in (0, top / 2, top)])

    def update(place: int) -> None:
        for picture, values in zip(pictures, maps.values(), strict=True):
            picture.set_data(np.ma.masked_invalid(values[place]))

    return moving_frames(figure, steps, pictures, update)
