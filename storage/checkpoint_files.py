"""Finding checkpoints: from a glob, a folder or a manifest to an ordered series. No torch here."""

from __future__ import annotations

import csv
import glob
import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator

from stratascope.errors import ConfigurationError
from stratascope.storage.model_spec import ModelSpec
from stratascope.storage.names import checked_name

Kind = Literal["safetensors", "safetensors_sharded", "torch", "distributed"]
_SUFFIXES = {".safetensors": "safetensors", ".pt": "torch", ".pth": "torch", ".ckpt": "torch", ".bin": "torch"}
_STEP_IN_NAME = re.compile(r"(?:step|epoch|iter|ckpt)[-_=]?(\d+)", re.IGNORECASE)


class SelectSpec(BaseModel):
    """Which of the checkpoints that were found are audited."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    every: int = Field(default=1, ge=1)
    last: int | None = Field(default=None, ge=1)
    steps: tuple[int, ...] | None = None
    log_spaced: int | None = Field(default=None, ge=2)


class StateDictSpec(BaseModel):
    """Where the weights lie inside a file; found without help where that is unambiguous."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str | None = None
    strip_prefix: str | None = None


class RunSource(BaseModel):
    """One entry of the `runs:` key."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    checkpoints: str
    step: str | None = None
    select: SelectSpec = SelectSpec()
    model: ModelSpec
    state_dict: StateDictSpec = StateDictSpec()
    allow_pickle: bool = False
    allow_empty: bool = False

    @field_validator("name")
    @classmethod
    def _name_is_allowed(cls, name: str) -> str:
        try:
            return checked_name(name, "run")
        except ConfigurationError as error:
            raise ValueError(str(error)) from None


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint as it lies on the disk. `step` None means: a key inside, or nothing, tells it."""

    run: str
    step: int | None
    path: Path
    kind: Kind
    files: tuple[Path, ...]


@dataclass
class Listing:
    """The checkpoints of a run in order, and what could not be placed."""

    checkpoints: list[CheckpointFile] = field(default_factory=list)
    stepless: list[CheckpointFile] = field(default_factory=list)
    duplicates: list[CheckpointFile] = field(default_factory=list)
    unselected: list[CheckpointFile] = field(default_factory=list)


def natural_key(text: str) -> list[Any]:
    """Sorts numbers inside names as numbers: step-9 before step-10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def find_checkpoints(source: RunSource, folder: Path) -> list[CheckpointFile]:
    """All checkpoints of `source`, before steps are settled and a selection is made.

    Raises ConfigurationError where nothing matches (unless `allow_empty`) or a manifest is wrong.
    """
    place = Path(source.checkpoints)
    place = place if place.is_absolute() else folder / place
    if place.suffix in (".csv", ".json", ".yaml", ".yml") and place.is_file():
        found = [
            replace(item, step=step)
            for path, step in _read_manifest(place)
            if (item := _recognise(source.name, path)) is not None
        ]
    else:
        if place.is_dir() and not _is_distributed(place) and not _index_of(place):
            candidates = list(place.iterdir())
        else:
            candidates = [Path(name) for name in glob.glob(str(place), recursive=True)]
        candidates.sort(key=lambda path: natural_key(path.name))
        found = [item for path in candidates if (item := _recognise(source.name, path)) is not None]
        found = [replace(item, step=_step_by_regex(source, item)) for item in found]
    if not found and not source.allow_empty:
        raise ConfigurationError(
            f"run {source.name!r}: no checkpoint matches {place}. Check the path, or set `allow_empty: true`."
        )
    return found


def settle(source: RunSource, files: Sequence[CheckpointFile], facts: Mapping[Path, Mapping[str, Any]]) -> Listing:
    """Give every checkpoint its step, put them in order and select.

    `facts` are what reading the files told (``inner_step``, ``weights_digest``, ``status``). Raises
    ConfigurationError where two different files claim one step.
    """
    listing = Listing()
    by_step: dict[int, list[CheckpointFile]] = defaultdict(list)
    for item in files:
        step = item.step
        if step is None:
            step = facts.get(item.path, {}).get("inner_step")
        if step is None and (match := _STEP_IN_NAME.findall(item.path.name)):
            step = int(match[-1])
        if step is None and len(files) == 1:
            step = 0
        if step is None:
            listing.stepless.append(item)
        else:
            by_step[int(step)].append(replace(item, step=int(step)))
    for step in sorted(by_step):
        first, *others = by_step[step]
        for other in others:
            digests = [facts.get(item.path, {}).get("weights_digest") for item in (first, other)]
            if digests[0] is None or digests[0] != digests[1]:
                raise ConfigurationError(
                    f"run {source.name!r}: {first.path.name} and {other.path.name} both claim step {step} and "
                    "differ. Give a `step` regex or a manifest, or remove one."
                )
            listing.duplicates.append(other)
        listing.checkpoints.append(first)
    chosen = _selected([item.step for item in listing.checkpoints if item.step is not None], source.select)
    listing.unselected = [item for item in listing.checkpoints if item.step not in chosen]
    listing.checkpoints = [item for item in listing.checkpoints if item.step in chosen]
    return listing


def _selected(steps: Sequence[int], select: SelectSpec) -> set[int]:
    chosen = list(steps)
    if select.steps is not None:
        chosen = [step for step in chosen if step in select.steps]
    chosen = chosen[:: select.every]
    if select.log_spaced is not None and len(chosen) > select.log_spaced:
        last = len(chosen) - 1
        places = {0} | {round(last ** (k / (select.log_spaced - 1))) for k in range(1, select.log_spaced)}
        chosen = [step for place, step in enumerate(chosen) if place in places]
    if select.last is not None:
        chosen = chosen[-select.last :]
    return set(chosen)


def _step_by_regex(source: RunSource, item: CheckpointFile) -> int | None:
    if source.step is None:
        return None
    try:
        match = re.search(source.step, item.path.name)
        return int(match.group(1)) if match else None
    except (re.error, IndexError, ValueError) as error:
        raise ConfigurationError(
            f"run {source.name!r}: `step` {source.step!r} is no regular expression with one group of digits: {error}."
        ) from None


def _is_distributed(path: Path) -> bool:
    return path.is_dir() and (path / ".metadata").exists()


def _index_of(path: Path) -> Path | None:
    found = sorted(path.glob("*.safetensors.index.json")) if path.is_dir() else []
    return found[0] if found else None


def _recognise(run: str, path: Path) -> CheckpointFile | None:
    if path.name.startswith("."):
        return None
    if _is_distributed(path):
        return CheckpointFile(run, None, path, "distributed", tuple(sorted(path.iterdir())))
    index = path if path.name.endswith(".safetensors.index.json") else _index_of(path)
    if index is not None:
        try:
            shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, OSError, AttributeError):
            shards = []
        files = tuple(index.parent / name for name in shards if Path(name).name == name)
        return CheckpointFile(run, None, path, "safetensors_sharded", (index, *files))
    kind = _SUFFIXES.get(path.suffix)
    return CheckpointFile(run, None, path, kind, (path,)) if kind else None  # type: ignore[arg-type]


def _read_manifest(path: Path) -> list[tuple[Path, int]]:
    """(file, step) pairs of a CSV with columns path and step, or a JSON or YAML list of such mappings."""
    try:
        if path.suffix == ".csv":
            with open(path, newline="", encoding="utf-8") as stream:
                entries: list[Any] = list(csv.DictReader(stream))
        else:
            entries = yaml.safe_load(path.read_text(encoding="utf-8"))
        return [(path.parent / entry["path"], int(entry["step"])) for entry in entries]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ConfigurationError(
            f"manifest {path} cannot be read ({error!r}); expected entries with `path` and `step`."
        ) from None
