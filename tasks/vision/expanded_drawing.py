"""Pairs of convolutions as one, drawn: what they see of a picture, or the pattern and channels that they read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.report.text import plain_number, plain_step
from stratascope.tasks.representation.pictures import figure_key, grid_of, table_of, worded
from stratascope.tasks.vision.filters_words import WORDS
from stratascope.tasks.vision.map_drawing import ColourScale, scale_bound, signed_colours
from stratascope.tasks.vision.picture_sheet import SHEET_WIDTH, PictureSheet, fitting, numbered_tiles
from stratascope.tasks.vision.stored_kernels import (
    COLOUR_WORDS,
    Kernels,
    filter_picture,
    picture_bound,
    stored_kernels,
)

_OUTPUTS = 5
_INPUTS = 5
_GAP = 0.06
_MOST_TILES = 32


def expanded_figure(view: View, kernels: Kernels) -> Figure:
    """What a pair of convolutions sees: of a picture as tiles, of other channels as patterns with their channels."""
    if kernels.weights.shape[2] in (1, 3):
        return _tiles(view, kernels)
    return _patterns(view, kernels)


def _common(kernels: Kernels) -> dict[str, Any]:
    facts, (height, width) = kernels.facts, kernels.weights.shape[3:]
    return {
        "name": f"{facts['first']} and {facts['second']}", "first": facts["first"], "second": facts["second"],
        "between": facts["between"], "outputs": facts["channels"], "inputs": kernels.weights.shape[2],
        "height": height, "width": width, "last": plain_step(kernels.steps[-1]),
        "branches": _branch_words(int(facts["sums"])),
    }  # fmt: skip


def _tiles(view: View, kernels: Kernels) -> Figure:
    """Of inputs with one or three channels, such as pictures: the composed kernels themselves."""
    from stratascope.tasks.vision.expanded_weights import channel_shares, dominant_factors

    inputs = kernels.weights.shape[2]
    chosen = np.sort(np.argsort(-kernels.norms(), kind="stable")[:_MOST_TILES])
    weights = kernels.weights[:, chosen]
    bound = picture_bound(weights)
    pictures = [[filter_picture(kernel, bound) for kernel in one] for one in weights]
    names = [str(kernels.channel[channel]) for channel in chosen]
    scale = ColourScale("weight of the composed kernel", bound, True) if inputs == 1 else None
    norms = kernels.norms()
    weakest = norms[norms > 0].min()
    numbers = _common(kernels) | {
        "shown": len(chosen), "colours": COLOUR_WORDS[inputs], "bound": plain_number(float(f"{bound:.3g}")),
        "spread": f"{norms.max() / weakest:.3g}",
    }  # fmt: skip
    shares, order = channel_shares(weights[-1]), np.tile(np.arange(inputs), (len(chosen), 1))
    held = dominant_factors(weights[-1])[2]
    return worded(
        WORDS["expanded_tiles"], numbers, key=figure_key("expanded", kernels.name), title=_title(kernels),
        frames=numbered_tiles(kernels.steps, pictures, names, scale=scale), run=view.run,
        layer=kernels.facts["second"], table=_expanded_table(kernels, chosen, order, shares, held),
    )  # fmt: skip


def _title(kernels: Kernels) -> str:
    return f"{kernels.facts['first']} and {kernels.facts['second']} as one convolution"


def _patterns(view: View, kernels: Kernels) -> Figure:
    """The strongest output channels: the dominant factor, and their strongest input channels."""
    from stratascope.tasks.vision.expanded_weights import channel_shares, dominant_factors

    outputs = np.argsort(-kernels.norms(), kind="stable")[:_OUTPUTS]
    weights = kernels.weights[:, outputs]
    shares = channel_shares(weights[-1])
    count = weights.shape[2]
    inputs = np.argsort(-np.nan_to_num(shares), axis=1, kind="stable")[:, :_INPUTS]
    patterns, held = _factors(weights, dominant_factors)
    bounds = scale_bound(weights), scale_bound(patterns)
    left, head, gap = 1.0, 0.16, 0.2
    columns = min(count, _INPUTS) + 1
    height, width = weights.shape[3:]
    side = min(0.85, (SHEET_WIDTH - left - gap) / (_INPUTS + 1) - _GAP)
    tall = min(1.2, side * height / width)
    side, top = min(side, tall * width / height), 0.24
    sheet = PictureSheet(top + len(outputs) * (head + tall + _GAP) + 0.66)
    sheet.words(left, 0.03, "factor", size=9, bold=True)
    sheet.words(left + side + _GAP + gap, 0.03, "strongest input channels", size=9, bold=True)
    moving: dict[int, tuple[int, int]] = {}
    for row, output in enumerate(outputs):
        above = top + row * (head + tall + _GAP) + head
        name, size = fitting(f"channel {kernels.channel[output]}", left - 0.1, 9)
        sheet.words(left - 0.08, above + tall / 2 - 0.06, name, size=size, align="right")
        for column in range(columns):
            start = left + column * (side + _GAP) + (gap if column else 0)
            channel = int(inputs[row, column - 1]) if column else -1
            above_tile = f"{channel}: {shares[row, channel]:.0%}" if column else f"{held[-1, row]:.0%}"
            sheet.words(start, above - 0.145, above_tile, size=7.5)
            picture = _panel(weights, patterns, bounds, -1, row, channel)
            moving[sheet.picture(picture, start, above, side, tall)] = (row, channel)
    sheet.scale(ColourScale("weight of the composed kernel", bounds[0], True), left, sheet.height - 0.62)
    frames = [
        {number: _panel(weights, patterns, bounds, step, *place) for number, place in moving.items()}
        for step in range(len(kernels.steps))
    ]
    effective = float(np.nanmean(1 / (shares**2).sum(1)))
    numbers = _common(kernels) | {
        "shown": len(outputs), "held": f"{float(np.nanmean(held[-1])):.0%}", "effective": f"{effective:.3g}",
    }  # fmt: skip
    return worded(
        WORDS["expanded"], numbers, key=figure_key("expanded", kernels.name),
        title=_title(kernels), frames=sheet.frames(kernels.steps, frames),
        run=view.run, layer=kernels.facts["second"], table=_expanded_table(kernels, outputs, inputs, shares, held[-1]),
    )  # fmt: skip


def _branch_words(sums: int) -> str:
    if not sums:
        return "No other branch joins on the way"
    return (
        f"{sums} residual sum{'s lie' if sums > 1 else ' lies'} on the way: what the other branch adds is left out"
    )


def _factors(weights: np.ndarray, factors_of: Any) -> tuple[np.ndarray, np.ndarray]:
    """(step, output, ky, kx) and (step, output): the dominant patterns, in their size, with the sign of the last step's."""
    patterns, held = [], []
    for one in weights:
        pattern, loading, share = factors_of(one)
        patterns.append(pattern * np.linalg.norm(loading, axis=1)[:, None, None])
        held.append(share)
    found = np.stack(patterns)
    signs = np.sign((found * found[-1]).sum((2, 3)))
    return found * np.where(signs == 0, 1, signs)[:, :, None, None], np.stack(held)


def _panel(
    weights: np.ndarray, patterns: np.ndarray, bounds: tuple[float, float], step: int, row: int, channel: int
) -> np.ndarray:
    if channel < 0:
        return signed_colours(patterns[step, row], bounds[1])
    return signed_colours(weights[step, row, channel], bounds[0])


def _expanded_table(
    kernels: Kernels, outputs: np.ndarray, inputs: np.ndarray, shares: np.ndarray, held: np.ndarray
) -> dict[str, list[Any]]:
    table: dict[str, list[Any]] = {
        name: []
        for name in ("channel", "rank", "input_channel", "share_of_squared_weights", "share_of_the_factor")
    }
    for row, output in enumerate(outputs):
        for rank, channel in enumerate(inputs[row], start=1):
            table["channel"].append(int(kernels.channel[output]))
            table["rank"].append(rank)
            table["input_channel"].append(int(channel))
            table["share_of_squared_weights"].append(float(shares[row, channel]))
            table["share_of_the_factor"].append(float(held[row]))
    return table


def concentration_figure(view: View) -> Iterator[Figure]:
    from stratascope.tasks.report.style import heatmap

    rows = view.metric("expanded_weight_concentration", part="over=factors")
    if not len(rows):
        return
    order = [tuple(name.split(" to ")) for name in stored_kernels(view, int(rows["step"].max()), "expanded")]
    once = rows[["layer", "other_layer"]].drop_duplicates()["layer"].is_unique
    # The second convolution names a pair where it is in one only.
    rows = rows.assign(pair=rows["layer"] if once else rows["other_layer"] + " → " + rows["layer"])
    names = [pair[-1] if once else " → ".join(pair) for pair in order]
    names = [name for name in names if name in set(rows["pair"])]
    grid, steps = grid_of(rows, "pair", names)
    last, first = grid[:, -1], grid[:, 0]
    high, low = int(np.nanargmax(last)), int(np.nanargmin(last))
    start = f"{first[high]:.0%} at the first step"
    newest = f"{names[high]} has {last[high]:.0%} ({start})"
    if len(names) > 1:
        newest = (
            f"{names[high]} is simplest ({last[high]:.0%}, {start}) and {names[low]} least so ({last[low]:.0%})"
        )
    refused = view.rows[(view.rows["metric"] == "expanded_weight_concentration") & (view.rows["status"] != "ok")]
    refused = refused[refused["part"] == ""]
    pairs = len(set(zip(refused["layer"], refused["other_layer"], strict=True)))
    numbers = {
        "newest": newest, "n": int(rows["n"].max()),
        "count": "one pair of convolutions" if len(names) == 1 else f"{len(names)} pairs of convolutions",
        "refused": f"{pairs} more pairs could not be taken as one" if pairs else "no pair was refused",
    }  # fmt: skip
    yield worded(
        WORDS["concentration"], numbers, key="concentration", title="How simple pairs of convolutions are",
        svg=heatmap(grid, names, [str(step) for step in steps], "share of the dominant factor", "second convolution" if once else "pair", "training step"),
        run=view.run,
        table=table_of(rows, ("step", "other_layer", "layer", "value", "n", "convention")),
    )  # fmt: skip
