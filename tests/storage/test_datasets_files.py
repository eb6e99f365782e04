"""Loaders for the user's own files: folders of images, `.npz`, Zarr, text, CSV."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image

from stratascope.errors import ProbeError
from stratascope.storage.datasets import load_dataset, source_files
from stratascope.storage.datasets.dataset import take_rows

ROWS = np.array([0, 2, 3])


def picture(path: Path, value: int, size: tuple[int, int] = (6, 4)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 0, 255)).save(path)


def test_a_folder_of_images_has_a_class_for_each_sub_folder(tmp_path: Path):
    for number, name in enumerate(["cat/b.png", "cat/a.png", "dog/x.bmp", "ant/1.PNG"]):
        picture(tmp_path / "images" / name, 40 * number)
    (tmp_path / "images" / ".cache").mkdir()
    (tmp_path / "images" / "cat" / "notes.txt").write_text("no picture")
    found = load_dataset("image_folder", folder=tmp_path, path="images")
    assert found.class_names == ("ant", "cat", "dog")
    assert list(found.sample_id) == ["ant/1.PNG", "cat/a.png", "cat/b.png", "dog/x.bmp"]
    np.testing.assert_array_equal(found.targets, [0, 1, 1, 2])
    images = take_rows(found.inputs, ROWS)[""]
    assert images.shape == (3, 3, 4, 6)
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images[:, 0, 0, 0], [120, 0, 80])
    grey = load_dataset("image_folder", folder=tmp_path, path="images", grey=True, size=[2, 5])
    assert take_rows(grey.inputs, ROWS)[""].shape == (3, 1, 2, 5)


def test_only_wanted_pictures_are_decoded(tmp_path: Path):
    picture(tmp_path / "a" / "0.png", 1)
    (tmp_path / "a" / "1.png").write_bytes(b"damaged")
    found = load_dataset("image_folder", folder=tmp_path, path=".")
    assert take_rows(found.inputs, np.array([0]))[""].shape == (1, 3, 4, 6)
    with pytest.raises(ProbeError, match=r"1\.png cannot be read"):
        take_rows(found.inputs, np.array([0, 1]))


def test_pictures_of_two_sizes_need_a_size(tmp_path: Path):
    picture(tmp_path / "a" / "0.png", 1)
    picture(tmp_path / "a" / "1.png", 1, (7, 7))
    with pytest.raises(ProbeError, match=r"1\.png is \(7, 7\).*give `size`"):
        take_rows(load_dataset("image_folder", folder=tmp_path, path=".").inputs, np.arange(2))


def test_a_folder_without_images_is_said_to_be_one(tmp_path: Path):
    with pytest.raises(ProbeError, match="no images below"):
        load_dataset("image_folder", folder=tmp_path, path=".")
    with pytest.raises(ProbeError, match="there is no folder of images"):
        load_dataset("image_folder", folder=tmp_path, path="absent")


def test_npz_arrays_come_with_what_stands_beside_them(tmp_path: Path):
    inputs = np.random.default_rng(0).normal(size=(4, 5, 2))
    np.savez(
        tmp_path / "data.npz", x_test=inputs, y=["b", "a", "b", "b"], sample_id=["k", "l", "m", "n"], lengths=[5, 1, 0, 2]
    )  # fmt: skip
    found = load_dataset("npz", folder=tmp_path, path="data.npz", inputs="x_{split}", targets="y")
    np.testing.assert_array_equal(found.inputs, inputs)
    assert found.class_names == ("a", "b")
    np.testing.assert_array_equal(found.targets, [1, 0, 1, 1])
    np.testing.assert_array_equal(found.masks[""].sum(1), [5, 1, 0, 2])
    assert list(found.sample_id) == list("klmn")
    assert found.kind == "array"


def test_bytes_in_the_shape_of_pictures_are_images(tmp_path: Path):
    np.savez_compressed(tmp_path / "data.npz", inputs=np.zeros((2, 3, 4, 4), np.uint8))
    found = load_dataset("npz", folder=tmp_path, path="data.npz")
    assert (found.kind, found.scale, found.targets) == ("image", 255.0, None)


def test_an_npz_that_is_damaged_or_pickled_is_refused(tmp_path: Path):
    path = tmp_path / "data.npz"
    np.savez_compressed(path, inputs=np.random.default_rng(0).normal(size=5000))
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 255
    path.write_bytes(bytes(whole))
    cases = [(bytes(whole), "cannot be read"), (bytes(whole[:4000]), "cannot be read"), (b"", "cannot be read")]
    for data, reason in cases:
        path.write_bytes(data)
        with pytest.raises(ProbeError, match=reason):
            load_dataset("npz", folder=tmp_path, path="data.npz")
    np.savez(path, inputs=np.array([{}], dtype=object))
    with pytest.raises(ProbeError, match="allow_pickle=False"):
        load_dataset("npz", folder=tmp_path, path="data.npz")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inputs.npy", b"no array")
    with pytest.raises(ProbeError, match="'inputs' is no array"):
        load_dataset("npz", folder=tmp_path, path="data.npz")
    with pytest.raises(ProbeError, match="No such file"):
        load_dataset("npz", folder=tmp_path, path="absent.npz")


def test_an_array_that_is_not_there_is_offered_its_nearest_name(tmp_path: Path):
    np.savez(tmp_path / "data.npz", input=np.zeros(3))
    with pytest.raises(ProbeError, match="Did you mean 'input'"):
        load_dataset("npz", folder=tmp_path, path="data.npz")


def test_an_npz_has_no_splits_unless_its_names_say_so(tmp_path: Path):
    np.savez(tmp_path / "data.npz", inputs=np.zeros((3, 2)))
    with pytest.raises(ProbeError, match=r"no splits of its own.*\{split\}"):
        load_dataset("npz", folder=tmp_path, path="data.npz", split="train")
    np.savez(tmp_path / "train.npz", inputs=np.ones((5, 2)))
    assert len(load_dataset("npz", folder=tmp_path, path="{split}.npz", split="train")) == 5
    assert source_files("npz", folder=tmp_path, path="{split}.npz", split="train") == [tmp_path / "train.npz"]


@pytest.mark.parametrize(("version", "shards"), [(2, None), (3, None), (3, (4, 3))])
def test_a_zarr_array_is_read_block_by_block_as_rows_are_wanted(tmp_path: Path, version: int, shards):
    values = np.arange(33.0).reshape(11, 3)
    group = zarr.open_group(str(tmp_path / "data"), mode="w", zarr_format=version)
    array = group.create_array("inputs", shape=(11, 3), chunks=(2, 3), shards=shards, dtype="float64")
    array[:] = values
    group.create_array("targets", data=np.arange(11))
    found = load_dataset("zarr", folder=tmp_path, path="data")
    assert len(found) == 11
    for rows in ([0, 2, 3, 9, 10], list(range(11)), [7]):
        np.testing.assert_array_equal(take_rows(found.inputs, np.array(rows))[""], values[rows])
    np.testing.assert_array_equal(found.targets, np.arange(11))


def test_a_zarr_chunk_that_holds_no_wanted_row_is_not_read(tmp_path: Path):
    group = zarr.open_group(str(tmp_path / "data"), mode="w", zarr_format=3)
    array = group.create_array("inputs", shape=(6, 2), chunks=(2, 2), dtype="float32")
    array[:] = 1
    (tmp_path / "data" / "inputs" / "c" / "1" / "0").write_bytes(b"damaged")
    found = load_dataset("zarr", folder=tmp_path, path="data")
    np.testing.assert_array_equal(take_rows(found.inputs, np.array([1, 4]))[""], np.ones((2, 2)))


def test_what_is_no_zarr_group_is_refused(tmp_path: Path):
    (tmp_path / "data").mkdir()
    for name in ("data", "absent"):
        with pytest.raises(ProbeError, match=f"{name} cannot be read as a Zarr group"):
            load_dataset("zarr", folder=tmp_path, path=name)


def test_text_is_windows_of_characters_and_what_follows_each(tmp_path: Path):
    text = "abca\r\nß€" * 10
    (tmp_path / "text.txt").write_bytes(text.encode())
    train = load_dataset("text", folder=tmp_path, path="text.txt", split="train", length=7)
    assert train.class_names == tuple(sorted(set(text)))
    read = "".join(train.class_names[code] for code in train.inputs.ravel())
    assert read == text[:70]
    np.testing.assert_array_equal(train.inputs.ravel()[1:], train.targets.ravel()[:-1])
    test = load_dataset("text", folder=tmp_path, path="text.txt", length=3)
    assert test.sample_id[0] == 72
    assert "".join(test.class_names[code] for code in test.targets.ravel()) == text[73:79]
    with pytest.raises(ProbeError, match="shorter than one window"):
        load_dataset("text", folder=tmp_path, path="text.txt", length=70)
    (tmp_path / "text.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ProbeError, match="cannot be read"):
        load_dataset("text", folder=tmp_path, path="text.txt")


def test_series_are_windows_of_rows_and_those_that_follow(tmp_path: Path):
    values = np.arange(100, dtype=np.float32).reshape(50, 2)
    rows = "\n".join(",".join(str(value) for value in row) for row in values)
    (tmp_path / "series.csv").write_text(f'"left", right\n{rows}\n')
    train = load_dataset("csv_series", folder=tmp_path, path="series.csv", split="train", history=3, horizon=2)
    assert train.names["series"] == ("left", "right")
    assert len(train) == 40 - 5 + 1
    np.testing.assert_array_equal(train.inputs[4], values[4:7])
    np.testing.assert_array_equal(train.targets[4], values[7:9])
    test = load_dataset("csv_series", folder=tmp_path, path="series.csv", history=3, horizon=2, stride=4)
    np.testing.assert_array_equal(test.sample_id, [40, 44])
    np.testing.assert_array_equal(test.targets[1], values[47:49])
    (tmp_path / "bare.csv").write_text(rows)
    whole = load_dataset(
        "csv_series", folder=tmp_path, path="bare.csv", split="all", history=3, horizon=2, header=False
    )
    assert len(whole) == 46
    assert not whole.names


def test_a_series_that_does_not_fit_its_header_is_refused(tmp_path: Path):
    for content, reason in (
        ("a,b\n" + "1,2,3\n" * 40, "names 2 series, rows have 3"),
        ("a,b\n1,2\n1,x\n", "cannot be read"),
        ("a,b\n1,2\n", "shorter than 24 rows"),
    ):
        (tmp_path / "series.csv").write_text(content)
        with pytest.raises(ProbeError, match=reason):
            load_dataset("csv_series", folder=tmp_path, path="series.csv", split="all")


def test_a_path_may_be_absolute(tmp_path: Path):
    (tmp_path / "text.txt").write_text("ab" * 99)
    found = load_dataset("text", folder=tmp_path / "elsewhere", path=str(tmp_path / "text.txt"), split="all")
    assert len(found) == 3


def test_compressed_data_of_another_program_is_no_text_by_accident(tmp_path: Path):
    (tmp_path / "text.gz").write_bytes(gzip.compress(b"ab" * 99))
    with pytest.raises(ProbeError, match="cannot be read"):
        load_dataset("text", folder=tmp_path, path="text.gz")
