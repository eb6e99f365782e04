"""Probes: the fixed samples that every checkpoint is shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from stratascope.errors import ProbeError
from stratascope.storage.datasets import Dataset, load_dataset, source_files
from stratascope.storage.digests import array_digest, identity_of
from stratascope.storage.factories import load_object

if TYPE_CHECKING:
    from stratascope.storage.staging import StagedUnit
    from stratascope.storage.store import Store

Role = Literal["train", "test", "shifted"]
DISPLAYED = 2000
"""At most so many samples keep a picture for the report."""


class Normalization(BaseModel):
    """Mean and standard deviation, one for each channel, of inputs divided by the data set's scale."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    mean: tuple[float, ...]
    std: tuple[float, ...]


class ProbeSpec(BaseModel):
    """One entry of the `probes:` key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str | None = None
    factory: str | None = None
    """`module:callable` that returns arrays, a map-style data set of pairs, or a mapping."""
    args: dict[str, Any] = Field(default_factory=dict)
    split: str = "test"
    limit: int | None = Field(default=None, ge=0)
    seed: int = 0
    role: Role = "test"
    normalize: Literal["standard", "unit", "none"] | Normalization = "standard"

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.dataset is None) == (self.factory is None):
            raise ValueError("a probe needs either `dataset` or `factory`")
        return self


@dataclass(frozen=True)
class Probe:
    """Samples with stable ids. `inputs` (sample, …) may be an array that is read from the archive by slices."""

    name: str
    role: str
    inputs: Any
    targets: np.ndarray | None
    sample_id: np.ndarray
    class_names: tuple[str, ...]
    digest: str
    display: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.sample_id)

    def batches(self, size: int) -> Iterator[tuple[np.ndarray, np.ndarray | None, slice]]:
        """(inputs, targets, rows) of at most `size` samples each, in order."""
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            yield self.inputs[rows], None if self.targets is None else self.targets[rows], rows


def probe_source_files(spec: ProbeSpec, folder: Path) -> list[Path] | None:
    """The files that decide the probe's content; None where only building it can tell."""
    if spec.dataset is None:
        return None
    return source_files(spec.dataset, split=spec.split, folder=folder, **spec.args)


def build_probe(name: str, spec: ProbeSpec, folder: Path) -> Probe:
    """Load, sample (seeded, in proportion to the classes) and normalise. Raises ProbeError."""
    if spec.dataset is not None:
        data = load_dataset(spec.dataset, split=spec.split, folder=folder, **spec.args)
        sample_id = np.arange(len(data.inputs))
    else:
        data, sample_id = _from_factory(name, spec, folder)
    rows = stratified_sample(data.targets, len(data.inputs), spec.limit, spec.seed)
    if len(rows) == 0:
        raise ProbeError(f"probe {name!r} is empty: check its `limit` and its source.")
    raw = data.inputs[rows]
    inputs = _normalized(name, raw, data, spec)
    targets = None if data.targets is None else np.asarray(data.targets)[rows]
    parts = {
        "inputs": array_digest(inputs),
        "targets": None if targets is None else array_digest(targets),
        "sample_id": array_digest(sample_id[rows]),
        "class_names": list(data.class_names),
        "role": spec.role,
        "normalize": spec.model_dump(mode="json")["normalize"],
    }
    return Probe(
        name,
        spec.role,
        inputs,
        targets,
        sample_id[rows],
        data.class_names,
        identity_of(parts),
        _pictures(raw, data),
    )


def stratified_sample(targets: np.ndarray | None, count: int, limit: int | None, seed: int) -> np.ndarray:
    """Ascending row numbers, at most `limit`, drawn without replacement in proportion to the classes.

    The largest remainders decide where shares are not whole, so exactly min(limit, count) rows come back.
    """
    if limit is None or limit >= count:
        return np.arange(count)
    generator = np.random.default_rng(seed)
    if targets is None or targets.ndim != 1 or targets.dtype.kind not in "iub":
        return np.sort(generator.choice(count, limit, replace=False))
    classes, sizes = np.unique(targets, return_counts=True)
    shares = sizes * limit / count
    quota = np.floor(shares).astype(int)
    quota[np.argsort(-(shares - quota), kind="stable")[: limit - quota.sum()]] += 1
    chosen = [
        generator.choice(np.flatnonzero(targets == value), number, replace=False)
        for value, number in zip(classes, quota, strict=True)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _normalized(name: str, raw: np.ndarray, data: Dataset, spec: ProbeSpec) -> np.ndarray:
    if data.kind != "image":
        return np.ascontiguousarray(raw)
    if spec.normalize == "none":
        return np.ascontiguousarray(raw, dtype=np.float32)
    scaled = raw.astype(np.float32) / np.float32(data.scale)
    if spec.normalize == "unit":
        return scaled
    mean, std = (
        (data.mean, data.std) if isinstance(spec.normalize, str) else (spec.normalize.mean, spec.normalize.std)
    )
    if len(mean) != raw.shape[1] or len(std) != raw.shape[1]:
        raise ProbeError(f"probe {name!r} has {raw.shape[1]} channels, `normalize` gives {len(mean)} means.")
    shape = (1, -1, 1, 1)
    return (scaled - np.asarray(mean, np.float32).reshape(shape)) / np.asarray(std, np.float32).reshape(shape)


def _pictures(raw: np.ndarray, data: Dataset) -> np.ndarray | None:
    """uint8 (sample, y, x, channel) of the first samples, for people to look at."""
    if data.kind != "image" or raw.ndim != 4 or raw.shape[1] not in (1, 3):
        return None
    pictures = raw[:DISPLAYED].astype(np.float32) * (255.0 / data.scale)
    return np.clip(np.round(pictures), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def _from_factory(name: str, spec: ProbeSpec, folder: Path) -> tuple[Dataset, np.ndarray]:
    built = load_object(str(spec.factory), folder)(**spec.args)
    if isinstance(built, dict):
        inputs, targets = np.asarray(built["inputs"]), built.get("targets")
        names = tuple(str(item) for item in built.get("class_names", ()))
        sample_id = np.asarray(built["sample_id"]) if "sample_id" in built else np.arange(len(inputs))
    elif isinstance(built, tuple) and len(built) == 2:
        inputs, targets, names = np.asarray(built[0]), built[1], ()
        sample_id = np.arange(len(inputs))
    elif hasattr(built, "__getitem__") and hasattr(built, "__len__"):
        pairs = [built[index] for index in range(len(built))]
        inputs = np.stack([np.asarray(pair[0]) for pair in pairs]) if pairs else np.empty((0,))
        targets, names = [np.asarray(pair[1]) for pair in pairs], ()
        sample_id = np.arange(len(inputs))
    else:
        raise ProbeError(
            f"probe {name!r}: {spec.factory} returned {type(built).__name__}; expected (inputs, targets), a "
            "mapping with `inputs`, or a map-style data set of pairs."
        )
    targets = None if targets is None else np.asarray(targets)
    if targets is not None and len(targets) != len(inputs):
        raise ProbeError(f"probe {name!r}: {len(inputs)} inputs but {len(targets)} targets.")
    return Dataset(inputs, targets, names), sample_id


def store_probe(staged: StagedUnit, probe: Probe) -> None:
    """Write the arrays of `probe` into its unit."""
    attributes = {"role": probe.role, "class_names": list(probe.class_names), "digest": probe.digest}
    trailing = tuple(f"axis_{number}" for number in range(1, probe.inputs.ndim))
    if probe.inputs.ndim == 4:
        trailing = ("channel", "y", "x")
    _write(staged, "input", ("sample", *trailing), probe.inputs, attributes)
    _write(staged, "sample_id", ("sample",), probe.sample_id, {})
    if probe.targets is not None:
        dims = ("sample", *(f"axis_{number}" for number in range(1, probe.targets.ndim)))
        _write(staged, "target", dims, probe.targets, {"class_names": list(probe.class_names)})
    if probe.display is not None:
        _write(staged, "display", ("displayed_sample", "y", "x", "channel_last"), probe.display, {})


def _write(staged: StagedUnit, path: str, dims: tuple[str, ...], values: np.ndarray, attributes: dict) -> None:
    writer = staged.create_array(path, dims=dims, shape=values.shape, dtype=values.dtype, attributes=attributes)
    writer.append(values)


class _StoredInputs:
    """An array in the archive that is read slice by slice."""

    def __init__(self, store: Store, path: str, shape: tuple[int, ...]) -> None:
        self._store, self._path, self.shape = store, path, shape

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        return self._store.read_slice(self._path, start, stop)


def read_probe(store: Store, name: str) -> Probe:
    """The stored probe `name`; its inputs are read when they are asked for."""
    place = f"probes/{name}"
    _, shape, _, attributes = store.array_info(f"{place}/input")
    return Probe(
        name,
        attributes["role"],
        _StoredInputs(store, f"{place}/input", shape),
        store.array(f"{place}/target") if store.has_array(f"{place}/target") else None,
        store.array(f"{place}/sample_id"),
        tuple(attributes["class_names"]),
        attributes["digest"],
        store.array(f"{place}/display") if store.has_array(f"{place}/display") else None,
    )
