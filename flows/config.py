"""The configuration of an audit: YAML in, checked models out."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from stratascope.errors import ConfigurationError, did_you_mean
from stratascope.flows.cluster_spec import ClusterSpec, LocalWorkers
from stratascope.storage.checkpoint_files import RunSource
from stratascope.storage.names import checked_name
from stratascope.storage.probes import ProbeSpec
from stratascope.tasks.analysis import Options, discover, named
from stratascope.tasks.capture.spec import CaptureSpec
from stratascope.tasks.checks.alerting import AlertSpec
from stratascope.tasks.checks.spec import CheckSpec, refuse_equal_names
from stratascope.tasks.limits import Limits
from stratascope.tasks.report.spec import ReportSpec

LOSSES = ("cross_entropy", "mse", "mae")
WATCHING_SETTLE = 60.0
"""Seconds for which a file must have been left alone, where `watch` is set and `settle` is not given."""


class AuditConfig(BaseModel):
    """Everything that `stratascope audit` needs to know."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: str
    probes: dict[str, ProbeSpec]
    runs: tuple[RunSource, ...] = Field(min_length=1)
    task: Literal["classification", "regression", "tokens", "none"] = "classification"
    loss: str = "cross_entropy"
    """`cross_entropy`, `mse`, `mae`, or `module:name` of a function (outputs, targets)."""
    layers: tuple[str, ...] | None = None
    capture: CaptureSpec = CaptureSpec()
    analyses: dict[str, dict[str, Any]] | None = None
    checks: tuple[CheckSpec, ...] | None = None
    alerts: tuple[AlertSpec, ...] = ()
    """Who is told when a check's state changes."""
    cluster: ClusterSpec = LocalWorkers()
    limits: Limits = Limits()
    report: ReportSpec = ReportSpec()
    settle: float = Field(default=0.0, ge=0)
    """A file that changed within so many seconds is left for the next audit."""
    pruned: Literal["leave", "recompute"] = "leave"
    """Whether arrays that `stratascope prune` freed are computed again where the checkpoint is there."""
    watch: bool = False
    """A training is still writing: `settle` is 60 unless it is given, and no checkpoint need be there yet."""

    @field_validator("loss")
    @classmethod
    def _loss_is_known(cls, loss: str) -> str:
        if loss not in LOSSES and ":" not in loss:
            raise ValueError(
                f"there is no loss {loss!r}; use {', '.join(LOSSES)} or module:name." + did_you_mean(loss, LOSSES)
            )
        return loss

    @field_validator("checks")
    @classmethod
    def _names_differ(cls, checks: tuple[CheckSpec, ...] | None) -> tuple[CheckSpec, ...] | None:
        refuse_equal_names(checks)
        return checks

    @field_validator("alerts")
    @classmethod
    def _alerts_differ(cls, alerts: tuple[AlertSpec, ...]) -> tuple[AlertSpec, ...]:
        if len({alert.name for alert in alerts}) < len(alerts):
            raise ValueError("two alerts have the same name")
        return alerts

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, values: Any) -> Any:
        if isinstance(values, dict) and "probe" in values:
            values = dict(values)
            if "probes" in values:
                raise ValueError("give `probe` or `probes`, not both")
            values["probes"] = {"probe": values.pop("probe")}
        if isinstance(values, dict) and values.get("watch") is True:
            values = {"settle": WATCHING_SETTLE, **values}
            if isinstance(values.get("runs"), list):
                values["runs"] = [
                    {"allow_empty": True, **run} if isinstance(run, dict) else run for run in values["runs"]
                ]
        return values

    @model_validator(mode="after")
    def _names_are_allowed(self) -> Self:
        try:
            for name in self.probes:
                checked_name(name, "probe")
        except ConfigurationError as error:
            raise ValueError(str(error)) from None
        runs = [run.name for run in self.runs]
        if len(set(runs)) < len(runs):
            raise ValueError("two runs have the same name")
        if not self.probes:
            raise ValueError("an audit needs at least one probe")
        return self

    def chosen_analyses(self, file: str = "configuration") -> dict[str, Options]:
        """The options of every analysis that this audit runs, by name. Raises ConfigurationError that names `file`."""
        known = discover()
        wanted = (
            {name: {} for name, analysis in known.items() if analysis.default}
            if self.analyses is None
            else dict(self.analyses)
        )
        wanted |= {name: {} for name, analysis in known.items() if analysis.always and name not in wanted}
        for name in list(wanted):
            wanted |= {below: {} for below in named(name).builds_on if below not in wanted}
        chosen = {}
        for name in sorted(wanted):
            model = named(name).options
            try:
                chosen[name] = model.model_validate(wanted[name] or {})
            except ValidationError as error:
                raise ConfigurationError(explain(error, model, f"{file}: analyses.{name}")) from None
        return chosen


def deployed(path: str, what: str = "config") -> Path:
    """The file that a deployment's parameter `what` names: a worker has no folder of its own to start from.

    Raises ConfigurationError for a relative path.
    """
    if not Path(path).is_absolute():
        raise ConfigurationError(
            f"the deployment's `{what}` is {path!r}: give the absolute path of a configuration file."
        )
    return Path(path)


def load_config(path: Path, overrides: Sequence[str] = (), model: Any = AuditConfig) -> Any:
    """The configuration in the YAML file `path`, with ``key.inner=value`` overrides.

    Raises ConfigurationError that names the file, the place in it, and the nearest known key.
    """
    try:
        content = _yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigurationError(f"{path} is no YAML: {error}.") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} is empty or no mapping: see `stratascope config schema`.")
    for override in overrides:
        _override(content, override)
    try:
        content = _with_environment(content)
        settings = model.model_validate(content)
    except ValidationError as error:
        raise ConfigurationError(explain(error, model, path.name)) from None
    except RecursionError:
        raise ConfigurationError(
            f"{path} is nested too deeply, or contains itself (`&name` and `*name`)."
        ) from None
    if isinstance(settings, AuditConfig):
        settings.chosen_analyses(path.name)
    return settings


def _yaml(text: str) -> Any:
    """What the YAML `text` says. Raises ValueError where it is none."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (AttributeError, LookupError, TypeError, OverflowError) as error:
        # Found by feeding it noise: tags such as `!!timestamp` on a text that is none.
        raise ValueError(f"a value in it cannot be understood ({error})") from None


def _override(content: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator:
        raise ConfigurationError(f"--set {override!r} is not of the form key=value.")
    try:
        value = _yaml(text)
    except ValueError as error:
        raise ConfigurationError(f"--set {override!r}: its value is no YAML: {error}.") from None
    *parents, last = key.split(".")
    place: Any = content
    try:
        for parent in parents:
            place = place[int(parent)] if isinstance(place, list) else place.setdefault(parent, {})
        place[int(last) if isinstance(place, list) else last] = value
    except (AttributeError, IndexError, TypeError, ValueError):
        raise ConfigurationError(
            f"--set {override!r}: there is no place {key!r}; a list takes the number of one of its entries, "
            "and below a single value there is nothing."
        ) from None


def _with_environment(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_environment(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_environment(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)\}", _environment, value)
    return value


def _environment(match: re.Match[str]) -> str:
    if match.group(1) not in os.environ:
        raise ConfigurationError(
            f"${{{match.group(1)}}} is used in the configuration but not set in the environment."
        )
    return os.environ[match.group(1)]


def explain(error: ValidationError, model: Any, where: str) -> str:
    """One sentence for each complaint of pydantic, with the place in the file and the nearest known key."""
    sentences = []
    for item in error.errors():
        known, parts = _place_in_schema(model, item["loc"])
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts).lstrip(".")
        if item["type"] == "extra_forbidden":
            key = str(item["loc"][-1])
            sentences.append(f"{where}: {place}: there is no key {key!r}." + did_you_mean(key, known))
        elif item["type"] == "union_tag_invalid":
            tag, tags = item["ctx"]["tag"], re.findall(r"'(\w+)'", item["ctx"]["expected_tags"])
            sentences.append(
                f"{where}: {place}: there is no kind {tag!r}; there are {', '.join(tags)}."
                + did_you_mean(tag, tags)
            )
        else:
            given = (
                f" (given: {item['input']!r})"
                if item["type"] != "missing" and len(repr(item["input"])) < 60
                else ""
            )
            sentences.append(
                f"{where}: {place or 'configuration'}: {item['msg'].removeprefix('Value error, ')}{given}."
            )
    return "\n".join(sentences)


def _place_in_schema(model: Any, location: tuple[int | str, ...]) -> tuple[list[str], list[int | str]]:
    """The keys that are known beside the last part of `location`, and the parts that stand in the file.

    Both are found through the JSON schema. Pydantic also names the kind that it took, which is no key of the file.
    """
    schema = model.model_json_schema()
    place: Any = schema
    shown: list[int | str] = []
    known: list[str] = []
    for part in location:
        place = _resolved(place, schema)
        tags = place.get("discriminator", {}).get("mapping", {})
        if part in tags:
            place = {"$ref": tags[part]}
            continue
        shown.append(part)
        known = list(place.get("properties", {}))
        if isinstance(part, int):
            place = place.get("items", {})
        else:
            place = place.get("properties", {}).get(part) or place.get("additionalProperties") or {}
    return known, shown


def _resolved(place: Any, schema: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(place, dict):
        return {}
    for option in place.get("anyOf", []):
        if "$ref" in option:
            place = option
    while "$ref" in place:
        place = schema["$defs"][place["$ref"].rsplit("/", 1)[1]]
    return place
