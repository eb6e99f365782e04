"""Files that may be compressed, read up to a bound."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from stratascope.errors import ProbeError


def read_bounded(path: Path, at_most: int) -> bytes:
    """The content of `path`, decompressed where its name ends in `.gz`.

    Raises ProbeError where it is missing, damaged or cut short, or holds more than `at_most` bytes: a small
    compressed file may stand for more than fits into the memory.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as stream:
            data = stream.read(at_most + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ProbeError(f"{path} cannot be read ({reason}); fetch it again.") from None
    if len(data) > at_most:
        raise ProbeError(f"{path} holds more than {at_most:,} bytes, which no such file does: it is not read.")
    return data
