"""Class activation maps read back from the archive, as drawings need them: a few samples, the same at all steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from stratascope.tasks.contexts import View

_NAME_LENGTH = 12


@dataclass
class ProbeView:
    """The stored maps of one probe; the first `count` samples are drawn, evenly over all that are stored."""

    view: View
    probe: str
    arrays: dict[int, dict[str, np.ndarray]]
    """By step, then by path below the probe."""
    count: int
    chosen: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    """int64 (count,): which of the stored samples are drawn."""

    @classmethod
    def of(cls, view: View, probe: str, most: int) -> ProbeView | None:
        """None where nothing is stored for the probe."""
        arrays = {}
        for step in sorted({int(step) for step in view.rows["step"].unique() if step >= 0}):
            own = {path.partition("/")[2]: values for path, values in view.arrays(step).items() if path.startswith(f"{probe}/")}  # fmt: skip
            if "sample_id" in own:
                arrays[step] = own
        if not arrays or probe not in view.probes:
            return None
        last = list(arrays.values())[-1]["sample_id"]
        same = {step: own for step, own in arrays.items() if np.array_equal(own["sample_id"], last)}
        count = min(most, len(last))
        chosen = np.unique(np.linspace(0, len(last) - 1, count).round().astype(np.int64))
        return cls(view, probe, same, len(chosen), chosen)

    @property
    def all_steps(self) -> list[int]:
        return list(self.arrays)

    @cached_property
    def layers(self) -> list[str]:
        """Names of layers that have maps at some step."""
        found = {path.removesuffix("/cam"): None for own in self.arrays.values() for path in own if path.endswith("/cam")}  # fmt: skip
        return list(found)

    def steps_of(self, layer: str) -> list[int]:
        return [step for step, own in self.arrays.items() if f"{layer}/cam" in own]

    def every_map(self, layer: str, step: int) -> dict[str, np.ndarray]:
        """Maps of all stored samples (sample, y, x) by method."""
        own = self.arrays[step]
        return dict(zip(self.texts(step, f"{layer}/method"), own[f"{layer}/cam"], strict=True))

    def maps(self, layer: str, steps: Sequence[int], wanted: Iterable[str]) -> dict[str, np.ndarray]:
        """(step, sample, y, x) of the drawn samples, for those of the `wanted` methods that all steps have."""
        found = [self.every_map(layer, step) for step in steps]
        return {
            name: np.stack([maps[name][self.chosen] for maps in found])
            for name in wanted
            if found and all(name in maps and maps[name].shape == found[0][name].shape for maps in found if name in found[0])
            and all(name in maps for maps in found)
        }  # fmt: skip

    def stacked(self, path: str, steps: Sequence[int]) -> tuple[list[int], np.ndarray] | None:
        """The steps of `steps` at which `path` is stored, and it (step, sample, …) with the drawn samples first."""
        have = [step for step in steps if path in self.arrays[step]]
        shapes = {self.arrays[step][path].shape for step in have}
        if not have or len(shapes) != 1:
            return None
        rest = np.setdiff1d(np.arange(len(self.arrays[have[0]][path])), self.chosen)
        order = np.concatenate([self.chosen, rest])
        return have, np.stack([self.arrays[step][path][order] for step in have])

    def texts(self, step: int, path: str) -> list[str]:
        return [str(name) for name in self.arrays[step].get(path, ())]

    @cached_property
    def names(self) -> list[str]:
        """Ids of the drawn samples."""
        return [str(name) for name in list(self.arrays.values())[-1]["sample_id"][self.chosen].tolist()]

    @cached_property
    def labels(self) -> list[str]:
        """Class and id of the drawn samples, as rows are called."""
        from stratascope.tasks.report.text import shortened
        from stratascope.tasks.representation.drift_mosaics import class_label

        targets = list(self.arrays.values())[-1].get("target")
        if targets is None:
            return [shortened(name, _NAME_LENGTH) for name in self.names]
        probe = self.view.probes[self.probe]
        return [
            f"{shortened(class_label(probe, int(target)), _NAME_LENGTH)} ({shortened(name, 8)})"
            for target, name in zip(targets[self.chosen], self.names, strict=True)
        ]

    @cached_property
    def _pictures(self) -> list[np.ndarray] | None:
        from stratascope.tasks.report.mosaic import pictures_of
        from stratascope.tasks.representation.drift_mosaics import probe_rows
        from stratascope.tasks.vision.map_drawing import shown_inputs

        if not self.view.show_inputs:
            return None
        probe = self.view.probes[self.probe]
        rows = probe_rows(probe, np.array(self.names))
        found = pictures_of(probe, rows)
        if found is not None:
            return found
        return shown_inputs(np.concatenate([probe.inputs_at(slice(int(row), int(row) + 1)) for row in rows]))

    def picture(self, row: int) -> np.ndarray | None:
        """uint8 (y, x, …) of a drawn sample; None where pictures may not be shown."""
        return None if self._pictures is None else self._pictures[row]

    def leading(self, row: int) -> list[np.ndarray]:
        """The picture as the first of its row, where it may be shown."""
        return [] if self._pictures is None else [self._pictures[row]]

    @property
    def leading_names(self) -> list[str]:
        return [] if self._pictures is None else ["picture"]


def bounds_of(columns: Mapping[str, np.ndarray], signed: bool = False) -> dict[str, float]:
    """Where colours are full at every step: for the largest 1 % of each column's values at the newest step.

    `columns` are maps (step, sample, y, x). An untrained network can have values that would leave all later maps pale, so
    they do not decide, unless the newest maps are all zero. What is below 0 counts only where `signed`.
    """
    from stratascope.tasks.vision.map_drawing import scale_bound

    found = {}
    for name, maps in columns.items():
        counted = maps if signed else np.maximum(maps, 0)
        found[name] = scale_bound(counted[-1]) or scale_bound(counted)
    return found


def tile_of(picture: np.ndarray | None, values: np.ndarray, bound: float) -> np.ndarray:
    """uint8 (y, x, 3): what is above 0 in `values`, over `picture` where there is one; one colour where it is not finite."""
    from stratascope.tasks.vision.map_drawing import NO_NUMBER, heat_colours, overlaid

    if not np.isfinite(values).all():
        shape = values.shape if picture is None else picture.shape[:2]
        return np.broadcast_to(NO_NUMBER, (*shape, 3)).copy()
    return heat_colours(values, bound) if picture is None else overlaid(picture, values, bound)
