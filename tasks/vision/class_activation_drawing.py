"""The pictures of class activation maps: by method, by step, by depth, signed, and what the network keeps of its confidence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.report.text import plain_step
from stratascope.tasks.representation.pictures import even_choice, figure_key, leading_probe, worded
from stratascope.tasks.vision.class_activation_charts import (
    agreement_map,
    change_lines,
    confidence_lines,
    method_title,
    terms_of_scores,
)
from stratascope.tasks.vision.class_activation_measures import nowhere_positive
from stratascope.tasks.vision.class_activation_methods import METHODS
from stratascope.tasks.vision.class_activation_views import ProbeView, bounds_of, tile_of
from stratascope.tasks.vision.class_activation_words import WORDS
from stratascope.tasks.vision.map_similarity import rank_correlations
from stratascope.tasks.vision.trust_marks import failed_methods, marked

_ROWS, _COLUMN_STEPS, _FRAMES = 4, 6, 8
_WEIGHED = ("grad_cam", "grad_cam_plus_plus", "x_grad_cam", "hi_res_cam", "element_wise_cam", "layer_cam")
_OTHERS = (
    "eigen_cam",
    "eigen_grad_cam",
    "fem",
    "score_cam",
    "score_cam_raw",
    "ablation_cam",
    "random_cam",
    "edges",
)
_SIGNED = ("grad_cam", "x_grad_cam", "hi_res_cam", "layer_cam", "eigen_grad_cam", "ablation_cam")
_OVER_STEPS = ("grad_cam", "layer_cam")
_SHARE = "share of full colour, which the largest 1 % of the column's values at the newest step have"


def draw(view: View, options: Any) -> Iterator[Figure]:
    """For each probe: maps by method and step of its last layer, maps by depth, FullGrad, and the findings over the steps.

    What shows a method that failed its tests on this network is marked.
    """
    failed = {probe: failed_methods(view, probe) for probe in view.rows["probe"].unique()}
    titles = {name: method_title(name) for name in METHODS}
    yield from marked(_every_figure(view), failed, titles)


def _every_figure(view: View) -> Iterator[Figure]:
    for probe in sorted(set(view.rows["probe"].unique()) - {""}):
        shown = ProbeView.of(view, probe, _ROWS)
        if shown is None:
            continue
        layers = [layer for layer in view.layers("cam_zero_fraction") if layer in shown.layers]
        if layers:
            last = layers[-1]
            yield from _by_method(shown, last, "weighed", _WEIGHED)
            yield from _by_method(shown, last, "others", _OTHERS)
            for method in _OVER_STEPS:
                yield from _over_steps(shown, last, method)
            yield from _by_depth(shown, layers)
            yield from _signed(shown, last)
        yield from _full_gradient(shown)
        yield from terms_of_scores(shown)
        yield from _guided(shown, layers)
        for layer in layers:
            yield from confidence_lines(view, probe, layer)
            yield from agreement_map(view, probe, layer)
            yield from change_lines(shown, layer)


def _values_table(
    shown: ProbeView, columns: Mapping[str, np.ndarray], steps: Sequence[int], what: str
) -> dict[str, list[Any]]:
    """The largest and smallest value of every map (step, sample, y, x), and where the largest is."""
    table: dict[str, list[Any]] = {name: [] for name in ("step", "sample_id", what, "largest", "smallest", "y", "x")}  # fmt: skip
    for name, maps in columns.items():
        for place, step in enumerate(steps):
            for row, values in enumerate(maps[place]):
                y, x = np.unravel_index(int(np.nan_to_num(values, nan=-np.inf).argmax()), values.shape)
                entries = (int(step), shown.names[row], name, float(values.max()), float(values.min()), int(y), int(x))  # fmt: skip
                for key, entry in zip(table, entries, strict=True):
                    table[key].append(entry)
    return table


def _frames_or_one(
    steps: Sequence[int], pictures: Sequence[Any], rows: Sequence[str], columns: Sequence[str], scale: Any
) -> dict[str, Any]:
    from stratascope.tasks.vision.map_drawing import moving_picture_grid, picture_grid

    if len(steps) == 1:
        return {"svg": picture_grid(pictures[0], rows, columns, scale=scale)}
    return {"frames": moving_picture_grid(steps, pictures, rows, columns, scale=scale)}


def _by_method(shown: ProbeView, layer: str, kind: str, wanted: Sequence[str]) -> Iterator[Figure]:
    from stratascope.tasks.vision.map_drawing import ColourScale

    steps = even_choice(shown.steps_of(layer), _FRAMES)
    columns = shown.maps(layer, steps, wanted)
    if not columns:
        return
    bounds = bounds_of(columns)
    pictures = [
        [
            [*shown.leading(row), *(tile_of(shown.picture(row), maps[place][row], bounds[name]) for name, maps in columns.items())]
            for row in range(shown.count)
        ]
        for place in range(len(steps))
    ]  # fmt: skip
    headers = [*shown.leading_names, *(METHODS[name].short for name in columns)]
    first, last = next(iter(columns)), {name: maps[-1] for name, maps in columns.items()}
    above = float(np.mean([(maps[0] > bounds[name]).mean() for name, maps in columns.items()]))
    peaks = [float(np.nanmax(np.abs(columns[first][place]))) for place in (0, -1)]
    empty = sum(int(nowhere_positive(maps).sum()) for maps in last.values())
    numbers = {
        "layer": layer, "step": plain_step(steps[-1]), "start": plain_step(steps[0]), "method": method_title(first),
        "above": f"{above:.0%}", "first": f"{peaks[0]:.3g}", "last": f"{peaks[1]:.3g}", "empty": empty, "maps": len(last) * shown.count,
        "grid": f"{columns[first].shape[2]} × {columns[first].shape[3]}",
        "broken": sum(int((~np.isfinite(maps)).any((1, 2)).sum()) for maps in last.values()),
    }  # fmt: skip
    yield worded(
        WORDS[kind], numbers, key=figure_key(kind, shown.probe, layer),
        title=f"{'Maps weighed by gradients' if kind == 'weighed' else 'Other maps and two nulls'} in {layer}, probe {shown.probe}",
        run=shown.view.run, layer=layer, probe=shown.probe, table=_values_table(shown, columns, steps, "method"),
        headline=kind == "weighed" and shown.probe == leading_probe(shown.view, set(shown.view.rows["probe"]) - {""}),
        **_frames_or_one(steps, pictures, shown.labels, headers, ColourScale(_SHARE, 1.0, False, heat=True)),
    )  # fmt: skip


def _over_steps(shown: ProbeView, layer: str, method: str) -> Iterator[Figure]:
    from stratascope.tasks.vision.map_drawing import ColourScale, picture_grid

    steps = even_choice(shown.steps_of(layer), _COLUMN_STEPS)
    maps = shown.maps(layer, steps, [method]).get(method)
    if maps is None or len(steps) < 2:
        return
    yield _steps_figure(
        shown, "steps", maps, steps, method, layer,
        f"{method_title(method)} in {layer} over the training, probe {shown.probe}",
        lambda bound: ColourScale(f"{method_title(method)}, logit units", bound, False, heat=True), picture_grid,
    )  # fmt: skip


def _steps_figure(
    shown: ProbeView, words: str, maps: np.ndarray, steps: Sequence[int], method: str, layer: str, title: str,
    scale: Any, grid: Any,
) -> Figure:  # fmt: skip
    bound = bounds_of({method: maps})[method]
    pictures = [
        [
            *shown.leading(row),
            *(tile_of(shown.picture(row), maps[place][row], bound) for place in range(len(steps))),
        ]
        for row in range(shown.count)
    ]
    alike = rank_correlations(maps[0], maps[-1])
    sound = alike[np.isfinite(alike)]
    numbers = {
        "method": method_title(method), "layer": layer, "start": plain_step(steps[0]), "step": plain_step(steps[-1]),
        "bound": f"{bound:.3g}", "above": f"{float((maps[0] > bound).mean()):.0%}", "alike": f"{sound.mean():.2f}" if len(sound) else "not defined",
        "empty_start": int(nowhere_positive(maps[0]).sum()), "empty": int(nowhere_positive(maps[-1]).sum()),
        "n": shown.count, "grid": f"{maps.shape[2]} × {maps.shape[3]}", "lies": METHODS[method].lies_when,
    }  # fmt: skip
    headers = [*shown.leading_names, *(f"step {plain_step(step)}" for step in steps)]
    return worded(
        WORDS[words], numbers, key=figure_key(words, method, shown.probe, layer), title=title,
        svg=grid(pictures, shown.labels, headers, scale=scale(bound)), run=shown.view.run, layer=layer,
        probe=shown.probe, table=_values_table(shown, {method: maps}, steps, "method"),
    )  # fmt: skip


def _by_depth(shown: ProbeView, layers: Sequence[str]) -> Iterator[Figure]:
    from stratascope.tasks.vision.map_drawing import ColourScale

    drawn = even_choice(range(len(layers)), 7)
    chosen = [layers[place] for place in drawn]
    steps = even_choice(sorted(set.intersection(*(set(shown.steps_of(layer)) for layer in chosen))), _FRAMES)
    method = next((name for name in ("layer_cam", "hi_res_cam", "grad_cam") if steps and name in shown.maps(chosen[-1], steps, METHODS)), None)  # fmt: skip
    if len(chosen) < 2 or method is None:
        return
    columns = {layer: shown.maps(layer, steps, [method])[method] for layer in chosen}
    bounds = bounds_of(columns)
    pictures = [
        [
            [*shown.leading(row), *(tile_of(shown.picture(row), maps[place][row], bounds[layer]) for layer, maps in columns.items())]
            for row in range(shown.count)
        ]
        for place in range(len(steps))
    ]  # fmt: skip
    shares = {layer: float((maps[-1] > 0).mean()) for layer, maps in columns.items()}
    numbers = {
        "method": method_title(method), "step": plain_step(steps[-1]), "first": chosen[0], "last": chosen[-1],
        "first_grid": "{} × {}".format(*columns[chosen[0]].shape[2:]), "last_grid": "{} × {}".format(*columns[chosen[-1]].shape[2:]),
        "first_share": f"{shares[chosen[0]]:.0%}", "last_share": f"{shares[chosen[-1]]:.0%}", "n": shown.count,
    }  # fmt: skip
    yield worded(
        WORDS["depth"], numbers, key=figure_key("depth", shown.probe),
        title=f"{method_title(method)} by depth, probe {shown.probe}", run=shown.view.run, probe=shown.probe,
        table=_values_table(shown, columns, steps, "layer"),
        **_frames_or_one(
            steps, pictures, shown.labels, [*shown.leading_names, *chosen], ColourScale(_SHARE, 1.0, False, heat=True)
        ),
    )  # fmt: skip


def _signed(shown: ProbeView, layer: str) -> Iterator[Figure]:
    from stratascope.tasks.vision.map_drawing import NO_NUMBER, ColourScale, signed_colours

    steps = even_choice(shown.steps_of(layer), _FRAMES)
    columns = shown.maps(layer, steps, _SIGNED)
    if not columns:
        return
    bounds = bounds_of(columns, signed=True)
    pictures = [
        [
            [
                signed_colours(maps[place][row], bounds[name])
                if np.isfinite(maps[place][row]).all()
                else np.broadcast_to(NO_NUMBER, (*maps.shape[2:], 3))
                for name, maps in columns.items()
            ]
            for row in range(shown.count)
        ]
        for place in range(len(steps))
    ]
    below = {name: float((maps[-1] < 0).mean()) for name, maps in columns.items()}
    most = max(below, key=lambda name: below[name])
    numbers = {
        "layer": layer, "step": plain_step(steps[-1]), "most": method_title(most), "share": f"{below[most]:.0%}",
        "bounds": ", ".join(f"{method_title(name)} ± {bound:.2g}" for name, bound in bounds.items()), "n": shown.count,
        "grid": "{} × {}".format(*next(iter(columns.values())).shape[2:]),
    }  # fmt: skip
    scale = ColourScale(
        "share of full colour, which the largest 1 % of the column's sizes at the newest step have", 1.0, True
    )
    yield worded(
        WORDS["signed"], numbers, key=figure_key("signed", shown.probe, layer),
        title=f"Raw maps with their signs in {layer}, probe {shown.probe}", run=shown.view.run, layer=layer,
        probe=shown.probe, table=_values_table(shown, columns, steps, "method"),
        **_frames_or_one(steps, pictures, shown.labels, [METHODS[name].short for name in columns], scale),
    )  # fmt: skip


def _full_gradient(shown: ProbeView) -> Iterator[Figure]:
    from stratascope.tasks.vision.map_drawing import ColourScale, picture_grid

    found = shown.stacked("@full_grad/map", even_choice(shown.all_steps, _COLUMN_STEPS))
    if found is None:
        return
    steps, maps = found
    if len(steps) > 1:
        yield _steps_figure(
            shown, "full", maps[:, : shown.count], steps, "full_grad", "",
            f"FullGrad over the training, probe {shown.probe}",
            lambda bound: ColourScale("size of the contribution, logit units", bound, False, heat=True), picture_grid,
        )  # fmt: skip


def _guided(shown: ProbeView, layers: Sequence[str]) -> Iterator[Figure]:
    """The product with Grad-CAM of the last layer, which is stored nowhere."""
    from stratascope.tasks.vision.map_drawing import ColourScale, resized, signed_colours

    found = shown.stacked("@guided/gradient", even_choice(shown.all_steps, _FRAMES))
    if found is None or not layers:
        return
    steps, gradients = found
    cams = shown.maps(layers[-1], steps, ["grad_cam"]).get("grad_cam")
    if cams is None:
        return
    size = gradients.shape[3:]
    product = np.stack(
        [
            [np.maximum(resized(cam, size), 0) * gradient.sum(0) for cam, gradient in zip(*pair, strict=True)]
            for pair in zip(cams, gradients[:, : shown.count], strict=True)
        ]
    )
    bound = bounds_of({"product": product}, signed=True)["product"]
    pictures = [
        [[*shown.leading(row), signed_colours(maps[row], bound)] for row in range(shown.count)] for maps in product
    ]
    numbers = {
        "layer": layers[-1], "step": plain_step(steps[-1]), "bound": f"{bound:.3g}", "n": shown.count,
        "empty": int((~product[-1].any((1, 2))).sum()),
    }  # fmt: skip
    yield worded(
        WORDS["guided"], numbers, key=figure_key("guided", shown.probe, layers[-1]),
        title=f"Guided Grad-CAM with {layers[-1]}, probe {shown.probe}", run=shown.view.run, layer=layers[-1],
        probe=shown.probe, table=_values_table(shown, {"guided Grad-CAM": product}, steps, "method"),
        **_frames_or_one(
            steps, pictures, shown.labels, [*shown.leading_names, "guided Grad-CAM"],
            ColourScale("product, summed over colours", bound, True),
        ),
    )  # fmt: skip
