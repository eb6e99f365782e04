"""The pictures of an embedding: flat maps behind a slider, and a solid one to turn."""

from __future__ import annotations

from typing import Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View


def draw(view: View, options: Any) -> list[Figure]:
    """For each layer and method: the 2-D map by step, the 3-D map by step, and the quality of the maps."""
    figures: list[Figure] = []
    arrays = view.arrays()
    places = sorted({path.rsplit("/", 1)[0] for path in arrays})
    for place in places:
        probe, _, layer = place.partition("/")
        here = {path[len(place) + 1 :]: value for path, value in arrays.items() if path.startswith(f"{place}/")}
        for name in sorted(here):
            if name.endswith("_2d"):
                figures.append(_flat(view, probe, layer, name, here))
            elif name.endswith("_3d"):
                figures.append(_solid(view, probe, layer, name, here))
    quality = _quality(view)
    return [*figures, quality] if quality else figures


def _names(view: View, probe: str, targets: np.ndarray) -> dict[int, str]:
    names = view.probes[probe].class_names
    return {int(value): names[value] if value < len(names) else str(value) for value in np.unique(targets)}


def _flat(view: View, probe: str, layer: str, name: str, here: dict[str, np.ndarray]) -> Figure:
    from stratascope.tasks.report.style import COLOURS, new_axes, to_svg

    maps, steps, targets = here[name], here["step"], here.get("target")
    edge = float(np.abs(maps).max()) * 1.04
    words = _WORDS[name]
    frames = []
    thin = slice(None, None, max(1, maps.shape[1] // 600))
    for number, step in enumerate(steps):
        figure, axes = new_axes(5.6, 4.4)
        axes.grid(False)
        axes.set(
            xlim=(-edge, edge),
            ylim=(-edge, edge),
            xticks=[],
            yticks=[],
            xlabel="component 1",
            ylabel="component 2",
        )
        points = maps[number][thin]
        if targets is None:
            axes.scatter(*points.T, s=9, color=COLOURS[0], alpha=0.7, linewidths=0)
        else:
            for value, label in _names(view, probe, targets).items():
                inside = targets[thin] == value
                axes.scatter(
                    *points[inside].T,
                    s=9,
                    color=COLOURS[value % len(COLOURS)],
                    alpha=0.75,
                    linewidths=0,
                    label=label,
                )
            axes.legend(
                loc="center left",
                bbox_to_anchor=(1, 0.5),
                frameon=False,
                fontsize=8,
                markerscale=2,
                labelcolor="#123456",
            )
        frames.append((int(step), to_svg(figure)))
    return Figure(
        key=f"{name}-{probe}", title=f"{_TITLES[name]} of {layer}", frames=tuple(frames), run=view.run, layer=layer, probe=probe,
        caution=_caution(view, name, maps.shape[1], words), **{k: words[k] for k in ("shows", "reading", "audience", "practitioner", "researcher")},
    )  # fmt: skip


def _caution(view: View, name: str, count: int, words: dict[str, str]) -> str:
    trust = view.metric("trustworthiness", part=f"map={name}")["value"]
    method = "explained_variance" if name.startswith("pca") else "kl_divergence"
    number = view.metric(method, part=f"map={name}")["value"]
    lowest = float(trust.min()) if len(trust) else float("nan")
    verdict = "some neighbourhoods are torn" if lowest < 0.9 else "neighbourhoods are mostly kept"
    return words["caution"].format(
        n=count, trust=lowest, verdict=verdict, number=float(number.iloc[-1]) if len(number) else float("nan")
    )


def _solid(view: View, probe: str, layer: str, name: str, here: dict[str, np.ndarray]) -> Figure:
    from stratascope.tasks.report.style import COLOURS

    maps, steps, targets = here[name], here["step"], here.get("target")
    thin = slice(None, None, max(1, maps.shape[1] // 500))
    labels = _names(view, probe, targets) if targets is not None else {0: "samples"}
    groups = {
        value: (targets[thin] == value) if targets is not None else np.ones(len(maps[0][thin]), bool)
        for value in labels
    }

    def traces(number: int) -> list[dict[str, Any]]:
        points = np.round(maps[number][thin].astype(float), 3)
        return [
            {
                "type": "scatter3d", "mode": "markers", "name": labels[value],
                **dict(zip("xyz", (points[inside, k].tolist() for k in range(3)), strict=True)),
                "marker": {"size": 2.6, "color": COLOURS[value % len(COLOURS)], "opacity": 0.85},
                "hovertemplate": f"{labels[value]}<extra></extra>",
            }
            for value, inside in groups.items()
        ]  # fmt: skip

    edge = float(np.abs(maps).max()) * 1.04
    axis = {"range": [-edge, edge], "showticklabels": False, "showbackground": False, "zeroline": False}
    plot = {
        "data": traces(len(steps) - 1),
        "frames": [{"name": str(int(step)), "data": traces(number)} for number, step in enumerate(steps)],
        "layout": {
            "height": 520, "margin": {"l": 0, "r": 0, "t": 0, "b": 0}, "paper_bgcolor": "rgba(0,0,0,0)",
            "uirevision": "kept", "legend": {"itemsizing": "constant"},
            "scene": {f"{k}axis": {**axis, "title": {"text": f"component {n}"}} for n, k in enumerate("xyz", 1)} | {"aspectmode": "cube"},
        },
    }  # fmt: skip
    words = _WORDS[name]
    return Figure(
        key=f"{name}-{probe}", title=f"{_TITLES[name]} of {layer}", plotly=plot, run=view.run, layer=layer, probe=probe,
        caution=_caution(view, name, maps.shape[1], words), **{k: words[k] for k in ("shows", "reading", "audience", "practitioner", "researcher")},
    )  # fmt: skip


def _quality(view: View) -> Figure | None:
    from stratascope.tasks.report.style import lines

    rows = view.metric("knn_accuracy")
    if not len(rows):
        return None
    rows = rows[~rows["part"].str.contains("space=features") | rows["part"].str.startswith("map=pca_2d")]
    series = {}
    for part, group in rows.groupby("part"):
        pieces = dict(item.split("=") for item in str(part).split(";"))
        label = "features" if pieces["space"] == "features" else _TITLES.get(pieces["map"], pieces["map"])
        series[label] = (list(group["step"]), list(group["value"]))
    last = {name: values[1][-1] for name, values in series.items()}
    lost = last.get("features", float("nan")) - min(last.values())
    words = _WORDS["quality"]
    return Figure(
        key="quality", title="How well neighbours predict the class", svg=lines(series, "fraction right"), run=view.run,
        caution=words["caution"].format(lost=lost, n=int(rows["n"].min())), table={k: rows[k].tolist() for k in ("step", "layer", "part", "value", "n")},
        **{k: words[k] for k in ("shows", "reading", "audience", "practitioner", "researcher")},
    )  # fmt: skip


_TITLES = {"pca_2d": "PCA, flat", "pca_3d": "PCA, solid", "tsne_2d": "t-SNE, flat", "tsne_3d": "t-SNE, solid"}

_WORDS: dict[str, dict[str, Any]] = {
    "pca_2d": {
        "shows": "The samples on the two directions in which this layer's features vary most, coloured by class, step by step.",
        "reading": "Distances along the axes are true ones. Classes that lie apart here can be told apart by a straight line.",
        "caution": "The two directions hold {number:.0%} of the variance at the last step; what overlaps here may be apart in the rest. Lowest trustworthiness {trust:.2f}: {verdict}.",
        "audience": "For a first, honest look.",
        "practitioner": "When classes separate here already, a linear model on these features will do.",
        "researcher": "Each step has its own basis; maps are rotated backwards onto the next one by orthogonal Procrustes, without scaling, so growth stays visible.",
    },
    "pca_3d": {
        "shows": "The same principal directions with the third one added; drag to turn, slide to change the step.",
        "reading": "Turn it until two classes part: if no view parts them, three directions are not enough.",
        "caution": "Three directions hold {number:.0%} of the variance at the last step over {n} samples; perspective hides the rest. Lowest trustworthiness {trust:.2f}: {verdict}.",
        "audience": "For readers who want to see whether overlap is real or a matter of the view.",
        "practitioner": "Use it when the flat map shows two classes on top of each other.",
        "researcher": "Isotropic scale on all three axes and for all steps; compare radii over training for signs of collapse.",
    },
    "tsne_2d": {
        "shows": "A map that keeps near samples near, coloured by class, for every step from one common start.",
        "reading": "Islands are groups that the layer treats alike. Watch when an island parts from the others.",
        "caution": "Sizes of islands and gaps between them are no distances. Lowest trustworthiness over the steps {trust:.2f}: {verdict}; final divergence {number:.2f} nat with {n} samples.",
        "audience": "For everyone who wants to see classes form.",
        "practitioner": "Samples of one colour inside another island are good candidates for wrong labels.",
        "researcher": "Consensus start: the map of the mean affinities, then exaggeration 4 for 150 iterations at each step. Apparent calm between steps is partly owed to the shared start.",
    },
    "tsne_3d": {
        "shows": "The neighbourhood-keeping map with a third dimension; drag to turn, slide to change the step.",
        "reading": "Groups that touch in the flat map often come apart here; turn before you conclude.",
        "caution": "Depth makes gaps look larger than they are; {n} samples, lowest trustworthiness {trust:.2f}: {verdict}, final divergence {number:.2f} nat.",
        "audience": "For exploring groups that the flat map squeezes together.",
        "practitioner": "If a class stays split from every angle, look for two kinds of pictures under one label.",
        "researcher": "Barnes–Hut gradients, same perplexity and consensus as in two dimensions, so the divergence is directly comparable with that map's.",
    },
    "quality": {
        "shows": "How often a sample's nearest neighbours vote for its class: in the layer's features and in each map.",
        "reading": "The features' line is what the layer knows; a map below it has lost something, never gained.",
        "caution": "At the last step the poorest map loses {lost:.3f} against the features, over {n} samples; with fewer neighbours per class than 15 the vote itself is biased.",
        "audience": "For judging whether a pretty map may be believed.",
        "practitioner": "Trust the pictures where the lines run together; otherwise go by the features' line.",
        "researcher": "Leave-one-out with k = 15 in both spaces; a map above the features means that t-SNE denoised locally, not that information was added.",
    },
}
