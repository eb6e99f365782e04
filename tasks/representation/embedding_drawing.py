"""The pictures of an embedding: maps behind a slider, one to explore, and how far they may be believed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.representation.embedding_explorer import explorer_figure
from stratascope.tasks.representation.embedding_figures import belief_figures
from stratascope.tasks.representation.embedding_words import STARTS, TITLES, words
from stratascope.tasks.representation.features import INPUT
from stratascope.tasks.representation.map_warnings import verdict, warnings_of
from stratascope.tasks.representation.pictures import even_choice, figure_key, layer_title, worded

_FLAT_POINTS = 600
_SOLID_POINTS = 500
_FRAMES = 40
_MOST_SPREAD = 5
"""Where the largest step's map is so many times as wide as the smallest's, one scale would leave a dot of the small ones."""
_MOST_CLASSES = 40
"""Of more different whole numbers than these, targets are taken for amounts."""


@dataclass
class LayerView:
    """The maps of one layer on one probe, read back from the disk."""

    view: View
    probe: str
    layer: str
    arrays: dict[str, np.ndarray]
    comparable: str

    @cached_property
    def steps(self) -> list[int]:
        return [int(step) for step in self.arrays["step"]]

    @cached_property
    def names(self) -> list[str]:
        return [name for name in TITLES if name in self.arrays]

    @cached_property
    def groups(self) -> tuple[np.ndarray | None, dict[int, str]]:
        return colour_groups(self.arrays.get("target"), self.view.probes[self.probe].class_names)

    def inside(self, name: str) -> np.ndarray:
        """bool (sample,): which of the samples the map `name` holds."""
        every = self.arrays["sample_id"]
        if name.endswith("_3d") and "sample_id_3d" in self.arrays:
            return np.isin(every, self.arrays["sample_id_3d"])
        return np.ones(len(every), bool)

    def spread(self, name: str) -> float:
        """How many times as wide the widest step's map is as the narrowest's."""
        edges = self._edges(name)
        return float(edges.max() / edges.min())

    def drawn(self, name: str, places: list[int]) -> np.ndarray:
        """float (step, sample, component) at `places` of the steps: on one scale, or where that would leave dots of some
        maps each from -1 to 1."""
        maps: np.ndarray = self.arrays[name][places]
        if self.spread(name) <= _MOST_SPREAD:
            return maps
        return maps / self._edges(name)[places][:, None, None]

    def _edges(self, name: str) -> np.ndarray:
        return np.maximum(np.abs(self.arrays[name]).max(axis=(1, 2)).astype(np.float64), 1e-300)

    def facts(self, name: str) -> dict[str, Any]:
        """The attributes of one of the arrays; empty where there is none."""
        place = join_path("series", self.view.run, self.view.analysis, self.probe, self.layer, name)
        return self.view.store.array_info(place)[3] if name in self.arrays else {}

    def kept(self, name: str) -> str:
        """From which steps the common start was made, where later ones joined, and why it was made anew."""
        facts = self.facts(f"start_{name}")
        if not facts:
            return ""
        anew = f" It was made anew: {facts['made_anew']}." if facts["made_anew"] else ""
        joined = [step for step in self.steps if step not in facts["steps"]]
        if not joined or name.startswith("pca"):
            return anew
        return f" {len(joined)} of {len(self.steps)} steps joined after the common start was made.{anew}"


def layer_views(view: View, options: Any) -> list[LayerView]:
    arrays = view.arrays()
    found = []
    for place in sorted({path.rsplit("/", 1)[0] for path in arrays}):
        probe, _, layer = place.partition("/")
        here = {
            path[len(place) + 1 :]: value for path, value in arrays.items() if path.rpartition("/")[0] == place
        }
        found.append(LayerView(view, probe, layer, here, options.comparable))
    return found


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe one map to explore; for each layer the 2-D and 3-D maps by step, and how far they may be believed."""
    layers = layer_views(view, options)
    for probe in dict.fromkeys(here.probe for here in layers):
        figure = explorer_figure(view, probe, _in_order(view, [here for here in layers if here.probe == probe]))
        if figure is not None:
            yield figure
    for here in layers:
        for name in here.names:
            yield _map(here, name)
        yield from belief_figures(view, here.probe, here.layer, here.comparable)


def _in_order(view: View, layers: list[LayerView]) -> list[LayerView]:
    """`layers` in the order of execution, raw inputs first."""
    order = [INPUT, *view.layers("trustworthiness")]
    return sorted(layers, key=lambda here: order.index(here.layer))


def colour_groups(
    targets: np.ndarray | None, class_names: tuple[str, ...]
) -> tuple[np.ndarray | None, dict[int, str]]:
    """A group number for each sample (sample,) and the groups' names: classes, or five equal shares of amounts."""
    if targets is None or not len(targets) or (targets.dtype.kind == "f" and not np.isfinite(targets).all()):
        return None, {}
    values = np.unique(targets)
    if targets.dtype.kind in "iub" and len(values) <= _MOST_CLASSES:
        names = {
            int(value): class_names[value] if 0 <= value < len(class_names) else str(value) for value in values
        }
        return targets.astype(np.int64), names
    cuts = np.unique(np.quantile(targets, [0.2, 0.4, 0.6, 0.8]))
    groups = np.searchsorted(cuts, targets, side="left")
    ends = [f"up to {cut:.4g}" for cut in cuts] + [f"above {cuts[-1]:.4g}"]
    return groups, {int(value): ends[value] for value in np.unique(groups)}


def _map(here: LayerView, name: str) -> Figure:
    from stratascope.tasks.report.animation import animated_points
    from stratascope.tasks.report.style import moving_points

    view = here.view
    groups, names = here.groups
    chosen = [here.steps.index(step) for step in even_choice(here.steps, _FRAMES)]
    solid = name.endswith("_3d")
    thin = slice(None, None, -(-here.arrays[name].shape[1] // (_SOLID_POINTS if solid else _FLAT_POINTS)))
    groups = None if groups is None else groups[here.inside(name)][thin]
    maps = here.drawn(name, chosen)[:, thin]
    shown = [here.steps[place] for place in chosen]
    title = f"{TITLES[name]} of {layer_title(here.layer)}, probe {here.probe}"
    if solid:
        picture: dict[str, Any] = {"plotly": _solid(maps, shown, groups, names)}
    else:
        picture = {"frames": moving_points(shown, maps, groups, names)}
        if len(shown) > 1:
            picture["animation"] = animated_points(
                shown, maps, groups, names, f"{TITLES[name]} of {layer_title(here.layer)}"
            )
    return worded(
        words(name),
        _numbers(here, name, maps.shape[1]),
        key=figure_key(name, here.probe, here.layer),
        title=title,
        run=view.run,
        layer=here.layer,
        probe=here.probe,
        table=_points_table(here, name),
        **picture,
    )


def _numbers(here: LayerView, name: str, drawn: int) -> dict[str, Any]:
    where = {"probe": here.probe, "layer": here.layer, "part": f"map={name}"}
    trust = here.view.metric("trustworthiness", **where)
    lowest = trust.loc[trust["value"].idxmin()]
    measure = {"pca": "explained_variance", "tsne": "kl_divergence"}.get(name.split("_")[0], "trustworthiness")
    number = here.view.metric(measure, **where)
    warnings, scale = warnings_of(here.view, where), "One scale for all steps: growth and collapse can be seen."
    if here.spread(name) > _MOST_SPREAD:
        scale = f"The widest step's map is {here.spread(name):.0f} times as wide as the narrowest's: each is drawn on a scale of its own."
        warnings = f"{warnings} {scale}".strip()
    return {
        "n": here.arrays[name].shape[1], "drawn": drawn, "trust": lowest["value"], "step": int(lowest["step"]),
        "verdict": verdict(lowest["value"]), "number": number["value"].iloc[-1], "first": number["value"].iloc[0],
        "estimator": number["estimator"].iloc[-1], "warnings": warnings, "scale": scale,
        "starts": STARTS[here.comparable], "kept": here.kept(name),
    }  # fmt: skip


def _points_table(here: LayerView, name: str) -> dict[str, list[Any]]:
    """Where each sample lies at the last step."""
    placed, inside = here.arrays[name][-1].astype(float), here.inside(name)
    table: dict[str, list[Any]] = {
        "step": [here.steps[-1]] * len(placed),
        "sample_id": here.arrays["sample_id"][inside].tolist(),
    }
    if "target" in here.arrays:
        table["target"] = here.arrays["target"][inside].tolist()
    return table | {f"component_{axis + 1}": placed[:, axis].tolist() for axis in range(placed.shape[1])}


def _solid(maps: np.ndarray, steps: list[int], groups: np.ndarray | None, names: dict[int, str]) -> dict[str, Any]:
    from stratascope.tasks.report.style import COLOURS

    members = {0: np.ones(maps.shape[1], bool)} if groups is None else {value: groups == value for value in names}
    labels = names or {0: "samples"}

    def traces(number: int) -> list[dict[str, Any]]:
        points = np.round(maps[number].astype(float), 3)
        return [
            {
                "type": "scatter3d", "mode": "markers", "name": labels[value],
                **{axis: points[inside, place].tolist() for place, axis in enumerate("xyz")},
                "marker": {"size": 2.6, "color": COLOURS[value % len(COLOURS)], "opacity": 0.85},
                "hovertemplate": f"{labels[value]}<extra></extra>",
            }
            for value, inside in members.items()
        ]  # fmt: skip

    edge = float(np.abs(maps).max()) * 1.04
    axis = {"range": [-edge, edge], "showticklabels": False, "showbackground": False, "zeroline": False}
    return {
        "data": traces(len(steps) - 1),
        "frames": [{"name": str(step), "data": traces(number)} for number, step in enumerate(steps)],
        "layout": {
            "height": 520, "margin": {"l": 0, "r": 0, "t": 0, "b": 0}, "paper_bgcolor": "rgba(0,0,0,0)",
            "uirevision": "kept", "legend": {"itemsizing": "constant"},
            "scene": {f"{name}axis": {**axis, "title": {"text": f"component {number}"}} for number, name in enumerate("xyz", 1)} | {"aspectmode": "cube"},
        },
    }  # fmt: skip
