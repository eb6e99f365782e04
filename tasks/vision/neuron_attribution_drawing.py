"""Pictures of what excites single channels: units side by side, and each over the steps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.representation.drift_mosaics import class_label, probe_rows
from stratascope.tasks.representation.pictures import even_choice, figure_key, leading_probe, table_of, worded
from stratascope.tasks.vision.attribution_methods import method_named
from stratascope.tasks.vision.trust_marks import failed_methods, marked

_MOST_STEPS = 8
_GRID_STEPS = 6
_MOST_SAMPLES = 5
_MOST_LAYERS = 3
_TABLE = ("step", "probe", "layer", "part", "value", "low", "high", "n", "unit", "convention")


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For up to three layers of the leading probe: all channels by each method, and the first channel over the steps."""
    rows = view.metric("unit_value")
    if not len(rows):
        return
    probe = leading_probe(view, rows["probe"].unique())
    rows = rows[rows["probe"] == probe]
    steps = even_choice(sorted({int(step) for step in rows["step"]}), _MOST_STEPS)
    layers = even_choice_of([name for name in view.layers("unit_value") if name in set(rows["layer"])])
    failed = {probe: failed_methods(view, probe)}
    titles = {name: method_named(name).title for name in options.methods}
    yield from marked(_of_layers(view, probe, layers, options.methods, steps), failed, titles)


def _of_layers(
    view: View, probe: str, layers: list[str], methods: tuple[str, ...], steps: list[int]
) -> Iterator[Figure]:
    for number, layer in enumerate(layers):
        units = _Units(view, probe, layer, methods, steps)
        for method in units.methods:
            yield units.side_by_side(method, number == len(layers) - 1 and method == units.methods[0])
        if units.methods and len(steps) > 1:
            yield units.over_steps(units.methods[0])


def even_choice_of(names: list[str]) -> list[str]:
    """At most three of `names`, the first and the last among them."""
    return [names[place] for place in even_choice(range(len(names)), _MOST_LAYERS)]


class _Units:
    """The channels of one layer that were asked about, with their maps at the drawn steps."""

    def __init__(self, view: View, probe: str, layer: str, methods: tuple[str, ...], steps: list[int]) -> None:
        from stratascope.tasks.report.mosaic import pictures_of
        from stratascope.tasks.vision.map_drawing import rgb_picture

        self.view, self.probe, self.layer, self.steps = view, probe, layer, steps
        self.arrays = {step: view.arrays(step) for step in steps}
        last = self.arrays[steps[-1]]
        start = f"{probe}/{layer}/"
        self.channels = sorted({int(key[len(start) :].split("/")[0]) for key in last if key.startswith(start)})
        self.methods = [name for name in methods if all(self._key(channel, name) in found for channel in self.channels for found in self.arrays.values())]  # fmt: skip
        identity = last[f"{probe}/sample_id"]
        self.rows = list(range(min(len(identity), _MOST_SAMPLES)))
        shown = view.probes[probe]
        found = pictures_of(shown, probe_rows(shown, identity[self.rows])) if view.show_inputs else None
        self.pictures = None if found is None else [rgb_picture(item) for item in found]
        target = last.get(f"{probe}/target")
        self.names = [
            str(identity[row]) if target is None else class_label(shown, int(target[row])) for row in self.rows
        ]

    def _key(self, channel: int, method: str) -> str:
        return f"{self.probe}/{self.layer}/{channel}/{method}/map"

    def maps(self, channel: int, method: str) -> np.ndarray:
        """(step, sample, y, x): added over the picture's channels."""
        key = self._key(channel, method)
        return np.stack([self.arrays[step][key][self.rows].sum(1) for step in self.steps])

    def side_by_side(self, method: str, leads: bool) -> Figure:
        from stratascope.tasks.vision.map_drawing import (
            ColourScale,
            moving_picture_grid,
            scale_bound,
            signed_colours,
        )

        maps = {channel: self.maps(channel, method) for channel in self.channels}
        bounds = {channel: scale_bound(values) for channel, values in maps.items()}
        grids: list[list[list[np.ndarray | None]]] = []
        for place in range(len(self.steps)):
            lines: list[list[np.ndarray | None]] = []
            for row in self.rows:
                shown = [signed_colours(maps[channel][place, row] / (bounds[channel] or 1.0), 1.0) for channel in self.channels]  # fmt: skip
                lines.append([*([] if self.pictures is None else [self.pictures[row]]), *shown])
            grids.append(lines)
        heads = ([] if self.pictures is None else ["picture"]) + [
            f"channel {channel}" for channel in self.channels
        ]
        return worded(
            _WORDS["units"],
            self._numbers(method, maps),
            key=figure_key("units", self.probe, self.layer, method),
            title=f"What excites channels of {self.layer}: {method_named(method).title.lower()}, probe {self.probe}",
            frames=moving_picture_grid(
                self.steps, grids, self.names, heads, scale=ColourScale("share of each channel's own scale", 1.0, True)
            ),
            run=self.view.run, layer=self.layer, probe=self.probe, headline=leads, table=self._table(),
        )  # fmt: skip

    def over_steps(self, method: str) -> Figure:
        from stratascope.tasks.vision.map_drawing import ColourScale, picture_grid, scale_bound, signed_colours

        channel = self.channels[0]
        chosen = even_choice(range(len(self.steps)), _GRID_STEPS)
        maps = self.maps(channel, method)
        bound = scale_bound(maps[chosen])
        lines: list[list[np.ndarray | None]] = [
            [*([] if self.pictures is None else [self.pictures[row]]), *(signed_colours(maps[place, row], bound) for place in chosen)]
            for row in self.rows
        ]  # fmt: skip
        heads = ([] if self.pictures is None else ["picture"]) + [
            f"step {self.steps[place]:,}" for place in chosen
        ]
        return worded(
            _WORDS["steps"],
            self._numbers(method, {channel: maps}) | {"channel": channel},
            key=figure_key("steps", self.probe, self.layer, method),
            title=f"Channel {channel} of {self.layer} over training, probe {self.probe}",
            svg=picture_grid(lines, self.names, heads, scale=ColourScale("change of the channel per change of a pixel" if method == "gradient" else "attribution to the channel", bound, True)),
            run=self.view.run, layer=self.layer, probe=self.probe, table=self._table(),
        )  # fmt: skip

    def _numbers(self, method: str, maps: dict[int, np.ndarray]) -> dict[str, Any]:
        blank = sum(int((values[-1] == 0).all((1, 2)).sum()) for values in maps.values())
        silent = sum(int((self.arrays[self.steps[-1]][f"{self.probe}/{self.layer}/{channel}/value"] <= 0).all()) for channel in self.channels)  # fmt: skip
        words = method_named(method)
        return {
            "layer": self.layer, "method": words.title, "formula": words.formula, "lies": words.lies_when, "blank": blank,
            "shown": len(self.rows) * len(maps), "first": f"{self.steps[0]:,}", "last": f"{self.steps[-1]:,}", "silent": silent,
            "count": len(self.channels), "source": words.source,
        }  # fmt: skip

    def _table(self) -> dict[str, list[Any]]:
        return table_of(self.view.metric("unit_attribution_size", probe=self.probe, layer=self.layer), _TABLE)


_WORDS: dict[str, dict[str, str]] = {
    "units": {
        "shows": "For some samples what raises (red) and lowers (blue) each of {count} channels of {layer}, by {method}: {formula}. The slider goes from step {first} to {last}.",
        "reading": "Read down a column to learn what one channel looks for, and along a row to see how channels share a picture out.",
        "caution": "{blank} of the {shown} maps are zero at step {last}, and {silent} of the {count} channels are nowhere above 0 on these samples. Colours are full at each channel's own size, the same at all steps. {lies}",
        "audience": "For those who want to name what a channel does.",
        "practitioner": "A channel whose maps mark the same thing in every sample has a role that you can name; one whose maps scatter has none that a picture shows.",
        "researcher": "{source}, asked about the channel instead of an output; the forward pass ends at the layer. Channels are chosen by number, so that they are the same at every checkpoint, and not by what they say.",
    },
    "steps": {
        "shows": "What excites channel {channel} of {layer} in some samples, from step {first} to step {last}, by {method}.",
        "reading": "One scale of colours holds for all steps: a row that gains colour is a channel that comes to depend on the picture.",
        "caution": "{blank} of the {shown} maps are zero at step {last}. A channel may take over another's role; then its row changes although the layer as a whole does not. {lies}",
        "audience": "For readers who follow a single unit through training.",
        "practitioner": "Where nothing changes after an early step, this part of the network was settled then.",
        "researcher": "Neither the number nor the sign of a channel means anything across runs; within a run they are the same unit at every step.",
    },
}
