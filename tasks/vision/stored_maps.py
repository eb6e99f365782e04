"""Feature maps read back from the archive, layer by layer and step by step, made small enough to be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.storage.names import decode_path_part, step_directory
from stratascope.tasks.contexts import View
from stratascope.tasks.vision.map_drawing import (
    rgb_picture,
    scale_bound,
    shown_inputs,
    signed_colours,
    size_colours,
)
from stratascope.tasks.vision.picture_sheet import drawable

LONGEST_SIDE = 48
"""Pixels of a drawn map; larger ones are drawn as means of blocks."""


@dataclass
class DrawnLayer:
    """One layer over the steps, of the samples that are shown; lists run over `steps`."""

    name: str
    place: int
    kept: np.ndarray
    """int64 (channel,): the numbers of the stored channels."""
    channels: int
    shape: tuple[int, int]
    steps: tuple[int, ...]
    means: list[np.ndarray] = field(default_factory=list)
    """float32 (sample, y, x): the mean over the stored channels."""
    maps: list[np.ndarray] = field(default_factory=list)
    """float32 (channel, y, x) of the first sample, all stored channels."""
    strength: np.ndarray = field(default_factory=lambda: np.zeros(0))
    """float64 (channel,): mean size of each channel over the shown samples, at the last step."""
    zero: int = 0
    """So many of the stored channels are zero on all shown samples at the last step."""
    broken: int = 0
    """So many have a value there that is not finite."""
    kept_size: float = 0.0
    """The size of the mean over channels by the mean size of the channels, at the last step."""
    signed: bool = False
    bound: float = 0.0
    """The size at which colours of single channels are full, at all steps (`common_scale`)."""
    beyond: float = 0.0
    """The scale of the step where it is largest, by `bound`."""
    beyond_step: int = 0
    mean_bound: float = 0.0
    mean_beyond: float = 0.0
    mean_beyond_step: int = 0

    def strongest(self, most: int) -> np.ndarray:
        """int64 (≤ most,): places among the stored channels, the strongest at the last step first."""
        return np.argsort(-self.strength, kind="stable")[:most]

    def colours(self, values: np.ndarray, bound: float) -> np.ndarray:
        """uint8 (y, x, 3) on the layer's scale: both signs where it has any value below zero, else sizes."""
        return (signed_colours if self.signed else size_colours)(values, bound)

    def scale_words(self, bound: float) -> str:
        from stratascope.tasks.report.text import plain_number

        number = plain_number(float(f"{bound:.3g}"))
        return f"± {number}" if self.signed else f"0 … {number}"


def _place(view: View, step: int, probe: str, *parts: str) -> str:
    return join_path("runs", view.run, step_directory(step), view.analysis, probe, *parts)


def stored_layers(view: View, probe: str, steps: Sequence[int]) -> list[str]:
    """Layers with maps at the last of `steps`, in the order of execution."""
    root = _place(view, steps[-1], probe)
    found = {}
    for path in view.store.list_arrays(root):
        layer, _, name = path[len(root) + 1 :].rpartition("/")
        if name == "maps":
            found[decode_path_part(layer)] = int(view.store.array_info(path)[3]["place"])
    return sorted(found, key=lambda name: found[name])


def drawn_layer(view: View, probe: str, layer: str, steps: Sequence[int], samples: int) -> DrawnLayer | None:
    """`layer` at those of `steps` that have it with the same channels; None where the last has not."""
    last = _place(view, steps[-1], probe, layer, "maps")
    if not view.store.has_array(last):
        return None
    _, shape, _, facts = view.store.array_info(last)
    kept = view.store.array(_place(view, steps[-1], probe, layer, "channel"))
    found = DrawnLayer(layer, int(facts["place"]), kept, int(facts["channels"]), (shape[2], shape[3]), ())
    known, lowest, whole = [], 0.0, []
    for step in steps:
        path = _place(view, step, probe, layer, "maps")
        if not view.store.has_array(path) or view.store.array_info(path)[1] != shape:
            continue
        values = view.store.read_slice(path, 0, min(samples, shape[0])).astype(np.float32)
        known.append(step)
        finite = values[np.isfinite(values)]
        lowest = min(lowest, float(finite.min()) if len(finite) else 0.0)
        whole.append(scale_bound(values))
        found.means.append(drawable(values.mean(1), LONGEST_SIDE))
        found.maps.append(drawable(values[0], LONGEST_SIDE))
    found.zero = int((~(values != 0).any((0, 2, 3))).sum())
    found.broken = int((~np.isfinite(values).all((0, 2, 3))).sum())
    sizes = np.where(np.isfinite(values), np.abs(values), 0)
    found.strength = sizes.mean((0, 2, 3), dtype=np.float64)
    total = float(sizes.mean(dtype=np.float64))
    found.kept_size = float(np.abs(np.nan_to_num(values.mean(1))).mean(dtype=np.float64)) / total if total else 0.0
    found.steps, found.signed = tuple(known), lowest < 0
    found.bound, found.beyond = common_scale(whole)
    found.beyond_step = known[int(np.argmax(whole))]
    scales = [scale_bound(item) for item in found.means]
    found.mean_bound, found.mean_beyond = common_scale(scales)
    found.mean_beyond_step = known[int(np.argmax(scales))]
    return found


def common_scale(scales: Sequence[float]) -> tuple[float, float]:
    """One scale for all steps, from that of each, and by what factor the largest goes beyond it.

    It is the last step's, or the median where that is larger. The largest would leave all other steps empty where a few are
    huge, as an untrained network with batch norm is in evaluation mode; there colours are full instead.
    """
    bound = max(scales[-1], float(np.median(scales))) or max(scales)
    return bound, max(scales) / bound if bound else 1.0


def beyond_words(factor: float, step: int) -> str:
    """Whether colours are full at some step, in words."""
    from stratascope.tasks.report.text import plain_step

    if factor < 1.05:
        return "no step goes beyond the scale"
    return f"at step {plain_step(step)} values reach {factor:.2g} times the scale, so that colours are full there"


@dataclass(frozen=True)
class ShownSamples:
    """The samples that the maps are of, for people."""

    names: tuple[str, ...]
    pictures: tuple[np.ndarray, ...] | None
    """uint8 (y, x, 3), the normalisation undone where it is known; None where they may not be shown."""
    normalised: bool
    """Whether the pictures are stretched inputs, since the normalisation is not known."""


def shown_samples(view: View, probe: str, step: int, most: int) -> ShownSamples:
    """The first `most` of the samples whose maps were stored at `step`."""
    from stratascope.tasks.report.mosaic import pictures_of

    own = view.probes[probe]
    identities = view.store.array(_place(view, step, probe, "sample_id"))[:most]
    places = {str(name): row for row, name in enumerate(own.sample_id.tolist())}
    rows = [places[str(name)] for name in identities.tolist()]
    classes = own.targets is not None and own.targets.ndim == 1 and own.targets.dtype.kind in "iub"
    names = []
    for name, row in zip(identities.tolist(), rows, strict=True):
        value = int(own.targets[row]) if classes and own.targets is not None else -1
        label = own.class_names[value] if 0 <= value < len(own.class_names) else str(value)
        names.append(f"#{name}: {label}" if classes else f"#{name}")
    if not view.show_inputs:
        return ShownSamples(tuple(names), None, False)
    pictures = pictures_of(own, rows)
    if pictures is not None:
        return ShownSamples(tuple(names), tuple(rgb_picture(item) for item in pictures), False)
    inputs = np.concatenate([np.asarray(own.inputs_at(slice(row, row + 1))) for row in rows]).astype(np.float32)
    pictures = [rgb_picture(item) for item in shown_inputs(drawable(inputs, 2 * LONGEST_SIDE))]
    return ShownSamples(tuple(names), tuple(pictures), True)
