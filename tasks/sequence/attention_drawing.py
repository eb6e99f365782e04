"""The pictures of attention: alignments, heads, boxes by layer, sinks, known patterns, lags, and looks laid over pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.report.text import plain_step
from stratascope.tasks.representation.pictures import even_choice, figure_key, leading_probe, worded
from stratascope.tasks.sequence.attention_filed import (
    Axis,
    FiledAttention,
    FiledLayer,
    drawn_steps,
    in_line,
    note_of,
    residual_note,
    rows_of,
)
from stratascope.tasks.sequence.attention_score_drawing import box_figures, score_figures
from stratascope.tasks.sequence.attention_words import WORDS

if TYPE_CHECKING:
    from stratascope.tasks.contexts import View

_PANELS = 4
_ALIGNED = 3
"""So many layers that align two sequences are drawn at most."""
_GRID = (12, 12)
"""Layers and heads of the grid at most."""
_THUMB = 48


def draw(view: View, options: Any) -> Iterator[Figure]:
    """All figures for the leading probe; for the others the alignments and the boxes."""
    from stratascope.tasks.sequence.attention_picture_drawing import picture_figures

    found = view.metric("attention_entropy")
    present = [name for name in found["probe"].unique() if name in view.probes]
    if not present:
        return
    lead = leading_probe(view, present)
    for name in sorted(present, key=lambda probe: (probe != lead, probe)):
        filed = FiledAttention(view, view.probes[name])
        yield from _alignments(filed, name == lead)
        if name == lead:
            yield from _heads(filed)
            yield from picture_figures(filed)
            yield from _grid(filed)
        yield from box_figures(filed)
        if name == lead:
            yield from score_figures(filed)


def _cut(axes: Sequence[tuple[Axis, Axis]]) -> str:
    longest = max((axis for pair in axes for axis in pair), key=lambda axis: axis.real)
    if longest.real <= len(longest.words):
        return ""
    return f"Only the first {len(longest.words)} of {longest.real} tokens are drawn. "


def _sharpness(matrix: np.ndarray) -> float:
    """The largest weight of a row, mean over the rows that have any."""
    largest = matrix.max(1)
    return float(largest[largest > 0].mean()) if (largest > 0).any() else 0.0


def _over_steps(
    layer: FiledLayer, steps: Sequence[int], place: int, head: int, axes: tuple[Axis, Axis]
) -> np.ndarray | None:
    """(step, query, key): the weights of one head on one shown sample, real tokens only; None where a step has none."""
    found = []
    for step in steps:
        weights = layer.array(step, "weights")
        if weights is None or len(weights) <= place:
            return None
        found.append(weights[place, head][np.ix_(axes[0].places, axes[1].places)].astype(np.float32))
    return np.stack(found)


def _alignments(filed: FiledAttention, leads: bool) -> Iterator[Figure]:
    from stratascope.tasks.sequence.attention_charts import matrix_panels

    across = [layer for layer in filed.layers if layer.about.get("query_input") != layer.about.get("key_input")]
    for layer in across[:_ALIGNED]:
        steps = drawn_steps(layer.steps)
        newest = layer.array(steps[-1], "weights")
        if newest is None or not len(newest):
            continue
        head = layer.ranked[0]
        places = range(min(_PANELS, len(newest)))
        axes = [filed.axes(layer, place, newest.shape) for place in places]
        matrices = [_over_steps(layer, steps, place, head, axes[place]) for place in places]
        if any(matrix is None for matrix in matrices):
            continue
        heads = newest.shape[1]
        numbers = {
            "layer": layer.layer, "count": len(axes), "head": f", head {head} of {heads}" if heads > 1 else "",
            "sample": filed.sample_name(0), "step": plain_step(steps[-1]), "sharp": _sharpness(matrices[0][-1]),  # type: ignore[index]
            "even": 1 / len(axes[0][1].words), "cut": _cut(axes), "note": note_of(filed, [layer], "attention_entropy_share"),
            "residual": residual_note([layer]),
        }  # fmt: skip
        yield worded(
            WORDS["alignment"], numbers, key=figure_key("alignment", filed.probe.name, layer.layer),
            title=f"Alignment by {layer.layer}, probe {filed.probe.name}",
            frames=matrix_panels(
                steps, [item for item in matrices if item is not None], [filed.sample_name(place) for place in places],
                [(query.words, key.words) for query, key in axes], (axes[0][0].label, axes[0][1].label),
            ),
            run=filed.view.run, layer=layer.layer, probe=filed.probe.name, headline=leads and layer is across[0],
            table=_matrix_table(axes[0], matrices[0][-1], layer, head),  # type: ignore[index]
        )  # fmt: skip


def _matrix_table(
    axes: tuple[Axis, Axis], matrix: np.ndarray, layer: FiledLayer, head: int
) -> dict[str, list[Any]]:
    """The weights of the first panel at the newest step."""
    queries, keys = (axis.words for axis in axes)
    count = matrix.size
    return {
        "step": [layer.steps[-1]] * count, "layer": [layer.layer] * count, "head": [head] * count,
        "query": [word for word in queries for _ in keys], "key": list(keys) * len(queries), "weight": matrix.ravel().tolist(),
    }  # fmt: skip


def _chosen_heads(layers: Sequence[FiledLayer], most: int) -> list[tuple[FiledLayer, int]]:
    """The heads that do one known thing most: of each score the best one, then by their highest score."""
    known: list[tuple[float, str, FiledLayer, int]] = []
    for layer in layers:
        scores = layer.scores(layer.steps[-1])
        names = [name for name in scores if name.endswith("_score")] or ["attention_entropy_share"]
        for name in names:
            values = scores[name] if name.endswith("_score") else 1 - scores[name]
            known += [
                (float(np.nan_to_num(value, nan=-1.0)), name, layer, head) for head, value in enumerate(values)
            ]
    known.sort(key=lambda item: -item[0])
    firsts = {name: place for place, (_, name, _, _) in reversed(list(enumerate(known)))}
    order = sorted(range(len(known)), key=lambda place: (place not in firsts.values(), place))
    chosen: dict[tuple[str, int], tuple[FiledLayer, int]] = {}
    for place in order:
        _, _, layer, head = known[place]
        chosen.setdefault((layer.layer, head), (layer, head))
    return list(chosen.values())[:most]


def _heads(filed: FiledAttention) -> Iterator[Figure]:
    from stratascope.tasks.sequence.attention_charts import matrix_panels

    layers = in_line(filed)
    steps = drawn_steps(layers[0].steps) if layers else []
    panels = []
    for layer, head in _chosen_heads(layers, _PANELS):
        newest = layer.array(steps[-1], "weights")
        if newest is None or not len(newest):
            continue
        axes = filed.axes(layer, 0, newest.shape)
        matrix = _over_steps(layer, steps, 0, head, axes)
        if matrix is not None:
            panels.append((layer, head, axes, matrix))
    if not panels:
        return
    most = _PANELS if max(len(axis.words) for _, _, axes, _ in panels for axis in axes) <= 24 else 2
    panels = panels[:most]
    layer, head, axes, matrix = panels[0]
    told = [f"{item.layer}, head {number}" for item, number, _, _ in panels]
    doing = [item.known_for(number) for item, number, _, _ in panels]
    score = next(
        (name for name in layer.scores(layer.steps[-1]) if name.endswith("_score")), "attention_entropy_share"
    )
    numbers = {
        "count": len(panels), "sample": filed.sample_name(0), "layers": len(layers), "best": told[0],
        "all": sum(len(item.ranked) for item in layers), "sharp": _sharpness(matrix[-1]), "cut": _cut([axes]),
        "note": note_of(filed, layers, score), "residual": residual_note(layers),
    }  # fmt: skip
    yield worded(
        WORDS["heads"], numbers, key=figure_key("heads", filed.probe.name), title=f"What single heads look at, probe {filed.probe.name}",
        frames=matrix_panels(
            steps, [item for _, _, _, item in panels], [f"{name}: {text}" if text else name for name, text in zip(told, doing, strict=True)],
            [(query.words, key.words) for _, _, (query, key), _ in panels], ("query", "key"),
        ),
        run=filed.view.run, probe=filed.probe.name, headline=True, table=_matrix_table(axes, matrix[-1], layer, head),
    )  # fmt: skip


def _grid(filed: FiledAttention) -> Iterator[Figure]:
    from stratascope.tasks.sequence.attention_charts import head_grid, thumbnail_bound

    if sum(len(layer.ranked) for layer in filed.layers) < 2:
        return
    layers = [filed.layers[place] for place in even_choice(range(len(filed.layers)), _GRID[0])]
    thumbs: dict[str, dict[int, np.ndarray]] = {}
    for layer in layers:
        weights = layer.one_sample(layer.steps[-1])
        if weights is None:
            continue
        if weights.shape[0] > 0 and layer.about.get("query_input") is not None and len(filed.samples):
            query, key = filed.axes(layer, 0, weights.shape)
            weights = weights[:, : query.places.max() + 1] if query.real <= len(query.places) else weights
            weights = weights[:, :, : key.places.max() + 1] if key.real <= len(key.places) else weights
        thumbs[layer.layer] = {head: _small(weights[head]) for head in sorted(layer.ranked[: _GRID[1]])}
    if not thumbs:
        return
    all_heads = sum(len(layer.ranked) for layer in filed.layers)
    drawn = sum(len(heads) for heads in thumbs.values())
    bounds = [thumbnail_bound(matrix) for heads in thumbs.values() for matrix in heads.values()]
    numbers = {
        "step": plain_step(layers[-1].steps[-1]), "low": min(bounds), "high": max(bounds),
        "sample": filed.sample_name(0) if len(filed.samples) else "the mean over all samples",
        "left": "" if drawn == all_heads else f"Shown are {drawn} of {all_heads} heads, those with the highest scores of each layer. ",
        "note": note_of(filed, layers, "attention_entropy_share"),
    }  # fmt: skip
    yield worded(
        WORDS["grid"], numbers, key=figure_key("grid", filed.probe.name), title=f"All heads at a glance, probe {filed.probe.name}",
        svg=head_grid(thumbs), run=filed.view.run, probe=filed.probe.name, table=rows_of(filed, "attention_entropy_share"),
    )  # fmt: skip


def _small(matrix: np.ndarray) -> np.ndarray:
    """At most `_THUMB` queries and keys: the largest weight of neighbouring ones, so that thin lines stay."""
    for axis in (0, 1):
        count = matrix.shape[axis]
        if count > _THUMB:
            edges = np.unique(np.arange(_THUMB) * count // _THUMB)
            matrix = np.maximum.reduceat(matrix, edges, axis=axis)
    return matrix
