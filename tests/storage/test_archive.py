"""The archive's arrays: what we write, zarr-python reads; what it writes, we read; what is damaged is found."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from stratascope.errors import DamagedStoreError, StoreError
from stratascope.storage import zarr_format
from stratascope.storage.archive import create_array, describe_array, read_array, write_text_array

SHAPES = [(), (0, 3), (1,), (7, 3), (5000, 300), (700, 16, 12, 12), (14_000, 33)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks of 16 KiB, so that arrays of a few megabytes are sharded."""
    monkeypatch.setattr(zarr_format, "CHUNK_BYTES", 1 << 14)


def written(path: Path, values: np.ndarray, codec: str = "zstd", block: int = 97) -> Path:
    dims = [f"axis_{place}" for place in range(values.ndim)]
    writer = create_array(
        path, dims=dims, shape=values.shape, dtype=values.dtype, attributes={"x": 1}, codec=codec
    )
    if values.ndim:
        for start in range(0, len(values), block):
            writer.append(values[start : start + block])
    else:
        writer.write_scalar(values)
    writer.close()
    return path


@pytest.mark.parametrize("codec", zarr_format.CODECS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int64", "uint16", "uint8", "bool"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zarr_reads_exactly_what_was_written(tmp_path, shape, dtype, codec):
    values = (np.random.default_rng(0).normal(size=shape) * 50).clip(0).astype(dtype)
    path = written(tmp_path / "array", values, codec)
    array = zarr.open_array(str(path), mode="r")
    np.testing.assert_array_equal(np.asarray(array[...]), values)
    assert array.shape == shape
    assert array.dtype == dtype
    np.testing.assert_array_equal(read_array(path), values)


@pytest.mark.parametrize("codec", zarr_format.CODECS)
@pytest.mark.parametrize("shape", SHAPES[2:], ids=str)
def test_the_metadata_are_those_of_zarr_itself(tmp_path, shape, codec):
    layout = zarr_format.choose_layout(shape, "float32", codec)
    dims = [f"axis_{place}" for place in range(len(shape))]
    sharded = layout.chunks > 1
    zarr.create_array(
        store=str(tmp_path / "theirs"), shape=shape, dtype="float32", chunks=layout.chunk_shape,
        shards=(layout.rows * layout.chunks, *layout.chunk_shape[1:]) if sharded else None,
        compressors=[ZstdCodec(level=1, checksum=True) if codec == "zstd" else Crc32cCodec()], fill_value=math.nan,
        dimension_names=dims, attributes={"x": 1}, chunk_key_encoding={"name": "default", "separator": "."}, zarr_format=3,
    )  # fmt: skip
    theirs = json.loads((tmp_path / "theirs" / "zarr.json").read_text())
    assert json.loads(zarr_format.metadata(layout, dims, {"x": 1})) == theirs


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.integers(1, 400),
    width=st.integers(1, 9),
    start=st.integers(0, 420),
    stop=st.integers(0, 420),
    data=st.data(),
)
def test_a_slice_is_the_slice_of_the_whole_however_the_rows_came(tmp_path_factory, rows, width, start, stop, data):
    values = np.arange(rows * width, dtype=np.float32).reshape(rows, width)
    folder = tmp_path_factory.mktemp("array")
    path = written(
        folder / "a", values, data.draw(st.sampled_from(zarr_format.CODECS)), data.draw(st.integers(1, 130))
    )
    np.testing.assert_array_equal(read_array(path, start, stop), values[start:stop])


def test_slices_of_a_sharded_array_read_only_their_chunks(tmp_path):
    values = np.random.default_rng(0).normal(size=(14_000, 33)).astype(np.float32)
    path = written(tmp_path / "a", values)
    assert len(list(path.glob("c.*"))) == math.ceil(14_000 / (zarr_format.CHUNK_BYTES // 132) / 16)
    for start, stop in [(0, 1), (1_986, 1_990), (9_000, 13_999), (13_999, 14_000), (5, 5)]:
        np.testing.assert_array_equal(read_array(path, start, stop), values[start:stop])


def test_arrays_of_other_programs_are_read_too(tmp_path):
    values = np.random.default_rng(0).normal(size=(50, 40))
    zarr.create_array(store=str(tmp_path / "a"), data=values, chunks=(7, 9), compressors=[BloscCodec()])
    np.testing.assert_array_equal(read_array(tmp_path / "a", 3, 20), values[3:20])
    assert describe_array(tmp_path / "a")[1:3] == ((50, 40), "float64")


def test_texts_are_kept_as_texts(tmp_path):
    write_text_array(tmp_path / "a", "sample", ["a", "", "längere"], {})
    assert read_array(tmp_path / "a").tolist() == ["a", "", "längere"]


@pytest.mark.parametrize("codec", zarr_format.CODECS)
@pytest.mark.parametrize("shape", [(700, 300), (14_000, 33)], ids=str)
def test_any_flipped_byte_of_the_data_is_found_by_us_and_by_zarr(tmp_path, shape, codec):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    path = written(tmp_path / "a", values, codec)
    file = sorted(path.glob("c.*"))[0]
    good = file.read_bytes()
    for place in (len(good) // 3, len(good) - 3):
        bad = bytearray(good)
        bad[place] ^= 4
        file.write_bytes(bytes(bad))
        with pytest.raises(DamagedStoreError, match="verify"):
            read_array(path)
        with pytest.raises((RuntimeError, ValueError)):
            zarr.open_array(str(path), mode="r")[...]
    file.write_bytes(good[: len(good) // 2])
    with pytest.raises(DamagedStoreError):
        read_array(path)
    file.unlink()
    with pytest.raises(DamagedStoreError, match="lost a file"):
        read_array(path)


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(StoreError, match="codec 'lzma'"):
        create_array(tmp_path / "a", dims=["a"], shape=(1,), dtype="f4", codec="lzma")
    with pytest.raises(StoreError, match="do not fit shape"):
        create_array(tmp_path / "a", dims=["a"], shape=(1, 2), dtype="f4")
    with pytest.raises(StoreError, match="no number"):
        create_array(tmp_path / "a", dims=["a"], shape=(1,), dtype="U5")
    with pytest.raises(StoreError, match="do not fit array"):
        create_array(tmp_path / "a", dims=["a", "b"], shape=(1, 2), dtype="f4").append(np.zeros((1, 3)))
    with pytest.raises(StoreError, match="no array"):
        read_array(tmp_path / "absent")
