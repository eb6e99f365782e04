"""The picture of a class as a graph: its channels layer by layer, and which of them feed which."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.representation.layer_heatmaps import LayerMap, layer_map
from stratascope.tasks.representation.pictures import even_choice, figure_key, leading_probe, worded

_FRAMES = 8
_CLASSES = 3
_MOST_NODES = 9
"""So many channels of a layer are drawn at most."""
_OVERLAP = LayerMap("class_channel_overlap", "", "Channels that classes share", "mean Jaccard index", "overlap")


def draw(view: View, options: Any) -> Iterator[Figure]:
    """How much classes share by layer and step; for the leading probe the graphs of a few classes."""
    from stratascope.storage.archive import join_path
    from stratascope.storage.names import step_directory

    probes = sorted(view.rows["probe"].unique())
    for probe in probes:
        yield from layer_map(view, _OVERLAP, probe, _WORDS["overlap"], headline=True)
    if not probes:
        return
    probe = leading_probe(view, probes)
    by_step = {step: view.arrays(step) for step in view.steps}
    steps = even_choice([step for step, arrays in by_step.items() if f"{probe}/pagerank" in arrays], _FRAMES)
    if not steps:
        return
    place = join_path("runs", view.run, step_directory(steps[-1]), view.analysis, probe, "node")
    told = view.store.array_info(place)[3]
    sizes = by_step[steps[-1]][f"{probe}/class_size"]
    present = np.flatnonzero(sizes).tolist()
    wanted = [number for number in options.classes if number in present] or present[:_CLASSES]
    graphs = {
        step: DrawnGraph(by_step[step], probe, list(told["layers"]), float(told["node_share"])) for step in steps
    }
    for number in wanted:
        yield _class_figure(view, probe, number, graphs)


class DrawnGraph:
    """One step's graph as it is drawn: for a class the chosen channels of each layer and the edges between them."""

    def __init__(self, arrays: dict[str, np.ndarray], probe: str, layers: list[str], share: float) -> None:
        self.layers, self.share = layers, share
        self.edge, self.weight, self.node, self.rank = (
            arrays[f"{probe}/{name}"] for name in ("edge", "weight", "node", "pagerank")
        )
        self.activation, self.sizes = arrays[f"{probe}/activation"], arrays[f"{probe}/class_size"]
        self.sources = [arrays[f"{probe}/{layer}/source"] for layer in layers]

    def chosen(self, number: int) -> list[list[tuple[int, float]]]:
        """For each layer the channels of class `number` with their share of the layer's mass, by channel."""
        from stratascope.tasks.vision.channel_measures import strongest_by_mass

        found = []
        for layer in range(len(self.layers)):
            mass = self.rank[number, self.node[:, 0] == layer].astype(np.float64)
            total = mass.sum() or 1.0
            members = np.flatnonzero(strongest_by_mass(mass[None], self.share)[0])
            strongest = np.sort(members[np.argsort(-mass[members], kind="stable")][:_MOST_NODES])
            found.append([(int(channel), float(mass[channel] / total)) for channel in strongest])
        return found

    def edges(self, number: int) -> list[tuple[int, int, int, int, float]]:
        """(source's layer, channel, layer, channel, weight) of the edges between chosen channels of class `number`."""
        members = [{channel for channel, _ in layer} for layer in self.chosen(number)]
        found = []
        mine = self.edge[:, 0] == number
        for (_, layer, out, into), weight in zip(
            self.edge[mine].tolist(), self.weight[mine].tolist(), strict=True
        ):
            below, channel = self.sources[layer][into].tolist()
            if below >= 0 and out in members[layer] and channel in members[below]:
                found.append((below, channel, layer, out, float(weight)))
        return sorted(found)


def _class_figure(view: View, probe: str, number: int, graphs: dict[int, DrawnGraph]) -> Figure:
    steps = list(graphs)
    last = graphs[steps[-1]]
    names = view.probes[probe].class_names
    name = names[number] if number < len(names) else str(number)
    edges = last.edges(number)
    chosen = last.chosen(number)
    frames = tuple((step, _drawn(graph, number, name)) for step, graph in graphs.items())
    table: dict[str, list[Any]] = {
        key: [] for key in ("step", "from_layer", "from_channel", "layer", "channel", "share_of_samples")
    }
    for step, graph in graphs.items():
        for below, channel, layer, out, weight in graph.edges(number):
            line = (step, graph.layers[below], channel, graph.layers[layer], out, weight)
            for key, value in zip(table, line, strict=True):
                table[key].append(value)
    alone = sum(
        1 for layer, members in enumerate(chosen) for channel, _ in members
        if not any((below, source) == (layer, channel) or (above, out) == (layer, channel) for below, source, above, out, _ in edges)
    )  # fmt: skip
    strongest = max(edges, key=lambda edge: edge[4]) if edges else None
    numbers = {
        "name": name, "layers": len(last.layers), "nodes": sum(map(len, chosen)), "channels": len(last.node),
        "edges": len(edges), "step": f"{steps[-1]:,}", "n": int(last.sizes[number]), "share": last.share, "alone": alone,
        "strongest": "no edge joins them"
        if strongest is None
        else f"the strongest edge, from channel {strongest[1]} of {last.layers[strongest[0]]} to {strongest[3]} of {last.layers[strongest[2]]}, counted for {strongest[4]:.0%} of the samples",
    }  # fmt: skip
    return worded(
        _WORDS["graph"], numbers, key=figure_key("graph", probe, str(number)), run=view.run, probe=probe, frames=frames,
        title=f"Channels that make up class {name}, probe {probe}", table=table,
    )  # fmt: skip


def _drawn(graph: DrawnGraph, number: int, name: str) -> str:
    from matplotlib.figure import Figure as Canvas

    from stratascope.tasks.report.style import COLOURS, INK, to_svg
    from stratascope.tasks.report.text import shortened

    chosen = graph.chosen(number)
    width, line, left = 6.4, 0.5, 1.75
    height = line * (len(chosen) + 1) + 0.2
    canvas = Canvas(figsize=(width, height), dpi=72)
    axes = canvas.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    places: dict[tuple[int, int], tuple[float, float]] = {}
    for layer, members in enumerate(chosen):
        down = height - line * (layer + 1) - 0.05 - line / 2
        axes.text(left - 0.15, down, shortened(graph.layers[layer], 22), ha="right", va="center", fontsize=9.5, color=INK)  # fmt: skip
        for order, (channel, _) in enumerate(members):
            across = left + (width - left - 0.1) * (order + 0.5) / len(members)
            places[layer, channel] = across, down
    for below, channel, layer, out, weight in graph.edges(number):
        (x1, y1), (x2, y2) = places[below, channel], places[layer, out]
        axes.plot([x1, x2], [y1, y2], color=COLOURS[0], linewidth=0.6 + 3.4 * weight, alpha=0.25 + 0.5 * weight, solid_capstyle="round", zorder=1)  # fmt: skip
    for layer, members in enumerate(chosen):
        for channel, share in members:
            x, y = places[layer, channel]
            axes.plot([x], [y], "o", markersize=15 + 12 * min(1.0, share), color=COLOURS[1], zorder=2, markeredgewidth=0)  # fmt: skip
            axes.text(x, y, str(channel), ha="center", va="center", fontsize=8.5, color="#1b1b1b", zorder=3)
    middle = left + (width - left - 0.1) / 2
    axes.text(left - 0.15, height - line / 2 - 0.02, "input", ha="right", va="center", fontsize=9.5, color=INK)
    axes.text(middle, height - line / 2 - 0.02, "picture", ha="center", va="center", fontsize=9.5, color=INK)
    axes.text(middle, 0.16, f"class {shortened(name, 30)}", ha="center", va="center", fontsize=10.5, weight="bold", color=INK)  # fmt: skip
    return to_svg(canvas)


_WORDS: dict[str, dict[str, str]] = {
    "overlap": {
        "shows": "How far two classes are made of the same channels in each layer, mean over all pairs of classes: 1 where they share all, 0 where none.",
        "reading": "First layers are shared by all classes; the row at which it becomes dark is where classes part.",
        "caution": "At step {step} it is highest in {high}, {high_value:.3g}, and lowest in {low}, {low_value:.3g}, over {n} classes; {empty}. A layer with one channel that is strong for everything looks shared.",
        "audience": "For people who look for the layer at which classes part.",
        "practitioner": "Layers before the drop can be shared between tasks; those after it are special to these classes.",
        "researcher": "Jaccard's index of the sets of fewest channels that hold a share of the PageRank's mass; it jumps where the sets are small.",
    },
    "graph": {
        "shows": "The channels that class {name} is made of in {layers} convolutions, the first at the bottom, and which of them feed which.",
        "reading": "Numbers are channels; a larger disc holds more of its layer's mass. A line is the wider the more samples have the lower channel among the strongest inputs of the upper one. Follow wide lines from the bottom: they are the parts that the class is put together from.",
        "caution": "{nodes} of {channels} channels are shown at step {step}, the fewest with {share:.0%} of each layer's mass, and {edges} edges over {n} samples of the class; {alone} channels stand alone; {strongest}. Where a shortcut is added, what arrives is the sum, and the line goes to the convolution that ran last.",
        "audience": "For people who want to see how a class is put together.",
        "practitioner": "Compare two classes that are confused: the first channel that only one of them has is what parts them.",
        "researcher": "After Summit (Hohman et al. 2019). Influence is the spatial maximum of each single-channel convolution, its inputs rank by it within each sample; the walk runs back from the channels to those that feed them. It counts what is strong, not what changes the score.",
    },
}
