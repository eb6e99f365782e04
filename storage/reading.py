"""Reading a store from Python: labelled arrays, lazily, and the ledger as a data frame."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stratascope.errors import StoreError, did_you_mean
from stratascope.storage.archive import LOGICAL_DTYPE, join_path, widened
from stratascope.storage.names import step_directory
from stratascope.storage.objects import together
from stratascope.storage.store import Store

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
        captures = [unit for unit in self._store.manifests() if unit.analysis == "capture"]
        steps = sorted(unit.step for unit in captures if unit.run == run)
        if not steps:
            runs = sorted({unit.run for unit in captures})
            raise StoreError(f"no run {run!r} is stored; there is {runs}." + did_you_mean(run, runs))
        return steps

    def layer(self, run: str, layer: str, reduction: str = "pooled", probe: str = "probe") -> xr.DataArray:
        """A layer over all steps of `run`, read lazily: dims (step, sample, …)."""
        import xarray as xr

        steps = self.steps(run)

        def at(step: int) -> xr.DataArray:
            place = join_path("runs", run, step_directory(step), "activations", probe, layer)
            if not self._store.has_array(f"{place}/{reduction}"):
                raise StoreError(f"run {run!r} step {step} has no {reduction!r} of layer {layer!r}.")
            group = xr.open_zarr(self._store.zarr_place(place), consolidated=False, chunks={})
            array = group[reduction]
            return array.copy(data=widened(array.data, array.attrs.get(LOGICAL_DTYPE)))

        with self._store.snapshot():
            arrays = together(at, steps)
        return xr.concat(arrays, dim=xr.Variable("step", steps))

    def findings(self, analysis: str) -> pd.DataFrame:
        """The rows of the ledger that `analysis` filed."""
        rows = self.ledger()
        return rows[rows["analysis"] == analysis].reset_index(drop=True)


def open_store(path: str | Path) -> StoreReader:
    """Open the store at `path`, a folder or a URL, for reading. Raises StoreError where there is none."""
    return StoreReader(Store.open(path))
