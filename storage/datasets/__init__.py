"""Loaders for real data files, by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stratascope.errors import ConfigurationError, ProbeError, did_you_mean
from stratascope.storage.datasets import cifar, dates, digits, files, idx, parallel_text, sequences, token_tasks
from stratascope.storage.datasets.dataset import Dataset
from stratascope.storage.remote_paths import kept_copy, path_of

__all__ = ["SOURCES", "Dataset", "Source", "data_folder", "load_dataset", "source_files"]

_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"
)  # fmt: skip
_DIGITS = tuple(str(digit) for digit in range(10))
_SPLIT = "{split}"


class Options(BaseModel):
    """What may stand in `args` of a data set."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageFolderOptions(Options):
    """A folder with one sub-folder for each class. `{split}` in `path` stands for the split."""

    path: str = Field(min_length=1)
    size: tuple[int, int] | None = None
    """(y, x) that every image is resized to."""
    grey: bool = False


class ArraysOptions(Options):
    """Named arrays in a file. `{split}` in any of these stands for the split."""

    path: str = Field(min_length=1)
    inputs: str = "inputs"
    targets: str = "targets"


class ShakespeareOptions(Options):
    """Windows of `length` characters."""

    length: int = Field(default=64, ge=1)


class TextOptions(ShakespeareOptions):
    """A UTF-8 text file."""

    path: str = Field(min_length=1)


class TrafficOptions(Options):
    """`history` steps are shown, the `horizon` after them are the targets; windows begin every `stride` steps."""

    history: int = Field(default=12, ge=1)
    horizon: int = Field(default=12, ge=1)
    stride: int = Field(default=1, ge=1)


class SeriesOptions(TrafficOptions):
    """A CSV file with a column for each series."""

    path: str = Field(min_length=1)
    header: bool = True


class ParallelTextOptions(Options):
    """From which language into which; words seen less than `minimum_count` times in training are `<unk>`."""

    source: Literal["en", "de"] = "en"
    target: Literal["en", "de"] = "de"
    minimum_count: int = Field(default=2, ge=1)
    length: int = Field(default=32, ge=2)
    """Tokens to a sentence, its end mark included."""
    longest: int | None = Field(default=None, ge=1)
    """Only pairs of which neither sentence has more words."""


class MadeUpOptions(Options):
    """Of samples that are made up: so many of them; `seed` decides which."""

    count: int = Field(default=1000, ge=1)
    seed: int = Field(default=0, ge=0)


class DatesOptions(MadeUpOptions):
    """Days between the first and the last of `years`; a tenth of them are the test split's."""

    years: tuple[int, int] = (1000, 2999)

    @model_validator(mode="after")
    def _years_have_four_digits(self) -> Self:
        if not 1000 <= self.years[0] <= self.years[1] <= 9999:
            raise ValueError("`years` are the first and the last one, from 1000 to 9999")
        return self


class RepeatedTokensOptions(MadeUpOptions):
    """A block of so many random `tokens` as is drawn from `period` (least and most), twice, at the end of `length`."""

    tokens: int = Field(default=60, ge=2)
    period: tuple[int, int] = (8, 20)
    length: int = Field(default=41, ge=3)
    """Places in all: a begin mark, random tokens, the block, the block again."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        least, most = self.period
        if not 1 <= least <= most <= (self.length - 1) // 2:
            raise ValueError("`period` is the least and the most, and `length` at least 1 + twice the most")
        if self.tokens < self.length - 1 - least:
            raise ValueError("`tokens` must be at least `length` − 1 − the least `period`: none may stand twice")
        return self


class DelayedRecallOptions(MadeUpOptions):
    """One of `symbols` to be kept over `length` places, past tokens that say nothing."""

    length: int = Field(default=100, ge=2)
    symbols: int = Field(default=8, ge=2)
    distractors: int = Field(default=8, ge=1)


class AddingProblemOptions(MadeUpOptions):
    """Two of `length` numbers are to be added."""

    length: int = Field(default=100, ge=2)


@dataclass(frozen=True)
class Source:
    """How a data set is loaded, which files it is made of, what may be asked of it."""

    load: Callable[[str, Path, Any], Dataset]
    files: Callable[[str, Path, Any], list[Path]]
    splits: tuple[str, ...] = ("train", "test")
    """None where the user's own files decide."""
    options: type[Options] = Options
    role: str | None = None
    """The role of a probe of it, where that is not the split's."""


def data_folder() -> Path:
    """`STRATASCOPE_DATA`, or a folder in the user's cache."""
    configured = os.environ.get("STRATASCOPE_DATA")
    if configured:
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stratascope" / "data"


def _digits(split: str, folder: Path, options: Options) -> Dataset:
    return Dataset(*digits.load(split), _DIGITS, "image", 16.0, (0.3053,), (0.3760,))


def _mnist(split: str, folder: Path, options: Options) -> Dataset:
    found = idx.load(folder / "mnist", split, "mnist")
    return Dataset(*found, _DIGITS, "image", 255.0, (0.1307,), (0.3081,))


def _fashion(split: str, folder: Path, options: Options) -> Dataset:
    found = idx.load(folder / "fashion-mnist", split, "fashion_mnist")
    return Dataset(*found, _FASHION, "image", 255.0, (0.2860,), (0.3530,))


_CIFAR: dict[str, Any] = {
    "class_names": cifar.CLASS_NAMES, "kind": "image", "scale": 255.0,
    "mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616),
}  # fmt: skip


def _cifar10(split: str, folder: Path, options: Options) -> Dataset:
    return Dataset(*cifar.load(folder, split), **_CIFAR)


def _cifar10_jpeg(split: str, folder: Path, options: Options) -> Dataset:
    images, targets, identities = cifar.load_jpeg(folder)
    return Dataset(images, targets, sample_id=identities, **_CIFAR)


def _image_folder(split: str, folder: Path, options: ImageFolderOptions) -> Dataset:
    return files.load_image_folder(_copy(split, folder, options), options.size, options.grey)


def _npz(split: str, folder: Path, options: ArraysOptions) -> Dataset:
    return files.load_npz(_copy(split, folder, options), *_array_names(split, options))


def _zarr(split: str, folder: Path, options: ArraysOptions) -> Dataset:
    return files.load_zarr(_place(split, folder, options), *_array_names(split, options))


def _shakespeare(split: str, folder: Path, options: ShakespeareOptions) -> Dataset:
    return sequences.load_text(folder / "text" / "tinyshakespeare.txt", split, options.length)


def _text(split: str, folder: Path, options: TextOptions) -> Dataset:
    return sequences.load_text(_copy(split, folder, options), split, options.length)


def _traffic(split: str, folder: Path, options: TrafficOptions) -> Dataset:
    return sequences.load_series(folder / "traffic-los" / "los_speed.csv", split, **options.model_dump())


def _csv_series(split: str, folder: Path, options: SeriesOptions) -> Dataset:
    named = options.model_dump(exclude={"path"})
    return sequences.load_series(_copy(split, folder, options), split, **named)


def _multi30k(split: str, folder: Path, options: ParallelTextOptions) -> Dataset:
    place, languages = folder / "text" / "multi30k", (options.source, options.target)
    return parallel_text.load(place, split, languages, options.minimum_count, options.length, options.longest)


def _multi30k_files(split: str, folder: Path, options: ParallelTextOptions) -> list[Path]:
    return parallel_text.source_files(folder / "text" / "multi30k", split, (options.source, options.target))


def _made_up(
    load: Callable[..., Dataset], files: Callable[[], list[Path]], options: type[MadeUpOptions]
) -> Source:
    """A data set that `load` makes of the split and the options; it depends on the module that makes it."""
    return Source(
        lambda split, folder, given: load(split, **given.model_dump()),
        lambda split, folder, given: files(),
        options=options,
    )


def _place(split: str, folder: Path, options: Any) -> Any:
    return path_of(options.path.replace(_SPLIT, split), folder)


def _copy(split: str, folder: Path, options: Any) -> Path:
    """The user's file or folder, or a local copy of it where it lies behind a URL."""
    place = _place(split, folder, options)
    try:
        return kept_copy(place)
    except OSError as error:
        raise ProbeError(f"{place} cannot be read: {error}.") from None


def _array_names(split: str, options: ArraysOptions) -> tuple[str, str]:
    return options.inputs.replace(_SPLIT, split), options.targets.replace(_SPLIT, split)


def _given(split: str, folder: Path, options: Any) -> list[Path]:
    return [_place(split, folder, options)]


def _one(*parts: str) -> Callable[[str, Path, Any], list[Path]]:
    return lambda split, folder, options: [folder.joinpath(*parts)]


_ALL = ("train", "test", "all")
SOURCES: dict[str, Source] = {
    "digits": Source(_digits, lambda split, folder, options: [digits.source_file()], _ALL),
    "mnist": Source(_mnist, lambda split, folder, _: idx.source_files(folder / "mnist", split, "mnist")),
    "fashion_mnist": Source(
        _fashion, lambda split, folder, _: idx.source_files(folder / "fashion-mnist", split, "fashion_mnist")
    ),
    "cifar10": Source(_cifar10, lambda split, folder, _: cifar.source_files(folder, split)),
    "cifar10_jpeg": Source(
        _cifar10_jpeg, lambda split, folder, _: [cifar.jpeg_file(folder)], ("test",), role="shifted"
    ),
    "tiny_shakespeare": Source(_shakespeare, _one("text", "tinyshakespeare.txt"), _ALL, ShakespeareOptions),
    "multi30k": Source(_multi30k, _multi30k_files, tuple(parallel_text.SPLITS), ParallelTextOptions),
    "metr_la_week": Source(_traffic, _one("traffic-los", "los_speed.csv"), _ALL, TrafficOptions),
    "dates": _made_up(dates.load, dates.source_files, DatesOptions),
    "repeated_tokens": _made_up(token_tasks.repeated_tokens, token_tasks.source_files, RepeatedTokensOptions),
    "delayed_recall": _made_up(token_tasks.delayed_recall, token_tasks.source_files, DelayedRecallOptions),
    "adding_problem": _made_up(token_tasks.adding_problem, token_tasks.source_files, AddingProblemOptions),
    "image_folder": Source(_image_folder, _given, (), ImageFolderOptions),
    "npz": Source(_npz, _given, (), ArraysOptions),
    "zarr": Source(_zarr, _given, (), ArraysOptions),
    "text": Source(_text, _given, _ALL, TextOptions),
    "csv_series": Source(_csv_series, _given, _ALL, SeriesOptions),
}


def needs_path(name: str) -> bool:
    """Whether the data set is the user's own and needs `args: {path: …}`."""
    return "path" in SOURCES[name].options.model_fields


def load_dataset(name: str, *, split: str = "test", folder: Path | None = None, **options: Any) -> Dataset:
    """The data set `name`. A relative `path` among `options` is looked up in `folder` (default: data folder).

    Raises ConfigurationError for an unknown name or option, ProbeError for an unknown split and for files that are
    missing or damaged.
    """
    source, checked = _checked(name, split, options)
    return source.load(split, _folder_of(name, folder), checked)


def source_files(name: str, *, split: str = "test", folder: Path | None = None, **options: Any) -> list[Path]:
    """The files (or folders) that `load_dataset` would read: what a remembered digest depends on."""
    source, checked = _checked(name, split, options)
    return source.files(split, _folder_of(name, folder), checked)


def _folder_of(name: str, folder: Path | None) -> Path:
    return folder if needs_path(name) and folder is not None else data_folder()


def _checked(name: str, split: str, options: dict[str, Any]) -> tuple[Source, Options]:
    if name not in SOURCES:
        raise ConfigurationError(
            f"there is no data set {name!r}; there are {', '.join(SOURCES)}." + did_you_mean(name, SOURCES)
        )
    source = SOURCES[name]
    try:
        checked = source.options.model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        place, fields = ".".join(str(part) for part in first["loc"]), source.options.model_fields
        reason = f"`args.{place}`: {first['msg']}." + (did_you_mean(place, fields) if place not in fields else "")
        raise ConfigurationError(f"data set {name!r}, {reason}") from None
    if source.splits and split not in source.splits:
        raise ProbeError(f"data set {name!r} has no split {split!r}; it has {', '.join(source.splits)}.")
    texts = [value for value in checked.model_dump().values() if isinstance(value, str)]
    if not source.splits and split != "test" and not any(_SPLIT in text for text in texts):
        raise ProbeError(
            f"data set {name!r} has no splits of its own: leave `split` out, or write {_SPLIT} where its name "
            f"stands in `path`{', `inputs` or `targets`' if source.options is ArraysOptions else ''}."
        )
    return source, checked
