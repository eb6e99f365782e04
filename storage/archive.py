"""Arrays of the archive: rows in, whole chunks out, and plain reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stratascope.errors import DamagedStoreError, StoreError
from stratascope.storage import zarr_format
from stratascope.storage.names import encode_path_part
from stratascope.storage.zarr_format import CODECS, Layout, choose_layout

LOGICAL_DTYPE = "logical_dtype"
"""Attribute of an array whose numbers are the 16-bit patterns of another type."""
_GROUP = {"zarr_format": 3, "node_type": "group"}


def join_path(*parts: str) -> str:
    """`parts` as one path below a group, each made safe by `encode_path_part`."""
    return "/".join(encode_path_part(part) for part in parts)


def ensure_group(path: Path, attributes: Mapping[str, Any] | None = None, *, durably: bool = True) -> None:
    """Make `path` a Zarr group if it is none yet; safe when several processes do it at once.

    `durably` may be off where nobody else looks yet and a later sync covers it.
    """
    from stratascope.storage.manifests import write_atomically

    place = path / "zarr.json"
    if place.exists():
        return
    data = group_bytes(attributes)
    if durably:
        write_atomically(place, data)
    else:
        path.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)


def group_bytes(attributes: Mapping[str, Any] | None = None) -> bytes:
    """The content of a group's `zarr.json`."""
    return json.dumps({"attributes": dict(attributes or {}), **_GROUP}, sort_keys=True, indent=2).encode()


class ArrayWriter:
    """Writes the rows of one array in order. Whole chunks go out at once; only the rest of one waits."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self.rows = 0
        self.checksums: dict[str, tuple[int, str]] = {}
        """(bytes, xxh3-128) of each data file, by its path below the array."""
        self._waiting: list[np.ndarray] = []
        self._waiting_rows = 0
        self._chunk = 0
        self._file: _DataFile | None = None

    @property
    def is_complete(self) -> bool:
        return not self.layout.shape or self.rows == self.layout.shape[0]

    def append(self, block: np.ndarray) -> None:
        """Add the rows of `block` (rows, …); they must have the array's trailing shape."""
        if block.shape[1:] != self.layout.shape[1:]:
            raise StoreError(f"rows of shape {block.shape[1:]} do not fit array of {self.layout.shape}.")
        self.rows += len(block)
        size = self.layout.rows
        if self._waiting_rows:
            missing = size - self._waiting_rows
            self._keep(block[:missing])
            block = block[missing:]
            if self._waiting_rows < size:
                return
            self._write(np.concatenate(self._waiting))
            self._waiting, self._waiting_rows = [], 0
        whole = len(block) // size * size
        for start in range(0, whole, size):
            self._write(block[start : start + size])
        self._keep(block[whole:])

    def write_scalar(self, value: np.ndarray) -> None:
        """Write the one value of an array without dimensions."""
        self._write(value)

    def close(self) -> None:
        """Write what still waits; the last chunk is filled up, as the format wants."""
        if self._waiting_rows:
            rows = np.concatenate(self._waiting)
            padded = np.full(self.layout.chunk_shape, self.layout.fill, self.layout.dtype)
            padded[: len(rows)] = rows
            self._write(padded)
            self._waiting, self._waiting_rows = [], 0
        self._end_file()

    def _keep(self, rows: np.ndarray) -> None:
        if len(rows):
            self._waiting.append(rows.astype(self.layout.dtype, copy=True))
            self._waiting_rows += len(rows)

    def _write(self, block: np.ndarray) -> None:
        parts = zarr_format.encode(block.astype(self.layout.dtype, copy=False), self.layout.codec)
        if self._file is None:
            name = self.layout.file_name(self._chunk // self.layout.chunks)
            self._file = _DataFile(self.folder, name)
        self._file.add(parts)
        self._chunk += 1
        if self._chunk % self.layout.chunks == 0:
            self._end_file()

    def _end_file(self) -> None:
        if self._file is not None:
            sharded = self.layout.chunks > 1
            self.checksums[self._file.name] = self._file.close(with_index=sharded)
            self._file = None


class _DataFile:
    """One file of chunks in the making, with its checksum."""

    def __init__(self, folder: Path, name: str) -> None:
        import xxhash

        self.name = name
        self._stream = open(folder / name, "wb", buffering=0)  # noqa: SIM115 - closed by `close`
        self._digest = xxhash.xxh3_128()
        self._places: list[tuple[int, int]] = []
        self._size = 0

    def add(self, parts: Sequence[bytes | memoryview]) -> None:
        self._places.append((self._size, sum(len(part) for part in parts)))
        for part in parts:
            self._put(part)

    def close(self, *, with_index: bool) -> tuple[int, str]:
        if with_index:
            self._put(zarr_format.encode_index(self._places))
        self._stream.close()
        return self._size, self._digest.hexdigest()

    def _put(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[self._stream.write(view) :]
        self._digest.update(data)
        self._size += len(data)


def create_array(
    path: Path,
    *,
    dims: Sequence[str],
    shape: Sequence[int],
    dtype: Any,
    attributes: Mapping[str, Any] | None = None,
    codec: str = "zstd",
) -> ArrayWriter:
    """Create the Zarr v3 array `path` of numbers and return its writer.

    Raises StoreError for an unknown codec, a dtype that is no number, or dims and shape of different lengths.
    """
    if codec not in CODECS:
        raise StoreError(f"codec {codec!r} is unknown; use one of {', '.join(CODECS)}.")
    if len(dims) != len(shape):
        raise StoreError(f"array {path.name!r}: dims {tuple(dims)} do not fit shape {tuple(shape)}.")
    layout = choose_layout(shape, dtype, codec)
    if layout.dtype.kind not in "biuf":
        raise StoreError(f"array {path.name!r}: dtype {layout.dtype} is no number; store codes and name them.")
    path.mkdir(parents=True, exist_ok=True)
    (path / "zarr.json").write_bytes(zarr_format.metadata(layout, dims, attributes or {}))
    return ArrayWriter(path, layout)


def write_text_array(path: Path, dim: str, values: Sequence[str], attributes: Mapping[str, Any]) -> None:
    """Write texts as an array with the one dimension `dim`, through zarr-python."""
    import zarr

    array = zarr.create_array(
        store=str(path), shape=(len(values),), dtype=np.dtypes.StringDType(), chunks=(max(1, len(values)),),
        dimension_names=[dim], attributes=dict(attributes), zarr_format=3,
    )  # fmt: skip
    array[:] = np.array(values, np.dtypes.StringDType())


Fetch = Callable[[Iterable[str] | None], None]
"""Brings files of an array, by their names below its folder, to where they are read; None stands for all of them."""


def _all_there(names: Iterable[str] | None) -> None:
    """In a folder of the local disk everything is where it is read."""


def describe_array(
    path: Path, fetch: Fetch = _all_there
) -> tuple[tuple[str, ...], tuple[int, ...], str, dict[str, Any]]:
    """Dimension names, shape, dtype and attributes of the array at `path`. Raises StoreError where there is none."""
    fetch(["zarr.json"])
    try:
        known = zarr_format.parse(path)
    except (OSError, ValueError) as error:
        raise StoreError(f"there is no array {path}: {error}") from None
    if known is not None:
        layout, dims, attributes = known
        return dims, layout.shape, str(layout.dtype), attributes
    array = _foreign(path)
    return tuple(array.metadata.dimension_names or ()), array.shape, str(array.dtype), dict(array.attrs)


def read_array(path: Path, start: int = 0, stop: int | None = None, fetch: Fetch = _all_there) -> np.ndarray:
    """Rows `start` to `stop` of the array at `path`, whose files `fetch` brings there.

    Raises StoreError where there is none, DamagedStoreError where a checksum fails.
    """
    fetch(["zarr.json"])
    try:
        known = zarr_format.parse(path)
        fetch(None if known is None else _files_of(known[0], start, stop))
        if known is not None:
            return _read_rows(path, known[0], start, stop)
        return _read_foreign(path, start, stop)
    except FileNotFoundError as error:
        if error.filename and Path(error.filename).name == "zarr.json":
            raise StoreError(f"there is no array {path}.") from None
        raise DamagedStoreError(
            f"array {path} has lost a file; run `stratascope verify`, then audit again."
        ) from None
    except (RuntimeError, ValueError, OSError, ArithmeticError, LookupError, TypeError) as error:
        raise DamagedStoreError(
            f"array {path} cannot be read ({error}); run `stratascope verify`, then audit again."
        ) from None


def widened(values: Any, logical_dtype: str | None) -> Any:
    """Numbers from stored 16-bit patterns: bfloat16 as float32; anything else as it is.

    Works on NumPy arrays and, lazily, on Dask arrays of uint16.
    """
    if logical_dtype != "bfloat16":
        return values
    return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _foreign(path: Path) -> Any:
    import zarr

    try:
        return zarr.open_array(str(path), mode="r", zarr_format=3)
    except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
        raise StoreError(f"there is no array {path}: {error}") from None


def _files_of(layout: Layout, start: int, stop: int | None) -> list[str]:
    """The files that hold rows `start` to `stop`."""
    if not layout.shape:
        return [layout.file_name(0)]
    start, stop, _ = slice(start, stop).indices(layout.shape[0])
    rows = layout.rows * layout.chunks
    return [layout.file_name(number) for number in range(start // rows, -(-stop // rows) if stop > start else 0)]


def _read_foreign(path: Path, start: int, stop: int | None) -> np.ndarray:
    try:
        array = _foreign(path)
        return np.asarray(array[start:stop] if array.ndim else array[()])
    except (StoreError, OSError, RuntimeError, ValueError):
        raise
    except Exception as error:  # whatever zarr-python makes of metadata that nobody meant
        raise ValueError(f"{type(error).__name__}: {error}") from None


def _read_rows(path: Path, layout: Layout, start: int, stop: int | None) -> np.ndarray:
    if not layout.shape:
        return zarr_format.decode((path / layout.file_name(0)).read_bytes(), layout).reshape(())
    start, stop, _ = slice(start, stop).indices(layout.shape[0])
    found = np.empty((max(0, stop - start), *layout.shape[1:]), layout.dtype)
    for number in range(start // layout.rows, -(-stop // layout.rows) if stop > start else 0):
        first = number * layout.rows
        chunk = zarr_format.decode(_chunk_bytes(path, layout, number), layout)
        low, high = max(start, first), min(stop, first + layout.rows)
        found[low - start : high - start] = chunk[low - first : high - first]
    return found


def _chunk_bytes(path: Path, layout: Layout, number: int) -> bytes:
    file = path / layout.file_name(number // layout.chunks)
    if layout.chunks == 1:
        return file.read_bytes()
    with open(file, "rb") as stream:
        stream.seek(-(zarr_format.CHUNKS_PER_SHARD * 16 + 4), 2)
        index = zarr_format.decode_index(stream.read())
        offset, length = (int(value) for value in index[number % layout.chunks])
        stream.seek(offset)
        return stream.read(length)
