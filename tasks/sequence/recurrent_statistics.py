"""What the states of a recurrent layer say of its units: saturation, time constants, still and redundant units, spectra.

Sums are kept in double precision and grow with the number of units, never with that of samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stratascope.tasks.sequence.recurrent_cells import SQUASHED, CellWeights

BINS = 20
KEEP = {"lstm": "forget", "gru": "update"}
"""The gate that keeps what a unit holds where it is 1."""
QUANTILES = (0.1, 0.5, 0.9)
LARGEST_FACTOR = 1 - 1e-7
"""A larger factor of keeping counts as this one: a time constant is at most 10 million steps."""
_SMALLEST_FACTOR = 1e-30


def gate_range(gate: str) -> tuple[float, float]:
    """Between which values a gate lies."""
    return (0.0, 1.0) if gate in SQUASHED else (-1.0, 1.0)


def time_constants(mean_log: np.ndarray) -> np.ndarray:
    """τ = -1 / mean_t log f_t in steps, of the mean logarithm of the factor of keeping. Tallec and Ollivier 2018.

    The geometric mean: after T steps the product of the factors, exp(-T/τ), is left of what a unit held.
    """
    return -1.0 / np.minimum(mean_log, np.log(LARGEST_FACTOR))


def mode_time_constants(eigenvalues: np.ndarray) -> np.ndarray:
    """τ = -1 / log |λ| in steps of each mode of a linear recurrence; a mode that does not decay counts as 10 million."""
    return time_constants(np.log(np.maximum(np.abs(eigenvalues), _SMALLEST_FACTOR)))


@dataclass
class _Moments:
    """Of the values (row, unit) of one state."""

    count: int
    total: Tensor
    squares: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, units: int) -> _Moments:
        zeros = torch.zeros(units, dtype=torch.float64)
        return cls(0, zeros, zeros.clone(), torch.full((units,), torch.inf), torch.full((units,), -torch.inf))

    def add(self, rows: Tensor) -> None:
        if not len(rows):
            return
        self.count += len(rows)
        self.total += rows.sum(0, dtype=torch.float64)
        self.squares += rows.double().square_().sum(0)
        torch.minimum(self.low, rows.amin(0), out=self.low)
        torch.maximum(self.high, rows.amax(0), out=self.high)

    def table(self) -> np.ndarray:
        """float64 (statistic, unit): mean, standard deviation, smallest, largest."""
        mean = self.total / self.count
        deviation = (self.squares / self.count - mean**2).clamp(min=0).sqrt()
        return torch.stack([mean, deviation, self.low.double(), self.high.double()]).numpy()


class StateSums:
    """What is kept of one layer while batches go by."""

    def __init__(self, cell: str, gates: tuple[str, ...], units: int, hidden: int, ends: tuple[float, float], correlated: bool) -> None:  # fmt: skip
        """`ends` are the shares of a gate's range below and above which it counts as saturated, left and right.

        With `correlated` the products of all pairs of units are summed: `hidden`² numbers.
        """
        self.cell, self.gates, self.ends = cell, gates, ends
        self.histogram = torch.zeros(len(gates), units, BINS, dtype=torch.int64)
        self.saturated = torch.zeros(len(gates), 2, units, dtype=torch.int64)
        self.gate_total = torch.zeros(len(gates), units, dtype=torch.float64)
        self.hidden = _Moments.of(hidden)
        self.state = _Moments.of(units) if cell == "lstm" else None
        self.log_total = torch.zeros(units, dtype=torch.float64)
        self.products = torch.zeros(hidden, hidden, dtype=torch.float64) if correlated else None
        self._logs: list[Tensor] = []
        self.samples = 0

    def add(
        self, hidden: Tensor, state: Tensor | None, gates: Mapping[str, Tensor], real: Tensor, separate: np.ndarray
    ) -> None:
        """One batch, each (sample, time, unit); padding, where `real` (sample, time) is false, does not count.

        `separate` bool (sample,) marks those of which each is to have a time constant of its own.
        """
        whole = bool(real.all())
        rows = hidden.reshape(-1, hidden.shape[-1]) if whole else hidden[real]
        self.samples += len(hidden)
        self.hidden.add(rows)
        if self.products is not None and len(rows):
            exact = rows.double()
            self.products += exact.t() @ exact
        if state is not None and self.state is not None:
            self.state.add(state.reshape(-1, state.shape[-1]) if whole else state[real])
        for place, name in enumerate(self.gates):
            values = gates[name]
            self._add_gate(place, name, values.reshape(-1, values.shape[-1]) if whole else values[real])
        keeping = KEEP.get(self.cell)
        if keeping is not None:
            logs = gates[keeping].double().clamp(_SMALLEST_FACTOR, LARGEST_FACTOR).log_()
            sums = (logs if whole else logs.masked_fill(~real[:, :, None], 0)).sum(1)
            self.log_total += sums.sum(0)
            counts = real.sum(1)
            own = torch.from_numpy(separate) & (counts > 0)
            if own.any():
                self._logs.append((sums[own] / counts[own, None]).float())

    def _add_gate(self, place: int, name: str, rows: Tensor) -> None:
        low, high = gate_range(name)
        share = (rows - low) / (high - low)
        self.gate_total[place] += rows.sum(0, dtype=torch.float64)
        self.saturated[place, 0] += (share < self.ends[0]).sum(0)
        self.saturated[place, 1] += (share > self.ends[1]).sum(0)
        units = rows.shape[1]
        bins = share.nan_to_num_(0.0).mul_(BINS).long().clamp_(0, BINS - 1).add_(torch.arange(units) * BINS)
        self.histogram[place] += torch.bincount(bins.flatten(), minlength=units * BINS).view(units, BINS)

    @property
    def steps(self) -> int:
        """How many real steps were counted."""
        return self.hidden.count

    def saturation(self) -> np.ndarray:
        """float32 (gate, side, unit): the share of real steps in which a gate is near its lower and its upper end."""
        return (self.saturated.double() / max(1, self.steps)).float().numpy()

    def mean_log_keep(self) -> np.ndarray:
        """float64 (unit,)."""
        return (self.log_total / max(1, self.steps)).numpy()

    def sample_time_constants(self) -> np.ndarray:
        """float64 (quantile, unit) over samples, each with its own; empty where the cell has no gate that keeps."""
        if not self._logs:
            return np.empty((len(QUANTILES), 0))
        return np.quantile(time_constants(torch.cat(self._logs).double().numpy()), QUANTILES, axis=0)

    def correlation(self, moving: np.ndarray) -> np.ndarray | None:
        """float64 (unit, other unit) of the hidden state; NaN for units that are not `moving`, None where not summed."""
        if self.products is None:
            return None
        mean = (self.hidden.total / self.steps).numpy()
        covariance = self.products.numpy() / self.steps - np.outer(mean, mean)
        scale = np.sqrt(np.maximum(np.diag(covariance), 0))
        scale = np.where(moving & (scale > 0), scale, np.nan)
        return np.clip(covariance / np.outer(scale, scale), -1, 1)


@dataclass(frozen=True)
class UnitClusters:
    """Units that say the same."""

    cluster: np.ndarray
    """int64 (unit,): the number of a unit's cluster, the largest first; -1 for units that never move."""
    order: np.ndarray
    """int64 (unit,): units so that those that say the same stand side by side; those that never move stand last."""

    @property
    def redundant(self) -> int:
        """How many units could go, if each cluster kept one."""
        found = self.cluster[self.cluster >= 0]
        return len(found) - len(np.unique(found))


def unit_clusters(correlation: np.ndarray, above: float) -> UnitClusters:
    """Clusters in which every two units have |correlation| above `above`: complete linkage. NaN rows never move."""
    from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
    from scipy.spatial.distance import squareform

    moving = np.flatnonzero(np.isfinite(np.diag(correlation)))
    cluster = np.full(len(correlation), -1, np.int64)
    still = np.setdiff1d(np.arange(len(correlation)), moving)
    if len(moving) < 2:
        cluster[moving] = 0
        return UnitClusters(cluster, np.concatenate([moving, still]))
    distance = 1 - np.abs(correlation[np.ix_(moving, moving)])
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(np.maximum(distance, distance.T), checks=False), "complete")
    labels = fcluster(tree, 1 - above, "distance")
    sizes = np.bincount(labels)
    # Numbers by falling size, and by the first unit among equals, so that they do not depend on the linkage's own.
    first = {int(label): int(np.argmax(labels == label)) for label in np.unique(labels)}
    ranked = sorted(first, key=lambda label: (-sizes[label], first[label]))
    cluster[moving] = [ranked.index(int(label)) for label in labels]
    return UnitClusters(cluster, np.concatenate([moving[leaves_list(tree)], still]))


def recurrent_blocks(weights: CellWeights) -> dict[str, np.ndarray]:
    """float64 (unit, unit) by gate: how the units of one step act on a gate at the next, at fixed output gates.

    Where an LSTM projects its output, the projection is part of the way.
    """
    back = None if weights.projection is None else weights.projection.detach().double()
    found = {}
    for gate, block in weights.blocks.items():
        values = block.detach().double()
        found[gate] = (values if back is None else values @ back).cpu().numpy()
    return found


def sorted_eigenvalues(block: np.ndarray) -> np.ndarray:
    """complex128 (unit,) of a square matrix, by falling modulus, then by falling angle."""
    found = np.linalg.eigvals(block).astype(np.complex128)
    return found[np.lexsort((-np.angle(found), -np.round(np.abs(found), 12)))]
