"""At which layer a network beats traditional methods on the same raw inputs: baselines once, margins at every step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from pydantic import Field

from stratascope.errors import DoesNotApply
from stratascope.storage.digests import array_digest, identity_of
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, Options, register
from stratascope.tasks.contexts import CheckpointContext, SeriesContext
from stratascope.tasks.representation.features import INPUT
from stratascope.tasks.representation.input_baselines import (
    METHODS,
    Margin,
    Method,
    baseline_answers,
    first_beyond,
    margins_over,
)
from stratascope.tasks.representation.linear_probe import ACCURACY_METRIC
from stratascope.tasks.representation.linear_probe_baselines_drawing import draw
from stratascope.tasks.representation.probe_classifiers import cross_validated, prepared
from stratascope.tasks.representation.probe_controls import inputs_in_order, random_features
from stratascope.tasks.representation.probe_findings import ACCURACY, RANDOM, SAMPLE, right_interval
from stratascope.tasks.representation.resampling import bootstrap_counts

NAME, PROBE_ANALYSIS = "linear_probe_baselines", "linear_probe"
MARGIN, MARGIN_P, FIRST = "margin_over_inputs", "margin_p_value", "first_layer_beyond_inputs"


class BaselineOptions(Options):
    """Which methods learn from raw inputs. Samples, folds and penalties are those of `linear_probe`."""

    methods: tuple[Method, ...] = Field(default=METHODS, min_length=1)
    random_features: bool = True
    """Whether one untrained layer, as wide as each layer, is probed too."""
    level: float = Field(default=0.05, gt=0, lt=1)
    """A layer beats the inputs where its corrected p-value lies below."""
    bootstrap: int = Field(default=200, ge=0)
    """Rounds of resampling behind each baseline's interval."""
    seed: int = Field(default=0, ge=0)


def compute(context: SeriesContext, options: BaselineOptions) -> Findings:
    """Rows of the baselines (step -1), of margins by layer and step, and of the first layer that wins, by step.

    Arrays `<probe>/sample_id|step|accuracy|margin`, `<probe>/baseline/<method>` and `<probe>/random_features/<width>`:
    held-out classes by sample. What was filed before for the same samples is taken over. Raises DoesNotApply for
    regression, and where no layer was probed.
    """
    from threadpoolctl import threadpool_limits

    if context.subject.task == "regression":
        raise DoesNotApply("the task is regression: baselines on raw inputs are classifiers")
    findings = Findings()
    reasons = []
    # Sums in BLAS depend on the number of threads: with one, every worker files the same bytes.
    with threadpool_limits(limits=1):
        for name in context.probes:
            try:
                _Baselines(context, options, name, findings).file()
            except DoesNotApply as reason:
                reasons.append(str(reason))
                findings.rows.append(Row(MARGIN, probe=name, status="does_not_apply", reason=str(reason)))
    if not findings.arrays:
        raise DoesNotApply("; ".join(dict.fromkeys(reasons)) or "there is no probe")
    return findings


@dataclass
class _Baselines:
    """One probe: its samples as the newest step was probed on them, and what methods make of their inputs."""

    context: SeriesContext
    options: BaselineOptions
    probe: str
    findings: Findings
    steps: list[int] = field(default_factory=list)

    def file(self) -> None:
        """Add all rows and arrays."""
        self._choose_steps()
        answers: dict[str, np.ndarray] = {}
        for method in self.options.methods:
            try:
                answers[method] = self._answers(("baseline", method), lambda method=method: self._learned(method))
            except DoesNotApply as reason:
                where: dict[str, Any] = {"probe": self.probe, "layer": INPUT, "part": f"baseline={method}"}
                self.findings.rows.append(Row(ACCURACY, status="does_not_apply", reason=str(reason), **where))
                continue
            self._file_accuracy(answers[method] == self.target, INPUT, f"baseline={method}", self.inputs_width)
        if not answers:
            raise DoesNotApply("no method could learn from the raw inputs: see the rows of the baselines")
        if self.options.random_features:
            self._file_random_features()
        self._file_margins(answers)
        self._keep("sample_id", (SAMPLE,), self.samples)
        self._keep("step", ("step",), np.asarray(self.steps, np.int64))

    # -- what was probed -------------------------------------------------------------------------------------

    def _choose_steps(self) -> None:
        """The steps that were probed on the same samples and folds as the newest one."""
        self.steps = []
        for step in sorted(self.context.steps, reverse=True):
            here = self.context.at(step)
            samples, target, fold = (
                here.found(PROBE_ANALYSIS, self.probe, name) for name in ("sample_id", "target", "fold")
            )
            if samples is None or target is None or fold is None or not self._probed_layers(step):
                continue
            if not self.steps:
                self.samples, self.target, self.fold = samples, target, fold
            if np.array_equal(samples, self.samples) and np.array_equal(fold, self.fold):
                self.steps.insert(0, step)
        if not self.steps:
            raise DoesNotApply(f"no layer could be probed on probe {self.probe!r}: `linear_probe` says why")

    def _at(self, step: int) -> CheckpointContext:
        return self.context.at(step)

    def _probed_layers(self, step: int) -> list[str]:
        """Layers that were probed at `step`, in the order of execution."""
        here = self._at(step)
        ending = "/predicted"
        present = {
            path.removesuffix(ending)
            for path in here.found_arrays(PROBE_ANALYSIS, self.probe)
            if path.endswith(ending)
        } - {INPUT}
        order = [name for name in here.layers(self.probe) if name in present]
        return order + sorted(present - set(order))

    @cached_property
    def places(self) -> np.ndarray:
        return np.unique(self.target, return_inverse=True)[1]

    @cached_property
    def path(self) -> tuple[float, ...]:
        """The values of C that the newest step was probed with."""
        layer = self._probed_layers(self.steps[-1])[0]
        return tuple(self._at(self.steps[-1]).found_attributes(PROBE_ANALYSIS, self.probe, layer, "path")["C"])

    # -- raw inputs ------------------------------------------------------------------------------------------

    @cached_property
    def inputs(self) -> np.ndarray:
        """float64 (sample, number). Raises DoesNotApply where they are no numbers."""
        shown = self.context.probes[self.probe]
        places = {identity: row for row, identity in enumerate(shown.sample_id.tolist())}
        return inputs_in_order(shown, np.array([places[item] for item in self.samples.tolist()], np.int64))

    @cached_property
    def inputs_width(self) -> int:
        shape = getattr(self.context.probes[self.probe].inputs, "shape", (0,))
        return int(np.prod(shape[1:], dtype=np.int64))

    def _origin(self, place: tuple[str, ...]) -> str:
        parts = {
            "version": ANALYSIS.version, "what": list(place), "inputs": self.context.probes[self.probe].digest,
            "samples": [str(item) for item in self.samples.tolist()], "fold": array_digest(self.fold), "path": list(self.path),
            "seed": self.options.seed,
        }  # fmt: skip
        return identity_of(parts)

    def _answers(self, place: tuple[str, str], make: Any) -> np.ndarray:
        """Held-out classes (sample,): those filed before where samples, inputs and options are the same, or made anew."""
        origin = self._origin(place)
        earlier = self.context.earlier(NAME, self.probe, *place)
        if earlier is not None and earlier[1].get("origin") == origin:
            found = earlier[0]
        else:
            found = np.unique(self.target)[make()]
        self._keep("/".join(encode_path_part(part) for part in place), (SAMPLE,), found, origin=origin)
        return found

    def _learned(self, method: Method) -> np.ndarray:
        is_image = self.context.probes[self.probe].kind == "image"
        return baseline_answers(
            method, self.inputs, self.places, self.fold, self.path, is_image, self.options.seed
        )

    def _file_accuracy(self, right: np.ndarray, layer: str, part: str, width: int) -> None:
        counts = bootstrap_counts(len(right), self.options.bootstrap, self.options.seed)
        interval = right_interval(right, counts)
        self.findings.rows.append(
            Row(
                ACCURACY, float(right.mean()), layer=layer, probe=self.probe, part=part, n=len(right), low=interval.low,
                high=interval.high, estimator="; ".join(filter(None, ("held out, constants by inner folds", interval.how))),
                convention=f"d={width};folds={int(self.fold.max()) + 1};classes={int(self.places.max()) + 1}",
            )
        )  # fmt: skip

    def _file_random_features(self) -> None:
        """For every width that a layer has at the newest step: one untrained layer on the same inputs."""
        here = self._at(self.steps[-1])
        found: dict[int, np.ndarray] = {}
        for layer in self._probed_layers(self.steps[-1]):
            width = int(here.found_attributes(PROBE_ANALYSIS, self.probe, layer, "path")["features"])
            try:
                if width not in found:
                    found[width] = self._answers(
                        ("random_features", str(width)), lambda width=width: self._learned_at_random(width)
                    )
            except DoesNotApply as reason:
                where: dict[str, Any] = {"probe": self.probe, "layer": layer, "part": RANDOM}
                self.findings.rows.append(Row(ACCURACY, status="does_not_apply", reason=str(reason), **where))
                continue
            self._file_accuracy(found[width] == self.target, layer, RANDOM, width)

    def _learned_at_random(self, width: int) -> np.ndarray:
        values = random_features(self.inputs, width, self.options.seed)
        if np.ptp(values, axis=0).max() == 0:
            raise DoesNotApply("the random features are constant")
        return cross_validated(prepared(values), self.places, self.fold, self.path).predicted

    # -- margins ---------------------------------------------------------------------------------------------

    def _file_margins(self, answers: dict[str, np.ndarray]) -> None:
        shares = {method: float((found == self.target).mean()) for method, found in answers.items()}
        best = max(shares, key=lambda method: shares[method])
        layers = list(dict.fromkeys(name for step in reversed(self.steps) for name in self._probed_layers(step)))
        accuracy, margin = (np.full((len(layers), len(self.steps)), np.nan) for _ in range(2))
        for number, step in enumerate(self.steps):
            right = {}
            for name in self._probed_layers(step):
                found = self._at(step).found(PROBE_ANALYSIS, self.probe, name, "predicted")
                assert found is not None
                right[name] = found == self.target
                accuracy[layers.index(name), number] = right[name].mean()
            margins = margins_over(answers[best] == self.target, right)
            for name, item in margins.items():
                margin[layers.index(name), number] = item.difference.value
            self.findings.rows += self._margin_rows(step, margins, best, shares[best])
        about = {"layers": layers, "best": best}
        self._keep("accuracy", ("layer", "step"), accuracy, **about)
        self._keep("margin", ("layer", "step"), margin, **about)

    def _margin_rows(self, step: int, margins: dict[str, Margin], best: str, share: float) -> Iterator[Row]:
        against = f"baseline={best};its accuracy={share:.4f}"
        for name, item in margins.items():
            about: dict[str, Any] = {
                "layer": name, "probe": self.probe, "step": step, "other_layer": INPUT, "n": item.counts.n,
                "convention": against,
            }  # fmt: skip
            gap = item.difference
            yield Row(
                MARGIN, gap.value, low=gap.low, high=gap.high, estimator="paired shares, Newcombe 1998", **about
            )
            for part, p in (("", item.test.p), ("corrected=holm", item.corrected)):
                if item.test.reason:
                    yield Row(MARGIN_P, part=part, status="does_not_apply", reason=item.test.reason, **about)
                else:
                    yield Row(MARGIN_P, p, part=part, estimator="exact McNemar test", **about)
        about = {"probe": self.probe, "step": step, "n": len(self.target), "convention": against}
        first = first_beyond(margins, self.options.level)
        if first is None:
            reason = (
                f"none of {len(margins)} layers beats {best} on the raw inputs ({share:.3f}) at level "
                f"{self.options.level:g}, corrected for {len(margins)} layers"
            )
            yield Row(FIRST, status="does_not_apply", reason=reason, **about)
            return
        how = f"exact McNemar test, Holm's correction, level {self.options.level:g}"
        yield Row(FIRST, list(margins).index(first) + 1.0, other_layer=first, estimator=how, **about)

    def _keep(self, place: str, dims: tuple[str, ...], values: np.ndarray, **more: Any) -> None:
        path = f"{encode_path_part(self.probe)}/{place}"
        self.findings.arrays[path] = NamedArray(dims, values, {"probe": self.probe, **more})


_ORDER = "order of the samples"

ANALYSIS = register(
    Analysis(
        name=NAME, version=1, scope="series", title="Linear probes against raw inputs", question="At which layer does the network beat traditional methods?",
        options=BaselineOptions, compute=compute, draw=draw, needs=frozenset({"activations"}), builds_on=(PROBE_ANALYSIS,),
        metrics=(
            ACCURACY_METRIC,
            Metric(MARGIN, "fraction", "[-1, 1]", "Accuracy of a layer's linear probe less that of the best traditional method on raw inputs, on the same held-out samples and with the same folds.", "interval: Newcombe 1998, method 10", _ORDER),
            Metric(MARGIN_P, "probability", "[0, 1]", "Chance of at least so uneven a split of the samples that only one of the two has right, if both were alike; `corrected=holm` for all layers of the step.", "McNemar 1947; Holm 1979", _ORDER),
            Metric(FIRST, "1", "[1, ∞)", "Place, in the order of execution among the probed layers, of the first layer whose probe beats the best traditional method on raw inputs beyond chance; `other_layer` names it.", "", _ORDER),
        ),
    )
)  # fmt: skip
