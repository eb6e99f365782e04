"""The pictures of memory over training: bands of time constants, gradient by lag and step, lengths, saturation, radii."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.tasks.analysis import Figure
from stratascope.tasks.report.text import plain_step, shortened
from stratascope.tasks.representation.pictures import even_choice, figure_key, leading_probe, worded
from stratascope.tasks.sequence.lag_pictures import few_powers
from stratascope.tasks.sequence.recurrent_over_training_words import WORDS as _WORDS

if TYPE_CHECKING:
    from stratascope.tasks.contexts import View

_PANELS = 4
_COLUMNS, _ROWS = 24, 34
_BANDS = (0.05, 0.25, 0.5, 0.75, 0.95)
_STATES = {"hidden": "hidden state", "cell": "cell state"}
_FLOOR = -6.0


@dataclass(frozen=True)
class _Line:
    """An array (step, …) of one layer, and what is known of it."""

    layer: str
    values: np.ndarray
    about: dict[str, Any]

    @property
    def steps(self) -> list[int]:
        return [int(step) for step in self.about["step"]]


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe the time constants; for the leading one all else, by layer."""
    arrays = view.arrays()
    probes = sorted({path.split("/")[0] for path in arrays})
    if not probes:
        return
    lead = leading_probe(view, probes)
    for probe in sorted(probes, key=lambda name: (name != lead, name)):
        lines = _gathered(view, probe, arrays)
        yield from _constants(view, probe, lines.get("time_constant", []), options, probe == lead)
        if probe != lead:
            continue
        gradients = {kind: found for kind, found in lines.items() if kind.startswith("gradient_")}
        yield from _length(view, probe, gradients)
        for kind, found in gradients.items():
            for line in found[-_PANELS:]:
                if kind == "gradient_cell" or not any(
                    other.layer == line.layer for other in lines.get("gradient_cell", [])
                ):
                    yield from _lags(view, probe, kind.removeprefix("gradient_"), line)
        for line in lines.get("saturation", [])[-_PANELS:]:
            still = next((item for item in lines.get("still", []) if item.layer == line.layer), None)
            yield from _saturation(view, probe, line, still)
        for line in lines.get("radius", [])[-_PANELS:]:
            yield from _radius(view, probe, line)


def _gathered(view: View, probe: str, arrays: dict[str, np.ndarray]) -> dict[str, list[_Line]]:
    found: dict[str, list[_Line]] = {}
    for path, values in sorted(arrays.items()):
        name, _, rest = path.partition("/")
        if name == probe and len(values) > 1:
            layer, _, kind = rest.rpartition("/")
            about = view.store.array_info(join_path("series", view.run, view.analysis, probe, *layer.split("/"), kind))[3]  # fmt: skip
            found.setdefault(kind, []).append(_Line(layer, values, about))
    return found


def _constants(view: View, probe: str, found: list[_Line], options: Any, leads: bool) -> Iterator[Figure]:
    if not found:
        return
    from matplotlib.figure import Figure as Canvas

    from stratascope.tasks.report.style import COLOURS, INK, quiet, step_axis, to_svg

    shown = [found[place] for place in even_choice(range(len(found)), _PANELS)]
    canvas = Canvas(figsize=(5.9, 0.9 + 2.2 * len(shown)), dpi=72, layout="constrained")
    panels = canvas.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    table: dict[str, list[Any]] = {name: [] for name in ("layer", "step", "quantile", "time_constant")}
    for place, (axes, line) in enumerate(zip(panels, shown, strict=True)):
        quiet(axes)
        bands = np.quantile(line.values, _BANDS, axis=1)
        colour = COLOURS[place % len(COLOURS)]
        axes.fill_between(line.steps, bands[0], bands[4], color=colour, alpha=0.16, linewidth=0)
        axes.fill_between(line.steps, bands[1], bands[3], color=colour, alpha=0.34, linewidth=0)
        axes.plot(line.steps, bands[2], color=colour, marker="o" if len(line.steps) <= 30 else "", markersize=3, linewidth=1.8)  # fmt: skip
        axes.set_yscale("log")
        few_powers(axes)
        axes.set_title(shortened(line.layer, 40), loc="left", fontsize=10.5, color=INK)
        axes.set_ylabel("time constant (steps)")
        for number, share in enumerate(_BANDS):
            table["layer"] += [line.layer] * len(line.steps)
            table["step"] += line.steps
            table["quantile"] += [share] * len(line.steps)
            table["time_constant"] += bands[number].tolist()
    step_axis(panels[-1], shown[0].steps)
    sources = {line.about.get("source", "gate") for line in shown}
    numbers = {
        "source": "They are those of the eigenvalues of the recurrent weights, as if the cell were linear."
        if sources == {"eigenvalues"} else "They follow from the mean logarithm of the gate that keeps the state.",
        "widening": _widening(view, probe), "long": _long(view, probe, options),
    }  # fmt: skip
    yield worded(
        _WORDS["constants"], numbers, key=figure_key("constants", probe), title=f"Time constants over training, probe {probe}",
        svg=to_svg(canvas), run=view.run, probe=probe, headline=leads, table=table,
    )  # fmt: skip


def _widening(view: View, probe: str) -> str:
    rows = view.metric("time_constant_spread", probe=probe, part="against=first")
    if not len(rows):
        return "The units do not pair up between the checkpoints, so no widening was tested."
    newest = rows[rows["step"] == rows["step"].max()]
    row = newest.loc[newest["value"].idxmax()]
    said = f"From step {plain_step(row['other_step'])} to {plain_step(row['step'])} the ratio of the 90 % to the 10 % quantile grew {row['value']:.2g} times in {row['layer']} (95 % interval {row['low']:.2g} to {row['high']:.2g})"  # fmt: skip
    if row["low"] > 1:
        return f"{said}: the distribution has widened."
    return f"{said}: that is not told from no change." if row["high"] >= 1 else f"{said}: it has become narrower."


def _long(view: View, probe: str, options: Any) -> str:
    rows = view.metric("long_memory_fraction", probe=probe)
    newest = rows[rows["step"] == rows["step"].max()]
    if not len(newest):
        return ""
    row = newest.loc[newest["value"].idxmax()]
    return f"At the end {row['value']:.0%} of the {row['n']} units of {row['layer']} hold for more than {options.long_above:g} steps."


def _lags(view: View, probe: str, state: str, line: _Line) -> Iterator[Figure]:
    from stratascope.tasks.report.style import heatmap

    places = even_choice(range(len(line.steps)), _COLUMNS)
    values = line.values[places].astype(np.float64)
    with np.errstate(all="ignore"):
        grid = np.log10(values / values[:, :1]).T
    grid = np.where(values.T > 0, np.maximum(grid, _FLOOR), np.where(np.isnan(values.T), np.nan, _FLOOR))
    lengths = np.array(line.about["half_length"], np.float64)
    if not np.isfinite(lengths).any():
        return
    most = int(np.nanargmax(lengths))
    numbers = {
        "state": _STATES[state], "layer": line.layer, "start": plain_step(line.steps[0]), "end": plain_step(line.steps[-1]),
        "first": lengths[0], "last": lengths[-1], "most": lengths[most], "when": plain_step(line.steps[most]),
        "window": line.about["window"],
    }  # fmt: skip
    steps = [line.steps[place] for place in places]
    rows = even_choice(range(len(grid)), _ROWS)
    yield worded(
        _WORDS["lags"], numbers, key=figure_key("lags", probe, line.layer, state),
        title=f"Gradient by lag over training, {line.layer}, probe {probe}",
        svg=heatmap(
            grid[rows], [str(lag) for lag in rows], [plain_step(step) for step in steps],
            "share of the gradient at lag 0, power of ten", "steps back from the loss", "training step",
        ),
        run=view.run, layer=line.layer, probe=probe,
        table={
            "step": np.repeat(steps, len(grid)).tolist(), "lag": list(range(len(grid))) * len(steps),
            "gradient_norm": values.ravel().tolist(),
        },
    )  # fmt: skip


def _length(view: View, probe: str, gradients: dict[str, list[_Line]]) -> Iterator[Figure]:
    from stratascope.tasks.report.style import lines

    every = [(kind.removeprefix("gradient_"), line) for kind, found in gradients.items() for line in found]
    series = {
        f"{line.layer}, {state}": (line.steps, np.array(line.about["half_length"], np.float64).tolist())
        for state, line in every
    }
    series = {name: item for name, item in series.items() if np.isfinite(item[1]).any()}
    if not series:
        return
    change = {name: _change(values) for name, (_, values) in series.items()}
    name = max(change, key=lambda key: abs(change[key]))
    steps, values = series[name]
    window = next(line.about["window"] for state, line in every if f"{line.layer}, {state}" == name)
    numbers = {
        "start": plain_step(steps[0]), "end": plain_step(steps[-1]), "layer": name, "first": values[0], "last": values[-1],
        "window": window,
        "limit": "The last is near half of the window, which sets it." if values[-1] > 0.4 * window else "That is well below half of the window, so the length is the network's own.",
    }  # fmt: skip
    table: dict[str, list[Any]] = {"curve": [], "step": [], "steps_holding_half": []}
    for key, (own, found) in series.items():
        table["curve"] += [key] * len(own)
        table["step"] += own
        table["steps_holding_half"] += [float(value) for value in found]
    yield worded(
        _WORDS["length"], numbers, key=figure_key("length", probe), title=f"Effective memory length over training, probe {probe}",
        svg=lines(series, "steps that hold half"), run=view.run, probe=probe, table=table,
    )  # fmt: skip


def _change(values: list[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return known[-1] - known[0]


def _saturation(view: View, probe: str, line: _Line, still: _Line | None) -> Iterator[Figure]:
    from stratascope.tasks.report.style import COLOURS, new_axes, step_axis, to_svg

    canvas, axes = new_axes()
    gates = line.about["gate"]
    table: dict[str, list[Any]] = {name: [] for name in ("step", "gate", "side", "fraction")}
    for place, gate in enumerate(gates):
        for side, (name, style) in enumerate((("left", "--"), ("right", "-"))):
            values = line.values[:, place, side]
            axes.plot(line.steps, values, style, color=COLOURS[place], linewidth=1.7, label=gate if side else None)
            table["step"] += line.steps
            table["gate"] += [gate] * len(values)
            table["side"] += [name] * len(values)
            table["fraction"] += values.tolist()
    axes.set_ylim(-0.02, max(0.1, float(np.nanmax(line.values)) * 1.06))
    step_axis(axes, line.steps)
    axes.set_ylabel("share of steps")
    _name_above(axes)
    gate, side = divmod(int(np.nanargmax(line.values[-1])), line.values.shape[2])
    numbers = {
        "layer": line.layer, "left": line.about["ends"][0], "right": line.about["ends"][1], "step": plain_step(line.steps[-1]),
        "start": plain_step(line.steps[0]), "gate": gates[gate], "share": float(line.values[-1, gate, side]),
        "before": float(line.values[0, gate, side]), "side": ("left", "right")[side], "still": _still(still),
    }  # fmt: skip
    yield worded(
        _WORDS["saturation"], numbers, key=figure_key("saturation", probe, line.layer),
        title=f"Saturated gates over training, {line.layer}, probe {probe}", svg=to_svg(canvas), run=view.run,
        layer=line.layer, probe=probe, table=table,
    )  # fmt: skip


def _still(still: _Line | None) -> str:
    if still is None:
        return ""
    units = still.about["units"]
    count = round(float(still.values[-1]) * units)
    most = int(np.argmax(still.values))
    if not still.values.max() > 0:
        return f"None of the {units} units stands still at any checkpoint."
    return f"{count} of {units} units stand still at the end, at most {round(float(still.values[most]) * units)}, at step {plain_step(still.steps[most])}."  # fmt: skip


def _name_above(axes: Any) -> None:
    from stratascope.tasks.report.style import INK

    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False, fontsize=9.5, labelcolor=INK, ncols=4)


def _radius(view: View, probe: str, line: _Line) -> Iterator[Figure]:
    from stratascope.tasks.report.style import lines

    blocks = line.about["block"]
    series = {block: (line.steps, line.values[:, place].tolist()) for place, block in enumerate(blocks)}
    top = int(np.argmax(line.values[-1]))
    numbers = {
        "layer": line.layer, "step": plain_step(line.steps[-1]), "start": plain_step(line.steps[0]), "gate": blocks[top],
        "value": float(line.values[-1, top]), "before": float(line.values[0, top]),
    }  # fmt: skip
    table = {
        "block": np.repeat(blocks, len(line.steps)).tolist(), "step": line.steps * len(blocks),
        "radius": [float(plain) for plain in line.values.T.ravel()],
    }  # fmt: skip
    yield worded(
        _WORDS["radius"], numbers, key=figure_key("radius", probe, line.layer),
        title=f"Spectral radius over training, {line.layer}, probe {probe}", svg=lines(series, "largest |eigenvalue|"),
        run=view.run, layer=line.layer, probe=probe, table=table,
    )  # fmt: skip
