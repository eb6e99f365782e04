"""Names that come from outside, made safe to stand in a path.

Run, probe, check and study names are restricted; layer, class and sample names are whatever the network
or the data says, and are percent-encoded.
"""

from __future__ import annotations

import hashlib
import re
from urllib.parse import unquote

from stratascope.errors import ConfigurationError

_ALLOWED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_LONGEST = 120  # bytes of a path part; above that a digest stands for the rest


def checked_name(name: str, what: str) -> str:
    """`name` itself, if it may name a `what` (run, probe, check or study).

    Raises ConfigurationError otherwise.
    """
    if not isinstance(name, str) or not _ALLOWED.fullmatch(name):
        raise ConfigurationError(
            f"{what} name {name!r} is not allowed: use 1 to 64 letters, digits, '.', '_' or '-', "
            "beginning with a letter or a digit."
        )
    return name


def encode_path_part(name: str) -> str:
    """`name` as one path part: no separator, no control character, no leading dot, at most 120 bytes.

    The empty name becomes ``%00empty`` (a NUL cannot be in any name, so nothing collides with it).
    Reversible by `decode_path_part` unless the name had to be cut.
    """
    if name == "":
        return "%00empty"
    text = "".join(
        "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))
        if character in "/\\%" or ord(character) < 32 or 127 <= ord(character) < 160
        else character
        for character in name
    )
    if text.startswith("."):
        text = "%2E" + text[1:]
    encoded = text.encode("utf-8", "surrogatepass")
    if len(encoded) <= _LONGEST:
        return text
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    head = encoded[: _LONGEST - 17].decode("utf-8", "ignore")
    return f"{re.sub('%.?$', '', head)}~{digest}"


def decode_path_part(part: str) -> str:
    """The name that `encode_path_part` made `part` of, where it was not cut."""
    return "" if part == "%00empty" else unquote(part)


def step_directory(step: int) -> str:
    """The directory name of a step: 12 digits, so that names sort as numbers do."""
    return f"{step:012d}"
