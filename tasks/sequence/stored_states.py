"""What `recurrent_state` stored, read back: by step, probe and layer, with the words of the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.storage.datasets.dataset import leaves_of
from stratascope.storage.names import step_directory
from stratascope.tasks.sequence.sequence_samples import names_of, token_words

if TYPE_CHECKING:
    from stratascope.tasks.contexts import View

ANALYSIS = "recurrent_state"


@dataclass(frozen=True)
class StoredLayer:
    """One recurrent layer and direction of a run on a probe."""

    view: View
    probe: str
    layer: str

    def _place(self, step: int, name: str) -> str:
        return join_path("runs", self.view.run, step_directory(step), ANALYSIS, self.probe, self.layer, name)

    def array(self, step: int, name: str) -> np.ndarray | None:
        """The array called `name` at `step`; None where there is none."""
        place = self._place(step, name)
        return self.view.store.array(place) if self.view.store.has_array(place) else None

    def facts(self, step: int, name: str) -> dict[str, Any]:
        """Its attributes."""
        return self.view.store.array_info(self._place(step, name))[3]

    def steps_with(self, name: str) -> list[int]:
        return [step for step in self.view.steps if self.view.store.has_array(self._place(step, name))]

    def gate(self, step: int, name: str, gate: str) -> np.ndarray | None:
        """One gate of `gates` (shown_sample, time, unit), or of `saturation` (side, unit)."""
        values = self.array(step, name)
        if values is None:
            return None
        gates = list(self.facts(step, name)["gate"])
        if gate not in gates:
            return None
        place = gates.index(gate)
        return values[:, :, place] if name == "gates" else values[place]

    def words(self, step: int, sample: int) -> list[str] | None:
        """What the time steps of the shown sample at place `sample` are called; None where they have no words."""
        name = self.facts(step, "hidden").get("input")
        probe = self.view.probes.get(self.probe)
        if name is None or probe is None or not self.view.show_inputs:
            return None
        ids = self.sample_ids(step)
        row = int(np.flatnonzero(probe.sample_id.astype(str) == str(ids[sample]))[0])
        values = np.asarray(leaves_of(probe.inputs)[name][row : row + 1])[0]
        if values.ndim != 1 or values.dtype.kind not in "iu" or not names_of(probe, name):
            return None
        return token_words(values, names_of(probe, name))

    def sample_ids(self, step: int) -> np.ndarray:
        place = join_path("runs", self.view.run, step_directory(step), ANALYSIS, self.probe, "sample_id")
        return self.view.store.array(place)

    def time_constants(self, step: int) -> np.ndarray | None:
        """float64 (unit,) in steps, over all measured samples; of a plain cell those of its modes."""
        from stratascope.tasks.sequence.recurrent_statistics import time_constants

        logs = self.array(step, "mean_log_keep")
        if logs is not None:
            return time_constants(logs)
        found = self.array(step, "time_constant")
        return None if found is None else found[len(found) // 2].astype(np.float64)


def stored_layers(view: View, probe: str) -> list[StoredLayer]:
    """The layers that have something to draw, in the order in which they ran at the newest step."""
    rows = view.metric("still_fraction", probe=probe)
    newest = rows[rows["step"] == rows["step"].max()]
    found = {str(layer): int(step) for layer, step in zip(newest["layer"], newest["step"], strict=True)}
    layers = [StoredLayer(view, probe, layer) for layer in found]
    return sorted(layers, key=lambda layer: layer.facts(found[layer.layer], "hidden_statistics")["place"])
