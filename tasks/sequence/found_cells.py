"""What `interpretable_cells` filed, read back step by step."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.storage.archive import join_path
from stratascope.storage.names import decode_path_part, encode_path_part, step_directory

if TYPE_CHECKING:
    from stratascope.storage.store import Store

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of a unit's states, in `profile`."""
KINDS = {"cell": "cell state", "hidden": "hidden state"}


@dataclass
class FoundCells:
    """The findings at one step for one input of a probe."""

    store: Store
    run: str
    step: int
    probe: str
    name: str
    """Of the input; `input` for the only one."""

    def _place(self, *parts: str) -> str:
        root = ("runs", self.run, step_directory(self.step), "interpretable_cells")
        return join_path(*root, *(encode_path_part(part) for part in (self.probe, self.name, *parts)))

    def array(self, name: str) -> np.ndarray | None:
        """(feature, …): what was filed of the best units; None where there is none."""
        path = self._place("found", name)
        return self.store.array(path) if self.store.has_array(path) else None

    @cached_property
    def facts(self) -> dict[str, Any]:
        """`features`, `titles`, `layers`, `kinds`, `boolean` of the best units; empty where nothing was found."""
        path = self._place("found", "numbers")
        return self.store.array_info(path)[3] if self.store.has_array(path) else {}

    @cached_property
    def numbers(self) -> dict[str, np.ndarray]:
        """float64 (feature,) by name: `unit`, `sign`, `score`, `low`, `high`, `secondary`, `p_value`, `corrected`."""
        found = self.array("numbers")
        return {} if found is None else dict(zip(self.facts["number"], found.T, strict=True))

    def place_of(self, feature: str) -> int | None:
        """The row of `feature` in the arrays; None where it has no unit at this step."""
        names = self.facts.get("features", [])
        return names.index(feature) if feature in names else None

    def unit_title(self, place: int) -> str:
        return f"unit {int(self.numbers['unit'][place])} of {self.facts['layers'][place]}"

    def matrices(self, what: str) -> dict[tuple[str, str], tuple[np.ndarray, list[str]]]:
        """(unit, feature) of every layer and kind of state, with the names of the features; in the order of the archive."""
        root = self._place()
        found = {}
        for path in self.store.list_arrays(root):
            parts = [decode_path_part(part) for part in path[len(root) + 1 :].split("/")]
            if len(parts) == 3 and parts[2] == what:
                found[parts[0], parts[1]] = (
                    self.store.array(path),
                    list(self.store.array_info(path)[3]["features"]),
                )
        return found


def inputs_of(store: Store, run: str, step: int, probe: str) -> list[str]:
    """The inputs of `probe` for which something was found at `step`."""
    root = join_path("runs", run, step_directory(step), "interpretable_cells", encode_path_part(probe))
    found = {
        path[len(root) + 1 :].split("/")[0] for path in store.list_arrays(root) if path.endswith("/found/numbers")
    }
    return sorted(decode_path_part(name) for name in found)
