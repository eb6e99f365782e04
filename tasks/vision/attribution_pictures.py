"""What the drawings of attribution share: maps read back for a few steps, small enough to draw; pictures; names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.storage.names import encode_path_part, step_directory
from stratascope.storage.probes import Probe
from stratascope.tasks.representation.drift_mosaics import class_label, probe_rows
from stratascope.tasks.vision.attribution_methods import AttributionMethod, attribution_methods
from stratascope.tasks.vision.trust_marks import failed_methods

if TYPE_CHECKING:
    from stratascope.tasks.contexts import View

LONGEST = 96
"""Maps and pictures of more pixels a side are drawn by the mean of every two, three … of them."""
SAMPLES = 8
"""So many rows of samples are drawn at most."""


@dataclass
class FiledMaps:
    """The maps of one probe, read step by step."""

    view: View
    probe: Probe

    @cached_property
    def methods(self) -> list[AttributionMethod]:
        """Those with a map at any step, in the order of the registry."""
        rows = self.view.metric("attribution_size", probe=self.probe.name)
        present = {part.removeprefix("method=") for part in rows["part"].unique()}
        return [method for name, method in attribution_methods().items() if name in present]

    def steps(self, method: str) -> list[int]:
        """Steps with a map that is finite, ascending."""
        rows = self.view.metric("attribution_size", probe=self.probe.name, part=f"method={method}")
        return [int(step) for step in rows["step"]]

    @cached_property
    def all_steps(self) -> list[int]:
        rows = self.view.metric("attribution_size", probe=self.probe.name)
        return sorted({int(step) for step in rows["step"]})

    def _place(self, step: int, *place: str) -> str:
        parts = (encode_path_part(part) for part in place)
        return join_path("runs", self.view.run, step_directory(step), "attribution", self.probe.name, *parts)

    def array(self, step: int, *place: str) -> np.ndarray | None:
        """What `attribution` filed at `step` for this probe, None where there is none."""
        path = self._place(step, *place)
        return self.view.store.array(path) if self.view.store.has_array(path) else None

    def maps(self, method: str, step: int) -> np.ndarray | None:
        """(sample, channel, y, x) of the first `SAMPLES` samples, reduced to `LONGEST` pixels a side."""
        values = self.array(step, method, "map")
        return None if values is None else reduced(values[:SAMPLES])

    @cached_property
    def rows(self) -> np.ndarray:
        """int64 (sample,): where in the probe the drawn samples stand."""
        found = self.array(self.all_steps[-1], "sample_id")
        assert found is not None
        return probe_rows(self.probe, found[:SAMPLES])

    @cached_property
    def names(self) -> list[str]:
        """Of the drawn samples: their class where there is one, and their id."""
        targets = self.array(self.all_steps[-1], "target")
        identities = [str(self.probe.sample_id[row]) for row in self.rows]
        if targets is None:
            return identities
        return [f"{class_label(self.probe, int(target))}, id {name}" for target, name in zip(targets, identities)]

    @cached_property
    def pictures(self) -> list[np.ndarray] | None:
        """uint8 of the drawn samples; None where they may not be shown."""
        from stratascope.tasks.report.mosaic import pictures_of
        from stratascope.tasks.vision.map_drawing import shown_inputs

        if not self.view.show_inputs:
            return None
        found = pictures_of(self.probe, self.rows)
        if found is not None:
            return found
        inputs = [np.asarray(self.probe.inputs_at(slice(int(row), int(row) + 1))) for row in self.rows]
        return shown_inputs(reduced(np.concatenate(inputs).astype(np.float32)))

    def warnings(self, method: str) -> str:
        """What is to be said against the maps of `method` on this network at its newest step; empty where nothing."""
        said: list[str] = []
        for step in reversed(self.view.steps):
            path = self._place(step, method, "map")
            if self.view.store.has_array(path):
                said += self.view.store.array_info(path)[3].get("warnings", ())
                break
        if method in self.failed:
            said.append(f"it failed the tests of attribution_trust: {self.failed[method]}")
        return "; ".join(said)

    @cached_property
    def failed(self) -> dict[str, str]:
        """Why methods failed their tests on this network, by name."""
        return failed_methods(self.view, self.probe.name)

    def agreeing(self, step: int) -> tuple[int, int]:
        """How many of the samples the network answers with the output that is explained, and of how many."""
        index, predicted = self.array(step, "index"), self.array(step, "predicted")
        if index is None or predicted is None:
            return 0, 0
        return int((index == predicted).sum()), len(index)


def reduced(maps: np.ndarray) -> np.ndarray:
    """`maps` (…, y, x) by the mean over blocks, so that no side is longer than `LONGEST`; edges are repeated."""
    stride = -(-max(maps.shape[-2:]) // LONGEST)
    if stride == 1:
        return maps
    missing = [(-size) % stride for size in maps.shape[-2:]]
    padded = np.pad(maps, [(0, 0)] * (maps.ndim - 2) + [(0, size) for size in missing], mode="edge")
    height, width = (size // stride for size in padded.shape[-2:])
    return padded.reshape(*maps.shape[:-2], height, stride, width, stride).mean((-3, -1))


def marked_title(title: str, warnings: str) -> str:
    """`title`, and whether something speaks against the method on this network."""
    return f"{title} (with a warning)" if warnings else title


def marked_caution(warnings: str) -> str:
    """A sentence on what speaks against the method on this network, or nothing."""
    return f" Warning, on this network: {warnings}." if warnings else ""
