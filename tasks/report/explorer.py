"""Maps of the same samples side by side, as data for the script that lets a reader explore them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stratascope.storage.probes import Probe
from stratascope.tasks.report.svg import COLOURS

_LONGEST = 32
"""Pixels of the longer side of a sample's picture; of larger ones every second, third … is shown."""


def explorer_data(
    steps: Sequence[int],
    layers: Sequence[str],
    methods: Sequence[str],
    maps: Sequence[Sequence[np.ndarray]],
    ids: Sequence[Any],
    groups: np.ndarray | None,
    names: Mapping[int, str],
    pictures: np.ndarray | None = None,
) -> dict[str, Any]:
    """What `explorer.js` shows: `maps` by layer and method, each (step, sample, 2), of samples called `ids`.

    `groups` (sample,) are their class numbers and `names` what those mean; `pictures` uint8 (sample, y, x, channel).
    Positions are rounded to 1/65,535 of a map's width, which all its steps share.
    """
    return {
        "steps": [int(step) for step in steps], "layers": list(layers), "methods": list(methods),
        "maps": [[_packed(placed) for placed in of_layer] for of_layer in maps],
        "ids": [str(item) for item in ids], "groups": None if groups is None else [int(item) for item in groups],
        "names": {str(group): name for group, name in names.items()}, "colours": list(COLOURS),
        "pictures": None if pictures is None else _sheet(pictures),
    }  # fmt: skip


def _packed(placed: np.ndarray) -> str:
    edge = max(float(np.abs(placed).max()), 1e-300)
    whole = np.round((placed.astype(np.float64) / edge + 1) / 2 * 65535).astype("<u2")
    return base64.b64encode(np.ascontiguousarray(whole).tobytes()).decode()


def sample_pictures(probe: Probe, rows: np.ndarray) -> np.ndarray | None:
    """uint8 (sample, y, x, channel) of `rows` of the probe, small enough to hover; None where they are no images."""
    found: dict[int, np.ndarray] = {}
    size = 512
    ordered = np.sort(rows)
    for start in range(0, len(ordered), size):
        wanted = ordered[start : start + size]
        block = probe.pictures_at(slice(int(wanted[0]), int(wanted[-1]) + 1))
        if block is None:
            return None
        stride = -(-max(block.shape[1:3]) // _LONGEST)
        found |= {int(row): block[row - wanted[0], ::stride, ::stride] for row in wanted}
    return np.stack([found[int(row)] for row in rows])


def _sheet(pictures: np.ndarray) -> dict[str, Any]:
    """All pictures on one sheet, row by row: PNG for grey ones, JPEG for coloured ones, which are many times as large."""
    from PIL import Image

    count, height, width, channels = pictures.shape
    columns = max(1, round(count**0.5))
    rows = -(-count // columns)
    sheet = np.zeros((rows * columns, height, width, channels), np.uint8)
    sheet[:count] = pictures
    sheet = sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    sheet = sheet.reshape(rows * height, columns * width, channels)
    stream = io.BytesIO()
    if channels == 1:
        Image.fromarray(sheet[:, :, 0], "L").save(stream, "PNG", optimize=True)
    else:
        Image.fromarray(sheet, "RGB").save(stream, "JPEG", quality=82, subsampling=0)
    kind = "png" if channels == 1 else "jpeg"
    source = f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
    return {"source": source, "columns": columns, "width": width, "height": height}
