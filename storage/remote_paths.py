"""Paths of what lies behind a URL, with as much of a path's manners as finding and reading checkpoints needs."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from typing import Any

from stratascope.storage.cache import cache_name, held_copy
from stratascope.storage.object_errors import ObjectChangedError
from stratascope.storage.objects import ObjectFacts, is_url, local_or_url, open_folder, split_url, together


class _Listing:
    """Objects by name, so that those below a folder are found at once."""

    def __init__(self, files: dict[str, ObjectFacts]) -> None:
        self.files = files
        self._names = sorted(files)

    def below(self, folder: str) -> list[str]:
        """The names below `folder`, sorted; all where that is ""."""
        if not folder:
            return self._names
        # "0" is the character after "/".
        return self._names[bisect_left(self._names, f"{folder}/") : bisect_left(self._names, f"{folder}0")]

    def is_file(self, name: str) -> bool:
        """Whether `name` is an object, and not the empty one with which some programs make a folder."""
        facts = self.files.get(name)
        return facts is not None and not (facts.size == 0 and self.below(name))


class RemotePath:
    """A file or a folder behind a URL, as one listing saw it.

    `root` is the URL up to the bucket, `name` what follows; nothing is asked of the service again before it is read.
    """

    def __init__(self, root: str, name: str, files: dict[str, ObjectFacts] | _Listing) -> None:
        self.root, self._name = root, name.strip("/")
        self._listing = files if isinstance(files, _Listing) else _Listing(files)
        self._pure = PurePosixPath(self._name)

    @property
    def _files(self) -> dict[str, ObjectFacts]:
        """The facts of the object itself, and of all objects below the folder."""
        names = [self._name, *self._listing.below(self._name)]
        return {name: self._listing.files[name] for name in names if self._listing.is_file(name)}

    # -- what it is called -------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        return self._pure.name or self.root.rsplit("/", 1)[-1]

    @property
    def suffix(self) -> str:
        return self._pure.suffix

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.root, *self._pure.parts)

    @property
    def parent(self) -> RemotePath:
        """The folder above, with only this file or folder known to be in it."""
        above = self._pure.parent.as_posix()
        return RemotePath(self.root, "" if above == "." else above, self._listing)

    @property
    def parents(self) -> list[RemotePath]:
        found = []
        place = self
        while place._name:
            place = place.parent
            found.append(place)
        return found

    def as_posix(self) -> str:
        return str(self)

    def absolute(self) -> RemotePath:
        return self

    resolve = absolute

    def is_relative_to(self, other: Any) -> bool:
        return isinstance(other, RemotePath) and other.root == self.root and self._pure.is_relative_to(other._pure)

    def relative_to(self, other: RemotePath) -> PurePosixPath:
        return self._pure.relative_to(other._pure)

    def __truediv__(self, other: str) -> RemotePath:
        return RemotePath(self.root, f"{self._name}/{other}", self._listing)

    def __str__(self) -> str:
        return f"{self.root}/{self._name}" if self._name else self.root

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(other) == str(self)

    def __hash__(self) -> int:
        return hash(str(self))

    def __lt__(self, other: RemotePath) -> bool:
        return (self.root, self._pure) < (other.root, other._pure)

    def __reduce__(self) -> Any:
        return RemotePath, (self.root, self._name, self._files)

    # -- what the listing saw ----------------------------------------------------------------------------

    def is_file(self) -> bool:
        return self._listing.is_file(self._name)

    def is_dir(self) -> bool:
        return bool(self._listing.below(self._name))

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_symlink(self) -> bool:
        return False

    def iterdir(self) -> list[RemotePath]:
        start = len(self._pure.parts)
        names = {key.split("/")[start] for key in self._listing.below(self._name)}
        return [self / name for name in sorted(names)]

    def glob(self, pattern: str) -> list[RemotePath]:
        """The paths below this one that match; `**` stands for any number of folders."""
        expression = re.compile(_expression(pattern))
        start = len(self._pure.parts)
        names = {
            "/".join(key.split("/")[start:stop])
            for key in self._listing.below(self._name)
            for stop in range(start + 1, key.count("/") + 2)
        }
        return [self / name for name in sorted(names) if expression.fullmatch(name)]

    def state(self) -> list[list[Any]]:
        """URL, size, time of change in nanoseconds and etag of each object, as `file_state` tells of files."""
        return [
            [f"{self.root}/{key}", facts.size, facts.modified_ns, facts.etag]
            for key, facts in sorted(self._files.items())
        ]

    # -- what is in it -----------------------------------------------------------------------------------

    def read_bytes(self) -> bytes:
        """The object's bytes. Raises OSError where it is not there or has changed since it was listed."""
        facts = self._listing.files.get(self._name)
        if facts is None:
            raise FileNotFoundError(2, "no such object", str(self))
        try:
            return open_folder(self.root).read(self._name, etag=facts.etag)[0]
        except ObjectChangedError:
            raise OSError(5, "it changed while it was read", str(self)) from None

    def read_start(self, count: int) -> bytes:
        """Its first `count` bytes at most."""
        size = self._listing.files[self._name].size
        return open_folder(self.root).read(self._name, span=(0, min(count, size)))[0] if size else b""

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    @contextmanager
    def local(self, only: Sequence[RemotePath] = ()) -> Iterator[Path]:
        """A local copy, file or folder (of it perhaps `only` some files), of exactly what was listed.

        It stays while the context is open. Raises FileNotFoundError, ObjectChangedError where something changed since.
        """
        wanted = self._files if not only else {name: facts for item in only for name, facts in item._files.items()}
        parts = [
            f"{name}\n{facts.size}\n{facts.modified_ns}\n{facts.etag}" for name, facts in sorted(wanted.items())
        ]
        with held_copy("files", cache_name(str(self), *parts), partial(self._fetch, wanted)) as folder:
            yield folder / self.name

    def _fetch(self, wanted: dict[str, ObjectFacts], folder: Path) -> None:
        if not wanted:
            raise FileNotFoundError(f"{self} is not there")
        source = open_folder(self.root)
        start = len(self._pure.parts)

        def fetch(key: str) -> None:
            parts = PurePosixPath(key).parts
            if ".." in parts:
                raise FileNotFoundError(f"{self.root}/{key} is no name of a file")
            target = folder.joinpath(self.name, *parts[start:])
            target.parent.mkdir(parents=True, exist_ok=True)
            source.download(key, target, wanted[key])

        together(fetch, wanted)


def listed_path(url: str) -> Any:
    """The `RemotePath` of `url` with everything that a listing finds at or below it. Raises UnreachableError.

    It is typed loosely because it stands wherever the path of a checkpoint or a probe stands.
    """
    root, name = split_url(url)
    source = open_folder(root)
    if root.startswith(("http://", "https://")):  # plain web servers have no listings
        facts = source.head(name)
        return RemotePath(root, name, {name: facts} if facts is not None else {})
    files = source.list(name) if name else source.list()
    if not files and name and (facts := source.head(name)) is not None:
        files = {name: facts}
    return RemotePath(root, name, files)


def matching(pattern: str) -> tuple[Any, list[Any]]:
    """The folder above everything that the glob `pattern` (a URL) can match, and what does."""
    root, name = split_url(pattern)
    parts = name.split("/")
    fixed = next((number for number, part in enumerate(parts) if re.search(r"[*?\[]", part)), len(parts))
    above = listed_path(f"{root}/{'/'.join(parts[:fixed])}".rstrip("/"))
    return above, above.glob("/".join(parts[fixed:]))


@lru_cache(maxsize=256)
def _expression(pattern: str) -> str:
    """The regular expression of a glob, in which `*` and `?` stop at slashes and hidden names need their dot."""
    pieces = []
    parts = pattern.split("/")
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == "**":
            pieces.append(r"(?:[^/]+/)*" if not last else r".*")
            continue
        text = re.sub(
            r"\[!?[^\]]+\]|.",
            lambda match: {"*": "[^/]*", "?": "[^/]"}.get(
                match.group(),
                match.group().replace("[!", "[^") if len(match.group()) > 1 else re.escape(match.group()),
            ),
            part,
        )
        hidden = r"(?!\.)" if part[:1] in ("*", "?", "[") else ""
        pieces.append(hidden + text + ("" if last else "/"))
    return "".join(pieces)


def path_of(place: str, folder: Path) -> Any:
    """`place` as a listed `RemotePath` where it is a URL, else as a path; a relative one is below `folder`."""
    found = local_or_url(place, folder)
    return listed_path(found) if isinstance(found, str) else found


def paths_of(places: Iterable[str]) -> dict[str, Any]:
    """Each of `places`, absolute paths or URLs, as a path; what lies in one folder behind a URL is listed once."""
    found: dict[str, Any] = {place: Path(place) for place in places}
    folders = {place: _folder_of(place) for place in found if is_url(place)}
    listed = dict(zip(set(folders.values()), together(listed_path, set(folders.values())), strict=True))
    for place, folder in folders.items():
        found[place] = listed[folder] if folder == place else listed[folder] / PurePosixPath(place).name
    return found


def _folder_of(url: str) -> str:
    """The folder above `url`; `url` itself where that cannot be listed."""
    root, name = split_url(url)
    if not name or root.startswith(("http://", "https://")):
        return url
    return "/".join((root, *PurePosixPath(name).parts[:-1]))


_kept = ExitStack()


def kept_copy(path: Any) -> Path:
    """`path` itself, or a local copy of what lies behind its URL, which stays as long as this process.

    Raises OSError where it is not there or has changed since it was listed.
    """
    if isinstance(path, Path):
        return path
    try:
        return _kept.enter_context(path.local())
    except ObjectChangedError as error:
        raise OSError(f"{error} while it was read") from None


@contextmanager
def local_copies(path: Any, files: Sequence[Any]) -> Iterator[tuple[Path, tuple[Path, ...]]]:
    """`path` and its `files` themselves, or local copies of them that stay while the context is open.

    Raises FileNotFoundError, ObjectChangedError where one is not (any more) what was listed.
    """
    if isinstance(path, Path):
        yield path, tuple(files)
        return
    with path.local(files) as copy:
        yield copy, tuple(copy if item == path else copy / item.relative_to(path) for item in files)
