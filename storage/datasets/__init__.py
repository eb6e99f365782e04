"""Loaders for real data files, by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from stratascope.errors import ConfigurationError, did_you_mean
from stratascope.storage.datasets import cifar, digits, files, idx, sequences

Kind = Literal["image", "text", "array", "series"]


@dataclass(frozen=True)
class Dataset:
    """Raw data: `inputs` (sample, …), uint8 images as (sample, channel, y, x); `targets` (sample,) or None.

    `mean` and `std` are those published for the training inputs divided by `scale`, one for each channel.
    """

    inputs: np.ndarray
    targets: np.ndarray | None
    class_names: tuple[str, ...] = ()
    kind: Kind = "array"
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


@dataclass(frozen=True)
class Source:
    """How a data set is loaded, and which files it is made of."""

    load: Callable[..., Dataset]
    source_files: Callable[..., list[Path]]


def data_folder() -> Path:
    """`STRATASCOPE_DATA`, or a folder in the user's cache."""
    configured = os.environ.get("STRATASCOPE_DATA")
    if configured:
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "stratascope" / "data"


_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
)  # fmt: skip


def _digits(split: str, folder: Path) -> Dataset:
    images, targets = digits.load(split)
    names = tuple(str(digit) for digit in range(10))
    return Dataset(images, targets, names, "image", 16.0, (0.3052,), (0.3760,))


def _mnist(split: str, folder: Path) -> Dataset:
    images, targets = idx.load(folder / "mnist", split, "mnist")
    names = tuple(str(digit) for digit in range(10))
    return Dataset(images, targets, names, "image", 255.0, (0.1307,), (0.3081,))


def _fashion(split: str, folder: Path) -> Dataset:
    images, targets = idx.load(folder / "fashion-mnist", split, "fashion_mnist")
    return Dataset(images, targets, _FASHION, "image", 255.0, (0.2860,), (0.3530,))


def _cifar10(split: str, folder: Path) -> Dataset:
    images, targets = cifar.load(folder, split)
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return Dataset(images, targets, cifar.CLASS_NAMES, "image", 255.0, mean, std)


def _image_folder(split: str, folder: Path, path: str = "", **options: Any) -> Dataset:
    images, targets, names = files.load_image_folder(_inside(folder, path), **options)
    channels = images.shape[1]
    return Dataset(images, targets, names, "image", 255.0, (0.5,) * channels, (0.25,) * channels)


def _npz(split: str, folder: Path, path: str = "", **options: Any) -> Dataset:
    return Dataset(*files.load_npz(_inside(folder, path), **options))


def _zarr(split: str, folder: Path, path: str = "", **options: Any) -> Dataset:
    return Dataset(*files.load_zarr(_inside(folder, path), **options))


def _tiny_shakespeare(split: str, folder: Path, **options: Any) -> Dataset:
    inputs, targets, names = sequences.load_text(folder / "text" / "tinyshakespeare.txt", split, **options)
    return Dataset(inputs, targets, names, "text")


def _text(split: str, folder: Path, path: str = "", **options: Any) -> Dataset:
    inputs, targets, names = sequences.load_text(_inside(folder, path), split, **options)
    return Dataset(inputs, targets, names, "text")


def _csv_series(split: str, folder: Path, path: str = "", **options: Any) -> Dataset:
    inputs, targets, names = sequences.load_series(_inside(folder, path), split, **options)
    return Dataset(inputs, targets, names, "series")


def _traffic(split: str, folder: Path, **options: Any) -> Dataset:
    path = folder / "traffic-los" / "los_speed.csv"
    inputs, targets, names = sequences.load_series(path, split, **options)
    return Dataset(inputs, targets, names, "series")


def _inside(folder: Path, path: str) -> Path:
    if not path:
        raise ConfigurationError("this data set needs `args: {path: …}`, the place of its files.")
    return Path(path) if Path(path).is_absolute() else folder / path


def _one(*parts: str) -> Callable[..., list[Path]]:
    return lambda split, folder, **options: [folder.joinpath(*parts)]


def _given(split: str, folder: Path, path: str = "", **options: Any) -> list[Path]:
    return [_inside(folder, path)]


SOURCES: dict[str, Source] = {
    "digits": Source(_digits, lambda split, folder: [digits.source_file()]),
    "mnist": Source(_mnist, lambda split, folder: idx.source_files(folder / "mnist", split, "mnist")),
    "fashion_mnist": Source(
        _fashion, lambda split, folder: idx.source_files(folder / "fashion-mnist", split, "fashion_mnist")
    ),
    "cifar10": Source(_cifar10, lambda split, folder: cifar.source_files(folder, split)),
    "image_folder": Source(_image_folder, _given),
    "npz": Source(_npz, _given),
    "zarr": Source(_zarr, _given),
    "text": Source(_text, _given),
    "csv_series": Source(_csv_series, _given),
    "tiny_shakespeare": Source(_tiny_shakespeare, _one("text", "tinyshakespeare.txt")),
    "metr_la_week": Source(_traffic, _one("traffic-los", "los_speed.csv")),
}


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise ConfigurationError(
            f"there is no data set {name!r}; there are {', '.join(SOURCES)}." + did_you_mean(name, SOURCES)
        )
    return SOURCES[name]


def load_dataset(name: str, *, split: str = "test", folder: Path | None = None, **options: Any) -> Dataset:
    """The data set `name`. A relative `path` among `options` is looked up in `folder` (default: data folder).

    Raises ConfigurationError for an unknown name, ProbeError for files that are missing or damaged.
    """
    given = "path" in options and folder is not None
    return _source(name).load(split, folder if given else data_folder(), **options)


def source_files(name: str, *, split: str = "test", folder: Path | None = None, **options: Any) -> list[Path]:
    """The files that `load_dataset` would read: what a remembered digest depends on."""
    given = "path" in options and folder is not None
    return _source(name).source_files(split, folder if given else data_folder(), **options)
