"""The pictures of an embedding: flat maps behind a slider, solid ones to turn, and how far they may be believed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.representation.pictures import even_choice, figure_key, table_of, worded

_FLAT_POINTS = 600
_SOLID_POINTS = 500
_FRAMES = 40
_MOST_CLASSES = 40
"""Of more different whole numbers than these, targets are taken for amounts."""


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe, layer and method the 2-D map by step and the 3-D map by step; and the quality of all maps."""
    arrays = view.arrays()
    places = sorted({path.rsplit("/", 1)[0] for path in arrays})
    for place in places:
        probe, _, layer = place.partition("/")
        here = {
            path[len(place) + 1 :]: value for path, value in arrays.items() if path.rpartition("/")[0] == place
        }
        for name in sorted(_TITLES.keys() & here.keys()):
            yield _map(view, probe, layer, name, here)
        yield from _quality(view, probe, layer)


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


def _map(view: View, probe: str, layer: str, name: str, here: dict[str, np.ndarray]) -> Figure:
    from stratascope.tasks.report.style import moving_points

    groups, names = colour_groups(here.get("target"), view.probes[probe].class_names)
    steps = [int(step) for step in here["step"]]
    chosen = [steps.index(step) for step in even_choice(steps, _FRAMES)]
    solid = name.endswith("_3d")
    thin = slice(None, None, -(-here[name].shape[1] // (_SOLID_POINTS if solid else _FLAT_POINTS)))
    maps = here[name][chosen][:, thin]
    shown = [steps[place] for place in chosen]
    groups = None if groups is None else groups[thin]
    picture: dict[str, Any] = (
        {"plotly": _solid(maps, shown, groups, names)}
        if solid
        else {"frames": moving_points(shown, maps, groups, names)}
    )
    trust = view.metric("trustworthiness", probe=probe, layer=layer, part=f"map={name}")
    lowest = trust.loc[trust["value"].idxmin()]
    measure = "explained_variance" if name.startswith("pca") else "kl_divergence"
    number = view.metric(measure, probe=probe, layer=layer, part=f"map={name}")
    numbers = {
        "n": here[name].shape[1], "drawn": maps.shape[1], "trust": lowest["value"], "step": int(lowest["step"]),
        "verdict": _verdict(lowest["value"]), "number": number["value"].iloc[-1], "first": number["value"].iloc[0],
    }  # fmt: skip
    return worded(
        _WORDS[name],
        numbers,
        key=figure_key(name, probe, layer),
        title=f"{_TITLES[name]} of {layer}, probe {probe}",
        run=view.run,
        layer=layer,
        probe=probe,
        table=_points_table(here, name, view.probes[probe].class_names),
        **picture,
    )


def _verdict(trust: float) -> str:
    if trust >= 0.95:
        return "neighbourhoods are kept"
    return "neighbourhoods are mostly kept" if trust >= 0.9 else "some neighbourhoods are torn"


def _points_table(here: dict[str, np.ndarray], name: str, class_names: tuple[str, ...]) -> dict[str, list[Any]]:
    """Where each sample lies at the last step."""
    placed = here[name][-1].astype(float)
    table: dict[str, list[Any]] = {
        "step": [int(here["step"][-1])] * len(placed),
        "sample_id": here["sample_id"].tolist(),
    }
    if "target" in here:
        table["target"] = here["target"].tolist()
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


def _quality(view: View, probe: str, layer: str) -> list[Figure]:
    from stratascope.tasks.report.style import lines

    rows = view.metric("knn_accuracy", probe=probe, layer=layer)
    if not len(rows):
        return []
    series = {}
    for part, group in rows.groupby("part"):
        label = "features" if part == "space=features" else _TITLES.get(str(part).removeprefix("map="), str(part))
        series[label] = (list(group["step"]), list(group["value"]))
    last = {name: values[1][-1] for name, values in series.items()}
    maps = {name: value for name, value in last.items() if name != "features"}
    poorest = min(maps, key=lambda name: maps[name])
    chance = _commonest_share(view, probe)
    numbers = {
        "poorest": poorest, "lost": last["features"] - maps[poorest], "n": int(rows["n"].min()),
        "used": rows["convention"].iloc[0], "chance": chance,
    }  # fmt: skip
    return [
        worded(
            _WORDS["quality"],
            numbers,
            key=figure_key("quality", probe, layer),
            title=f"How well neighbours predict the class: {layer}, probe {probe}",
            svg=lines(series, "fraction right"),
            run=view.run,
            layer=layer,
            probe=probe,
            table=table_of(rows, ("step", "probe", "layer", "part", "value", "n", "convention")),
        )
    ]


def _commonest_share(view: View, probe: str) -> float:
    targets = view.probes[probe].targets
    assert targets is not None
    _, sizes = np.unique(targets, return_counts=True)
    return float(sizes.max() / sizes.sum())


_TITLES = {"pca_2d": "PCA in 2-D", "pca_3d": "PCA in 3-D", "tsne_2d": "t-SNE in 2-D", "tsne_3d": "t-SNE in 3-D"}

_WORDS: dict[str, dict[str, str]] = {
    "pca_2d": {
        "shows": "The samples in the plane in which this layer's features vary most, coloured by class; the slider moves through training.",
        "reading": "Distances within the plane are true ones. Classes that lie apart here can be told apart by a straight line.",
        "caution": "The plane holds {number:.0%} of the variance at the last step ({first:.0%} at the first): what overlaps here may be apart in the rest. Trustworthiness is lowest at step {step} with {trust:.2f}: {verdict}. {drawn} of {n} samples are drawn.",
        "audience": "For a first, honest look.",
        "practitioner": "When classes separate here already, a linear model on these features will do.",
        "researcher": "Each step has its own plane, found by exact PCA; within it the picture is turned onto that of the following step by orthogonal Procrustes, without scaling, so that growth stays visible. Only at the last step are the two axes the components themselves.",
    },
    "pca_3d": {
        "shows": "The same principal directions with the third one added; drag to turn, slide to change the step.",
        "reading": "Turn it until two classes part: if no view parts them, three directions are not enough.",
        "caution": "Three directions hold {number:.0%} of the variance at the last step over {n} samples, of which {drawn} are drawn; perspective hides the rest. Trustworthiness is lowest at step {step} with {trust:.2f}: {verdict}.",
        "audience": "For readers who want to see whether overlap is real or a matter of the view.",
        "practitioner": "Use it when the flat map shows two classes on top of each other.",
        "researcher": "One scale on all three axes and for all steps: compare radii over training for signs of collapse.",
    },
    "tsne_2d": {
        "shows": "A map that keeps near samples near, coloured by class, for every step from one common start.",
        "reading": "Islands are groups that the layer treats alike. Watch when an island parts from the others.",
        "caution": "Sizes of islands and gaps between them are no distances. Trustworthiness is lowest at step {step} with {trust:.2f}: {verdict}. The divergence is {number:.2f} nat at the end, over {n} samples, of which {drawn} are drawn.",
        "audience": "For everyone who wants to see classes form.",
        "practitioner": "Samples of one colour inside another's island are good candidates for wrong labels.",
        "researcher": "Consensus start: the map of the mean affinities of all steps, then 75 iterations under exaggeration 4 at each step. Part of the calm between steps is owed to the shared start, and all maps move a little when a checkpoint is added.",
    },
    "tsne_3d": {
        "shows": "The map that keeps neighbourhoods, with a third dimension; drag to turn, slide to change the step.",
        "reading": "Groups that touch in the flat map often come apart here; turn before you conclude.",
        "caution": "Depth makes gaps look larger than they are. {n} samples, {drawn} of them drawn; trustworthiness is lowest at step {step} with {trust:.2f}: {verdict}; divergence {number:.2f} nat at the end.",
        "audience": "For exploring groups that the flat map squeezes together.",
        "practitioner": "If a class stays split from every angle, look for two kinds of samples under one label.",
        "researcher": "Same affinities, perplexity and kind of start as in two dimensions, so its divergence can be set beside that map's; gradients are Barnes–Hut's with angle 0.8.",
    },
    "quality": {
        "shows": "How often a sample's nearest neighbours vote for its class: among the layer's features and in each map.",
        "reading": "The features' line is what the layer knows. A map below it has lost something on the way to the picture.",
        "caution": "At the last step {poorest} loses most against the features, {lost:.3f}, over {n} samples ({used}); always answering the commonest class would score {chance:.3f}.",
        "audience": "For judging whether a pretty map may be believed.",
        "practitioner": "Trust the pictures where the lines run together; otherwise go by the features' line.",
        "researcher": "Leave one out, the same k in all spaces. A map above its features means that t-SNE smoothed locally, not that information was added.",
    },
}
