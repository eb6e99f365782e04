"""Digests: SHA-256 where identity matters, xxh3-128 where only damage must be seen."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

_BLOCK = 1 << 20
_SEAL_START = len('{\n "checksum": "')
_SEAL_END = _SEAL_START + 32 + 2


def canonical_json(value: Any) -> str:
    """`value` as JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def identity_of(parts: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of JSON-like `parts`; what decides whether a stored result is still the right one."""
    return hashlib.sha256(canonical_json(parts).encode()).hexdigest()


def sealed(content: Mapping[str, Any]) -> bytes:
    """`content` as a JSON object whose first key, `checksum`, is the xxh3-128 of all that follows it."""
    body = json.dumps(content, sort_keys=True, indent=1)
    return f'{{\n "checksum": "{xxhash.xxh3_128_hexdigest(body.encode())}",{body[1:]}'.encode()


def unsealed(data: bytes) -> dict[str, Any]:
    """The content of what `sealed` wrote. Raises ValueError where a single byte differs."""
    if data[:_SEAL_START] != b'{\n "checksum": "' or data[_SEAL_END - 2 : _SEAL_END] != b'",':
        raise ValueError("there is no checksum at its beginning")
    body = b"{" + data[_SEAL_END:]
    if xxhash.xxh3_128_hexdigest(body).encode() != data[_SEAL_START : _SEAL_END - 2]:
        raise ValueError("its bytes differ from their checksum")
    return dict(json.loads(body))


def array_digest(array: np.ndarray) -> str:
    """SHA-256 (hex) over dtype, shape and the C-order little-endian bytes of `array`."""
    array = np.ascontiguousarray(array)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    digest = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def file_checksum(path: Path) -> str:
    """xxh3-128 (hex) of the bytes of `path`."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
