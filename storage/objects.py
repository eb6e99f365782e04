"""Objects below a URL: the few operations that stores, checkpoints and probes there need.

`s3`, `gs`, `az` and `http` go through obstore, whose credentials come from the environment; any other scheme goes
through fsspec. Every failure that can pass is tried again; one that stays says which URL it was and what to set.
"""

from __future__ import annotations

import os
import random
import re
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from stratascope.errors import ConfigurationError
from stratascope.storage.object_errors import ObjectChangedError, explained, is_final

Value = TypeVar("Value")
Item = TypeVar("Item")

AT_ONCE = 16
"""So many requests are under way at a time; each waits for the network, not for a core."""
RANGE_BYTES = 16 << 20
"""Larger objects are fetched in ranges of this size, several at a time."""
ATTEMPTS = 3
"""A request that failed for a reason that can pass, after the client's own retries, is made so many times."""
_OBSTORE = frozenset({"s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss", "http", "https"})
_ENVIRONMENT = ("AWS_", "AZURE_", "GOOGLE_", "STRATASCOPE_")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


@dataclass(frozen=True)
class ObjectFacts:
    """What the listing tells of one object. `etag` changes with the content; it is "" where the service has none."""

    size: int
    etag: str
    modified_ns: int


def is_url(place: str | Path) -> bool:
    """Whether `place` is a URL and no path of the local disk; `file://` is a path."""
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", place) if isinstance(place, str) else None
    return match is not None and match.group(1).lower() != "file"


def local_or_url(place: str, folder: Path) -> Path | str:
    """`place` as it is where it is a URL, else as a path; a relative one is below `folder`."""
    if is_url(place):
        return place.rstrip("/")
    path = Path(place.removeprefix("file://")).expanduser()
    return path if path.is_absolute() else folder / path


def together(work: Callable[[Item], Value], items: Iterable[Item], at_once: int = AT_ONCE) -> list[Value]:
    """`work` of each of `items`, in order, several at a time; the first failure is raised when all have ended."""
    listed = list(items)
    if len(listed) < 2:
        return [work(item) for item in listed]
    with ThreadPoolExecutor(min(at_once, len(listed))) as pool:
        return list(pool.map(work, listed))


class ObjectFolder(ABC):
    """All objects below a URL, by their names relative to it."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.requests: Counter[str] = Counter()
        """How many requests of each kind were made, for those who measure."""
        self._counting = threading.Lock()

    # -- what a service must do --------------------------------------------------------------------------

    @abstractmethod
    def _list(self, prefix: str) -> dict[str, ObjectFacts]: ...

    @abstractmethod
    def _head(self, name: str) -> ObjectFacts: ...

    @abstractmethod
    def _read(self, name: str, etag: str, span: tuple[int, int] | None) -> tuple[bytes, ObjectFacts]: ...

    @abstractmethod
    def _write(self, name: str, data: bytes, only_new: bool, replacing: str) -> str: ...

    @abstractmethod
    def _delete(self, names: list[str]) -> None: ...

    # -- what callers use --------------------------------------------------------------------------------

    def list(self, prefix: str = "") -> dict[str, ObjectFacts]:
        """All objects whose names begin with the folder `prefix` ("a/b"), sorted by name."""
        found = self._insist("list", prefix, lambda: self._list(prefix.strip("/")))
        return {name: found[name] for name in sorted(found)}

    def head(self, name: str) -> ObjectFacts | None:
        """What is known of the object `name`; None where there is none."""
        try:
            return self._insist("head", name, lambda: self._head(name))
        except FileNotFoundError:
            return None

    def read(self, name: str, *, etag: str = "", span: tuple[int, int] | None = None) -> tuple[bytes, ObjectFacts]:
        """The bytes of `name`, or those from `span[0]` to before `span[1]`, and its facts.

        Raises FileNotFoundError, and ObjectChangedError where it has another `etag` than the one that is wanted.
        """
        return self._insist("get", name, lambda: self._read(name, etag, span))

    def write(self, name: str, data: bytes, *, only_new: bool = False, replacing: str = "") -> str:
        """Write `data` whole or not at all; returns the new etag.

        Raises FileExistsError where `only_new` is set and there is another one, ObjectChangedError where the one
        there is not `replacing` any more. What an answer that got lost has written already is no failure.
        """
        try:
            return self._insist("put", name, lambda: self._write(name, data, only_new, replacing))
        except (FileExistsError, ObjectChangedError):
            try:
                found, facts = self.read(name)
            except FileNotFoundError:
                raise ObjectChangedError(f"{self.url}/{name} has gone") from None
            if found == data:
                return facts.etag
            raise

    def delete(self, names: Iterable[str]) -> None:
        """Remove the objects; those that are not there are none."""
        listed = list(names)
        if listed:
            self._insist("delete", listed[0], lambda: self._delete(listed))

    def download(self, name: str, target: Path, facts: ObjectFacts | None = None) -> ObjectFacts:
        """Write the object to the file `target`, in ranges where it is large; returns its facts.

        Raises FileNotFoundError, and ObjectChangedError where it is not (any more) what `facts` say.
        """
        if facts is None or facts.size <= RANGE_BYTES:
            data, found = self.read(name, etag=facts.etag if facts else "")
            if facts is not None and len(data) != facts.size:
                raise ObjectChangedError(f"{self.url}/{name} has {len(data):,} bytes instead of {facts.size:,}")
            target.write_bytes(data)
            return found
        whole = facts
        with open(target, "wb") as stream:
            stream.truncate(whole.size)

            def fetch(start: int) -> None:
                span = (start, min(start + RANGE_BYTES, whole.size))
                data, _ = self.read(name, etag=whole.etag, span=span)
                os.pwrite(stream.fileno(), data, start)

            together(fetch, range(0, whole.size, RANGE_BYTES))
        return whole

    def _insist(self, kind: str, name: str, work: Callable[[], Value]) -> Value:
        """The result of `work`, tried again while it fails for a reason that can pass."""
        for attempt in range(1, ATTEMPTS + 1):
            with self._counting:
                self.requests[kind] += 1
            try:
                return work()
            except (FileExistsError, ObjectChangedError, ConfigurationError):
                raise
            except FileNotFoundError as error:
                if is_final(error):  # there is not even a bucket
                    raise explained(f"{self.url}/{name}".rstrip("/"), kind, error) from None
                raise
            except Exception as error:
                if attempt == ATTEMPTS or is_final(error):
                    raise explained(f"{self.url}/{name}".rstrip("/"), kind, error) from None
            time.sleep(random.uniform(0.5, 1.0) * 2**attempt / 2)
        raise AssertionError("unreachable")


class ObstoreFolder(ObjectFolder):
    """Objects of a service that obstore speaks with."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        try:
            import obstore.store
        except ImportError:
            raise ConfigurationError(
                f"{url} needs obstore, which is not installed: pip install 'stratascope[s3]'."
            ) from None
        try:
            self.store: Any = obstore.store.from_url(self.url, **connection_options(self.url))
        except Exception as error:
            raise explained(self.url, "open", error) from None

    def _list(self, prefix: str) -> dict[str, ObjectFacts]:
        found = {}
        pages = 0
        for page in self.store.list(prefix or None, chunk_size=1000):
            found.update({item["path"]: _facts(item) for item in page})
            pages += 1
        with self._counting:
            self.requests["list"] += max(0, pages - 1)
        return found

    def _head(self, name: str) -> ObjectFacts:
        return _facts(self.store.head(name))

    def _read(self, name: str, etag: str, span: tuple[int, int] | None) -> tuple[bytes, ObjectFacts]:
        from obstore.exceptions import PreconditionError

        options: dict[str, Any] = {"range": span} if span is not None else {}
        if etag:
            options["if_match"] = etag
        try:
            answer = self.store.get(name, options=options)
        except PreconditionError:
            raise ObjectChangedError(f"{self.url}/{name} has changed") from None
        except Exception as error:
            if span is not None and any(sign in str(error) for sign in ("416", "InvalidRange")):
                raise ObjectChangedError(f"{self.url}/{name} is shorter than it was") from None
            raise
        data = bytes(answer.bytes())
        facts = _facts(answer.meta)
        expected = facts.size if span is None else min(span[1], facts.size) - span[0]
        if len(data) != expected:
            raise OSError(f"the answer was cut short: {len(data):,} of {expected:,} bytes")
        return data, facts

    def _write(self, name: str, data: bytes, only_new: bool, replacing: str) -> str:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        mode: Any = {"e_tag": replacing} if replacing else "create" if only_new else "overwrite"
        try:
            # Several parts would be several requests, and their etag no digest of the content.
            answer = self.store.put(name, data, mode=mode, use_multipart=len(data) > (1 << 30))
        except AlreadyExistsError:
            raise FileExistsError(f"{self.url}/{name} exists") from None
        except PreconditionError:
            raise ObjectChangedError(f"{self.url}/{name} has changed") from None
        return str(answer["e_tag"] or "")

    def _delete(self, names: list[str]) -> None:
        try:
            self.store.delete(names)
        except FileNotFoundError:
            if len(names) > 1:
                for name in names:
                    self._delete([name])


def _facts(item: Mapping[str, Any]) -> ObjectFacts:
    modified = item["last_modified"]
    return ObjectFacts(int(item["size"]), str(item["e_tag"] or ""), int(modified.timestamp() * 1e9))


def connection_options(url: str) -> dict[str, Any]:
    """What obstore is told beyond its own reading of the environment: time limits, retries, the endpoint."""
    from datetime import timedelta

    seconds = number_from_environment("STRATASCOPE_OBJECT_TIMEOUT", 60.0)
    retries = int(number_from_environment("STRATASCOPE_OBJECT_RETRIES", 4))
    client: dict[str, Any] = {
        "timeout": timedelta(seconds=seconds),
        "read_timeout": timedelta(seconds=min(20.0, seconds)),
        "connect_timeout": timedelta(seconds=min(5.0, seconds)),
    }
    options: dict[str, Any] = {
        "client_options": client,
        "retry_config": {
            "max_retries": retries,
            "retry_timeout": timedelta(seconds=2 * seconds),
            "backoff": {
                "init_backoff": timedelta(seconds=0.2), "max_backoff": timedelta(seconds=5), "base": 2,
            },
        },
    }  # fmt: skip
    scheme = url.split("://", 1)[0].lower()
    endpoint = endpoint_of(url)
    if scheme in ("s3", "s3a"):
        options["config"] = {"endpoint": endpoint} if endpoint else {}
        options["config"]["region"] = os.environ.get(
            "AWS_REGION", os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
        )
    if scheme == "http" or endpoint.startswith("http://"):
        client["allow_http"] = True
    return options


def endpoint_of(url: str) -> str:
    """The service that `url` is asked of where the environment names another than the provider's own; else ""."""
    if not url.startswith(("s3://", "s3a://")):
        return ""
    return next((os.environ[name] for name in _ENDPOINTS if os.environ.get(name)), "")


def number_from_environment(variable: str, default: float) -> float:
    """The number in the environment variable; `default` where it is not set. Raises ConfigurationError."""
    text = os.environ.get(variable, "")
    try:
        number = float(text) if text else default
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e6:
        raise ConfigurationError(f"the environment variable {variable} is {text!r}; expected a number.")
    return number


_open: dict[Any, ObjectFolder] = {}


def open_folder(url: str) -> ObjectFolder:
    """The objects below `url`. Raises ConfigurationError where nothing here can speak with it, UnreachableError."""
    settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith(_ENVIRONMENT)))
    key = (url.rstrip("/"), os.getpid(), settings)
    if key not in _open:
        if url.split("://", 1)[0].lower() in _OBSTORE:
            _open[key] = ObstoreFolder(url)
        else:
            from stratascope.storage.fsspec_objects import FsspecFolder

            _open[key] = FsspecFolder(url)
    return _open[key]


def split_url(url: str) -> tuple[str, str]:
    """The root of `url` (scheme and bucket) and what stands below it."""
    scheme, _, rest = url.partition("://")
    bucket, _, below = rest.partition("/")
    return f"{scheme}://{bucket}", below.strip("/")
