"""The pictures of agreement between heads: by layer over the steps, and all heads as a tree beside their distances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.tasks.analysis import Figure
from stratascope.tasks.report.text import plain_step, shortened
from stratascope.tasks.representation.pictures import figure_key, table_of, worded

if TYPE_CHECKING:
    from stratascope.tasks.contexts import View

_MOST_NAMED = 40
_SAME = 0.2
"""Heads nearer than this are counted as alike in the words."""


def agreement_figures(view: View, probe: str, titles: Mapping[str, str]) -> Iterator[Figure]:
    """Curves of agreement by layer, and the matrix of distances of all heads; layers are called by `titles`."""
    from stratascope.tasks.report.style import lines

    rows = view.metric("head_agreement", probe=probe)
    if len(rows):
        series, bands = {}, {}
        for layer in view.layers("head_agreement"):
            own = rows[rows["layer"] == layer]
            if len(own):
                name = titles.get(layer, layer)
                series[name], bands[name] = (list(own["step"]), list(own["value"])), (list(own["low"]), list(own["high"]))  # fmt: skip
        newest = rows[rows["step"] == rows["step"].max()]
        top = newest.loc[newest["value"].idxmax()]
        pair = newest.loc[newest["high"].idxmax()]
        first = rows[(rows["layer"] == top["layer"])].iloc[0]
        numbers = {
            "top": titles.get(top["layer"], top["layer"]), "value": top["value"], "step": plain_step(int(top["step"])),
            "start": first["value"], "first": plain_step(int(first["step"])), "n": int(top["n"]), "pair": pair["high"],
            "where": titles.get(pair["layer"], pair["layer"]),
        }  # fmt: skip
        yield worded(
            WORDS["agreement"], numbers, key=figure_key("agreement", probe), run=view.run, probe=probe,
            title=f"How alike the heads of a layer attend, probe {probe}", svg=lines(series, "agreement", bands=bands),
            table=table_of(rows, ("layer", "step", "value", "low", "high", "n")),
        )  # fmt: skip
    yield from _tree(view, probe, titles)


def _tree(view: View, probe: str, titles: Mapping[str, str]) -> Iterator[Figure]:
    from scipy.cluster.hierarchy import leaves_list, linkage, optimal_leaf_ordering
    from scipy.spatial.distance import squareform

    path = join_path("series", view.run, view.analysis, probe, "head_distance")
    if not view.store.has_array(path):
        return
    distances = view.store.array(path).astype(np.float64)
    if len(distances) < 3:
        return
    about = view.store.array_info(path)[3]
    names = [f"{titles.get(layer, layer)}, head {head}" for layer, head in zip(about["layers"], about["heads"], strict=True)]  # fmt: skip
    flat = squareform((distances + distances.T) / 2, checks=False)
    tree = optimal_leaf_ordering(linkage(flat, "average"), flat)
    order = leaves_list(tree)
    upper = np.triu_indices(len(distances), 1)
    near = int(flat.argmin())
    nearest = np.where(np.eye(len(distances), dtype=bool), np.inf, distances).min(1)
    lone = int(nearest.argmax())
    numbers = {
        "heads": len(names), "step": plain_step(int(about["step"])), "samples": about["samples"],
        "one": names[upper[0][near]], "other": names[upper[1][near]], "near": float(flat[near]), "lone": names[lone],
        "far": float(nearest[lone]), "alike": int((flat < _SAME).sum()), "pairs": len(flat),
        "same": _SAME,
    }  # fmt: skip
    yield worded(
        WORDS["tree"], numbers, key=figure_key("heads", probe), run=view.run, probe=probe,
        title=f"Which heads attend alike, probe {probe}", svg=_drawn(distances, names, order, tree),
        table={"head": [names[place] for place in upper[0]], "other_head": [names[place] for place in upper[1]], "distance": flat.tolist()},
    )  # fmt: skip


def _drawn(distances: np.ndarray, names: list[str], order: np.ndarray, tree: Any) -> str:
    from matplotlib.figure import Figure as Canvas
    from scipy.cluster.hierarchy import dendrogram

    from stratascope.tasks.report.style import INK, quiet, to_svg

    count = len(names)
    row = 0.24 if count <= 16 else 0.17 if count <= _MOST_NAMED else 6.0 / count
    canvas = Canvas(figsize=(6.4, max(2.4, row * count + 1.2)), dpi=72, layout="constrained")
    branches, axes = canvas.subplots(1, 2, width_ratios=(1, 3.2))
    quiet(branches)
    dendrogram(tree, ax=branches, orientation="left", no_labels=True, color_threshold=0, above_threshold_color="#6E7F8D")  # fmt: skip
    branches.set(xlabel="distance", ylim=(10 * count, 0), yticks=[])
    branches.grid(False)
    for side in ("left", "top", "right"):
        branches.spines[side].set_visible(False)
    quiet(axes)
    axes.grid(False)
    off = np.ma.masked_array(distances[np.ix_(order, order)], np.eye(count, dtype=bool))
    picture = axes.imshow(off, cmap="cividis", vmin=0, vmax=1, interpolation="none", aspect="auto")
    if count <= _MOST_NAMED:
        axes.set_yticks(
            range(count), [shortened(names[place], 26) for place in order], fontsize=9 if count <= 24 else 7
        )
    else:
        axes.set_yticks([])
    axes.set_xticks([])
    axes.set_xlabel("the same heads in the same order")
    bar = canvas.colorbar(picture, ax=axes, location="top", shrink=0.7, aspect=26, pad=0.02)
    bar.set_label("Jensen–Shannon distance", color=INK, fontsize=10)
    bar.ax.tick_params(colors=INK, labelsize=9, length=2)
    bar.outline.set_visible(False)
    return to_svg(canvas)


WORDS: dict[str, dict[str, str]] = {
    "agreement": {
        "shows": "How alike the heads of each layer attend, over the training: 1 where all look at the same keys, 0 where no two share one. Bands reach from the most different to the most similar pair.",
        "reading": "A line that falls is a layer whose heads took up different things; one that rises has heads that came to repeat one another. Before training heads agree as far as they are near uniform.",
        "caution": "At step {step} the heads of {top} agree most, {value:.2f} ({start:.2f} at step {first}); the most similar pair, {pair:.2f}, is in {where}. Over {n} shown samples. Heads that look alike can still say different things, since their values differ.",
        "audience": "For readers who ask whether fewer heads would do.",
        "practitioner": "A pair near 1 is a candidate for pruning one of the two; `head_importance` says what that costs.",
        "researcher": "Mean over pairs, queries and samples of 1 − √JSD in base 2. Uniform attention counts as agreement, whatever the values.",
    },
    "tree": {
        "shows": "All heads of the network, ordered so that those that attend alike stand together; the tree joins them by average distance, the colours give every distance at step {step}.",
        "reading": "Dark blocks are groups that do the same thing, often across layers. A head that joins late does something that no other does.",
        "caution": "The nearest two of {heads} heads are {one} and {other}, {near:.3f} apart; {lone} is farthest from all others, {far:.3f} from its nearest. {alike} of {pairs} pairs are nearer than {same:g}. Over {samples} shown samples, whose choice decides which patterns can be seen.",
        "audience": "For people who look for groups of heads.",
        "practitioner": "Name a group by one of its members, and read that one's weights.",
        "researcher": "Average linkage on mean Jensen–Shannon distances, leaves in the optimal order (Bar-Joseph et al. 2001); layers with other queries or keys are left out.",
    },
}  # fmt: skip
