"""Data from the user's own code: arrays, a mapping, or a map-style data set of pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from stratascope.errors import ProbeError, did_you_mean
from stratascope.storage.datasets.dataset import (
    Dataset,
    Kind,
    LazyRows,
    Normalization,
    leaves_of,
    mask_of_lengths,
    nested,
)
from stratascope.storage.factories import load_object

_KEYS = ("inputs", "targets", "sample_id", "class_names", "denormalize", "mask", "lengths")


class MapStyleRows:
    """The inputs of a map-style data set, indexed when they are asked for."""

    def __init__(self, items: Any) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def take_rows(self, rows: np.ndarray) -> Any:
        """The inputs of the items `rows`, stacked."""
        leaves = [leaves_of(_pair(self._items[int(row)])[0]) for row in rows]
        return nested({name: np.stack([np.asarray(leaf[name]) for leaf in leaves]) for name in leaves[0]})

    def targets(self) -> np.ndarray | None:
        """All targets; from an attribute `targets` where there is one, else every item is asked once."""
        known = getattr(self._items, "targets", None)
        if known is not None and len(known) == len(self):
            return np.asarray(known)
        found = [_pair(self._items[row])[1] for row in range(len(self))]
        return None if not found or found[0] is None else np.asarray(found)


def load_factory(factory: str, args: Mapping[str, Any], folder: Path) -> Dataset:
    """What the callable `factory` (`module:name`) returns for `args`. Its own errors pass through.

    Raises ProbeError where it returns something else than arrays, a mapping or a map-style data set.
    """
    build: Callable[..., Any] = load_object(factory, folder)
    if not callable(build):
        raise ProbeError(f"{factory} is {type(build).__name__}, not a callable that returns data.")
    built = build(**args)
    if isinstance(built, Mapping):
        return dataset_of(built)
    if hasattr(built, "shape"):
        return dataset_of({"inputs": built})
    if isinstance(built, tuple) and len(built) == 2:
        return dataset_of({"inputs": built[0], "targets": built[1]})
    if hasattr(built, "__getitem__") and hasattr(built, "__len__") and not isinstance(built, str | bytes | tuple):
        rows = MapStyleRows(built)
        names = getattr(built, "classes", None)
        content = {"inputs": rows, "targets": rows.targets()}
        return dataset_of(content if names is None else {**content, "class_names": names})
    raise ProbeError(
        f"{factory} returned {type(built).__name__}; expected (inputs, targets), a mapping with `inputs`, or a "
        "map-style data set of pairs."
    )


def dataset_of(content: Mapping[str, Any], kind: Kind = "array", scale: float = 1.0) -> Dataset:
    """The data set that a mapping with `inputs` describes. Raises ProbeError where its parts do not fit together."""
    for key in content:
        if key not in _KEYS:
            raise ProbeError(f"{key!r} is none of {', '.join(_KEYS)}." + did_you_mean(str(key), _KEYS))
    if "inputs" not in content:
        raise ProbeError("`inputs` are missing.")
    inputs = content["inputs"]
    if not isinstance(inputs, LazyRows):
        inputs = nested({name: np.asarray(values) for name, values in leaves_of(inputs).items()})
    targets, names = _targets(content.get("targets"), content.get("class_names"))
    data = Dataset(
        inputs, targets, names, kind, scale, sample_id=_identities(content.get("sample_id")), masks=_masks(inputs, content),
        denormalize=_denormalization(content.get("denormalize")),
    )  # fmt: skip
    _check_lengths(data)
    return data


def _pair(item: Any) -> tuple[Any, Any]:
    return (item[0], item[1]) if isinstance(item, tuple | list) and len(item) == 2 else (item, None)


def _identities(given: Any) -> np.ndarray | None:
    if given is None:
        return None
    values = np.asarray(given)
    if values.dtype.kind in "iu" and values.ndim == 1:
        return values.astype(np.int64)
    if values.dtype.kind in "UTO" and values.ndim == 1:
        return np.array([str(value) for value in values.tolist()])
    raise ProbeError(f"`sample_id` are {values.dtype} of shape {values.shape}; expected whole numbers or texts.")


def _targets(targets: Any, names: Any) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Targets as numbers; texts become classes, in the order of `names` or of the alphabet."""
    known = () if names is None else tuple(str(name) for name in np.asarray(names).tolist())
    if targets is None:
        return None, known
    values = np.asarray(targets)
    if values.dtype.kind not in "UTO":
        return values, known
    texts = values.astype(str)
    known = known or tuple(np.unique(texts).tolist())
    codes = {name: code for code, name in enumerate(known)}
    unknown = sorted(set(texts.ravel().tolist()) - codes.keys())
    if unknown:
        raise ProbeError(f"target {unknown[0]!r} is none of the `class_names`." + did_you_mean(unknown[0], known))
    return np.array([codes[text] for text in texts.ravel().tolist()], np.int64).reshape(texts.shape), known


def _masks(inputs: Any, content: Mapping[str, Any]) -> dict[str, np.ndarray]:
    mask, lengths = content.get("mask"), content.get("lengths")
    if mask is None and lengths is None:
        return {}
    if mask is not None and lengths is not None:
        raise ProbeError("give `mask` or `lengths`, not both.")
    what, given = ("mask", mask) if mask is not None else ("lengths", lengths)
    shapes = {name: tuple(values.shape) for name, values in leaves_of(inputs).items()}
    sequences = [name for name, shape in shapes.items() if len(shape) >= 2]
    if not isinstance(given, Mapping) and not sequences:
        raise ProbeError(f"`{what}` needs inputs of shape (sample, token, …).")
    by_name = leaves_of(given) if isinstance(given, Mapping) else {sequences[0]: given}
    found = {}
    for name, values in by_name.items():
        if name not in sequences:
            raise ProbeError(f"`{what}` is given for {name!r}, which is no input of shape (sample, token, …).")
        count, tokens = shapes[name][:2]
        found[name] = _mask(what, np.asarray(values), count, tokens)
    return found


def _mask(what: str, values: np.ndarray, count: int, tokens: int) -> np.ndarray:
    if what == "lengths":
        if values.shape != (count,) or values.dtype.kind not in "iu":
            raise ProbeError(
                f"`lengths` are {values.dtype} of shape {values.shape}; expected ({count},) integers."
            )
        if len(values) and (values.min() < 0 or values.max() > tokens):
            raise ProbeError(
                f"`lengths` reach from {values.min()} to {values.max()}, inputs have {tokens} tokens."
            )
        return mask_of_lengths(values, tokens)
    if values.shape != (count, tokens):
        raise ProbeError(f"`mask` has shape {values.shape}; expected {(count, tokens)}, as the inputs.")
    return values.astype(bool)


def _denormalization(given: Any) -> Normalization | None:
    if given is None or isinstance(given, Normalization):
        return given
    try:
        return Normalization.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ProbeError(f"`denormalize` is not {{mean, std, scale}}: {place}: {first['msg']}.") from None


def _check_lengths(data: Dataset) -> None:
    lengths = {} if isinstance(data.inputs, LazyRows) else leaves_of(data.inputs)
    parts: dict[str, Any] = {f"input {name!r}" if name else "inputs": part for name, part in lengths.items()}
    parts |= {"targets": data.targets, "sample_id": data.sample_id}
    for name, part in parts.items():
        if part is not None and (np.ndim(part) == 0 or len(part) != len(data)):
            raise ProbeError(f"{len(data)} samples, but {name} have shape {np.shape(part)}.")
