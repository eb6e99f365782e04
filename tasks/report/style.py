"""The look of every figure: one palette, quiet axes, names at the ends of lines, scales above the maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stratascope.tasks.report.svg import COLOURS, INK, moving_frames, to_svg
from stratascope.tasks.report.text import plain_number, plain_step, shortened

__all__ = [
    "COLOURS", "INK", "cells", "heatmap", "lines", "moving_frames", "moving_heatmap", "moving_points",
    "new_axes", "quiet", "step_axis", "to_svg",
]  # fmt: skip

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
_MOST_NAMED = 24
"""So many lines can be named at their ends; of more, only the highest and the lowest are."""


def new_axes(width: float = 5.9, height: float = 3.2) -> tuple[Any, Any]:
    """A figure of `width` × `height` inches and its axes, in the house style.

    The page shows an inch as about 72 to 100 pixels: at 5.9 inches text is readable on a telephone and beside text.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=72, layout="constrained")
    axes = figure.add_subplot()
    quiet(axes)
    return figure, axes


def quiet(axes: Any) -> None:
    """Remove what carries no information from `axes`."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(INK)
        axes.spines[side].set_alpha(0.45)
    axes.tick_params(colors=INK, labelsize=10, length=3)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(INK)
        axis.label.set_size(10.5)
    axes.grid(True, axis="y", color=INK, alpha=0.13, linewidth=0.7)
    axes.set_axisbelow(True)


def step_axis(axes: Any, steps: Sequence[int]) -> None:
    """Label the horizontal axis with plain training steps; logarithmic near 0 where steps are spread widely."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    axes.set_xlabel("training step")
    positive = [step for step in steps if step > 0]
    if positive and max(positive) / min(positive) > 30:
        axes.set_xlabel("training step (logarithmic)")
        first = min(positive)
        axes.set_xscale("symlog", linthresh=first, linscale=0.5)
        axes.set_xlim(0 if min(steps) <= 0 else first, max(steps) * 1.04)
        powers = [10**power for power in range(12) if first <= 10**power <= max(steps)]
        stride = max(1, -(-len(powers) // 6))
        axes.xaxis.set_major_locator(FixedLocator([0, *powers[::stride]]))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain_step(value)))


def lines(
    series: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    label: str,
    *,
    logarithmic: bool = False,
    height: float = 3.2,
    bands: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    references: Mapping[str, tuple[float, float, float]] | None = None,
) -> str:
    """One line over training steps for each name, as SVG; each line is named at its end.

    `bands` gives the lower and upper ends of an interval for a name, drawn as a pale band. `references` are values
    (value, low, high) that no step changes, by name: dashed lines from side to side, with their intervals.
    """
    named = _named_lines(series)
    figure, axes = new_axes(height=max(height, 0.19 * (len(named) + len(references or {})) + 0.7))
    every: list[int] = []
    for number, (name, (steps, values)) in enumerate(series.items()):
        colour = COLOURS[number % len(COLOURS)]
        dense = len(steps) > 40
        axes.plot(
            steps, values, ("-", "--", ":", "-.")[number // len(COLOURS) % 4], color=colour,
            marker=_MARKERS[number % len(_MARKERS)], markersize=3 if not dense else 0, linewidth=1.7,
            alpha=1.0 if name in named else 0.35,
        )  # fmt: skip
        if bands and name in bands:
            axes.fill_between(steps, *bands[name], color=colour, alpha=0.16, linewidth=0)
        every += list(steps)
    constant = _references(axes, references or {}, every or [0])
    step_axis(axes, every or [0])
    axes.set_ylabel(label)
    if logarithmic and all(value > 0 for _, values in series.values() for value in values if np.isfinite(value)):
        axes.set_yscale("log")
        _few_log_ticks(axes)
        axes.set_ylabel(f"{label}, logarithmic")
    if len(series) + len(constant) > 1:
        ends = {name: (n, *series[name]) for n, name in enumerate(series) if name in named}
        _name_ends(axes, ends | constant)
    if len(named) < len(series):
        note = f"the {_MOST_NAMED // 2} highest and lowest of {len(series)} lines are named"
        axes.set_title(note, fontsize=9.5, color=INK, loc="left")
    return to_svg(figure)


def _references(
    axes: Any, references: Mapping[str, tuple[float, float, float]], steps: Sequence[int]
) -> dict[str, tuple[int, Sequence[int], Sequence[float]]]:
    """Draw dashed lines, coloured from the palette's end; what `_name_ends` needs to name them."""
    found: dict[str, tuple[int, Sequence[int], Sequence[float]]] = {}
    for place, (name, (value, low, high)) in enumerate(references.items()):
        number = 2 * len(COLOURS) - 1 - place % len(COLOURS)
        colour = COLOURS[number % len(COLOURS)]
        axes.axhline(value, color=colour, linewidth=1.4, linestyle="--")
        if np.isfinite(low) and np.isfinite(high):
            axes.axhspan(low, high, color=colour, alpha=0.1, linewidth=0)
        found[name] = number, [max(steps)], [value]
    return found


def _named_lines(series: Mapping[str, tuple[Sequence[int], Sequence[float]]]) -> set[str]:
    if len(series) <= _MOST_NAMED:
        return set(series)
    ends = sorted(series, key=lambda name: series[name][1][-1] if len(series[name][1]) else 0.0)
    return {*ends[: _MOST_NAMED // 2], *ends[-_MOST_NAMED // 2 :]}


def _few_log_ticks(axes: Any) -> None:
    """Powers of ten, and 2 and 5 between them where there is at most about one power."""
    from matplotlib.ticker import LogLocator

    low, high = axes.get_ylim()
    if np.log10(high / low) < 1.6:
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(LogLocator(subs=()))


def _name_ends(axes: Any, series: Mapping[str, tuple[int, Sequence[int], Sequence[float]]]) -> None:
    """Write each name at the right, as near to its line's last point as the other names allow."""
    axes.figure.draw_without_rendering()
    found: list[tuple[float, int, str]] = []
    for name, (number, steps, values) in series.items():
        finite = [(step, value) for step, value in zip(steps, values, strict=True) if np.isfinite(value)]
        if finite:
            _, height = axes.transAxes.inverted().transform(axes.transData.transform(finite[-1]))
            found.append((float(np.clip(height, 0, 1)), number, shortened(name, 24)))
    found.sort()
    heights = _apart([height for height, _, _ in found], 13.0 / axes.bbox.height)
    for height, (_, number, name) in zip(heights, found, strict=True):
        axes.plot(
            [1.02, 1.055], [height, height], ("-", "--", ":", "-.")[number // len(COLOURS) % 4],
            transform=axes.transAxes, clip_on=False, color=COLOURS[number % len(COLOURS)], linewidth=2.2,
            marker=_MARKERS[number % len(_MARKERS)], markersize=3.2, markevery=[1],
        )  # fmt: skip
        axes.annotate(name, (1.075, height), xycoords="axes fraction", va="center", fontsize=10, color=INK)


def _apart(heights: list[float], gap: float) -> list[float]:
    """Ascending `heights` moved as little as a simple sweep up and one down allow, until all are `gap` apart."""
    moved = list(heights)
    for place in range(1, len(moved)):
        moved[place] = max(moved[place], moved[place - 1] + gap)
    top = 1.02
    for place in range(len(moved) - 1, -1, -1):
        moved[place] = min(moved[place], top)
        top = moved[place] - gap
    return moved


def heatmap(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], label: str, row_label: str, column_label: str
) -> str:
    """A matrix (row, column) as coloured cells with a scale, as SVG; cells without a number stay empty."""
    figure, _ = cells(values, rows, columns, label, row_label, column_label)
    return to_svg(figure)


def moving_heatmap(
    values: np.ndarray,
    steps: Sequence[int],
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    row_label: str,
    column_label: str,
) -> tuple[tuple[int, str], ...]:
    """A matrix for each step (step, row, column), as frames (step, svg) on one scale of colours."""
    figure, picture = cells(values[-1], rows, columns, label, row_label, column_label, values)
    return moving_frames(
        figure, steps, [picture], lambda place: picture.set_data(np.ma.masked_invalid(values[place]))
    )


def cells(
    values: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    row_label: str,
    column_label: str,
    scale_of: np.ndarray | None = None,
) -> tuple[Any, Any]:
    """The figure and the picture in it of a matrix (row, column) as coloured cells, with a scale above.

    `scale_of` gives the colours their range where it is not that of `values`.
    """
    count = len(rows)
    row_height = 0.25 if count <= 16 else 0.19 if count <= 40 else min(0.15, 9.0 / count)
    figure, axes = new_axes(width=6.4, height=max(2.0, row_height * count + 1.3))
    axes.grid(False)
    finite = (values if scale_of is None else scale_of)[np.isfinite(values if scale_of is None else scale_of)]
    low, high = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    picture = axes.imshow(
        np.ma.masked_invalid(values), aspect="auto", cmap="cividis", interpolation="none",
        vmin=low, vmax=high if high > low else low + 1e-9 + abs(low) * 1e-6,
    )  # fmt: skip
    every = max(1, -(-count // 75))
    axes.set_yticks(range(0, count, every), [shortened(rows[place], 26) for place in range(0, count, every)])
    if row_height < 0.19:
        axes.tick_params(axis="y", labelsize=7.5, length=2)
    _column_names(axes, [shortened(str(name), 14) for name in columns])
    axes.set_xlabel(column_label)
    axes.set_ylabel(row_label)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    _colour_scale(figure, axes, picture, label, low, high)
    return figure, picture


def _column_names(axes: Any, columns: Sequence[str]) -> None:
    """As many names below the columns as fit side by side, the last one among them."""
    longest = max((len(name) for name in columns), default=1)
    stride = max(1, -(-len(columns) // max(2, int(56 / (longest + 1.3)))))
    shown = list(range(len(columns) - 1, -1, -stride))[::-1]
    axes.set_xticks(shown, [columns[place] for place in shown])


def _colour_scale(figure: Any, axes: Any, picture: Any, label: str, low: float, high: float) -> None:
    """The scale of colours lies above the map, where it takes no width away from it."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    bar = figure.colorbar(
        picture, ax=axes, location="top", shrink=0.55, anchor=(0.0, 0.0), pad=0.02, aspect=28,
        ticks=MaxNLocator(4) if high > low else [low],
    )  # fmt: skip
    bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(float(f"{value:.6g}"))))
    bar.set_label(label, color=INK, fontsize=10)
    bar.ax.tick_params(colors=INK, labelsize=9, length=2)
    bar.outline.set_visible(False)


def moving_points(
    steps: Sequence[int],
    maps: np.ndarray,
    groups: np.ndarray | None = None,
    names: Mapping[int, str] | None = None,
    *,
    radius: float = 1.7,
) -> tuple[tuple[int, str], ...]:
    """Points (step, sample, 2), coloured by `groups` (sample,) of class numbers, as frames (step, svg).

    All steps share their axes, which have one scale in both directions.
    """
    figure, axes = new_axes(5.9, 4.5)
    axes.grid(False)
    edge = float(np.nanmax(np.abs(maps))) * 1.04
    axes.set(xlim=(-edge, edge), ylim=(-edge, edge), xlabel="component 1", ylabel="component 2")
    axes.set_aspect("equal")
    axes.tick_params(labelsize=9)
    kinds = [0] if groups is None else sorted({int(value) for value in groups})
    clouds = {}
    for kind in kinds:
        inside = np.ones(maps.shape[1], bool) if groups is None else groups == kind
        cloud = axes.scatter(
            [], [], s=(2 * radius) ** 2, color=COLOURS[kind % len(COLOURS)], alpha=0.85, linewidths=0
        )
        clouds[kind] = (cloud, inside)
    if groups is not None and names and len(kinds) <= 40:
        _name_colours(axes, [(names.get(kind, str(kind)), COLOURS[kind % len(COLOURS)]) for kind in kinds])

    def update(place: int) -> None:
        for cloud, inside in clouds.values():
            cloud.set_offsets(maps[place][inside])

    return moving_frames(figure, steps, [cloud for cloud, _ in clouds.values()], update)


def _name_colours(axes: Any, entries: Sequence[tuple[str, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linestyle="", marker="o", markersize=6, color=colour) for _, colour in entries]
    axes.legend(
        handles, [shortened(name, 18) for name, _ in entries], loc="center left", bbox_to_anchor=(1.0, 0.5),
        frameon=False, fontsize=10, labelcolor=INK, ncols=1 if len(entries) <= 18 else 2, handletextpad=0.2,
    )  # fmt: skip
