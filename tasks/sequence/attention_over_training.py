"""When heads of attention formed: their scores over the checkpoints, change points, and how far each head moved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from pydantic import Field

from stratascope.errors import DoesNotApply
from stratascope.storage.ledger import Row
from stratascope.tasks.analysis import Analysis, Findings, Metric, NamedArray, Options, register
from stratascope.tasks.contexts import SeriesContext
from stratascope.tasks.representation.change_points import noise_of
from stratascope.tasks.representation.drift import ANALYSIS as DRIFT
from stratascope.tasks.representation.drift import DriftOptions
from stratascope.tasks.representation.drift_layers import change_rows
from stratascope.tasks.sequence.attention_over_training_drawing import draw
from stratascope.tasks.sequence.followed_heads import READ, FollowedLayer, followed_layers, shown_attention
from stratascope.tasks.sequence.head_agreement import file_agreement
from stratascope.tasks.sequence.head_formation import formation_of, shortened_matrix

FORMING = "_score"
"""Scores whose names end so say how far a head does one known thing, from 0 to 1."""
_POINTED = "attention_entropy_share"


class AttentionOverTrainingOptions(Options):
    """Which samples, layers and patterns are followed says `attention`."""

    scores: tuple[str, ...] = ()
    """Scores that heads form by; where none is named, all that are called `…_score`."""
    least_gain: float = Field(default=0.1, gt=0, le=1)
    """A head has formed only if its score rose by so much from the first checkpoint to its final level."""
    top_heads: int = Field(default=4, ge=1, le=12)
    """Of so many heads with the highest final scores the weights themselves are kept over the steps."""
    shown_tokens: int = Field(default=64, ge=4, le=256)
    """Weights of more queries or keys are kept as blocks of neighbours."""
    frames: int = Field(default=24, ge=2, le=200)
    """The slider over these weights has so many of the steps at most."""
    penalty: float = Field(default=3.0, gt=0)
    """What a change of level costs, times log(n) and the curve's noise variance."""
    least_step: float = Field(default=0.15, gt=0, lt=1)
    """A curve's steps of less than this share of its range count as slope, not as changes of level."""
    level: float = Field(default=0.05, gt=0, lt=1)
    """Changes of level with a larger p-value are not reported."""
    permutations: int = Field(default=999, ge=99)
    seed: int = Field(default=0, ge=0)

    def of_changes(self, curve: np.ndarray) -> DriftOptions:
        """How changes of `curve` (step,) are looked for, as the maths of change points takes it.

        Scores hardly rattle, so that by their noise alone every slope would fall into many levels.
        """
        penalty = self.penalty
        if np.ptp(curve) > 0:
            penalty = max(penalty, (self.least_step * float(np.ptp(curve)) / noise_of(curve)) ** 2)
        return DriftOptions(penalty=penalty, level=self.level, permutations=self.permutations, seed=self.seed)


def compute(context: SeriesContext, options: AttentionOverTrainingOptions) -> Findings:
    """Rows by layer and head; arrays `<probe>/<layer>/scores` (step, score, head), `change` (step, head), and `head_weights`
    (step, top_head, query, key) of the heads that score highest. Raises DoesNotApply where the run has one checkpoint only.
    """
    if len(context.steps) < 2:
        count = "one checkpoint" if context.steps else "no checkpoint"
        raise DoesNotApply(f"heads are followed over two checkpoints or more; the run has {count}.")
    findings = Findings()
    contexts = [context.at(step) for step in sorted(context.steps)]
    for name, probe in context.probes.items():
        followed = list(followed_layers(contexts, probe))
        if not followed:
            reason = f"no attention is filed for probe {name!r} at two checkpoints; `attention` says why"
            findings.rows += [Row(metric, probe=name, status="does_not_apply", reason=reason) for metric in _OWN]
            continue
        for layer in followed:
            findings.arrays[f"{layer.place}/step"] = NamedArray(("step",), np.array(layer.steps, np.int64))
            about = {"score": layer.names, "layer": layer.layer}
            findings.arrays[f"{layer.place}/scores"] = NamedArray(("step", "score", "head"), layer.scores, about)
            findings.rows += list(_formation_rows(layer, options))
            _file_change(layer, findings)
        if not any(forming_scores(layer.names, options.scores) for layer in followed):
            reason = (
                "no scores are filed that heads could form by: they need tokens that are both queries and keys"
            )
            findings.rows.append(Row("head_formation_step", probe=name, status="does_not_apply", reason=reason))
        _file_top_heads(followed, options, findings)
        file_agreement(followed, findings)
    return findings


def forming_scores(names: list[str], wanted: tuple[str, ...]) -> list[str]:
    """Those of `names` that heads form by."""
    return [name for name in names if (name in wanted if wanted else name.endswith(FORMING))]


def _formation_rows(layer: FollowedLayer, options: AttentionOverTrainingOptions) -> Iterator[Row]:
    for name in forming_scores(layer.names, options.scores):
        for head, curve in enumerate(layer.scores[:, layer.names.index(name)].T.astype(np.float64)):
            about: dict[str, Any] = {"probe": layer.probe.name, "layer": layer.layer}
            part = f"head={head};score={name}"
            known = np.isfinite(curve)
            if known.sum() < 2:
                reason = "the score is not known at two checkpoints"
                yield Row("head_formation_step", part=part, status="does_not_apply", reason=reason, **about)
                continue
            steps, curve = [step for step, sound in zip(layer.steps, known, strict=True) if sound], curve[known]
            yield _formation_row(steps, curve, part, options.least_gain, about)
            yield from change_rows(steps, curve, f"{name};head={head}", options.of_changes(curve), about)


def _formation_row(steps: list[int], curve: np.ndarray, part: str, least: float, about: dict[str, Any]) -> Row:
    found = formation_of(curve)
    if found.gain < least:
        reason = f"the score did not rise by {least:g} over the run"
        return Row("head_formation_step", part=part, status="does_not_apply", reason=reason, **about)
    step, before = steps[found.place], steps[max(0, found.place - 1)]
    way = f"from {found.start:.3f} to {found.end:.3f}"
    return Row(
        "head_formation_step", step, part=part, n=len(steps), low=before, high=step, convention=way,
        estimator="first checkpoint past half way for good; low is the one before", **about,
    )  # fmt: skip


def _file_change(layer: FollowedLayer, findings: Findings) -> None:
    """How far each head is from the checkpoint before, over the shown samples."""
    from stratascope.tasks.sequence.attention_agreement import change_between

    found = np.full((len(layer.contexts), layer.scores.shape[2]), np.nan, np.float32)
    before: tuple[int, Any] | None = None
    for place, context in enumerate(layer.contexts):
        now = shown_attention(context, layer)
        if now is None:
            continue
        if before is not None and before[1].weights.shape == now.weights.shape:
            moved = change_between(before[1], now).numpy()
            about: dict[str, Any] = {"probe": layer.probe.name, "layer": layer.layer, "step": context.step}
            about |= {"other_step": before[0]}
            for head, values in enumerate(moved.T):
                row = _change_row(values[np.isfinite(values)], head, about)
                found[place, head] = row.value
                findings.rows.append(row)
        before = context.step, now
    if np.isfinite(found).any():
        findings.arrays[f"{layer.place}/change"] = NamedArray(("step", "head"), found)


def _change_row(values: np.ndarray, head: int, about: dict[str, Any]) -> Row:
    if not len(values):
        reason = "the weights are not finite, or no query of a shown sample has any"
        return Row("head_change", part=f"head={head}", status="does_not_apply", reason=reason, **about)
    estimator = "mean over the shown samples and their queries; low and high are the smallest and the largest of the samples"
    low, high = float(values.min()), float(values.max())
    return Row("head_change", float(values.mean()), part=f"head={head}", n=len(values), low=low, high=high, estimator=estimator, **about)  # fmt: skip


def _file_top_heads(
    followed: list[FollowedLayer], options: AttentionOverTrainingOptions, findings: Findings
) -> None:
    """The weights of the heads that lead at the end, over the steps: the mean over samples where they have one length, else
    those of the first shown sample."""
    chosen: dict[int, list[tuple[int, float]]] = {}
    ranked, by = _ranked_heads(followed, options)
    for value, number, head in ranked[: options.top_heads]:
        chosen.setdefault(number, []).append((head, value))
    for number, heads in chosen.items():
        layer = followed[number]
        for name in ("mean_weights", "weights"):
            kept = [context.found(READ, layer.probe.name, layer.layer, name) for context in layer.contexts]
            if any(values is None or not len(values) for values in kept):
                continue
            places = [head for head, _ in heads]
            matrices = np.stack([(values if name == "mean_weights" else values[0])[places] for values in kept])  # type: ignore[index]
            about = {"heads": places, "value": [value for _, value in heads], "ranked_by": by, "of": name}
            about |= {"queries": matrices.shape[2], "keys": matrices.shape[3]}
            drawn = shortened_matrix(matrices.astype(np.float32), options.shown_tokens).astype(np.float16)
            dims = ("step", "top_head", "query", "key")
            findings.arrays[f"{layer.place}/head_weights"] = NamedArray(dims, drawn, about)
            break


def _ranked_heads(
    followed: list[FollowedLayer], options: AttentionOverTrainingOptions
) -> tuple[list[tuple[float, int, int]], str]:
    """(value, layer, head) of all heads, those that lead at the end first: by their highest score, and where no layer has scores that
    heads form by, by how pointed they are; and what the value is."""
    found = []
    for number, layer in enumerate(followed):
        forming = [layer.names.index(name) for name in forming_scores(layer.names, options.scores)]
        if forming:
            final = np.nan_to_num(layer.scores[-1, forming].max(0), nan=-1.0)
            found += [(float(value), number, head) for head, value in enumerate(final)]
    if found:
        return sorted(found, key=lambda one: (-one[0], *one[1:])), "score"
    for number, layer in enumerate(followed):
        if _POINTED in layer.names:
            final = np.nan_to_num(layer.scores[-1, layer.names.index(_POINTED)], nan=1.0)
            found += [(float(value), number, head) for head, value in enumerate(final)]
    return sorted(found), "entropy share"


_OWN = ("head_formation_step", "head_change", "head_agreement")
_ORDER = "order of the samples"
ANALYSIS = register(
    Analysis(
        name="attention_over_training", version=1, scope="series", title="Attention over training",
        question="When did each head of attention take up what it does?",
        options=AttentionOverTrainingOptions, compute=compute, draw=draw, builds_on=(READ,),
        metrics=(
            Metric("head_formation_step", "step", "[0, ∞)", "The first checkpoint from which on a head's `score` stays past half of its way from the first checkpoint to its final level (the median of the last tenth of the checkpoints). It happened between `low`, the checkpoint before, and `high`. Only for scores that rose by `least_gain`.", "TransformerLens, issue 108, asks for it; Olsson et al. 2022 plot the curves", f"{_ORDER}; shift and positive scale of the curve, up to the least gain"),
            Metric("head_change", "1", "[0, 1]", "Jensen–Shannon distance (base 2) of a head's weights to those at the checkpoint before: 0 for the same, 1 where no key has weight at both. Mean over the real queries of the shown samples.", "Lin 1991; Endres and Schindelin 2003", _ORDER),
            Metric("head_agreement", "1", "[0, 1]", "1 less the Jensen–Shannon distance (base 2) of two heads of a layer on the same queries, mean over the shown samples and over all pairs of heads; `low` and `high` are the most different and the most similar pair. 1 where all heads look at the same keys.", "Lin 1991; Endres and Schindelin 2003", f"{_ORDER}; order of the heads"),
            *(metric for metric in DRIFT.metrics if metric.name.startswith("change_point_")),
        ),
    )
)  # fmt: skip
