"""What an analysis is given: to compute, and to draw."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.storage.archive import LOGICAL_DTYPE, join_path, widened
from stratascope.storage.checkpoint_files import CheckpointFile, RunSource
from stratascope.storage.names import decode_path_part, step_directory
from stratascope.storage.probes import Probe, read_probe
from stratascope.storage.store import Store
from stratascope.storage.units import Unit

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn


_SLICE_BYTES = 16 << 20
"""Where only some rows of an array are wanted, so much of it is read at once."""


def statistics_of(store: Store, place: str) -> dict[str, np.ndarray]:
    """What was streamed of one layer, by name: one number a unit (`mean`, `std`, `min`, `max`, `zero_fraction`,
    `non_finite_count`, `dead`, `saturated_fraction`), `histogram_counts` and `histogram_edges`, `top_value` and
    `top_sample` (rank, unit), `covariance` (unit, other_unit), `class_mean` (class, unit). Empty where none is kept.
    """
    found: dict[str, np.ndarray] = {}
    for path in store.list_arrays(place):
        name = path.rsplit("/", 1)[1]
        values = store.array(path)
        if name == "by_unit":
            found |= dict(zip(store.array_info(path)[3]["statistic"], values, strict=True))
        elif name == "histogram":
            found["histogram_edges"] = np.append(values[0], values[1, -1])
            found["histogram_counts"] = values[2]
        elif name == "top":
            found["top_value"], found["top_sample"] = values[0], values[1].astype(np.int64)
        else:
            found[name] = values
    return found


@dataclass(frozen=True)
class Subject:
    """What is the same for all checkpoints of a run, and for all analyses."""

    store_path: str
    run: str
    probes: tuple[str, ...]
    source: RunSource
    folder: str
    task: str = "classification"
    loss: str = "cross_entropy"

    def probes_of(self, store: Store) -> dict[str, Probe]:
        return {name: read_probe(store, name) for name in self.probes}


@dataclass(frozen=True)
class RejectedFile:
    """A file that is quarantined, or gone, by its name; `step` -1 where none can be told."""

    run: str
    step: int
    name: str
    reason: str
    status: str = "quarantined"


@dataclass
class CheckpointContext:
    """One checkpoint of a run."""

    store: Store
    subject: Subject
    step: int
    facts: dict[str, Any] = field(default_factory=dict)
    file: CheckpointFile | None = None
    device: str = "cpu"
    """Where networks run: `cpu`, or `cuda` on a worker with a graphics card."""

    @property
    def run(self) -> str:
        return self.subject.run

    @cached_property
    def probes(self) -> dict[str, Probe]:
        return self.subject.probes_of(self.store)

    @cached_property
    def captured(self) -> dict[str, Any]:
        """The summary that the capture left, by probe."""
        manifest = self.store.manifest(Unit("checkpoint", self.run, self.step, "capture"))
        return manifest.summary if manifest is not None else {}

    def layers(self, probe: str) -> list[str]:
        """Captured layers in the order of execution."""
        return list(self.captured.get(probe, {}).get("layers", ()))

    def layer_facts(self, probe: str, layer: str) -> dict[str, Any]:
        return self.captured[probe]["facts"][layer]

    def resolve(self, probe: str, alias: str) -> str:
        """The layer that `alias` stands for. Raises DoesNotApply where this network has none."""
        found = self.captured.get(probe, {}).get("aliases", {}).get(alias)
        if found is None:
            raise DoesNotApply(f"this network has no layer for {alias!r}.")
        return found

    def activations(
        self, probe: str, layer: str, reduction: str = "pooled", rows: np.ndarray | None = None
    ) -> np.ndarray:
        """The stored activations (sample, …), or those of the ascending `rows` (sample,) of them."""
        place = self._place("activations", probe, layer, reduction)
        _, shape, dtype, attributes = self.store.array_info(place)
        if rows is None:
            return widened(self.store.array(place), attributes.get(LOGICAL_DTYPE))
        size = max(1, _SLICE_BYTES // max(1, np.dtype(dtype).itemsize * math.prod(shape[1:])))
        found = np.empty((len(rows), *shape[1:]), dtype)
        for number in np.unique(rows // size):
            first, last = np.searchsorted(rows, (number * size, (number + 1) * size))
            block = self.store.read_slice(place, int(number * size), int(min((number + 1) * size, shape[0])))
            found[first:last] = block[rows[first:last] - number * size]
        return widened(found, attributes.get(LOGICAL_DTYPE))

    def outputs(self, probe: str) -> np.ndarray:
        """The network's outputs (sample, class) or (sample, …)."""
        return self.activations(probe, "@output", "full")

    def statistics(self, probe: str, layer: str) -> dict[str, np.ndarray]:
        """Streamed statistics of a layer by name; empty where none were kept."""
        return statistics_of(self.store, self._place("statistics", probe, layer))

    def found_arrays(self, analysis: str, *place: str) -> list[str]:
        """Paths below `place` of the arrays that the checkpoint analysis `analysis` filed here; names are decoded."""
        root = self._place(analysis, *place)
        return [
            "/".join(decode_path_part(part) for part in path[len(root) + 1 :].split("/"))
            for path in self.store.list_arrays(root)
        ]

    def found(self, analysis: str, *place: str) -> np.ndarray | None:
        """The array at `place` that the checkpoint analysis `analysis` filed here, None where there is none."""
        path = self._place(analysis, *place)
        return self.store.array(path) if self.store.has_array(path) else None

    def found_attributes(self, analysis: str, *place: str) -> dict[str, Any]:
        """The attributes of that array."""
        return self.store.array_info(self._place(analysis, *place))[3]

    def network(self) -> nn.Module:
        """A private copy of the network with this checkpoint's weights.

        Raises CheckpointError, and DeferredCheckpointError where the file has other weights by now.
        """
        from stratascope.tasks.intake.facts import load_network

        assert self.file is not None
        folder = Path(self.subject.folder)
        return load_network(self.file, self.subject.source, folder, self.facts.get("weights_digest"), self.device)

    def _place(self, kind: str, *parts: str) -> str:
        return join_path("runs", self.run, step_directory(self.step), kind, *parts)


@dataclass
class SeriesContext:
    """All audited checkpoints of a run, in order."""

    store: Store
    subject: Subject
    steps: tuple[int, ...]
    facts: dict[int, dict[str, Any]] = field(default_factory=dict)
    rejected: tuple[RejectedFile, ...] = ()
    """The run's files that cannot be audited, and those that are gone since they were."""
    rebase: bool = False
    """Whether what was filed before is to be forgotten."""

    @property
    def run(self) -> str:
        return self.subject.run

    @cached_property
    def probes(self) -> dict[str, Probe]:
        return self.subject.probes_of(self.store)

    def earlier(self, analysis: str, *place: str) -> tuple[np.ndarray, dict[str, Any]] | None:
        """The array at `place` that this run's series analysis `analysis` filed the last time, with its attributes.

        None where there is none, and where it is to be forgotten.
        """
        attributes = self.earlier_attributes(analysis, *place)
        if attributes is None:
            return None
        return self.store.array(join_path("series", self.run, analysis, *place)), attributes

    def earlier_attributes(self, analysis: str, *place: str) -> dict[str, Any] | None:
        """The attributes alone, which can be read where the array itself is damaged."""
        path = join_path("series", self.run, analysis, *place)
        if self.rebase or not self.store.has_array(path):
            return None
        return self.store.array_info(path)[3]

    def at(self, step: int) -> CheckpointContext:
        return CheckpointContext(self.store, self.subject, step, self.facts.get(step, {}))


@dataclass
class CohortContext:
    """All runs of an audit, side by side."""

    store: Store
    runs: dict[str, SeriesContext]

    @cached_property
    def probes(self) -> dict[str, Probe]:
        return next(iter(self.runs.values())).probes if self.runs else {}


@dataclass
class View:
    """What `draw` is given: findings read back from the disk."""

    store: Store
    run: str
    analysis: str
    scope: str
    steps: tuple[int, ...]
    rows: pd.DataFrame
    show_inputs: bool = True
    """Whether pictures of the probe's samples may be drawn."""

    @cached_property
    def probes(self) -> dict[str, Probe]:
        names = sorted({unit.analysis for unit in self.store.units() if unit.scope == "probe"})
        return {name: read_probe(self.store, name) for name in names}

    def arrays(self, step: int | None = None) -> dict[str, np.ndarray]:
        """This analysis's arrays by path below it; names with escapes are decoded."""
        if step is not None:
            root = join_path("runs", self.run, step_directory(step), self.analysis)
        elif self.scope == "cohort":
            root = join_path("cohort", self.analysis)
        else:
            root = join_path("series", self.run, self.analysis)
        return {
            "/".join(decode_path_part(part) for part in path[len(root) + 1 :].split("/")): self.store.array(path)
            for path in self.store.list_arrays(root)
        }

    def statistics(self, step: int, probe: str, layer: str) -> dict[str, np.ndarray]:
        """Streamed statistics of `layer` at `step`."""
        return statistics_of(
            self.store, join_path("runs", self.run, step_directory(step), "statistics", probe, layer)
        )

    @cached_property
    def _sound_rows(self) -> dict[str, pd.DataFrame]:
        """Rows by metric: a long series has millions, and each picture is of few."""
        return {str(name): rows for name, rows in self.rows[self.rows["status"] == "ok"].groupby("metric")}

    def newest_of(self, analysis: str) -> pd.DataFrame | None:
        """The rows that the checkpoint analysis `analysis` filed at the last of these steps that it saw; None where at none."""
        units = [
            unit
            for unit in self.store.units()
            if unit.scope == "checkpoint"
            and unit.analysis == analysis
            and unit.run == self.run
            and unit.step in self.steps
        ]
        last = max((unit.step for unit in units), default=None)
        return None if last is None else self.store.rows([unit for unit in units if unit.step == last])

    def metric(self, name: str, **where: str) -> pd.DataFrame:
        """The rows of one metric that are sound, by step; `where` narrows by column."""
        chosen = self._sound_rows.get(name, self.rows[:0])
        for column, value in where.items():
            chosen = chosen[chosen[column] == value]
        return chosen.sort_values("step")

    def layers(self, name: str) -> list[str]:
        """Layers with a finding called `name`, in the order of execution where that is known."""
        present = list(self.rows.loc[self.rows["metric"] == name, "layer"].unique())
        places: dict[str, float] = {}
        if self.steps:
            manifest = self.store.manifest(Unit("checkpoint", self.run, self.steps[-1], "capture"))
            for summary in (manifest.summary if manifest else {}).values():
                for layer in summary.get("layers", ()):
                    places.setdefault(layer, len(places))
        for layer in present:
            # A block that was not captured itself ends with the last layer within it.
            within = [place for name, place in places.items() if name.startswith(f"{layer}.")]
            places.setdefault(layer, max(within) + 0.5 if within else np.inf)
        return sorted(present, key=lambda layer: (places[layer], layer))
