"""The features of a layer as every analysis of representations reads them: which layers, which samples, in which order.

Samples are chosen and ordered by their ids, not by their places, so a probe in another order gives the same numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from stratascope.errors import DamagedStoreError, DoesNotApply, StoreError
from stratascope.storage.ledger import Row
from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import CaptureRequest, Options
from stratascope.tasks.contexts import CheckpointContext

INPUT = "@input"
"""Stands for the network's raw inputs, one row of numbers a sample, among the layers."""
EVERY = "*"

Reduction = Literal["pooled", "max", "flat", "last", "cls", "projection", "full"]


class FeatureOptions(Options):
    """Which layers are looked at, in which form, and of how many samples."""

    layers: tuple[str, ...] = (EVERY,)
    """Names, globs, `re:…` or `type:…` of captured layers; `@last_linear:input` is what enters the last linear layer,
    `@input` the raw inputs."""
    reduction: Reduction = "pooled"
    """Where a layer is stored in its `full` form only, that is taken, a row of numbers a sample."""
    max_samples: int = Field(default=2000, ge=2)
    """So many samples at most, the classes in proportion."""
    seed: int = Field(default=0, ge=0)

    @field_validator("layers")
    @classmethod
    def _layers_are_named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return sound_patterns(value)


def request_of(options: FeatureOptions) -> CaptureRequest:
    """What the forward pass has to keep for `options`; every layer that is captured anyway needs no asking."""
    asked = tuple(pattern for pattern in options.layers if pattern not in (INPUT, EVERY))
    return CaptureRequest(layers=asked, keep=(options.reduction,)) if asked else CaptureRequest()


@dataclass(frozen=True)
class Features:
    """One layer's features of chosen samples, in an order that depends on the samples' ids alone."""

    probe: str
    layer: str
    values: np.ndarray
    """float32 or float64 (sample, feature)."""
    targets: np.ndarray | None
    """(sample,): classes as whole numbers or amounts; None where the probe has none, or more than one a sample."""
    sample_id: np.ndarray
    class_names: tuple[str, ...]

    @property
    def classes(self) -> np.ndarray | None:
        """int64 (sample,): the class of each sample; None where the targets are no classes."""
        if self.targets is None or self.targets.dtype.kind not in "iub":
            return None
        return self.targets.astype(np.int64)

    def row(self, metric: str, value: float, **more: Any) -> Row:
        """A finding about these features; says n, and d in its convention."""
        convention = ";".join(filter(None, (f"d={self.values.shape[1]}", more.pop("convention", ""))))
        about: dict[str, Any] = {
            "layer": self.layer,
            "probe": self.probe,
            "n": len(self.values),
            "convention": convention,
        }
        return Row(metric, float(value), **(about | more))

    def refusal(self, metric: str, reason: str, **more: Any) -> Row:
        """A row that says why there is no finding."""
        about: dict[str, Any] = {"layer": self.layer, "probe": self.probe, "n": len(self.values)}
        return Row(metric, status="does_not_apply", reason=reason, **(about | more))


def chosen_rows(probe: Probe, most: int, seed: int) -> np.ndarray:
    """Row numbers of at most `most` samples, in proportion to the classes, ordered by a digest of their ids.

    Which samples, and in which order, depends on their ids and classes and on `seed`, not on their places. Where shares
    are not whole the largest remainders decide (the smaller class where they are equal).
    """
    import xxhash

    identities = [str(item) for item in probe.sample_id.tolist()]
    keys = np.array([xxhash.xxh3_64_intdigest(item.encode(), seed=seed) for item in identities], np.uint64)
    order = np.lexsort((np.array(identities), keys))
    count = len(order)
    if most >= count:
        return order
    targets = probe.targets
    if targets is None or targets.ndim != 1 or targets.dtype.kind not in "iub":
        return order[:most]
    classes, sizes = np.unique(targets, return_counts=True)
    quota, remainder = np.divmod(sizes * most, count)
    quota[np.argsort(-remainder, kind="stable")[: most - quota.sum()]] += 1
    chosen = np.concatenate(
        [order[targets[order] == value][:number] for value, number in zip(classes, quota, strict=True)]
    )
    wanted = np.zeros(count, bool)
    wanted[chosen] = True
    return order[wanted[order]]


def sound_patterns(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """`patterns`, if each can name layers. Raises ValueError for numbers and for what is no regular expression."""
    for pattern in patterns:
        if re.fullmatch(r"-?\d+|(-?\d+)?:(-?\d+)?", pattern):
            raise ValueError(f"{pattern!r} is a number; name the layers, or use a glob")
        if pattern.startswith("re:"):
            try:
                re.compile(pattern[3:])
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
    return patterns


def matching_names(pattern: str, names: Sequence[str]) -> list[str]:
    """Those of `names` that `pattern` means: a name, a glob, or `re:…` for all of a name."""
    if pattern.startswith("re:"):
        return [name for name in names if re.fullmatch(pattern[3:], name)]
    return [name for name in names if name == pattern or fnmatchcase(name, pattern)]


def layer_names(context: CheckpointContext, probe: str, patterns: Sequence[str]) -> list[str]:
    """The layers that `patterns` mean, in the order of execution, raw inputs first.

    Raises DoesNotApply for a pattern that matches no stored layer.
    """
    names = [name for name in context.layers(probe) if name != "@output"]
    found: set[str] = set()
    for pattern in patterns:
        if pattern == INPUT:
            found.add(INPUT)
            continue
        if pattern.startswith("@"):
            matching = [context.resolve(probe, pattern)]
        elif pattern.startswith("type:"):
            matching = [name for name in names if context.layer_facts(probe, name)["type"] == pattern[5:]]
        else:
            matching = matching_names(pattern, names)
        if not matching:
            raise DoesNotApply(f"no stored layer of probe {probe!r} matches {pattern!r}.")
        found |= set(matching)
    return [name for name in (INPUT, *names) if name in found] + sorted(found - {INPUT, *names})


def read_features(
    context: CheckpointContext, options: FeatureOptions, probe: str, layer: str, rows: np.ndarray
) -> Features:
    """The features of `layer` for `rows` of the probe (as from `chosen_rows`).

    Raises DoesNotApply where they are not stored, or are no numbers.
    """
    shown = context.probes[probe]
    ascending = np.sort(rows)
    if layer == INPUT:
        values = _inputs(shown, ascending)
    else:
        kept = context.captured.get(probe, {}).get("facts", {}).get(layer, {}).get("kept", ())
        # What has no known axis of units is kept whole, whatever was asked for.
        reduction = "full" if kept and options.reduction not in kept and "full" in kept else options.reduction
        try:
            values = context.activations(probe, layer, reduction, ascending)
        except DamagedStoreError:
            raise
        except StoreError:
            raise DoesNotApply(f"the layer's {options.reduction!r} activations are not stored") from None
    values = values.reshape(len(values), -1)[np.searchsorted(ascending, rows)]
    if values.dtype != np.float64:
        values = values.astype(np.float32)
    targets = shown.targets[rows] if shown.targets is not None and shown.targets.ndim == 1 else None
    return Features(probe, layer, values, targets, shown.sample_id[rows], shown.class_names)


def _inputs(probe: Probe, ascending: np.ndarray) -> np.ndarray:
    """(sample, number): the inputs of `ascending` rows, read in slices."""
    size = 1024
    blocks = []
    for start in range(0, len(ascending), size):
        rows = ascending[start : start + size]
        block = probe.inputs_at(slice(int(rows[0]), int(rows[-1]) + 1))
        if isinstance(block, dict) or block.dtype.kind not in "fiub":
            raise DoesNotApply("the raw inputs are not one array of numbers")
        blocks.append(np.asarray(block)[rows - rows[0]].reshape(len(rows), -1))
    return np.concatenate(blocks) if blocks else np.empty((0, 0), np.float32)


def each_layer(context: CheckpointContext, options: FeatureOptions, metric: str) -> Iterator[Features | Row]:
    """The features of each chosen layer on each probe; in place of those that cannot be read, a row of `metric` that says why."""
    for name, probe in context.probes.items():
        try:
            layers = layer_names(context, name, options.layers)
        except DoesNotApply as reason:
            yield Row(metric, probe=name, status="does_not_apply", reason=str(reason))
            continue
        rows = chosen_rows(probe, options.max_samples, options.seed)
        for layer in layers:
            try:
                features = read_features(context, options, name, layer, rows)
            except DoesNotApply as reason:
                yield Row(metric, layer=layer, probe=name, status="does_not_apply", reason=str(reason))
                continue
            yield features


def degenerate(values: np.ndarray, least: int = 3) -> str:
    """Why nothing can be said of features (sample, feature); empty where something can.

    Names what is not finite, too few samples (below `least`), no feature at all, and constant features.
    """
    bad = int((~np.isfinite(values)).any(1).sum())
    if bad:
        return f"the features of {bad} of {len(values)} samples are not finite"
    if len(values) < least:
        return f"at least {least} samples are needed, there are {len(values)}"
    if values.shape[1] == 0:
        return "the layer has no features"
    if np.ptp(values, axis=0).max(initial=0.0) == 0:
        return "the features are constant: all samples look alike to this layer"
    return ""


def without_enough_classes(classes: np.ndarray | None, each: int = 2) -> str:
    """Why classes (sample,) cannot be set apart; empty where there are two or more with `each` samples or more."""
    if classes is None:
        return "the probe's targets are no classes"
    values, sizes = np.unique(classes, return_counts=True)
    if len(values) < 2:
        return "the probe has one class only"
    if sizes.min() < each:
        rare = values[sizes.argmin()]
        return f"class {rare} has {sizes.min()} of the samples: at least {each} of each class are needed"
    return ""
