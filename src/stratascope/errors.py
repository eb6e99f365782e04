"""The exceptions that Stratascope raises on purpose.

Each message names the thing at fault, what was expected, and what to do. All of them are built from one
positional string, so that they survive the pickling between worker and driver.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class StratascopeError(Exception):
    """Base of everything that is raised on purpose; shown to the user without a traceback."""


class ConfigurationError(StratascopeError):
    """The configuration asks for something that cannot be (exit code 2)."""


class StoreError(StratascopeError):
    """The store cannot be opened, read or written."""


class NewerStoreError(StoreError):
    """The store was written by a newer version of Stratascope (exit code 2)."""


class DamagedStoreError(StoreError):
    """Stored bytes differ from the digest that was recorded for them."""


class UnreachableError(StoreError):
    """An object store does not answer, refuses, or lacks the bucket (exit code 2 before any work, 3 after that)."""


class CheckpointError(StratascopeError):
    """A checkpoint cannot be read or does not fit its network: it is quarantined."""


class UnsafeCheckpointError(CheckpointError):
    """Reading the checkpoint would run code that it carries."""


class DeferredCheckpointError(CheckpointError):
    """The checkpoint is still being written: it is left for the next audit."""


class ProbeError(StratascopeError):
    """The probe cannot be built, or does not fit the network."""


class CaptureError(StratascopeError):
    """The network cannot be run on the probe, or a layer cannot be captured."""


class AnalysisError(StratascopeError):
    """An analysis could not be computed."""


class LimitError(StratascopeError):
    """A piece of work went beyond its limit of time or memory, or took its process with it."""


class DoesNotApply(StratascopeError):
    """An analysis does not apply to this network, probe or task; the message says why."""


class ClusterError(StratascopeError):
    """The workers do not have what the plan needs, or cannot be reached."""


def nearest_names(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names most like `name`, best first, at most `count`."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.4)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that offers the nearest known names, or an empty string where nothing is near."""
    near = nearest_names(name, known)
    return f" Did you mean {' or '.join(repr(item) for item in near)}?" if near else ""
