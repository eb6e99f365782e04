"""Pictures whose horizontal axis is a number of steps back, or onwards, within a sequence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stratascope.tasks.report.text import plain_number, shortened

BACK = "steps back from the loss"
_FAINT = 1e-12
_MARKED = 30
"""Lines with at most so many points have them marked."""


@dataclass(frozen=True)
class Curve:
    """Values over lags, with an interval or none."""

    lags: Sequence[float]
    values: Sequence[float] | np.ndarray
    low: Sequence[float] | np.ndarray = field(default_factory=list)
    high: Sequence[float] | np.ndarray = field(default_factory=list)
    line: str = "-"
    colour: int | None = None
    """Its place in the palette; None: that of the curve."""

    @classmethod
    def banded(cls, lags: Sequence[float], band: np.ndarray, line: str = "-", colour: int | None = None) -> Curve:
        """From `band` (3, lag): mean, low and high."""
        return cls(lags, band[0], band[1], band[2], line, colour)


def lag_curves(
    curves: Mapping[str, Curve],
    lag_label: str,
    label: str,
    *,
    logarithmic: bool = False,
    ratios: bool = False,
    level: tuple[float, str] | None = None,
    height: float = 2.9,
    columns: int = 2,
) -> str:
    """Named curves over the lag, as SVG, their names above. `ratios` spaces the lags, from 1 on, by their ratios.

    On a logarithmic axis nothing below 1e-12 of the largest value is drawn: it is rounding. `level` is a height that is
    marked with a dashed line, and what it is called.
    """
    from stratascope.tasks.report.style import COLOURS, new_axes, to_svg

    # Their names need room above the axes.
    wide = max((len(name) for name in curves), default=0) <= 24
    figure, axes = new_axes(height=height + 0.2 * -(-len(curves) // (columns if wide else 1)))
    top = max((float(np.nanmax(curve.values)) for curve in curves.values() if np.isfinite(curve.values).any()), default=1.0)  # fmt: skip
    for place, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[(place if curve.colour is None else curve.colour) % len(COLOURS)]
        values = np.asarray(curve.values, np.float64)
        if logarithmic:
            values = np.where(values > _FAINT * top, values, np.nan)
        marker = "o" if len(values) <= _MARKED else ""
        axes.plot(curve.lags, values, curve.line, color=colour, linewidth=1.8, marker=marker, markersize=3.2, label=shortened(name, 40))  # fmt: skip
        if len(curve.low):
            low = np.asarray(curve.low, np.float64)
            bottom = np.where(low > _FAINT * top, low, np.nan) if logarithmic else low
            axes.fill_between(curve.lags, bottom, curve.high, color=colour, alpha=0.16, linewidth=0)
    if level is not None:
        _mark(axes, *level)
    if logarithmic:
        axes.set_yscale("log")
        few_powers(axes)
    if ratios:
        _by_ratios(axes, sorted({lag for curve in curves.values() for lag in curve.lags}))
    _name(axes, lag_label + (" (logarithmic)" if ratios else ""), label + (", logarithmic" if logarithmic else ""), columns)  # fmt: skip
    return to_svg(figure)


def few_powers(axes: Any) -> None:
    """Ticks of a logarithmic axis at powers of ten, and at 2 and 5 between them where there are hardly two powers."""
    from matplotlib.ticker import LogLocator

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if np.log10(high / low) < 1.6 else (1.0,)))
    axes.yaxis.set_minor_locator(LogLocator(subs=()))


def _mark(axes: Any, height: float, name: str) -> None:
    from stratascope.tasks.report.style import INK

    axes.axhline(height, color=INK, alpha=0.6, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate(
        name, (0.005, height), xycoords=("axes fraction", "data"), ha="left", va="bottom", fontsize=9, color=INK
    )


def _by_ratios(axes: Any, lags: Sequence[float]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set_xscale("log", base=2)
    stride = max(1, -(-len(lags) // 10))
    axes.xaxis.set_major_locator(FixedLocator(list(lags[::-stride][::-1])))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: plain_number(value)))


def _name(axes: Any, lag_label: str, label: str, columns: int) -> None:
    from stratascope.tasks.report.style import INK

    axes.set_xlabel(lag_label)
    axes.set_ylabel(label)
    longest = max((len(text) for text in axes.get_legend_handles_labels()[1]), default=0)
    columns = columns if longest <= 24 else 1
    axes.legend(
        loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False, fontsize=9.5, labelcolor=INK, ncols=columns,
        handlelength=2.2, columnspacing=1.6,
    )  # fmt: skip


def step_table(values: np.ndarray, loss_steps: Sequence[int], backwards: bool, time: int) -> np.ndarray:
    """(loss step, source step) of `values` (loss step, lag); NaN where nothing was asked."""
    found = np.full((len(loss_steps), time), np.nan)
    for row, step in enumerate(loss_steps):
        for lag, value in enumerate(values[row]):
            source = step + lag if backwards else step - lag
            if 0 <= source < time:
                found[row, source] = value
    return found


def word_bars(words: Sequence[str], values: Sequence[float], label: str, marked: int | None = None) -> str:
    """A bar for each token of a stretch of a sequence, the token below it, as SVG; `marked` is drawn in another colour."""
    from stratascope.tasks.report.style import COLOURS, new_axes, to_svg

    longest = max((len(word) for word in words), default=1)
    figure, axes = new_axes(width=6.4, height=2.6 + (0.06 * min(longest, 12) if longest > 2 else 0))
    colours = [COLOURS[1] if place == marked else COLOURS[0] for place in range(len(words))]
    axes.bar(range(len(words)), values, color=colours, width=0.8)
    stride = max(1, -(-len(words) // 64)) if longest <= 2 else max(1, -(-len(words) // 30))
    shown = list(range(len(words) - 1, -1, -stride))[::-1]
    axes.set_xticks(
        shown, [_printed(words[place]) for place in shown], rotation=0 if longest <= 2 else 90, fontsize=8.5
    )
    axes.set_xlim(-0.8, len(words) - 0.2)
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel(label)
    return to_svg(figure)


def _printed(word: str) -> str:
    return {" ": "␣", "\n": "↵", "\t": "→"}.get(word, shortened(word, 10))
