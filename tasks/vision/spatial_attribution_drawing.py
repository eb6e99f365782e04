"""The pictures of spatial attribution: two classes on the same sample, and linked grids of positions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.storage.names import step_directory
from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.representation.pictures import even_choice, figure_key, leading_probe, worded

_FRAMES = 12
_STEPS = 5
_LINKED = 2
"""So many samples have their links drawn."""
_GREEN = np.array([0, 158, 115], np.uint8)


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For the leading probe: two classes on each sample, the first over the steps, and the links of some samples."""
    probes = sorted(view.rows["probe"].unique())
    if not probes:
        return
    name = leading_probe(view, probes)
    by_step = {step: view.arrays(step) for step in view.steps}
    by_step = {step: arrays for step, arrays in by_step.items() if f"{name}/sample_id" in arrays}
    if not by_step:
        return
    subject = _Subject(view, view.probes[name], by_step)
    for layer in view.layers("attribution_spread"):
        yield from _class_figures(subject, layer)
    for layer in view.layers("link_distance"):
        yield from _links(subject, layer)


class _Subject:
    """The arrays of one probe, and the pictures of its samples where they may be shown."""

    def __init__(self, view: View, probe: Probe, by_step: dict[int, dict[str, np.ndarray]]) -> None:
        from stratascope.tasks.representation.drift_mosaics import probe_rows
        from stratascope.tasks.vision.channel_examples import sample_picture

        self.view, self.probe, self.by_step = view, probe, by_step
        last = by_step[max(by_step)]
        self.identities = [str(item) for item in last[f"{probe.name}/sample_id"].tolist()]
        self.target = last.get(f"{probe.name}/target")
        self.pictures = None
        if view.show_inputs:
            rows = probe_rows(probe, last[f"{probe.name}/sample_id"])
            self.pictures = [_small(sample_picture(probe, int(row))) for row in rows]

    def steps_with(self, place: str) -> list[int]:
        return sorted(step for step, arrays in self.by_step.items() if f"{self.probe.name}/{place}" in arrays)

    def at(self, step: int, place: str) -> np.ndarray:
        return self.by_step[step][f"{self.probe.name}/{place}"]

    def attributes(self, step: int, place: str) -> dict[str, Any]:
        path = join_path(
            "runs", self.view.run, step_directory(step), self.view.analysis, self.probe.name, *place.split("/")
        )
        return self.view.store.array_info(path)[3]

    def class_name(self, number: int) -> str:
        names = self.probe.class_names
        return names[number] if 0 <= number < len(names) else str(number)

    def row_names(self) -> list[str]:
        if self.target is None:
            return self.identities
        return [f"{self.class_name(int(value))}" for value in self.target]

    def drawn(self, sample: int, values: np.ndarray, bound: float) -> np.ndarray:
        """A signed map over its picture, or alone."""
        from stratascope.tasks.vision.map_drawing import overlaid, signed_colours

        if self.pictures is None:
            return signed_colours(values, bound)
        return overlaid(self.pictures[sample], values, bound, signed=True)


def _small(picture: np.ndarray) -> np.ndarray:
    stride = -(-max(picture.shape[:2]) // 96)
    return picture[::stride, ::stride]


def _class_figures(subject: _Subject, layer: str) -> Iterator[Figure]:
    place = f"{layer}/class_map"
    steps = subject.steps_with(place)
    if not steps:
        return
    questions = subject.attributes(steps[-1], place)["question"]
    maps = {step: subject.at(step, place) for step in steps}
    if len(questions) > 1:
        yield _two_classes(subject, layer, questions, maps)
    if len(steps) > 1:
        yield _one_class(subject, layer, questions, maps)


def _two_classes(subject: _Subject, layer: str, questions: list[str], maps: dict[int, np.ndarray]) -> Figure:
    from stratascope.tasks.vision.map_drawing import ColourScale, moving_picture_grid, scale_bound
    from stratascope.tasks.vision.position_links import cosines

    steps = even_choice(sorted(maps), _FRAMES)
    shown = {step: np.stack([maps[step][:, 0], maps[step][:, 1], maps[step][:, 0] - maps[step][:, 1]], 1) for step in steps}  # fmt: skip
    bound = scale_bound(np.stack(list(shown.values())))
    samples = range(len(subject.identities))
    pictures = [
        [
            ([subject.pictures[sample]] if subject.pictures else [])
            + [subject.drawn(sample, values, bound) for values in shown[step][sample]]
            for sample in samples
        ]
        for step in steps
    ]
    names = [_question_name(question) for question in questions[:2]]
    last = steps[-1]
    known = cosines(maps[last][:, 0], maps[last][:, 1])
    asked = subject.at(last, "class_index")
    scores = subject.at(last, "score")
    numbers = {
        "layer": layer, "first": names[0], "second": names[1], "step": f"{last:,}", "bound": float(f"{bound:.3g}"),
        "cosine": float(np.nanmean(known)) if np.isfinite(known).any() else 0.0, "n": len(samples),
        "lost": int((scores[:, 0] <= scores[:, 1]).sum()), "grid": f"{maps[last].shape[2]} × {maps[last].shape[3]}",
        "zero": int((np.abs(maps[last]).max((2, 3)) == 0).any(1).sum()),
    }  # fmt: skip
    table = {
        "sample_id": list(subject.identities),
        **{f"class_{number + 1}": [subject.class_name(int(value)) for value in asked[:, number]] for number in range(2)},
        **{f"score_{number + 1}": scores[:, number].astype(float).tolist() for number in range(2)},
    }  # fmt: skip
    columns = (["picture"] if subject.pictures else []) + [*names, "difference"]
    return worded(
        _WORDS["two"], numbers, key=figure_key("two-classes", subject.probe.name, layer), run=subject.view.run,
        layer=layer, probe=subject.probe.name, title=f"Places that speak for two classes in {layer}, probe {subject.probe.name}",
        frames=moving_picture_grid(
            steps, pictures, subject.row_names(), columns, width=5.6,
            scale=ColourScale("for (red) and against (blue), in units of the score", bound, signed=True),
        ),
        table=table,
    )  # fmt: skip


def _question_name(question: str) -> str:
    return {"label": "own class", "predicted": "predicted", "rival": "best other"}.get(question, question)


def _one_class(subject: _Subject, layer: str, questions: list[str], maps: dict[int, np.ndarray]) -> Figure:
    from stratascope.tasks.vision.map_drawing import ColourScale, picture_grid, scale_bound
    from stratascope.tasks.vision.position_links import cosines

    steps = even_choice(sorted(maps), _STEPS)
    bound = scale_bound(np.stack([maps[step][:, 0] for step in steps]))
    samples = range(len(subject.identities))
    pictures = [
        ([subject.pictures[sample]] if subject.pictures else [])
        + [subject.drawn(sample, maps[step][sample, 0], bound) for step in steps]
        for sample in samples
    ]
    alike = cosines(maps[steps[-1]][:, 0], maps[steps[-2]][:, 0])
    sizes = {step: float(np.abs(maps[step][:, 0]).mean()) for step in steps}
    numbers = {
        "layer": layer, "first": _question_name(questions[0]), "steps": len(steps), "last": f"{steps[-1]:,}",
        "before": f"{steps[-2]:,}", "cosine": float(np.nanmean(alike)) if np.isfinite(alike).any() else 0.0,
        "small": float(f"{sizes[steps[0]]:.2g}"), "large": float(f"{sizes[steps[-1]]:.2g}"), "start": f"{steps[0]:,}",
        "bound": float(f"{bound:.3g}"),
    }  # fmt: skip
    columns = (["picture"] if subject.pictures else []) + [f"step {step:,}" for step in steps]
    table: dict[str, list[Any]] = {name: [] for name in ("step", "sample_id", "sum_of_map")}
    for step in sorted(maps):
        table["step"] += [step] * len(samples)
        table["sample_id"] += subject.identities
        table["sum_of_map"] += maps[step][:, 0].sum((1, 2), dtype=np.float64).tolist()
    return worded(
        _WORDS["one"], numbers, key=figure_key("over-steps", subject.probe.name, layer), run=subject.view.run,
        layer=layer, probe=subject.probe.name, table=table,
        title=f"Places that speak for the {_question_name(questions[0])} over the training, in {layer}, probe {subject.probe.name}",
        svg=picture_grid(
            pictures, subject.row_names(), columns,
            scale=ColourScale("for (red) and against (blue), in units of the score", bound, signed=True),
        ),
    )  # fmt: skip


def _links(subject: _Subject, layer: str) -> Iterator[Figure]:
    from stratascope.tasks.vision.map_drawing import scale_bound

    place = f"{layer}/link"
    steps = even_choice(subject.steps_with(place), _FRAMES)
    if not steps:
        return
    told = subject.attributes(steps[-1], place)
    # A norm is taken apart, so links are shares of it: every step can be held against every other.
    shares = {}
    for step in steps:
        norms = subject.at(step, f"{layer}/cell_norm")[:_LINKED, :, :, None, None]
        links = subject.at(step, place)[:_LINKED]
        shares[step] = np.divide(links, norms, out=np.zeros_like(links), where=norms > 0)
    bound = scale_bound(np.stack(list(shares.values())))
    for sample in range(len(shares[steps[-1]])):
        yield _links_of(subject, layer, sample, {step: shares[step][sample] for step in steps}, bound, told)


def _links_of(
    subject: _Subject, layer: str, sample: int, shares: dict[int, np.ndarray], bound: float, told: dict[str, Any]
) -> Figure:
    """The grid of small pictures of one sample, from `shares` (y2, x2, y1, x1) by step."""
    from stratascope.tasks.vision.map_drawing import ColourScale, moving_picture_grid
    from stratascope.tasks.vision.position_links import effective_share

    steps = list(shares)
    last = shares[steps[-1]]
    rows, columns = last.shape[:2]
    frames = [
        [
            [
                _linked(subject, sample, shares[step][row, column], bound, (row, column), told)
                for column in range(columns)
            ]
            for row in range(rows)
        ]
        for step in steps
    ]
    numbers = {
        "layer": layer, "lower": told["from_layer"], "rows": rows, "columns": columns, "name": subject.row_names()[sample],
        "step": f"{steps[-1]:,}", "share": float(np.nanmean(effective_share(last))) if np.abs(last).max() > 0 else 0.0,
        "grid": f"{last.shape[2]} × {last.shape[3]}", "silent": int((np.abs(last).max((2, 3)) == 0).sum()),
        "cells": rows * columns, "sum": float(last.sum((2, 3), dtype=np.float64).mean()),
    }  # fmt: skip
    return worded(
        _WORDS["links"], numbers, key=figure_key("links", subject.probe.name, layer, str(sample)), run=subject.view.run,
        layer=layer, probe=subject.probe.name,
        title=f"What feeds single places of {layer}: sample {subject.identities[sample]}, probe {subject.probe.name}",
        frames=moving_picture_grid(
            steps, frames, [f"row {y}" for y in told["y2"]], [f"column {x}" for x in told["x2"]], width=4.8,
            scale=ColourScale("share of the place's norm", bound, signed=True),
        ),
        table=_link_table(subject, told, layer, steps, sample),
    )  # fmt: skip


def _link_table(
    subject: _Subject, told: dict[str, Any], layer: str, steps: list[int], sample: int
) -> dict[str, list[Any]]:
    table: dict[str, list[Any]] = {name: [] for name in ("step", "sample_id", "y2", "x2", "norm")}
    for step in steps:
        grid = subject.at(step, f"{layer}/cell_norm")[sample]
        for row, y in enumerate(told["y2"]):
            for column, x in enumerate(told["x2"]):
                line = (step, subject.identities[sample], y, x, float(grid[row, column]))
                for name, value in zip(table, line, strict=True):
                    table[name].append(value)
    return table


def _linked(
    subject: _Subject,
    sample: int,
    values: np.ndarray,
    bound: float,
    cell: tuple[int, int],
    told: dict[str, Any],
) -> np.ndarray:
    """The links of one cell over a pale print of the picture, the cell itself framed in green."""
    from stratascope.tasks.vision.map_drawing import resized, signed_colours

    if subject.pictures is None:
        found = np.kron(signed_colours(values, bound), np.ones((max(1, 48 // len(values)),) * 2 + (1,), np.uint8))
    else:
        picture = subject.pictures[sample]
        pale = 1 - 0.3 * (1 - picture.mean(-1, keepdims=True) / 255)
        found = np.round(pale * signed_colours(resized(values, picture.shape[:2]), bound)).astype(np.uint8)
    edges = []
    for size, grid, place in zip(found.shape[:2], told["grid_of_y2_x2"], (told["y2"][cell[0]], told["x2"][cell[1]]), strict=True):  # fmt: skip
        first = round(place * size / grid)
        edges.append((first, max(first + 2, round((place + 1) * size / grid)) - 1))
    (top, bottom), (left, right) = edges
    found[[top, min(bottom, len(found) - 1)], left : right + 1] = _GREEN
    found[top : bottom + 1, [left, min(right, found.shape[1] - 1)]] = _GREEN
    return found


_WORDS: dict[str, dict[str, str]] = {
    "two": {
        "shows": "Which of the {grid} positions of {layer} speak for (red) and against (blue) the {first} and the {second} class of each sample, and the difference of the two.",
        "reading": "Red in the difference is what decides for the first class, blue for the second. One scale of colours holds for all samples and steps. Rows are named by the samples' classes.",
        "caution": "Over {n} samples the two maps have a mean cosine of {cosine:.2f} at step {step}; near 1 the same places speak for both and only the difference tells. For {lost} of them the second class has the higher score. {zero} have a map of zeros, drawn as zero. Colours are full at ± {bound}.",
        "audience": "For people who ask why it said this and not that.",
        "practitioner": "Where the difference lights up outside the object, the decision leans on the surroundings.",
        "researcher": "Σ over the channels of activation × gradient, no ReLU and no scaling: HiResCAM's map. It is a linear account at the point; positions have wide receptive fields.",
    },
    "one": {
        "shows": "The places of {layer} that speak for the {first} of each sample, at {steps} steps on one scale of colours.",
        "reading": "A pale column means small scores at that step; compare where the colour lies, then how strong it is. The map has settled where neighbouring steps look alike.",
        "caution": "The mean size of the maps is {small} at step {start} and {large} at step {last}; colours are full at ± {bound}. The last two steps drawn, {before} and {last}, have a mean cosine of {cosine:.2f}.",
        "audience": "For people who follow what a network learns to look at.",
        "practitioner": "If the place moves late in training, look at what the network learned last.",
        "researcher": "Maps of a layer say where in its grid, not which pixels; its own features change beneath them.",
    },
    "links": {
        "shows": "Which positions of {lower} feed single positions of {layer}, for a sample of {name}: {rows} × {columns} places, each framed in green, and over a pale print of the picture what its strength comes from.",
        "reading": "The small pictures stand as the places do in the picture. Red places of the earlier layer raise the strength of the framed one, blue ones lower it; colours are shares of it, on one scale for all steps.",
        "caution": "At step {step} an effective {share:.1%} of the {grid} earlier positions feed a place; {silent} of {cells} places are silent or reached by nothing. The links add up to {sum:.2f} of the strength on average; the rest comes from biases, norms, and shortcuts around {lower}.",
        "audience": "For people who want to see what a deep position really looks at.",
        "practitioner": "Places that draw from the whole picture explain why a map of the last layer cannot be read pixel by pixel.",
        "researcher": "Gradient of the norm of one cell's activations by the earlier layer, times its activations, summed over the channels (Olah et al. 2018). It is at most the structural receptive field.",
    },
}
