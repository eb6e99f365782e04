"""Probes: the fixed samples that every checkpoint is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from stratascope.errors import ProbeError, StratascopeError
from stratascope.storage.archive import join_path
from stratascope.storage.datasets import SOURCES, load_dataset, source_files
from stratascope.storage.datasets.dataset import Dataset, Kind, Normalization, leaves_of, nested, take
from stratascope.storage.digests import array_digest, identity_of
from stratascope.storage.factories import import_folder
from stratascope.storage.probe_rows import PreparedRows, plain, prepared, rows_digest

if TYPE_CHECKING:
    from stratascope.storage.staging import StagedUnit
    from stratascope.storage.store import Store

Role = Literal["train", "test", "shifted"]


class ProbeSpec(BaseModel):
    """One entry of the `probes:` key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str | None = None
    factory: str | None = None
    """`module:callable` that returns arrays, a map-style data set of pairs, or a mapping."""
    args: dict[str, Any] = Field(default_factory=dict)
    split: str = "test"
    limit: int | None = Field(default=None, ge=0)
    seed: int = Field(default=0, ge=0)
    role: Role = "test"
    """Not given, it is `shifted` for data sets that are a shift, and `train` for the split `train`."""
    normalize: Literal["standard", "unit", "none"] | Normalization = "standard"
    """`standard`: images by the data set's published mean and spread; `unit`: images from 0 to 1; or numbers."""

    @model_validator(mode="before")
    @classmethod
    def _role_follows_from_the_data(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "role" in values:
            return values
        source = SOURCES.get(str(values.get("dataset")))
        role = source.role if source is not None else None
        return {**values, "role": role or ("train" if values.get("split") == "train" else "test")}

    @model_validator(mode="after")
    def _has_one_source(self) -> Self:
        if (self.dataset is None) == (self.factory is None):
            raise ValueError("a probe needs either `dataset` or `factory`")
        return self


@dataclass(frozen=True)
class Probe:
    """Samples with stable ids.

    `inputs` (sample, …) are an array or a mapping of arrays, perhaps nested; those of a stored probe are read from
    the archive slice by slice. `masks` are bool (sample, token), true for real tokens, by the name of their input
    (`outer/inner`, "" for the only one). `names` tell what numbers stand for: words by token id, series by column.
    """

    name: str
    role: str
    inputs: Any
    targets: np.ndarray | None
    sample_id: np.ndarray
    class_names: tuple[str, ...]
    digest: str
    kind: Kind = "array"
    normalization: Normalization | None = None
    """How the inputs were normalised; None where it is not known or nothing was done."""
    masks: Mapping[str, Any] = field(default_factory=dict)
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.sample_id)

    def inputs_at(self, rows: slice) -> Any:
        """The inputs of `rows`: an array (sample, …), or a mapping of such that is nested as the inputs are."""
        return nested({name: values[rows] for name, values in leaves_of(self.inputs).items()})

    def mask_at(self, rows: slice, name: str | None = None) -> np.ndarray | None:
        """bool (sample, token), true for the real tokens of input `name` (default: the first one with a mask).

        None where all tokens are real.
        """
        if name is None:
            name = next(iter(self.masks), "")
        return self.masks[name][rows] if name in self.masks else None

    def target_mask_at(self, rows: slice) -> np.ndarray | None:
        """bool (sample, token), true where a target of `rows` is real; None where all are, or targets are no sequences.

        It is the mask of the input that has as many tokens; of several the last, which is what a decoder is shown.
        """
        shape = () if self.targets is None else tuple(self.targets.shape[:2])
        fitting = [name for name, mask in self.masks.items() if tuple(mask.shape) == shape]
        return self.mask_at(rows, fitting[-1]) if fitting else None

    def pictures_at(self, rows: slice) -> np.ndarray | None:
        """uint8 (sample, y, x, channel) of `rows` for people to look at, with the normalisation undone.

        None where the inputs are no images, or how they were normalised is not known.
        """
        if self.normalization is None:
            return None
        for values in leaves_of(self.inputs).values():
            if len(values.shape) == 4 and values.shape[1] in (1, 3):
                white = 255.0 / (self.normalization.scale or 1.0)
                pixels = np.round(self.normalization.undo(values[rows]) * np.float32(white))
                return np.clip(np.nan_to_num(pixels), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
        return None

    def batches(self, size: int) -> Iterator[tuple[Any, np.ndarray | None, slice]]:
        """(inputs, targets, rows) of at most `size` samples each, in order."""
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            yield self.inputs_at(rows), None if self.targets is None else self.targets[rows], rows


def probe_source_files(spec: ProbeSpec, folder: Path) -> list[Path] | None:
    """The files that decide the probe's content; None where only building it can tell."""
    if spec.dataset is None:
        return None
    return source_files(spec.dataset, split=spec.split, folder=folder, **spec.args)


def build_probe(name: str, spec: ProbeSpec, folder: Path) -> Probe:
    """Load, sample (seeded, in proportion to the classes) and normalise. Raises ProbeError, ConfigurationError.

    Inputs of more than `HELD_BYTES` stay with their source, are read for the digest once, and again slice by slice
    whenever they are asked for.
    """
    if spec.dataset is not None:
        data = load_dataset(spec.dataset, split=spec.split, folder=folder, **spec.args)
        return _probe_of(name, spec, data)
    from stratascope.storage.datasets.factory import load_factory

    try:
        with import_folder(folder):
            return _probe_of(name, spec, load_factory(str(spec.factory), spec.args, folder))
    except ProbeError as error:
        raise ProbeError(f"probe {name!r}, factory {spec.factory!r}: {error}") from None
    except StratascopeError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise ProbeError(f"probe {name!r}: factory {spec.factory!r} failed with {reason}") from None


def _probe_of(name: str, spec: ProbeSpec, data: Dataset) -> Probe:
    rows = stratified_sample(data.targets, len(data), spec.limit, spec.seed)
    if len(rows) == 0:
        raise ProbeError(f"probe {name!r} is empty: check its `limit` and its source.")
    normalization = _normalization(name, spec, data)
    leaves = prepared(name, data, rows, normalization if data.denormalize is None else None)
    targets = None if data.targets is None else plain(name, "targets", take(np.asarray(data.targets), rows))
    identities = rows if data.sample_id is None else take(data.sample_id, rows)
    if len(np.unique(identities)) != len(identities):
        raise ProbeError(f"probe {name!r}: its sample ids are not unique.")
    masks = {part: np.ascontiguousarray(take(mask, rows)) for part, mask in data.masks.items()}
    digest = identity_of(
        {
            "inputs": {part: _digest_of(values) for part, values in leaves.items()},
            "targets": None if targets is None else array_digest(targets),
            "sample_id": array_digest(identities),
            "class_names": list(data.class_names),
            "masks": {part: array_digest(mask) for part, mask in masks.items()},
            "names": {part: list(names) for part, names in data.names.items()},
            "normalization": None if normalization is None else normalization.model_dump(mode="json"),
            "kind": data.kind,
            "role": spec.role,
        }
    )
    return Probe(
        name, spec.role, nested(leaves), targets, identities, data.class_names, digest, data.kind, normalization,
        masks, dict(data.names),
    )  # fmt: skip


def _digest_of(values: np.ndarray | PreparedRows) -> str:
    return values.digest if isinstance(values, PreparedRows) else array_digest(values)


def stratified_sample(targets: np.ndarray | None, count: int, limit: int | None, seed: int) -> np.ndarray:
    """Ascending row numbers, at most `limit`, drawn without replacement in proportion to the classes.

    The largest remainders decide where shares are not whole (the earlier class where they are equal), so exactly
    min(limit, count) rows come back. Targets that are no classes are drawn from uniformly.
    """
    if limit is None or limit >= count:
        return np.arange(count)
    generator = np.random.default_rng(seed)
    if targets is None or targets.ndim != 1 or targets.dtype.kind not in "iub":
        return np.sort(generator.choice(count, limit, replace=False))
    classes, sizes = np.unique(targets, return_counts=True)
    quota, remainder = np.divmod(sizes * limit, count)
    quota[np.argsort(-remainder, kind="stable")[: limit - quota.sum()]] += 1
    chosen = [
        generator.choice(np.flatnonzero(targets == value), number, replace=False)
        for value, number in zip(classes, quota, strict=True)
    ]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _normalization(name: str, spec: ProbeSpec, data: Dataset) -> Normalization | None:
    """How the inputs of the probe are normalised; None where they stay as they are and nothing is known."""
    wish = spec.normalize
    if data.denormalize is not None:
        if wish != "standard":
            raise ProbeError(f"probe {name!r}: its source says how it was normalised, so leave `normalize` out.")
        return data.denormalize
    if isinstance(wish, Normalization):
        if data.kind == "text" or isinstance(data.inputs, Mapping):
            raise ProbeError(f"probe {name!r}: `normalize` applies to one array of measured values, not to this.")
        return wish if wish.scale is not None else wish.model_copy(update={"scale": data.scale})
    if data.kind != "image":
        if wish == "unit":
            raise ProbeError(
                f"probe {name!r}: it is not known what is white in it; give `normalize: {{scale: …}}`."
            )
        return None
    if wish == "standard":
        return Normalization(mean=data.mean, std=data.std, scale=data.scale)
    if wish == "unit":
        return Normalization(scale=data.scale)
    return Normalization(std=(1 / data.scale,), scale=data.scale)


# -- the archive ---------------------------------------------------------------------------------------------


class _NamedArray(NamedTuple):
    dims: tuple[str, ...]
    values: Any
    attributes: dict[str, Any]


def store_probe(staged: StagedUnit, probe: Probe) -> None:
    """Write the arrays of `probe` into its unit.

    `input` (or `input/<name>`, where inputs are nested), `target`, `mask` and `names` stand below the probe;
    `sample_id` carries what holds for the whole probe as attributes. Dimensions of a nested input begin with its
    name, since arrays of one group share their dimensions.
    """
    sizes: dict[str, int] = {}
    normalization = None if probe.normalization is None else probe.normalization.model_dump(mode="json")
    whole = {
        "role": probe.role, "digest": probe.digest, "kind": probe.kind, "class_names": list(probe.class_names),
        "normalization": normalization,
    }  # fmt: skip
    staged.write_array("sample_id", _NamedArray(("sample",), probe.sample_id, whole))
    dims_of: dict[str, tuple[str, ...]] = {}
    for position, (name, values) in enumerate(leaves_of(probe.inputs).items()):
        prefix = f"{name.replace('/', '_')}_" if name else ""
        dims_of[name] = _dimensions(
            values, probe.kind if not name else "array", prefix, sizes, name in probe.masks
        )
        facts = {"name": name, "position": position, "normalization": normalization}
        _write_input(staged, _path("input", name), _NamedArray(dims_of[name], values, facts))
    for position, (name, mask) in enumerate(probe.masks.items()):
        dims = dims_of[name][:2]
        staged.write_array(_path("mask", name), _NamedArray(dims, mask, {"name": name, "position": position}))
    if probe.targets is not None:
        dims = _target_dimensions(probe, dims_of, sizes)
        staged.write_array("target", _NamedArray(dims, probe.targets, {"class_names": list(probe.class_names)}))
    for name, words in probe.names.items():
        values = np.array(words)
        staged.write_array(_path("names", name), _NamedArray((f"{name}_name",), values, {"name": name}))


def _write_input(staged: StagedUnit, path: str, array: _NamedArray) -> None:
    """Write `array` slice by slice. Raises ProbeError where its source no longer gives what it gave before."""
    if not isinstance(array.values, PreparedRows):
        staged.write_array(path, array)
        return
    writer = staged.create_array(
        path, dims=array.dims, shape=array.values.shape, dtype=array.values.dtype, attributes=array.attributes
    )
    if rows_digest(array.values, writer.append) != array.values.digest:
        raise ProbeError(
            f"probe {staged.unit.analysis!r} gives other samples each time it is read: a probe must stay the same, so "
            "seed its source and leave out random augmentation."
        )


def _path(group: str, name: str) -> str:
    return join_path(group, *name.split("/")) if name else group


def _dimensions(
    values: np.ndarray, kind: Kind, prefix: str, sizes: dict[str, int], is_masked: bool = False
) -> tuple[str, ...]:
    """`sample`, then a name for each further axis that no axis of another length has."""
    if values.ndim == 4 and not is_masked:
        axes: tuple[str, ...] = ("channel", "y", "x")
    elif kind == "text" or is_masked or (values.ndim == 2 and values.dtype.kind in "iu"):
        axes = ("token", "feature") if values.ndim <= 3 else ("token",)
    elif kind == "series":
        axes = ("time", "series")
    else:
        axes = ()
    names = ["sample"]
    for number, length in enumerate(values.shape[1:]):
        wanted = prefix + (axes[number] if number < len(axes) else f"axis_{number + 1}")
        while sizes.setdefault(wanted, length) != length or wanted in names:
            wanted += "_"
        names.append(wanted)
    return tuple(names)


def _target_dimensions(
    probe: Probe, dims_of: dict[str, tuple[str, ...]], sizes: dict[str, int]
) -> tuple[str, ...]:
    """Of a sequence of the same length as an input: that input's; the last input is what a decoder is shown."""
    assert probe.targets is not None
    shape = probe.targets.shape
    if len(shape) < 2:
        return ("sample",)
    if probe.kind == "series" and len(shape) == 3:
        sizes.setdefault("horizon", shape[1])
        return ("sample", "horizon", dims_of[""][2])
    for name, values in reversed(leaves_of(probe.inputs).items()):
        if probe.kind == "text" and values.shape == shape:
            return dims_of[name]
    return _dimensions(probe.targets, "array", "target_", sizes)


class _StoredRows:
    """An array in the archive that is read slice by slice."""

    def __init__(self, store: Store, path: str, shape: tuple[int, ...], dtype: str) -> None:
        self._store, self._path = store, path
        self.shape, self.dtype, self.ndim = shape, np.dtype(dtype), len(shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, step = rows.indices(self.shape[0])
        if step < 1:
            raise IndexError(f"rows of a stored probe are read forwards, not {rows}")
        return self._store.read_slice(self._path, start, max(start, stop))[::step]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


def read_probe(store: Store, name: str) -> Probe:
    """The stored probe `name`; its inputs and masks are read when they are asked for."""
    place = f"probes/{name}"
    *_, whole = store.array_info(f"{place}/sample_id")
    identities = store.array(f"{place}/sample_id")
    normalization = whole["normalization"]

    def rows(path: str) -> _StoredRows:
        _, shape, dtype, _ = store.array_info(path)
        return _StoredRows(store, path, shape, dtype)

    def words(path: str) -> tuple[str, ...]:
        return tuple(str(word) for word in store.array(path))

    return Probe(
        name,
        whole["role"],
        nested(_stored(store, f"{place}/input", rows)),
        store.array(f"{place}/target") if store.has_array(f"{place}/target") else None,
        identities if identities.dtype.kind in "iu" else np.array([str(item) for item in identities]),
        tuple(whole["class_names"]),
        whole["digest"],
        whole["kind"],
        None if normalization is None else Normalization.model_validate(normalization),
        _stored(store, f"{place}/mask", rows),
        _stored(store, f"{place}/names", words),
    )


def _stored(store: Store, place: str, read: Callable[[str], Any]) -> dict[str, Any]:
    """What `read` makes of each array at or below `place`, by the array's own name, in the stored order."""
    facts = {path: store.array_info(path)[3] for path in store.list_arrays(place)}
    ordered = sorted(facts, key=lambda path: facts[path].get("position", 0))
    return {facts[path]["name"]: read(path) for path in ordered}
