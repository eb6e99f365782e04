"""Can the maps be trusted? Each method against maps that know nothing, against shuffled weights, and against small changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, field_validator

from stratascope.errors import ConfigurationError, DoesNotApply, StratascopeError, did_you_mean
from stratascope.storage.ledger import Row
from stratascope.storage.probes import Probe
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, register
from stratascope.tasks.contexts import CheckpointContext
from stratascope.tasks.memory import is_memory_shortage
from stratascope.tasks.vision.attribution_methods import Explained, known_methods
from stratascope.tasks.vision.attribution_trust_drawing import draw
from stratascope.tasks.vision.baselines import Baseline, baseline_of
from stratascope.tasks.vision.chosen_samples import ImageSamples, SampleOptions, chosen_samples, sample_arrays
from stratascope.tasks.vision.explainers import (
    NULLS,
    Explainer,
    attribution_explainer,
    cam_explainer,
    null_explainers,
)
from stratascope.tasks.vision.map_tests import REMOVED, SHARES
from stratascope.tasks.vision.targets import Target

if TYPE_CHECKING:
    from stratascope.tasks.vision.image_network import ImageNetwork
    from stratascope.tasks.vision.trust_scores import MethodScores

DIMENSION = "attribution_trust_sample"
_CAMS = ("grad_cam", "hi_res_cam", "layer_cam")


class AttributionTrustOptions(SampleOptions):
    """Which methods are tested, how thoroughly, and when one has failed."""

    samples: int = Field(default=16, ge=1)
    methods: tuple[str, ...] = ("gradient", "gradient_times_input", "guided_backpropagation", "smooth_grad", "integrated_gradients")  # fmt: skip
    """Methods of `attribution`, with their own default settings, but at most 8 draws and 16 steps."""
    cam_methods: tuple[str, ...] = _CAMS
    """Methods of `class_activation`."""
    layer: str = "@last_spatial"
    """The layer that class activation maps are taken from."""
    target: str | int = "label"
    baseline: Baseline = "black"
    """What attribution starts from; pictures are blurred where the tests take something away."""
    draws: int = Field(default=32, ge=2)
    """Perturbations for infidelity."""
    noise: float = Field(default=0.2, gt=0)
    """Their size, as a share of each picture's range."""
    nudges: int = Field(default=3, ge=0)
    """Slightly changed copies of each picture for sensitivity; 0 leaves that test out."""
    radius: float = Field(default=0.02, gt=0)
    """How far a pixel of those moves at most, as a share of the picture's range."""
    shuffled: tuple[float, ...] = (0.0, 0.34, 0.67, 1.0)
    """Shares of the weighted layers that are shuffled, from the last one on; 0 means the last layer alone."""
    most_alike: float = Field(default=0.5, ge=0, le=1)
    """A method whose maps of the wholly shuffled network correlate higher than this with those of the real one has failed."""
    significance: float = Field(default=0.05, gt=0, lt=1)
    """A method has failed that is not surer than this to be better than a random order of the pixels."""

    @field_validator("methods")
    @classmethod
    def _methods_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return known_methods(value)

    @field_validator("cam_methods")
    @classmethod
    def _cams_are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        from stratascope.tasks.vision.class_activation_methods import METHODS

        for name in value:
            if name not in METHODS:
                raise ValueError(f"there is no class activation map {name!r}; there are {', '.join(METHODS)}." + did_you_mean(name, METHODS))  # fmt: skip
        return value

    @field_validator("shuffled")
    @classmethod
    def _shares_are_shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or min(value) < 0 or max(value) != 1:
            raise ValueError("`shuffled` holds shares from 0 to 1, and ends with 1: the whole network")
        return tuple(sorted(value))


def compute(context: CheckpointContext, options: AttributionTrustOptions) -> Findings:
    """Rows by probe and method; arrays `<probe>/<method>/…` by sample: `deletion`, `insertion` (sample, share), `road`
    (sample, order, share), `alike` (sample, shuffled).
    """
    from stratascope.tasks.vision.image_network import ImageNetwork

    findings = Findings()
    network = ImageNetwork.of(context)
    with network.untouched():
        for name, probe in context.probes.items():
            try:
                samples = chosen_samples(probe, options)
                asked = _question(context, network, probe, samples, options)
                explainers = _explainers(network, probe, options, findings)
            except (DoesNotApply, ConfigurationError) as reason:
                findings.rows += [
                    Row(metric.name, probe=name, status="does_not_apply", reason=str(reason))
                    for metric in ANALYSIS.metrics
                ]
                continue
            findings.arrays |= sample_arrays(samples, DIMENSION)
            _test_all(findings, asked, probe, explainers, options)
    return findings


def _question(
    context: CheckpointContext, network: ImageNetwork, probe: Probe, samples: ImageSamples,
    options: AttributionTrustOptions,
) -> Explained:  # fmt: skip
    import torch

    inputs = torch.from_numpy(samples.inputs)
    target = Target.of(options.target, Path(context.subject.folder))
    indices = target.indices(network.outputs_in_batches(inputs, options.batch_size), samples.classes)
    return Explained(
        network, inputs, indices, target, samples.sample_id, torch.from_numpy(baseline_of(options.baseline, samples.inputs, probe)),
        torch.from_numpy(chosen_samples(probe, SampleOptions(samples=16, seed=options.seed)).inputs), options.seed,
        network.fixed_batch_size or options.batch_size,
    )  # fmt: skip


def _explainers(
    network: ImageNetwork, probe: Probe, options: AttributionTrustOptions, findings: Findings
) -> list[Explainer]:
    found = [*null_explainers(), *(attribution_explainer(name) for name in options.methods)]
    if options.cam_methods:
        from stratascope.tasks.vision.spatial_layers import observed

        height, width = probe.inputs.shape[2:]
        try:
            known = observed(network, probe).layers
            found += [cam_explainer(name, options.layer, known, (height, width)) for name in options.cam_methods]
        except DoesNotApply as reason:
            findings.rows += [
                Row("attribution_trusted", probe=probe.name, part=f"method={name}", status="does_not_apply", reason=str(reason))
                for name in options.cam_methods
            ]  # fmt: skip
    return found


def _test_all(
    findings: Findings, asked: Explained, probe: Probe, explainers: Sequence[Explainer], options: AttributionTrustOptions
) -> None:  # fmt: skip
    from stratascope.tasks.vision.trust_scores import Tests, trust_rows

    blurred = baseline_of("blur", asked.inputs.numpy(), probe)
    tests = Tests(asked, blurred, options, len(explainers))
    scores: dict[str, MethodScores] = {}
    for explainer in explainers:
        try:
            scores[explainer.name] = tests.of(explainer)
            continue
        except DoesNotApply as error:
            status, reason = "does_not_apply", str(error)
        except StratascopeError:
            raise
        except Exception as error:
            if is_memory_shortage(error) and asked.can_be_asked_less:
                raise
            status, reason = "failed", f"{type(error).__name__}: {error}"
        findings.rows.append(
            Row("attribution_trusted", probe=probe.name, part=f"method={explainer.name}", status=status, reason=reason)  # type: ignore[arg-type]
        )  # fmt: skip
    tests.shuffle(explainers, scores)
    null = scores[NULLS[0]]
    for name, found in scores.items():
        findings.rows += trust_rows(probe.name, name, found, null, options)
        for key, dims, values in (
            ("deletion", ("share",), found.deletion), ("insertion", ("share",), found.insertion),
            ("road", ("order", "share"), found.road), ("alike", ("shuffled",), found.alike),
        ):  # fmt: skip
            if values is not None:
                about = {"share": list(SHARES if len(dims) == 1 else REMOVED), "shuffled": list(options.shuffled)}
                findings.arrays[f"{probe.name}/{name}/{key}"] = NamedArray(
                    (DIMENSION, *dims), values.astype(np.float32), about
                )


ANALYSIS = register(
    Analysis(
        name="attribution_trust", version=1, scope="checkpoint", title="Can attribution be trusted?",
        question="Do the maps show what this network looks at?", options=AttributionTrustOptions,
        compute=compute, draw=draw, needs=frozenset({"network", "gradients"}),
        metrics=(
            Metric("attribution_trusted", "1", "0 or 1", "1 where a method's maps beat a random order of the pixels (ROAD) and change when the weights are shuffled; the reason stands beside a 0 (`part`: method).", "Adebayo et al. 2018; Rong et al. 2022", "permutation of samples"),
            Metric("road_score", "probability", "[-1, 1]", "How much more the answer suffers when the most relevant pixels are removed and filled from their neighbours than when the least relevant are, halved; mean over 20, 40, 60, 80 % removed. A random order gives 0.", "Rong et al. 2022", "monotone changes of the map"),
            Metric("deletion_area", "probability", "[0, 1]", "Area below the answer's probability while the most important pixels are blurred first; small is good.", "Petsiuk et al. 2018", "monotone changes of the map"),
            Metric("insertion_area", "probability", "[0, 1]", "Area below it while the most important pixels of a blurred picture are made sharp first; large is good.", "Petsiuk et al. 2018", "monotone changes of the map"),
            Metric("confidence_drop", "probability", "[-1, 1]", "How much the answer loses where only what the map marks is left.", "Chattopadhyay et al. 2018, section 4.1", "scaling of the map"),
            Metric("infidelity", "1", "[0, 1]", "Share of the changes of the score under noise that the map does not tell, up to one factor.", "Yeh et al. 2019", "scaling of the map"),
            Metric("max_sensitivity", "1", "[0, ∞)", "Largest change of the map under tiny changes of the picture, as a share of its size.", "Yeh et al. 2019, def. 3.1", "scaling of the map"),
            Metric("shuffled_weights_similarity", "1", "[-1, 1]", "Spearman correlation between the maps of the network and of the same with shuffled weights (`part`: method and share of the layers shuffled, from the last on).", "Adebayo et al. 2018", "monotone changes of the map"),
        ),
    )
)  # fmt: skip
