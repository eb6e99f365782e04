"""What in a picture speaks for the network's answer: maps by many methods, for the same samples at every checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from stratascope.errors import ConfigurationError, DoesNotApply, StratascopeError, did_you_mean
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.memory import is_memory_shortage
from stratascope.tasks.vision.attribution_drawing import draw
from stratascope.tasks.vision.attribution_methods import Attributed, AttributionMethod, Explained, method_named
from stratascope.tasks.vision.baselines import BASELINES, Baseline, baseline_of
from stratascope.tasks.vision.chosen_samples import ImageSamples, SampleOptions, chosen_samples, sample_arrays
from stratascope.tasks.vision.targets import Target

DIMENSION = "attribution_sample"
_DEFAULT = ("gradient", "gradient_times_input", "guided_backpropagation", "smooth_grad", "integrated_gradients")
_WITHOUT_BASELINE = ("gradient", "relevance")
"""Families of methods that never look at a baseline: they run where there is none."""


class AttributionOptions(SampleOptions):
    """Which methods, and what they explain. The same samples and the same random numbers serve at every checkpoint."""

    methods: dict[str, dict[str, Any]] = Field(
        default={name: {} for name in _DEFAULT}, min_length=1, validate_default=True
    )
    """A list of names, or settings by name: `{integrated_gradients: {steps: 64, baseline: blur}}`."""
    target: str | int = "label"
    """`label`, `predicted`, the number of an output, or a callable `module:name`."""
    baseline: Baseline = "black"
    """What stands for nothing, where a method's own settings do not name another: `black`, `mean`, `blur`, `zero`."""
    baseline_samples: int = Field(default=16, ge=1)
    """So many samples of the probe with role `train` (of the same probe where there is none) serve where a set is needed."""

    @field_validator("methods", mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        if isinstance(given, str):
            given = (given,)
        return {name: {} for name in given} if isinstance(given, list | tuple) else given

    @field_validator("methods")
    @classmethod
    def _with_their_settings(cls, given: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        try:
            return {name: _settings(method_named(name), wanted or {}) for name, wanted in given.items()}
        except ConfigurationError as error:
            raise ValueError(str(error)) from None

    @field_validator("target")
    @classmethod
    def _is_a_target(cls, wanted: str | int) -> str | int:
        if ":" not in str(wanted):
            try:
                Target.of(wanted)
            except ConfigurationError as error:
                raise ValueError(str(error)) from None
        return wanted


def _settings(method: AttributionMethod, given: Mapping[str, Any]) -> dict[str, Any]:
    """The method's own settings with those that are given in their place. Raises ConfigurationError."""
    known = dict(method.settings)
    for name, value in given.items():
        if name == "baseline" and method.family not in _WITHOUT_BASELINE:
            if value not in BASELINES:
                raise ConfigurationError(
                    f"{method.name}: there is no baseline {value!r}; there are {', '.join(BASELINES)}."
                )
        elif name not in method.settings:
            names = sorted(method.settings)
            raise ConfigurationError(
                f"{method.name} has no setting {name!r}; it has {', '.join(names) or 'none'}."
                + did_you_mean(name, names)
            )
        else:
            _check_kind(method.name, name, value, method.settings[name])
        known[name] = value
    return known


def _check_kind(method: str, name: str, value: Any, default: Any) -> None:
    """A number where the default is one. Raises ConfigurationError."""
    numbers = (int,) if isinstance(default, int) else (int, float)
    if isinstance(default, bool) or not isinstance(default, int | float):
        return
    if isinstance(value, bool) or not isinstance(value, numbers):
        kind = "a whole number" if numbers == (int,) else "a number"
        raise ConfigurationError(f"{method}: `{name}` is {value!r}; it must be {kind}.")


def compute(context: CheckpointContext, options: AttributionOptions) -> Findings:
    """Arrays `<probe>/<method>/map` (attribution_sample, channel, y, x), float32, raw and signed, with what methods file
    beside them; `<probe>/index`, `score` and `predicted` (attribution_sample,); rows by probe and method.
    """
    from stratascope.tasks.vision.image_network import ImageNetwork

    findings = Findings()
    network = ImageNetwork.of(context)
    target = Target.of(options.target, Path(context.subject.folder))
    with network.untouched():
        for name, probe in context.probes.items():
            try:
                samples = chosen_samples(probe, options)
                explained = _question(network, samples, target, options, findings)
            except DoesNotApply as reason:
                findings.rows += [
                    Row(metric.name, probe=name, status="does_not_apply", reason=str(reason))
                    for metric in ANALYSIS.metrics
                ]
                continue
            given = _Baselines(context.probes, samples, options)
            facts = {"target": str(options.target), "seed": options.seed, "weights_digest": context.facts.get("weights_digest", "")}  # fmt: skip
            for method, settings in ((method_named(key), value) for key, value in options.methods.items()):
                asked, found = _answer(method, settings, explained, given, findings, name)
                if found is not None:
                    _file(method, asked, found, facts | {"baseline": given.name(method, settings)}, samples, findings)  # fmt: skip
    return findings


def _question(
    network: Any, samples: ImageSamples, target: Target, options: AttributionOptions, findings: Findings
) -> Explained:
    """What is asked about `samples`; files the outputs asked about, their scores and the network's own answers."""
    import torch

    inputs = torch.from_numpy(samples.inputs)
    outputs = network.outputs_in_batches(inputs, options.batch_size)
    indices = target.indices(outputs, samples.classes)
    scores = target.scores(outputs, indices)
    findings.arrays |= sample_arrays(samples, DIMENSION)
    findings.arrays[f"{samples.probe}/index"] = NamedArray((DIMENSION,), indices.numpy())
    findings.arrays[f"{samples.probe}/score"] = NamedArray((DIMENSION,), scores.float().numpy())
    predicted = Target("predicted").indices(outputs, None)
    findings.arrays[f"{samples.probe}/predicted"] = NamedArray((DIMENSION,), predicted.numpy())
    return Explained(
        network, inputs, indices, target, samples.sample_id, torch.zeros_like(inputs), seed=options.seed,
        batch_size=network.fixed_batch_size or options.batch_size,
    )  # fmt: skip


class _Baselines:
    """The baselines of some samples, made when they are asked for."""

    def __init__(self, probes: Mapping[str, Probe], samples: ImageSamples, options: AttributionOptions) -> None:
        self._probe, self._samples, self._options = probes[samples.probe], samples, options
        trained = [
            probe for probe in probes.values() if probe.role == "train" and not isinstance(probe.inputs, dict)
        ]
        shape = tuple(self._probe.inputs.shape[1:])
        alike = [probe for probe in trained if tuple(probe.inputs.shape[1:]) == shape]
        self._source = alike[0] if alike else self._probe
        self.one = cache(self._one)
        self.several = cache(self._several)

    def name(self, method: AttributionMethod, settings: Mapping[str, Any]) -> str:
        return "" if method.family in _WITHOUT_BASELINE else str(settings.get("baseline", self._options.baseline))

    def _one(self, name: Baseline) -> Any:
        import torch

        return torch.from_numpy(baseline_of(name, self._samples.inputs, self._probe))

    def _several(self) -> Any:
        import torch

        wanted = SampleOptions(samples=self._options.baseline_samples, seed=self._options.seed)
        return torch.from_numpy(chosen_samples(self._source, wanted).inputs)


def _answer(
    method: AttributionMethod, settings: Mapping[str, Any], explained: Explained, given: _Baselines,
    findings: Findings, probe: str,
) -> tuple[Explained, Attributed | None]:  # fmt: skip
    """What `method` says; None where it says nothing, which is filed with the reason. It never stops the others."""
    own = {name: value for name, value in settings.items() if name != "baseline"}
    explained = replace(explained, settings=own)
    try:
        baseline = given.name(method, settings)
        if baseline:
            explained = replace(explained, baseline=given.one(baseline), baselines=given.several())
        return explained, method.compute(explained)
    except DoesNotApply as reason:
        status, why = "does_not_apply", str(reason)
    except StratascopeError:
        raise
    except Exception as error:
        if is_memory_shortage(error) and explained.can_be_asked_less:
            raise
        status, why = "failed", f"{type(error).__name__}: {error}"
    findings.rows += [
        Row(metric, probe=probe, part=part, status=status, reason=why)  # type: ignore[arg-type]
        for metric, part in _metrics_of(method)
    ]
    return explained, None


def _metrics_of(method: AttributionMethod) -> Iterator[tuple[str, str]]:
    """(metric, part) of every row that `method` has."""
    for metric in ("attribution_size", "attribution_zero_fraction"):
        yield metric, f"method={method.name}"
    gap = _gap_of(method)
    if gap:
        for kind in ("absolute", "relative"):
            yield f"attribution_{gap}", f"method={method.name};kind={kind}"


def _gap_of(method: AttributionMethod) -> str:
    """By which name `method` files how far its maps are from adding up; empty where they need not."""
    return "completeness_gap" if method.complete else "conservation_gap" if method.family == "relevance" else ""


def _file(
    method: AttributionMethod, asked: Explained, found: Attributed, facts: Mapping[str, Any], samples: ImageSamples,
    findings: Findings,
) -> None:  # fmt: skip
    place = f"{samples.probe}/{encode_path_part(method.name)}"
    known = dict(facts) | {
        "method": method.name, "formula": method.formula, "settings": json.dumps(dict(asked.settings), sort_keys=True),
        "warnings": list(found.warnings),
    }  # fmt: skip
    maps = np.asarray(found.maps, np.float32)
    findings.arrays[f"{place}/map"] = NamedArray((DIMENSION, "channel", "y", "x"), maps, known)
    for name, values in {**found.numbers, **found.arrays}.items():
        values = np.asarray(values)
        inner = ("y", "x") if values.shape[1:] == maps.shape[2:] else tuple(f"axis_{axis}" for axis in range(1, values.ndim))  # fmt: skip
        findings.arrays[f"{place}/{encode_path_part(name)}"] = NamedArray((DIMENSION, *inner), values)
    findings.rows += list(attribution_rows(samples.probe, method, found, samples.sample_id))


def attribution_rows(
    probe: str, method: AttributionMethod, found: Attributed, sample_id: np.ndarray
) -> Iterator[Row]:
    """How large the maps are, how much of them is zero, and how far they are from adding up.

    `low` and `high` are the smallest and the largest of the samples. `convention` holds the method's warnings, and for
    the share of zeros which maps are zero everywhere. Where a map is not finite all of the method's rows are `failed`.
    """
    broken = ~np.isfinite(found.maps).all((1, 2, 3))
    if broken.any():
        names = ", ".join(str(name) for name in sample_id[broken][:5])
        reason = f"the maps of {broken.sum()} of {len(broken)} samples are not finite: {names}"
        for metric, part in _metrics_of(method):
            yield Row(metric, probe=probe, part=part, status="failed", reason=reason)
        return
    flat = found.maps.reshape(len(found.maps), -1)
    warnings = "; ".join(found.warnings)
    sizes = np.abs(flat).sum(1, dtype=np.float64)
    zeros = (flat == 0).mean(1)
    empty = sample_id[zeros == 1]
    blank = f"zero everywhere: {', '.join(str(name) for name in empty[:8])}{' …' if len(empty) > 8 else ''}"
    values = {
        "attribution_size": (sizes, np.mean, warnings),
        "attribution_zero_fraction": (zeros, np.mean, "; ".join(text for text in (warnings, blank if len(empty) else "") if text)),
    }  # fmt: skip
    part = f"method={method.name}"
    for metric, (numbers, middle, convention) in values.items():
        yield _row(metric, numbers, middle, probe=probe, part=part, estimator="mean", convention=convention)
    gap = _gap_of(method)
    if gap in found.numbers:
        gaps = np.asarray(found.numbers[gap], np.float64)
        sums = found.maps.sum((1, 2, 3), np.float64)
        yield from _gap_rows(f"attribution_{gap}", probe, part, gaps, sums, warnings)


def _gap_rows(
    metric: str, probe: str, part: str, gaps: np.ndarray, sums: np.ndarray, warnings: str
) -> Iterator[Row]:
    shared = {"probe": probe, "estimator": "median", "convention": warnings}
    sizes = np.abs(gaps)
    yield _row(metric, sizes, np.median, part=f"{part};kind=absolute", unit="score", **shared)
    # The gap is the sum less what it should be.
    wanted = np.abs(sums - gaps)
    known = wanted > 0
    if known.any():
        yield _row(
            metric,
            sizes[known] / wanted[known],
            np.median,
            part=f"{part};kind=relative",
            unit="fraction",
            **shared,
        )
    else:
        reason = "what the maps should add up to is zero for every sample"
        yield Row(metric, probe=probe, part=f"{part};kind=relative", status="does_not_apply", reason=reason)


def _row(metric: str, values: np.ndarray, middle: Callable[..., Any], *, estimator: str, **fields: Any) -> Row:
    return Row(
        metric, float(middle(values)), low=float(values.min()), high=float(values.max()), n=len(values),
        estimator=f"{estimator} over samples; low and high are the smallest and the largest", **fields,
    )  # fmt: skip


_ORDER = "order of the samples; the same pictures in another batch size up to rounding"

ANALYSIS = register(
    Analysis(
        name="attribution", version=1, scope="checkpoint", title="Attribution", question="What in a picture speaks for the answer?",
        options=AttributionOptions, compute=compute, draw=draw, needs=frozenset({"network", "gradients"}),
        metrics=(
            Metric("attribution_size", "score", "[0, ∞)", "Sum of the absolute values of a map over channels and pixels, mean over the samples, by `method`. A gradient's is in score by pixel unit, a square's in its square.", "", _ORDER),
            Metric("attribution_zero_fraction", "fraction", "[0, 1]", "Share of a map's values that are exactly zero, mean over the samples, by `method`; `convention` names samples whose map is zero everywhere.", "", _ORDER),
            Metric("attribution_completeness_gap", "score or fraction", "[0, ∞)", "How far the sum of a map is from the difference of scores that it should be, median over the samples, by `method`: in units of the score (`kind=absolute`), and by that difference (`kind=relative`).", "Sundararajan et al. 2017, proposition 1", _ORDER),
            Metric("attribution_conservation_gap", "score or fraction", "[0, ∞)", "How far the relevance that reaches the pixels is from the score, median over the samples, by `method`: in units of the score (`kind=absolute`), and by the score (`kind=relative`).", "Bach et al. 2015, eq. 2", _ORDER),
        ),
    )
)  # fmt: skip
