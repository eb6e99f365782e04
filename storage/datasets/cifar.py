"""CIFAR-10: the binary batches, the Python batches without unpickling code, and the test images as JPEG."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from stratascope.errors import ProbeError
from stratascope.storage.datasets.compressed import read_bounded

CLASS_NAMES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"
)  # fmt: skip
RECORD = 1 + 3 * 32 * 32
"""Bytes of one image in a binary batch: its class, then its red, green and blue plane."""
_FOLDERS = ("cifar10", "cifar-10-batches-bin", "cifar-10-batches-py")
_LARGEST = 10_000 * RECORD + (1 << 20)
_LARGEST_ARCHIVE = 1 << 26
_LARGEST_PICTURE = 1 << 16
_MOST_MEMORIZED = 1 << 20
_PICTURE = re.compile(rf"({'|'.join(CLASS_NAMES)})/(\d{{4}})\.jpg")


def source_files(folder: Path, split: str) -> list[Path]:
    """The batches of `split` that are there: `train` takes every whole one, `test` may be its first part."""
    stems = (
        [f"data_batch_{number}" for number in range(1, 6)]
        if split == "train"
        else ["test_batch", "test_batch_first1000"]
    )
    found = []
    for stem in stems:
        names = (f"{stem}.bin.gz", f"{stem}.bin", stem)
        existing = [path for place in _FOLDERS for name in names if (path := folder / place / name).exists()]
        found += existing[:1]
    if not found:
        raise ProbeError(
            f"data set 'cifar10': no {stems[0]} in {folder / _FOLDERS[0]}. `stratascope data get cifar10` "
            "fetches it, or set STRATASCOPE_DATA to the folder that has it."
        )
    return found if split == "train" else found[:1]


def load(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (sample, 3, 32, 32) and targets int64 (sample,)."""
    batches = [read_batch(path) for path in source_files(folder, split)]
    if len(batches) == 1:
        return batches[0]
    return np.concatenate([images for images, _ in batches]), np.concatenate([target for _, target in batches])


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """One batch in either layout. Raises ProbeError where it is damaged or would run code."""
    data = read_bounded(path, _LARGEST)
    if ".bin" not in path.suffixes:
        images, targets = _python_batch(path, data)
    elif not data or len(data) % RECORD:
        raise ProbeError(f"{path} has {len(data)} bytes, no multiple of a record's {RECORD}: it is cut short.")
    else:
        records = np.frombuffer(data, np.uint8).reshape(-1, RECORD)
        images, targets = records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)
    if targets.min() < 0 or targets.max() >= len(CLASS_NAMES):
        raise ProbeError(f"{path} has labels outside 0 to {len(CLASS_NAMES) - 1}: it is no batch of CIFAR-10.")
    return images, targets


class _Described:
    """Stands for a NumPy object in a pickle, and only notes what it is to be made of."""

    def __init__(self, *arguments: Any) -> None:
        self.state: Any = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _NothingBuilt(pickle.Unpickler):
    """Reads plain values; what would call anything becomes a description, or is refused."""

    _numpy = frozenset({"_reconstruct", "ndarray", "dtype"})

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "numpy" and name in self._numpy:
            return _Described
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _python_batch(path: Path, data: bytes) -> tuple[np.ndarray, np.ndarray]:
    try:
        # A memo index of billions makes the reader claim as much memory, so look at them before it does.
        for code, argument, _ in pickletools.genops(data):
            if "PUT" in code.name and isinstance(argument, int) and argument > _MOST_MEMORIZED:
                raise pickle.UnpicklingError(f"it asks for {argument} places to remember values in")
        content = _NothingBuilt(io.BytesIO(data), encoding="bytes").load()
        raw = content[b"data"].state[-1]
        images = np.frombuffer(raw, np.uint8).reshape(-1, 3, 32, 32)
        targets = np.asarray(content[b"labels"], np.int64)
        if not len(images) or targets.shape != (len(images),):
            raise ValueError(f"{len(images)} images do not go with labels of shape {targets.shape}")
        return images, targets
    except Exception as error:
        raise ProbeError(f"{path} is no batch of CIFAR-10 that can be read safely: {error}.") from None


def jpeg_file(folder: Path) -> Path:
    """Where the whole test set lies as JPEG files in one archive."""
    return folder / "cifar10" / "test_jpeg_lossy.tar.gz"


def load_jpeg(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images uint8 (sample, 3, 32, 32), targets int64 and ids int64 (1000 · class + number within the class).

    The archive holds `class/0000.jpg` … and nothing else. Nothing is unpacked to the disk. Raises ProbeError.
    """
    path = jpeg_file(folder)
    data = read_bounded(path, _LARGEST_ARCHIVE)
    found: dict[int, np.ndarray] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
            for member in archive:
                matched = _PICTURE.fullmatch(member.name)
                if matched is None or not member.isreg() or member.size > _LARGEST_PICTURE:
                    raise ProbeError(f"{path} has {member.name!r} in it, which is none of its JPEG files.")
                identity = 1000 * CLASS_NAMES.index(matched[1]) + int(matched[2])
                if int(matched[2]) >= 1000 or identity in found:
                    raise ProbeError(f"{path} has {member.name!r} twice, or too many of its class.")
                stream = archive.extractfile(member)
                found[identity] = _picture(path, member.name, stream.read() if stream else b"")
    except tarfile.TarError as error:
        raise ProbeError(f"{path} is damaged ({error}); fetch it again.") from None
    if not found:
        raise ProbeError(f"{path} holds no pictures; fetch it again.")
    identities = np.array(sorted(found), np.int64)
    return np.stack([found[int(number)] for number in identities]), identities // 1000, identities


def _picture(path: Path, name: str, data: bytes) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as picture:
            if picture.size != (32, 32):
                raise ProbeError(f"{path}: {name!r} is {picture.size}, not 32 × 32.")
            return np.asarray(picture.convert("RGB")).transpose(2, 0, 1)
    except (OSError, ValueError) as error:
        raise ProbeError(f"{path}: {name!r} cannot be read: {error}.") from None
