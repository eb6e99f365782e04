"""Kernels read back from the archive over the steps, and how a filter becomes a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.storage.names import decode_path_part, step_directory
from stratascope.tasks.contexts import View
from stratascope.tasks.vision.map_drawing import scale_bound, signed_colours

COLOUR_WORDS = {
    1: "Blue weights are below zero, white is zero, red above",
    3: "The three weights of a place are drawn as red, green and blue; grey is zero, bright is above, dark is below",
}
MEAN_WORDS = "The mean over the input channels is drawn: blue is below zero, white zero, red above"


@dataclass(frozen=True)
class Kernels:
    """Stored kernels at several steps."""

    name: str
    channel: np.ndarray
    """int64 (channel,): the numbers of the stored output channels."""
    steps: tuple[int, ...]
    weights: np.ndarray
    """float32 (step, channel, input_channel, ky, kx)."""
    facts: dict[str, Any]

    def norms(self) -> np.ndarray:
        """float64 (channel,): at the last step."""
        from stratascope.tasks.vision.filter_statistics import filter_norms

        return np.nan_to_num(filter_norms(self.weights[-1]))


def _place(view: View, step: int, *parts: str) -> str:
    return join_path("runs", view.run, step_directory(step), view.analysis, *parts)


def stored_kernels(view: View, step: int, kind: str) -> list[str]:
    """Names of the kernels of `kind` (`filters` or `expanded`) at `step`, in the order of execution."""
    root = _place(view, step, kind)
    found = {}
    for path in view.store.list_arrays(root):
        name, _, array = path[len(root) + 1 :].rpartition("/")
        if array == "weights":
            found[decode_path_part(name)] = int(view.store.array_info(path)[3]["place"])
    return sorted(found, key=lambda name: found[name])


def read_kernels(view: View, steps: Sequence[int], kind: str, name: str) -> Kernels:
    """The kernels `name` at those of `steps` that have them in the shape of the last."""
    last = _place(view, steps[-1], kind, name, "weights")
    _, shape, _, facts = view.store.array_info(last)
    places = {step: _place(view, step, kind, name, "weights") for step in steps}
    known = [
        step
        for step, path in places.items()
        if view.store.has_array(path) and view.store.array_info(path)[1] == shape
    ]
    weights = np.stack([view.store.array(places[step]) for step in known])
    channel = view.store.array(_place(view, steps[-1], kind, name, "channel"))
    return Kernels(name, channel, tuple(known), weights, facts)


def filter_picture(kernel: np.ndarray, bound: float) -> np.ndarray:
    """uint8 (ky, kx, 3) of one filter (input_channel, ky, kx), full at ± `bound`.

    Of three input channels red, green and blue with grey for zero; of others the mean, blue below zero and red above.
    """
    if len(kernel) == 3:
        shares = kernel / bound / 2 + 0.5 if bound > 0 else np.full(kernel.shape, 0.5)
        return np.round(255 * np.clip(np.nan_to_num(shares, nan=0.5), 0, 1)).astype(np.uint8).transpose(1, 2, 0)
    return signed_colours(kernel.mean(0), bound)


def picture_bound(weights: np.ndarray) -> float:
    """The scale of `filter_picture` over all of `weights` (…, input_channel, ky, kx)."""
    return scale_bound(weights if weights.shape[-3] == 3 else weights.mean(-3))
