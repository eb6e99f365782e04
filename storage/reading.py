"""Reading a store from Python: labelled arrays, lazily, and the ledger as a data frame."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from stratascope.errors import StoreError, did_you_mean
from stratascope.storage.archive import LOGICAL_DTYPE, join_path, widened
from stratascope.storage.names import step_directory
from stratascope.storage.objects import together
from stratascope.storage.pruning import lost_arrays
from stratascope.storage.store import Store
from stratascope.storage.units import Unit

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr


class StoreReader:
    """What `stratascope.open_store` returns."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def ledger(self) -> pd.DataFrame:
        """Every scalar finding, one row each."""
        return self._store.rows()

    def steps(self, run: str) -> list[int]:
        """The steps of `run` that have been captured, ascending. Raises StoreError for an unknown run."""
        captures = [unit for unit in self._store.units() if unit.analysis == "capture"]
        steps = sorted(unit.step for unit in captures if unit.run == run)
        if not steps:
            runs = sorted({unit.run for unit in captures})
            raise StoreError(f"no run {run!r} is stored; there is {runs}." + did_you_mean(run, runs))
        return steps

    def layer(self, run: str, layer: str, reduction: str = "pooled", probe: str = "probe") -> xr.DataArray:
        """A layer over all steps of `run`, read lazily: dims (step, sample, …).

        Steps whose arrays were pruned are left out, with a warning; the attribute `pruned_steps` names them.
        """
        import xarray as xr

        pruned = self.pruned_steps(run, reduction)
        steps = [step for step in self.steps(run) if step not in pruned]
        if pruned:
            told = (
                f"run {run!r}: the arrays of steps {', '.join(map(str, pruned))} were pruned; "
                "`stratascope audit CONFIG --set pruned=recompute` brings them back where the checkpoint is there."
            )
            if not steps:
                raise StoreError(told)
            warnings.warn(told, stacklevel=2)

        def at(step: int) -> xr.DataArray:
            place = join_path("runs", run, step_directory(step), "activations", probe, layer)
            if not self._store.has_array(f"{place}/{reduction}"):
                raise StoreError(f"run {run!r} step {step} has no {reduction!r} of layer {layer!r}.")
            group = xr.open_zarr(self._store.zarr_place(place), consolidated=False, chunks={})
            array = group[reduction]
            return array.copy(data=widened(array.data, array.attrs.get(LOGICAL_DTYPE)))

        with self._store.snapshot():
            arrays = together(at, steps)
        return xr.concat(arrays, dim=xr.Variable("step", steps)).assign_attrs(pruned_steps=pruned)

    def pruned_steps(self, run: str, reduction: str = "pooled") -> list[int]:
        """The steps of `run` whose arrays of `reduction` were pruned, ascending."""
        with self._store.snapshot():
            captures = (Unit("checkpoint", run, step, "capture") for step in self.steps(run))
            return [unit.step for unit in captures if reduction in lost_arrays(self._store.manifest(unit))]

    def findings(self, analysis: str) -> pd.DataFrame:
        """The rows of the ledger that `analysis` filed."""
        rows = self.ledger()
        return rows[rows["analysis"] == analysis].reset_index(drop=True)


def open_store(path: str | Path) -> StoreReader:
    """Open the store at `path`, a folder or a URL, for reading. Raises StoreError where there is none."""
    return StoreReader(Store.open(path))
