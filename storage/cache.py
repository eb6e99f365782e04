"""Local copies of what lies behind a URL: bounded, shared by the processes of one machine, never trusted blindly."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stratascope.errors import StoreError
from stratascope.storage.objects import number_from_environment

DEFAULT_GIB = 20.0


def cache_folder() -> Path:
    """`STRATASCOPE_CACHE`, or a folder in the user's cache."""
    configured = os.environ.get("STRATASCOPE_CACHE")
    if configured:
        return Path(configured).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stratascope" / "objects"


def cache_limit() -> int:
    """Bytes that the local copies may take together: `STRATASCOPE_CACHE_GIB`, by default 20 GiB."""
    return int(number_from_environment("STRATASCOPE_CACHE_GIB", DEFAULT_GIB) * 2**30)


def cache_name(*parts: str) -> str:
    """A folder's name for what `parts` identify."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:40]


@contextmanager
def held_copy(kind: str, name: str, fill: Callable[[Path], None]) -> Iterator[Path]:
    """The folder `name` among the copies of `kind`, made by `fill` where it is not there; it stays while it is held.

    Raises StoreError where the local disk cannot take it, and what `fill` raises.
    """
    folder = cache_folder() / kind
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / f"{name}.lock", "w")  # noqa: SIM115 - held until the caller is done
    except OSError as error:
        raise StoreError(f"{folder} cannot be written ({error.strerror}): set STRATASCOPE_CACHE.") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        target = folder / name
        if not target.is_dir():
            _fill(folder, target, fill)
        fcntl.flock(lock, fcntl.LOCK_SH)
        if not target.is_dir():  # thrown out between the two locks
            fcntl.flock(lock, fcntl.LOCK_EX)
            _fill(folder, target, fill)
        os.utime(target)
        yield target


def _fill(folder: Path, target: Path, fill: Callable[[Path], None]) -> None:
    trim(folder)
    temporary = folder / f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}"
    temporary.mkdir()
    try:
        fill(temporary)
        os.replace(temporary, target)
    except OSError as error:
        if error.filename is None and error.errno is None:
            raise
        raise StoreError(
            f"{folder} cannot be written ({error.strerror}): make room, or set STRATASCOPE_CACHE."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def trim(folder: Path, limit: int | None = None) -> list[str]:
    """Remove the copies in `folder` that were used longest ago until the rest fits `limit`; those in use stay."""
    entries = []
    for path in folder.iterdir() if folder.is_dir() else ():
        try:
            if path.is_dir():
                owner = path.name.split(".")[2] if path.name.startswith(".") else ""
                if owner and not (owner.isdigit() and Path(f"/proc/{owner}").exists()):
                    shutil.rmtree(path, ignore_errors=True)
                elif not owner:
                    entries.append((path.stat().st_mtime_ns, _size(path), path))
        except OSError:
            continue
    total = sum(size for _, size, _ in entries)
    removed = []
    for _, size, path in sorted(entries):
        if total <= (cache_limit() if limit is None else limit):
            break
        if _throw_out(path):
            removed.append(path.name)
            total -= size
    return removed


def _throw_out(path: Path) -> bool:
    with open(path.with_name(f"{path.name}.lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        shutil.rmtree(path, ignore_errors=True)
        return True


def _size(folder: Path) -> int:
    return sum(item.stat().st_size for item in folder.rglob("*") if item.is_file())
