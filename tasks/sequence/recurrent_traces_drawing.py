"""What units hold while one sequence is read: a map of unit by token, and the lines of a few units with their gates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.report.text import counted, plain_number, plain_step, visible
from stratascope.tasks.representation.pictures import even_choice, figure_key, worded
from stratascope.tasks.sequence.recurrent_state_words import WORDS
from stratascope.tasks.sequence.stored_states import StoredLayer

_MOST_STEPS = 8
_MOST_UNITS = 28
_MOST_TOKENS = 56
"""So many tokens with a name fit side by side; time steps without one are drawn up to ten times as many."""
_MOST_LETTERS = 84
"""So many letters fit below the axis; words with more stand upright."""
_LINES = 4
_KEEPS = {"lstm": "forget", "gru": "update"}


@dataclass(frozen=True)
class _Trace:
    """One shown sample through the steps of training."""

    layer: StoredLayer
    steps: list[int]
    values: np.ndarray
    """float64 (step, time, unit), the padding cut off: tanh of the cell state, or the hidden state."""
    held: str
    """Which of the two."""
    words: list[str] | None
    sample: str
    length: int
    """How many real steps the sample has, more than are drawn where it is long."""
    constants: np.ndarray | None
    """float64 (unit,) at the newest step, where they belong to units."""


def trace_figures(layer: StoredLayer) -> Iterator[Figure]:
    """Both pictures of the first shown sample; none where no raw traces are stored."""
    trace = _read(layer)
    if trace is not None:
        yield _map(trace)
        yield _lines(trace)


def _read(layer: StoredLayer) -> _Trace | None:
    steps = even_choice(layer.steps_with("hidden"), _MOST_STEPS)
    if not steps:
        return None
    cell = layer.facts(steps[-1], "hidden")["cell"]
    name = "cell_state" if cell == "lstm" else "hidden"
    read = [layer.array(step, name) for step in steps]
    stored = [values[0].astype(np.float64) for values in read if values is not None and len(values)]
    if len(stored) != len(steps):
        return None
    every = np.stack(stored)
    real = np.flatnonzero(np.isfinite(every).all((0, 2)))
    if not len(real):
        return None
    words = layer.words(steps[-1], 0)
    kept = real[: _MOST_TOKENS if words is not None else 10 * _MOST_TOKENS]
    values = np.tanh(every[:, kept]) if name == "cell_state" else every[:, kept]
    source = layer.facts(steps[-1], "time_constant").get("source") if layer.steps_with("time_constant") else None
    return _Trace(
        layer,
        steps,
        values,
        "tanh of the cell state" if name == "cell_state" else "hidden state",
        None if words is None else [words[place] for place in kept],
        str(layer.sample_ids(steps[-1])[0]),
        len(real),
        layer.time_constants(steps[-1]) if source == "gate" else None,
    )


def _chosen(trace: _Trace, most: int) -> np.ndarray:
    """At most `most` of the units that move at the newest step, evenly from the longest memory to the shortest; where no
    memory is known by unit, those that move most."""
    spread = trace.values[-1].std(0)
    if trace.constants is None:
        return np.argsort(-spread, kind="stable")[:most]
    moving = np.flatnonzero(spread > 0.25 * spread.max())
    ranked = moving[np.argsort(-trace.constants[moving], kind="stable")] if len(moving) else np.arange(1)
    return ranked[even_choice(range(len(ranked)), most)]


def _map(trace: _Trace) -> Figure:
    from stratascope.tasks.report.style import INK, moving_frames, new_axes

    units = _chosen(trace, _MOST_UNITS)
    bound = max(1.0, float(np.abs(trace.values[:, :, units]).max()))
    drawing, axes = new_axes(7.6, 0.17 * len(units) + 1.7)
    axes.grid(False)
    picture = axes.imshow(
        trace.values[-1][:, units].T, aspect="auto", cmap="RdBu_r", vmin=-bound, vmax=bound, interpolation="none"
    )
    axes.set_yticks(range(len(units)), [str(unit) for unit in units])
    axes.tick_params(axis="y", labelsize=8, length=2)
    longest_first = ", longest memory on top" if trace.constants is not None else ""
    axes.set_ylabel(f"unit{longest_first}")
    _name_time(axes, trace)
    bar = drawing.colorbar(
        picture,
        ax=axes,
        location="top",
        shrink=0.5,
        anchor=(0.0, 0.0),
        pad=0.02,
        aspect=28,
        ticks=(-bound, 0, bound),
    )
    bar.ax.set_xticklabels([plain_number(float(f"{end:.3g}")) for end in (-bound, 0, bound)])
    bar.set_label(trace.held, color=INK, fontsize=10)
    bar.ax.tick_params(colors=INK, labelsize=9, length=2)
    bar.outline.set_visible(False)
    last = trace.values[-1]
    steady = units[int(np.argmin(np.abs(np.diff(last[:, units], axis=0)).mean(0)))] if len(last) > 1 else units[0]
    numbers = _numbers(trace) | {
        "units": len(units), "all": last.shape[1], "steady": int(steady),
        "flips": counted(int((np.diff(np.sign(last[:, steady])) != 0).sum()), "time"),
        "full": f"{(np.abs(last) > 0.9).mean():.0%}",
    }  # fmt: skip
    frames = moving_frames(
        drawing, trace.steps, [picture], lambda place: picture.set_data(trace.values[place][:, units].T)
    )
    layer = trace.layer
    return worded(
        WORDS["trace_map"], numbers, key=figure_key("trace-map", layer.layer),
        title=f"What {layer.layer} holds while it reads sample {trace.sample}", frames=frames, run=layer.view.run,
        layer=layer.layer, probe=layer.probe, table=_table(trace, units),
    )  # fmt: skip


def _lines(trace: _Trace) -> Figure:
    from stratascope.tasks.report.svg import to_svg

    units = _chosen(trace, _LINES)
    gate = _KEEPS.get(str(trace.layer.facts(trace.steps[-1], "hidden")["cell"]))
    stored = trace.layer.gate(trace.steps[-1], "gates", gate) if gate else None
    time = trace.values.shape[1]
    kept = None if stored is None else stored[0].astype(np.float64)
    if kept is not None:
        kept = kept[np.isfinite(kept).all(1)][:time]
    constants = trace.constants
    labels = {
        int(unit): f"unit {unit}" + ("" if constants is None else f", τ {plain_number(float(f'{constants[unit]:.3g}'))}")
        for unit in units
    }  # fmt: skip
    numbers = _numbers(trace) | {
        "longest": labels[int(units[0])], "shortest": labels[int(units[-1])],
        "gate": "no gate keeps, so there is no second panel" if kept is None else
        f"the {gate} gate of {labels[int(units[0])].partition(',')[0]} is {kept[:, units[0]].mean():.2f} on average here and falls to {kept[:, units[0]].min():.2f}",
    }  # fmt: skip
    layer = trace.layer
    return worded(
        WORDS["trace_lines"], numbers, key=figure_key("trace-lines", layer.layer),
        title=f"A few units of {layer.layer} over sample {trace.sample}, step {plain_step(trace.steps[-1])}",
        svg=to_svg(_line_axes(trace, units, labels, kept, gate)), run=layer.view.run, layer=layer.layer, probe=layer.probe,
        table=_table(trace, units),
    )  # fmt: skip


def _line_axes(
    trace: _Trace, units: np.ndarray, labels: Mapping[int, str], kept: np.ndarray | None, gate: str | None
) -> Any:
    from matplotlib.figure import Figure as Drawing

    from stratascope.tasks.report.style import COLOURS, INK, quiet

    count = 1 if kept is None else 2
    drawing = Drawing(figsize=(7.6, 2.1 * count + 1.0), dpi=72, layout="constrained")
    panels = drawing.subplots(count, 1, sharex=True, squeeze=False)[:, 0]
    last = trace.values[-1]
    for number, unit in enumerate(units):
        style = {
            "color": COLOURS[number % len(COLOURS)],
            "linewidth": 1.6,
            "linestyle": ("-", "--", ":", "-.")[number % 4],
        }
        panels[0].plot(last[:, unit], label=labels[int(unit)], **style)
        if kept is not None:
            panels[1].plot(kept[:, unit], **style)
    for axes in panels:
        quiet(axes)
        axes.set_xlim(-0.5, len(last) - 0.5)
    panels[0].set_ylabel(trace.held)
    if kept is not None:
        panels[1].set(ylim=(-0.03, 1.03), ylabel=f"{gate} gate")
    _name_time(panels[-1], trace)
    drawing.legend(
        loc="outside upper center", ncols=min(4, len(units)), frameon=False, fontsize=9.5, labelcolor=INK,
        handlelength=1.8, columnspacing=1.2,
    )  # fmt: skip
    return drawing


def _numbers(trace: _Trace) -> dict[str, Any]:
    drawn = trace.values.shape[1]
    return {
        "layer": trace.layer.layer, "sample": trace.sample, "step": plain_step(trace.steps[-1]), "held": trace.held,
        "direction": "from right to left" if "_reverse" in trace.layer.layer else "from left to right",
        "which": "that move most" if trace.constants is None else "with memories of every length",
        "drawn": f"all {drawn}" if drawn == trace.length else f"the first {drawn} of {trace.length}",
    }  # fmt: skip


def _name_time(axes: Any, trace: _Trace) -> None:
    """The tokens below the axis where they have words, else numbers."""
    from matplotlib.ticker import MaxNLocator

    if trace.words is None:
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        axes.set_xlabel("time step")
        return
    words = [_shown(word) for word in trace.words]
    upright = (max(map(len, words)) + 1) * len(words) > _MOST_LETTERS and max(map(len, words)) > 2
    axes.set_xticks(range(len(words)), words, rotation=90 if upright else 0)
    axes.tick_params(axis="x", labelsize=8 if len(words) > 40 else 9, length=2 if upright else 0)
    axes.set_xlabel("tokens, as they are read" + (" (␣ blank, ↵ end of line)" if {"␣", "↵"} & set(words) else ""))


def _shown(word: str) -> str:
    word = word.replace("\n", "↵")
    word = "␣" if word.isspace() else visible(word)
    return word if len(word) <= 12 else f"{word[:11]}…"


def _table(trace: _Trace, units: np.ndarray) -> dict[str, list[Any]]:
    """Every drawn value at the newest step."""
    time = trace.values.shape[1]
    words = trace.words or [str(number) for number in range(time)]
    return {
        "step": [trace.steps[-1]] * (time * len(units)),
        "unit": [int(unit) for unit in units for _ in range(time)],
        "time": list(range(time)) * len(units),
        "token": words * len(units),
        "value": [float(f"{value:.4g}") for unit in units for value in trace.values[-1][:, unit]],
    }
