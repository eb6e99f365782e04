"""The `capture:` key: what is kept of a layer's output."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

CAPTURE_VERSION = 1
Reduction = Literal["full", "pooled", "max", "flat", "last", "cls", "projection"]


class CaptureSpec(BaseModel):
    """Reductions to keep, how they are stored, and what is accumulated on the way."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keep: tuple[Reduction, ...] = ("pooled",)
    dtype: Literal["float32", "float16"] = "float32"
    batch_size: int = Field(default=256, ge=1)
    codec: Literal["zstd", "none"] = "zstd"
    projection: int = Field(default=64, ge=1)
    """Width of the seeded random projection."""
    statistics: bool = True
    histogram_bins: int = Field(default=64, ge=4)
    histogram_positions: int = Field(default=16, ge=1)
    """Positions of each map that enter the histogram, drawn once from a seed."""
