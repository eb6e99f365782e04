"""The part of the Zarr v3 format that the archive uses, written and read without a detour.

zarr-python takes ten times as long for a small array (`benchmarks/archive.py`), of which a capture writes hundreds,
and rewrites a whole shard for each partial write. An array of ours is chunked along its first axis only, so a chunk is
a block of rows and a shard is a run of such blocks with an index at its end; both can be written as the rows come.
Anything else, and any array of another program, is left to zarr-python; tests read everything back through it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CHUNK_BYTES = 2 << 20
"""Size that a chunk aims at, uncompressed; chunks span everything but the first axis."""
CHUNKS_WITHOUT_SHARDS = 64
CHUNKS_PER_SHARD = 16
CODECS = ("zstd", "none")
ABSENT = np.uint64(2**64 - 1)
"""Marks a chunk that a shard does not hold (Zarr v3, sharding codec)."""
_NAMES = {"b": "bool", "i": "int", "u": "uint", "f": "float"}
_INDEX_CODECS = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
_ZSTD = {"name": "zstd", "configuration": {"level": 1, "checksum": True}}


@dataclass(frozen=True)
class Layout:
    """How an array lies in its files: `rows` to a chunk, `chunks` to a file (1 where there are no shards)."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    rows: int
    chunks: int
    codec: str

    @property
    def chunk_shape(self) -> tuple[int, ...]:
        return (self.rows, *(max(1, length) for length in self.shape[1:])) if self.shape else ()

    @property
    def chunk_count(self) -> int:
        return math.ceil(self.shape[0] / self.rows) if self.shape else 1

    @property
    def fill(self) -> Any:
        """What stands for rows that are not there."""
        return np.array(math.nan if self.dtype.kind == "f" else 0).astype(self.dtype)

    def file_name(self, number: int) -> str:
        """The file of shard (or unsharded chunk) `number`, below the array's folder."""
        return ".".join(["c", str(number), *("0" for _ in self.shape[1:])]) if self.shape else "c"


def choose_layout(shape: Sequence[int], dtype: Any, codec: str) -> Layout:
    """Chunks of about `CHUNK_BYTES`, and shards only where there would be many files."""
    dtype = np.dtype(dtype)
    shape = tuple(int(length) for length in shape)
    row_bytes = max(1, dtype.itemsize * math.prod(shape[1:]))
    rows = max(1, min(shape[0], CHUNK_BYTES // row_bytes)) if shape else 1
    many = bool(shape) and math.ceil(shape[0] / rows) > CHUNKS_WITHOUT_SHARDS
    return Layout(shape, dtype, rows, CHUNKS_PER_SHARD if many else 1, codec)


def metadata(layout: Layout, dims: Sequence[str], attributes: Mapping[str, Any]) -> bytes:
    """The content of the array's `zarr.json`."""
    width = layout.dtype.itemsize * 8
    name = "bool" if layout.dtype.kind == "b" else f"{_NAMES[layout.dtype.kind]}{width}"
    plain: dict[str, Any] = {"name": "bytes"}
    if layout.dtype.itemsize > 1:
        plain["configuration"] = {"endian": "little"}
    codecs = [plain, _ZSTD if layout.codec == "zstd" else {"name": "crc32c"}]
    chunk_shape = list(layout.chunk_shape)
    grid = chunk_shape
    if layout.chunks > 1:
        grid = [layout.rows * layout.chunks, *chunk_shape[1:]]
        inner = {
            "chunk_shape": chunk_shape,
            "codecs": codecs,
            "index_codecs": _INDEX_CODECS,
            "index_location": "end",
        }
        codecs = [{"name": "sharding_indexed", "configuration": inner}]
    content: dict[str, Any] = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(layout.shape),
        "data_type": name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": grid}},
        # Keys with dots: a folder for each axis would double the number of entries on the disk.
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
        "fill_value": {"b": False, "f": "NaN"}.get(layout.dtype.kind, 0),
        "codecs": codecs,
        "attributes": dict(attributes),
        "storage_transformers": [],
    }
    if layout.shape:
        content["dimension_names"] = list(dims)
    return json.dumps(content, sort_keys=True, indent=1, allow_nan=False).encode()


def parse(folder: Path) -> tuple[Layout, tuple[str, ...], dict[str, Any]] | None:
    """Layout, dimension names and attributes of the array in `folder`; None where it is none that we wrote.

    Raises OSError where there is no metadata, ValueError where it is no JSON.
    """
    content = json.loads((folder / "zarr.json").read_bytes())
    try:
        shape = tuple(content["shape"])
        dtype = np.dtype(content["data_type"])
        grid = content["chunk_grid"]["configuration"]["chunk_shape"]
        inner = content["codecs"][0].get("configuration", {}).get("chunk_shape", grid)
        rows, chunks = (inner[0], grid[0] // inner[0]) if shape else (1, 1)
        dims = tuple(content.get("dimension_names") or ())
        for codec in CODECS:
            layout = Layout(shape, dtype, rows, chunks, codec)
            if json.loads(metadata(layout, dims, content["attributes"])) == content:
                return layout, dims, content["attributes"]
    except (KeyError, IndexError, TypeError, AttributeError):
        pass
    return None


def encode(block: np.ndarray, codec: str) -> tuple[bytes | memoryview, ...]:
    """One chunk, C-order and little-endian, compressed or not, always with a checksum: the parts to write in a row.

    Without compression the first part is the memory of `block` itself: a layer's numbers are not copied once more.
    """
    if block.dtype.byteorder == ">":
        block = block.astype(block.dtype.newbyteorder("<"))
    block = np.ascontiguousarray(block)
    if codec == "zstd":
        from numcodecs.zstd import Zstd

        return (Zstd(level=1, checksum=True).encode(block),)
    import google_crc32c

    plain: Any = block.reshape(-1).view(np.uint8)
    return plain.data, google_crc32c.value(plain).to_bytes(4, "little")


def decode(data: bytes, layout: Layout) -> np.ndarray:
    """The inverse of `encode`. Raises ValueError or RuntimeError where the checksum or the length is wrong."""
    if layout.codec == "zstd":
        from numcodecs.zstd import Zstd

        plain = Zstd().decode(data)
    else:
        import google_crc32c

        plain = data[:-4]
        if google_crc32c.value(plain) != int.from_bytes(data[-4:], "little"):
            raise ValueError("the checksum of a chunk is wrong")
    return np.frombuffer(plain, layout.dtype).reshape(layout.chunk_shape)


def encode_index(places: Sequence[tuple[int, int]]) -> bytes:
    """The index of a shard: (offset, length) of each of its `CHUNKS_PER_SHARD` chunks, absent ones marked."""
    import google_crc32c

    index = np.full((CHUNKS_PER_SHARD, 2), ABSENT, np.dtype("<u8"))
    if places:
        index[: len(places)] = places
    data = index.tobytes()
    return data + google_crc32c.value(data).to_bytes(4, "little")


def decode_index(data: bytes) -> np.ndarray:
    """The inverse of `encode_index`: uint64 (chunk, 2). Raises ValueError where the checksum is wrong."""
    import google_crc32c

    if len(data) != CHUNKS_PER_SHARD * 16 + 4 or google_crc32c.value(data[:-4]) != int.from_bytes(
        data[-4:], "little"
    ):
        raise ValueError("the index of a shard is damaged")
    return np.frombuffer(data[:-4], "<u8").reshape(-1, 2)
