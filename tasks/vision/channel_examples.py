"""The samples that excite channels most, as pictures: whole, and the part that the strongest position can see."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import Figure
from stratascope.tasks.representation.drift_mosaics import probe_rows
from stratascope.tasks.representation.pictures import even_choice, figure_key, worded
from stratascope.tasks.vision.channels_words import WORDS
from stratascope.tasks.vision.map_drawing import picture_grid, rgb_picture, shown_inputs

if TYPE_CHECKING:
    from stratascope.tasks.vision.channels_drawing import LayerSeries

_CHANNELS = 6
_STEPS = 5
_RANKS = 4
_LONGEST = 96
_FADED = 225
"""The grey that what lies outside the part is mixed with."""
_OUTSIDE = np.array([176, 196, 222], np.uint8)
"""The colour of what lies outside the picture."""


def example_figures(series: LayerSeries) -> Iterator[Figure]:
    """The strongest channels at the last step, and the strongest one of them over the steps. Nothing without pictures."""
    if not series.view.show_inputs:
        return
    probe = series.view.probes[series.probe]
    if not _has_pictures(probe):
        return
    yield _strongest(series, probe)
    if len(series.steps) > 1:
        yield _over_steps(series, probe)


def _has_pictures(probe: Probe) -> bool:
    return not isinstance(probe.inputs, dict) and len(probe.inputs.shape) == 4


def sample_picture(probe: Probe, row: int) -> np.ndarray:
    """uint8 (y, x, 3) of one sample, as it looked before normalisation where that is known."""
    there = slice(row, row + 1)
    found = probe.pictures_at(there)
    picture = found[0] if found is not None else shown_inputs(np.asarray(probe.inputs_at(there), np.float32))[0]
    return rgb_picture(picture)


def faded(picture: np.ndarray, box: np.ndarray) -> np.ndarray:
    """`picture` (y, x, 3), mixed with light grey outside `box` (first row, row after the last, first column, …)."""
    found = np.round(0.35 * picture.astype(np.float64) + 0.65 * _FADED).astype(np.uint8)
    rows, columns = slice(box[0], box[1]), slice(box[2], box[3])
    found[rows, columns] = picture[rows, columns]
    return found


def cropped(picture: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (*size, 3): the part of `picture` in `box`, in the middle of pale blue where it is smaller than `size`."""
    part = picture[box[0] : box[1], box[2] : box[3]]
    found = np.broadcast_to(_OUTSIDE, (*size, 3)).copy()
    top, left = (size[0] - part.shape[0]) // 2, (size[1] - part.shape[1]) // 2
    found[top : top + part.shape[0], left : left + part.shape[1]] = part
    return found


def _crop_size(boxes: np.ndarray, picture: tuple[int, int]) -> tuple[int, int]:
    """(height, width) that holds every box, with the proportions of the picture."""
    tall, wide = int((boxes[..., 1] - boxes[..., 0]).max()), int((boxes[..., 3] - boxes[..., 2]).max())
    scale = max(tall / picture[0], wide / picture[1])
    return max(tall, round(picture[0] * scale)), max(wide, round(picture[1] * scale))


def _small(picture: np.ndarray) -> np.ndarray:
    stride = -(-max(picture.shape[:2]) // _LONGEST)
    return picture[::stride, ::stride]


class _Examples:
    """The strongest samples of a layer's channels at one step."""

    def __init__(self, series: LayerSeries, probe: Probe, step: int) -> None:
        found = {name: series.at(step, name) for name in ("top_index", "top_value", "box")}
        self.index, self.value, self.box = (np.asarray(found[name])[:, :_RANKS] for name in found)
        self.identities = series.by_step[step][f"{series.probe}/sample_id"]
        self.probe = probe
        self.rows = probe_rows(probe, self.identities)

    def whole(self, channel: int) -> list[np.ndarray]:
        return [
            _small(faded(picture, self.box[channel, rank])) for rank, picture in enumerate(self._pictures(channel))
        ]

    def parts(self, channel: int, size: tuple[int, int]) -> list[np.ndarray]:
        return [
            _small(cropped(picture, self.box[channel, rank], size))
            for rank, picture in enumerate(self._pictures(channel))
        ]

    def names(self, channel: int) -> list[str]:
        return [str(self.identities[place]) for place in self.index[channel]]

    def _pictures(self, channel: int) -> list[np.ndarray]:
        return [sample_picture(self.probe, int(self.rows[place])) for place in self.index[channel]]


def _strongest(series: LayerSeries, probe: Probe) -> Figure:
    step = series.steps[-1]
    examples = _Examples(series, probe, step)
    channels = series.strongest(_CHANNELS)
    shape = sample_picture(probe, 0).shape[:2]
    size = _crop_size(examples.box[channels], shape)
    pictures = [[*examples.whole(channel), *examples.parts(channel, size)] for channel in channels]
    ranks = range(1, examples.index.shape[1] + 1)
    first = channels[0]
    table: dict[str, list[Any]] = {name: [] for name in ("channel", "rank", "sample_id", "value", "box")}
    for channel in channels:
        table["channel"] += [channel] * len(ranks)
        table["rank"] += list(ranks)
        table["sample_id"] += examples.names(channel)
        table["value"] += examples.value[channel].astype(float).tolist()
        table["box"] += [" ".join(str(side) for side in box) for box in examples.box[channel].tolist()]
    share = np.prod(size) / np.prod(shape)
    field = (
        "The part is nearly the whole picture here, so it tells little about where the channel looked."
        if share > 0.8
        else f"The part is up to {size[0]} × {size[1]} pixels of {shape[0]} × {shape[1]}."
    )
    numbers = {
        "layer": series.layer, "step": f"{step:,}", "n": len(examples.rows), "channel": first, "k": len(ranks),
        "top": examples.value[first, 0], "last": examples.value[first, -1], "mean": series.by_channel(step)[0, first],
        "field": field,
    }  # fmt: skip
    return worded(
        WORDS["examples"], numbers, key=figure_key("examples", series.probe, series.layer),
        title=f"What excites channels of {series.layer}, probe {series.probe}",
        svg=picture_grid(
            pictures, [f"channel {channel}" for channel in channels],
            [*(f"{rank}" for rank in ranks), *(f"part of {rank}" for rank in ranks)],
        ),
        run=series.view.run, layer=series.layer, probe=series.probe, table=table,
    )  # fmt: skip


def _over_steps(series: LayerSeries, probe: Probe) -> Figure:
    steps = even_choice(series.steps, _STEPS)
    channel = series.strongest(1)[0]
    examples = {step: _Examples(series, probe, step) for step in steps}
    pictures = [examples[step].whole(channel) for step in steps]
    names = {step: set(found.names(channel)) for step, found in examples.items()}
    table: dict[str, list[Any]] = {name: [] for name in ("step", "rank", "sample_id", "value")}
    for step, found in examples.items():
        count = len(found.index[channel])
        table["step"] += [step] * count
        table["rank"] += list(range(1, count + 1))
        table["sample_id"] += found.names(channel)
        table["value"] += found.value[channel].astype(float).tolist()
    numbers = {
        "channel": channel, "layer": series.layer, "count": len(steps), "k": len(pictures[0]), "last": f"{steps[-1]:,}",
        "kept": len(names[steps[-1]] & names[steps[-2]]), "first_kept": len(names[steps[-1]] & names[steps[0]]),
        "first": f"{steps[0]:,}",
    }  # fmt: skip
    return worded(
        WORDS["over_steps"], numbers, key=figure_key("over-steps", series.probe, series.layer),
        title=f"What excites channel {channel} of {series.layer} over the training, probe {series.probe}",
        svg=picture_grid(
            pictures, [f"step {step:,}" for step in steps], [f"{rank + 1}" for rank in range(len(pictures[0]))],
            width=5.6,
        ),
        run=series.view.run, layer=series.layer, probe=series.probe, table=table,
    )  # fmt: skip
