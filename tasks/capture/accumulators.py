"""Statistics of a layer that grow with each batch and need no stored activations."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from stratascope.tasks.analysis import NamedArray
from stratascope.tasks.capture.layers import LayerInfo
from stratascope.tasks.capture.reductions import units_last

_BOUNDED = {"Sigmoid": (0.0, 1.0), "Tanh": (-1.0, 1.0), "Hardsigmoid": (0.0, 1.0), "Hardtanh": (-1.0, 1.0)}
_RECTIFIERS = ("ReLU", "ReLU6")
TOP = 9
"""So many samples with the largest activation are kept for each unit."""


class LayerStatistics:
    """Moments, extremes, zeros, dead units, histogram and top samples of one layer, by unit.

    A unit is a channel or a feature. Sums are float64, so that the batch size does not matter beyond 1e-5.
    Histogram edges come from the first samples alone, whose number does not depend on the batch size.
    """

    def __init__(self, layer: LayerInfo, bins: int, positions: int, rectified: bool) -> None:
        self.layer, self.bins, self.positions, self.rectified = layer, bins, positions, rectified
        self.count = 0
        self.samples = 0
        self.edges: Tensor | None = None
        self.early: list[Tensor] = []
        self.early_samples = 0
        self.picked: Tensor | None = None
        self.smallest: Tensor
        self.largest: Tensor

    @torch.inference_mode()
    def add(self, values: Tensor) -> None:
        """Take in a batch (sample, …)."""
        units = units_last(values, self.layer).float()
        finite = torch.isfinite(units)
        bad = (~finite).sum((0, 1)).double()
        if bool(bad.any()):
            units = torch.where(finite, units, torch.zeros((), dtype=units.dtype))
        if self.count == 0:
            self._start(units)
        batch, positions, _ = units.shape
        flat = units.reshape(batch * positions, -1)
        total = flat.sum(0, dtype=torch.float64)
        self.total += total
        # Squares of the deviation from the first batch's mean: the plain sum of squares would cancel.
        self.squares += ((flat - self.shift) ** 2).sum(0, dtype=torch.float64)
        self.shifted += total - self.shift.double() * len(flat)
        self.smallest = torch.minimum(self.smallest, flat.amin(0))
        self.largest = torch.maximum(self.largest, flat.amax(0))
        self.zeros += (flat == 0).sum(0).double()
        self.non_finite += bad
        if (bounds := _BOUNDED.get(self.layer.kind)) is not None:
            low, high = bounds
            margin = 0.05 * (high - low) / 2
            self.saturated += ((flat < low + margin) | (flat > high - margin)).sum(0).double()
        self._top(units.amax(1))
        self._histogram(units)
        self.count += len(flat)
        self.samples += batch

    def _start(self, units: Tensor) -> None:
        width = units.shape[2]
        zeros = torch.zeros(width, dtype=torch.float64)
        self.total, self.squares, self.shifted = zeros.clone(), zeros.clone(), zeros.clone()
        self.zeros, self.non_finite, self.saturated = zeros.clone(), zeros.clone(), zeros.clone()
        self.shift = units[:1].mean((0, 1))
        self.smallest = torch.full((width,), torch.inf)
        self.largest = torch.full((width,), -torch.inf)
        self.top_value = torch.full((0, width), -torch.inf)
        self.top_sample = torch.zeros((0, width), dtype=torch.int64)
        if units.shape[1] > self.positions:
            generator = torch.Generator().manual_seed(0)
            self.picked = torch.randperm(units.shape[1], generator=generator)[: self.positions].sort().values

    def _top(self, peaks: Tensor) -> None:
        places = torch.arange(self.samples, self.samples + len(peaks))[:, None].expand_as(peaks)
        values = torch.cat([self.top_value, peaks])
        samples = torch.cat([self.top_sample, places])
        # A stable sort keeps the earlier sample first where two are equal, whatever the batch size.
        order = torch.sort(values, dim=0, descending=True, stable=True).indices[:TOP]
        self.top_value, self.top_sample = values.gather(0, order), samples.gather(0, order)

    def _histogram(self, units: Tensor) -> None:
        chosen = units if self.picked is None else units[:, self.picked]
        if self.edges is None:
            self.early.append(chosen.clone())
            self.early_samples += len(chosen)
            if self.early_samples >= 128:
                self._settle_edges()
            return
        self._count(chosen)

    def _settle_edges(self) -> None:
        early = torch.cat(self.early)
        head = early[:128]
        low, high = float(head.min()), float(head.max())
        reach = max(high - low, 1e-6)
        self.edges = torch.linspace(low - 0.1 * reach, high + 0.1 * reach, self.bins + 1)
        self.counts = torch.zeros(self.bins, dtype=torch.float64)
        self._count(early)
        self.early = []

    def _count(self, chosen: Tensor) -> None:
        assert self.edges is not None
        low, high = float(self.edges[0]), float(self.edges[-1])
        # What lies outside goes into the first and the last bin.
        self.counts += torch.histc(chosen.clamp(low, high), self.bins, low, high).double()

    def arrays(self) -> dict[str, NamedArray]:
        """Everything by name: one number a unit, but for the histogram and the top samples."""
        if self.edges is None:
            self._settle_edges()
        assert self.edges is not None
        mean = self.total / self.count
        variance = (self.squares - self.shifted**2 / self.count) / self.count
        unit = ("unit",)
        attributes = {"layer": self.layer.name, "type": self.layer.kind, "n": self.count, "samples": self.samples}
        by_unit = {
            "mean": mean,
            "std": variance.clamp(min=0).sqrt(),
            "min": self.smallest.double(),
            "max": self.largest.double(),
            "zero_fraction": self.zeros / self.count,
            "non_finite_count": self.non_finite,
        }
        if self.rectified:
            by_unit["dead"] = (self.largest <= 0).double()
        if self.layer.kind in _BOUNDED:
            by_unit["saturated_fraction"] = self.saturated / self.count
        arrays = {name: NamedArray(unit, value.numpy(), attributes) for name, value in by_unit.items()}
        arrays["histogram_counts"] = NamedArray(("bin",), self.counts.numpy(), attributes)
        arrays["histogram_edges"] = NamedArray(("edge",), self.edges.double().numpy(), attributes)
        arrays["top_value"] = NamedArray(("rank", "unit"), self.top_value.numpy().astype(np.float32), attributes)
        arrays["top_sample"] = NamedArray(("rank", "unit"), self.top_sample.numpy(), attributes)
        return arrays


def is_rectifier(layer: LayerInfo) -> bool:
    """Whether the layer is a ReLU itself."""
    return layer.kind in _RECTIFIERS
