"""Finding checkpoints: from a glob, a folder or a manifest to an ordered series. No torch here."""

from __future__ import annotations

import csv
import glob
import io
import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from stratascope.errors import ConfigurationError
from stratascope.storage.names import checked_name
from stratascope.storage.objects import is_url, local_or_url
from stratascope.storage.remote_paths import listed_path, matching
from stratascope.storage.run_source import RunSource as RunSource
from stratascope.storage.run_source import SelectSpec

Kind = Literal["safetensors", "safetensors_sharded", "torch", "distributed", "exported"]
_SUFFIXES: dict[str, Kind] = {
    ".safetensors": "safetensors", ".pt": "torch", ".pth": "torch", ".ckpt": "torch", ".bin": "torch",
    ".pt2": "exported",
}  # fmt: skip
_UNFINISHED = (".tmp", ".temp", ".partial", ".part", ".incomplete", ".lock", "~")
_INDEX = ".safetensors.index.json"
_WHOLE = ("model.safetensors", "pytorch_model.bin")
"""The one file of weights in a folder that may also hold what training needs to go on (`_COMPANIONS`)."""
_COMPANIONS = ("model.", "pytorch_model.", "optim", "sched", "rng_state", "random_states", "scaler", "train")
_STEP_WORDS = ("step", "iter(?:ation)?", "ckpt|checkpoint", "epoch")
MOST_STEPS = 10**12
"""Steps have at most 12 digits, as their folders in the store do."""


@dataclass(frozen=True)
class CheckpointFile:
    """A checkpoint as it lies on the disk, or behind a URL. `step` None means: a key inside, the name, or nothing tells it.

    `path` is the file, or the folder where it takes several; `files` are those that hold the weights. Behind a URL
    they are of type `RemotePath`, which has as many of a path's manners as are needed here.
    """

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
    missing_steps: list[int] = field(default_factory=list)
    """Steps that a regular series leaves out, before the selection."""


def natural_key(text: str) -> list[Any]:
    """Sorts numbers inside names as numbers: step-9 before step-10."""
    parts: list[Any] = re.split(r"(\d+)", text)
    parts[1::2] = [int(part) for part in parts[1::2]]
    return parts


def split_runs(source: RunSource, folder: Path) -> list[tuple[RunSource, list[CheckpointFile]]]:
    """The runs that `source` stands for, in natural order, each with its checkpoints.

    Without a `run` key that is `source` itself. With one, a checkpoint belongs to the run `<name>-<value>`, where
    the value is what the group matches in its path, relative to `folder` where it lies below. Raises
    ConfigurationError where a file does not match or the name is not allowed, and as `find_checkpoints` does.
    """
    files = find_checkpoints(source, folder)
    if source.run is None:
        return [(source, files)]
    by_name: dict[str, list[CheckpointFile]] = defaultdict(list)
    for item in files:
        place = item.path.relative_to(folder) if item.path.is_relative_to(folder) else item.path
        match = re.search(source.run, place.as_posix())
        if match is None or match.group(1) is None:
            raise ConfigurationError(
                f"run {source.name!r}: the `run` regex {source.run!r} finds nothing in {place}. Widen it, or narrow "
                f"{source.checkpoints!r}."
            )
        name = checked_name(f"{source.name}-{match.group(1)}", "run")
        by_name[name].append(replace(item, run=name))
    return [
        (source.model_copy(update={"name": name, "run": None}), by_name[name])
        for name in sorted(by_name, key=natural_key)
    ]


def find_checkpoints(source: RunSource, folder: Path) -> list[CheckpointFile]:
    """All checkpoints of `source` in natural order, before steps are settled and a selection is made.

    Raises ConfigurationError where nothing matches (unless `allow_empty`) or a manifest is wrong.
    """
    place = local_or_url(source.checkpoints, folder)
    try:
        found = _listed(source, place)
    except OSError as error:
        raise ConfigurationError(
            f"run {source.name!r}: {error.filename or place} cannot be listed: {error.strerror or error}."
        ) from None
    if not found and not source.allow_empty:
        raise ConfigurationError(
            f"run {source.name!r}: no checkpoint matches {place}. Check the path, or set `allow_empty: true`."
        )
    if source.only is not None:
        wanted = set(json.loads(Path(source.only).read_text(encoding="utf-8")))
        found = [item for item in found if str(item.path) in wanted]
    return found


def _listed(source: RunSource, pattern: Path | str) -> list[CheckpointFile]:
    place, matches = _candidates(pattern)
    is_list = place.suffix in (".csv", ".json", ".yaml", ".yml") and not place.name.endswith(_INDEX)
    if matches is None and is_list and place.is_file():
        return _from_manifest(source.name, place)
    single = _recognise(source.name, place, by_content=True) if matches is None and place.exists() else None
    if single is not None:
        found = [single]
    else:
        is_folder = matches is None and place.is_dir()
        names = place.iterdir() if is_folder else matches or ()
        candidates = sorted(_without_loops(names), key=lambda path: natural_key(path.as_posix()))
        known = (_recognise(source.name, path, by_content=not is_folder) for path in candidates)
        found = _without_parts([item for item in known if item is not None])
    return [replace(item, step=_step_by_regex(source, item, place)) for item in found]


def _candidates(pattern: Path | str) -> tuple[Any, list[Any] | None]:
    """The one place that `pattern` names, or the folder above a glob and what it matches; URLs are listed once."""
    if isinstance(pattern, str):
        return matching(pattern) if glob.has_magic(pattern) else (listed_path(pattern), None)
    if pattern.exists() or not glob.has_magic(str(pattern)):
        return pattern, None
    return _fixed_part(pattern), [Path(name) for name in glob.glob(str(pattern), recursive=True)]


def settle(source: RunSource, files: Sequence[CheckpointFile], facts: Mapping[Path, Mapping[str, Any]]) -> Listing:
    """Give every checkpoint its step, put them in order and select.

    `facts` are what reading the files told (``inner_step``, ``weights_digest``, ``status``). The step is the first
    that holds: manifest or `step` regex, a key inside, digits in the name, 0 for a single file. Raises
    ConfigurationError where two different files claim one step.
    """
    listing = Listing()
    by_step: dict[int, list[CheckpointFile]] = defaultdict(list)
    for item in files:
        step = item.step
        if step is None:
            step = facts.get(item.path, {}).get("inner_step")
        if step is None:
            step = step_in_name(item)
        if step is None and len(files) == 1:
            step = 0
        if step is None or not 0 <= step < MOST_STEPS:
            listing.stepless.append(item)
        else:
            by_step[int(step)].append(replace(item, step=int(step)))
    for step in sorted(by_step):
        first, *others = by_step[step]
        for other in others:
            digests = [facts.get(item.path, {}).get("weights_digest") for item in (first, other)]
            if digests[0] is None or digests[0] != digests[1]:
                names = [item.path.name for item in (first, other)]
                shown = names if names[0] != names[1] else [str(item.path) for item in (first, other)]
                raise ConfigurationError(
                    f"run {source.name!r}: {shown[0]} and {shown[1]} both claim step {step} and "
                    "differ. Give a `step` regex or a manifest, or remove one."
                )
            listing.duplicates.append(other)
        listing.checkpoints.append(first)
    steps = [item.step for item in listing.checkpoints if item.step is not None]
    listing.missing_steps = missing_steps(steps)
    chosen = selected_steps(steps, source.select)
    listing.unselected = [item for item in listing.checkpoints if item.step not in chosen]
    listing.checkpoints = [item for item in listing.checkpoints if item.step in chosen]
    return listing


def missing_steps(steps: Sequence[int]) -> list[int]:
    """The steps that a regular series leaves out.

    The stride is the commonest difference between neighbours, where it occurs three times at least. Between the
    first and the last pair that far apart, every stride that no checkpoint marks is a gap, unless that would be
    half of them: then the series is not regular. Log-spaced steps before the regular stretch are no gaps.
    """
    differences = [after - before for before, after in itertools.pairwise(steps)]
    counts = Counter(differences)
    stride = min(counts, key=lambda length: (-counts[length], length), default=0)
    if counts[stride] < 3:
        return []
    places = [place for place, length in enumerate(differences) if length == stride]
    start, end = steps[places[0]], steps[places[-1] + 1]
    present = set(steps)
    expected = (end - start) // stride + 1
    held = sum((step - start) % stride == 0 for step in present if start <= step <= end)
    if (end - start) % stride or expected >= 2 * held:
        return []
    return [step for step in range(start, end + 1, stride) if step not in present]


def step_in_name(item: CheckpointFile) -> int | None:
    """The digits after `step`, `iter`, `ckpt`, `checkpoint` or `epoch` in the name of the file.

    A folder that is called so and no more (`step-500/weights.pt`) tells it too.
    """
    for name in (item.path.name, item.files[0].name, item.path.parent.name):
        whole = "" if name != item.path.parent.name else "^"
        for word in _STEP_WORDS:
            pattern = rf"{whole}(?:{word})s?[-_=.]?(\d{{1,12}})(?!\d){'$' if whole else ''}"
            if match := re.findall(pattern, name, re.IGNORECASE):
                return int(match[-1])
    return None


def selected_unread(source: RunSource, files: Sequence[CheckpointFile]) -> list[CheckpointFile] | None:
    """Those of `files` that `source` selects, in the order of their steps, as far as can be told without reading them.

    The steps are those of the manifest, the regular expression or the names; None where some file tells none.
    """
    steps = {item.path: item.step if item.step is not None else step_in_name(item) for item in files}
    told = [step for step in steps.values() if step is not None]
    if len(told) < len(steps):
        return None
    chosen = selected_steps(sorted(set(told)), source.select)
    return sorted((item for item in files if steps[item.path] in chosen), key=lambda item: steps[item.path] or 0)


def selected_steps(steps: Sequence[int], select: SelectSpec) -> set[int]:
    """Those of the ascending `steps` that `select` chooses."""
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


def _step_by_regex(source: RunSource, item: CheckpointFile, root: Path) -> int | None:
    if source.step is None:
        return None
    below = item.path.relative_to(root) if item.path.is_relative_to(root) else item.path
    match = re.search(source.step, item.path.name) or re.search(source.step, below.as_posix())
    try:
        return int(match.group(1)) if match and match.group(1) is not None else None
    except ValueError:
        raise ConfigurationError(
            f"run {source.name!r}: the group of `step` {source.step!r} matches {match and match.group(1)!r} in "
            f"{item.path.name}; expected digits."
        ) from None


def _fixed_part(place: Path) -> Path:
    """The folder above everything that the pattern `place` can match."""
    while glob.has_magic(str(place)):
        place = place.parent
    return place


def _without_loops(paths: Iterable[Path]) -> list[Path]:
    """`paths`, each once: links of folders that lead back up would list a file many times over."""
    seen: dict[tuple[Path, str], Path] = {}
    for path in sorted(paths, key=lambda path: (len(path.parts), path)):
        try:
            seen.setdefault((path.parent.resolve(), path.name), path)
        except (OSError, RuntimeError):
            continue
    return list(seen.values())


def _without_parts(found: list[CheckpointFile]) -> list[CheckpointFile]:
    """`found` without the files that belong to a checkpoint that is a folder."""
    folders = {item.path for item in found if item.path.is_dir()}
    kept: dict[Path, CheckpointFile] = {}
    for item in found:
        if item.path in folders or not folders & set(item.path.parents):
            kept.setdefault(item.path, item)
    return list(kept.values())


def _is_distributed(path: Path) -> bool:
    return path.is_dir() and (path / ".metadata").exists()


def _recognise(run: str, path: Path, by_content: bool = False) -> CheckpointFile | None:
    """The checkpoint at `path`; None where it is none, hidden, or still being written."""
    name = path.name.lower()
    if name.startswith((".", "tmp-")) or name.endswith(_UNFINISHED):
        return None
    if name.endswith(_INDEX) and path.is_file():
        whole = _recognise_folder(run, path.parent)
        if whole is None or whole.kind != "safetensors_sharded":
            raise ConfigurationError(
                f"run {run!r}: {path.parent} holds {path.name} and other checkpoints; put each sharded checkpoint "
                "into a folder of its own."
            )
        return whole
    if path.is_dir():
        return _recognise_folder(run, path)
    kind = _SUFFIXES.get(path.suffix.lower()) or (_kind_by_content(path) if by_content else None)
    return CheckpointFile(run, None, path, kind, (path,)) if kind else None


def _recognise_folder(run: str, path: Path) -> CheckpointFile | None:
    if _is_distributed(path):
        return CheckpointFile(run, None, path, "distributed", tuple(sorted(path.iterdir())))
    weights = [item for item in sorted(path.iterdir()) if item.suffix.lower() in _SUFFIXES]
    indices = sorted(path.glob(f"*{_INDEX}"))
    if len(indices) == 1:
        sharded = _sharded(run, indices[0])
        sound = len(sharded.files) > 1 and all(part.exists() for part in sharded.files)
        # Beside an index that cannot be believed, everything may be a shard: reading it says what is wrong.
        weights = [item for item in weights if sound and item not in sharded.files]
    others = [item for item in weights if not item.name.startswith(_COMPANIONS)]
    if len(indices) == 1 and not others:
        return sharded
    whole = next((item for item in weights if item.name in _WHOLE and item.is_file()), None)
    if whole is not None and not others:
        return CheckpointFile(run, None, path, _SUFFIXES[whole.suffix], (whole,))
    # A folder with the name of a file is let through, so that reading it can say what is wrong with it.
    kind = _SUFFIXES.get(path.suffix.lower())
    return CheckpointFile(run, None, path, kind, (path,)) if kind and not weights else None


def _sharded(run: str, index: Path) -> CheckpointFile:
    """The checkpoint of `index`, known by its folder, so that a change of any shard is seen."""
    try:
        shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        files = [index.parent / name for name in shards if Path(name).name == name]
    except (ValueError, KeyError, OSError, AttributeError, TypeError, RecursionError):
        files = []  # reading the checkpoint says what is wrong with its index
    return CheckpointFile(run, None, index.parent, "safetensors_sharded", (index, *files))


def _kind_by_content(path: Path) -> Kind | None:
    """What a file without a known ending is, by its first bytes."""
    try:
        if not path.is_file():
            return None
        if isinstance(path, Path):
            with open(path, "rb") as stream:
                start = stream.read(10)
        else:
            start = path.read_start(10)
    except OSError:
        return None
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= 100_000_000:
        return "safetensors"
    return "torch" if start.startswith((b"PK\x03\x04", b"\x80\x02\x8a\x0a\x6c\xfc")) else None


def _from_manifest(run: str, path: Path) -> list[CheckpointFile]:
    found = []
    for place, step in _read_manifest(path):
        item = _recognise(run, place, by_content=True)
        if item is None:
            what = "is no checkpoint of a known kind" if place.exists() else "does not exist"
            raise ConfigurationError(f"manifest {path}: {place} {what}.")
        found.append(replace(item, step=step))
    return found


def _read_manifest(path: Path) -> list[tuple[Path, int]]:
    """(file, step) pairs of a CSV with columns path and step, or a JSON or YAML list of such mappings."""
    try:
        if path.suffix == ".csv":
            text = path.read_bytes().decode("utf-8-sig")
            entries: Any = list(csv.DictReader(io.StringIO(text, newline="")))
        else:
            text = path.read_text(encoding="utf-8")
            entries = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        return [(_beside(path, str(entry["path"])), _whole_number(entry["step"])) for entry in entries or ()]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, csv.Error, yaml.YAMLError) as error:
        raise ConfigurationError(
            f"manifest {path} cannot be read ({error!r}); expected entries with `path` and `step`."
        ) from None


def _beside(path: Path, entry: str) -> Any:
    return listed_path(entry) if is_url(entry) else path.parent / entry


def _whole_number(value: Any) -> int:
    step = int(value)
    if isinstance(value, bool) or (isinstance(value, float) and value != step) or not 0 <= step < MOST_STEPS:
        raise ValueError(f"step {value!r} is no whole number between 0 and {MOST_STEPS:,}")
    return step
