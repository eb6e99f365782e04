"""Data in files of the user's own: folders of images by class, `.npz`, Zarr."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from stratascope.errors import ProbeError, did_you_mean
from stratascope.storage.datasets.dataset import Dataset
from stratascope.storage.zarr_stores import zarr_store

_IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_BESIDE = ("sample_id", "class_names", "mask", "lengths")
"""Arrays that are read too, under these names, where they are there."""


class PictureRows:
    """Image files that are decoded when they are asked for: uint8 (sample, channel, y, x)."""

    def __init__(self, paths: list[Path], size: tuple[int, int] | None, grey: bool) -> None:
        self._paths, self._size, self._grey = paths, size, grey

    def __len__(self) -> int:
        return len(self._paths)

    def take_rows(self, rows: np.ndarray) -> np.ndarray:
        """Decode the pictures `rows`. Raises ProbeError for one that cannot be read or has another size."""
        chosen = [self._paths[int(row)] for row in rows]
        first = self._decode(chosen[0])
        pictures = np.empty((len(chosen), *first.shape), np.uint8)
        for place, path in enumerate(chosen):
            picture = self._decode(path)
            if picture.shape != first.shape:
                raise ProbeError(
                    f"image {path} is {picture.shape[1:]}, {chosen[0].name} is {first.shape[1:]}: give `size`."
                )
            pictures[place] = picture
        return pictures

    def _decode(self, path: Path) -> np.ndarray:
        from PIL import Image

        try:
            with Image.open(path, formats=_FORMATS) as picture:
                converted: Image.Image = picture.convert("L" if self._grey else "RGB")
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise ProbeError(f"image {path} cannot be read: {error}.") from None
        if self._size is not None:
            converted = converted.resize((self._size[1], self._size[0]))
        pixels = np.asarray(converted)
        return pixels[None] if self._grey else pixels.transpose(2, 0, 1)


def load_image_folder(path: Path, size: tuple[int, int] | None = None, grey: bool = False) -> Dataset:
    """One sub-folder for each class, in the order of their names; an image's id is `class/file`.

    `size` (y, x) resizes; without it all images must have one size. Raises ProbeError.
    """
    if not path.is_dir():
        raise ProbeError(f"there is no folder of images {path}.")
    folders = sorted(item for item in path.iterdir() if item.is_dir() and not item.name.startswith("."))
    paths: list[Path] = []
    targets: list[int] = []
    for number, folder in enumerate(folders):
        inside = sorted(item for item in folder.iterdir() if item.suffix.lower() in _IMAGES)
        paths += inside
        targets += [number] * len(inside)
    if not paths:
        raise ProbeError(f"no images below {path}: expected one sub-folder for each class.")
    return Dataset(
        PictureRows(paths, size, grey),
        np.array(targets, np.int64),
        tuple(folder.name for folder in folders),
        "image",
        255.0,
        sample_id=np.array([f"{item.parent.name}/{item.name}" for item in paths]),
    )


def load_npz(path: Path, inputs: str = "inputs", targets: str = "targets") -> Dataset:
    """The arrays `inputs` and (if it is there) `targets` of an `.npz`. Pickled content is refused."""
    try:
        with np.load(path, allow_pickle=False) as content:
            if not isinstance(content, np.lib.npyio.NpzFile):
                raise ProbeError(f"{path} is a single array, no `.npz` with named ones.")

            def read(name: str) -> np.ndarray:
                values: Any = content[name]
                if not isinstance(values, np.ndarray):
                    raise ProbeError(f"{path}: {name!r} is no array of NumPy's.")
                return values

            return _of_arrays(path, inputs, targets, content.files, read)
    except ProbeError:
        raise
    except Exception as error:  # whatever zip, zlib and NumPy make of bytes that are none of theirs
        raise ProbeError(f"{path} cannot be read: {type(error).__name__}: {error}.") from None


class ZarrRows:
    """A Zarr array of which only the blocks that hold wanted rows are read."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def __len__(self) -> int:
        return int(self._array.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._array.dtype

    def take_rows(self, rows: np.ndarray) -> np.ndarray:
        """Neighbours at once, others block by block: lists of integers are slow in sharded arrays."""
        if len(rows) and rows[-1] - rows[0] == len(rows) - 1:
            return np.asarray(self._array[int(rows[0]) : int(rows[-1]) + 1])
        found = np.empty((len(rows), *self.shape[1:]), self.dtype)
        block = int((self._array.shards or self._array.chunks)[0])
        for number in np.unique(rows // block):
            first, last = np.searchsorted(rows, (number * block, (number + 1) * block))
            values = self._array[int(number * block) : int(min((number + 1) * block, len(self)))]
            found[first:last] = values[rows[first:last] - number * block]
        return found


def load_zarr(path: Path, inputs: str = "inputs", targets: str = "targets") -> Dataset:
    """The arrays `inputs` and (if it is there) `targets` of a Zarr group; inputs are read as they are needed."""
    import zarr

    try:
        place: Any = str(path) if isinstance(path, Path) else zarr_store(str(path))
        group = zarr.open_group(place, mode="r")
        names = [name for name, _ in group.arrays()]

        def read(name: str) -> Any:
            array: Any = group[name]
            return ZarrRows(array) if name == inputs and array.ndim else np.asarray(array[...])

        return _of_arrays(path, inputs, targets, names, read)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ProbeError(f"{path} cannot be read as a Zarr group: {error}.") from None


def _of_arrays(
    path: Path, inputs: str, targets: str, names: Collection[str], read: Callable[[str], Any]
) -> Dataset:
    from stratascope.storage.datasets.factory import dataset_of

    if inputs not in names:
        raise ProbeError(f"{path} has no array {inputs!r}; it has {_listed(names)}." + did_you_mean(inputs, names))
    content = {name: read(name) for name in _BESIDE if name in names}
    content |= {"inputs": read(inputs), "targets": read(targets) if targets in names else None}
    values = content["inputs"]
    if values.dtype == np.uint8 and len(values.shape) == 4 and values.shape[1] in (1, 3):
        return dataset_of(content, kind="image", scale=255.0)
    return dataset_of(content)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names)) or "none"
