"""The configuration of a comparison: which audit, which runs stand on which side, and how they are held together."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from stratascope.errors import ConfigurationError, did_you_mean
from stratascope.flows.config import AuditConfig, load_config
from stratascope.storage.names import checked_name
from stratascope.tasks.comparison.spec import ComparisonSpec, Part, TraditionalSpec


class GroupSpec(Part):
    """One side of a comparison."""

    runs: tuple[str, ...] = Field(min_length=1)
    """Globs of run names: a model trained from several seeds is several runs."""
    label: str | None = None
    """What the page calls it; not given, its name."""


class CompareConfig(ComparisonSpec):
    """Everything that `stratascope compare` needs to know beside the audit that it leans on."""

    audit: str
    """The configuration of the audit that has the runs of both groups; relative to this file."""
    name: str = "comparison"
    """A store holds many comparisons, each under its name."""
    title: str | None = None
    groups: dict[str, GroupSpec] = Field(min_length=2, max_length=2)
    """Two groups; differences are the first less the second."""
    step: Literal["last", "best"] | int = "last"
    """`best` is the step of highest accuracy on the probe, which flatters both."""
    traditional: TraditionalSpec | None = TraditionalSpec()
    """null leaves the traditional methods out."""

    @field_validator("name")
    @classmethod
    def _name_is_allowed(cls, name: str) -> str:
        try:
            return checked_name(name, "comparison")
        except ConfigurationError as error:
            raise ValueError(str(error)) from None

    @model_validator(mode="after")
    def _groups_have_names(self) -> Self:
        try:
            for name in self.groups:
                checked_name(name, "group")
        except ConfigurationError as error:
            raise ValueError(str(error)) from None
        return self

    def spec(self) -> ComparisonSpec:
        """What the work itself must know."""
        return ComparisonSpec(**{name: getattr(self, name) for name in ComparisonSpec.model_fields})


def load_comparison(path: Path, overrides: list[str]) -> tuple[CompareConfig, Path, AuditConfig]:
    """The comparison in the file `path`, the file of its audit, and the audit.

    Raises ConfigurationError that names the file at fault, also for probes that the audit does not have.
    """
    settings: CompareConfig = load_config(path, overrides, CompareConfig)
    place = Path(settings.audit)
    place = place if place.is_absolute() else path.absolute().parent / place
    audit: AuditConfig = load_config(place)
    chosen_probe(settings, audit, path.name)
    training_probe(settings, audit, path.name)
    return settings, place, audit


def chosen_probe(settings: CompareConfig, audit: AuditConfig, file: str = "configuration") -> str:
    """The probe whose samples are compared: as configured, else the first with the role `test`, else the first."""
    if settings.probe is not None:
        return _known(settings.probe, audit, f"{file}: probe")
    tests = [name for name, probe in audit.probes.items() if probe.role == "test"]
    return (tests or list(audit.probes))[0]


def training_probe(settings: CompareConfig, audit: AuditConfig, file: str = "configuration") -> str | None:
    """The probe that traditional methods learn from; None where the audit has none with the role `train`."""
    wanted = settings.traditional.train_probe if settings.traditional is not None else None
    if wanted is not None:
        name = _known(wanted, audit, f"{file}: traditional.train_probe")
        if name == chosen_probe(settings, audit, file):
            raise ConfigurationError(
                f"{file}: traditional.train_probe: {name!r} is also the probe that is compared on: methods would be "
                "tested on what they learned from."
            )
        return name
    return next((name for name, probe in audit.probes.items() if probe.role == "train"), None)


def _known(name: str, audit: AuditConfig, where: str) -> str:
    if name not in audit.probes:
        raise ConfigurationError(
            f"{where}: the audit has no probe {name!r}; it has {', '.join(audit.probes)}."
            + did_you_mean(name, audit.probes)
        )
    return name


def sides(settings: CompareConfig, runs: list[str]) -> dict[str, list[str]]:
    """The runs of each group, in the order of their names.

    Raises ConfigurationError for a glob that matches no run, a run on both sides, and unequal sides that are paired.
    """
    found: dict[str, list[str]] = {}
    for group, spec in settings.groups.items():
        for pattern in spec.runs:
            if not any(fnmatchcase(run, pattern) for run in runs):
                raise ConfigurationError(
                    f"groups.{group}.runs: {pattern!r} matches no run; the audit has {', '.join(sorted(runs))}."
                    + did_you_mean(pattern, runs)
                )
        found[group] = sorted(run for run in runs if any(fnmatchcase(run, pattern) for pattern in spec.runs))
    first, second = found.values()
    both = sorted(set(first) & set(second))
    if both:
        raise ConfigurationError(f"groups: run {both[0]!r} stands on both sides; a run belongs to one.")
    if settings.pair and len(first) != len(second):
        raise ConfigurationError(
            f"pair: the groups have {len(first)} and {len(second)} runs; pairs need equally many."
        )
    return found
