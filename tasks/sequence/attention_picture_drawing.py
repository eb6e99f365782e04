"""Where a vision transformer looks, laid over the pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.report.text import plain_number, plain_step
from stratascope.tasks.representation.pictures import even_choice, figure_key, worded
from stratascope.tasks.sequence.attention_filed import (
    FiledAttention,
    FiledLayer,
    drawn_steps,
    note_of,
    residual_note,
)
from stratascope.tasks.sequence.attention_words import WORDS

_COLUMNS = 5
_SAMPLES = 4


def picture_figures(filed: FiledAttention) -> Iterator[Figure]:
    """The looks of the class token (or of all queries where there is none) at several layers, and head by head."""
    layers = [layer for layer in filed.layers if layer.is_picture]
    if not layers:
        return
    steps = drawn_steps(layers[0].steps)
    leading = layers[-1].about["grid"][0]
    chosen = [layers[place] for place in even_choice(range(len(layers)), _COLUMNS - bool(leading))]
    columns = [(layer, bool(leading)) for layer in chosen]
    if leading:
        columns.append((layers[-1], False))
    looks = [[_looks(layer, step, of_class).mean(1) for layer, of_class in columns] for step in steps]
    if not looks[0] or not len(looks[0][0]):
        return
    yield _over_layers(filed, columns, steps, looks)
    by_head = [_looks(layers[-1], step, bool(leading)) for step in steps]
    if by_head[-1].shape[1] > 1:
        yield _over_heads(filed, layers[-1], steps, by_head)


def _looks(layer: FiledLayer, step: int, of_class: bool) -> np.ndarray:
    """(shown_sample, head, y, x): the weight of each patch, for the class token or as the mean over the patches' queries."""
    leading, rows, columns, _ = layer.about["grid"]
    weights = layer.array(step, "weights")
    if weights is None:
        return np.zeros((0, 1, rows, columns), np.float32)
    found = weights[:_SAMPLES].astype(np.float32)
    found = found[:, :, 0, leading:] if of_class else found[:, :, leading:, leading:].mean(2)
    return found.reshape(*found.shape[:2], rows, columns)


def short_names(layers: Sequence[str]) -> list[str]:
    """`layers` without the last parts that all have in common."""
    parts = [layer.split(".") for layer in layers]
    while min(map(len, parts)) > 1 and len({item[-1] for item in parts}) == 1:
        parts = [item[:-1] for item in parts]
    return [".".join(item) for item in parts]


def _laid_over(filed: FiledAttention, place: int, values: np.ndarray, bound: float) -> np.ndarray:
    from stratascope.tasks.vision.map_drawing import heat_colours, overlaid

    if filed.pictures is not None:
        height, width = filed.pictures[place].shape[:2]
        # Patches as they are: between them nothing is known.
        values = np.repeat(np.repeat(values, height // len(values), 0), width // values.shape[1], 1)
    if filed.pictures is None:
        return heat_colours(values, bound)
    return overlaid(filed.pictures[place], values, bound)


def _grids(
    filed: FiledAttention, looks: Sequence[Sequence[np.ndarray]], bound: float
) -> tuple[list[list[list[np.ndarray | None]]], list[str]]:
    """Pictures by step, sample and column from looks (sample, y, x) by step and column; and the names of the rows."""
    count = len(looks[0][0])
    pictures: list[list[list[np.ndarray | None]]] = []
    for columns in looks:
        lines: list[list[np.ndarray | None]] = []
        for place in range(count):
            first: list[np.ndarray | None] = [] if filed.pictures is None else [filed.pictures[place]]
            lines.append(first + [_laid_over(filed, place, values[place], bound) for values in columns])
        pictures.append(lines)
    return pictures, [filed.sample_name(place) for place in range(count)]


def _figure(filed: FiledAttention, steps: Sequence[int], looks: Sequence[Sequence[np.ndarray]], names: Sequence[str], bound: float) -> Any:  # fmt: skip
    from stratascope.tasks.vision.map_drawing import ColourScale, moving_picture_grid

    pictures, rows = _grids(filed, looks, bound)
    heads = [*([] if filed.pictures is None else ["picture"]), *names]
    scale = ColourScale("weight of a patch", bound, signed=False, heat=True)
    return moving_picture_grid(steps, pictures, rows, heads, scale=scale)


def _over_layers(
    filed: FiledAttention, columns: Sequence[tuple[FiledLayer, bool]], steps: Sequence[int], looks: Sequence[Sequence[np.ndarray]]
) -> Figure:  # fmt: skip
    from stratascope.tasks.vision.map_drawing import scale_bound

    layer, of_class = columns[-1] if not columns[0][1] else columns[-2]
    bound = scale_bound(np.concatenate([values.ravel() for line in looks for values in line]), 0.995)
    _, rows, wide, patch = layer.about["grid"]
    own = looks[-1][columns.index((layer, of_class))][0]
    short = dict(
        zip([item.layer for item, _ in columns], short_names([item.layer for item, _ in columns]), strict=True)
    )
    names = [short[item.layer] if single == of_class else f"all, {short[item.layer]}" for item, single in columns]
    numbers = {
        "queries": "The weight that the class token gives each patch (last column: the mean over all patches as queries)" if of_class else "The weight that each patch gets, mean over all queries",
        "bound": plain_number(float(f"{bound:.3g}")), "patches": rows * wide, "even": 1 / (rows * wide), "step": plain_step(steps[-1]),
        "sample": filed.sample_name(0), "layer": layer.layer, "peak": float(own.max()), "times": float(own.max()) * rows * wide,
        "patch": patch, "residual": residual_note([item for item, _ in columns]), "note": note_of(filed, [layer], "attention_entropy_share"),
    }  # fmt: skip
    return worded(
        WORDS["pictures"], numbers, key=figure_key("pictures", filed.probe.name), title=f"Where it looks in a picture, probe {filed.probe.name}",
        frames=_figure(filed, steps, looks, names, bound), run=filed.view.run, probe=filed.probe.name, headline=True,
        table=_table(filed, dict(zip(names, looks[-1], strict=True)), steps[-1]),
    )  # fmt: skip


def _over_heads(
    filed: FiledAttention, layer: FiledLayer, steps: Sequence[int], looks: Sequence[np.ndarray]
) -> Figure:
    from stratascope.tasks.vision.map_drawing import scale_bound

    heads = sorted(layer.ranked[: _COLUMNS + 1])
    bound = scale_bound(np.stack([values[:, heads] for values in looks]), 0.995)
    last = looks[-1][0, heads].reshape(len(heads), -1)
    shares = last.max(1) / np.maximum(last.sum(1), 1e-12)
    best = int(shares.argmax())
    numbers = {
        "queries": "The weight that the class token gives each patch" if layer.about["grid"][0] else "The weight that each patch gets, mean over all queries,",
        "layer": layer.layer, "step": plain_step(steps[-1]), "head": heads[best], "share": float(shares[best]),
        "sample": filed.sample_name(0), "count": len(heads), "all": len(layer.ranked), "note": note_of(filed, [layer], "attention_entropy_share"),
    }  # fmt: skip
    by_head = [[values[:, head] for head in heads] for values in looks]
    names = [f"head {head}" for head in heads]
    return worded(
        WORDS["picture_heads"], numbers, key=figure_key("picture_heads", filed.probe.name), title=f"Head by head in {layer.layer}, probe {filed.probe.name}",
        frames=_figure(filed, steps, by_head, names, bound), run=filed.view.run, layer=layer.layer, probe=filed.probe.name,
        table=_table(filed, dict(zip(names, by_head[-1], strict=True)), steps[-1]),
    )  # fmt: skip


def _table(filed: FiledAttention, looks: dict[str, np.ndarray], step: int) -> dict[str, list[Any]]:
    """The weight of each patch of the first sample at the newest step."""
    found: dict[str, list[Any]] = {
        name: [] for name in ("step", "sample", "column", "patch_row", "patch_column", "weight")
    }
    for name, values in looks.items():
        for (row, column), value in np.ndenumerate(values[0]):
            for key, item in zip(found, (step, str(filed.samples.given.sample_id[0]), name, row, column, float(value)), strict=True):  # fmt: skip
                found[key].append(item)
    return found
