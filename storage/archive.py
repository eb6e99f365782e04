"""Arrays of the archive: codecs, chunks, whole-shard writes, and plain reads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stratascope.errors import DamagedStoreError, StoreError
from stratascope.storage.names import encode_path_part

CHUNK_BYTES = 2 << 20
"""Size that a chunk aims at, uncompressed; chunks span everything but the sample axis."""
CHUNKS_WITHOUT_SHARDS = 64
CODECS = ("zstd", "none")


def join_path(*parts: str) -> str:
    """`parts` as one path below a group, each made safe by `encode_path_part`."""
    return "/".join(encode_path_part(part) for part in parts)


def ensure_group(path: Path, attributes: Mapping[str, Any] | None = None) -> None:
    """Make `path` a Zarr group if it is none yet; safe when several processes do it at once."""
    from stratascope.storage.manifests import write_atomically

    if not (path / "zarr.json").exists():
        import json

        content = {"attributes": dict(attributes or {}), "zarr_format": 3, "node_type": "group"}
        write_atomically(path / "zarr.json", json.dumps(content, sort_keys=True, indent=2).encode())


class ArrayWriter:
    """Writes the rows of one array in order, whole chunks (or shards) at a time.

    Zarr rewrites a whole shard for each partial write, so rows wait here until one is full.
    """

    def __init__(self, array: Any, rows_per_write: int) -> None:
        self._array = array
        self._rows_per_write = rows_per_write
        self._waiting: list[np.ndarray] = []
        self._waiting_rows = 0
        self.rows = 0

    @property
    def is_complete(self) -> bool:
        return self.rows + self._waiting_rows == self._array.shape[0]

    def append(self, block: np.ndarray) -> None:
        """Add the rows of `block` (rows, …); they must have the array's trailing shape."""
        if block.shape[1:] != self._array.shape[1:]:
            raise StoreError(f"rows of shape {block.shape[1:]} do not fit array of {self._array.shape}.")
        self._waiting.append(block.astype(self._array.dtype, copy=True))
        self._waiting_rows += len(block)
        if self._waiting_rows >= self._rows_per_write:
            self._flush(self._waiting_rows // self._rows_per_write * self._rows_per_write)

    def close(self) -> None:
        """Write what still waits."""
        self._flush(self._waiting_rows)

    def _flush(self, count: int) -> None:
        if count == 0:
            return
        rows = np.concatenate(self._waiting)
        self._array[self.rows : self.rows + count] = rows[:count]
        self.rows += count
        self._waiting_rows -= count
        self._waiting = [rows[count:]] if self._waiting_rows else []


def create_array(
    path: Path,
    *,
    dims: Sequence[str],
    shape: Sequence[int],
    dtype: Any,
    attributes: Mapping[str, Any] | None = None,
    codec: str = "zstd",
) -> ArrayWriter:
    """Create the Zarr v3 array `path` and return its writer.

    Raises StoreError for an unknown codec or where dims and shape differ in length.
    """
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec

    if codec not in CODECS:
        raise StoreError(f"codec {codec!r} is unknown; use one of {', '.join(CODECS)}.")
    if len(dims) != len(shape):
        raise StoreError(f"array {path.name!r}: dims {tuple(dims)} do not fit shape {tuple(shape)}.")
    dtype = np.dtype(dtype)
    shape = tuple(int(length) for length in shape)
    row_bytes = max(1, dtype.itemsize * math.prod(shape[1:]))
    rows = max(1, min(shape[0], CHUNK_BYTES // row_bytes)) if shape else 1
    chunks = (rows, *(max(1, length) for length in shape[1:])) if shape else ()
    shards = None
    if shape and math.ceil(shape[0] / rows) > CHUNKS_WITHOUT_SHARDS:
        shards = (rows * 16, *chunks[1:])
    compressor = ZstdCodec(level=1, checksum=True) if codec == "zstd" else Crc32cCodec()
    array = zarr.create_array(
        store=str(path),
        shape=shape,
        dtype=dtype,
        chunks=chunks,
        shards=shards,
        compressors=[compressor],
        fill_value=math.nan if dtype.kind == "f" else None,
        dimension_names=list(dims),
        attributes=dict(attributes or {}),
        config={"write_empty_chunks": True},
        zarr_format=3,
    )
    return ArrayWriter(array, (shards or chunks or (1,))[0])


def open_array(path: Path) -> Any:
    """The Zarr array at `path`. Raises StoreError where there is none."""
    import zarr

    try:
        return zarr.open_array(str(path), mode="r", zarr_format=3)
    except (FileNotFoundError, KeyError, ValueError) as error:
        raise StoreError(f"there is no array {path}: {error}") from None


def read_array(path: Path, start: int = 0, stop: int | None = None) -> np.ndarray:
    """Rows `start` to `stop` of the array at `path`. Raises DamagedStoreError where a checksum fails."""
    array = open_array(path)
    try:
        return np.asarray(array[start:stop] if array.ndim else array[()])
    except (RuntimeError, ValueError, OSError) as error:
        raise DamagedStoreError(
            f"array {path} cannot be read ({error}); run `stratascope verify`, then audit again."
        ) from None
