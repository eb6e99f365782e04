"""Samples of a probe as a network and its loss are given them: inputs of any kind, targets, the mask of real tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stratascope.errors import DoesNotApply
from stratascope.storage.probes import Probe
from stratascope.tasks.representation.losses import IGNORED

_BLOCK = 1024
"""So many neighbouring samples are read at once."""


@dataclass(frozen=True)
class GivenSamples:
    """Chosen samples of a probe, in an order of their own."""

    probe: str
    rows: np.ndarray
    """int64 (sample,): their places in the probe."""
    inputs: Any
    """An array (sample, …), or a mapping of such, perhaps nested."""
    targets: np.ndarray | None
    mask: np.ndarray | None
    """bool (sample, token), true where a target is real; None where all are."""
    sample_id: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def classes(self) -> np.ndarray | None:
        """int64 (sample,): the class of each; None where the targets are no classes of whole samples."""
        return classes_of(self.targets)

    def part(self, rows: slice) -> GivenSamples:
        return replace(
            self,
            rows=self.rows[rows],
            inputs=_taken(self.inputs, rows),
            targets=None if self.targets is None else self.targets[rows],
            mask=None if self.mask is None else self.mask[rows],
            sample_id=self.sample_id[rows],
        )


def classes_of(targets: np.ndarray | None) -> np.ndarray | None:
    """int64 (sample,): `targets` as classes; None where there are none, or they are no classes of whole samples."""
    if targets is None or targets.ndim != 1 or targets.dtype.kind not in "iub":
        return None
    found: np.ndarray = targets.astype(np.int64)
    return found


def given_samples(probe: Probe, rows: np.ndarray) -> GivenSamples:
    """The samples at `rows` (sample,) of `probe`, in that order; neighbours are read together."""
    order = np.argsort(rows, kind="stable")
    ascending = rows[order]
    inputs, masks = [], []
    for number in np.unique(ascending // _BLOCK):
        first, last = np.searchsorted(ascending, (number * _BLOCK, (number + 1) * _BLOCK))
        inside = ascending[first:last]
        span = slice(int(inside[0]), int(inside[-1]) + 1)
        inputs.append(_taken(probe.inputs_at(span), inside - span.start))
        masks.append(probe.target_mask_at(span))
        if masks[-1] is not None:
            masks[-1] = masks[-1][inside - span.start]
    back = np.argsort(order, kind="stable")
    mask = None if not masks or masks[0] is None else np.concatenate([item for item in masks if item is not None])
    return GivenSamples(
        probe.name,
        rows,
        _taken(_joined(inputs), back) if inputs else probe.inputs_at(slice(0, 0)),
        None if probe.targets is None else probe.targets[rows],
        None if mask is None else mask[back],
        probe.sample_id[rows],
        probe.class_names,
    )


def with_targets(samples: GivenSamples, task: str) -> GivenSamples:
    """Those of `samples` whose target counts. Raises DoesNotApply where there is no loss for them."""
    if task == "none":
        raise DoesNotApply("the task is 'none': there is no loss to differentiate.")
    if samples.targets is None:
        raise DoesNotApply(f"probe {samples.probe!r} has no targets.")
    counts = np.ones(len(samples), bool)
    if task != "regression" and samples.targets.dtype.kind in "iu":
        counts = samples.targets != IGNORED
        if task == "tokens" and samples.mask is not None and samples.mask.shape == counts.shape:
            counts &= samples.mask
        counts = counts.reshape(len(samples), -1).any(1)
    if not counts.any():
        raise DoesNotApply("no target counts: all are padding.")
    if counts.all():
        return samples
    kept = np.flatnonzero(counts)
    return replace(
        samples,
        rows=samples.rows[kept],
        inputs=_taken(samples.inputs, kept),
        targets=samples.targets[kept],
        mask=None if samples.mask is None else samples.mask[kept],
        sample_id=samples.sample_id[kept],
    )


def _taken(inputs: Any, rows: Any) -> Any:
    if isinstance(inputs, Mapping):
        return {name: _taken(values, rows) for name, values in inputs.items()}
    return inputs[rows]


def _joined(parts: list[Any]) -> Any:
    if isinstance(parts[0], Mapping):
        return {name: _joined([part[name] for part in parts]) for name in parts[0]}
    return np.concatenate(parts)
