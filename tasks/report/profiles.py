"""Charts of scores by layer, small charts side by side, and spectra coloured by step, in the house style."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stratascope.tasks.report.style import COLOURS, INK, new_axes, quiet, step_axis, to_svg
from stratascope.tasks.report.text import plain_number, plain_step, shortened

_MARKERS = ("o", "s", "^", "D", "v", "P")

Series = Mapping[str, tuple[Sequence[int], Sequence[float]]]


def layer_profile(
    layers: Sequence[str],
    series: Mapping[str, tuple[Sequence[float], Sequence[float], Sequence[float]]],
    label: str,
    *,
    logarithmic: bool = False,
    mark: Mapping[str, float] | None = None,
) -> str:
    """(value, low, high) of each of `layers`, the first one on top, as points with bars, for each name; as SVG.

    `mark` draws a thin line across all layers at a named value.
    """
    from matplotlib.ticker import LogLocator

    figure, axes = new_axes(6.2, max(2.2, 0.27 * len(layers) * max(1.0, 0.6 * len(series)) + 1.2))
    places = np.arange(len(layers), dtype=float)
    for number, (name, (values, lows, highs)) in enumerate(series.items()):
        heights = places + 0.22 * (number - (len(series) - 1) / 2)
        points, ends = np.asarray(values, float), np.array([lows, highs], float)
        colour = COLOURS[number % len(COLOURS)]
        axes.hlines(heights, *np.where(np.isfinite(ends), ends, points), color=colour, linewidth=1.6, alpha=0.55)
        axes.plot(
            points, heights, linestyle="", color=colour, marker=_MARKERS[number % len(_MARKERS)], markersize=5.5,
            label=shortened(name, 30),
        )  # fmt: skip
    for number, (name, value) in enumerate((mark or {}).items(), len(series)):
        colour = COLOURS[number % len(COLOURS)]
        axes.axvline(value, color=colour, linewidth=1.3, linestyle="--", label=shortened(name, 30))
    axes.set_yticks(places, [shortened(name, 26) for name in layers])
    axes.set_ylim(len(layers) - 0.4, -0.6)
    axes.grid(True, axis="x", color=INK, alpha=0.13, linewidth=0.7)
    axes.grid(False, axis="y")
    axes.set_xlabel(label)
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlabel(f"{label}, logarithmic")
        low, high = axes.get_xlim()
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high / low < 100 else (1.0,)))
        axes.xaxis.set_minor_locator(LogLocator(subs=()))
    _legend_above(axes)
    return to_svg(figure)


def panels(charts: Mapping[str, tuple[Series, str, bool]]) -> str:
    """Charts over training steps, two in a row, by title: lines by name, the label of their axis, whether logarithmic."""
    from matplotlib.figure import Figure

    rows = -(-len(charts) // 2)
    figure = Figure(figsize=(6.6, 2.45 * rows), dpi=72, layout="constrained")
    for place, (title, (series, label, logarithmic)) in enumerate(charts.items()):
        axes: Any = figure.add_subplot(rows, 2, place + 1)
        quiet(axes)
        every: list[int] = []
        for number, (name, (steps, values)) in enumerate(series.items()):
            axes.plot(
                steps, values, color=COLOURS[number % len(COLOURS)], marker=_MARKERS[number % len(_MARKERS)],
                markersize=3, linewidth=1.6, label=shortened(name, 24),
            )  # fmt: skip
            every += list(steps)
        step_axis(axes, every or [0])
        axes.set_title(title, fontsize=10.5, color=INK, loc="left")
        axes.set_ylabel(label)
        finite = [value for _, values in series.values() for value in values if np.isfinite(value)]
        if logarithmic and finite and min(finite) > 0 and max(finite) / min(finite) > 20:
            axes.set_yscale("log")
            axes.set_ylabel(f"{label}, log.")
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)
    return to_svg(figure)


def spectra(found: Mapping[int, np.ndarray], label: str) -> str:
    """For each step a line of positive values (rank,) over their rank, both logarithmic, coloured by the step's order."""
    from matplotlib import colormaps
    from matplotlib.ticker import FuncFormatter, LogLocator

    figure, axes = new_axes(6.2, 3.6)
    shades = colormaps["cividis"]
    for place, (step, values) in enumerate(found.items()):
        kept = values[values > 1e-7 * values.max(initial=0.0)] if len(values) else values
        axes.plot(
            np.arange(1, len(kept) + 1), kept, color=shades(0.92 * place / max(1, len(found) - 1)), linewidth=1.7,
            label=f"step {plain_step(step)}", marker="o" if len(kept) < 12 else "", markersize=3,
        )  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="rank, logarithmic", ylabel=f"{label}, logarithmic")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(numticks=6))
        axis.set_minor_locator(LogLocator(subs=()))
        axis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(float(f"{value:.6g}"))))
    axes.legend(
        loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9, labelcolor=INK, handlelength=1.4
    )
    return to_svg(figure)


def _legend_above(axes: Any) -> None:
    axes.legend(
        loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False, fontsize=9.5, labelcolor=INK, ncols=3,
        handletextpad=0.4, columnspacing=1.2,
    )  # fmt: skip
