"""The unit of commit: what is computed, stored, and remembered as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from stratascope.storage.names import step_directory

CHECKS = "checks"
"""The analysis under which the outcomes of all checks are filed."""
Scope = Literal["probe", "checkpoint", "series", "cohort", "report"]


@dataclass(frozen=True, order=True)
class Unit:
    """One piece of stored work.

    `analysis` is ``capture`` for what the forward pass keeps; for scope ``probe``, `analysis` is the probe's
    name. `run` is "" and `step` -1 where they do not apply.
    """

    scope: Scope
    run: str
    step: int
    analysis: str

    @property
    def relative_path(self) -> PurePosixPath:
        """Where the unit stands below `manifests/` and, but for `capture` and probes, below `ledger/`."""
        if self.scope == "checkpoint":
            return PurePosixPath(self.run, step_directory(self.step), self.analysis)
        if self.scope == "series":
            return PurePosixPath(self.run, "series", self.analysis)
        return PurePosixPath(f"_{self.scope}", self.analysis)

    @property
    def array_roots(self) -> tuple[PurePosixPath, ...]:
        """The groups below `archive.zarr/` that this unit owns and replaces as a whole."""
        if self.scope == "checkpoint":
            here = PurePosixPath("runs", self.run, step_directory(self.step))
            if self.analysis == "capture":
                return (here / "activations", here / "statistics")
            # The analysis `statistics` reads what the capture streamed there, and owns no arrays of its own.
            return () if self.analysis == "statistics" else (here / self.analysis,)
        if self.analysis == CHECKS:
            return ()
        if self.scope == "series":
            return (PurePosixPath("series", self.run, self.analysis),)
        if self.scope == "cohort":
            return (PurePosixPath("cohort", self.analysis),)
        return (PurePosixPath("probes", self.analysis),) if self.scope == "probe" else ()

    def __str__(self) -> str:
        place = f"{self.run} step {self.step}" if self.scope == "checkpoint" else self.run or self.scope
        return f"{self.analysis} ({place})"
