"""The `capture:` key: what is kept of a layer's output."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

CAPTURE_VERSION = 3
Reduction = Literal["full", "pooled", "max", "flat", "last", "cls", "projection"]
Statistic = Literal["moments", "zeros", "histogram", "top", "covariance", "class_mean"]
DEFAULT_STATISTICS: tuple[Statistic, ...] = ("moments", "zeros", "histogram", "top")


class CaptureSpec(BaseModel):
    """Reductions to keep, how they are stored, and what is accumulated on the way."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keep: tuple[Reduction, ...] = ("pooled",)
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """bfloat16 is stored as its 16-bit pattern, with an attribute that says so."""
    batch_size: int = Field(default=256, ge=1)
    codec: Literal["zstd", "none"] = "zstd"
    axes: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Names of the axes of a layer's output, `sample` among them, by layer pattern: overrides what is guessed."""
    projection: int = Field(default=64, ge=1)
    """Width of the seeded random projection."""
    statistics: tuple[Statistic, ...] = DEFAULT_STATISTICS
    """What is accumulated without being stored first; `true` stands for the default, `false` for nothing."""
    histogram_bins: int = Field(default=64, ge=4)
    histogram_positions: int = Field(default=16, ge=1)
    """Positions of each map that enter the histogram, drawn once from a seed."""
    covariance_limit: int = Field(default=1024, ge=1)
    """Layers with more units keep no covariance."""

    @field_validator("statistics", mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return DEFAULT_STATISTICS if value else ()
        return value

    @field_validator("axes")
    @classmethod
    def _axes_have_a_sample(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for pattern, names in value.items():
            if names.count("sample") != 1 or len(set(names)) != len(names):
                raise ValueError(f"axes of {pattern!r} must name each axis once, and one of them `sample`")
        return value
