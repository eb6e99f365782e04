"""Which layers moved over a run, when, and which samples changed their neighbours or their prediction."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from stratascope.errors import DoesNotApply
from stratascope.storage.names import encode_path_part
from stratascope.tasks.analysis import Analysis, CaptureRequest, Findings, Metric, NamedArray, Options, register
from stratascope.tasks.contexts import SeriesContext
from stratascope.tasks.representation.drift_drawing import draw
from stratascope.tasks.representation.drift_layers import file_layers
from stratascope.tasks.representation.drift_predictions import file_predictions


class DriftOptions(Options):
    """By what movement is measured, and when a change counts. Which layers and samples are followed says `decomposition`."""

    measures: tuple[Literal["cka", "procrustes"], ...] = Field(default=("cka", "procrustes"), min_length=1)
    """Layers are ranked, and changes are looked for, by the first of them."""
    neighbours: int = Field(default=10, ge=1)
    """So many nearest neighbours of each sample are followed, and no more than `decomposition` keeps."""
    max_samples: int = Field(default=10_000, ge=2)
    """So many samples' predictions are followed at most, the classes in proportion."""
    rounds: int = Field(default=200, ge=20)
    """Of the bootstrap."""
    penalty: float = Field(default=3.0, gt=0)
    """What a change of level costs, times log(n) and the curve's noise variance."""
    level: float = Field(default=0.05, gt=0, lt=1)
    """Changes of level with a larger p-value are not reported."""
    permutations: int = Field(default=999, ge=99)
    pictures: int = Field(default=12, ge=1, le=48)
    """Of each kind of sample."""
    seed: int = Field(default=0, ge=0)


AUDIT = "@audit"
"""Where it is kept which steps an audit knew."""


def compute(context: SeriesContext, options: DriftOptions) -> Findings:
    """Rows by layer and step, and of the predictions; arrays `<probe>/<layer>/…` and `<probe>/@output/…`.

    Raises DoesNotApply where the run has one checkpoint only.
    """
    from threadpoolctl import threadpool_limits

    if len(context.steps) < 2:
        count = "one checkpoint" if context.steps else "no checkpoint"
        raise DoesNotApply(f"drift needs two checkpoints or more; the run has {count}.")
    findings = Findings()
    contexts = [context.at(step) for step in sorted(context.steps)]
    # Sums in BLAS depend on the number of threads: with one, every worker files the same bytes.
    with threadpool_limits(limits=1):
        for name, probe in context.probes.items():
            since = last_audited(context, name)
            place = f"{encode_path_part(name)}/{encode_path_part(AUDIT)}/step"
            steps = np.asarray(sorted(context.steps), np.int64)
            known = {"probe": name, "last_audit": -1 if since is None else since}
            findings.arrays[place] = NamedArray(("step",), steps, known)
            file_layers(contexts, name, options, since, findings)
            file_predictions(contexts, probe, context.subject.task, options, since, findings)
    return findings


def last_audited(context: SeriesContext, probe: str) -> int | None:
    """The newest step that the audit before this one knew; None where this is the first, or nothing was added since.

    An audit that only repeats the one before keeps that one's answer.
    """
    found = context.earlier("drift", probe, AUDIT, "step")
    if found is None or not len(found[0]):
        return None
    newest, before = int(found[0].max()), int(found[1].get("last_audit", -1))
    step = newest if newest < max(context.steps) else before
    return step if step in context.steps and step < max(context.steps) else None


_ROTATION = "rotation, reflection, translation and uniform scaling of the features; order of the samples"
_ORDER = "order of the samples"

ANALYSIS = register(
    Analysis(
        name="drift", version=1, scope="series", title="Drift", question="Which layers and which samples changed, and when?",
        options=DriftOptions, compute=compute, draw=draw, needs=frozenset({"activations"}), builds_on=("decomposition",),
        request=lambda options: CaptureRequest(layers=("@output",)),
        metrics=(
            Metric("layer_movement", "1", "[0, ∞)", "How far a layer's features of the same samples are from those at another checkpoint (`against=previous`, `first`, `last`, or `last_audit`, the newest that the audit before knew): 1 less debiased linear CKA, or the Procrustes distance of features of size 1, in [0, √2]. `per=doubling` divides by the doublings of the step, both counted from 1; `null=split_half` is what the choice of samples alone moves it by in 95 of 100 cases, `null=permuted` the distance to the same features with the samples in random order.", "Kornblith et al. 2019; Song et al. 2012; Ding et al. 2021; interval: Hušková and Janssen 1993", _ROTATION),
            Metric("movement_rank", "1", "[1, ∞)", "A layer's place among all by movement, 1 having moved most; its interval is over bootstrap rounds that are the same for all layers.", "", _ROTATION),
            Metric("neighbour_churn", "fraction", "[0, 1]", "Share of a sample's nearest neighbours in a layer that were not among them at the checkpoint before, mean over the samples; `null=chance` is what neighbours drawn at random give, 1 - k/(n - 1).", "Wendlandt et al. 2018, section 3", _ROTATION),
            Metric("prediction_churn", "fraction", "[0, 1]", "Share of samples whose predicted class differs from that at the checkpoint before, or at the newest that the audit before knew (`against=last_audit`); `null=chance` is what unrelated predictions with these class frequencies give.", "Milani Fard et al. 2016; interval: Wilson 1927, eq. 4", _ORDER),
            Metric("prediction_change", "1", "[0, ∞)", "Root of the mean squared change of a regression's predictions since the checkpoint before, in standard deviations of the targets.", "", "one shift and scale of outputs and targets alike; order of the samples"),
            Metric("final_agreement", "fraction", "[0, 1]", "Share of samples whose predicted class is that of the last checkpoint.", "interval as for prediction_churn", _ORDER),
            Metric("newly_right_fraction", "fraction", "[0, 1]", "Share of samples that are right and were wrong at the checkpoint before.", "interval as for prediction_churn", _ORDER),
            Metric("newly_wrong_fraction", "fraction", "[0, 1]", "Share of samples that are wrong and were right at the checkpoint before.", "interval as for prediction_churn", _ORDER),
            Metric("changed_wrong_fraction", "fraction", "[0, 1]", "Share of samples that are wrong as at the checkpoint before, with another class.", "interval as for prediction_churn", _ORDER),
            Metric("forgetting_events", "events per sample", "[0, ∞)", "How often a sample was right at one checkpoint and wrong at the next, up to this step; mean over the samples.", "Toneva et al. 2019, section 3", _ORDER),
            Metric("forgotten_fraction", "fraction", "[0, 1]", "Share of samples with a forgetting event up to this step.", "Toneva et al. 2019, section 3", _ORDER),
            Metric("never_learned_fraction", "fraction", "[0, 1]", "Share of samples that no checkpoint up to this step has right.", "Toneva et al. 2019, section 3", _ORDER),
            Metric("unforgettable_fraction", "fraction", "[0, 1]", "Share of samples that a checkpoint up to this step has right, and all later ones too.", "Toneva et al. 2019, section 3", _ORDER),
            Metric("first_learned_step", "step", "[0, ∞)", "The first checkpoint that has a sample right: median over the samples that any has right.", "interval: order statistics, Conover 1999, section 3.2", _ORDER),
            Metric("change_point_count", "1", "[0, ∞)", "How many changes of level a curve over the checkpoints has (`of=…`), by the cheapest division into stretches of equal level in which each change is beyond chance.", "Jackson et al. 2005; Csörgő and Horváth 1997", "shift and scale of the curve"),
            Metric("change_point_step", "step", "[0, ∞)", "The first checkpoint on a new level of a curve (`of=…`), the `number`th change; it happened between `low` and `high`, the checkpoint before and this one.", "Jackson et al. 2005", "shift and scale of the curve"),
            Metric("change_point_size", "1", "(-∞, ∞)", "The mean of the curve after a change of level, up to the next one, less the mean before it.", "", "shift of the curve"),
            Metric("change_point_p_value", "probability", "(0, 1]", "How often the same values in random order part as far at their best place, between the neighbouring changes.", "Csörgő and Horváth 1997; Phipson and Smyth 2010", "shift and scale of the curve"),
        ),
    )
)  # fmt: skip
