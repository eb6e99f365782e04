"""How the bare network is built and called: the `model:` key of a run."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class ModelSpec(BaseModel):
    """A factory `module:name`, its arguments, and how to call what it builds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    factory: str = ""
    """Empty where the file is a program of its own (TorchScript, torch.export)."""
    args: dict[str, Any] = Field(default_factory=dict)
    call: str = "positional"
    """`positional`, `keywords` (inputs are a mapping), or `module:name` of a function (network, inputs)."""
    output: str | None = None
    """Path to the part of the output that counts, such as `logits` or `[0]`."""
    compute_dtype: str = "float32"
