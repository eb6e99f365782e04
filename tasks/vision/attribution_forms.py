"""The forms in which toolboxes show one gradient: as colours, as grey, and parted by sign; each scaled by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.report.text import plain_number, plain_step
from stratascope.tasks.representation.pictures import even_choice, figure_key, worded
from stratascope.tasks.vision.attribution_pictures import FiledMaps, marked_caution, marked_title
from stratascope.tasks.vision.attribution_words import WORDS as _WORDS
from stratascope.tasks.vision.gradient_maps import signed_parts

if TYPE_CHECKING:
    from stratascope.tasks.vision.attribution_methods import AttributionMethod

_FRAMES = 4
_SAMPLES = 4


def colour_form(values: np.ndarray) -> np.ndarray:
    """uint8 (y, x, 3) of a map (3, y, x): its smallest value is 0 and its largest 255, over all channels.

    Even grey where all values are the same; what is not finite counts as the smallest.
    """
    low, high = _ends(values)
    shares = (values - low) / (high - low) if high > low else np.full(values.shape, 0.5)
    return np.round(255 * np.clip(np.nan_to_num(shares, nan=0.0), 0, 1)).astype(np.uint8).transpose(1, 2, 0)


def _ends(values: np.ndarray) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 0.0)


def grey_form(values: np.ndarray) -> np.ndarray:
    """uint8 (y, x) of a map (channel, y, x): sizes added over channels, black at the smallest, white at the 99th percentile.

    Black where all are the same. Smilkov et al. 2017, section 3.1.
    """
    sizes = np.abs(np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)).sum(0)
    low, high = float(sizes.min()), float(np.quantile(sizes, 0.99))
    # A few pixels alone: then the largest is white.
    high = high if high > low else float(sizes.max())
    shares = (sizes - low) / (high - low) if high > low else np.zeros(sizes.shape)
    return np.round(255 * np.clip(shares, 0, 1)).astype(np.uint8)


def part_forms(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (y, x, 3) twice of a map (channel, y, x): what is above zero in red, what is below in blue.

    Each is added over channels and full at its own largest; a part that is missing is white.
    """
    from stratascope.tasks.vision.map_drawing import signed_colours

    positive, negative = (part[0].sum(0) for part in signed_parts(values[None]))
    return signed_colours(positive, float(positive.max())), signed_colours(-negative, float(negative.max()))


def form_figure(filed: FiledMaps, method: AttributionMethod) -> Figure:
    """Picture, colours (of three channels), grey, and the two signs, of a few samples, behind a slider."""
    from stratascope.tasks.vision.map_drawing import moving_picture_grid

    steps = even_choice(filed.steps(method.name), _FRAMES)
    maps = [found for step in steps if (found := filed.maps(method.name, step)) is not None]
    count = len(filed.rows)
    rows = even_choice(list(range(count)), _SAMPLES) if count > _SAMPLES else list(range(count))
    coloured = maps[0].shape[1] == 3
    heads = [*([] if filed.pictures is None else ["picture"]), *(["colour"] if coloured else []), "grey", "above zero", "below zero"]  # fmt: skip
    frames = []
    for found in maps:
        frame: list[list[np.ndarray | None]] = []
        for row in rows:
            shown: list[np.ndarray | None] = [] if filed.pictures is None else [filed.pictures[row]]
            shown += [colour_form(found[row])] if coloured else []
            frame.append([*shown, grey_form(found[row]), *part_forms(found[row])])
        frames.append(frame)
    sizes = [float(np.abs(found).sum((1, 2, 3)).mean()) for found in maps]
    share = np.maximum(maps[-1], 0).sum() / max(float(np.abs(maps[-1]).sum()), np.finfo(np.float32).tiny)
    warnings = filed.warnings(method.name)
    numbers = {
        "title": method.title, "first": plain_step(steps[0]), "last": plain_step(steps[-1]), "low": plain_number(float(f"{sizes[0]:.3g}")),
        "high": plain_number(float(f"{sizes[-1]:.3g}")), "share": f"{share:.0%}", "shown": len(rows), "warning": marked_caution(warnings),
        "colour": "The first map shows all three channels as colours, from the smallest value to the largest; the" if coloured else "The",
    }  # fmt: skip
    return worded(
        _WORDS["forms"], numbers, key=figure_key("forms", filed.probe.name, method.name),
        title=marked_title(f"{method.title} in colour, grey and by sign, probe {filed.probe.name}", warnings),
        frames=moving_picture_grid(steps, frames, [filed.names[row] for row in rows], heads, width=2.0 + 1.2 * len(heads)), run=filed.view.run,
        probe=filed.probe.name,
    )  # fmt: skip
