"""Feature maps as pictures: layers side by side, channels of a layer, one sample through the whole training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from stratascope.tasks.analysis import Figure
from stratascope.tasks.contexts import View
from stratascope.tasks.report.text import plain_step
from stratascope.tasks.representation.pictures import (
    even_choice,
    figure_key,
    leading_probe,
    lines_by,
    table_of,
    worded,
)
from stratascope.tasks.vision.feature_maps_words import WORDS
from stratascope.tasks.vision.map_drawing import ColourScale, picture_grid
from stratascope.tasks.vision.picture_sheet import SHEET_WIDTH, PictureSheet, fitting, numbered_tiles
from stratascope.tasks.vision.stored_maps import (
    LONGEST_SIDE,
    DrawnLayer,
    ShownSamples,
    beyond_words,
    drawn_layer,
    shown_samples,
    stored_layers,
)

_MOST_STEPS = 10
_GRID_STEPS = 7
_LAYER_STEPS = 5
_MOST_SAMPLES = 4
_MOST_LAYERS = 41
_GRID_LAYERS = 20
_STRIP_LAYERS = 10
_STRONGEST = 6
_STRIP_CHANNELS = 6
_MOST_CHANNELS = 64
_TILE_STEPS = 8
_BAND = 6
_GAP = 0.06
_BAR_LEFT = 0.3
_COLUMNS = ("step", "probe", "layer", "value", "n", "unit", "estimator", "convention")


def draw(view: View, options: Any) -> Iterator[Figure]:
    """Figures of one probe (the first test one); the maps of all are in the archive."""
    rows = view.metric("feature_map_scale")
    if not len(rows):
        return
    probe = leading_probe(view, rows["probe"].unique())
    steps = sorted({int(step) for step in rows.loc[rows["probe"] == probe, "step"]})
    shown = even_choice(steps, _MOST_STEPS)
    names = stored_layers(view, probe, shown)
    found = [drawn_layer(view, probe, name, shown, _MOST_SAMPLES) for name in even_choice_of(names, _MOST_LAYERS)]
    layers = [layer for layer in found if layer is not None and layer.steps == tuple(shown)]
    if not layers:
        return
    samples = shown_samples(view, probe, shown[-1], _MOST_SAMPLES)
    about = _About(view, probe, shown, samples, len(names))
    yield _side_by_side(about, layers)
    if len(shown) > 1:
        yield _through_training(about, layers)
    yield _by_layer(about, layers)
    for layer in _chosen(layers, options.drawn_layers):
        yield _by_channel(about, layer)
        if len(shown) > 1:
            yield _by_checkpoint(about, layer)
    yield _scales(view, probe, names)


def even_choice_of(names: Sequence[str], most: int) -> list[str]:
    """At most `most` of `names`, evenly over their order, the first and the last among them."""
    return [names[place] for place in even_choice(range(len(names)), most)]


def _chosen(layers: Sequence[DrawnLayer], wanted: Sequence[str]) -> list[DrawnLayer]:
    if wanted:
        return [layer for layer in layers if layer.name in wanted]
    return [layers[place] for place in sorted({0, len(layers) // 2, len(layers) - 1})]


class _About:
    """What all figures of a run share."""

    def __init__(self, view: View, probe: str, steps: Sequence[int], samples: ShownSamples, layers: int) -> None:
        self.view, self.probe, self.steps, self.samples, self.layers = view, probe, list(steps), samples, layers

    @property
    def sample(self) -> str:
        return self.samples.names[0]

    def numbers(self, **more: Any) -> dict[str, Any]:
        return {
            "sample": self.sample, "probe": self.probe, "first": plain_step(self.steps[0]),
            "last": plain_step(self.steps[-1]), "steps": len(self.steps), **more,
        }  # fmt: skip

    def blocks(self, layer: DrawnLayer) -> str:
        """How large maps were made small, in words that end a sentence."""
        if max(layer.shape) <= LONGEST_SIDE:
            return ""
        block = -(-max(layer.shape) // LONGEST_SIDE)
        return f" Each dot is the mean of {block} × {block} places."


def _bars(
    sheet: PictureSheet, layers: Sequence[DrawnLayer], left: float, top: float, bound: float, label: str
) -> None:
    """A bar for each kind of colours that the layers need."""
    kinds = sorted({layer.signed for layer in layers}, reverse=True)
    for place, signed in enumerate(kinds):
        sheet.scale(ColourScale(label, bound, signed), left + place * 3.0, top)


def _bar_label(layers: Sequence[DrawnLayer], what: str) -> str:
    return f"{what}, as a share of each layer's scale" if len(layers) > 1 else what


def _side_by_side(about: _About, layers: Sequence[DrawnLayer]) -> Figure:
    """The mean over channels of each layer, in the order of execution, wrapped into bands."""
    samples = about.samples
    tiles = ([None] if samples.pictures is not None else []) + list(layers)
    wide = min(_BAND, len(tiles))
    bands = -(-len(tiles) // wide)
    people = min(len(samples.names), {1: _MOST_SAMPLES, 2: 2}.get(bands, 1), len(layers[0].means[0]))
    left = 1.0 if people > 1 else 0.03
    side = min(1.35, (SHEET_WIDTH - left) / wide - _GAP)
    height, width = layers[0].shape
    tall, side = (1.35, side * 1.35 / (side * height / width)) if side * height / width > 1.35 else (side * height / width, side)  # fmt: skip
    head = 0.36
    band = head + people * (tall + _GAP) + 0.1
    sheet = PictureSheet(bands * band + 0.66, max(4.4, left + wide * (side + _GAP)))
    moving: list[tuple[int, DrawnLayer, int]] = []
    for place, layer in enumerate(tiles):
        above, start = place // wide * band, left + place % wide * (side + _GAP)
        title, size = fitting(layer.name if layer is not None else "input", side, 9.5)
        sheet.words(start, above + 0.03, title, size=size, bold=True)
        if layer is not None:
            words, size = fitting(layer.scale_words(layer.mean_bound), side, 8.5)
            sheet.words(start, above + 0.19, words, size=size)
        for row in range(people):
            top = above + head + row * (tall + _GAP)
            if place % wide == 0 and people > 1:
                words, size = fitting(samples.names[row], left - 0.1, 9)
                sheet.words(left - 0.08, top + tall / 2 - 0.06, words, size=size, align="right")
            if layer is None:
                assert samples.pictures is not None
                sheet.picture(samples.pictures[row], start, top, side, tall)
            else:
                picture = layer.colours(layer.means[-1][row], layer.mean_bound)
                moving.append((sheet.picture(picture, start, top, side, tall), layer, row))
    _bars(sheet, layers, max(left, _BAR_LEFT), bands * band + 0.02, 1.0, _bar_label(layers, "mean over channels"))
    frames = [
        {number: layer.colours(layer.means[step][row], layer.mean_bound) for number, layer, row in moving}
        for step in range(len(about.steps))
    ]
    low, high = _extreme(layers, lambda layer: layer.kept_size)
    stretched = "; the input is stretched to its own range, since its normalisation is not known"
    numbers = about.numbers(
        samples="sample " + samples.names[0] if people == 1 else f"{people} samples",
        count=len(layers), left_out=_left_out(about, layers), low=low.name, low_share=f"{low.kept_size:.0%}",
        high=high.name, high_share=f"{high.kept_size:.0%}", blocks=about.blocks(layers[0]),
        stretched=stretched if samples.normalised else "", scales=_scale_span(layers),
        full=_full(layers, "mean_beyond"),
    )  # fmt: skip
    return worded(
        WORDS["side_by_side"], numbers, key=figure_key("layers-side-by-side", about.probe),
        title=f"Feature maps of the layers side by side, probe {about.probe}", frames=sheet.frames(about.steps, frames),
        run=about.view.run, probe=about.probe, headline=True, table=_layer_table(layers),
    )  # fmt: skip


def _extreme(layers: Sequence[DrawnLayer], of: Any) -> tuple[DrawnLayer, DrawnLayer]:
    return min(layers, key=of), max(layers, key=of)


def _scale_span(layers: Sequence[DrawnLayer]) -> str:
    """How far the scales are apart, in words."""
    low, high = _extreme(layers, lambda layer: layer.mean_bound)
    if low.mean_bound <= 0:
        return f"{low.name} is zero everywhere"
    if len(layers) == 1:
        return f"the scale is {low.scale_words(low.mean_bound)}"
    ratio = high.mean_bound / low.mean_bound
    return f"the same colour stands for {ratio:,.3g} times as much in {high.name} as in {low.name}"


def _full(layers: Sequence[DrawnLayer], of: str) -> str:
    """Which layer goes beyond its scale by most, in words."""
    worst = max(layers, key=lambda layer: getattr(layer, of))
    return f"in {worst.name} {beyond_words(getattr(worst, of), getattr(worst, f'{of}_step'))}"


def _left_out(about: _About, layers: Sequence[DrawnLayer]) -> str:
    missing = about.layers - len(layers)
    return f" Of {about.layers} layers {len(layers)} are shown, evenly spread." if missing > 0 else ""


def _layer_table(layers: Sequence[DrawnLayer]) -> dict[str, list[Any]]:
    return {
        "layer": [layer.name for layer in layers], "channels": [layer.channels for layer in layers],
        "stored_channels": [len(layer.kept) for layer in layers], "height": [layer.shape[0] for layer in layers],
        "width": [layer.shape[1] for layer in layers], "scale_of_channels": [layer.bound for layer in layers],
        "scale_of_mean": [layer.mean_bound for layer in layers],
        "size_that_the_mean_keeps": [layer.kept_size for layer in layers],
    }  # fmt: skip


def _through_training(about: _About, layers: Sequence[DrawnLayer]) -> Figure:
    """The mean over channels of the first sample: layers by step."""
    kept = [layers[place] for place in even_choice(range(len(layers)), _STRIP_LAYERS)]
    steps = even_choice(about.steps, _GRID_STEPS)
    places = [about.steps.index(step) for step in steps]
    pictures = [[layer.colours(layer.means[place][0], layer.mean_bound) for place in places] for layer in kept]
    names = [f"{layer.name}  {layer.scale_words(layer.mean_bound)}" for layer in kept]
    signed = any(layer.signed for layer in kept)
    scale = ColourScale("mean over channels, as a share of the scale beside the layer", 1.0, signed)
    moved = [_relative(layer.means[-2][0], layer.means[-1][0]) for layer in kept]
    most = int(np.argmax(moved))
    numbers = about.numbers(
        most=kept[most].name, change=f"{moved[most]:.0%}", before=plain_step(about.steps[-2]), drawn=len(steps),
        full=_full(kept, "mean_beyond"),
        left_out=_left_out(about, kept),
    )  # fmt: skip
    return worded(
        WORDS["through_training"], numbers, key=figure_key("through-training", about.probe),
        title=f"One sample through the whole training, probe {about.probe}",
        svg=picture_grid(pictures, names, [plain_step(step) for step in steps], scale=scale, width=SHEET_WIDTH), run=about.view.run,
        probe=about.probe,
        table=_step_table(kept, about.steps),
    )  # fmt: skip


def _relative(before: np.ndarray, after: np.ndarray) -> float:
    from stratascope.tasks.vision.layer_maps import relative_change

    return float(np.nan_to_num(relative_change(before[None], after[None])[0]))


def _step_table(layers: Sequence[DrawnLayer], steps: Sequence[int]) -> dict[str, list[Any]]:
    """Mean and size of the drawn maps by layer and step."""
    table: dict[str, list[Any]] = {name: [] for name in ("layer", "step", "mean", "mean_size", "largest_size")}
    for layer in layers:
        for step, values in zip(steps, layer.means, strict=True):
            table["layer"].append(layer.name)
            table["step"].append(step)
            table["mean"].append(float(values[0].mean()))
            table["mean_size"].append(float(np.abs(values[0]).mean()))
            table["largest_size"].append(float(np.abs(values[0]).max()))
    return table


def _by_layer(about: _About, layers: Sequence[DrawnLayer]) -> Figure:
    """The strongest channels of each layer, those of the last step at every step."""
    kept = [layers[place] for place in even_choice(range(len(layers)), _GRID_LAYERS)]
    steps = even_choice(about.steps, _LAYER_STEPS)
    places = [about.steps.index(step) for step in steps]
    left, head = 1.55, 0.15
    height, width = kept[0].shape
    side = min(0.8 if len(kept) <= 10 else 0.62, (SHEET_WIDTH - left) / _STRONGEST - _GAP)
    tall = min(0.8, side * height / width)
    side = min(side, tall * width / height)
    sheet = PictureSheet(len(kept) * (head + tall + _GAP) + 0.66)
    moving: list[tuple[int, DrawnLayer, int]] = []
    for row, layer in enumerate(kept):
        top = row * (head + tall + _GAP) + head
        title, size = fitting(layer.name, left - 0.12, 9.5)
        sheet.words(left - 0.1, top + tall / 2 - 0.15, title, size=size, bold=True, align="right")
        sheet.words(left - 0.1, top + tall / 2 + 0.02, layer.scale_words(layer.bound), size=8.5, align="right")
        for column, channel in enumerate(layer.strongest(_STRONGEST)):
            start = left + column * (side + _GAP)
            sheet.words(start, top - 0.135, str(layer.kept[channel]), size=7.5)
            picture = layer.colours(layer.maps[-1][channel], layer.bound)
            moving.append((sheet.picture(picture, start, top, side, tall), layer, int(channel)))
    _bars(sheet, kept, left, sheet.height - 0.62, 1.0, _bar_label(kept, "activation"))
    frames = [
        {number: layer.colours(layer.maps[place][channel], layer.bound) for number, layer, channel in moving}
        for place in places
    ]
    shares = {layer.name: _strong_share(layer) for layer in kept}
    narrow = max(shares, key=lambda name: shares[name])
    numbers = about.numbers(
        shown=_STRONGEST, narrow=narrow, share=f"{shares[narrow]:.0%}", left_out=_left_out(about, kept),
        blocks=about.blocks(kept[0]), drawn=len(steps), full=_full(kept, "beyond"),
        channels=next(layer.channels for layer in kept if layer.name == narrow),
    )  # fmt: skip
    table = _layer_table(kept)
    table["strongest_channels"] = [
        " ".join(str(layer.kept[channel]) for channel in layer.strongest(_STRONGEST)) for layer in kept
    ]
    return worded(
        WORDS["by_layer"], numbers, key=figure_key("by-layer", about.probe),
        title=f"The strongest channels of each layer, probe {about.probe}", frames=sheet.frames(steps, frames),
        run=about.view.run, probe=about.probe, table=table,
    )  # fmt: skip


def _strong_share(layer: DrawnLayer) -> float:
    total = float(layer.strength.sum())
    return float(layer.strength[layer.strongest(_STRONGEST)].sum()) / total if total else 0.0


def _by_channel(about: _About, layer: DrawnLayer) -> Figure:
    """Every channel of one layer as a tile with its number, sliding over the steps."""
    steps = even_choice(about.steps, _TILE_STEPS)
    channels = even_choice(range(len(layer.kept)), _MOST_CHANNELS)
    pictures = [
        [layer.colours(layer.maps[about.steps.index(step)][channel], layer.bound) for channel in channels] for step in steps
    ]  # fmt: skip
    frames = numbered_tiles(
        steps, pictures, [str(layer.kept[channel]) for channel in channels], largest=1.0,
        scale=ColourScale("activation", layer.bound, layer.signed), columns=10 if len(channels) > 40 else 8,
    )  # fmt: skip
    near = int((layer.strength < 0.01 * layer.strength.max()).sum())
    broken = f" {layer.broken} hold values that are not finite, drawn in magenta." if layer.broken else ""
    numbers = about.numbers(
        layer=layer.name, channels=layer.channels, shown=len(channels), scale=layer.scale_words(layer.bound),
        silent=layer.zero, near=near, broken=broken, full=beyond_words(layer.beyond, layer.beyond_step), drawn=len(steps), blocks=about.blocks(layer),
        colours=_colour_words(layer),
    )  # fmt: skip
    return worded(
        WORDS["by_channel"], numbers, key=figure_key("by-channel", about.probe, layer.name),
        title=f"All channels of {layer.name}, probe {about.probe}", frames=frames,
        run=about.view.run, layer=layer.name, probe=about.probe, table=_channel_table(layer, about.steps),
    )  # fmt: skip


def _colour_words(layer: DrawnLayer) -> str:
    if layer.signed:
        return "Blue is below zero, white is zero, red is above"
    return "Dark is zero, yellow is large"


def _channel_table(layer: DrawnLayer, steps: Sequence[int]) -> dict[str, list[Any]]:
    """Mean and size of the first sample's maps by channel and step."""
    table: dict[str, list[Any]] = {name: [] for name in ("step", "channel", "mean", "mean_size", "largest_size")}
    for step, maps in zip(steps, layer.maps, strict=True):
        flat = maps.reshape(len(maps), -1).astype(np.float64)
        table["step"] += [step] * len(maps)
        table["channel"] += layer.kept.tolist()
        table["mean"] += flat.mean(1).tolist()
        table["mean_size"] += np.abs(flat).mean(1).tolist()
        table["largest_size"] += np.abs(flat).max(1).tolist()
    return table


def _by_checkpoint(about: _About, layer: DrawnLayer) -> Figure:
    """The strongest channels of one layer by step."""
    steps = even_choice(about.steps, _GRID_STEPS)
    places = [about.steps.index(step) for step in steps]
    chosen = layer.strongest(_STRIP_CHANNELS)
    pictures = [[layer.colours(layer.maps[place][channel], layer.bound) for place in places] for channel in chosen]
    names = [f"channel {layer.kept[channel]}" for channel in chosen]
    scale = ColourScale("activation", layer.bound, layer.signed)
    sizes = [float(np.nan_to_num(np.abs(maps[chosen])).mean(dtype=np.float64)) for maps in layer.maps]
    growth = f"{sizes[-1] / sizes[0]:,.3g} times" if sizes[0] > 0 else "infinitely many times"
    numbers = about.numbers(
        layer=layer.name, shown=len(chosen), channels=layer.channels, scale=layer.scale_words(layer.bound),
        growth=growth, full=beyond_words(layer.beyond, layer.beyond_step), colours=_colour_words(layer), drawn=len(steps), blocks=about.blocks(layer),
    )  # fmt: skip
    return worded(
        WORDS["by_checkpoint"], numbers, key=figure_key("by-checkpoint", about.probe, layer.name),
        title=f"The strongest channels of {layer.name} through the training, probe {about.probe}",
        svg=picture_grid(pictures, names, [plain_step(step) for step in steps], scale=scale, width=SHEET_WIDTH), run=about.view.run,
        layer=layer.name, probe=about.probe, table=_channel_table(layer, about.steps),
    )  # fmt: skip


def _scales(view: View, probe: str, names: Sequence[str]) -> Figure:
    from stratascope.tasks.report.style import lines

    rows = view.metric("feature_map_scale", probe=probe)
    series, _ = lines_by(rows, "layer", names)
    last = {name: values[-1] for name, (_, values) in series.items()}
    high, low = max(last, key=lambda name: last[name]), min(last, key=lambda name: last[name])
    silent = view.metric("feature_map_zero_channel_fraction", probe=probe)
    silent = silent[silent["step"] == silent["step"].max()]
    worst = silent.loc[silent["value"].idxmax()]
    failed = view.rows[(view.rows["metric"] == "feature_map_scale") & (view.rows["status"] == "failed")]
    numbers = {
        "probe": probe, "n": int(rows["n"].max()), "high": high, "high_value": last[high], "low": low,
        "low_value": last[low],
        "silent": f"{worst['layer']} has most channels that are zero throughout, {worst['value']:.0%}" if worst["value"] > 0 else "no layer has a channel that is zero throughout",
        "failed": "all are finite" if not len(failed) else f"{len(failed)} layers and steps have values that are not finite",
    }  # fmt: skip
    return worded(
        WORDS["scales"], numbers, key=figure_key("scales", probe),
        title=f"How large the maps are, by layer, probe {probe}",
        svg=lines(series, "99th percentile of size", logarithmic=True), run=view.run, probe=probe,
        table=table_of(rows, _COLUMNS),
    )  # fmt: skip
