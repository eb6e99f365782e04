"""Pictures of recurrent state: saturated gates, how long units hold, spectra, likeness of units, traces over the tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.report.text import plain_number, plain_step, shortened
from stratascope.tasks.representation.layer_heatmaps import COLUMNS, LayerMap, layer_map
from stratascope.tasks.representation.pictures import (
    even_choice,
    figure_key,
    leading_probe,
    table_of,
    worded,
)
from stratascope.tasks.sequence.recurrent_state_words import WORDS
from stratascope.tasks.sequence.recurrent_traces_drawing import trace_figures
from stratascope.tasks.sequence.stored_states import StoredLayer, stored_layers

if TYPE_CHECKING:
    from collections.abc import Mapping

_MOST_STEPS = 12
_MOST_LAYERS = 4
"""Of so many layers at most there are pictures of their own, evenly chosen."""
_ENDLESS = 1e6
"""A time constant of more steps is drawn and told as one without end."""
_GATES = ("input", "forget", "output", "reset", "update", "candidate")
_CONSTANTS = LayerMap("memory_time_constant", "quantile=0.5", "Median memory time constant", "steps, power of ten", "constants_map", powers=True)  # fmt: skip


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe saturation and time constants; for the leading one spectra, likeness of units, and traces."""
    probes = sorted(set(view.metric("still_fraction")["probe"].unique()) - {""})
    for probe in probes:
        layers = stored_layers(view, probe)
        yield from _saturation(view, probe, layers)
        yield from _constants(view, probe, layers)
        if len(layers) > 1:
            yield from layer_map(view, _CONSTANTS, probe, WORDS["constants_map"])
    if not probes:
        return
    probe = leading_probe(view, probes)
    layers = stored_layers(view, probe)
    for layer in even_choice_of(layers, _MOST_LAYERS):
        yield from trace_figures(layer)
        yield from _spectrum(layer)
        yield from _likeness(layer, options)


def even_choice_of(layers: Sequence[StoredLayer], most: int) -> list[StoredLayer]:
    return [layers[place] for place in even_choice(range(len(layers)), most)]


def _residual(view: View, probe: str) -> str:
    rows = view.metric("recurrent_residual", probe=probe)
    return plain_number(float(f"{rows['value'].max():.1g}")) if len(rows) else "an unknown share"


# -- saturation -------------------------------------------------------------------------------------------


def _saturation(view: View, probe: str, layers: Sequence[StoredLayer]) -> Iterator[Figure]:
    """After Karpathy et al. 2015, figure 3: right-saturated steps across, left-saturated ones up, a panel a gate."""
    found = _saturations(layers)
    gates = [gate for gate in _GATES if any(gate in by_gate for by_gate in found.values())]
    # A candidate is no gate: it is drawn where a plain cell has nothing else.
    gates = [gate for gate in gates if gate != "candidate"] or gates
    if not gates:
        return
    steps = sorted({step for by_gate in found.values() for by_step in by_gate.values() for step in by_step})
    newest = steps[-1]
    busiest = _busiest(found, gates, newest)
    rows = view.metric("right_saturated_fraction", probe=probe)
    both = view.rows[view.rows["metric"].isin(["left_saturated_fraction", "right_saturated_fraction"])]
    numbers = {
        "step": plain_step(newest), "n": int(rows["n"].max()), "residual": _residual(view, probe), **busiest,
    }  # fmt: skip
    plain = gates == ["candidate"]
    figure, clouds, update = _saturation_axes(found, gates, steps)
    from stratascope.tasks.report.style import moving_frames

    yield worded(
        WORDS["saturation_plain" if plain else "saturation"], numbers, key=figure_key("saturation", probe), title=f"Saturated {'units' if plain else 'gates'}, probe {probe}",
        frames=moving_frames(figure, steps, clouds, update), run=view.run, probe=probe,
        headline=probe == leading_probe(view, view.metric("still_fraction")["probe"].unique()),
        table=table_of(both[(both["probe"] == probe) & (both["status"] == "ok")], ("metric", *COLUMNS)),
    )  # fmt: skip


def _saturations(layers: Sequence[StoredLayer]) -> dict[str, dict[str, dict[int, np.ndarray]]]:
    """(side, unit) by layer, gate and step."""
    found: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    for layer in layers:
        for step in even_choice(layer.steps_with("saturation"), _MOST_STEPS):
            for gate in layer.facts(step, "saturation")["gate"]:
                values = layer.gate(step, "saturation", gate)
                if values is not None:
                    found.setdefault(layer.layer, {}).setdefault(gate, {})[step] = values
    return found


def _busiest(
    found: Mapping[str, Mapping[str, Mapping[int, np.ndarray]]], gates: Sequence[str], step: int
) -> dict[str, Any]:
    """The gate that is saturated most at `step`, and how many of all units hardly ever are."""
    shares = {
        (layer, gate): by_gate[gate][step].sum(0)
        for layer, by_gate in found.items()
        for gate in gates
        if gate in by_gate and step in by_gate[gate]
    }
    layer, gate = max(shares, key=lambda name: float(shares[name].mean()))
    left, right = found[layer][gate][step].mean(1)
    every = np.concatenate(list(shares.values()))
    return {
        "layer": layer, "gate": gate, "left": f"{left:.0%}", "right": f"{right:.0%}", "free": f"{(every < 0.05).mean():.0%}",
    }  # fmt: skip


def _saturation_axes(
    found: Mapping[str, Mapping[str, Mapping[int, np.ndarray]]], gates: Sequence[str], steps: Sequence[int]
) -> tuple[Any, list[Any], Callable[[int], None]]:
    from matplotlib.figure import Figure as Drawing

    from stratascope.tasks.report.style import COLOURS, INK, quiet

    drawing = Drawing(figsize=(6.6, 6.6 / max(2.2, len(gates)) + 1.0), dpi=72, layout="constrained")
    panels = drawing.subplots(1, len(gates), sharey=True, squeeze=False)[0]
    clouds: list[tuple[Any, str, str]] = []
    for axes, gate in zip(panels, gates, strict=True):
        quiet(axes)
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
        axes.set_aspect("equal")
        axes.set_title(f"{gate} gate" if gate != "candidate" else "hidden state", fontsize=10.5, color=INK)
        axes.set_xlabel("right-saturated")
        axes.plot([0, 1], [1, 0], linestyle="--", linewidth=1, color=INK, alpha=0.5)
        for number, (layer, by_gate) in enumerate(found.items()):
            if gate in by_gate:
                cloud = axes.scatter([], [], s=12, color=COLOURS[number % len(COLOURS)], alpha=0.7, linewidths=0)
                clouds.append((cloud, layer, gate))
    panels[0].set_ylabel("left-saturated")
    _name_layers(drawing, list(found))

    def update(place: int) -> None:
        for cloud, layer, gate in clouds:
            values = found[layer][gate].get(steps[place])
            cloud.set_offsets(np.empty((0, 2)) if values is None else values[::-1].T)

    return drawing, [cloud for cloud, _, _ in clouds], update


def _name_layers(drawing: Any, names: Sequence[str], styles: Sequence[str] = ("o",)) -> None:
    """A legend of the layers' colours above the panels."""
    from matplotlib.lines import Line2D

    from stratascope.tasks.report.style import COLOURS, INK

    handles = [
        Line2D([], [], linestyle="" if styles[0] == "o" else "-", marker="o" if styles[0] == "o" else "", markersize=6, linewidth=2.2, color=COLOURS[number % len(COLOURS)])
        for number in range(len(names))
    ]  # fmt: skip
    drawing.legend(
        handles, [shortened(name, 30) for name in names], loc="outside upper center", ncols=min(3, len(names)),
        frameon=False, fontsize=10, labelcolor=INK, handletextpad=0.4,
    )  # fmt: skip


# -- time constants ---------------------------------------------------------------------------------------


def _constants(view: View, probe: str, layers: Sequence[StoredLayer]) -> Iterator[Figure]:
    """Of each layer the share of units that hold longer than so many steps."""
    found: dict[str, dict[int, np.ndarray]] = {}
    for layer in layers:
        for step in even_choice(layer.steps_with("time_constant"), _MOST_STEPS):
            values = layer.time_constants(step)
            if values is not None:
                found.setdefault(layer.layer, {})[step] = np.sort(values)
    if not found:
        return
    from stratascope.tasks.report.style import moving_frames

    steps = sorted({step for by_step in found.values() for step in by_step})
    first, newest = steps[0], steps[-1]
    spreads = {name: _spread(by_step[newest]) for name, by_step in found.items() if newest in by_step}
    widest = max(spreads, key=lambda name: spreads[name])
    last, earlier = found[widest][newest], found[widest].get(first)
    plain = layers[0].facts(newest, "time_constant").get("source") == "eigenvalues"
    low, middle, high = (_steps_in_words(float(value)) for value in np.quantile(last, (0.1, 0.5, 0.9)))
    rows = view.metric("memory_time_constant", probe=probe)
    numbers = {
        "layer": widest, "step": plain_step(newest), "first": plain_step(first), "n": int(rows["n"].max()), "low": low,
        "middle": middle, "high": high, "spread": f"{spreads[widest]:.3g}", "longest": _steps_in_words(float(last[-1])),
        "earlier": "not known" if earlier is None else f"{_spread(earlier):.3g}", "units": len(last),
        "endless": int((last >= _ENDLESS).sum()), "endless_before": 0 if earlier is None else int((earlier >= _ENDLESS).sum()),
    }  # fmt: skip
    drawing, artists, update = _constant_axes(found, steps)
    yield worded(
        WORDS["constants_plain" if plain else "constants"], numbers, key=figure_key("time-constants", probe),
        title=f"How long units hold what they hold, probe {probe}", frames=moving_frames(drawing, steps, artists, update),
        run=view.run, probe=probe, table=table_of(rows, COLUMNS),
    )  # fmt: skip


def _steps_in_words(value: float) -> str:
    return "any number of steps" if value >= _ENDLESS else f"{plain_number(float(f'{value:.3g}'))} steps"


def _spread(values: np.ndarray) -> float:
    low, high = np.quantile(values, (0.1, 0.9))
    return float(high / low)


def _constant_axes(
    found: Mapping[str, Mapping[int, np.ndarray]], steps: Sequence[int]
) -> tuple[Any, list[Any], Callable[[int], None]]:
    from matplotlib.ticker import LogLocator

    from stratascope.tasks.report.style import COLOURS, INK, new_axes

    drawing, axes = new_axes(5.9, 3.6)
    every = np.concatenate([values for by_step in found.values() for values in by_step.values()])
    bounded = every[every < _ENDLESS] if (every < _ENDLESS).any() else np.array([1.0])
    low, high = float(bounded.min()) / 1.3, float(bounded.max()) * 1.6
    axes.set(xscale="log", xlim=(low, high), ylim=(0, 1.02), xlabel="memory time constant, steps (logarithmic)")
    if high / low < 40:
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.set_ylabel("share of units that hold longer")
    artists = []
    for number, (layer, by_step) in enumerate(found.items()):
        colour = COLOURS[number % len(COLOURS)]
        start = by_step.get(steps[0])
        if start is not None and len(steps) > 1:
            axes.plot(start, _above(start), color=colour, alpha=0.6, linewidth=1.1, linestyle="--")
        (line,) = axes.plot([], [], color=colour, linewidth=2)
        artists.append((line, layer))
    if len(steps) > 1:
        note = f"dashed: step {plain_step(steps[0])}"
        axes.set_title(note, fontsize=9.5, color=INK, loc="right")
    _name_layers(drawing, list(found), ("-",))

    def update(place: int) -> None:
        for line, layer in artists:
            values = found[layer].get(steps[place], np.empty(0))
            line.set_data(values, _above(values))

    return drawing, [line for line, _ in artists], update


def _above(values: np.ndarray) -> np.ndarray:
    """The share of ascending `values` that lie at or above each of them."""
    return 1 - np.arange(len(values)) / max(1, len(values))


# -- spectra and likeness ---------------------------------------------------------------------------------


def _spectrum(layer: StoredLayer) -> Iterator[Figure]:
    """The eigenvalues of the recurrent weights of every gate in the complex plane."""
    from stratascope.tasks.report.style import moving_frames

    steps = even_choice(layer.steps_with("eigenvalues"), _MOST_STEPS)
    found = {step: values for step in steps if (values := layer.array(step, "eigenvalues")) is not None}
    if not found:
        return
    gates = list(layer.facts(steps[-1], "eigenvalues")["gate"])
    radii = {gate: float(np.hypot(*found[steps[-1]][place].T).max()) for place, gate in enumerate(gates)}
    widest = max(radii, key=lambda gate: radii[gate])
    outside = np.hypot(found[steps[-1]][..., 0], found[steps[-1]][..., 1]) > 1
    numbers = {
        "layer": layer.layer, "step": plain_step(steps[-1]), "gate": widest, "radius": f"{radii[widest]:.3g}",
        "outside": int(outside[gates.index(widest)].sum()), "units": found[steps[-1]].shape[1],
        "before": f"{np.hypot(*found[steps[0]][gates.index(widest)].T).max():.3g}", "first": plain_step(steps[0]),
    }  # fmt: skip
    drawing, clouds = _spectrum_axes(np.stack(list(found.values())), gates)

    def update(place: int) -> None:
        for cloud, values in zip(clouds, found[steps[place]], strict=True):
            cloud.set_offsets(values)

    rows = layer.view.metric("recurrent_spectral_radius", probe=layer.probe, layer=layer.layer)
    yield worded(
        WORDS["spectrum"], numbers, key=figure_key("spectrum", layer.layer),
        title=f"Eigenvalues of the recurrent weights of {layer.layer}", frames=moving_frames(drawing, steps, clouds, update),
        run=layer.view.run, layer=layer.layer, probe=layer.probe, table=table_of(rows, COLUMNS),
    )  # fmt: skip


def _spectrum_axes(values: np.ndarray, gates: Sequence[str]) -> tuple[Any, list[Any]]:
    """Panels for `values` (step, gate, unit, part), all on one scale."""
    from matplotlib.figure import Figure as Drawing

    from stratascope.tasks.report.style import COLOURS, INK, quiet

    columns = 1 if len(gates) == 1 else 3 if len(gates) == 3 else 2
    lines = -(-len(gates) // columns)
    side = 4.0 if columns == 1 else 6.4 / columns
    drawing = Drawing(figsize=(side * columns, (side + 0.35) * lines), dpi=72, layout="constrained")
    panels = drawing.subplots(lines, columns, squeeze=False)
    edge = max(1.0, float(np.abs(values).max())) * 1.06
    turn = np.linspace(0, 2 * np.pi, 181)
    clouds = []
    for number, (axes, gate) in enumerate(zip(panels.flat, gates, strict=True)):
        quiet(axes)
        axes.grid(False)
        axes.set(xlim=(-edge, edge), ylim=(-edge, edge))
        axes.set_aspect("equal")
        axes.plot(np.cos(turn), np.sin(turn), color=INK, linewidth=1, alpha=0.6)
        name = gate if gate == "candidate" else f"{gate} gate"
        axes.set_title(name, fontsize=10.5, color=INK)
        if number // columns == lines - 1:
            axes.set_xlabel("real part")
        if number % columns == 0:
            axes.set_ylabel("imaginary part")
        clouds.append(axes.scatter([], [], s=10, color=COLOURS[0], alpha=0.75, linewidths=0))
    return drawing, clouds


def _likeness(layer: StoredLayer, options: Any) -> Iterator[Figure]:
    """Correlations of all pairs of units at the newest step, those that say the same side by side."""
    steps = layer.steps_with("correlation")
    matrix = layer.array(steps[-1], "correlation") if steps else None
    order, cluster = (layer.array(steps[-1], name) if steps else None for name in ("unit_order", "unit_cluster"))
    if matrix is None or order is None or cluster is None or np.isfinite(np.diag(matrix)).sum() < 2:
        return
    from stratascope.tasks.report.svg import to_svg

    moving = np.isfinite(np.diag(matrix))
    order = order[moving[order]]
    sizes = np.bincount(cluster[cluster >= 0])
    off = np.abs(np.where(np.eye(len(matrix), dtype=bool), np.nan, matrix))
    one, other = np.unravel_index(int(np.nanargmax(off)), off.shape)
    rows = layer.view.metric("redundant_fraction", probe=layer.probe, layer=layer.layer)
    numbers = {
        "layer": layer.layer, "step": plain_step(steps[-1]), "units": len(matrix), "still": int((~moving).sum()),
        "one": int(one), "other": int(other), "highest": f"{matrix[one, other]:+.3f}", "typical": f"{np.nanmedian(off):.2f}",
        "clusters": int((sizes > 1).sum()), "could": int((sizes - 1).sum()), "above": f"{options.redundant_above:g}",
    }  # fmt: skip
    yield worded(
        WORDS["likeness"], numbers, key=figure_key("likeness", layer.layer),
        title=f"Which units of {layer.layer} say the same, probe {layer.probe}", svg=to_svg(_likeness_axes(matrix[np.ix_(order, order)])),
        run=layer.view.run, layer=layer.layer, probe=layer.probe, table=table_of(rows, COLUMNS),
    )  # fmt: skip


def _likeness_axes(matrix: np.ndarray) -> Any:
    from stratascope.tasks.report.style import INK, new_axes

    drawing, axes = new_axes(5.6, 5.4)
    axes.grid(False)
    picture = axes.imshow(matrix, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="none")
    axes.set(xlabel="unit, in the order of the clusters", ylabel="unit, in the same order")
    bar = drawing.colorbar(picture, ax=axes, location="top", shrink=0.6, pad=0.02, aspect=28, ticks=(-1, 0, 1))
    bar.set_label("correlation of hidden states", color=INK, fontsize=10)
    bar.ax.tick_params(colors=INK, labelsize=9, length=2)
    bar.outline.set_visible(False)
    return drawing
