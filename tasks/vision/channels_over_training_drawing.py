"""The pictures of channels over the training: births and deaths, single lives, and what stays the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.representation.layer_heatmaps import LayerMap, layer_map
from stratascope.tasks.representation.pictures import figure_key, leading_probe, worded

_MAPS = (
    LayerMap("top_example_stability", "", "How far channels keep their strongest samples", "mean Jaccard index", "stable"),
    LayerMap("class_preference_change", "", "Channels that change their class", "share of channels", "preference"),
)  # fmt: skip
_MOST_LIVES = 60


def draw(view: View, options: Any) -> Iterator[Figure]:
    """Births and deaths of each probe, where there are any; the lives of single channels; what changes by layer."""
    probes = sorted(view.rows["probe"].unique())
    for probe in probes:
        yield from _changes(view, probe)
    if probes:
        yield from _lives(view, leading_probe(view, probes), options.layers)
    for probe in probes:
        for kind in _MAPS:
            yield from layer_map(view, kind, probe, _WORDS[kind.words], headline=kind.words == "stable")


def _changes(view: View, probe: str) -> Iterator[Figure]:
    births, deaths = (view.metric(name, probe=probe) for name in ("channel_birth", "channel_death"))
    if not len(births) or not births["value"].sum() + deaths["value"].sum():
        return
    steps = sorted({int(step) for step in births["step"]})
    totals = {
        name: np.array([float(rows.loc[rows["step"] == step, "value"].sum()) for step in steps])
        for name, rows in (("born", births), ("died", deaths))
    }
    widths = births.groupby("layer")["n"].max()
    by_layer = deaths.groupby("layer")["value"].sum()
    worst = str(by_layer.idxmax())
    numbers = {
        "born": int(totals["born"].sum()), "died": int(totals["died"].sum()), "channels": int(widths.sum()),
        "layers": len(widths), "layer": worst, "count": int(by_layer.max()),
        "step": steps[int((totals["born"] + totals["died"]).argmax())],
    }  # fmt: skip
    table: dict[str, list[Any]] = {name: [] for name in ("step", "layer", "born", "died")}
    for (_, one), (_, other) in zip(births.iterrows(), deaths.iterrows(), strict=True):
        table["step"].append(int(one["step"]))
        table["layer"].append(one["layer"])
        table["born"].append(int(one["value"]))
        table["died"].append(int(other["value"]))
    yield worded(
        _WORDS["changes"], numbers, key=figure_key("births-and-deaths", probe), run=view.run, probe=probe,
        title=f"Births and deaths of channels, probe {probe}", svg=_two_ways(steps, totals), table=table,
    )  # fmt: skip


def _two_ways(steps: list[int], totals: Mapping[str, np.ndarray]) -> str:
    """Bars over the steps, births upwards and deaths downwards."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    from stratascope.tasks.report.style import COLOURS, INK, new_axes, to_svg
    from stratascope.tasks.report.text import plain_step

    figure, axes = new_axes(height=2.9)
    places = np.arange(len(steps))
    axes.bar(places, totals["born"], color=COLOURS[2], label="born", width=0.8)
    axes.bar(places, -totals["died"], color=COLOURS[4], label="died", width=0.8)
    axes.axhline(0, color=INK, linewidth=0.9)
    every = max(1, -(-len(steps) // 8))
    shown = list(range(len(steps) - 1, -1, -every))[::-1]
    axes.set_xticks(shown, [plain_step(steps[place]) for place in shown])
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):g}"))
    axes.set(xlabel="training step, checkpoint by checkpoint", ylabel="channels")
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=9.5, labelcolor=INK)
    return to_svg(figure)


def _lives(view: View, probe: str, most: int) -> Iterator[Figure]:
    arrays = view.arrays()
    found = {}
    for layer in view.layers("channel_death"):
        dead = arrays.get(f"{probe}/{layer}/dead")
        if dead is not None and dead.any():
            found[layer] = dead
    for layer in sorted(found, key=lambda name: -int(np.abs(np.diff(found[name].astype(int), axis=0)).sum()))[
        :most
    ]:
        dead, steps = found[layer], arrays[f"{probe}/{layer}/step"]
        channels = np.flatnonzero(dead.any(0))
        # The longer dead the higher, so that the few that matter are seen where not all fit.
        shown = np.sort(channels[np.argsort(-dead[:, channels].sum(0), kind="stable")][:_MOST_LIVES])
        final = int(dead[-1].sum())
        numbers = {
            "layer": layer, "ever": len(channels), "channels": dead.shape[1], "final": final, "step": int(steps[-1]),
            "back": int((dead.any(0) & (dead[-1] == 0)).sum()), "shown": len(shown),
        }  # fmt: skip
        table = {
            "channel": channels.tolist(), "born_step": arrays[f"{probe}/{layer}/born_step"][channels].tolist(),
            "died_step": arrays[f"{probe}/{layer}/died_step"][channels].tolist(),
            "dead_at": [" ".join(str(step) for step in steps[dead[:, channel] > 0]) for channel in channels],
        }  # fmt: skip
        yield worded(
            _WORDS["lives"], numbers, key=figure_key("lives", probe, layer), run=view.run, layer=layer, probe=probe,
            title=f"When channels of {layer} are dead, probe {probe}",
            svg=_raster(dead[:, shown].T, shown, steps), table=table,
        )  # fmt: skip


def _raster(dead: np.ndarray, channels: np.ndarray, steps: np.ndarray) -> str:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    from stratascope.tasks.report.style import COLOURS, INK, new_axes, to_svg
    from stratascope.tasks.report.text import plain_step

    figure, axes = new_axes(height=max(1.9, 0.17 * len(channels) + 1.1))
    axes.grid(False)
    colours = (COLOURS[5], COLOURS[4])
    axes.imshow(dead, aspect="auto", cmap=ListedColormap(colours), vmin=0, vmax=1, interpolation="none")
    every = max(1, -(-len(channels) // 40))
    axes.set_yticks(range(0, len(channels), every), [str(channel) for channel in channels[::every]])
    stride = max(1, -(-len(steps) // 8))
    shown = list(range(len(steps) - 1, -1, -stride))[::-1]
    axes.set_xticks(shown, [plain_step(int(steps[place])) for place in shown])
    axes.set(xlabel="training step, checkpoint by checkpoint", ylabel="channel")
    handles = [Patch(color=colour, label=name) for colour, name in zip(colours, ("alive", "dead"), strict=True)]
    figure.legend(handles=handles, loc="outside upper left", ncols=2, frameon=False, fontsize=9.5, labelcolor=INK)
    return to_svg(figure)


_WORDS: dict[str, dict[str, str]] = {
    "changes": {
        "shows": "How many channels came to life since the checkpoint before, upwards, and how many died, downwards, over {layers} layers with a ReLU.",
        "reading": "Deaths early in training point at steps that were too large. Births later mean that the channels had been waiting behind a threshold.",
        "caution": "Of {channels} channels, {born} births and {died} deaths were seen, most at step {step}; {layer} lost most, {count}. What happened between two checkpoints and was undone is not seen.",
        "audience": "For anyone whose network loses capacity.",
        "practitioner": "Many deaths and few births: lower the first learning rate, or warm it up.",
        "researcher": "Dead means at most 0 before the ReLU on every sample and position of this probe. On more samples fewer channels are dead.",
    },
    "lives": {
        "shows": "The channels of {layer} that are dead at one checkpoint at least, and when.",
        "reading": "A row that stays dead to the right is lost; one that changes back and forth lies at its threshold.",
        "caution": "{ever} of {channels} channels were dead at some checkpoint, {final} are at step {step}, {back} came back; {shown} are drawn. One sample more may wake a channel.",
        "audience": "For people who prune, or who look for the cause of deaths.",
        "practitioner": "Channels that are dead at the end can be cut without any change for such inputs.",
        "researcher": "The weights of a dead channel get no gradient from these samples; weight decay or a norm's shift can still bring it back.",
    },
    "stable": {
        "shows": "How far the samples that excite a channel most are those of the checkpoint before, mean over each layer's channels: 1 for the same samples, 0 for none in common.",
        "reading": "Layers settle when their row becomes bright. Usually the first layers settle first.",
        "caution": "At step {step} {high} is the most stable, {high_value:.3g}, and {low} the least, {low_value:.3g}; {empty}. With few samples for each channel the index moves in large steps, and checkpoints far apart look less stable than near ones.",
        "audience": "For people who follow how features form.",
        "practitioner": "Interpret channels only where the row has become bright: before that they still change their meaning.",
        "researcher": "Order statistics of the extremes only; increasing functions of a channel do not change it.",
    },
    "preference": {
        "shows": "The share of each layer's channels whose preferred class is another one than at the checkpoint before.",
        "reading": "It falls as channels take up their classes. A late peak means that the layer reorganises.",
        "caution": "At step {step} it is highest in {high}, {high_value:.3g}, and lowest in {low}, {low_value:.3g}; {empty}. Channels that hardly prefer any class change it by chance.",
        "audience": "For people who follow how classes are parted.",
        "practitioner": "A layer that still changes at the end is worth more training or a smaller final rate.",
        "researcher": "The argmax of class means over the positions; compare with the class selectivity before reading anything into it.",
    },
}
