"""Loaders of published formats: what is in the files comes back, and what is damaged or hostile is refused."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stratascope.errors import ConfigurationError, ProbeError
from stratascope.storage.datasets import load_dataset, source_files
from stratascope.storage.datasets.cifar import CLASS_NAMES, read_batch
from stratascope.storage.datasets.idx import read_idx


def idx_bytes(array: np.ndarray) -> bytes:
    return b"\x00\x00\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def binary_batch(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, bytes]:
    generator = np.random.default_rng(seed)
    images = generator.integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    labels = generator.integers(0, 10, count, dtype=np.uint8)
    return images, labels, np.concatenate([labels[:, None], images.reshape(count, -1)], axis=1).tobytes()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STRATASCOPE_DATA", str(tmp_path))
    for name in ("mnist", "fashion-mnist", "cifar10", "text/multi30k", "traffic-los"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


# -- IDX -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compressed", [True, False])
def test_idx_files_are_read_compressed_or_not(folder: Path, compressed: bool):
    images = np.random.default_rng(0).integers(0, 256, (7, 28, 28), dtype=np.uint8)
    labels = np.arange(7, dtype=np.uint8)
    for stem, array in (("t10k-images-idx3-ubyte", images), ("t10k-labels-idx1-ubyte", labels)):
        data = idx_bytes(array)
        name, data = (f"{stem}.gz", gzip.compress(data)) if compressed else (stem, data)
        (folder / "mnist" / name).write_bytes(data)
    found = load_dataset("mnist")
    np.testing.assert_array_equal(found.inputs[:, 0], images)
    np.testing.assert_array_equal(found.targets, labels)
    assert [path.name for path in source_files("mnist")] == [
        f"t10k-{part}-ubyte{'.gz' if compressed else ''}" for part in ("images-idx3", "labels-idx1")
    ]


def test_missing_files_are_named_with_the_way_to_get_them(folder: Path):
    with pytest.raises(ProbeError, match=r"train-images-idx3-ubyte\.gz is missing.*data get fashion_mnist"):
        load_dataset("fashion_mnist", split="train")


WHOLE = idx_bytes(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))
DAMAGED_IDX = {
    "cut short": (WHOLE[:-1], "promises an array of"),
    "too long": (WHOLE + b"x", "promises an array of"),
    "cut in its header": (WHOLE[:9], "no IDX file"),
    "something else": (b"<html>not found</html>", "no IDX file"),
    "empty": (b"", "no IDX file"),
    "of other numbers": (b"\x00\x00\x0d" + WHOLE[3:], "no IDX file"),
    "promising more than there is memory": (WHOLE[:4] + b"\xff" * 12 + WHOLE[16:], "promises an array of"),
}


@pytest.mark.parametrize("case", DAMAGED_IDX)
@pytest.mark.parametrize("compressed", [True, False])
def test_a_damaged_idx_file_is_refused_by_name(tmp_path: Path, case: str, compressed: bool):
    data, reason = DAMAGED_IDX[case]
    path = tmp_path / ("file.gz" if compressed else "file")
    path.write_bytes(gzip.compress(data) if compressed else data)
    with pytest.raises(ProbeError, match=reason) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def test_a_gz_file_that_is_cut_or_has_a_flipped_byte_is_refused(tmp_path: Path):
    data = gzip.compress(idx_bytes(np.random.default_rng(0).integers(0, 256, (50, 28, 28), dtype=np.uint8)))
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 255
    for name, content in (
        ("cut.gz", data[: len(data) // 2]),
        ("flipped.gz", bytes(flipped)),
        ("none.gz", b"no gz"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ProbeError, match=name):
            read_idx(path)


def test_a_decompression_bomb_is_refused_at_its_bound(tmp_path: Path):
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        for _ in range(300):
            stream.write(bytes(1 << 20))
    assert path.stat().st_size < 3_000_000
    with pytest.raises(ProbeError, match="holds more than"):
        read_idx(path)
    with pytest.raises(ProbeError, match="holds more than"):
        read_batch(path.rename(tmp_path / "data_batch_1.bin.gz"))


def test_images_and_labels_that_do_not_belong_together_are_refused(folder: Path):
    (folder / "mnist" / "t10k-images-idx3-ubyte").write_bytes(idx_bytes(np.zeros((3, 2, 2), np.uint8)))
    (folder / "mnist" / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(4, np.uint8)))
    with pytest.raises(ProbeError, match="do not go with"):
        load_dataset("mnist")


# -- CIFAR-10 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["test_batch.bin", "test_batch.bin.gz"])
def test_binary_batches_are_read_plane_by_plane(folder: Path, name: str):
    images, labels, data = binary_batch(5)
    (folder / "cifar10" / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    found = load_dataset("cifar10")
    np.testing.assert_array_equal(found.inputs, images)
    np.testing.assert_array_equal(found.targets, labels)
    assert found.class_names == CLASS_NAMES


def test_all_training_batches_that_are_there_are_joined_in_order(folder: Path):
    parts = {number: binary_batch(number, number) for number in (1, 3, 4)}
    for number, (_, _, data) in parts.items():
        (folder / "cifar10" / f"data_batch_{number}.bin").write_bytes(data)
    found = load_dataset("cifar10", split="train")
    np.testing.assert_array_equal(found.targets, np.concatenate([labels for _, labels, _ in parts.values()]))
    np.testing.assert_array_equal(found.inputs, np.concatenate([images for images, _, _ in parts.values()]))


def python_batch(count: int) -> tuple[np.ndarray, np.ndarray, bytes]:
    """The bytes that Python 2 wrote: text keys are byte strings, the array goes through NumPy's reconstruction."""
    images, labels, _ = binary_batch(count)
    flat = images.reshape(count, -1)
    out = io.BytesIO()
    out.write(b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R")
    out.write(b"(K\x01" + b"M" + struct.pack("<H", count) + b"M" + struct.pack("<H", 3072) + b"\x86")
    out.write(b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89")
    out.write(b"T" + struct.pack("<i", flat.nbytes) + flat.tobytes() + b"tb")
    out.write(b"U\x06labels](" + b"".join(b"K" + bytes([label]) for label in labels) + b"eu.")
    return images, labels, out.getvalue()


def test_python_batches_are_read_without_numpy_building_anything(folder: Path):
    images, labels, data = python_batch(6)
    (folder / "cifar10" / "test_batch").write_bytes(data)
    np.testing.assert_array_equal(pickle.loads(data, encoding="bytes")[b"data"], images.reshape(6, -1))
    found = load_dataset("cifar10")
    np.testing.assert_array_equal(found.inputs, images)
    np.testing.assert_array_equal(found.targets, labels)


class _Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_python_batch_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path, protocol: int):
    mark = tmp_path / "mark"
    path = tmp_path / "test_batch"
    path.write_bytes(pickle.dumps({"data": _Hostile(mark), "labels": [0]}, protocol=protocol))
    with pytest.raises(ProbeError, match=r"read safely: it asks for (posix|os)\.system"):
        read_batch(path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists(), "the file was hostile indeed"


HOSTILE = {
    "a memo as large as the memory": b"\x80\x02K\x00r\xff\xff\xff\x7f.",
    "another function of numpy": b"\x80\x02cnumpy\nload\nU\x01x\x85R.",
    "an attribute of an attribute": b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.__mro__\x93.",
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent object": b"\x80\x02U\x01xQ.",
    "no dictionary": b"\x80\x02K\x01.",
    "nothing": b"",
    "half of it": python_batch(2)[2][:-200],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_any_other_pickle_is_refused(tmp_path: Path, case: str):
    path = tmp_path / "data_batch_1"
    path.write_bytes(HOSTILE[case])
    with pytest.raises(ProbeError, match="data_batch_1 is no batch of CIFAR-10 that can be read safely"):
        read_batch(path)


def test_a_batch_that_is_cut_or_has_impossible_labels_is_refused(tmp_path: Path):
    _, _, data = binary_batch(2)
    for content, reason in ((data[:-1], "cut short"), (b"", "cut short"), (b"\x0a" + data[1:], "labels outside")):
        path = tmp_path / "data_batch_1.bin"
        path.write_bytes(content)
        with pytest.raises(ProbeError, match=reason):
            read_batch(path)


def jpeg(value: int, size: tuple[int, int] = (32, 32)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (value, 255 - value, 0)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def jpeg_archive(folder: Path, entries: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    with tarfile.open(folder / "cifar10" / "test_jpeg_lossy.tar.gz", "w:gz") as archive:
        for entry, data in entries:
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def test_jpeg_pictures_come_by_class_and_number_whatever_their_order(folder: Path):
    names = ["truck/0001.jpg", "airplane/0002.jpg", "truck/0000.jpg"]
    entries = [(tarfile.TarInfo(name), jpeg(50 * number)) for number, name in enumerate(names)]
    jpeg_archive(folder, entries)
    found = load_dataset("cifar10_jpeg")
    assert list(found.sample_id) == [2, 9000, 9001]
    assert list(found.targets) == [0, 9, 9]
    assert [round(float(picture[0].mean()) / 50) for picture in found.inputs] == [1, 2, 0]


def _link(name: str, kind: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, "/etc/passwd"
    return entry


UNWANTED = {
    "a path out of its place": (tarfile.TarInfo("../airplane/0000.jpg"), jpeg(1), "none of its JPEG files"),
    "an absolute path": (tarfile.TarInfo("/airplane/0000.jpg"), jpeg(1), "none of its JPEG files"),
    "a symbolic link": (_link("airplane/0000.jpg", tarfile.SYMTYPE), b"", "none of its JPEG files"),
    "a hard link": (_link("airplane/0000.jpg", tarfile.LNKTYPE), b"", "none of its JPEG files"),
    "a device": (_link("airplane/0000.jpg", tarfile.CHRTYPE), b"", "none of its JPEG files"),
    "a huge member": (tarfile.TarInfo("airplane/0000.jpg"), bytes(1 << 17), "none of its JPEG files"),
    "a picture of another size": (tarfile.TarInfo("airplane/0000.jpg"), jpeg(1, (64, 32)), "not 32 × 32"),
    "no picture": (tarfile.TarInfo("airplane/0000.jpg"), b"GIF89a", "cannot be read"),
    "a picture twice": (tarfile.TarInfo("airplane/0007.jpg"), jpeg(1), "twice"),
}


@pytest.mark.parametrize("case", UNWANTED)
def test_a_jpeg_archive_with_anything_else_in_it_is_refused(folder: Path, case: str):
    entry, data, reason = UNWANTED[case]
    jpeg_archive(folder, [(tarfile.TarInfo("airplane/0007.jpg"), jpeg(9)), (entry, data)])
    with pytest.raises(ProbeError, match=reason):
        load_dataset("cifar10_jpeg")


def test_a_jpeg_archive_that_is_cut_or_a_bomb_is_refused(folder: Path):
    path = folder / "cifar10" / "test_jpeg_lossy.tar.gz"
    jpeg_archive(folder, [(tarfile.TarInfo("airplane/0007.jpg"), jpeg(9))])
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ProbeError, match="cannot be read"):
        load_dataset("cifar10_jpeg")
    with gzip.open(path, "wb", compresslevel=1) as stream:
        for _ in range(65):
            stream.write(bytes(1 << 20))
    with pytest.raises(ProbeError, match="holds more than"):
        load_dataset("cifar10_jpeg")


# -- digits and text -----------------------------------------------------------------------------------------


def test_digits_agree_with_scikit_learn_and_split_every_class_in_five():
    from sklearn.datasets import load_digits

    whole = load_digits()
    found = load_dataset("digits", split="all")
    np.testing.assert_array_equal(found.inputs[:, 0], whole.images)
    np.testing.assert_array_equal(found.targets, whole.target)
    train, test = load_dataset("digits", split="train"), load_dataset("digits", split="test")
    assert len(train) + len(test) == 1797
    seen = {picture.tobytes() for picture in train.inputs} & {picture.tobytes() for picture in test.inputs}
    assert not seen
    np.testing.assert_array_equal(np.bincount(test.targets), -(-np.bincount(whole.target) // 5))
    scaled = whole.images / 16
    assert found.mean[0] == pytest.approx(scaled.mean(), abs=5e-5)
    assert found.std[0] == pytest.approx(scaled.std(), abs=5e-5)


def write_pairs(folder: Path, stem: str, english: list[str], german: list[str]) -> None:
    for language, lines in (("en", english), ("de", german)):
        path = folder / "text" / "multi30k" / f"{stem}.{language}.gz"
        path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))


def test_parallel_text_is_words_by_number_with_a_vocabulary_of_the_training_part(folder: Path):
    write_pairs(folder, "train", ["A dog, a cat.", "A cat sits."], ["Ein Hund.", "Die Katze sitzt."])
    write_pairs(folder, "test_2016_flickr", ["A zebra sits.", "a"], ["Ein Zebra.", "die"])
    found = load_dataset("multi30k", split="test", minimum_count=1, length=5)
    marks = ("<pad>", "<unk>", "<bos>", "<eos>")
    assert found.names["source"] == (*marks, "a", ".", "cat", ",", "dog", "sits")
    assert found.names["target"] == (*marks, ".", "die", "ein", "hund", "katze", "sitzt")
    np.testing.assert_array_equal(found.inputs["source"], [[4, 1, 9, 5, 3], [4, 3, 0, 0, 0]])
    np.testing.assert_array_equal(found.inputs["target"], [[2, 6, 1, 4, 0], [2, 5, 0, 0, 0]])
    np.testing.assert_array_equal(found.targets, [[6, 1, 4, 3, 0], [5, 3, 0, 0, 0]])
    np.testing.assert_array_equal(found.masks["source"].sum(1), [5, 2])
    np.testing.assert_array_equal(found.masks["target"], found.targets != 0)


def test_parallel_text_cuts_long_sentences_and_drops_rare_words(folder: Path):
    write_pairs(folder, "train", ["a b c d a b", "a x"], ["u v w", "u"])
    found = load_dataset("multi30k", split="train", minimum_count=2, length=4)
    assert found.names["source"][4:] == ("a", "b")
    np.testing.assert_array_equal(found.inputs["source"], [[4, 5, 1, 3], [4, 1, 3, 0]])
    swapped = load_dataset("multi30k", split="train", source="de", target="en", minimum_count=1)
    assert swapped.names["source"][4:] == ("u", "v", "w")


def test_only_short_pairs_are_kept_with_their_lines_as_ids_and_their_words_alone(folder: Path):
    write_pairs(folder, "train", ["a b c", "a b", "b", "x"], ["u", "u v", "u v w", "u v"])
    write_pairs(folder, "val", ["a b c", "b"], ["w", "v u"])
    found = load_dataset("multi30k", split="train", minimum_count=1, length=4, longest=2)
    np.testing.assert_array_equal(found.sample_id, [1, 3])
    assert found.names["source"][4:] == ("a", "b", "x")
    assert found.names["target"][4:] == ("u", "v")
    np.testing.assert_array_equal(found.targets, [[4, 5, 3, 0], [4, 5, 3, 0]])
    np.testing.assert_array_equal(load_dataset("multi30k", split="val", longest=2).sample_id, [1])


def test_parallel_text_depends_on_the_training_files_too(folder: Path):
    write_pairs(folder, "train", ["a"], ["b"])
    write_pairs(folder, "val", ["a"], ["b"])
    names = [path.name for path in source_files("multi30k", split="val")]
    assert names == ["val.en.gz", "val.de.gz", "train.en.gz", "train.de.gz"]


def test_parallel_text_with_lines_that_are_no_pairs_is_refused(folder: Path):
    write_pairs(folder, "train", ["a", "b"], ["a"])
    with pytest.raises(ProbeError, match=r"2 lines.* has 1"):
        load_dataset("multi30k", split="train")


def test_a_line_feed_alone_ends_a_line_of_parallel_text(folder: Path):
    write_pairs(folder, "train", ["a\u2028b", "c\x85d\rx"], ["u", "v"])
    assert len(load_dataset("multi30k", split="train")) == 2


# -- what may be asked for -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("mnits", {}, "Did you mean 'mnist'"),
        ("mnist", {"size": 3}, r"`args\.size`"),
        ("text", {}, r"`args\.path`: Field required"),
        ("text", {"path": "a", "lenght": 3}, "Did you mean 'length'"),
        ("tiny_shakespeare", {"length": 0}, "greater than or equal to 1"),
        ("csv_series", {"path": "a", "history": "many"}, "valid integer"),
        ("multi30k", {"source": "fr"}, "'en' or 'de'"),
    ],
)
def test_an_unknown_name_or_option_is_told_apart(name: str, options: dict, reason: str):
    with pytest.raises(ConfigurationError, match=reason):
        load_dataset(name, **options)
    with pytest.raises(ConfigurationError, match=reason):
        source_files(name, **options)


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10", "cifar10_jpeg", "multi30k", "metr_la_week"])
def test_an_unknown_split_is_refused_with_those_that_are(name: str):
    with pytest.raises(ProbeError, match=r"no split 'validation'; it has .*test"):
        load_dataset(name, split="validation")
