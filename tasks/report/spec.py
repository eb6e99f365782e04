"""The `report:` key of the configuration."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ReportSpec(BaseModel):
    """What the pages may show."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    show_inputs: bool = True
    title: str = "Stratascope audit"
