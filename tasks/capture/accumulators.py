"""Statistics of a layer that grow with each batch and need no stored activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stratascope.tasks.analysis import NamedArray
from stratascope.tasks.capture.layers import LayerInfo
from stratascope.tasks.capture.reductions import max_over_positions, mean_over_positions

_BOUNDED = {"Sigmoid": (0.0, 1.0), "Tanh": (-1.0, 1.0), "Hardsigmoid": (0.0, 1.0), "Hardtanh": (-1.0, 1.0)}
TOP = 9
"""So many samples with the largest activation are kept for each unit."""
_EARLY = 128
"""So many first samples decide the edges of the histogram, whatever the batch size."""
_STEEP = 0.02
"""Below this ratio of variance to squared mean, sums of squares would cancel: values are shifted first."""


@dataclass
class BatchPart:
    """What one batch adds; all that is summed is (sample, unit), so the forward's memory can go."""

    count: Tensor
    mean: Tensor
    squares: Tensor
    smallest: Tensor
    largest: Tensor
    non_finite: Tensor
    zeros: Tensor | None = None
    saturated: Tensor | None = None
    chosen: Tensor | None = None

    def on_processor(self) -> BatchPart:
        """The same where sums are kept: small beside what was reduced to it."""
        if self.mean.device.type == "cpu":
            return self
        parts = (getattr(self, item.name) for item in fields(self))
        here: list[Any] = [None if part is None else part.cpu() for part in parts]
        return BatchPart(*here)


class LayerStatistics:
    """Moments, extremes, zeros, dead units, histogram, top samples, covariance and class means, by unit.

    A unit is a channel or a feature. `measure` looks at a batch while it is hot, `add` takes its result in once
    the whole forward pass is known to have succeeded. Sums over samples are float64.
    """

    def __init__(
        self,
        layer: LayerInfo,
        wanted: Sequence[str],
        bins: int = 64,
        positions: int = 16,
        covariance_limit: int = 1024,
        classes: int = 0,
    ) -> None:
        self.layer, self.wanted, self.bins, self.positions = layer, frozenset(wanted), bins, positions
        self.covariance_limit, self.classes = covariance_limit, classes
        self.samples = 0
        self.shift: Tensor | None = None
        self.shifted = False
        self.picked: Tensor | None = None
        self.edges: Tensor | None = None
        self.early: list[Tensor] = []
        self.early_samples = 0
        self.sums: dict[str, Tensor] = {}

    @torch.inference_mode()
    def measure(self, units: Tensor, mask: Tensor | None = None, means: Tensor | None = None) -> BatchPart:
        """Look at a batch (sample, unit, position); `mask` (sample, position) tells which positions are real.

        `means` (sample, unit) are the means over the real positions, where they are known already.
        """
        units = units.float()
        samples, width, positions = units.shape
        non_finite = torch.zeros(width, dtype=torch.float64, device=units.device)
        means = mean_over_positions(units, mask) if means is None else means.float()
        if not bool(torch.isfinite(means).all()):
            finite = torch.isfinite(units)
            if mask is not None:
                finite |= ~mask[:, None, :]
            non_finite = (~finite).sum((0, 2)).double()
            units = torch.where(finite, units, torch.zeros((), dtype=units.dtype))
            means = mean_over_positions(units, mask)
        if mask is not None:
            units = units.masked_fill(~mask[:, None, :], 0.0)
        real = torch.full((samples,), positions, device=units.device) if mask is None else mask.sum(1)
        count = real.double()
        part = BatchPart(count, means, self._squares(units, means, mask), *self._extremes(units, mask), non_finite)
        if "zeros" in self.wanted:
            part.zeros = self._zeros(units, count)
            part.saturated = self._saturated(units, mask)
        if "histogram" in self.wanted:
            part.chosen = self._choose(units, mask)
        return part.on_processor()

    def _squares(self, units: Tensor, means: Tensor, mask: Tensor | None) -> Tensor:
        """Sum of the squared deviations from the shift, by sample and unit."""
        if self.shift is None:
            self.shift = means[0].clone().cpu()
            squares = _square_sums(units).double()
            mean = means.double().mean(0)
            variance = squares.mean(0) / max(1, units.shape[2]) - mean**2
            self.shifted = bool((variance < _STEEP * mean**2).any())
            if not self.shifted:
                self.shift.zero_()
        if not self.shifted:
            return _square_sums(units)
        moved = units - self.shift.to(units.device)[None, :, None]
        if mask is not None:
            moved.masked_fill_(~mask[:, None, :], 0.0)
        return _square_sums(moved)

    @staticmethod
    def _extremes(units: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        return -max_over_positions(-units, mask) if mask is not None else units.amin(2), max_over_positions(
            units, mask
        )

    @staticmethod
    def _zeros(units: Tensor, count: Tensor) -> Tensor:
        # The squared norm of the signs counts what is not zero, four times faster than comparing.
        others = torch.linalg.vector_norm(torch.sign(units), dim=2).double().square().round()
        return (count[:, None] - others).sum(0)

    def _saturated(self, units: Tensor, mask: Tensor | None) -> Tensor | None:
        if self.layer.kind not in _BOUNDED:
            return None
        low, high = _BOUNDED[self.layer.kind]
        margin = 0.05 * (high - low) / 2
        outer = (units < low + margin) | (units > high - margin)
        if mask is not None:
            outer &= mask[:, None, :]
        return outer.sum((0, 2)).double()

    def _choose(self, units: Tensor, mask: Tensor | None) -> Tensor:
        if self.picked is None:
            generator = torch.Generator().manual_seed(0)
            order = torch.randperm(units.shape[2], generator=generator)
            self.picked = order[: self.positions].sort().values
        picked = self.picked.to(units.device)
        chosen = units.index_select(2, picked)
        if mask is not None:
            chosen = chosen.masked_fill(~mask.index_select(1, picked)[:, None, :], torch.nan)
        return chosen.flatten(1)

    @torch.inference_mode()
    def add(self, part: BatchPart, targets: Tensor | None = None) -> None:
        """Take in what `measure` found; `targets` (sample,) are class numbers, for the class means."""
        count = part.count[:, None]
        total = part.mean.double() * count
        self._sum("count", part.count.sum())
        self._sum("total", total.sum(0))
        self._sum("squares", part.squares.double().sum(0))
        self._sum("non_finite", part.non_finite)
        self._extreme("smallest", part.smallest, torch.minimum, torch.amin)
        self._extreme("largest", part.largest, torch.maximum, torch.amax)
        if part.zeros is not None:
            self._sum("zeros", part.zeros)
        if part.saturated is not None:
            self._sum("saturated", part.saturated)
        if part.chosen is not None:
            self._histogram(part.chosen)
        if "top" in self.wanted:
            self._top(part.largest)
        if "covariance" in self.wanted and part.mean.shape[1] <= self.covariance_limit:
            assert self.shift is not None
            moved = part.mean.double() - self.shift.double()
            self._sum("products", moved.T @ moved)
            self._sum("moved", moved.sum(0))
        if "class_mean" in self.wanted and self.classes and targets is not None:
            self._class_sums(part.mean.double(), targets)
        self.samples += len(part.mean)

    def _sum(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()

    def _extreme(self, name: str, values: Tensor, join: Any, over: Any) -> None:
        found = over(values, 0)
        self.sums[name] = join(self.sums[name], found) if name in self.sums else found

    def _class_sums(self, means: Tensor, targets: Tensor) -> None:
        sums = torch.zeros(self.classes, means.shape[1], dtype=torch.float64).index_add_(0, targets, means)
        self._sum("class_total", sums)
        self._sum("class_count", torch.bincount(targets, minlength=self.classes).double())

    def _top(self, peaks: Tensor) -> None:
        # Value and place in one whole number: ties go to the earlier sample, whatever the batch size.
        bits = peaks.contiguous().view(torch.int32).long()
        ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
        places = 0x7FFFFFFF - torch.arange(self.samples, self.samples + len(peaks))
        keys = ((ordered << 32) | places[:, None]).T.contiguous()
        if "top" in self.sums:
            keys = torch.cat([self.sums["top"], keys], 1)
        self.sums["top"] = torch.topk(keys, min(TOP, keys.shape[1]), dim=1).values

    def _histogram(self, chosen: Tensor) -> None:
        if self.edges is None:
            self.early.append(chosen)
            self.early_samples += len(chosen)
            if self.early_samples >= _EARLY:
                self._settle_edges()
            return
        self._count(chosen)

    def _settle_edges(self) -> None:
        early = torch.cat(self.early)
        head = early[:_EARLY]
        head = head[torch.isfinite(head)]
        low, high = (float(head.min()), float(head.max())) if len(head) else (0.0, 1.0)
        reach = max(high - low, 1e-6)
        self.edges = torch.linspace(low - 0.1 * reach, high + 0.1 * reach, self.bins + 1)
        self.early = []
        self._count(early)

    def _count(self, chosen: Tensor) -> None:
        assert self.edges is not None
        low, high = float(self.edges[0]), float(self.edges[-1])
        kept = chosen[torch.isfinite(chosen)] if bool(torch.isnan(chosen).any()) else chosen
        # What lies outside goes into the first and the last bin.
        self._sum("histogram", torch.histc(kept.clamp(low, high), self.bins, low, high).double())

    def arrays(self, dead: np.ndarray | None = None) -> dict[str, NamedArray]:
        """`by_unit` (statistic, unit), `histogram` (histogram_column, bin), `top` (top_column, rank, unit), …

        Few arrays with named rows, not many small ones: a file costs more than its numbers. `statistics_of` takes
        them apart again.
        """
        sums = self.sums
        count = float(sums["count"])
        mean = sums["total"] / max(1.0, count)
        shift = self.shift.double() if self.shift is not None else torch.zeros_like(mean)
        variance = sums["squares"] / max(1.0, count) - (mean - shift) ** 2
        by_unit = {
            "mean": mean,
            "std": variance.clamp(min=0).sqrt(),
            "min": sums["smallest"].double(),
            "max": sums["largest"].double(),
            "non_finite_count": sums["non_finite"],
        }
        for name in ("zeros", "saturated"):
            if name in sums:
                by_unit["zero_fraction" if name == "zeros" else "saturated_fraction"] = sums[name] / max(
                    1.0, count
                )
        if dead is not None:
            by_unit["dead"] = torch.from_numpy(dead.astype(np.float64))
        attributes = {"layer": self.layer.name, "type": self.layer.kind, "n": int(count), "samples": self.samples}
        values = torch.stack(list(by_unit.values())).numpy()
        arrays = {"by_unit": NamedArray(("statistic", "unit"), values, {**attributes, "statistic": list(by_unit)})}
        return arrays | self._wide_arrays(attributes)

    def _wide_arrays(self, attributes: dict[str, Any]) -> dict[str, NamedArray]:
        arrays: dict[str, NamedArray] = {}
        if "histogram" in self.wanted:
            if self.edges is None:
                self._settle_edges()
            assert self.edges is not None
            edges = self.edges.double()
            columns = torch.stack([edges[:-1], edges[1:], self.sums["histogram"]]).numpy()
            names = {"histogram_column": ["low", "high", "count"]}
            arrays["histogram"] = NamedArray(("histogram_column", "bin"), columns, attributes | names)
        if "top" in self.sums:
            keys = self.sums["top"].T
            ordered = (keys >> 32).to(torch.int32)
            bits = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
            value, sample = bits.contiguous().view(torch.float32), 0x7FFFFFFF - (keys & 0xFFFFFFFF)
            both = torch.stack([value.double(), sample.double()]).numpy()
            names = {"top_column": ["value", "sample"]}
            arrays["top"] = NamedArray(("top_column", "rank", "unit"), both, attributes | names)
        if "products" in self.sums:
            average = self.sums["moved"] / self.samples
            covariance = self.sums["products"] / self.samples - torch.outer(average, average)
            arrays["covariance"] = NamedArray(("unit", "other_unit"), covariance.numpy(), attributes)
        if "class_total" in self.sums:
            number = self.sums["class_count"]
            means = self.sums["class_total"] / number[:, None]
            counts = {"class_count": [int(item) for item in number]}
            arrays["class_mean"] = NamedArray(("class", "unit"), means.numpy(), attributes | counts)
        return arrays


def _square_sums(units: Tensor) -> Tensor:
    """Sum of squares over positions, (sample, unit)."""
    if units.shape[2] == 1:
        return units[:, :, 0].square()
    return torch.linalg.vector_norm(units, dim=2).square()
