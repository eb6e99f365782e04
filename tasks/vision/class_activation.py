"""Which places of a picture a layer's channels speak for the asked output: class activation maps of every kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import field_validator

from stratascope.errors import CaptureError, DoesNotApply, did_you_mean
from stratascope.storage.ledger import Row
from stratascope.storage.names import encode_path_part
from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.vision.baselines import Baseline, baseline_of
from stratascope.tasks.vision.chosen_samples import SampleOptions, chosen_samples, sample_arrays
from stratascope.tasks.vision.class_activation_drawing import draw
from stratascope.tasks.vision.class_activation_measures import (
    class_probabilities,
    masked_confidence,
    nowhere_positive,
)
from stratascope.tasks.vision.class_activation_methods import DEFAULT_METHODS, METHODS, REFERENCE
from stratascope.tasks.vision.map_similarity import rank_correlations

if TYPE_CHECKING:
    from stratascope.tasks.vision.class_activation_passes import LayerMaps, Question
    from stratascope.tasks.vision.image_network import ImageNetwork
    from stratascope.tasks.vision.spatial_layers import SpatialLayer

_SAMPLE = "class_activation_sample"
_FULL, _GUIDED = "@full_grad", "@guided"
_NAMED = 5


class ClassActivationOptions(SampleOptions):
    """Which layers and which methods."""

    layers: tuple[str, ...] = ("@last_spatial",)
    """Layers on a grid: `@last_spatial`, `@convolutions`, or what names layers elsewhere. LayerCAM pays at several depths."""
    methods: tuple[str, ...] = DEFAULT_METHODS
    """`score_cam`, `score_cam_raw` and `ablation_cam` run the network once for each channel and sample (`ablation_cam` only
    what comes after the layer); `guided_grad_cam` stores a gradient of the picture's size."""
    target: str | int = "label"
    """Which output is asked about: `label`, `predicted`, a number, or `module:name`."""
    baseline: Baseline = "zero"
    """What stands where a picture is masked; `zero` as in the papers, which is the mean picture's grey."""
    confidence: bool = True
    """Whether every map is tried as a mask: one more forward pass for each map."""

    @field_validator("methods")
    @classmethod
    def _methods_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in METHODS:
                raise ValueError(
                    f"there is no class activation map {name!r}; there are {', '.join(METHODS)}."
                    + did_you_mean(name, METHODS)
                )
        return tuple(dict.fromkeys(value))


def compute(context: CheckpointContext, options: ClassActivationOptions) -> Findings:
    """Rows by layer and method; arrays `<probe>/<layer>/cam` (method, sample, y, x), raw and signed, and more.

    A probe, a layer or a method of which nothing can be said has rows with the reason.
    """
    from stratascope.tasks.vision.image_network import ImageNetwork

    findings = Findings()
    network = ImageNetwork.of(context)
    with network.untouched():
        for name, probe in context.probes.items():
            try:
                _ProbeMaps(context, network, probe, options).file(findings)
            except (DoesNotApply, CaptureError) as reason:
                findings.rows += _refusals(str(reason), probe=name)
    return findings


def _refusals(reason: str, **where: Any) -> list[Row]:
    return [Row(metric.name, status="does_not_apply", reason=reason, **where) for metric in ANALYSIS.metrics]


@dataclass
class _ProbeMaps:
    """The maps of one probe's samples and what is said about them."""

    context: CheckpointContext
    network: ImageNetwork
    probe: Probe
    options: ClassActivationOptions

    def file(self, findings: Findings) -> None:
        from stratascope.tasks.vision.class_activation_passes import layer_maps
        from stratascope.tasks.vision.spatial_layers import observed

        name, question = self.probe.name, self.question
        known = observed(self.network, self.probe).layers
        findings.arrays |= sample_arrays(self._samples, _SAMPLE)
        scores = question.target.scores(self._outputs, question.indices).float().numpy()
        findings.arrays[f"{name}/score"] = NamedArray((_SAMPLE,), scores)
        findings.arrays[f"{name}/asked"] = NamedArray((_SAMPLE,), question.indices.numpy())
        methods = [method for method in self.options.methods if METHODS[method].kind != "picture"]
        if methods:
            wanted = [*methods, *({REFERENCE} - set(methods))]
            found, refused = layer_maps(question, self._layers(known, findings), wanted, known)
            for layer, reason in refused.items():
                findings.rows += _refusals(reason, probe=name, layer=layer)
            for layer, made in found.items():
                self._file_layer(findings, layer, made, methods)
        if "full_grad" in self.options.methods:
            self._file_full_gradient(findings, known)
        if "guided_grad_cam" in self.options.methods:
            self._file_guided(findings)

    # -- what is asked -------------------------------------------------------------------------------

    @cached_property
    def _samples(self) -> Any:
        return chosen_samples(self.probe, self.options)

    @cached_property
    def _outputs(self) -> Any:
        return self.network.outputs_in_batches(self._samples.inputs, self.options.batch_size)

    @cached_property
    def question(self) -> Question:
        import torch

        from stratascope.tasks.vision.class_activation_passes import Question
        from stratascope.tasks.vision.targets import Target

        samples, options = self._samples, self.options
        target = Target.of(options.target, self.network.folder)
        baseline = baseline_of(options.baseline, samples.inputs, self.probe)
        return Question(
            self.network, torch.from_numpy(samples.inputs), target.indices(self._outputs, samples.classes), target,
            samples.sample_id, torch.from_numpy(np.ascontiguousarray(baseline)), options.seed, options.batch_size,
        )  # fmt: skip

    def _layers(self, known: Any, findings: Findings) -> list[SpatialLayer]:
        """The layers asked for; a pattern that means one without a grid is filed with its reason. Raises DoesNotApply."""
        from stratascope.tasks.vision.spatial_layers import chosen_spatial_layers

        found: dict[str, SpatialLayer] = {}
        for pattern in self.options.layers:
            try:
                size = self._samples.inputs.shape
                chosen = chosen_spatial_layers([pattern], known, (size[2], size[3]))
                found |= {layer.name: layer for layer in chosen}
            except DoesNotApply as reason:
                if len(self.options.layers) == 1:
                    raise
                findings.rows += _refusals(str(reason), probe=self.probe.name, layer=pattern)
        if not found:
            raise DoesNotApply("none of the layers asked for lies on a grid.")
        return list(found.values())

    @cached_property
    def _confidence(self) -> np.ndarray | str:
        """(sample,): the probability of the class asked about; or why there is none."""
        if not self.options.confidence:
            return "`confidence` is off"
        try:
            return class_probabilities(self._outputs, self.question.indices, self.context.subject.task)
        except DoesNotApply as reason:
            return str(reason)

    # -- what is filed -------------------------------------------------------------------------------

    def _file_layer(self, findings: Findings, layer: str, made: LayerMaps, methods: list[str]) -> None:
        place = f"{self.probe.name}/{encode_path_part(layer)}"
        stacked = np.stack([made.maps[method] for method in methods])
        findings.arrays[f"{place}/cam"] = NamedArray(("method", _SAMPLE, "y", "x"), stacked)
        findings.arrays[f"{place}/method"] = NamedArray(("method",), np.array(methods))
        weighted = [method for method in methods if method in made.weights]
        if weighted:
            weights = np.stack([made.weights[method] for method in weighted])
            findings.arrays[f"{place}/weights"] = NamedArray(("weighted_method", _SAMPLE, "channel"), weights)
            findings.arrays[f"{place}/weighted_method"] = NamedArray(("weighted_method",), np.array(weighted))
        note = "the gradient is zero at every place of this layer: what follows does not read its grid" if made.is_flat else ""  # fmt: skip
        for method in methods:
            findings.rows += self._map_rows(layer, method, made.maps[method], note)
            if method != REFERENCE:
                findings.rows.append(self._agreement(layer, method, made))

    def _map_rows(self, layer: str, method: str, maps: np.ndarray, note: str = "") -> Iterable[Row]:
        shared: dict[str, Any] = {"probe": self.probe.name, "layer": layer, "part": f"method={method}", "n": len(maps)}  # fmt: skip
        names = ("cam_zero_fraction", "cam_confidence_drop", "cam_confidence_increase")
        broken = ~np.isfinite(maps).all((1, 2))
        if broken.any():
            reason = f"{int(broken.sum())} of {len(maps)} maps are not finite, first that of sample {self._named(broken)}"  # fmt: skip
            return [Row(name, status="failed", reason=reason, **shared) for name in names]
        empty = nowhere_positive(maps)
        said = f"nowhere above 0: samples {self._named(empty)}" if empty.any() else ""
        zero = Row(names[0], float(empty.mean()), convention="; ".join(filter(None, (said, note))), **shared)
        if isinstance(self._confidence, str):
            return [zero, *(Row(name, status="does_not_apply", reason=self._confidence, **shared) for name in names[1:])]  # fmt: skip
        question = self.question
        masked = masked_confidence(
            self.network, question.inputs, question.indices, maps, question.baseline, self._confidence, question.batch_size
        )  # fmt: skip
        convention = f"baseline {self.options.baseline}"
        return [
            zero,
            Row(names[1], float(masked.drops.mean()), convention=convention, **shared),
            Row(names[2], float(masked.increases.mean()), convention=convention, **shared),
        ]

    def _agreement(self, layer: str, method: str, made: LayerMaps) -> Row:
        found = rank_correlations(made.maps[method], made.maps[REFERENCE])
        sound = np.isfinite(found)
        shared: dict[str, Any] = {"probe": self.probe.name, "layer": layer, "part": f"method={method}", "n": int(sound.sum())}  # fmt: skip
        if not sound.any():
            reason = f"for no sample do both {method} and {REFERENCE} vary over the places"
            return Row("cam_agreement", status="does_not_apply", reason=reason, **shared)
        return Row("cam_agreement", float(found[sound].mean()), **shared)

    def _named(self, chosen: np.ndarray) -> str:
        names = [str(name) for name in self._samples.sample_id[chosen].tolist()]
        return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")

    def _file_full_gradient(self, findings: Findings, known: Any) -> None:
        import torch

        from stratascope.tasks.vision.full_gradient import full_gradient

        name = self.probe.name
        shared: dict[str, Any] = {"probe": name, "part": "method=full_grad"}
        try:
            parts = [
                full_gradient(part.network, part.inputs, part.indices, part.target, known)
                for part in self.question.parts()
            ]
        except DoesNotApply as reason:
            metrics = (
                "cam_completeness_gap",
                "cam_zero_fraction",
                "cam_confidence_drop",
                "cam_confidence_increase",
            )
            findings.rows += [Row(metric, status="does_not_apply", reason=str(reason), **shared) for metric in metrics]  # fmt: skip
            return
        maps, signed, terms, gap, scores = (
            torch.cat([getattr(part, field) for part in parts]).numpy()
            for field in ("maps", "signed", "terms", "gap", "scores")
        )
        names = parts[0].names
        findings.arrays |= {
            f"{name}/{_FULL}/map": NamedArray((_SAMPLE, "y", "x"), maps),
            f"{name}/{_FULL}/signed": NamedArray((_SAMPLE, "y", "x"), signed),
            f"{name}/{_FULL}/terms": NamedArray((_SAMPLE, "term"), terms),
            f"{name}/{_FULL}/term": NamedArray(("term",), np.array(names)),
            f"{name}/{_FULL}/completeness_gap": NamedArray((_SAMPLE,), gap),
        }
        findings.rows += self._map_rows("", "full_grad", maps)
        size = float(np.abs(scores).sum(dtype=np.float64))
        missing = float(np.abs(gap).sum(dtype=np.float64))
        if not np.isfinite(missing):
            row = Row("cam_completeness_gap", status="failed", reason="a contribution is not finite", **shared)
        elif size == 0:
            row = Row("cam_completeness_gap", status="does_not_apply", reason="every score is zero", **shared)
        else:
            row = Row("cam_completeness_gap", missing / size, n=len(gap), **shared)
        findings.rows.append(row)

    def _file_guided(self, findings: Findings) -> None:
        import torch

        from stratascope.tasks.vision.guided_gradient import guided_gradient

        try:
            parts = [
                guided_gradient(part.network, part.inputs, part.indices, part.target)
                for part in self.question.parts()
            ]
        except DoesNotApply as reason:
            findings.rows.append(
                Row("cam_zero_fraction", probe=self.probe.name, part="method=guided_grad_cam", status="does_not_apply", reason=str(reason))
            )  # fmt: skip
            return
        values = torch.cat(parts).numpy()
        findings.arrays[f"{self.probe.name}/{_GUIDED}/gradient"] = NamedArray((_SAMPLE, "channel", "y", "x"), values)  # fmt: skip


ANALYSIS = register(
    Analysis(
        name="class_activation", version=1, scope="checkpoint", title="Class activation maps",
        question="Which places of a picture speak for its class, and does the network need them?",
        options=ClassActivationOptions, compute=compute, draw=draw, needs=frozenset({"network", "gradients"}),
        metrics=(
            Metric("cam_zero_fraction", "1", "[0, 1]", "Share of samples whose class activation map (`part`: the method) is nowhere above 0.", "", "scaling of the score, permutation of channels"),
            Metric("cam_confidence_drop", "1", "[0, 1]", "Mean over samples of the share of the asked class's probability that is lost when the picture is multiplied by what is above 0 in the map, scaled to a largest value of 1; 0 where it rises.", "Chattopadhyay et al. 2018, section 4.1", "scaling of the map"),
            Metric("cam_confidence_increase", "1", "[0, 1]", "Share of samples whose class becomes more probable under that mask.", "Chattopadhyay et al. 2018, section 4.1", "scaling of the map"),
            Metric("cam_agreement", "1", "[-1, 1]", "Mean over samples of Spearman's correlation over positions with HiResCAM of the same layer, before any ReLU; samples with a constant map are left out.", "", "monotone change of the map"),
            Metric("cam_completeness_gap", "1", "[0, ∞)", "FullGrad: sizes of score less the sum of what the picture and all biases contribute, by the sizes of the scores.", "Srinivas and Fleuret 2019, proposition 1", "permutation of channels"),
        ),
    )
)  # fmt: skip
