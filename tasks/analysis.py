"""What an analysis is: its registration, what it hands back, what it draws.

An analysis is one file. It registers itself with a line `ANALYSIS = register(`; `discover` imports the files of the
questions' folders that have one, and third-party entry points. Such files, and what they import, must load quickly: torch,
scikit-learn, openTSNE and matplotlib belong inside their functions. Files of maths beside them may import what they need.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.abc import SourceLoader
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from stratascope.errors import ConfigurationError, did_you_mean
from stratascope.storage.ledger import Row

QUESTIONS = ("intake", "representation", "sequence", "vision")
"""The folders of `tasks/` that hold analyses; one line for each new question."""

Need = Literal["weights", "initial_weights", "activations", "network", "gradients", "trace", "rejected"]


class Options(BaseModel):
    """Base of an analysis's options: unknown keys are refused, values cannot change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Metric:
    """A number that an analysis files: its name, unit, range, what it means and where it comes from."""

    name: str
    unit: str
    range: str
    definition: str
    source: str = ""
    invariances: str = ""


@dataclass(frozen=True)
class NamedArray:
    """An array with a name for each dimension, as it goes into the archive."""

    dims: tuple[str, ...]
    values: np.ndarray
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Findings:
    """What `compute` hands back: rows for the ledger, arrays (by path below the analysis) for the archive."""

    rows: list[Row] = field(default_factory=list)
    arrays: dict[str, NamedArray] = field(default_factory=dict)


@dataclass(frozen=True)
class CaptureRequest:
    """What an analysis wants from the forward pass beyond the configured layers."""

    layers: tuple[str, ...] = ()
    """Patterns; `@last_linear:input` is what enters the last linear layer, `@output` the network's output."""
    keep: tuple[str, ...] = ()
    """Reductions that those layers must have, whatever the configuration keeps."""


@dataclass(frozen=True)
class Figure:
    """A drawing with its words. Either `svg` (one picture), `frames` (one picture a step), `plotly` or `explorer`."""

    key: str
    """Unique within the analysis, made of letters, digits, '.', '_' and '-'."""
    title: str
    shows: str
    reading: str
    caution: str
    """At least one condition evaluated on this run's own data."""
    audience: str
    practitioner: str
    researcher: str
    run: str = ""
    layer: str = ""
    probe: str = ""
    svg: str = ""
    frames: tuple[tuple[int, str], ...] = ()
    """(step, svg) pairs, shown behind a slider over the steps."""
    plotly: Mapping[str, Any] | None = None
    """A Plotly figure as JSON-like data; its own frames are named by step where it slides over steps."""
    explorer: Mapping[str, Any] | None = None
    """Maps to explore, as from `report.explorer.explorer_data`; it slides over its own steps."""
    animation: bytes = b""
    """A GIF of the same, offered for download."""
    table: Mapping[str, list[Any]] = field(default_factory=dict)
    """The raw numbers behind the figure, by column; offered for download."""
    headline: bool = False
    """Whether it stands on the overview and on the run's page too."""


@dataclass(frozen=True)
class Analysis:
    """A registered analysis. See the design, section 4."""

    name: str
    version: int
    scope: Literal["checkpoint", "series", "cohort"]
    title: str
    question: str
    options: type[Options]
    metrics: tuple[Metric, ...]
    compute: Callable[[Any, Any], Findings]
    draw: Callable[[Any, Any], Iterable[Figure]]
    """Best a generator: each figure is written before the next one is drawn."""
    needs: frozenset[Need] = frozenset()
    request: Callable[[Any], CaptureRequest] = lambda options: CaptureRequest()
    foretell: Callable[[Any, Any, Any], str] | None = None
    """(an `ImageNetwork`, a probe, options) → what it files of one checkpoint where that may be much, as a dry run says it."""
    builds_on: tuple[str, ...] = ()
    """Checkpoint analyses whose arrays a series or cohort analysis reads; they run wherever it does."""
    keeps_reference: bool = False
    """Reads what it filed before and leaves it in its place; `audit --rebase` makes it anew."""
    always: bool = False
    """Runs in every audit, whether configured or not."""
    default: bool = False
    """Runs where the configuration has no `analyses` key."""


_REGISTRY: dict[str, Analysis] = {}


def register(analysis: Analysis) -> Analysis:
    """Add `analysis` to the registry and return it."""
    known = _REGISTRY.get(analysis.name)
    if known is not None and known.compute.__module__ != analysis.compute.__module__:
        raise ConfigurationError(
            f"two analyses are called {analysis.name!r}: {known.compute.__module__} and "
            f"{analysis.compute.__module__}; rename one."
        )
    _REGISTRY[analysis.name] = analysis
    return analysis


def discover() -> Mapping[str, Analysis]:
    """All analyses by name, sorted: the built-in folders and the entry-point group `stratascope.analyses`."""
    _import_all()
    return dict(sorted(_REGISTRY.items()))


@cache
def _import_all() -> None:
    """Once for each process: reading the entry points of everything installed takes 40 ms."""
    for question in QUESTIONS:
        package = importlib.import_module(f"stratascope.tasks.{question}")
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            if _registers(module):
                importlib.import_module(module.name)
    for entry in importlib.metadata.entry_points(group="stratascope.analyses"):
        entry.load()


def _registers(module: pkgutil.ModuleInfo) -> bool:
    """Whether a file has the line that registers an analysis; it is read, not run."""
    found = module.module_finder.find_spec(module.name, None)
    if found is None or not isinstance(found.loader, SourceLoader):
        return True
    return (
        re.search(rb"^ANALYSIS\b.*= register\(", found.loader.get_data(str(found.origin)), re.MULTILINE)
        is not None
    )


def named(name: str) -> Analysis:
    """The analysis called `name`. Raises ConfigurationError with the nearest names otherwise."""
    analyses = discover()
    if name not in analyses:
        raise ConfigurationError(
            f"there is no analysis {name!r}; there are {', '.join(analyses)}." + did_you_mean(name, analyses)
        )
    return analyses[name]
