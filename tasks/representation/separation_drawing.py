"""The pictures of the separation: scores by layer and step, layers against raw inputs, confusion, class means, collapse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.storage.names import step_directory
from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.representation.features import INPUT
from stratascope.tasks.representation.layer_heatmaps import (
    COLUMNS,
    LayerMap,
    layer_map,
    layers_in_order,
    newest_by_layer,
)
from stratascope.tasks.representation.pictures import (
    even_choice,
    figure_key,
    layer_title,
    leading_probe,
    table_of,
    worded,
)

_DRAWN_CLASSES = 30
_FRAMES = 24
_FEATURES = "space=features"
_MAPS = (
    LayerMap("knn_accuracy", _FEATURES, "Votes of the nearest neighbours", "fraction right", "knn"),
    LayerMap("silhouette", "", "Silhouette", "silhouette", "silhouette"),
    LayerMap("fisher_ratio", "", "Fisher ratio", "ratio, power of ten", "fisher", powers=True),
    LayerMap("davies_bouldin", "", "Davies–Bouldin index", "index, power of ten", "bouldin", powers=True),
    LayerMap("nc1", "", "Spread within classes (NC1)", "NC1, power of ten", "collapse_map", powers=True),
    LayerMap("nc4", "", "Nearest mean against the network (NC4)", "share that differ", "decision"),
)  # fmt: skip


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe the scores by layer and step, the newest step by layer, collapse over the steps; for each layer its classes."""
    for probe in sorted(set(view.rows["probe"].unique()) - {""}):
        yield from _profile(view, probe)
        for kind in _MAPS:
            yield from layer_map(view, kind, probe, _WORDS[kind.words], headline=kind.words == "knn")
        yield from _collapse(view, probe)
        for layer in layers_in_order(view, "silhouette", view.metric("silhouette", probe=probe)["layer"].unique()):
            yield from _confusion(view, probe, layer)
            yield from _cosines(view, probe, layer)


def _profile(view: View, probe: str) -> Iterator[Figure]:
    from stratascope.tasks.report.profiles import layer_profile

    wanted = {"votes, fraction right": ("knn_accuracy", _FEATURES), "silhouette": ("silhouette", "")}
    found = newest_by_layer(view, wanted, probe)
    if found is None:
        return
    step, layers, columns, table = found
    name = next(iter(columns))
    values = np.array(columns[name][0])
    null = view.metric("knn_accuracy", part=f"{_FEATURES};null=permuted", probe=probe)
    chance = null[null["step"] == step]["value"]
    mark = {"votes by chance": float(chance.mean())} if len(chance) else {}
    raw = values[layers.index(INPUT)] if INPUT in layers else np.nan
    better = [layer for layer, value in zip(layers, values, strict=True) if layer != INPUT and value > raw]
    place = int(np.nanargmax(values))
    numbers = {
        "n": int(table["n"].max()), "step": step, "best": layer_title(layers[place]), "value": float(values[place]),
        "first": f"{layer_title(better[0])} is the first layer above the raw inputs' {raw:.3f}" if better else "no layer is above the raw inputs" if np.isfinite(raw) else "the raw inputs were not measured",
        "chance": f"permuted labels give {mark['votes by chance']:.3f}" if mark else "chance was not measured",
    }  # fmt: skip
    yield worded(
        _WORDS["profile"],
        numbers,
        key=figure_key("profile", probe),
        title=f"Layers against the raw inputs at the newest step, probe {probe}",
        svg=layer_profile([layer_title(layer) for layer in layers], columns, "score", mark=mark),
        run=view.run,
        probe=probe,
        headline=probe == leading_probe(view, view.metric("silhouette")["probe"].unique()),
        table=table_of(table, COLUMNS),
    )


def _collapse(view: View, probe: str) -> Iterator[Figure]:
    """NC1 to NC4 over the steps, of what enters the last linear layer, or of the last layer that has them."""
    from stratascope.tasks.report.profiles import panels

    known = view.metric("nc3", probe=probe)
    rows = view.metric("nc1", probe=probe)
    layers = layers_in_order(view, "nc1", rows["layer"].unique())
    if not layers:
        return
    layer = str(known["layer"].iloc[-1]) if len(known) else layers[-1]

    def over_steps(metric: str, part: str = "") -> tuple[list[int], list[float]]:
        chosen = view.metric(metric, probe=probe, layer=layer, part=part)
        return list(chosen["step"]), list(chosen["value"])

    aspects = {"norms": "equinorm", "angles": "equiangle", "largest angle": "maximal_angle"}
    second = {name: over_steps("nc2", f"aspect={aspect}") for name, aspect in aspects.items()}
    charts = {
        "NC1: spread within classes": ({"nc1": over_steps("nc1")}, "NC1", True),
        "NC2: distance from a simplex": (second, "NC2", False),
        "NC3: means against weights": ({"nc3": over_steps("nc3")}, "NC3", False),
        "NC4: nearest mean against network": ({"nc4": over_steps("nc4")}, "share that differ", False),
    }
    charts = {
        title: (lines, label, logarithmic)
        for title, (series, label, logarithmic) in charts.items()
        if (lines := {name: pair for name, pair in series.items() if pair[0]})
    }
    own = rows[rows["layer"] == layer]
    role = view.probes[probe].role if probe in view.probes else "test"
    numbers = {
        "first": own["value"].iloc[0], "last": own["value"].iloc[-1], "step": int(own["step"].iloc[-1]),
        "n": int(own["n"].iloc[-1]), "layer": layer,
        "role": "the definition is about training samples, which these are" if role == "train" else f"the definition is about training samples, and this probe's role is {role}",
    }  # fmt: skip
    every = view.rows
    chosen = every[
        every["metric"].str.fullmatch("nc[1-4]") & (every["layer"] == layer) & (every["probe"] == probe)
    ]
    columns = ("metric", *COLUMNS)
    yield worded(
        _WORDS["collapse"],
        numbers,
        key=figure_key("collapse", probe),
        title=f"Neural collapse of {layer_title(layer)}, probe {probe}",
        svg=panels(charts),
        run=view.run,
        probe=probe,
        table=table_of(chosen[chosen["status"] == "ok"], columns),
    )


def _matrices(view: View, probe: str, layer: str, name: str) -> dict[int, np.ndarray]:
    """The array `name` of a layer at an even choice of the steps that have it; raw inputs at the newest only."""
    steps = sorted({int(step) for step in view.metric("silhouette", probe=probe, layer=layer)["step"]})
    found = {}
    for step in steps[-1:] if layer == INPUT else even_choice(steps, _FRAMES):
        path = join_path("runs", view.run, step_directory(step), "separation", probe, layer, name)
        if view.store.has_array(path):
            found[step] = view.store.array(path)
    return found


def _class_names(view: View, probe: str, layer: str) -> list[str]:
    from urllib.parse import unquote

    parts = view.metric("silhouette", probe=probe, layer=layer)["part"]
    names = dict.fromkeys(part for part in parts if part.startswith("class="))
    order = {name: place for place, name in enumerate(view.probes[probe].class_names)}
    plain = [unquote(part.removeprefix("class=")) for part in names]
    return sorted(plain, key=lambda name: (order.get(name, len(order)), int(name) if name.isdigit() else 0, name))


def _matrix_figure(
    view: View, probe: str, layer: str, key: str, found: dict[int, np.ndarray], axes: tuple[str, str, str], title: str,
    numbers: dict[str, Any], headline: tuple[str, list[str]],
) -> Figure:  # fmt: skip
    """Matrices of classes behind a slider over the steps, or one of them; `headline` names the table's value and classes."""
    from stratascope.tasks.report.style import heatmap, moving_heatmap

    column, names = headline
    steps = list(found)
    stacked = np.stack(list(found.values()))
    picture: dict[str, Any] = (
        {"svg": heatmap(stacked[0], names, names, *axes)}
        if len(steps) == 1
        else {"frames": moving_heatmap(stacked, steps, names, names, *axes)}
    )
    last = stacked[-1]
    count = len(names)
    return worded(
        _WORDS[key],
        numbers,
        key=figure_key(key, probe, layer),
        title=f"{title} in {layer_title(layer)}, probe {probe}",
        run=view.run,
        layer=layer,
        probe=probe,
        table={
            "step": [steps[-1]] * count**2,
            axes[1]: [name for name in names for _ in range(count)],
            axes[2]: names * count,
            column: last.ravel().tolist(),
        },
        **picture,
    )


def _confusion(view: View, probe: str, layer: str) -> Iterator[Figure]:
    found = _matrices(view, probe, layer, "confusion")
    names = _class_names(view, probe, layer)
    if not found or len(names) > _DRAWN_CLASSES or any(item.shape != (len(names),) * 2 for item in found.values()):
        return
    shares = {step: item / item.sum(1, keepdims=True) for step, item in found.items()}
    last = list(shares.values())[-1].copy()
    np.fill_diagonal(last, -1)
    true, given = np.unravel_index(int(last.argmax()), last.shape)
    counts = list(found.values())[-1]
    numbers = {
        "n": int(counts.sum()), "least": int(counts.sum(1).min()), "true": names[true], "given": names[given],
        "share": float(last[true, given]), "step": list(found)[-1], "layer": layer_title(layer),
    }  # fmt: skip
    yield _matrix_figure(
        view, probe, layer, "confusion", shares, ("share of the class", "class", "voted class"),
        "Which classes are taken for which", numbers, ("share", names),
    )  # fmt: skip


def _cosines(view: View, probe: str, layer: str) -> Iterator[Figure]:
    found = _matrices(view, probe, layer, "class_mean_cosine")
    names = _class_names(view, probe, layer)
    fitting = all(item.shape == (len(names),) * 2 for item in found.values())
    if not found or not fitting or not 2 < len(names) <= _DRAWN_CLASSES:
        return
    found = {step: np.where(np.eye(len(names), dtype=bool), np.nan, item) for step, item in found.items()}
    last = list(found.values())[-1]
    if not np.isfinite(last).any():
        return
    one, other = np.unravel_index(int(np.nanargmax(last)), last.shape)
    numbers = {
        "one": names[one], "other": names[other], "highest": float(np.nanmax(last)), "lowest": float(np.nanmin(last)),
        "ideal": -1 / (len(names) - 1), "step": list(found)[-1], "layer": layer_title(layer), "classes": len(names),
    }  # fmt: skip
    yield _matrix_figure(
        view, probe, layer, "cosines", found, ("cosine", "class", "other class"), "Angles between class means", numbers,
        ("cosine", names),
    )  # fmt: skip


_WORDS: dict[str, dict[str, str]] = {
    "profile": {
        "shows": "For every layer, at the newest step, how often a sample's nearest neighbours vote for its class, and the silhouette; bars are 95 % intervals, the dashed line is what votes give when labels are permuted.",
        "reading": "Read downwards along the network. Where points move right of those of the raw inputs, the network has made telling the classes easier than the data alone does.",
        "caution": "At step {step}, over {n} samples, {best} is highest with {value:.3f}; {first}; {chance}. Neighbours see Euclidean distances only.",
        "audience": "For everyone who asks where in the network the classes come apart.",
        "practitioner": "Layers after the last rise add little to telling classes apart: they are candidates for a smaller network.",
        "researcher": "Votes are leave-one-out, intervals come from halves without replacement. Compare layers of unlike width with care: distances concentrate as d grows.",
    },
    "knn": {
        "shows": "The share of samples whose class most of their nearest neighbours have, by layer and step.",
        "reading": "Rows that turn bright early are where classes part first; the raw inputs' row does not change.",
        "caution": "At step {step} the range is from {low} with {low_value:.3f} to {high} with {high_value:.3f}; {raw}. {n} samples, margins {margin}; {empty}.",
        "audience": "For watching since when each layer tells the classes apart.",
        "practitioner": "If the last row stays below the raw inputs, training has not begun to work.",
        "researcher": "The value depends on n and k: more samples give nearer neighbours. The null from permuted labels is filed beside it.",
    },
    "silhouette": {
        "shows": "How much nearer samples are to their own class than to the next one: 1 is apart, 0 is overlap, below 0 is wrong side.",
        "reading": "Bright rows are layers with compact classes. Low values with good votes mean classes that are connected but not round.",
        "caution": "Highest at step {step} is {high} with {high_value:.3f}, lowest {low} with {low_value:.3f}; {raw}. Taken over {n} samples, margins {margin}; {empty}.",
        "audience": "For judging whether clusters in a map are real.",
        "practitioner": "Look up the classes with the lowest silhouette in the findings: they are the ones to collect more data for.",
        "researcher": "Means of distances, so in many dimensions values shrink towards 0 for the same overlap; compare along a row rather than down a column.",
    },
    "fisher": {
        "shows": "The scatter of class means relative to the scatter within classes, as a power of ten.",
        "reading": "Every step up by 1 means ten times as much of the spread lies between classes as before.",
        "caution": "At step {step} from {low_value:.3g} ({low}) to {high_value:.3g} ({high}); {raw}. With {n} samples the margins are {margin}; {empty}.",
        "audience": "For those who compare a network with classical discriminant analysis.",
        "practitioner": "Read it beside the votes: when it rises and they do not, means move apart while single samples stay mixed.",
        "researcher": "Trace form: blind to correlation of features, so a linear classifier can do far better than it suggests. Chance is (C - 1) / (n - C), and the permuted rows confirm it.",
    },
    "bouldin": {
        "shows": "The mean over classes of how badly each is parted from the class it is nearest to, as a power of ten; low is good.",
        "reading": "Dark cells are layers in which even the worst pair of classes lies apart.",
        "caution": "Best at step {step} is {low} with {low_value:.3g}, worst {high} with {high_value:.3g}; {raw}. {n} samples; margins {margin}; {empty}.",
        "audience": "For readers who fear that an average hides one bad pair of classes.",
        "practitioner": "When it is high though votes are good, one pair of classes overlaps: the confusion by votes names it.",
        "researcher": "A maximum over pairs grows with the number of classes; do not compare probes that have different classes.",
    },
    "collapse_map": {
        "shows": "The spread within classes measured in the directions in which class means differ, as a power of ten.",
        "reading": "The lower, the more each class has become one point for that layer. It usually falls from layer to layer.",
        "caution": "At step {step} the value goes from {low_value:.3g} in {low} to {high_value:.3g} in {high}; {raw}. Based on {n} samples with margins {margin}; {empty}.",
        "audience": "For students of how depth compresses classes.",
        "practitioner": "A layer where it stops falling has taken its share of the work; deeper ones only rescale.",
        "researcher": "The pseudo-inverse runs over at most C - 1 directions; on test samples it stays above 0 as long as the classes overlap there.",
    },
    "decision": {
        "shows": "How often the class with the nearest mean in that layer is not the one that the network decides for.",
        "reading": "0 means that by this layer a sample's distance to class means already says what the network will answer.",
        "caution": "At step {step} {high} differs most, in {high_value:.3f}, {low} least, in {low_value:.3f}; {raw}. {n} samples were compared, margins {margin}; {empty}.",
        "audience": "For finding the layer at which the decision is made.",
        "practitioner": "If an early layer is near 0, a nearest-mean classifier on it can replace what follows.",
        "researcher": "The means are those of the same samples, so a small n flatters the agreement; it compares with decisions, not with labels.",
    },
    "collapse": {
        "shows": "The four measures of neural collapse over training: spread, the shape of the class means, their likeness to the weights, and the nearest-mean rule.",
        "reading": "All four fall towards 0 when a network is trained on past zero training error.",
        "caution": "NC1 of {layer} went from {first:.3g} to {last:.3g} at step {step}, over {n} samples; {role}.",
        "audience": "For readers of the theory of the last phase of training.",
        "practitioner": "A collapse that is complete on training samples but not on test samples shows how much is learned by heart.",
        "researcher": "Conventions as in Papyan, Han and Donoho 2020; each class weighs alike, weights are not centred, NC2 is of the class means. NC3 has a scale from 0 to 4.",
    },
    "confusion": {
        "shows": "For the samples of each class, which class their nearest neighbours vote for, as shares of the class.",
        "reading": "A bright diagonal means classes on their own. Bright cells beside it are pairs that this layer does not part.",
        "caution": "In {layer} at step {step} the largest error is {true} taken for {given}, {share:.3f} of its samples; the smallest class has {least} of {n} samples.",
        "audience": "For asking which classes a layer still mixes up.",
        "practitioner": "Pairs that stay bright through all layers look alike in the data itself; check their labels.",
        "researcher": "Votes tie towards the lower class number. Neighbour votes favour large classes: shares of rare classes are biased down.",
    },
    "cosines": {
        "shows": "The cosines between class means, seen from the mean of all of them.",
        "reading": "Alike colours off the diagonal mean classes at equal angles; bright pairs are classes that the layer puts on one side.",
        "caution": "In {layer} at step {step} cosines lie between {lowest:.2f} and {highest:.2f}, the highest of {one} and {other}; equal angles between {classes} classes would give {ideal:.3f}.",
        "audience": "For seeing which classes the network takes for relatives.",
        "practitioner": "Related classes with high cosines are where confusions will come from when data changes.",
        "researcher": "The diagonal is left out. Cosines say nothing of spread: two means at a wide angle may still overlap when both are near the centre.",
    },
}
