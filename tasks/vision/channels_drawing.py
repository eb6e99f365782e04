"""The pictures of channels: classes by channel, what excites them, what they add, which repeat each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.representation.layer_heatmaps import LayerMap, layer_map
from stratascope.tasks.representation.pictures import even_choice, figure_key, leading_probe, worded
from stratascope.tasks.vision.channels_words import WORDS

_LAYERS = 3
"""So many layers are drawn in detail, evenly over the network."""
_FRAMES = 12
_SHOWN_CHANNELS = 64
_SHOWN_CLASSES = 40
_MOST_CORRELATED = 128
_BARS = 10
_MAPS = (
    LayerMap("channel_selectivity", "", "Class selectivity of channels", "class selectivity", "selectivity"),
    LayerMap("effective_channels", "", "Independent channels", "effective number of channels", "effective"),
    LayerMap("channel_redundancy", "", "Repeated channels", "share of channels that repeat another", "redundancy"),
    LayerMap("dead_channel_fraction", "", "Dead channels", "share of dead channels", "dead"),
)


@dataclass
class LayerSeries:
    """What was filed of one layer's channels on one probe, at every step that has it."""

    view: View
    probe: str
    layer: str
    by_step: dict[int, dict[str, np.ndarray]]

    @cached_property
    def steps(self) -> list[int]:
        return sorted(step for step, arrays in self.by_step.items() if self.name("by_channel") in arrays)

    def name(self, array: str) -> str:
        return f"{self.probe}/{self.layer}/{array}"

    def at(self, step: int, array: str) -> np.ndarray | None:
        return self.by_step[step].get(self.name(array))

    def attributes(self, step: int, array: str) -> dict[str, Any]:
        """The attributes of an array."""
        from stratascope.storage.archive import join_path
        from stratascope.storage.names import step_directory

        place = join_path(
            "runs", self.view.run, step_directory(step), self.view.analysis, self.probe, self.layer, array
        )
        return self.view.store.array_info(place)[3]

    def strongest(self, number: int) -> list[int]:
        """The channels that add most to the scores at the last step, the strongest first."""
        added = self.at(self.steps[-1], "contribution")
        size = np.abs(added[1].mean(0)) if added is not None else np.abs(self.by_channel(self.steps[-1])[-1])
        return np.argsort(-size, kind="stable")[:number].tolist()

    def by_channel(self, step: int) -> np.ndarray:
        found = self.at(step, "by_channel")
        assert found is not None
        return found


def draw(view: View, options: Any) -> Iterator[Figure]:
    """Maps by layer and step of every probe; of the leading probe the classes, examples, contributions, correlations."""
    from stratascope.tasks.vision.channel_examples import example_figures

    probes = sorted(view.rows["probe"].unique())
    for probe in probes:
        for kind in _MAPS:
            yield from layer_map(
                view, kind, probe, WORDS[kind.words], headline=kind.metric == "channel_selectivity"
            )
    if not probes:
        return
    probe = leading_probe(view, probes)
    by_step = {step: view.arrays(step) for step in view.steps}
    layers = [layer for layer in view.layers("channel_contribution") if layer]
    series = [LayerSeries(view, probe, layer, by_step) for layer in layers]
    series = [one for one in series if one.steps]
    chosen = [series[place] for place in even_choice(range(len(series)), _LAYERS)]
    for one in chosen:
        yield from _classes(one)
        yield from example_figures(one)
        yield from _contributions(one)
    yield from _correlations(chosen)


def _classes(series: LayerSeries) -> Iterator[Figure]:
    from stratascope.tasks.report.style import moving_heatmap

    steps = [step for step in even_choice(series.steps, _FRAMES) if series.at(step, "class_count") is not None]
    if not steps:
        return
    view, probe = series.view, series.view.probes[series.probe]
    target = series.by_step[steps[-1]][f"{series.probe}/target"]
    counts = {step: series.at(step, "class_count") for step in steps}
    last = counts[steps[-1]]
    assert last is not None
    sizes = np.bincount(target, minlength=len(last))
    most = np.argsort(-sizes, kind="stable")[:_SHOWN_CLASSES]
    present = np.sort(most[sizes[most] > 0])
    shares = np.stack([counts[step][present] / sizes[present, None] for step in steps])  # type: ignore[index]
    largest = np.argsort(-shares.max((0, 1)), kind="stable")[:_SHOWN_CHANNELS]
    # Channels that are never among the strongest stand last.
    preferred = np.where(shares[-1].max(0) > 0, shares[-1].argmax(0), len(present))
    order = largest[np.lexsort((-shares[-1].max(0)[largest], preferred[largest]))]
    names = [probe.class_names[value] if value < len(probe.class_names) else str(value) for value in present]
    mass = float(series.attributes(steps[-1], "class_count")["mass_share"])
    numbers = {
        "layer": series.layer, "mass": mass, "shown": len(order), "channels": last.shape[1], "step": steps[-1],
        "broad": int((shares[-1][:, order] >= 0.5).all(0).sum()), "n": len(target),
    }  # fmt: skip
    frames = moving_heatmap(
        shares[:, :, order], steps, names, [str(channel) for channel in order], "share of the class's samples",
        "class", "channel",
    )  # fmt: skip
    table: dict[str, list[Any]] = {"step": [], "class": [], "channel": [], "share": []}
    for place, step in enumerate(steps):
        for row, name in enumerate(names):
            table["step"] += [step] * len(order)
            table["class"] += [name] * len(order)
            table["channel"] += order.tolist()
            table["share"] += shares[place, row, order].tolist()
    yield worded(
        WORDS["classes"], numbers, key=figure_key("classes", series.probe, series.layer), frames=frames,
        title=f"Classes by channel in {series.layer}, probe {series.probe}", run=view.run, layer=series.layer,
        probe=series.probe, table=table,
    )  # fmt: skip


def _contributions(series: LayerSeries) -> Iterator[Figure]:
    steps = [step for step in even_choice(series.steps, _FRAMES) if series.at(step, "contribution") is not None]
    if not steps:
        return
    view = series.view
    methods = series.attributes(steps[-1], "contribution")["method"]
    means = {step: np.asarray(series.at(step, "contribution")).mean(1) for step in steps}
    channels = [channel for channel in series.strongest(_BARS) if channel < means[steps[-1]].shape[1]]
    drawn = np.stack([means[step][:, channels] for step in steps])
    frames = tuple((step, _bars(drawn[place], methods, channels, drawn)) for place, step in enumerate(steps))
    rows = view.rows[(view.rows["layer"] == series.layer) & (view.rows["probe"] == series.probe) & (view.rows["step"] == steps[-1])]  # fmt: skip
    agreement = rows[(rows["metric"] == "contribution_agreement") & (rows["part"] == "between=gradient_times_activation,zero_ablation")]  # fmt: skip
    gap = rows[rows["metric"] == "channel_completeness_gap"]
    numbers = {
        "layer": series.layer, "n": len(np.asarray(series.at(steps[-1], "contribution"))[0]), "methods": len(methods),
        "shown": len(channels), "channels": means[steps[-1]].shape[1], "step": steps[-1],
        "agreement": _known(agreement, "{:.2f}"), "gap": _known(gap, "{:.2%}"),
    }  # fmt: skip
    table: dict[str, list[Any]] = {"step": [], "channel": [], "method": [], "contribution": []}
    for place, step in enumerate(steps):
        for number, method in enumerate(methods):
            table["step"] += [step] * len(channels)
            table["channel"] += channels
            table["method"] += [method] * len(channels)
            table["contribution"] += drawn[place, number].tolist()
    yield worded(
        WORDS["contributions"], numbers, key=figure_key("contributions", series.probe, series.layer), frames=frames,
        title=f"What the channels of {series.layer} add to the score, probe {series.probe}", run=view.run,
        layer=series.layer, probe=series.probe, table=table,
    )  # fmt: skip


def _known(rows: Any, form: str) -> str:
    values = rows["value"].dropna()
    return form.format(values.iloc[0]) if len(values) else "an unknown amount"


def _bars(values: np.ndarray, methods: Sequence[str], channels: Sequence[int], every: np.ndarray) -> str:
    """Horizontal bars of `values` (method, channel), on the scale of `every` (step, method, channel)."""
    from stratascope.tasks.report.style import COLOURS, INK, new_axes, to_svg

    figure, axes = new_axes(height=0.34 * len(channels) + 1.1)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x", color=INK, alpha=0.13, linewidth=0.7)
    thick = 0.8 / len(methods)
    for number, method in enumerate(methods):
        places = np.arange(len(channels)) + (number - (len(methods) - 1) / 2) * thick
        axes.barh(
            places, np.nan_to_num(values[number]), height=thick, color=COLOURS[number], label=method.replace("_", " ").replace(" times ", " × ")
        )  # fmt: skip
    finite = every[np.isfinite(every)]
    low, high = min(0.0, float(finite.min(initial=0))), max(0.0, float(finite.max(initial=0)))
    margin = 0.04 * (high - low) or 1.0
    axes.set_xlim(low - margin, high + margin)
    axes.axvline(0, color=INK, linewidth=0.9)
    axes.set_yticks(range(len(channels)), [str(channel) for channel in channels])
    axes.invert_yaxis()
    axes.set(xlabel="mean contribution to the score (logit)", ylabel="channel")
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9.5, labelcolor=INK)
    return to_svg(figure)


def _correlations(chosen: Sequence[LayerSeries]) -> Iterator[Figure]:
    from stratascope.tasks.vision.channel_measures import redundant_channels
    from stratascope.tasks.vision.map_drawing import ColourScale, picture_grid, signed_colours

    known = [one for one in chosen if all(one.at(step, "correlation") is not None for step in one.steps)]
    if not known:
        return
    steps = even_choice(known[0].steps, 3)
    known = [one for one in known if set(steps) <= set(one.steps)]
    pictures = []
    for one in known:
        found = [np.asarray(one.at(step, "correlation")) for step in steps]
        order = _similar_together(found[-1])
        # Of a wide layer every second, third … channel is drawn.
        order = order[:: -(-len(order) // _MOST_CORRELATED)]
        pictures.append([signed_colours(values[np.ix_(order, order)], 1.0) for values in found])
    deepest = known[-1]
    shares = [float(redundant_channels(np.asarray(deepest.at(step, "correlation")).copy()).mean()) for step in (steps[0], steps[-1])]  # fmt: skip
    n = len(deepest.by_step[steps[-1]][f"{deepest.probe}/sample_id"])
    numbers = {
        "layers": len(known), "steps": len(steps), "layer": deepest.layer, "first": shares[0], "last": shares[1],
        "channels": len(np.asarray(deepest.at(steps[-1], "correlation"))), "step": steps[-1], "start": steps[0],
        "n": n, "chance": 1 / np.sqrt(max(1, n - 1)),
    }  # fmt: skip
    table: dict[str, list[Any]] = {"layer": [], "step": [], "redundant_share": []}
    for one in known:
        for step in one.steps:
            table["layer"].append(one.layer)
            table["step"].append(step)
            table["redundant_share"].append(
                float(redundant_channels(np.asarray(one.at(step, "correlation"))).mean())
            )
    view = deepest.view
    yield worded(
        WORDS["correlations"], numbers, key=figure_key("correlations", deepest.probe),
        title=f"Channels that say the same, probe {deepest.probe}",
        svg=picture_grid(
            pictures, [one.layer for one in known], [f"step {step:,}" for step in steps],
            scale=ColourScale("correlation of the channels' means", 1.0, signed=True),
        ),
        run=view.run, probe=deepest.probe, table=table,
    )  # fmt: skip


def _similar_together(correlations: np.ndarray) -> np.ndarray:
    """An order (channel,) that puts those side by side that correlate; those that do not vary stand last."""
    from scipy.cluster.hierarchy import average, leaves_list
    from scipy.spatial.distance import squareform

    varies = np.flatnonzero(np.isfinite(np.diag(correlations)))
    others = np.setdiff1d(np.arange(len(correlations)), varies)
    if len(varies) < 3:
        return np.concatenate([varies, others])
    apart = 1 - np.abs(correlations[np.ix_(varies, varies)].astype(np.float64))
    apart = np.clip((apart + apart.T) / 2, 0, None)
    np.fill_diagonal(apart, 0)
    return np.concatenate([varies[leaves_list(average(squareform(apart, checks=False)))], others])
